"""ResNets and their non-residual counterparts.

He et al. 2015, "Deep Residual Learning for Image Recognition":

- ResNet-18 to ResNet-152: table 1 and figure 5.
- ResNet-20 to ResNet-110 for 32x32 images: section 4.2 and table 6, with the shortcuts of option A.
- The plain nets: figure 3 (middle) and section 4.2, the layers of a residual net without its
  shortcuts. Deep plain nets have a higher training error than shallow ones (figures 4 and 6), which
  residual learning prevents.

The first block of every stage but the first has stride 2. A bottleneck has this stride in its first
1x1 convolution, as in the authors' Caffe models and tf.keras.applications. Convolutions are
initialized after He et al. 2015 ("Delving Deep into Rectifiers"), which section 3.4 cites.
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
        strides: stride of the convolution.
    """

    def __init__(self, filters: int, *, strides: int):
        super().__init__(filters, 1, strides=strides, relu=False)


class PaddedShortcut(tf.keras.layers.Layer):
    """Subsampling, and zeros for the additional channels: option A of section 3.3.

    It has no parameters.

    Args:
        filters: output channels, at least as many as the input has.
        strides: distance between the pixels that are kept, in both directions.
    """

    def __init__(self, filters: int, *, strides: int):
        super().__init__()
        self.filters, self.strides = filters, strides

    def call(self, x, *, training):
        del training
        x = x[:, :: self.strides, :: self.strides]
        return tf.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.filters - x.shape[-1])))


class Block(Composite):
    """The sum of a residual and a shortcut, then ReLU.

    Args:
        residual: a layer without a final ReLU.
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
        strides: stride of the first convolution.
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
        strides: stride of the first convolution.
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
        strides: stride of the first convolution.
        shortcut: ignored.
    """

    expansion = 1

    def __init__(self, filters: int, *, strides: int = 1, shortcut: None = None):
        del shortcut
        super().__init__([ConvBatchNorm(filters, 3, strides=strides), ConvBatchNorm(filters, 3)])


class ResNet(Net):
    """Stem, stages of blocks, global average pooling, one dense layer.

    The small stem, for images of about 32x32, is the 3x3 convolution of section 4.2. The large one,
    for 224x224, is the 7x7 convolution and the pooling of table 1, which downsample by 4.

    Args:
        num_classes: number of logits.
        stem: "small" or "large".
        block: class of the blocks, called as `block(filters, strides=..., shortcut=...)`.
        blocks: number of blocks in each stage.
        filters: channels of each stage, before a bottleneck's expansion. The stem has the channels
            of the first stage.
        shortcut: class of the shortcuts where the shape changes, called as
            `shortcut(filters, strides=...)`; None for nets without shortcuts.

    Raises:
        ValueError: `blocks` and `filters` differ in length.
    """

    smallest_size = Sizes(small=8, large=32)  # The four stages reduce these to one pixel.

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
