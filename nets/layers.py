"""Layers that the nets share: BatchNorm, conv-BatchNorm-ReLU, dropout, layers in a row and abreast.

    x = ConvBatchNorm(64, kernel_size=3)(images, training=training)

Every layer here takes `training` as a keyword without a default. Nobody can forget it, and a test
keeps literals out, so a BatchNorm that never trains cannot be written by accident.
"""

import contextlib
import contextvars

import tensorflow as tf


class Composite(tf.keras.layers.Layer):
    """A layer that is made of layers, which make their variables when they are first called.

    Keras would trace a layer without a `build` of its own once more before its first call, and so
    a deep net many times.
    """

    def build(self, input_shape):
        """Nothing is left to be made."""


class BatchNorm(tf.keras.layers.Layer):
    """Batch normalization over all axes but the last, in one fused kernel.

    Ioffe & Szegedy 2015, algorithms 1 and 2. Scale, offset and the moving statistics are float32
    whatever the precision of the net. While training, the batch's own statistics normalize, and the
    moving statistics follow them: `moving = momentum * moving + (1 - momentum) * batch`. The batch
    variance that enters the moving variance is the unbiased one, with n - 1 in the denominator.

    Each replica normalizes with the statistics of its own examples, unless `synchronized`: then
    with those of all replicas' examples, as one replica with the whole batch would. The moving
    statistics are variables that are assigned on each replica and read as the mean over the
    replicas.

    Args:
        momentum: share of the old moving statistics that is kept at each update, in [0, 1].
            None: the net's (see `nets.net.Net`), or 0.9 outside of a net.
        epsilon: added to the variance. None: the net's, or 1e-5 outside of a net.
        synchronized: whether replicas normalize together. None: as the net says, or False.
    """

    def __init__(
        self,
        momentum: float | None = None,
        epsilon: float | None = None,
        synchronized: bool | None = None,
    ):
        super().__init__()
        self.momentum = momentum
        self.epsilon = epsilon
        self.synchronized = synchronized

    def build(self, input_shape):
        self.momentum = 0.9 if self.momentum is None else self.momentum
        self.epsilon = 1e-5 if self.epsilon is None else self.epsilon

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
        replicas = tf.distribute.get_replica_context()
        if self.synchronized and replicas is not None and replicas.num_replicas_in_sync > 1:
            outputs, mean, variance = self._normalize_together(x, replicas)
        else:
            outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
                x, self.gamma.value, self.beta.value, epsilon=self.epsilon, is_training=True
            )
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving.value * self.momentum + batch * (1 - self.momentum))
        return outputs

    def _normalize_together(self, x, replicas):
        """As the fused kernel, over the examples of all replicas, which have as many each."""
        values = tf.cast(x, tf.float32)
        own = tf.stack(tf.nn.moments(values, axes=list(range(x.shape.rank - 1))))
        # Everybody's, by replica: each brings its own and zeros for the others.
        count = replicas.num_replicas_in_sync
        mine = tf.one_hot(replicas.replica_id_in_sync_group, count)[:, None, None]
        means, variances = tf.unstack(replicas.all_reduce("SUM", mine * own), axis=1)
        mean = tf.reduce_mean(means, axis=0)
        # A mean of squares less a squared mean would lose the digits of a variance that is small
        # beside the mean.
        between = tf.reduce_mean(tf.math.squared_difference(means, mean), axis=0)
        variance = tf.reduce_mean(variances, axis=0) + between
        outputs = tf.nn.batch_normalization(
            values, mean, variance, self.beta.value, self.gamma.value, self.epsilon
        )
        examples = tf.cast(count * tf.size(x) // tf.shape(x)[-1], tf.float32)
        unbiased = variance * examples / tf.maximum(examples - 1, 1)
        return tf.cast(outputs, x.dtype), mean, unbiased


class Convolution(Composite):
    """Convolution, with the same padding on both sides of the image at any stride.

    Keras' "same" pads a strided convolution more at the right and the bottom; the papers' code in
    Caffe and Torch pads (kernel size - 1) / 2 everywhere, as is done here.

    Args:
        filters: output channels.
        kernel_size: odd height and width of the kernel, or one number for both.
        strides: step of the kernel in both directions.
        padding: "same", or "valid" for none.
        use_bias: whether a bias is added.
        kernel_initializer: default He et al. 2015 ("Delving Deep into Rectifiers", equation 10),
            normal with variance 2 / fan-in.
        bias_initializer: default zeros.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        *,
        strides: int = 1,
        padding: str = "same",
        use_bias: bool = True,
        kernel_initializer=None,
        bias_initializer="zeros",
    ):
        super().__init__()
        height, width = (kernel_size,) * 2 if isinstance(kernel_size, int) else kernel_size
        pads = padding == "same" and strides > 1
        self.margins = ((height - 1) // 2, (width - 1) // 2) if pads else (0, 0)
        self.conv = tf.keras.layers.Conv2D(
            filters,
            (height, width),
            strides=strides,
            padding="valid" if pads else padding,
            use_bias=use_bias,
            # Made anew for each layer: Keras' initializers give equal numbers when used twice.
            kernel_initializer=kernel_initializer or tf.keras.initializers.HeNormal(),
            bias_initializer=bias_initializer,
        )

    def call(self, x, *, training):
        del training  # There is nothing here that training changes.
        vertical, horizontal = self.margins
        if vertical or horizontal:
            x = tf.pad(x, ((0, 0), (vertical, vertical), (horizontal, horizontal), (0, 0)))
        return self.conv(x)


class ConvBatchNorm(Composite):
    """Convolution without bias, BatchNorm and, unless told otherwise, ReLU.

    The bias is left out because BatchNorm's offset takes its place.

    Args:
        filters, kernel_size, strides, padding, kernel_initializer: see `Convolution`.
        relu: whether ReLU follows.
    """

    def __init__(self, filters: int, kernel_size, *, relu: bool = True, **kwargs):
        super().__init__()
        self.conv = Convolution(filters, kernel_size, use_bias=False, **kwargs)
        self.batch_norm = BatchNorm()
        self.relu = relu

    def call(self, x, *, training):
        x = self.batch_norm(self.conv(x, training=training), training=training)
        return tf.nn.relu(x) if self.relu else x


class MaxPool(tf.keras.layers.Layer):
    """Maximum over a window of `size` x `size` pixels.

    Args:
        size: height and width of the window.
        strides: its step.
        padding: "valid", or "same" for an output of the input's size divided by the strides,
            rounded up; pixels outside of the image are left out.
    """

    def __init__(self, size: int, *, strides: int = 1, padding: str = "same"):
        super().__init__()
        self.size, self.strides, self.padding = size, strides, padding.upper()

    def call(self, x, *, training):
        del training
        return tf.nn.max_pool2d(x, self.size, self.strides, self.padding)


class AvgPool(MaxPool):
    """As `MaxPool`, the mean."""

    def call(self, x, *, training):
        del training
        return tf.nn.avg_pool2d(x, self.size, self.strides, self.padding)


def pool_by_thirds(x: tf.Tensor) -> tf.Tensor:
    """5x5 average pooling with stride 3, as auxiliary heads begin; a smaller map's own pixels."""
    window = [min(5, size) for size in x.shape[1:3]]
    return tf.nn.avg_pool2d(x, window, strides=3, padding="VALID")


def pad_to(x: tf.Tensor, size: int) -> tf.Tensor:
    """Feature maps with zeros around them up to a height and width of at least `size`."""
    missing = [max(0, size - n) for n in x.shape[1:3]]
    (top, bottom), (left, right) = ((n // 2, n - n // 2) for n in missing)
    return tf.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))


class Chain(Composite):
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


class Branches(Composite):
    """Branches side by side on one input, their outputs concatenated by channel.

    Args:
        branches: for each branch, from `branch_0` on, a list of layers that run in a row; a list
            without layers hands the input through.
    """

    def __init__(self, branches):
        super().__init__()
        for i, layers in enumerate(branches):
            setattr(self, f"branch_{i}", Chain(layers))
        self.num_branches = len(branches)

    @property
    def branches(self):
        return tuple(getattr(self, f"branch_{i}") for i in range(self.num_branches))

    def call(self, x, *, training):
        return tf.concat([branch(x, training=training) for branch in self.branches], axis=-1)


class _Draws:
    """Where the dropout layers of one pass through a net get their random numbers."""

    def __init__(self, seed, rows: tuple):
        self._seed = seed
        self._rows = rows
        self._uses = 0

    def uniform(self, shape: tf.Tensor) -> tf.Tensor:
        """float32 in [0, 1), of a shape that begins with the examples; new ones at each use."""
        seed = tf.random.experimental.stateless_fold_in(self._seed, self._uses)
        self._uses += 1
        first, total = self._rows
        if total is None:
            return tf.random.stateless_uniform(shape, seed, alg="philox")
        # Drawn for the whole batch, so that an example's draw does not depend on who has it.
        whole = tf.concat(([total], shape[1:]), axis=0)
        numbers = tf.random.stateless_uniform(whole, seed, alg="philox")
        return numbers[first : first + shape[0]]


_draws = contextvars.ContextVar("draws", default=None)


@contextlib.contextmanager
def draws(seed, rows=(0, None)):
    """What dropout within it draws from.

    Args:
        seed: integers [2] that name the draws; None for no draws.
        rows: the number of the first example in the global batch, and the size of that batch or
            None if it is all there.
    """
    token = _draws.set(None if seed is None else _Draws(seed, rows))
    try:
        yield
    finally:
        _draws.reset(token)


class Dropout(tf.keras.layers.Layer):
    """Sets a share of the inputs to 0 in training, and divides the others by what remains.

    Srivastava et al. 2014, in the form that leaves evaluation alone. What is dropped is a function
    of the seed that the net was called with and of the example's place in the global batch, so that
    a resumed run, and one on another number of replicas, drop the same.

    Args:
        rate: share that is dropped, in [0, 1).
    """

    def __init__(self, rate: float):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"rate={rate} must be at least 0 and below 1")
        self.rate = rate

    def call(self, x, *, training):
        if not training or not self.rate:
            return x
        source = _draws.get()
        if source is None:
            raise ValueError(
                "dropout needs a seed to train: net(images, training=True, seed=(0, step))"
            )
        keep = source.uniform(tf.shape(x)) >= self.rate
        return tf.where(keep, x / (1 - self.rate), tf.zeros_like(x))


class Head(Composite):
    """Global average pooling, dropout if any, and one dense layer: feature maps to logits.

    Args:
        num_classes: width of the logits, which are float32 in every precision.
        dropout: share of the pooled features that is dropped in training.
        kernel_initializer: of the dense layer; default Glorot & Bengio 2010, uniform.
    """

    def __init__(
        self, num_classes: int, *, dropout: float = 0.0, kernel_initializer="glorot_uniform"
    ):
        super().__init__()
        self.dropout = Dropout(dropout)
        self.dense = tf.keras.layers.Dense(
            num_classes, kernel_initializer=kernel_initializer, dtype="float32"
        )

    def call(self, x, *, training):
        pooled = tf.reduce_mean(tf.cast(x, tf.float32), axis=(1, 2))
        return self.dense(self.dropout(pooled, training=training))


class SmallStem(ConvBatchNorm):
    """For images of about 32x32: one 3x3 convolution that keeps the size.

    He et al. 2015, section 4.2.

    Args:
        filters: output channels.
    """

    def __init__(self, filters: int):
        super().__init__(filters, 3)


class LargeStem(Chain):
    """For images of about 224x224: 7x7 convolution and 3x3 pooling, both with stride 2.

    He et al. 2015, table 1.

    Args:
        filters: output channels.
    """

    def __init__(self, filters: int):
        super().__init__([ConvBatchNorm(filters, 7, strides=2), CenteredMaxPool()])


class CenteredMaxPool(tf.keras.layers.Layer):
    """3x3 max pooling with stride 2 and a margin of zeros, as in He et al.'s nets.

    Where "same" would have windows begin at the first pixel, they are centred on it.
    """

    def call(self, x, *, training):
        del training
        x = tf.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return tf.nn.max_pool2d(x, 3, 2, "VALID")
