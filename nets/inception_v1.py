"""Inception V1 (GoogLeNet).

Szegedy et al. 2014, "Going Deeper with Convolutions", table 1 and figure 3. The widths are those of
table 1. Its first row counts 2.7K parameters and 34M operations, which would be a separable
convolution; figure 3 and section 5 have the full 7x7 convolution that is used here.

The paper uses local response normalization (LRN) and no BatchNorm. `batch_norm=True` is the variant
that is common today, with BatchNorm after every convolution and no LRN. Details that the paper does
not give follow the BVLC Caffe model (models/bvlc_googlenet/train_val.prototxt): the constants of
LRN, initial biases of 0.2, and the weight initialization of Glorot & Bengio 2010, here with the
mean of fan-in and fan-out.
"""

import functools

import tensorflow as tf

from nets.layers import (
    Branches,
    Chain,
    Composite,
    ConvBatchNorm,
    Convolution,
    Dropout,
    Head,
    MaxPool,
    pad_to,
    pool_by_thirds,
)
from nets.net import Net, Sizes


class ConvRelu(Composite):
    """Convolution with bias, then ReLU.

    Args:
        filters, kernel_size, strides: see `nets.layers.Convolution`.
    """

    def __init__(self, filters: int, kernel_size: int, *, strides: int = 1):
        super().__init__()
        self.conv = Convolution(
            filters,
            kernel_size,
            strides=strides,
            kernel_initializer=tf.keras.initializers.GlorotUniform(),
            bias_initializer=tf.keras.initializers.Constant(0.2),
        )

    def call(self, x, *, training):
        return tf.nn.relu(self.conv(x, training=training))


class LocalResponseNorm(tf.keras.layers.Layer):
    """Local response normalization over 5 channels, with alpha 1e-4 / 5 and beta 0.75.

    Krizhevsky et al. 2012, section 3.3.
    """

    def call(self, x, *, training):
        del training
        y = tf.nn.local_response_normalization(
            tf.cast(x, tf.float32), depth_radius=2, bias=1.0, alpha=1e-4 / 5, beta=0.75
        )
        return tf.cast(y, x.dtype)


class InceptionModule(Branches):
    """Four parallel branches, concatenated (figure 2 (b)). The arguments are columns of table 1.

    Args:
        conv: class of the convolutions, called as `conv(filters, kernel_size)`.
        n1x1: channels of the 1x1 branch.
        n3x3_reduce, n3x3: channels before and after the 3x3 convolution.
        n5x5_reduce, n5x5: channels before and after the 5x5 convolution.
        pool_proj: channels of the 1x1 convolution after the pooling.
    """

    def __init__(self, conv, n1x1, n3x3_reduce, n3x3, n5x5_reduce, n5x5, pool_proj):
        super().__init__(
            [
                [conv(n1x1, 1)],
                [conv(n3x3_reduce, 1), conv(n3x3, 3)],
                [conv(n5x5_reduce, 1), conv(n5x5, 5)],
                [MaxPool(3), conv(pool_proj, 1)],
            ]
        )


class AuxiliaryHead(Composite):
    """An auxiliary classifier on an intermediate stage (section 5).

    5x5 average pooling with stride 3, a 1x1 convolution with 128 channels, a dense layer with 1,024
    units and ReLU, 70% dropout and a dense layer. On 224x224 images the pooling returns 4x4 pixels;
    a smaller output is padded with zeros to 4x4.

    Args:
        num_classes: number of logits.
        conv: class of the convolution.
    """

    def __init__(self, num_classes: int, conv):
        super().__init__()
        self.conv = conv(128, 1)
        self.hidden = tf.keras.layers.Dense(
            1024, activation="relu", bias_initializer=tf.keras.initializers.Constant(0.2)
        )
        self.dropout = Dropout(0.7)
        self.dense = tf.keras.layers.Dense(num_classes, dtype="float32")

    def call(self, x, *, training):
        x = pad_to(self.conv(pool_by_thirds(x), training=training), 4)
        x = self.hidden(tf.reshape(x, (tf.shape(x)[0], x.shape[1] * x.shape[2] * x.shape[3])))
        return self.dense(self.dropout(x, training=training))


def _stem(conv, stem: str, norm) -> Chain:
    """Returns the rows of table 1 before the first Inception module."""
    if stem == "small":
        return Chain([conv(64, 3), *norm(), conv(64, 1), conv(192, 3), *norm()])
    return Chain(
        [
            conv(64, 7, strides=2),
            MaxPool(3, strides=2),
            *norm(),
            conv(64, 1),
            conv(192, 3),
            *norm(),
            MaxPool(3, strides=2),
        ]
    )


class InceptionV1(Net):
    """Stem, nine Inception modules with pooling in between, 40% dropout, one dense layer.

    The large stem, for 224x224 images, downsamples by 8. The small one, for about 32x32, keeps the
    size: its first convolution is 3x3 with stride 1, and it has no pooling.

    Args:
        num_classes: number of logits.
        stem: "small" or "large".
        batch_norm: whether to use BatchNorm instead of biases and LRN.
        auxiliary: whether to add auxiliary heads after modules 4a and 4d.
    """

    smallest_size = Sizes(small=4, large=32)
    auxiliary_weight = 0.3  # Section 5.
    # With batch_norm=True: tensorflow/models, research/slim/nets/inception_utils.py.
    batch_norm_momentum = 0.9997
    batch_norm_epsilon = 1e-3

    def __init__(
        self,
        num_classes: int,
        *,
        stem: str = "large",
        batch_norm: bool = False,
        auxiliary: bool = True,
    ):
        super().__init__()
        conv = ConvBatchNorm if batch_norm else ConvRelu
        module = functools.partial(InceptionModule, conv)
        self.stem = _stem(conv, stem, lambda: [] if batch_norm else [LocalResponseNorm()])
        self.inception_3a = module(64, 96, 128, 16, 32, 32)
        self.inception_3b = module(128, 128, 192, 32, 96, 64)
        self.pool_3 = MaxPool(3, strides=2)
        self.inception_4a = module(192, 96, 208, 16, 48, 64)
        self.inception_4b = module(160, 112, 224, 24, 64, 64)
        self.inception_4c = module(128, 128, 256, 24, 64, 64)
        self.inception_4d = module(112, 144, 288, 32, 64, 64)
        self.inception_4e = module(256, 160, 320, 32, 128, 128)
        self.pool_4 = MaxPool(3, strides=2)
        self.inception_5a = module(256, 160, 320, 32, 128, 128)
        self.inception_5b = module(384, 192, 384, 48, 128, 128)
        self.head = Head(num_classes, dropout=0.4)
        self.stage_names = (
            "stem",
            *("inception_3a", "inception_3b", "pool_3"),
            *("inception_4a", "inception_4b", "inception_4c", "inception_4d", "inception_4e"),
            *("pool_4", "inception_5a", "inception_5b", "head"),
        )
        if auxiliary:
            self.auxiliary_4a = AuxiliaryHead(num_classes, conv)
            self.auxiliary_4d = AuxiliaryHead(num_classes, conv)
            self.auxiliary = (("inception_4a", "auxiliary_4a"), ("inception_4d", "auxiliary_4d"))
