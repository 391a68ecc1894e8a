"""Inception10, a small InceptionNet for small images.

Ten layers deep, counting the stem, four Inception layers of two convolutions each, and the dense
layer. The block is that of Szegedy et al. 2014, "Going Deeper with Convolutions", figure 2 (b),
with BatchNorm after every convolution (Ioffe & Szegedy 2015).
"""

import tensorflow as tf

from nets.layers import Chain, ConvBatchNorm, Head
from nets.net import Net


class InceptionBlock(tf.keras.layers.Layer):
    """Four branches side by side, concatenated to 4 * `filters` channels.

    Args:
        filters: output channels of each branch, and of the 1x1 reductions.
        strides: of the whole block; each branch takes it in its 1x1 convolution.
    """

    def __init__(self, filters: int, *, strides: int = 1):
        super().__init__()
        self.branch_0 = ConvBatchNorm(filters, 1, strides=strides)
        self.branch_1 = Chain(
            [ConvBatchNorm(filters, 1, strides=strides), ConvBatchNorm(filters, 3)]
        )
        self.branch_2 = Chain(
            [ConvBatchNorm(filters, 1, strides=strides), ConvBatchNorm(filters, 5)]
        )
        self.branch_3 = ConvBatchNorm(filters, 1, strides=strides)

    def call(self, x, *, training):
        pooled = tf.nn.max_pool2d(x, ksize=3, strides=1, padding="SAME")
        branches = (
            self.branch_0(x, training=training),
            self.branch_1(x, training=training),
            self.branch_2(x, training=training),
            self.branch_3(pooled, training=training),
        )
        return tf.concat(branches, axis=-1)


class Inception10(Net):
    """3x3 stem, two stages of two Inception blocks, global average pooling, one dense layer.

    On 32x32 images the stages give 32x32x16, 16x16x64, 8x8x128 and `num_classes` logits.

    Args:
        num_classes: width of the logits.
        filters: channels of each branch, a number per stage. The first block of a stage halves
            the image.
        stem_filters: channels of the stem.
    """

    def __init__(self, num_classes: int, *, filters=(16, 32), stem_filters: int = 16):
        super().__init__()
        self.stem = ConvBatchNorm(stem_filters, 3)
        for i, width in enumerate(filters, start=1):
            stage = Chain([InceptionBlock(width, strides=2), InceptionBlock(width)])
            setattr(self, f"stage_{i}", stage)
        self.head = Head(num_classes)
        stages = tuple(f"stage_{i}" for i in range(1, len(filters) + 1))
        self.stage_names = ("stem", *stages, "head")
