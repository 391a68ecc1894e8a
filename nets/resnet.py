"""ResNet-18 and ResNet-34 for small images.

He et al. 2015, "Deep Residual Learning for Image Recognition", table 1 and figure 5 (left), with
the stem of section 4.2: one 3x3 convolution, no pooling, no stride before or in the first stage.
"""

import tensorflow as tf

from nets.layers import Chain, ConvBatchNorm, Head
from nets.net import Net


class BasicBlock(tf.keras.layers.Layer):
    """Two 3x3 convolutions added to the input, and ReLU after the sum.

    The shortcut is the identity, or where the shape changes a 1x1 convolution with BatchNorm
    ("projection", option B of section 3.3).

    Args:
        filters: output channels.
        strides: of the first convolution and of the projection.
        project: whether the shortcut is a projection.
    """

    def __init__(self, filters: int, *, strides: int = 1, project: bool = False):
        super().__init__()
        self.conv_0 = ConvBatchNorm(filters, 3, strides=strides)
        self.conv_1 = ConvBatchNorm(filters, 3, relu=False)
        self.projection = (
            ConvBatchNorm(filters, 1, strides=strides, relu=False) if project else None
        )

    def call(self, x, *, training):
        residual = self.conv_1(self.conv_0(x, training=training), training=training)
        shortcut = x if self.projection is None else self.projection(x, training=training)
        return tf.nn.relu(residual + shortcut)


class ResNet(Net):
    """3x3 stem, four stages of basic blocks, global average pooling, one dense layer.

    Args:
        num_classes: width of the logits.
        blocks: blocks in each stage. Stages after the first halve the image in their first block.
        filters: channels of each stage; the stem has those of the first.
    """

    def __init__(self, num_classes: int, *, blocks, filters=(64, 128, 256, 512)):
        super().__init__()
        if len(blocks) != len(filters):
            raise ValueError(f"blocks={blocks} and filters={filters} must have the same length")
        self.stem = ConvBatchNorm(filters[0], 3)
        previous = filters[0]
        for i, (count, width) in enumerate(zip(blocks, filters, strict=True), start=1):
            strides = 1 if i == 1 else 2
            changes = strides != 1 or width != previous
            first = BasicBlock(width, strides=strides, project=changes)
            rest = [BasicBlock(width) for _ in range(count - 1)]
            setattr(self, f"stage_{i}", Chain([first, *rest]))
            previous = width
        self.head = Head(num_classes)
        stages = tuple(f"stage_{i}" for i in range(1, len(blocks) + 1))
        self.stage_names = ("stem", *stages, "head")
