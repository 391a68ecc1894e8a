"""Inception-ResNet-v1 and Inception-ResNet-v2.

Szegedy et al. 2016, "Inception-v4, Inception-ResNet and the Impact of Residual Connections on
Learning", figures 10 to 19, with the filters of table 1 in Reduction-A. Each residual ends with a
1x1 convolution with bias and without BatchNorm, and is scaled down before it is added (section 3.3,
figure 20).

Where the figures differ from the authors' released code (tensorflow/models,
research/slim/nets/inception_resnet_v2.py), V2 follows the code, as tf.keras.applications does. The
stem is that of Inception V3 and one Inception module, where figure 15 has that of Inception V4.
Modules and widths are those of the code. The scales are 0.17, 0.1 and 0.2; the last module is not
scaled and has no ReLU, and a 1x1 convolution precedes the pooling. The auxiliary head of the code,
which is in no figure, is left out. No code was released for V1, which follows its figures, with the
same scales.
"""

import tensorflow as tf

from nets.inception_v3 import InceptionA, ReductionA, inception_stem
from nets.layers import (
    Branches,
    Chain,
    Composite,
    ConvBatchNorm,
    Convolution,
    Head,
    MaxPool,
)
from nets.net import Net, Sizes


class ResidualModule(Composite):
    """Branches and a linear 1x1 convolution, scaled and added to the input, then ReLU.

    Args:
        branches: see `nets.layers.Branches`.
        filters: channels of the input and the output.
        scale: factor of the residual.
        relu: whether to apply ReLU to the sum.
    """

    def __init__(self, branches: list, filters: int, *, scale: float, relu: bool = True):
        super().__init__()
        self.inception = Branches(branches)
        # Slim's default (Glorot & Bengio 2010), since no BatchNorm normalizes the scale.
        self.expand = Convolution(filters, 1, kernel_initializer="glorot_uniform")
        self.scale = scale
        self.relu = relu

    def call(self, x, *, training):
        residual = self.expand(self.inception(x, training=training), training=training)
        x += self.scale * residual
        return tf.nn.relu(x) if self.relu else x


class InceptionResNetA(ResidualModule):
    """For the 35x35 grid: figures 10 and 16.

    Args:
        filters: channels of the input and the output.
        widths: channels of the two 3x3 convolutions of the last branch.
    """

    def __init__(self, filters: int, widths: tuple[int, int]):
        first, second = widths
        branches = [
            [ConvBatchNorm(32, 1)],
            [ConvBatchNorm(32, 1), ConvBatchNorm(32, 3)],
            [ConvBatchNorm(32, 1), ConvBatchNorm(first, 3), ConvBatchNorm(second, 3)],
        ]
        super().__init__(branches, filters, scale=0.17)


class InceptionResNetB(ResidualModule):
    """For the 17x17 grid: figures 11 and 17.

    Args:
        filters: channels of the input and the output.
        widths: channels of the 1x1 branch and of the other's 1x1, 1x7 and 7x1 convolutions.
    """

    def __init__(self, filters: int, widths: tuple[int, int, int, int]):
        alone, first, second, third = widths
        branches = [
            [ConvBatchNorm(alone, 1)],
            [
                ConvBatchNorm(first, 1),
                ConvBatchNorm(second, (1, 7)),
                ConvBatchNorm(third, (7, 1)),
            ],
        ]
        super().__init__(branches, filters, scale=0.1)


class InceptionResNetC(ResidualModule):
    """For the 8x8 grid: figures 13 and 19.

    Args:
        filters: channels of the input and the output.
        widths: channels of the 1x3 and the 3x1 convolution.
        scale, relu: see `ResidualModule`.
    """

    def __init__(
        self, filters: int, widths: tuple[int, int], *, scale: float = 0.2, relu: bool = True
    ):
        first, second = widths
        branches = [
            [ConvBatchNorm(192, 1)],
            [ConvBatchNorm(192, 1), ConvBatchNorm(first, (1, 3)), ConvBatchNorm(second, (3, 1))],
        ]
        super().__init__(branches, filters, scale=scale, relu=relu)


class ReductionB(Branches):
    """From the 17x17 grid to 8x8: figures 12 and 18.

    Args:
        widths: channels of the 3x3 convolutions of the second branch (one) and the third (two).
    """

    def __init__(self, widths: tuple[int, int, int]):
        alone, first, second = widths
        super().__init__(
            [
                [ConvBatchNorm(256, 1), ConvBatchNorm(384, 3, strides=2, padding="valid")],
                [ConvBatchNorm(256, 1), ConvBatchNorm(alone, 3, strides=2, padding="valid")],
                [
                    ConvBatchNorm(256, 1),
                    ConvBatchNorm(first, 3),
                    ConvBatchNorm(second, 3, strides=2, padding="valid"),
                ],
                [MaxPool(3, strides=2, padding="valid")],
            ]
        )


class InceptionResNet(Net):
    """Base class of both versions: three stages of residual modules, 20% dropout, one dense layer.

    On 299x299 images the grids are 35x35, 17x17 and 8x8. With the small stem on 32x32 images they
    are 32x32, 15x15 and 7x7: its layers have stride 1 and "same" padding, and it has no pooling.
    """

    smallest_size = Sizes(small=7, large=75)
    # tensorflow/models, research/slim/nets/inception_resnet_v2.py, inception_resnet_v2_arg_scope.
    batch_norm_momentum = 0.9997
    batch_norm_epsilon = 1e-3
    stage_names = (
        *("stem", "inception_a", "reduction_a", "inception_b", "reduction_b"),
        *("inception_c", "head"),
    )


class InceptionResNetV1(InceptionResNet):
    """Figure 15 with the modules of figures 10 to 14.

    Args:
        num_classes: number of logits.
        stem: "small" or "large".
    """

    def __init__(self, num_classes: int, *, stem: str = "large"):
        super().__init__()
        strides, padding = (1, "same") if stem == "small" else (2, "valid")
        # Figure 14: the stem of V3 with a convolution instead of the second pooling.
        convolutions = inception_stem(stem, last_pool=False)
        last = ConvBatchNorm(256, 3, strides=strides, padding=padding)
        self.stem = Chain([*convolutions, last])
        self.inception_a = Chain([InceptionResNetA(256, (32, 32)) for _ in range(5)])
        self.reduction_a = ReductionA(192, 192, 256, 384)
        self.inception_b = Chain([InceptionResNetB(896, (128,) * 4) for _ in range(10)])
        self.reduction_b = ReductionB((256, 256, 256))
        self.inception_c = Chain([InceptionResNetC(1792, (192, 192)) for _ in range(5)])
        self.head = Head(num_classes, dropout=0.2)


class InceptionResNetV2(InceptionResNet):
    """Figure 15 with the modules of figures 16 to 19, as in the released code.

    Args:
        num_classes: number of logits.
        stem: "small" or "large".
    """

    def __init__(self, num_classes: int, *, stem: str = "large"):
        super().__init__()
        # The last module is "mixed_5b" in the code.
        self.stem = Chain([*inception_stem(stem), InceptionA(64, n1x1=96)])
        self.inception_a = Chain([InceptionResNetA(320, (48, 64)) for _ in range(10)])
        self.reduction_a = ReductionA(256, 256, 384, 384)
        self.inception_b = Chain([InceptionResNetB(1088, (192, 128, 160, 192)) for _ in range(20)])
        self.reduction_b = ReductionB((288, 288, 320))
        modules = [InceptionResNetC(2080, (224, 256)) for _ in range(9)]
        last = InceptionResNetC(2080, (224, 256), scale=1.0, relu=False)
        self.inception_c = Chain([*modules, last, ConvBatchNorm(1536, 1)])
        self.head = Head(num_classes, dropout=0.2)
