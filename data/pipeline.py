"""From a source to batches, as `tf.data`: `batch = f(seed, step)`.

    batches = train_batches(source, global_batch_size=128, seed=0, start_step=1200, ...)

Which examples a batch has, and what is drawn for them, is computed from the seed and the number of
the step. Nothing is shuffled in a buffer and no iterator is saved: to resume at step 1,200 is to
start counting there.
"""

import dataclasses
import math
import re
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from data import augment
from data.augment import Augmentation
from data.source import DataError, Source

# What a draw is for. Each has its own stream, so that turning one augmentation on leaves the
# draws of the others, and the order of the examples, as they were.
_STREAMS = {"crop": 0, "flip": 1, "cutout": 2, "mixup": 3, "cutmix": 4, "cutmix_box": 5, "coin": 6}
_SHUFFLE_KEY = 1729  # Any number but 0, which makes a weak key.
_SHUFFLE_ROUNDS = 24


def example_numbers(
    step: tf.Tensor, rows: tf.Tensor, *, size: int, global_batch_size: int, seed: int
) -> tf.Tensor:
    """Numbers of the examples in some rows of a batch.

    Epochs follow each other without a gap: place `p = step * global_batch_size + row` is in epoch
    `p // size`, and every epoch is a permutation of its own.

    Args:
        step: int64 scalar, from 0.
        rows: int64 [n], rows of the global batch.
        size: examples in the source.
        global_batch_size: rows in a whole batch.
        seed: of the run.

    Returns:
        int64 [n], each in [0, size).
    """
    places = step * global_batch_size + rows
    seeds = tf.stack(
        [places * 0 + _SHUFFLE_KEY, places * 0 + seed, places // size],
        axis=1,
    )
    # The raw operation, since tf.random.experimental.index_shuffle takes no matrix of seeds and
    # fixes the rounds of its cipher at 4. At 4, the orders of two epochs of 45,000 examples
    # correlate with 0.67; from 8 on they do not.
    return tf.raw_ops.RandomIndexShuffle(
        index=places % size, seed=seeds, max_index=places * 0 + (size - 1), rounds=_SHUFFLE_ROUNDS
    )


class _Draws:
    """Random numbers for the rows of one batch, a stream for each use."""

    def __init__(self, seed: int, step: tf.Tensor, rows: tf.Tensor, global_batch_size: int):
        self._step_seed = tf.random.experimental.stateless_fold_in(
            tf.constant([seed, 0], tf.int64), step
        )
        self._rows = rows
        self._global_batch_size = global_batch_size

    def _seed(self, use: str) -> tf.Tensor:
        return tf.random.experimental.stateless_fold_in(self._step_seed, _STREAMS[use])

    def uniform(self, use: str, numbers: int | None = None) -> tf.Tensor:
        """float32 in [0, 1): [rows], or with `numbers` [rows, numbers]."""
        # Drawn for the whole batch, so that a row's draw does not depend on who has the row.
        shape = (self._global_batch_size, *([] if numbers is None else [numbers]))
        return tf.gather(tf.random.stateless_uniform(shape, self._seed(use)), self._rows)

    def beta(self, use: str, alpha: float) -> tf.Tensor:
        """float32 [rows] from the Beta(alpha, alpha) distribution."""
        shape = (self._global_batch_size, 2)
        # Two Gammas make a Beta. In float64, since in float32 small alphas can give 0 / 0.
        gammas = tf.random.stateless_gamma(
            shape, self._seed(use), alpha=tf.constant(alpha, tf.float64), dtype=tf.float64
        )
        shares = gammas[:, 0] / tf.reduce_sum(gammas, axis=1)
        return tf.gather(tf.cast(shares, tf.float32), self._rows)


def _fetcher(source: Source):
    """A function from numbers, int64 [n], to images, uint8, and labels, int32 [n]."""
    labels = tf.constant(source.labels)

    def fetch(numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images = tf.numpy_function(source.fetch, [numbers], tf.uint8, stateful=False)
        images = tf.ensure_shape(images, (numbers.shape[0], *source.image_shape))
        return images, tf.gather(labels, numbers)

    return fetch


def _normalize(images: tf.Tensor, mean: Iterable[float], std: Iterable[float]) -> tf.Tensor:
    """uint8 images as float32 with about zero mean and unit deviation per channel."""
    scale = [1 / (255 * s) for s in std]
    offset = [-m / s for m, s in zip(mean, std, strict=True)]
    return tf.cast(images, tf.float32) * scale + offset


def _augment(images, labels, draws: _Draws, settings: Augmentation, normalize, num_classes: int):
    """A fetched batch as the net sees it; soft labels where examples are mixed."""
    if settings.crop_padding:
        images = augment.crop(images, draws.uniform("crop", 2), settings.crop_padding)
    if settings.flip:
        images = augment.flip(images, draws.uniform("flip"))
    images = normalize(images)
    if settings.cutout:
        images = augment.cutout(images, draws.uniform("cutout", 2), settings.cutout)
    if not settings.mixes:
        return images, labels
    labels = tf.one_hot(labels, num_classes)
    mixed = []
    if settings.mixup:
        mixed.append(augment.mixup(images, labels, draws.beta("mixup", settings.mixup)))
    if settings.cutmix:
        box, shares = draws.uniform("cutmix_box", 2), draws.beta("cutmix", settings.cutmix)
        mixed.append(augment.cutmix(images, labels, box, shares))
    if len(mixed) == 1:
        return mixed[0]
    coin = draws.uniform("coin") < 0.5
    (images_0, labels_0), (images_1, labels_1) = mixed
    return (
        tf.where(coin[:, None, None, None], images_0, images_1),
        tf.where(coin[:, None], labels_0, labels_1),
    )


@dataclasses.dataclass(frozen=True)
class Share:
    """Which replicas of a run are fed here; the default is all of the only one.

    A batch is cut into `parts`, and each replica has an equal, consecutive share of every part. So
    a part is the same examples on any number of replicas.

    Attributes:
        replicas: in the run.
        first: number of the first that is fed here.
        here: how many are.
        parts: that replicas cut their examples into, to go through them one after the other.
    """

    replicas: int = 1
    first: int = 0
    here: int = 1
    parts: int = 1

    def rows(self, global_batch_size: int) -> np.ndarray:
        """Rows of a batch, int64 [here, global_batch_size / replicas], by replica.

        Raises:
            DataError: the batch does not divide.
        """
        pieces = self.replicas * self.parts
        if global_batch_size % pieces:
            raise DataError(f"batch_size={global_batch_size} does not divide by {pieces}")
        rows = np.arange(global_batch_size).reshape(self.parts, self.replicas, -1)
        mine = rows[:, self.first : self.first + self.here]
        return mine.transpose(1, 0, 2).reshape(self.here, -1)


def _deal(dataset: tf.data.Dataset, rows: np.ndarray) -> tf.data.Dataset:
    """Each batch, whose rows are the sorted ones of `rows`, as an element for each replica."""
    places = np.argsort(np.argsort(rows.reshape(-1))).reshape(rows.shape)
    if len(places) > 1:
        dataset = dataset.map(lambda *batch: tuple(tf.gather(x, places) for x in batch)).unbatch()
    return dataset.prefetch(tf.data.AUTOTUNE)


def train_batches(
    source: Source,
    *,
    global_batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    augmentation: Augmentation,
    mean: Iterable[float],
    std: Iterable[float],
    num_classes: int,
    share: Share = Share(),
) -> tf.data.Dataset:
    """The batches of the steps from `start_step` up to, not including, `stop_step`.

    Only the examples that are needed here are read.

    Args:
        source: the train split.
        global_batch_size: examples in a step, over all replicas.
        seed: of the run; it decides the order and every draw.
        start_step: 0, or where to go on.
        stop_step: where to end.
        augmentation: what is done to the images.
        mean: per channel, on the scale where pixels are in [0, 1].
        std: likewise.
        num_classes: width of soft labels.
        share: the replicas that are fed. Each gets an element of every batch, in turn.

    Returns:
        Dataset of (images, labels): images float32 [global_batch_size / replicas, height, width,
        channels]; labels int32 [n], or float32 [n, num_classes] if examples are mixed.

    Raises:
        DataError: a setting does not suit the images or the batch.
    """
    height, width, _ = source.image_shape
    if augmentation.crop_padding >= min(height, width):
        raise DataError(
            f"crop_padding={augmentation.crop_padding} must be smaller than the images, "
            f"which are {height}x{width}"
        )
    by_replica = share.rows(global_batch_size)
    sorted_rows = np.sort(by_replica.reshape(-1))
    if augmentation.mixes:
        _check_pairs(sorted_rows, global_batch_size)
    rows = tf.constant(sorted_rows, tf.int64)
    fetch = _fetcher(source)

    def batch(step):
        numbers = example_numbers(
            step, rows, size=len(source.labels), global_batch_size=global_batch_size, seed=seed
        )
        images, labels = fetch(numbers)
        draws = _Draws(seed, step, rows, global_batch_size)
        return _augment(
            images, labels, draws, augmentation, lambda x: _normalize(x, mean, std), num_classes
        )

    steps = tf.data.Dataset.range(start_step, stop_step)
    batches = steps.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return _deal(batches, by_replica)


def _check_pairs(rows: np.ndarray, global_batch_size: int) -> None:
    """Mixup and cutmix pair rows 0 and 1, 2 and 3, ...; both must be here."""
    if global_batch_size % 2:
        raise DataError(f"mixup and cutmix pair examples: batch_size={global_batch_size} is odd")
    if len(rows) % 2 or np.any(rows[1::2] != rows[::2] + 1):
        raise DataError(
            "mixup and cutmix pair examples: a worker's share of a batch, or of each of its parts, "
            "must be even; use a larger --batch_size"
        )


def eval_batches(
    source: Source,
    *,
    global_batch_size: int,
    mean: Iterable[float],
    std: Iterable[float],
    share: Share = Share(),
) -> tf.data.Dataset:
    """The examples of a split once each, in their order.

    The last batch is filled up with repeats of the last example, which the mask leaves out.

    Args:
        source: a split.
        global_batch_size: examples in a batch, over all replicas.
        mean: as for `train_batches`.
        std: likewise.
        share: likewise.

    Returns:
        Dataset of (images, labels, mask): as `train_batches` gives them, and float32 [n], 1 where
        the example counts and 0 where it fills up.
    """
    size = len(source.labels)
    by_replica = share.rows(global_batch_size)
    rows = tf.constant(np.sort(by_replica.reshape(-1)), tf.int64)
    fetch = _fetcher(source)

    def batch(number):
        places = number * global_batch_size + rows
        images, labels = fetch(tf.minimum(places, size - 1))
        return _normalize(images, mean, std), labels, tf.cast(places < size, tf.float32)

    numbers = tf.data.Dataset.range(math.ceil(size / global_batch_size))
    batches = numbers.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return _deal(batches, by_replica)


def data_error(error: tf.errors.OpError) -> DataError | None:
    """The DataError that a source raised inside a pipeline, or None if it was something else."""
    found = re.findall(r"DataError: (.*)", error.message)
    return DataError(found[-1]) if found else None
