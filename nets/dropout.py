"""Random numbers for layers, and dropout.

They are a function of the seed that a net was called with and of each example's place in the global
batch, so that a resumed run, or one on another number of replicas, draws the same.
"""

import contextlib
import contextvars

import tensorflow as tf


class _Stream:
    """The random numbers of the layers in one pass through a net."""

    def __init__(self, seed, rows: tuple):
        self._seed = seed
        self._rows = rows
        self._uses = 0

    def uniform(self, shape: tf.Tensor) -> tf.Tensor:
        """Returns float32 in [0, 1), different at each use.

        Args:
            shape: int32; its first axis is the examples.
        """
        seed = tf.random.experimental.stateless_fold_in(self._seed, self._uses)
        self._uses += 1
        first, total = self._rows
        if total is None:
            return tf.random.stateless_uniform(shape, seed, alg="philox")
        # Drawn for the global batch, so that a mask does not depend on which replica has the row.
        whole = tf.concat(([total], shape[1:]), axis=0)
        numbers = tf.random.stateless_uniform(whole, seed, alg="philox")
        return numbers[first : first + shape[0]]


_stream = contextvars.ContextVar("dropout_stream", default=None)


@contextlib.contextmanager
def dropout_seed(seed, rows=(0, None)):
    """Seeds dropout, and whatever else calls `uniform` inside.

    Args:
        seed: integers [2], without which they cannot train. None keeps that of an outer call.
        rows: index of the first example in the global batch, and the size of that batch, or None if
            the batch is the global batch.
    """
    token = _stream.set(_stream.get() if seed is None else _Stream(seed, rows))
    try:
        yield
    finally:
        _stream.reset(token)


def uniform(shape: tf.Tensor) -> tf.Tensor:
    """Returns random float32 in [0, 1), different at each use in a pass through a net.

    Args:
        shape: int32 [rank]; its first axis is the examples, `tf.shape(x)[0]` of them.

    Raises:
        ValueError: the net was called without a seed.
    """
    stream = _stream.get()
    if stream is None:
        raise ValueError("random numbers need a seed: net(images, training=True, seed=(0, step))")
    return stream.uniform(tf.convert_to_tensor(shape))


class Dropout(tf.keras.layers.Layer):
    """Sets a random fraction of the inputs to 0 in training, and divides the others by 1 - rate.

    Srivastava et al. 2014, in the inverted form, which leaves evaluation unchanged.

    Args:
        rate: fraction that is dropped, in [0, 1).

    Raises:
        ValueError: `rate` is out of range, or training has no seed.
    """

    def __init__(self, rate: float):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"rate={rate} must be at least 0 and below 1")
        self.rate = rate

    def call(self, x, *, training):
        if not training or not self.rate:
            return x
        keep = uniform(tf.shape(x)) >= self.rate
        return tf.where(keep, x / (1 - self.rate), tf.zeros_like(x))
