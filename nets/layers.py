"""Layers that the nets share: convolutions, pooling, sequences, branches, stems and the head.

    x = ConvBatchNorm(64, kernel_size=3)(images, training=training)

Every layer takes `training` as a keyword without a default, and a test rejects literals for it. A
BatchNorm that never trains cannot be written by accident.
"""

import contextlib
import contextvars
from collections.abc import Sequence

import tensorflow as tf

from nets.batch_norm import BatchNorm, normalize
from nets.dropout import Dropout
from nets.few_pixels import convolve_few_pixels, has_few_pixels


class Composite(tf.keras.layers.Layer):
    """A layer made of layers, which create their variables at their first call.

    Without a `build` method, Keras would trace each of these layers once more before its first
    call, and the inner layers of a deep net many times.
    """

    def build(self, input_shape):
        """Creates nothing."""


class Convolution(Composite):
    """2D convolution with symmetric padding at any stride.

    Keras' "same" pads a strided convolution more at the right and the bottom. The papers' code in
    Caffe and Torch pads (kernel size - 1) / 2 on every side, and so does this layer.

    Args:
        filters: output channels.
        kernel_size: height and width of the kernel, both odd, or one number for both.
        strides: stride in both directions.
        padding: "same" or "valid".
        use_bias: whether to add a bias.
        kernel_initializer: default: normal with variance 2 / fan-in (He et al. 2015, "Delving Deep
            into Rectifiers", equation 10).
        bias_initializer: default: zeros.
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
        self.strides = strides
        self.margins = ((height - 1) // 2, (width - 1) // 2) if pads else (0, 0)
        self.conv = tf.keras.layers.Conv2D(
            filters,
            (height, width),
            strides=strides,
            padding="valid" if pads else padding,
            data_format="channels_last",
            use_bias=use_bias,
            # One instance per layer: a Keras initializer returns the same values at every call.
            kernel_initializer=kernel_initializer or tf.keras.initializers.HeNormal(),
            bias_initializer=bias_initializer,
        )

    def call(self, x, *, training):
        del training
        conv = self.conv
        if type(conv) is tf.keras.layers.Conv2D and conv.built and not conv.use_bias:
            kernel = tf.cast(conv.kernel, x.dtype)
            if _joins.get() and has_few_pixels(x, kernel, self.strides):
                return self.convolve(x, kernel)
        return conv(self._pad(x))

    def convolve(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Convolves with another kernel of the same shape, without a bias."""
        if _joins.get() and has_few_pixels(x, kernel, self.strides):
            convolve = convolve_few_pixels
        else:
            convolve = tf.nn.conv2d
        return convolve(self._pad(x), kernel, self.strides, self.conv.padding.upper())

    def _pad(self, x):
        vertical, horizontal = self.margins
        if vertical or horizontal:
            x = tf.pad(x, ((0, 0), (vertical, vertical), (horizontal, horizontal), (0, 0)))
        return x


class ConvBatchNorm(Composite):
    """Convolution, BatchNorm and, by default, ReLU.

    The convolution has no bias, since BatchNorm has an offset. In evaluation, BatchNorm's
    multiplication is done to the kernel and its addition is a bias (see `nets.fold`), so that both
    are one operation with the ReLU.

    Args:
        filters, kernel_size, strides, padding, kernel_initializer: see `Convolution`.
        relu: whether to apply ReLU.

    Attributes:
        folded_kernel, folded_bias: arrays, float32; None unless `fold` has been called.
    """

    def __init__(self, filters: int, kernel_size, *, relu: bool = True, **kwargs):
        super().__init__()
        self.conv = Convolution(filters, kernel_size, use_bias=False, **kwargs)
        self.batch_norm = BatchNorm()
        self.relu = relu
        self.folded_kernel = self.folded_bias = None

    def fold(self) -> None:
        """Replaces BatchNorm by constants in evaluation: a scaled kernel and a bias.

        They are those of the present weights and moving statistics, computed in float64. The
        variables are kept as they are. The layer cannot train any more.
        """
        norm = self.batch_norm
        statistics = (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
        gamma, beta, mean, variance = (v.numpy().astype("float64") for v in statistics)
        scale = gamma / (variance + norm.epsilon) ** 0.5
        # Arrays, which a traced function holds as constants.
        self.folded_kernel = (self.conv.conv.kernel.numpy() * scale).astype("float32")
        self.folded_bias = (beta - mean * scale).astype("float32")

    def call(self, x, *, training):
        if training and self.folded_kernel is not None:
            raise ValueError("training=True: a net whose BatchNorm is folded cannot be trained")
        if training or not self.is_foldable:
            x = self.batch_norm(self.conv(x, training=training), training=training)
            return tf.nn.relu(x) if self.relu else x
        return _evaluate([self], x)

    @property
    def is_foldable(self) -> bool:
        """Whether evaluation may use `evaluation_weights`."""
        if self.folded_kernel is not None:
            return True
        plain = type(self.conv) is Convolution and type(self.batch_norm) is BatchNorm
        return plain and _joins.get() and self.batch_norm.built

    def evaluation_weights(self) -> tuple[tf.Tensor, tf.Tensor]:
        """The kernel and the bias that stand for both layers in evaluation, float32."""
        if self.folded_kernel is not None:
            return tf.constant(self.folded_kernel), tf.constant(self.folded_bias)
        norm = self.batch_norm
        scale = norm.gamma.value * tf.math.rsqrt(norm.moving_variance.value + norm.epsilon)
        kernel = tf.cast(self.conv.conv.kernel.value, tf.float32) * scale
        return kernel, norm.beta.value - norm.moving_mean.value * scale


class MaxPool(tf.keras.layers.Layer):
    """Max pooling over windows of `size` x `size` pixels.

    Args:
        size: height and width of the window.
        strides: stride in both directions.
        padding: "valid", or "same" for an output of ceil(input size / strides) pixels. Padding does
            not take part in the maximum.
    """

    def __init__(self, size: int, *, strides: int = 1, padding: str = "same"):
        super().__init__()
        self.size, self.strides, self.padding = size, strides, padding.upper()

    def call(self, x, *, training):
        del training
        return tf.nn.max_pool2d(x, self.size, self.strides, self.padding)


class AvgPool(MaxPool):
    """Average pooling, with the arguments of `MaxPool`. Padding does not take part in the mean."""

    def call(self, x, *, training):
        del training
        return tf.nn.avg_pool2d(x, self.size, self.strides, self.padding)


def pool_by_thirds(x: tf.Tensor) -> tf.Tensor:
    """5x5 average pooling with stride 3, the first layer of an auxiliary head.

    A feature map smaller than the window is averaged as a whole.
    """
    window = [min(5, size) for size in x.shape[1:3]]
    return tf.nn.avg_pool2d(x, window, strides=3, padding="VALID")


def pad_to(x: tf.Tensor, size: int) -> tf.Tensor:
    """Pads feature maps with zeros on all sides to a height and width of at least `size`."""
    missing = [max(0, size - n) for n in x.shape[1:3]]
    (top, bottom), (left, right) = ((n // 2, n - n // 2) for n in missing)
    return tf.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))


class Chain(Composite):
    """A sequence of layers: the attributes `block_0`, `block_1`, ..., also in checkpoints.

    Args:
        blocks: layers, called as `block(x, training=training)`.
    """

    def __init__(self, blocks):
        super().__init__()
        # Attributes, since tf.train.Checkpoint does not see layers in a Python list.
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
    """Parallel branches on one input, concatenated by channel: `branch_0`, `branch_1`, ...

    Args:
        branches: for each branch, the list of its layers; an empty list is the identity.
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
        started = self._start_siblings(x, training=training)
        outputs = []
        for branch in self.branches:
            if branch in started:
                output = started[branch]
                for block in branch.blocks[1:]:
                    output = block(output, training=training)
            else:
                output = branch(x, training=training)
            outputs.append(output)
        return concatenate(outputs)

    def _start_siblings(self, x, *, training) -> dict[Chain, tf.Tensor]:
        """The outputs of first layers that can be called jointly, by branch."""
        groups = {}
        for branch in self.branches if _joins.get() else ():
            kind = branch.blocks and joint_kind(branch.blocks[0])
            if kind:
                groups.setdefault(kind, []).append(branch)
        started = {}
        for branches in groups.values():
            if len(branches) > 1:
                outputs = call_jointly([b.blocks[0] for b in branches], x, training=training)
                started.update(zip(branches, outputs, strict=True))
        return started


_joins = contextvars.ContextVar("joins", default=True)


@contextlib.contextmanager
def layer_by_layer():
    """Inside, every layer is called by itself, with TensorFlow's own gradients."""
    token = _joins.set(False)
    try:
        yield
    finally:
        _joins.reset(token)


def joint_kind(layer) -> tuple | None:
    """What layers have in common that can be called jointly; None if that is not possible."""
    if type(layer) is not ConvBatchNorm or not layer.built:
        return None
    convolution, norm = layer.conv.conv, layer.batch_norm
    if type(layer.conv) is not Convolution or type(norm) is not BatchNorm:
        return None
    return (
        *(convolution.kernel_size, convolution.strides, convolution.padding, layer.relu),
        *(norm.momentum, norm.epsilon, norm.synchronized),
    )


def call_jointly(layers, x: tf.Tensor, *, training: bool) -> list[tf.Tensor]:
    """The outputs of layers of the same `joint_kind` on one input, from one convolution.

    It reads the input once, and the gradients of the input are not summed over the layers: on two
    CPU cores `inception10` trains 1.15 times as fast in bfloat16, and 1.05 times in float32.
    """
    if training:
        kernels = [tf.cast(layer.conv.conv.kernel, x.dtype) for layer in layers]
        outputs = layers[0].conv.convolve(x, tf.concat(kernels, axis=-1))
        outputs = normalize([layer.batch_norm for layer in layers], outputs)
        outputs = tf.nn.relu(outputs) if layers[0].relu else outputs
    else:
        outputs = _evaluate(layers, x)
    return tf.split(outputs, [layer.conv.conv.filters for layer in layers], axis=-1)


def _evaluate(layers: Sequence[ConvBatchNorm], x: tf.Tensor) -> tf.Tensor:
    """The outputs of layers of the same `joint_kind` in evaluation, by channel.

    TensorFlow makes one operation of the convolution, the bias and the ReLU. Without it, layers
    that are called jointly would be slower in evaluation than one by one: on two CPU cores
    `inception10` is evaluated 1.05 times as fast as with a BatchNorm for several layers.
    """
    kernels, biases = zip(*(layer.evaluation_weights() for layer in layers), strict=True)
    kernel = kernels[0] if len(layers) == 1 else tf.concat(kernels, axis=-1)
    bias = biases[0] if len(layers) == 1 else tf.concat(biases, axis=-1)
    outputs = layers[0].conv.convolve(x, tf.cast(kernel, x.dtype))
    outputs = tf.nn.bias_add(outputs, tf.cast(bias, x.dtype))
    return tf.nn.relu(outputs) if layers[0].relu else outputs


@tf.custom_gradient
def _concatenate(*parts):
    sizes = [part.shape[-1] for part in parts]
    return tf.concat(parts, axis=-1), lambda gradient: tf.split(gradient, sizes, axis=-1)


def concatenate(parts: list[tf.Tensor]) -> tf.Tensor:
    """Concatenates feature maps by channel.

    Its gradient is one operation. That of `tf.concat` is a slice for each part, with which
    `inception10` takes 1.03 times as long on two CPU cores.
    """
    return _concatenate(*parts) if _joins.get() else tf.concat(parts, axis=-1)


class Head(Composite):
    """Global average pooling, dropout and one dense layer: feature maps to logits.

    Args:
        num_classes: number of logits, which are float32 under every precision policy.
        dropout: dropout rate of the pooled features; 0 for none.
        kernel_initializer: of the dense layer; default: uniform, Glorot & Bengio 2010.
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
    """One 3x3 convolution with stride 1, for images of about 32x32.

    He et al. 2015, section 4.2.

    Args:
        filters: output channels.
    """

    def __init__(self, filters: int):
        super().__init__(filters, 3)


class LargeStem(Chain):
    """7x7 convolution and 3x3 max pooling, both with stride 2, for images of about 224x224.

    He et al. 2015, table 1.

    Args:
        filters: output channels.
    """

    def __init__(self, filters: int):
        super().__init__([ConvBatchNorm(filters, 7, strides=2), CenteredMaxPool()])


class CenteredMaxPool(tf.keras.layers.Layer):
    """3x3 max pooling with stride 2 after one row of zeros on every side, as in He et al. 2015.

    The first window is centered on the first pixel; with "same" padding it would start there.
    """

    def call(self, x, *, training):
        del training
        x = tf.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return tf.nn.max_pool2d(x, 3, 2, "VALID")
