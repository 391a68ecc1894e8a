"""Inception V4.

Szegedy et al. 2016, "Inception-v4, Inception-ResNet and the Impact of Residual Connections on
Learning", figures 3 to 9, with the filters of table 1 in Reduction-A, which is Inception V3's.
Padding is "same" except where a figure has a V. As in the figures, there is no auxiliary head. The
order of the 1x7 and 7x1 convolutions and the settings of the whole net follow the authors' released
code (tensorflow/models, research/slim/nets/inception_v4.py).
"""

from nets.inception_v3 import ReductionA, expanded
from nets.layers import AvgPool, Branches, Chain, ConvBatchNorm, Head, MaxPool
from nets.net import Net, Sizes


class InceptionA(Branches):
    """For the 35x35 grid: figure 4. 384 channels."""

    def __init__(self):
        super().__init__(
            [
                [ConvBatchNorm(96, 1)],
                [ConvBatchNorm(64, 1), ConvBatchNorm(96, 3)],
                [ConvBatchNorm(64, 1), ConvBatchNorm(96, 3), ConvBatchNorm(96, 3)],
                [AvgPool(3), ConvBatchNorm(96, 1)],
            ]
        )


class InceptionB(Branches):
    """For the 17x17 grid: figure 5. 1,024 channels."""

    def __init__(self):
        super().__init__(
            [
                [ConvBatchNorm(384, 1)],
                [ConvBatchNorm(192, 1), ConvBatchNorm(224, (1, 7)), ConvBatchNorm(256, (7, 1))],
                [
                    ConvBatchNorm(192, 1),
                    ConvBatchNorm(192, (7, 1)),
                    ConvBatchNorm(224, (1, 7)),
                    ConvBatchNorm(224, (7, 1)),
                    ConvBatchNorm(256, (1, 7)),
                ],
                [AvgPool(3), ConvBatchNorm(128, 1)],
            ]
        )


class ReductionB(Branches):
    """From the 17x17 grid to 8x8: figure 8. Adds 512 channels to those of the input."""

    def __init__(self):
        super().__init__(
            [
                [ConvBatchNorm(192, 1), ConvBatchNorm(192, 3, strides=2, padding="valid")],
                [
                    ConvBatchNorm(256, 1),
                    ConvBatchNorm(256, (1, 7)),
                    ConvBatchNorm(320, (7, 1)),
                    ConvBatchNorm(320, 3, strides=2, padding="valid"),
                ],
                [MaxPool(3, strides=2, padding="valid")],
            ]
        )


class InceptionC(Branches):
    """For the 8x8 grid: figure 6. 1,536 channels."""

    def __init__(self):
        super().__init__(
            [
                [ConvBatchNorm(256, 1)],
                [ConvBatchNorm(384, 1), expanded(256)],
                [
                    ConvBatchNorm(384, 1),
                    ConvBatchNorm(448, (3, 1)),
                    ConvBatchNorm(512, (1, 3)),
                    expanded(256),
                ],
                [AvgPool(3), ConvBatchNorm(256, 1)],
            ]
        )


class Stem(Chain):
    """Convolutions and pooling, partly in parallel: figure 3. 384 channels.

    The large stem reduces 299x299 images to 35x35. The small one, for about 32x32, keeps the size:
    all its layers have stride 1 and "same" padding.

    Args:
        stem: "small" or "large".
    """

    def __init__(self, stem: str):
        strides, padding = (1, "same") if stem == "small" else (2, "valid")
        reduce = {"strides": strides, "padding": padding}
        super().__init__(
            [
                ConvBatchNorm(32, 3, **reduce),
                ConvBatchNorm(32, 3, padding=padding),
                ConvBatchNorm(64, 3),
                Branches([[MaxPool(3, **reduce)], [ConvBatchNorm(96, 3, **reduce)]]),
                Branches(
                    [
                        [ConvBatchNorm(64, 1), ConvBatchNorm(96, 3, padding=padding)],
                        [
                            ConvBatchNorm(64, 1),
                            ConvBatchNorm(64, (1, 7)),
                            ConvBatchNorm(64, (7, 1)),
                            ConvBatchNorm(96, 3, padding=padding),
                        ],
                    ]
                ),
                Branches([[ConvBatchNorm(192, 3, **reduce)], [MaxPool(3, **reduce)]]),
            ]
        )


class InceptionV4(Net):
    """Stem, four, seven and three Inception modules with reductions in between, one dense layer.

    Figure 9. On 299x299 images the grids are 35x35, 17x17 and 8x8. With the small stem on 32x32
    images they are 32x32, 15x15 and 7x7.

    Args:
        num_classes: number of logits.
        stem: "small" or "large"; see `Stem`.
    """

    smallest_size = Sizes(small=7, large=75)
    # tensorflow/models, research/slim/nets/inception_utils.py.
    batch_norm_momentum = 0.9997
    batch_norm_epsilon = 1e-3

    def __init__(self, num_classes: int, *, stem: str = "large"):
        super().__init__()
        self.stem = Stem(stem)
        self.inception_a = Chain([InceptionA() for _ in range(4)])
        self.reduction_a = ReductionA(192, 224, 256, 384)
        self.inception_b = Chain([InceptionB() for _ in range(7)])
        self.reduction_b = ReductionB()
        self.inception_c = Chain([InceptionC() for _ in range(3)])
        self.head = Head(num_classes, dropout=0.2)
        self.stage_names = (
            *("stem", "inception_a", "reduction_a", "inception_b", "reduction_b"),
            *("inception_c", "head"),
        )
