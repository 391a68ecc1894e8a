"""Inception10, a small InceptionNet for small images, in four styles of block.

Ten layers deep, counting the stem, four Inception layers of two convolutions each, and the dense
layer. Its blocks have BatchNorm after every convolution (Ioffe & Szegedy 2015) and differ in one
idea each, so that two runs show what the idea does:

- `InceptionBlock`: Szegedy et al. 2014, "Going Deeper with Convolutions", figure 2 (b).
- `StackedBlock`: two 3x3 convolutions for a 5x5 (Szegedy et al. 2015, "Rethinking the Inception
  Architecture for Computer Vision", section 3.1, figure 5).
- `FactorizedBlock`: 1xn and nx1 for nxn (the same, section 3.2, figure 6).
- `ResidualInceptionBlock`: the block as a residual (Szegedy et al. 2016, "Inception-v4,
  Inception-ResNet and the Impact of Residual Connections on Learning", section 3.2).
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
    """Four branches side by side, concatenated to 4 * `filters` channels.

    Args:
        filters: output channels of each branch, and of the 1x1 reductions.
        strides: of the whole block; each branch takes it in its 1x1 convolution.
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
        """Layers that see 3x3 pixels."""
        return [ConvBatchNorm(filters, 3)]

    def wide(self, filters: int) -> list:
        """Layers that see 5x5 pixels."""
        return [ConvBatchNorm(filters, 5)]


class StackedBlock(InceptionBlock):
    """As `InceptionBlock`, with two 3x3 convolutions in place of the 5x5."""

    def wide(self, filters: int) -> list:
        return [ConvBatchNorm(filters, 3), ConvBatchNorm(filters, 3)]


class FactorizedBlock(InceptionBlock):
    """As `InceptionBlock`, with 1xn and nx1 convolutions in place of the 3x3 and the 5x5."""

    def middle(self, filters: int) -> list:
        return [ConvBatchNorm(filters, (1, 3)), ConvBatchNorm(filters, (3, 1))]

    def wide(self, filters: int) -> list:
        return [ConvBatchNorm(filters, (1, 5)), ConvBatchNorm(filters, (5, 1))]


class ResidualInceptionBlock(Composite):
    """An `InceptionBlock` and a linear 1x1 convolution, added to the input; ReLU after the sum.

    Args:
        filters: see `InceptionBlock`.
        strides: of the whole block. Where it is not 1, the shortcut is a 1x1 convolution with
            BatchNorm; where it is, the input must have 4 * `filters` channels.
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

    On 32x32 images the stages give 32x32x16, 16x16x64, 8x8x128 and `num_classes` logits. The small
    stem is a 3x3 convolution; the large one makes the image four times smaller.

    Args:
        num_classes: width of the logits.
        stem: "small" or "large".
        block: class of the blocks, as `block(filters, strides=...)`.
        filters: channels of each branch, a number per stage. The first block of a stage halves
            the image.
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
