"""Inception V2 (BN-Inception).

Ioffe & Szegedy 2015, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
Covariate Shift", appendix, figure 5: GoogLeNet with BatchNorm, two 3x3 convolutions instead of each
5x5, one more module on the finest grid, and modules with stride 2 instead of pooling. The first
convolution is separable, with depth multiplier 8. There is no local response normalization, no
dropout (section 4.2.1) and no auxiliary head: the only dense layer is the last.

For modules 4c and 4d the last column of the figure says 128, which would give 608 channels. 96
gives the 576 of its output column, and is what slim's inception_v2 has. The separable convolution
is initialized as in slim. The others, whose scale hardly matters before BatchNorm, are initialized
after He et al. 2015, as in slim's argument scope for Inception nets.
"""

import tensorflow as tf

from nets.layers import (
    AvgPool,
    Branches,
    Chain,
    Composite,
    ConvBatchNorm,
    Head,
    MaxPool,
)
from nets.net import Net, Sizes


class DepthwiseConvolution(Composite):
    """Depthwise convolution with depth multiplier 8 and symmetric padding, without bias.

    Together with the 1x1 convolution that follows, it is the separable convolution. The kernel is
    initialized with a truncated normal of standard deviation 1 (tensorflow/models,
    research/slim/nets/inception_v2.py).

    Args:
        kernel_size: height and width of the kernel, odd.
        strides: stride in both directions.
    """

    def __init__(self, kernel_size: int, *, strides: int = 1):
        super().__init__()
        self.margin = (kernel_size - 1) // 2
        self.conv = tf.keras.layers.DepthwiseConv2D(
            kernel_size,
            strides=strides,
            depth_multiplier=8,
            data_format="channels_last",
            use_bias=False,
            depthwise_initializer=tf.keras.initializers.TruncatedNormal(stddev=1.0),
        )

    def call(self, x, *, training):
        del training
        margins = (self.margin, self.margin)
        return self.conv(tf.pad(x, ((0, 0), margins, margins, (0, 0))))


class InceptionModule(Branches):
    """Four parallel branches, concatenated. The arguments are columns of the figure.

    Args:
        n1x1: channels of the 1x1 branch.
        n3x3_reduce, n3x3: channels before and after the 3x3 convolution.
        double_reduce, double: channels before and after the two 3x3 convolutions.
        pool_proj: channels of the 1x1 convolution after the pooling.
        pool: class of the pooling.
    """

    def __init__(self, n1x1, n3x3_reduce, n3x3, double_reduce, double, pool_proj, *, pool=AvgPool):
        super().__init__(
            [
                [ConvBatchNorm(n1x1, 1)],
                [ConvBatchNorm(n3x3_reduce, 1), ConvBatchNorm(n3x3, 3)],
                [
                    ConvBatchNorm(double_reduce, 1),
                    ConvBatchNorm(double, 3),
                    ConvBatchNorm(double, 3),
                ],
                [pool(3), ConvBatchNorm(pool_proj, 1)],
            ]
        )


class ReductionModule(Branches):
    """A module with stride 2: two branches of convolutions and one of max pooling, concatenated.

    Args:
        n3x3_reduce, n3x3: channels before and after the 3x3 convolution.
        double_reduce, double: channels before and after the two 3x3 convolutions.
    """

    def __init__(self, n3x3_reduce, n3x3, double_reduce, double):
        super().__init__(
            [
                [ConvBatchNorm(n3x3_reduce, 1), ConvBatchNorm(n3x3, 3, strides=2)],
                [
                    ConvBatchNorm(double_reduce, 1),
                    ConvBatchNorm(double, 3),
                    ConvBatchNorm(double, 3, strides=2),
                ],
                [MaxPool(3, strides=2)],
            ]
        )


def _stem(stem: str) -> list:
    """Returns the rows of the figure before the first Inception module."""
    if stem == "small":
        return [
            DepthwiseConvolution(3),
            ConvBatchNorm(64, 1),
            ConvBatchNorm(64, 1),
            ConvBatchNorm(192, 3),
        ]
    return [
        DepthwiseConvolution(7, strides=2),
        ConvBatchNorm(64, 1),
        MaxPool(3, strides=2),
        ConvBatchNorm(64, 1),
        ConvBatchNorm(192, 3),
        MaxPool(3, strides=2),
    ]


class InceptionV2(Net):
    """Stem, ten Inception modules, two of them with stride 2, one dense layer.

    The large stem, for 224x224 images, downsamples by 8. The small one, for about 32x32, keeps the
    size: its first convolution is 3x3 with stride 1, and it has no pooling.

    Args:
        num_classes: number of logits.
        stem: "small" or "large".
    """

    smallest_size = Sizes(small=4, large=32)
    # tensorflow/models, research/slim/nets/inception_utils.py.
    batch_norm_momentum = 0.9997
    batch_norm_epsilon = 1e-3

    def __init__(self, num_classes: int, *, stem: str = "large"):
        super().__init__()
        self.stem = Chain(_stem(stem))
        self.inception_3a = InceptionModule(64, 64, 64, 64, 96, 32)
        self.inception_3b = InceptionModule(64, 64, 96, 64, 96, 64)
        self.inception_3c = ReductionModule(128, 160, 64, 96)
        self.inception_4a = InceptionModule(224, 64, 96, 96, 128, 128)
        self.inception_4b = InceptionModule(192, 96, 128, 96, 128, 128)
        self.inception_4c = InceptionModule(160, 128, 160, 128, 160, 96)
        self.inception_4d = InceptionModule(96, 128, 192, 160, 192, 96)
        self.inception_4e = ReductionModule(128, 192, 192, 256)
        self.inception_5a = InceptionModule(352, 192, 320, 160, 224, 128)
        self.inception_5b = InceptionModule(352, 192, 320, 192, 224, 128, pool=MaxPool)
        self.head = Head(num_classes)
        self.stage_names = (
            *("stem", "inception_3a", "inception_3b", "inception_3c"),
            *("inception_4a", "inception_4b", "inception_4c", "inception_4d", "inception_4e"),
            *("inception_5a", "inception_5b", "head"),
        )
