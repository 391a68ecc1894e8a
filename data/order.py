"""Which examples are in a batch: a function of the seed and the number of the step.

Nothing is shuffled in memory: a permutation is computed place by place, by a cipher.
"""

import numpy as np
import tensorflow as tf

_SHUFFLE_KEY = 1729  # Any number but 0, which makes a weak key.
_SHUFFLE_ROUNDS = 24


def example_numbers(
    step: tf.Tensor, rows: tf.Tensor, *, size: int, global_batch_size: int, seed: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Numbers of the examples in some rows of a batch, and which occurrence of each it is.

    Epochs follow each other without a gap: place `p = step * global_batch_size + row` is in epoch
    `p // size`, and every epoch is a permutation of its own.

    Args:
        step: int64 scalar, from 0.
        rows: int64 [n], rows of the global batch.
        size: examples in the source.
        global_batch_size: rows in a whole batch.
        seed: of the run.

    Returns:
        Numbers, int64 [n], each in [0, size); and occurrences, int64 [n], from 0: the epochs.
    """
    places = step * global_batch_size + rows
    epochs = places // size
    sizes = places * 0 + size
    return _shuffled(places % size, sizes, key=_SHUFFLE_KEY, seed=seed, n=epochs), epochs


def balanced_numbers(
    step: tf.Tensor, rows: tf.Tensor, *, labels: np.ndarray, global_batch_size: int, seed: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """As `example_numbers`, with equally many examples of every class in each epoch.

    An epoch has as many places as there are examples, divided among the classes as evenly as
    possible, in random order. Each class goes through permutations of its examples, one after the
    other, from epoch to epoch: at the end of an epoch, all examples of a class have been taken
    equally often, or some of them once more.

    Args:
        step: int64 scalar, from 0.
        rows: int64 [n], rows of the global batch.
        labels: int32 [size], the class of each example. Classes without examples are left out.
        global_batch_size: rows in a whole batch.
        seed: of the run.

    Returns:
        Numbers, int64 [n], each in [0, size); and occurrences, int64 [n], from 0. Those of an
        example within an epoch are in random order.
    """
    size = len(labels)
    by_class = tf.constant(np.argsort(labels, kind="stable"), tf.int64)
    _, starts, counts = (
        tf.constant(x, tf.int64)
        for x in np.unique(np.sort(labels), return_index=True, return_counts=True)
    )
    classes = counts.shape[0]
    place, epochs = example_numbers(
        step, rows, size=size, global_batch_size=global_batch_size, seed=seed
    )
    chosen, count = place % classes, tf.gather(counts, place % classes)
    # How many places the class has in an epoch, and so which of all its places this is.
    share = size // classes + tf.cast(chosen < size % classes, tf.int64)
    turn = epochs * share + place // classes
    nth = turn // count
    # A key of its own for each class.
    within = _shuffled(turn % count, count, key=_SHUFFLE_KEY + 1 + chosen, seed=seed, n=nth)
    return tf.gather(by_class, tf.gather(starts, chosen) + within), nth


def _shuffled(index, size, *, key, seed, n) -> tf.Tensor:
    """The places of the indices, int64 [m], in the `n`-th permutation of `size` elements."""
    zeros = index * 0
    # The raw operation, since tf.random.experimental.index_shuffle takes no matrix of seeds and
    # fixes the rounds of its cipher at 4. At 4, the orders of two epochs of 45,000 examples
    # correlate with 0.67; from 8 on they do not.
    return tf.raw_ops.RandomIndexShuffle(
        index=index,
        seed=tf.stack([zeros + key, zeros + seed, n], axis=1),
        max_index=size - 1,
        rounds=_SHUFFLE_ROUNDS,
    )
