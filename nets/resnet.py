"""ResNets and the plain nets they cured.

He et al. 2015, "Deep Residual Learning for Image Recognition":

- ResNet-18 to ResNet-152: table 1 and figure 5.
- ResNet-20 to ResNet-110 for 32x32 images: section 4.2 and table 6, with the shortcuts of option A.
- the plain nets: figure 3 (middle) and section 4.2, a residual net's layers without its shortcuts.
  Deep ones have a higher training error than shallow ones (figures 4 and 6), which is what residual
  learning cures.

The first block of every stage but the first halves the image. A bottleneck takes that stride in its
first 1x1 convolution, as the authors' Caffe models and tf.keras.applications do. Convolutions start
from He et al. 2015 ("Delving Deep into Rectifiers"), which section 3.4 cites.
"""

import tensorflow as tf

from nets.layers import (
    Chain,
    Composite,
    ConvBatchNorm,
    Head,
    LargeStem,
    SmallStem,
)
from nets.net import Net, Sizes


class ProjectionShortcut(ConvBatchNorm):
    """A 1x1 convolution with BatchNorm: option B of section 3.3.

    Args:
        filters: output channels.
        strides: step of the convolution.
    """

    def __init__(self, filters: int, *, strides: int):
        super().__init__(filters, 1, strides=strides, relu=False)


class PaddedShortcut(tf.keras.layers.Layer):
    """Every `strides`-th pixel, and channels of zeros behind those there are: option A.

    It has no parameters.

    Args:
        filters: output channels, at least as many as those of the input.
        strides: step in both directions.
    """

    def __init__(self, filters: int, *, strides: int):
        super().__init__()
        self.filters, self.strides = filters, strides

    def call(self, x, *, training):
        del training
        x = x[:, :: self.strides, :: self.strides]
        return tf.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.filters - x.shape[-1])))


class Block(Composite):
    """A residual and a shortcut, and ReLU after their sum.

    Args:
        residual: a layer that ends without ReLU.
        shortcut: a layer, or None for the identity.
    """

    def __init__(self, residual: tf.keras.layers.Layer, shortcut: tf.keras.layers.Layer | None):
        super().__init__()
        self.residual = residual
        self.shortcut = shortcut

    def call(self, x, *, training):
        shortcut = x if self.shortcut is None else self.shortcut(x, training=training)
        return tf.nn.relu(self.residual(x, training=training) + shortcut)


class BasicBlock(Block):
    """Two 3x3 convolutions (figure 5, left).

    Args:
        filters: channels of the convolutions and of the output.
        strides: of the first convolution.
        shortcut: a layer, or None for the identity.
    """

    expansion = 1

    def __init__(self, filters: int, *, strides: int = 1, shortcut=None):
        convolutions = [
            ConvBatchNorm(filters, 3, strides=strides),
            ConvBatchNorm(filters, 3, relu=False),
        ]
        super().__init__(Chain(convolutions), shortcut)


class BottleneckBlock(Block):
    """1x1, 3x3 and 1x1 convolutions (figure 5, right).

    Args:
        filters: channels of the first two convolutions; the output has four times as many.
        strides: of the first convolution.
        shortcut: a layer, or None for the identity.
    """

    expansion = 4

    def __init__(self, filters: int, *, strides: int = 1, shortcut=None):
        convolutions = [
            ConvBatchNorm(filters, 1, strides=strides),
            ConvBatchNorm(filters, 3),
            ConvBatchNorm(self.expansion * filters, 1, relu=False),
        ]
        super().__init__(Chain(convolutions), shortcut)


class PlainBlock(Chain):
    """Two 3x3 convolutions, each with ReLU: a basic block without its shortcut.

    Args:
        filters: channels of the convolutions and of the output.
        strides: of the first convolution.
        shortcut: there is none.
    """

    expansion = 1

    def __init__(self, filters: int, *, strides: int = 1, shortcut: None = None):
        del shortcut
        super().__init__([ConvBatchNorm(filters, 3, strides=strides), ConvBatchNorm(filters, 3)])


class ResNet(Net):
    """Stem, stages of blocks, global average pooling, one dense layer.

    The small stem, for images of about 32x32, is the 3x3 convolution of section 4.2, with neither
    stride nor pooling; the large one, for 224x224, is table 1's 7x7 convolution and pooling, which
    make the image four times smaller.

    Args:
        num_classes: width of the logits.
        stem: "small" or "large".
        block: class of the blocks, as `block(filters, strides=..., shortcut=...)`.
        blocks: blocks in each stage.
        filters: channels of each stage, before a bottleneck's expansion; the stem has those of the
            first.
        shortcut: class of the shortcuts where the shape changes, as
            `shortcut(filters, strides=...)`; None for nets without shortcuts.
    """

    smallest_size = Sizes(small=8, large=32)  # Of which four stages leave one pixel.

    def __init__(
        self,
        num_classes: int,
        *,
        stem: str = "small",
        block,
        blocks,
        filters=(64, 128, 256, 512),
        shortcut=ProjectionShortcut,
    ):
        super().__init__()
        if len(blocks) != len(filters):
            raise ValueError(f"blocks={blocks} and filters={filters} must have the same length")
        self.stem = SmallStem(filters[0]) if stem == "small" else LargeStem(filters[0])
        channels = filters[0]
        for i, (count, width) in enumerate(zip(blocks, filters, strict=True), start=1):
            strides = 1 if i == 1 else 2
            outputs = block.expansion * width
            changes = shortcut is not None and (strides != 1 or outputs != channels)
            first = block(
                width,
                strides=strides,
                shortcut=shortcut(outputs, strides=strides) if changes else None,
            )
            stage = Chain([first, *(block(width) for _ in range(count - 1))])
            setattr(self, f"stage_{i}", stage)
            channels = outputs
        self.head = Head(num_classes)
        stages = tuple(f"stage_{i}" for i in range(1, len(blocks) + 1))
        self.stage_names = ("stem", *stages, "head")
