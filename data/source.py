"""Where examples come from: arrays in memory, or subsets and variants of other sources.

A source gives examples by number, with TensorFlow operations only, so that it can be used inside
`tf.data`. It knows nothing of order, batches or augmentation (see `data/pipeline.py`). Image files
are in `data/files.py`.
"""

import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

from data.boxes import middle
from data.resampling import scale_boxes
from data.tracing import unconverted


class DataError(ValueError):
    """The data cannot be used. The message is one line: what is wrong and what would be accepted.

    Line breaks and other characters that cannot be printed, as file names may have them, are
    escaped.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


class DataWarning(UserWarning):
    """Something about the data that a person should know. The message is one line."""


def printable(text: str) -> str:
    r"""The text with escapes such as `\n` for what cannot be printed or encoded."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


class UndecodableError(DataError):
    """An image file cannot be decoded.

    The names and sizes of the files are part of a run's configuration, and so is --bad_images. So
    a run that has started resumes, and is scored, only with the file as it was then.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(
            f"{name} cannot be decoded ({reason}); restore the original file, which runs that have "
            "used it need, or remove it; new runs of train.py can leave it out with "
            "--bad_images=skip"
        )


class Source(Protocol):
    """Examples by number.

    Attributes:
        labels: int32 [size], the class of each example as an index into the class names.
        image_shape: (height, width, channels) of the images.
    """

    labels: np.ndarray
    image_shape: tuple[int, int, int]

    def fetch(self, numbers: tf.Tensor, boxes: tf.Tensor | None = None) -> tf.Tensor:
        """Images uint8 [n, *image_shape] for numbers int64 [n]; any order, repeats allowed.

        Made of TensorFlow operations only, for `tf.data` and for eager use. An image that cannot be
        read raises `tf.errors.OpError`.

        Args:
            numbers: of the examples.
            boxes: float32 [n, 4], the part of each original that is scaled to the size of the
                images: (top, left, height, width) in pixels, as it is shown, inside of `sizes`. By
                default the whole, or of image files the largest square in the middle.
        """

    def sizes(self, numbers: tf.Tensor) -> tf.Tensor:
        """Height and width of the originals in pixels, int32 [n, 2], for numbers int64 [n]."""

    def fingerprint(self) -> int:
        """A number that changes when the examples do."""

    def describe(self, number: int) -> str:
        """What a person would look for: the path of the image file, or "example 17"."""


def on_host(values) -> tf.Tensor:
    """The values as a tensor in the memory of the CPU, whatever other devices there are."""
    with tf.device("CPU:0"):
        return tf.constant(values)


class ArraySource:
    """Examples in memory.

    Args:
        images: uint8 [size, height, width, channels].
        labels: integers [size].

    Raises:
        ValueError: the shapes or dtypes do not fit together.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels):
            raise ValueError(
                f"images must be uint8 [size, height, width, channels] with one label each, not "
                f"{images.dtype} {images.shape} with {len(labels)} labels"
            )
        labels = np.asarray(labels)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(
                f"labels must be integers [size], not {labels.dtype} {list(labels.shape)}"
            )
        self.images = on_host(images)
        self.labels = labels.astype(np.int32)
        self.image_shape = tuple(images.shape[1:])

    @unconverted
    def fetch(self, numbers: tf.Tensor, boxes: tf.Tensor | None = None) -> tf.Tensor:
        with tf.device("CPU:0"):
            images = tf.gather(self.images, numbers)
            return images if boxes is None else scale_boxes(images, boxes, self.image_shape[:2])

    def sizes(self, numbers: tf.Tensor) -> tf.Tensor:
        return _equal_sizes(self.image_shape, numbers)

    def fingerprint(self) -> int:
        checksum = 0
        for start in range(0, len(self.labels), 4096):  # numpy() copies.
            checksum = zlib.crc32(self.images[start : start + 4096].numpy(), checksum)
        return zlib.crc32(self.labels.tobytes(), checksum)

    def describe(self, number: int) -> str:
        return f"example {number}"


class Subset:
    """Some examples of another source, renumbered from 0.

    Args:
        source: the whole.
        indices: integers, the numbers in `source` of the examples that are kept.
    """

    def __init__(self, source: Source, indices: np.ndarray):
        self.source = source
        self.indices = np.asarray(indices, np.int64)
        self.labels = source.labels[self.indices]
        self.image_shape = source.image_shape
        self._indices = on_host(self.indices)

    def fetch(self, numbers: tf.Tensor, boxes: tf.Tensor | None = None) -> tf.Tensor:
        with tf.device("CPU:0"):
            return self.source.fetch(tf.gather(self._indices, numbers), boxes)

    def sizes(self, numbers: tf.Tensor) -> tf.Tensor:
        with tf.device("CPU:0"):
            return self.source.sizes(tf.gather(self._indices, numbers))

    def fingerprint(self) -> int:
        return zlib.crc32(self.indices.tobytes(), self.source.fingerprint())

    def describe(self, number: int) -> str:
        return self.source.describe(int(self.indices[number]))


class Relabelled:
    """The examples of another source with other numbers for the classes.

    Args:
        source: the examples.
        numbers: the new number of each class.
    """

    def __init__(self, source: Source, numbers: Sequence[int]):
        self.labels = np.asarray(numbers, np.int32)[source.labels]
        self.image_shape = source.image_shape
        self.fetch = source.fetch
        self.sizes = source.sizes
        self.fingerprint = source.fingerprint
        self.describe = source.describe


class Resized:
    """The examples of another source at another size.

    Args:
        source: the examples.
        size: height and width in pixels that they are scaled to (bilinear, antialiased).
    """

    def __init__(self, source: Source, size: tuple[int, int]):
        self.source = source
        self.labels = source.labels
        self.image_shape = (*size, source.image_shape[-1])
        self.fingerprint = source.fingerprint
        self.describe = source.describe

    def fetch(self, numbers: tf.Tensor, boxes: tf.Tensor | None = None) -> tf.Tensor:
        with tf.device("CPU:0"):
            images, size = self.source.fetch(numbers), self.image_shape[:2]
            if boxes is not None:
                return scale_boxes(images, boxes, size)
            resized = tf.image.resize(images, size, antialias=True)
            return tf.cast(tf.round(resized), tf.uint8)

    def sizes(self, numbers: tf.Tensor) -> tf.Tensor:
        return _equal_sizes(self.source.image_shape, numbers)


class CenterCropped:
    """The middle of the images of another source.

    Args:
        source: the examples. A box that is asked for is one of its originals.
        fraction: of the height and width of the largest part in the middle that has the aspect
            ratio of the images, in (0, 1].
    """

    def __init__(self, source: Source, fraction: float):
        self.source = source
        self.fraction = fraction
        self.labels = source.labels
        self.image_shape = source.image_shape
        self.sizes = source.sizes
        self.fingerprint = source.fingerprint
        self.describe = source.describe

    def fetch(self, numbers: tf.Tensor, boxes: tf.Tensor | None = None) -> tf.Tensor:
        with tf.device("CPU:0"):
            if boxes is None:
                sizes = tf.cast(self.sizes(numbers), tf.float32)
                boxes = middle(sizes, self.image_shape[:2], self.fraction)
            return self.source.fetch(numbers, boxes)


def center_cropped(source: Source, fraction: float) -> Source:
    """The middle of the images of a source (see `CenterCropped`); itself if that is all of them."""
    return source if fraction == 1 else CenterCropped(source, fraction)


def _equal_sizes(image_shape: tuple[int, int, int], numbers: tf.Tensor) -> tf.Tensor:
    """The sizes of originals that all have one shape."""
    with tf.device("CPU:0"):
        return tf.tile(tf.constant([image_shape[:2]], tf.int32), (tf.shape(numbers)[0], 1))


def without_tuning() -> tf.data.Options:
    """Options of a pipeline without the thread that tunes it while it runs.

    An iterator that is deleted can wait for that thread for up to a minute: the thread checks for
    its cancellation just after it is woken, and that may be too early. Without it,
    `num_parallel_calls=tf.data.AUTOTUNE` means the number of CPU cores, at most 16.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return options
