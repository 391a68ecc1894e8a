"""Where examples come from: arrays in memory, image files on disk, or a part of either.

A source hands out examples by number. It knows nothing of order, batches or augmentation, so that
those stay arithmetic on numbers (see `data/pipeline.py`).
"""

import dataclasses
import pathlib
import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image


class DataError(ValueError):
    """The data cannot be used; the message says what was wrong and what would do, in one line.

    Line breaks and other characters that cannot be printed, as file names may have them, are
    escaped.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(text: str) -> str:
    r"""The text with escapes, as `\n`, for what cannot be printed or encoded."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


class Source(Protocol):
    """Examples by number.

    Attributes:
        labels: int32 [size], the class of each example as an index into the class names.
        image_shape: (height, width, channels) of what `fetch` gives.
    """

    labels: np.ndarray
    image_shape: tuple[int, int, int]

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        """Images uint8 [len(indices), height, width, channels]; any order, repeats allowed.

        Must be safe to call from several threads at once.
        """

    def fingerprint(self) -> int:
        """A number that changes when the examples do."""


class ArraySource:
    """Examples in memory.

    Args:
        images: uint8 [size, height, width, channels].
        labels: integers [size].

    Raises:
        ValueError: the shapes do not fit together.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels):
            raise ValueError(
                f"images must be uint8 [size, height, width, channels] with one label each, not "
                f"{images.dtype} {images.shape} with {len(labels)} labels"
            )
        self.images = images
        self.labels = np.asarray(labels, np.int32)
        self.image_shape = images.shape[1:]

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        return self.images[indices]

    def fingerprint(self) -> int:
        return zlib.crc32(self.labels.tobytes(), zlib.crc32(np.ascontiguousarray(self.images)))


class Part:
    """Some examples of another source, renumbered from 0.

    Args:
        source: the whole.
        indices: numbers of the examples that are kept, in the order they get their new numbers.
    """

    def __init__(self, source: Source, indices: np.ndarray):
        self.source = source
        self.indices = indices
        self.labels = source.labels[indices]
        self.image_shape = source.image_shape

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        return self.source.fetch(self.indices[indices])

    def fingerprint(self) -> int:
        return zlib.crc32(self.indices.tobytes(), self.source.fingerprint())


class Relabelled:
    """The examples of another source with other numbers for the classes.

    Args:
        source: the examples as they are.
        numbers: new number of each class.
    """

    def __init__(self, source: Source, numbers: Sequence[int]):
        self.labels = np.asarray(numbers, np.int32)[source.labels]
        self.image_shape = source.image_shape
        self.fetch = source.fetch
        self.fingerprint = source.fingerprint


class Resized:
    """The examples of another source at another size.

    Args:
        source: the examples as they are.
        image_size: height and width that they are scaled to (bilinear), in pixels.
    """

    def __init__(self, source: Source, image_size: int):
        self.source = source
        self.labels = source.labels
        self.image_shape = (image_size, image_size, source.image_shape[-1])

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        images = self.source.fetch(indices)
        if images.shape[-1] == 1:
            images = images[..., 0]
        size = self.image_shape[:2]
        resized = [Image.fromarray(x).resize(size, Image.Resampling.BILINEAR) for x in images]
        return np.stack([np.asarray(x) for x in resized]).reshape(-1, *self.image_shape)

    def fingerprint(self) -> int:
        return self.source.fingerprint()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset by its splits.

    Attributes:
        name: what it is called in run directories and results.
        class_names: in the order of the labels.
        splits: sources by name: "train", "test" and, if some were held out, "val".
        mean, std: per channel, in units of the pixel range scaled to [0, 1]; images are normalized
            with them.
        crop_padding: pixels of padding for the random crop that suits these images.
        flip: whether a mirrored image still belongs to its class.
        skipped: files that are no examples because they cannot be decoded.
    """

    name: str
    class_names: Sequence[str]
    splits: dict[str, Source]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    flip: bool
    skipped: tuple[pathlib.Path, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.splits["train"].image_shape


def split_by_class(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Divides example numbers in two, the same share of every class going to the second part.

    The division depends on the labels and the fraction alone, not on the seed of a run: runs that
    are compared are selected on the same examples.

    Args:
        labels: integers [size].
        fraction: share of the second part, in [0, 1). Each class that has two examples or more
            gives at least one, unless the fraction is 0, and keeps at least one.

    Returns:
        Sorted int64 numbers of the first and of the second part.
    """
    generator = np.random.default_rng(0)
    second = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = round(fraction * len(members))
        if fraction > 0:
            count = min(max(count, 1), len(members) - 1)
        second.append(members[:count])
    second = np.sort(np.concatenate(second)) if second else np.zeros(0, np.int64)
    return np.setdiff1d(np.arange(len(labels)), second), second
