"""From a source to batches, as `tf.data`: `batch = f(seed, step)`.

    pipeline = TrainPipeline(source, global_batch_size=128, seed=0, ...)
    batches = pipeline.batches(start_step=1200, stop_step=9600)

Which examples a batch has, and what is drawn for them, is computed from the seed and the number of
the step. Nothing is shuffled in a buffer and no iterator is saved: to resume at step 1,200 is to
start counting there.

The pipeline consists of TensorFlow operations only. A Python function in it would need Python's
lock, which the main thread may hold while it waits for the pipeline to end.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from data.augment import format_augment, stream_name
from data.augmentation import Augmentation, Draws
from data.dataset import normalize
from data.source import DataError, Source, UndecodableError, on_host, without_tuning

_SHUFFLE_KEY = 1729  # Any number but 0, which makes a weak key.
_SHUFFLE_ROUNDS = 24
_PREFETCHED = 2  # Batches.


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
    return _shuffled(
        places % size, places * 0 + size, key=_SHUFFLE_KEY, seed=seed, n=places // size
    )


def balanced_numbers(
    step: tf.Tensor, rows: tf.Tensor, *, labels: np.ndarray, global_batch_size: int, seed: int
) -> tf.Tensor:
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
        int64 [n], each in [0, size).
    """
    size = len(labels)
    by_class = tf.constant(np.argsort(labels, kind="stable"), tf.int64)
    _, starts, counts = (
        tf.constant(x, tf.int64)
        for x in np.unique(np.sort(labels), return_index=True, return_counts=True)
    )
    classes = counts.shape[0]
    epochs = (step * global_batch_size + rows) // size
    place = example_numbers(step, rows, size=size, global_batch_size=global_batch_size, seed=seed)
    chosen, count = place % classes, tf.gather(counts, place % classes)
    # How many places the class has in an epoch, and so which of all its places this is.
    share = size // classes + tf.cast(chosen < size % classes, tf.int64)
    turn = epochs * share + place // classes
    # A key of its own for each class.
    within = _shuffled(
        turn % count, count, key=_SHUFFLE_KEY + 1 + chosen, seed=seed, n=turn // count
    )
    return tf.gather(by_class, tf.gather(starts, chosen) + within)


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


@dataclasses.dataclass(frozen=True)
class InputShard:
    """The replicas that are fed on this machine; the default is the only one.

    A batch is cut into microbatches, and each replica has an equal, consecutive slice of every
    microbatch. So a microbatch has the same examples on any number of replicas.

    Attributes:
        replicas: of the whole run.
        first: index of the first one that is fed here.
        here: how many are fed here.
        microbatches: per batch, which replicas go through one after the other.
    """

    replicas: int = 1
    first: int = 0
    here: int = 1
    microbatches: int = 1

    def rows(self, global_batch_size: int) -> np.ndarray:
        """Rows of the global batch, int64 [here, global_batch_size / replicas], by replica.

        Raises:
            DataError: the batch size is not divisible.
        """
        pieces = self.replicas * self.microbatches
        if global_batch_size % pieces:
            raise DataError(f"batch_size={global_batch_size} is not divisible by {pieces}")
        rows = np.arange(global_batch_size).reshape(self.microbatches, self.replicas, -1)
        mine = rows[:, self.first : self.first + self.here]
        return mine.transpose(1, 0, 2).reshape(self.here, -1)


def _deal(dataset: tf.data.Dataset, rows: np.ndarray) -> tf.data.Dataset:
    """Turns batches of the sorted rows of `rows` into an element for each replica."""
    places = np.argsort(np.argsort(rows.reshape(-1))).reshape(rows.shape)
    if len(places) > 1:
        dataset = dataset.map(lambda *batch: tuple(tf.gather(x, places) for x in batch)).unbatch()
    return dataset.prefetch(_PREFETCHED * len(places)).with_options(without_tuning())


class TrainPipeline:
    """The training batches of a run.

    Args:
        source: the train split.
        global_batch_size: examples in a step, over all replicas.
        seed: of the run; it determines the order and every draw.
        augmentations: applied in their order. Images are normalized before the first one that needs
            it, or at the end.
        mean: per channel, for pixels in [0, 1].
        std: likewise.
        num_classes: width of soft labels.
        balanced: take equally many examples of every class (see `balanced_numbers`).
        shard: the replicas that are fed. Each gets an element of every batch, in turn. Only
            examples that are needed here are read.

    Raises:
        DataError: a setting does not suit the images or the batch.
    """

    def __init__(
        self,
        source: Source,
        *,
        global_batch_size: int,
        seed: int,
        augmentations: Sequence[Augmentation],
        mean: Iterable[float],
        std: Iterable[float],
        num_classes: int,
        balanced: bool = False,
        shard: InputShard = InputShard(),
    ):
        self.source = source
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.augmentations = tuple(augmentations)
        self.mean, self.std = tuple(mean), tuple(std)
        self.num_classes = num_classes
        self.balanced = balanced
        for augmentation in self.augmentations:
            try:
                augmentation.check(source.image_shape)
            except ValueError as error:
                text = format_augment(self.augmentations)
                raise DataError(f"--augment={text}: {error}") from error
        self._by_replica = shard.rows(global_batch_size)
        self._rows = np.sort(self._by_replica.reshape(-1))
        if any(augmentation.pairs for augmentation in self.augmentations):
            _check_pairs(self._rows, global_batch_size)
        self._labels = on_host(source.labels)
        self._single = _single(source)

    def batches(self, start_step: int, stop_step: int) -> tf.data.Dataset:
        """The batches of the steps from `start_step` up to, not including, `stop_step`.

        Returns:
            Dataset of (images, labels): images float32 [n, height, width, channels] with
            n = global_batch_size / replicas; labels int32 [n], or float32 [n, num_classes] if an
            augmentation needs soft labels.
        """
        steps = tf.data.Dataset.range(start_step, stop_step)
        batches = steps.map(self._batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return _deal(batches, self._by_replica)

    def _numbers(self, step: tf.Tensor, rows: np.ndarray) -> tf.Tensor:
        rows, labels = tf.constant(rows, tf.int64), self.source.labels
        settings = {"global_batch_size": self.global_batch_size, "seed": self.seed}
        if self.balanced:
            return balanced_numbers(step, rows, labels=labels, **settings)
        return example_numbers(step, rows, size=len(labels), **settings)

    def _batch(self, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images, labels = _fetch(self.source, self._labels, self._numbers(step, self._rows))
        seed = tf.constant([self.seed, 0], tf.int64)
        draws = Draws(
            tf.random.experimental.stateless_fold_in(seed, step),
            tf.constant(self._rows, tf.int64),
            self.global_batch_size,
        )
        if any(augmentation.soft_labels for augmentation in self.augmentations):
            labels = tf.one_hot(labels, self.num_classes)
        normalized = False
        for augmentation in self.augmentations:
            if augmentation.normalized and not normalized:
                images, normalized = normalize(images, self.mean, self.std), True
            stream = draws.stream(stream_name(augmentation))
            images, labels = augmentation(images, labels, stream)
        return images if normalized else normalize(images, self.mean, self.std), labels

    def find_fault(self, step: int) -> DataError | None:
        """Names the first example in the global batch of a step that cannot be decoded, if any.

        It decodes the batch on the host. Call it when an iterator over `batches` has raised.
        """
        return _find_fault(self.source, self._single, self.numbers(step))

    def numbers(self, step: int) -> np.ndarray:
        """Numbers in the source of the examples in the global batch of a step, int64 [rows]."""
        rows = np.arange(self.global_batch_size)
        return self._numbers(tf.constant(step, tf.int64), rows).numpy()


def _check_pairs(rows: np.ndarray, global_batch_size: int) -> None:
    """Rows 0 and 1, 2 and 3, ... must be here together."""
    if global_batch_size % 2:
        raise DataError(
            f"mixup and cutmix combine pairs of examples: batch_size={global_batch_size} is odd"
        )
    if len(rows) % 2 or np.any(rows[1::2] != rows[::2] + 1):
        raise DataError(
            "mixup and cutmix combine pairs of examples: a worker's part of each microbatch must "
            "be even; use a larger --batch_size"
        )


class EvalPipeline:
    """The examples of a split once each, in their order.

    The last batch is filled up with repeats of the last example, which the mask leaves out.

    Args:
        source: a split.
        global_batch_size: examples in a batch, over all replicas.
        mean: per channel, for pixels in [0, 1].
        std: likewise.
        shard: the replicas that are fed. Each gets an element of every batch, in turn.

    Raises:
        DataError: the batch size is not divisible.
    """

    def __init__(
        self,
        source: Source,
        *,
        global_batch_size: int,
        mean: Iterable[float],
        std: Iterable[float],
        shard: InputShard = InputShard(),
    ):
        self.source = source
        self.global_batch_size = global_batch_size
        self.mean, self.std = tuple(mean), tuple(std)
        self._by_replica = shard.rows(global_batch_size)
        self._rows = np.sort(self._by_replica.reshape(-1))
        self._labels = on_host(source.labels)
        self._single = _single(source)

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.source.labels)

    def batches(self) -> tf.data.Dataset:
        """All batches.

        Returns:
            Dataset of (images, labels, mask): images float32 [n, height, width, channels], labels
            int32 [n], and mask float32 [n], 1 where the example counts and 0 where it fills up.
        """
        numbers = tf.data.Dataset.range(math.ceil(self.size / self.global_batch_size))
        batches = numbers.map(self._batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return _deal(batches, self._by_replica)

    def _batch(self, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        places = number * self.global_batch_size + tf.constant(self._rows, tf.int64)
        numbers = tf.minimum(places, self.size - 1)
        images, labels = _fetch(self.source, self._labels, numbers)
        mask = tf.cast(places < self.size, tf.float32)
        return normalize(images, self.mean, self.std), labels, mask

    def find_fault(self, batch_number: int) -> DataError | None:
        """As that of `TrainPipeline`, for the batch of that number, from 0."""
        start = batch_number * self.global_batch_size
        stop = min(start + self.global_batch_size, self.size)
        return _find_fault(self.source, self._single, np.arange(start, stop))


def _fetch(source: Source, labels: tf.Tensor, numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Images, uint8, and labels, int32, of the numbers, int64 [n]."""
    images = tf.ensure_shape(source.fetch(numbers), (*numbers.shape, *source.image_shape))
    return images, tf.gather(labels, numbers)


def _single(source: Source) -> tf.types.experimental.PolymorphicFunction:
    """`source.fetch` for one example at a time, ten times as fast as eager calls."""
    return tf.function(source.fetch, input_signature=[tf.TensorSpec([1], tf.int64)])


def _find_fault(source: Source, fetch, numbers: Iterable[int]) -> DataError | None:
    """The error for the first of the numbers that `fetch`, a `_single`, cannot read."""
    for number in numbers:
        try:
            fetch(tf.constant([number], tf.int64))
        except tf.errors.ResourceExhaustedError:
            return None
        except tf.errors.NotFoundError:
            return UndecodableError(source.describe(int(number)), "No such file or directory")
        except tf.errors.PermissionDeniedError:
            return UndecodableError(source.describe(int(number)), "Permission denied")
        except tf.errors.OpError:
            return UndecodableError(source.describe(int(number)), "its contents are damaged")
    return None
