"""Inception10, a small Inception net for small images, with four kinds of block.

It is ten layers deep: the stem, four Inception blocks of two convolutions each, and the dense
layer. All blocks have BatchNorm after every convolution (Ioffe & Szegedy 2015). Each kind changes
one idea, so that two runs show its effect:

- `InceptionBlock`: Szegedy et al. 2014, "Going Deeper with Convolutions", figure 2 (b).
- `StackedBlock`: two 3x3 convolutions instead of a 5x5 (Szegedy et al. 2015, "Rethinking the
  Inception Architecture for Computer Vision", section 3.1, figure 5).
- `FactorizedBlock`: 1xn and nx1 convolutions instead of nxn (same paper, section 3.2, figure 6).
- `ResidualInceptionBlock`: a residual connection around the block (Szegedy et al. 2016,
  "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning",
  section 3.2).
"""

import tensorflow as tf

from nets.layers import (
    Branches,
    Chain,
    Composite,
    ConvBatchNorm,
    Head,
    LargeStem,
    MaxPool,
    SmallStem,
)
from nets.net import Net, Sizes


class InceptionBlock(Branches):
    """Four parallel branches, concatenated to 4 * `filters` channels.

    Args:
        filters: output channels of each branch and of the 1x1 reductions.
        strides: stride of the block, applied by the 1x1 convolution of each branch.
    """

    def __init__(self, filters: int, *, strides: int = 1):
        def reduce():
            return ConvBatchNorm(filters, 1, strides=strides)

        super().__init__(
            [
                [reduce()],
                [reduce(), *self.middle(filters)],
                [reduce(), *self.wide(filters)],
                [MaxPool(3), reduce()],
            ]
        )

    def middle(self, filters: int) -> list:
        """Returns layers with a receptive field of 3x3 pixels."""
        return [ConvBatchNorm(filters, 3)]

    def wide(self, filters: int) -> list:
        """Returns layers with a receptive field of 5x5 pixels."""
        return [ConvBatchNorm(filters, 5)]


class StackedBlock(InceptionBlock):
    """An `InceptionBlock` with two 3x3 convolutions instead of the 5x5."""

    def wide(self, filters: int) -> list:
        return [ConvBatchNorm(filters, 3), ConvBatchNorm(filters, 3)]


class FactorizedBlock(InceptionBlock):
    """An `InceptionBlock` with 1xn and nx1 convolutions instead of the 3x3 and the 5x5."""

    def middle(self, filters: int) -> list:
        return [ConvBatchNorm(filters, (1, 3)), ConvBatchNorm(filters, (3, 1))]

    def wide(self, filters: int) -> list:
        return [ConvBatchNorm(filters, (1, 5)), ConvBatchNorm(filters, (5, 1))]


class ResidualInceptionBlock(Composite):
    """An `InceptionBlock` and a linear 1x1 convolution, added to the input, then ReLU.

    Args:
        filters: see `InceptionBlock`.
        strides: stride of the block. If it is 1, the input must have 4 * `filters` channels.
            Otherwise the shortcut is a 1x1 convolution with BatchNorm.
    """

    def __init__(self, filters: int, *, strides: int = 1):
        super().__init__()
        self.inception = InceptionBlock(filters, strides=strides)
        self.expand = ConvBatchNorm(4 * filters, 1, relu=False)
        self.projection = (
            ConvBatchNorm(4 * filters, 1, strides=strides, relu=False) if strides > 1 else None
        )

    def call(self, x, *, training):
        residual = self.expand(self.inception(x, training=training), training=training)
        shortcut = x if self.projection is None else self.projection(x, training=training)
        return tf.nn.relu(residual + shortcut)


class Inception10(Net):
    """Stem, two stages of two Inception blocks, global average pooling, one dense layer.

    On 32x32 images the outputs of the stages are 32x32x16, 16x16x64, 8x8x128 and `num_classes`
    logits. The small stem is a 3x3 convolution; the large one downsamples by 4.

    Args:
        num_classes: number of logits.
        stem: "small" or "large".
        block: class of the blocks, called as `block(filters, strides=...)`.
        filters: for each stage, channels of each branch. The first block of a stage has stride 2.
        stem_filters: channels of the stem.
    """

    smallest_size = Sizes(small=4, large=16)

    def __init__(
        self,
        num_classes: int,
        *,
        stem: str = "small",
        block=InceptionBlock,
        filters=(16, 32),
        stem_filters: int = 16,
    ):
        super().__init__()
        self.stem = SmallStem(stem_filters) if stem == "small" else LargeStem(stem_filters)
        for i, width in enumerate(filters, start=1):
            setattr(self, f"stage_{i}", Chain([block(width, strides=2), block(width)]))
        self.head = Head(num_classes)
        stages = tuple(f"stage_{i}" for i in range(1, len(filters) + 1))
        self.stage_names = ("stem", *stages, "head")
