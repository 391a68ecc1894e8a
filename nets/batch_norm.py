"""Batch normalization, per replica or synchronized, and its defaults inside a net."""

import contextlib
import contextvars
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import tensorflow as tf


class BatchNormDefaults(NamedTuple):
    """Settings of a BatchNorm whose constructor arguments are None."""

    momentum: float = 0.9
    epsilon: float = 1e-5
    synchronized: bool = False


_defaults = contextvars.ContextVar("batch_norm_defaults", default=None)


@contextlib.contextmanager
def batch_norm_defaults(defaults: BatchNormDefaults):
    """Sets the defaults of BatchNorms that are built inside; the outermost call has priority."""
    token = _defaults.set(_defaults.get() or defaults)
    try:
        yield
    finally:
        _defaults.reset(token)


def values_per_channel(shape: tf.Tensor, replicas: int) -> tf.Tensor:
    """How many values of a channel all replicas have together, a float32 scalar.

    Args:
        shape: of the inputs of one replica, int64. 11 replicas with 256 images of 112x112 and 64
            channels have more values than int32 can count.
        replicas: number of replicas.
    """
    return tf.cast(replicas * tf.reduce_prod(shape[:-1]), tf.float32)


class BatchNorm(tf.keras.layers.Layer):
    """Batch normalization over all axes but the last, in one fused kernel.

    Ioffe & Szegedy 2015, algorithms 1 and 2. Scale, offset and moving statistics are float32 under
    every precision policy. In training, the statistics of the batch normalize, and the moving
    statistics are updated: `moving = momentum * moving + (1 - momentum) * batch`. The batch
    variance that enters the moving variance is unbiased, with n - 1 in the denominator.

    Each replica normalizes with the statistics of its own examples. If `synchronized`, all replicas
    normalize with the statistics of the whole batch. The moving statistics are assigned on each
    replica and read as the mean over replicas.

    Args:
        momentum: BatchNorm momentum, in [0, 1]. None: that of the net (see `nets.net.Net`), or 0.9
            outside a net.
        epsilon: added to the variance. None: that of the net, or 1e-5 outside a net.
        synchronized: whether replicas share their batch statistics. None: as set on the net, or
            False outside a net.
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
        defaults = _defaults.get() or BatchNormDefaults()
        for name, value in defaults._asdict().items():
            if getattr(self, name) is None:
                setattr(self, name, value)

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
        if training:
            return normalize([self], x)
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


def normalize(layers: Sequence[BatchNorm], x: tf.Tensor) -> tf.Tensor:
    """Normalizes groups of channels in training, each as its own layer would, in one kernel.

    Args:
        layers: with the same settings, for the channels of x in order.
        x: [..., channels].
    """
    settings = layers[0]
    gamma, beta = _joined(layer.gamma for layer in layers), _joined(layer.beta for layer in layers)
    context = tf.distribute.get_replica_context()
    if settings.synchronized and context is not None and context.num_replicas_in_sync > 1:
        outputs, mean, variance = _normalize_synchronized(x, gamma, beta, settings.epsilon, context)
    else:
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            x, gamma, beta, epsilon=settings.epsilon, is_training=True
        )
    means, variances = _divided(mean, layers), _divided(variance, layers)
    for layer, *statistics in zip(layers, means, variances, strict=True):
        moving_statistics = (layer.moving_mean, layer.moving_variance)
        for moving, batch in zip(moving_statistics, statistics, strict=True):
            moving.assign(moving.value * layer.momentum + batch * (1 - layer.momentum))
    return outputs


def _joined(variables: Iterable) -> tf.Tensor:
    """The values of vectors behind each other."""
    values = [variable.value for variable in variables]
    return tf.concat(values, axis=0) if len(values) > 1 else values[0]


def _divided(vector: tf.Tensor, layers: Sequence[BatchNorm]) -> list[tf.Tensor]:
    """The part of each layer's channels."""
    if len(layers) == 1:
        return [vector]
    return tf.split(vector, [layer.gamma.shape[0] for layer in layers])


def _normalize_synchronized(x, gamma, beta, epsilon, context):
    """Normalizes over all replicas, which must have equally many examples.

    Returns what the fused kernel returns: outputs, mean and unbiased variance.
    """
    values = tf.cast(x, tf.float32)
    own = tf.stack(tf.nn.moments(values, axes=list(range(x.shape.rank - 1))))
    # Gathers [replica, 2, channels]: each replica adds its moments to zeros for the others.
    count = context.num_replicas_in_sync
    mine = tf.one_hot(context.replica_id_in_sync_group, count)[:, None, None]
    means, variances = tf.unstack(context.all_reduce("SUM", mine * own), axis=1)
    mean = tf.reduce_mean(means, axis=0)
    # E[x^2] - E[x]^2 would cancel where the variance is small relative to the mean.
    between = tf.reduce_mean(tf.math.squared_difference(means, mean), axis=0)
    variance = tf.reduce_mean(variances, axis=0) + between
    outputs = tf.nn.batch_normalization(values, mean, variance, beta, gamma, epsilon)
    examples = values_per_channel(tf.shape(x, tf.int64), count)
    unbiased = variance * examples / tf.maximum(examples - 1, 1)
    return tf.cast(outputs, x.dtype), mean, unbiased
