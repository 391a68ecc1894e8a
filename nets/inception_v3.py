"""Inception V3.

Szegedy et al. 2015, "Rethinking the Inception Architecture for Computer Vision", table 1 and
figures 5 to 8 and 10: convolutions factorized into smaller and asymmetric ones, downsampling by a
convolution and a pooling in parallel, an auxiliary head with BatchNorm, and label smoothing.

The paper gives few widths. They follow the authors' released code (tensorflow/models,
research/slim/nets/inception_v3.py), as in tf.keras.applications. In that code, figure 5 has a 5x5
convolution in one branch and two 3x3 convolutions in another, and dropout is 20%. The sources of
the settings of the whole net are given beside each value.
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
    pad_to,
    pool_by_thirds,
)
from nets.net import Net, Sizes


class InceptionA(Branches):
    """For the 35x35 grid: figure 5. 160 + `n1x1` + `pool_proj` channels.

    Args:
        pool_proj: channels of the 1x1 convolution after the pooling.
        n1x1: channels of the 1x1 branch.
    """

    def __init__(self, pool_proj: int, *, n1x1: int = 64):
        super().__init__(
            [
                [ConvBatchNorm(n1x1, 1)],
                [ConvBatchNorm(48, 1), ConvBatchNorm(64, 5)],
                [ConvBatchNorm(64, 1), ConvBatchNorm(96, 3), ConvBatchNorm(96, 3)],
                [AvgPool(3), ConvBatchNorm(pool_proj, 1)],
            ]
        )


class ReductionA(Branches):
    """From the 35x35 grid to 17x17: figure 10. Adds n + m channels to those of the input.

    Args:
        k, l, m, n: channels, named as in Szegedy et al. 2016, figure 7.
    """

    def __init__(self, k: int, l: int, m: int, n: int):  # noqa: E741, names of the figure
        super().__init__(
            [
                [ConvBatchNorm(n, 3, strides=2, padding="valid")],
                [
                    ConvBatchNorm(k, 1),
                    ConvBatchNorm(l, 3),
                    ConvBatchNorm(m, 3, strides=2, padding="valid"),
                ],
                [MaxPool(3, strides=2, padding="valid")],
            ]
        )


class InceptionB(Branches):
    """For the 17x17 grid: figure 6 with n = 7. 768 channels.

    Args:
        filters: channels inside the factorized branches.
    """

    def __init__(self, filters: int):
        super().__init__(
            [
                [ConvBatchNorm(192, 1)],
                [
                    ConvBatchNorm(filters, 1),
                    ConvBatchNorm(filters, (1, 7)),
                    ConvBatchNorm(192, (7, 1)),
                ],
                [
                    ConvBatchNorm(filters, 1),
                    ConvBatchNorm(filters, (7, 1)),
                    ConvBatchNorm(filters, (1, 7)),
                    ConvBatchNorm(filters, (7, 1)),
                    ConvBatchNorm(192, (1, 7)),
                ],
                [AvgPool(3), ConvBatchNorm(192, 1)],
            ]
        )


class ReductionB(Branches):
    """From the 17x17 grid to 8x8. Adds 512 channels to those of the input."""

    def __init__(self):
        super().__init__(
            [
                [ConvBatchNorm(192, 1), ConvBatchNorm(320, 3, strides=2, padding="valid")],
                [
                    ConvBatchNorm(192, 1),
                    ConvBatchNorm(192, (1, 7)),
                    ConvBatchNorm(192, (7, 1)),
                    ConvBatchNorm(192, 3, strides=2, padding="valid"),
                ],
                [MaxPool(3, strides=2, padding="valid")],
            ]
        )


def expanded(filters: int) -> Branches:
    """Returns parallel 1x3 and 3x1 convolutions with `filters` channels each, concatenated."""
    return Branches([[ConvBatchNorm(filters, (1, 3))], [ConvBatchNorm(filters, (3, 1))]])


class InceptionC(Branches):
    """For the 8x8 grid: figure 7. 2,048 channels."""

    def __init__(self):
        super().__init__(
            [
                [ConvBatchNorm(320, 1)],
                [ConvBatchNorm(384, 1), expanded(384)],
                [ConvBatchNorm(448, 1), ConvBatchNorm(384, 3), expanded(384)],
                [AvgPool(3), ConvBatchNorm(192, 1)],
            ]
        )


class AuxiliaryHead(Composite):
    """An auxiliary classifier with BatchNorm on an intermediate stage: figure 8.

    5x5 average pooling with stride 3, a 1x1 convolution with 128 channels, a 5x5 convolution with
    768, which reduces a 17x17 grid to one pixel, and a dense layer. A larger grid is averaged
    before the dense layer. A smaller one is padded with zeros to 5x5 pixels after the pooling.

    Args:
        num_classes: number of logits.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.reduce = ConvBatchNorm(128, 1)
        self.conv = ConvBatchNorm(768, 5, padding="valid", kernel_initializer=_normal(0.01))
        self.head = Head(num_classes, kernel_initializer=_normal(0.001))

    def call(self, x, *, training):
        x = self.reduce(pool_by_thirds(x), training=training)
        x = self.conv(pad_to(x, 5), training=training)
        return self.head(x, training=training)


def _normal(stddev: float):
    return tf.keras.initializers.TruncatedNormal(stddev=stddev)


def inception_stem(stem: str, *, last_pool: bool = True) -> list:
    """Returns the layers of the stem, with 192 output channels; Inception-ResNets share them.

    The large stem reduces 299x299 images to 35x35. The small one keeps the size: its convolutions
    have stride 1 and "same" padding, and it has no pooling.

    Args:
        stem: "small" or "large".
        last_pool: whether to include the second pooling, the last layer.
    """
    small = stem == "small"
    strides, padding = (1, "same") if small else (2, "valid")

    def pool():
        return [] if small else [MaxPool(3, strides=2, padding="valid")]

    return [
        ConvBatchNorm(32, 3, strides=strides, padding=padding),
        ConvBatchNorm(32, 3, padding=padding),
        ConvBatchNorm(64, 3),
        *pool(),
        ConvBatchNorm(80, 1),
        ConvBatchNorm(192, 3, padding=padding),
        *(pool() if last_pool else []),
    ]


class InceptionV3(Net):
    """Stem, three, four and two Inception modules with reductions in between, one dense layer.

    On 299x299 images the grids are 35x35, 17x17 and 8x8. With the small stem on 32x32 images they
    are 32x32, 15x15 and 7x7.

    Args:
        num_classes: number of logits.
        stem: "small" or "large"; see `inception_stem`.
        auxiliary: whether to add an auxiliary head after the 17x17 modules.
    """

    smallest_size = Sizes(small=7, large=75)
    label_smoothing = 0.1  # Section 7.
    auxiliary_weight = 0.4  # tensorflow/models, research/slim/train_image_classifier.py
    # tensorflow/models, research/slim/nets/inception_utils.py.
    batch_norm_momentum = 0.9997
    batch_norm_epsilon = 1e-3

    def __init__(self, num_classes: int, *, stem: str = "large", auxiliary: bool = True):
        super().__init__()
        self.stem = Chain(inception_stem(stem))
        self.inception_a = Chain([InceptionA(32), InceptionA(64), InceptionA(64)])
        self.reduction_a = ReductionA(64, 96, 96, 384)
        self.inception_b = Chain([InceptionB(filters) for filters in (128, 160, 160, 192)])
        self.reduction_b = ReductionB()
        self.inception_c = Chain([InceptionC(), InceptionC()])
        self.head = Head(num_classes, dropout=0.2)
        self.stage_names = (
            *("stem", "inception_a", "reduction_a", "inception_b", "reduction_b"),
            *("inception_c", "head"),
        )
        if auxiliary:
            self.auxiliary_b = AuxiliaryHead(num_classes)
            self.auxiliary = (("inception_b", "auxiliary_b"),)
