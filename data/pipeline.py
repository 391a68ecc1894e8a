"""From a source to batches, as `tf.data`: `batch = f(seed, step)`.

    pipeline = TrainPipeline(source, global_batch_size=128, seed=0, ...)
    batches = pipeline.batches(start_step=1200)

Which examples a batch has (`data/order.py`), and what is drawn for them, is computed from the seed
and the number of the step. Nothing is shuffled in a buffer and no iterator is saved: to resume at
step 1,200 is to start counting there.

Each replica has an element of its own in every batch, made by one call, so that no machine holds a
global batch in one piece. The elements go on without an end, since the workers that share a dataset
with an end ask each other at every step whether it is reached.

The pipeline consists of TensorFlow operations only. A Python function in it would need Python's
lock, which the main thread may hold while it waits for the pipeline to end.
"""

import dataclasses
import math
import os
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from data.augment import check_order, format_augment, joined, source_crop, stream_name
from data.augmentation import Augmentation, Draws, Seen
from data.dataset import normalize
from data.fault import find_fault, single
from data.order import balanced_numbers, example_numbers
from data.source import DataError, Source, on_host, without_tuning
from data.tracing import unconverted

_PREFETCHED = 2  # Elements for each replica.


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
        on_device: leave augmentation and normalization to `prepare`, to be called on the replica's
            device. An image then travels in a quarter of the bytes. By default the pipeline does
            both, and `prepare` nothing. The batches are the same.

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
        on_device: bool = False,
    ):
        self.source = source
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.augmentations = tuple(augmentations)
        self.mean, self.std = tuple(mean), tuple(std)
        self.num_classes = num_classes
        self.balanced = balanced
        self.on_device = on_device
        try:
            check_order(self.augmentations)
            for augmentation in self.augmentations:
                augmentation.check(source.image_shape)
        except ValueError as error:
            text = format_augment(self.augmentations)
            raise DataError(f"--augment={text}: {error}") from error
        # For GPUs, XLA needs parts of CUDA that may be missing.
        chain = joined(self.augmentations, compiled=not on_device)
        self._chain = [(stream_name(augmentation), augmentation) for augmentation in chain]
        self._crop = source_crop(self.augmentations)
        self._rows = shard.rows(global_batch_size)
        if any(augmentation.pairs for augmentation in self.augmentations):
            _check_pairs(global_batch_size, shard)
        self._labels = on_host(source.labels)
        self._single = single(source)

    def batches(self, start_step: int, stop_step: int | None = None) -> tf.data.Dataset:
        """The batches from `start_step` on, without an end, or those before `stop_step`.

        Each replica that is fed here has an element of a batch, in turn.

        Returns:
            Dataset of what `prepare` takes: (images, labels) as it returns them; with `on_device`,
            (images, labels, step, rows, numbers, occurrences) with images uint8 [n, height, width,
            channels], labels int32 [n], the number of the step, an int64 scalar, the rows of the
            global batch, the numbers of their examples and which occurrence of them
            it is, int64 [n]. n is global_batch_size / replicas.
        """
        here = len(self._rows)
        numbers = tf.data.Dataset.counter(start_step * here)
        if stop_step is not None:
            numbers = numbers.take((stop_step - start_step) * here)
        return _prefetched(_map(numbers, self._element), here)

    def prepare(self, *element: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """What is to be done with an element of `batches` on the device of its replica.

        Returns:
            images: float32 [n, height, width, channels], augmented and normalized.
            labels: int32 [n], or float32 [n, num_classes] if an augmentation needs soft labels.
        """
        if not self.on_device:
            return element
        # An augmentation may branch on a tensor, and the step is traced without AutoGraph.
        return tf.autograph.to_graph(TrainPipeline._augment)(self, *element)

    def _element(self, number: tf.Tensor) -> tuple[tf.Tensor, ...]:
        step, rows = _place(number, self._rows)
        (numbers, occurrences), boxes = self._numbers(step, rows), None
        if self._crop is not None:
            stream = self._draws(step, rows, numbers, occurrences).stream(stream_name(self._crop))
            boxes = self._crop.boxes(self.source.sizes(numbers), stream)
        images, labels = _fetch(self.source, self._labels, numbers, boxes)
        element = images, labels, step, rows, numbers, occurrences
        return element if self.on_device else self._augment(*element)

    @unconverted
    def _draws(self, step, rows, numbers, occurrences) -> Draws:
        """The random numbers of some rows of a batch."""
        with tf.device("CPU:0"):  # See `Draws`.
            seed = tf.constant([self.seed, 0], tf.int64)
            step_seed = tf.random.experimental.stateless_fold_in(seed, step)

        def seen():
            with tf.device("CPU:0"):
                run_seed = tf.constant([self.seed, 2], tf.int64)  # 1 is the net's.
            return Seen(run_seed, len(self.source.labels), numbers, occurrences)

        return Draws(step_seed, rows, self.global_batch_size, seen)

    def _augment(self, images, labels, step, rows, numbers, occurrences):
        """Augments and normalizes; a pure function, as described for `batches` and `prepare`."""
        draws = self._draws(step, rows, numbers, occurrences)
        if any(augmentation.soft_labels for augmentation in self.augmentations):
            labels = tf.one_hot(labels, self.num_classes)
        normalized = False
        for name, augmentation in self._chain:
            if augmentation.normalized and not normalized:
                images, normalized = normalize(images, self.mean, self.std), True
            images, labels = augmentation(images, labels, draws.stream(name))
        return images if normalized else normalize(images, self.mean, self.std), labels

    @unconverted
    def _numbers(self, step: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        labels = self.source.labels
        settings = {"global_batch_size": self.global_batch_size, "seed": self.seed}
        if self.balanced:
            return balanced_numbers(step, rows, labels=labels, **settings)
        return example_numbers(step, rows, size=len(labels), **settings)

    def numbers(self, step: int) -> np.ndarray:
        """Numbers in the source of the examples in the global batch of a step, int64 [rows]."""
        rows = tf.range(self.global_batch_size, dtype=tf.int64)
        return self._numbers(tf.constant(step, tf.int64), rows)[0].numpy()

    def find_fault(self, step: int) -> DataError | None:
        """Names the first example in the global batch of a step that cannot be decoded, if any.

        It decodes the batch on the host. Call it when an iterator over `batches` has raised.
        """
        return find_fault(self.source, self._single, self.numbers(step))


def _check_pairs(global_batch_size: int, shard: InputShard) -> None:
    """Rows 0 and 1, 2 and 3, ... of a microbatch must be on the same replica."""
    slices = shard.replicas * shard.microbatches
    size = global_batch_size // slices
    if size % 2 == 0:
        return
    problem = f"batch_size={global_batch_size} is odd"
    if slices > 1:
        problem = (
            f"with batch_size={global_batch_size}, a replica has {size} of a microbatch; use a "
            f"multiple of {2 * slices}"
        )
    raise DataError(f"mixup and cutmix combine pairs of examples: {problem}")


class EvalPipeline:
    """The examples of a split once each, in their order.

    The last batch is filled up with repeats of the last example, which the mask leaves out.

    Args:
        source: a split.
        global_batch_size: examples in a batch, over all replicas.
        mean: per channel, for pixels in [0, 1].
        std: likewise.
        shard: the replicas that are fed. Each gets an element of every batch, in turn.
        on_device: leave normalization to `prepare`, as in `TrainPipeline`.

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
        on_device: bool = False,
    ):
        self.source = source
        self.global_batch_size = global_batch_size
        self.mean, self.std = tuple(mean), tuple(std)
        self.on_device = on_device
        self._rows = shard.rows(global_batch_size)
        self._labels = on_host(source.labels)
        self._single = single(source)

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.source.labels)

    @property
    def num_batches(self) -> int:
        """Number of batches that contain them."""
        return math.ceil(self.size / self.global_batch_size)

    def batches(self) -> tf.data.Dataset:
        """All batches, and behind them, without an end, batches in which no example counts.

        Returns:
            Dataset of (images, labels, mask): images as `prepare` takes them, float32 [n, height,
            width, channels], or uint8 with `on_device`; labels int32 [n]; and mask float32 [n], 1
            where the example counts and 0 where it fills up.
        """
        here, n = self._rows.shape
        batches = _map(tf.data.Dataset.range(self.num_batches * here), self._element)
        empty = (tf.zeros((n, *x.shape[1:]), x.dtype) for x in batches.element_spec)
        behind = tf.data.Dataset.from_tensors(tuple(empty)).repeat()
        return _prefetched(batches.concatenate(behind), here)

    def prepare(self, images: tf.Tensor) -> tf.Tensor:
        """Images of `batches` as float32, normalized."""
        return normalize(images, self.mean, self.std) if self.on_device else images

    def _element(self, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        batch, rows = _place(number, self._rows)
        places = batch * self.global_batch_size + rows
        numbers = tf.minimum(places, self.size - 1)
        images, labels = _fetch(self.source, self._labels, numbers)
        mask = tf.cast(places < self.size, tf.float32)
        images = images if self.on_device else normalize(images, self.mean, self.std)
        return images, labels, mask

    def find_fault(self, batch_number: int) -> DataError | None:
        """As that of `TrainPipeline`, for the batch of that number, from 0."""
        start = batch_number * self.global_batch_size
        stop = min(start + self.global_batch_size, self.size)
        return find_fault(self.source, self._single, np.arange(start, stop))


@unconverted
def _place(number: tf.Tensor, rows: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
    """The number of the batch, and the rows in it, of an element.

    Args:
        number: of the element, int64 scalar, from 0.
        rows: int64 [here, n], those of each replica that is fed here.

    Returns:
        int64 scalar, and int64 [n].
    """
    here = len(rows)
    return number // here, tf.gather(tf.constant(rows, tf.int64), number % here)


def _map(numbers: tf.data.Dataset, element) -> tf.data.Dataset:
    """`element` of each number, in order, as many at a time as there are CPU cores."""
    # tf.data.AUTOTUNE without tuning would be 16 at most.
    return numbers.map(element, num_parallel_calls=_cores(), deterministic=True)


def _cores() -> int:
    """The number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _prefetched(elements: tf.data.Dataset, here: int) -> tf.data.Dataset:
    return elements.prefetch(_PREFETCHED * here).with_options(without_tuning())


def _fetch(
    source: Source, labels: tf.Tensor, numbers: tf.Tensor, boxes: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Images, uint8, and labels, int32, of the numbers, int64 [n]; see `Source.fetch`."""
    images = source.fetch(numbers) if boxes is None else source.fetch(numbers, boxes)
    images = tf.ensure_shape(images, (*numbers.shape, *source.image_shape))
    return images, tf.gather(labels, numbers)
