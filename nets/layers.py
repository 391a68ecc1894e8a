"""Layers that the nets share: BatchNorm, conv-BatchNorm-ReLU, and layers in a row.

    x = ConvBatchNorm(64, kernel_size=3)(images, training=training)

Every layer here takes `training` as a keyword without a default. Nobody can forget it, and a test
keeps literals out, so a BatchNorm that never trains cannot be written by accident.
"""

import tensorflow as tf


class BatchNorm(tf.keras.layers.Layer):
    """Batch normalization over all axes but the last, in one fused kernel.

    Ioffe & Szegedy 2015, algorithms 1 and 2. Scale, offset and the moving statistics are float32
    whatever the precision of the net. While training, the batch's own statistics normalize, and the
    moving statistics follow them: `moving = momentum * moving + (1 - momentum) * batch`. The batch
    variance that enters the moving variance is the unbiased one, with n - 1 in the denominator.

    Each replica normalizes with the statistics of its own examples. The moving statistics are
    variables that are assigned on each replica and read as the mean over the replicas.

    Args:
        momentum: share of the old moving statistics that is kept at each update, in [0, 1].
        epsilon: added to the variance; 1e-5 is the value in He et al.'s released code.
    """

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5):
        super().__init__()
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, input_shape):
        def variable(name, initializer, **kwargs):
            shape = (input_shape[-1],)
            return tf.keras.Variable(
                initializer, shape=shape, dtype="float32", autocast=False, name=name, **kwargs
            )

        on_replicas = {"trainable": False, "aggregation": "mean", "synchronization": "on_read"}
        self.gamma = variable("gamma", "ones")
        self.beta = variable("beta", "zeros")
        self.moving_mean = variable("moving_mean", "zeros", **on_replicas)
        self.moving_variance = variable("moving_variance", "ones", **on_replicas)

    def call(self, x, *, training):
        if not training:
            outputs, _, _ = tf.compat.v1.nn.fused_batch_norm(
                x,
                self.gamma.value,
                self.beta.value,
                mean=self.moving_mean.value,
                variance=self.moving_variance.value,
                epsilon=self.epsilon,
                is_training=False,
            )
            return outputs
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            x, self.gamma.value, self.beta.value, epsilon=self.epsilon, is_training=True
        )
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving.value * self.momentum + batch * (1 - self.momentum))
        return outputs


class ConvBatchNorm(tf.keras.layers.Layer):
    """Convolution without bias, BatchNorm and, unless told otherwise, ReLU.

    The bias is left out because BatchNorm's offset takes its place. Kernels start from He et al.
    2015 ("Delving Deep into Rectifiers"), normal with variance 2 / fan-in.

    Args:
        filters: output channels.
        kernel_size: height and width of the kernel.
        strides: step of the kernel in both directions. Padding is "same".
        relu: whether ReLU follows.
    """

    def __init__(self, filters: int, kernel_size: int, *, strides: int = 1, relu: bool = True):
        super().__init__()
        self.conv = tf.keras.layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            padding="same",
            use_bias=False,
            kernel_initializer=tf.keras.initializers.HeNormal(),
        )
        self.batch_norm = BatchNorm()
        self.relu = relu

    def call(self, x, *, training):
        x = self.batch_norm(self.conv(x), training=training)
        return tf.nn.relu(x) if self.relu else x


class Chain(tf.keras.layers.Layer):
    """Blocks one after another, held as `block_0`, `block_1`, ..., their names in a checkpoint.

    Args:
        blocks: layers called as `block(x, training=training)`.
    """

    def __init__(self, blocks):
        super().__init__()
        # Named attributes and a tuple, since a checkpoint does not see layers in a Python list.
        for i, block in enumerate(blocks):
            setattr(self, f"block_{i}", block)
        self.num_blocks = len(blocks)

    @property
    def blocks(self):
        return tuple(getattr(self, f"block_{i}") for i in range(self.num_blocks))

    def call(self, x, *, training):
        for block in self.blocks:
            x = block(x, training=training)
        return x


class Head(tf.keras.layers.Layer):
    """Global average pooling and one dense layer: [batch, height, width, channels] to logits.

    Args:
        num_classes: width of the logits, which are float32 in every precision.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.dense = tf.keras.layers.Dense(num_classes, dtype="float32")

    def call(self, x, *, training):
        del training  # There is nothing here that training changes.
        return self.dense(tf.reduce_mean(tf.cast(x, tf.float32), axis=(1, 2)))
