"""Pre-activation ResNets.

He et al. 2016, "Identity Mappings in Deep Residual Networks", figure 4 (e): BatchNorm and ReLU
precede each convolution, so that the path from one sum to the next is the identity. The first
activation precedes the split into shortcut and residual of the first block, and one more follows
the last sum (appendix).

The paper does not say where the strides are and which convolutions have a bias. Both follow slim's
resnet_v2 and tf.keras.applications, so that their weights fit: the stride of a stage is in its last
block, and a convolution has a bias unless BatchNorm directly follows it.
"""

import tensorflow as tf

from nets.layers import (
    BatchNorm,
    CenteredMaxPool,
    Chain,
    Composite,
    ConvBatchNorm,
    Convolution,
    Head,
)
from nets.net import Net, Sizes


class PreActivation(Composite):
    """BatchNorm, then ReLU."""

    def __init__(self):
        super().__init__()
        self.batch_norm = BatchNorm()

    def call(self, x, *, training):
        return tf.nn.relu(self.batch_norm(x, training=training))


class PreActivationBlock(Composite):
    """Activation, then 1x1, 3x3 and 1x1 convolutions, added to the input.

    Args:
        filters: channels of the first two convolutions; the output has four times as many.
        strides: stride of the 3x3 convolution; the shortcut is subsampled accordingly.
        project: whether the shortcut is a 1x1 convolution of the activated input.

    Raises:
        ValueError: a projection with a stride.
    """

    expansion = 4

    def __init__(self, filters: int, *, strides: int = 1, project: bool = False):
        super().__init__()
        if project and strides != 1:
            raise ValueError(f"strides={strides} must be 1 in a block with a projection")
        self.activation = PreActivation()
        self.residual = Chain(
            [
                ConvBatchNorm(filters, 1),
                ConvBatchNorm(filters, 3, strides=strides),
                Convolution(self.expansion * filters, 1),
            ]
        )
        self.projection = Convolution(self.expansion * filters, 1) if project else None
        self.strides = strides

    def call(self, x, *, training):
        activated = self.activation(x, training=training)
        if self.projection is not None:
            shortcut = self.projection(activated, training=training)
        else:
            shortcut = x[:, :: self.strides, :: self.strides]
        return self.residual(activated, training=training) + shortcut


class ResNetV2(Net):
    """Stem, four stages of pre-activation blocks, activation, global average pooling, dense layer.

    The large stem, for images of 224x224, is a 7x7 convolution and a 3x3 pooling, both with stride
    2. The small one, for 32x32, is a 3x3 convolution with stride 1. Both are linear, as the first
    block starts with an activation.

    Args:
        num_classes: number of logits.
        stem: "small" or "large".
        blocks: number of blocks in each stage. The last block of each stage but the last has
            stride 2.
        filters: channels of each stage, before the expansion. The stem has the channels of the
            first stage.

    Raises:
        ValueError: `blocks` and `filters` differ in length.
    """

    smallest_size = Sizes(small=8, large=32)

    def __init__(
        self, num_classes: int, *, stem: str = "small", blocks, filters=(64, 128, 256, 512)
    ):
        super().__init__()
        if len(blocks) != len(filters):
            raise ValueError(f"blocks={blocks} and filters={filters} must have the same length")
        if stem == "small":
            self.stem = Convolution(filters[0], 3)
        else:
            self.stem = Chain([Convolution(filters[0], 7, strides=2), CenteredMaxPool()])
        for i, (count, width) in enumerate(zip(blocks, filters, strict=True), start=1):
            last = PreActivationBlock(width, strides=2 if i < len(blocks) else 1)
            middle = (PreActivationBlock(width) for _ in range(count - 2))
            stage = Chain([PreActivationBlock(width, project=True), *middle, last])
            setattr(self, f"stage_{i}", stage)
        self.activation = PreActivation()
        self.head = Head(num_classes)
        stages = tuple(f"stage_{i}" for i in range(1, len(blocks) + 1))
        self.stage_names = ("stem", *stages, "activation", "head")
