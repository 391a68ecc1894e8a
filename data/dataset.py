"""A dataset: its splits and what is known about them."""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from data.fault import find_fault, single
from data.source import Source, center_cropped
from data.tracing import unconverted


@unconverted
def normalize(images: tf.Tensor, mean: Iterable[float], std: Iterable[float]) -> tf.Tensor:
    """uint8 images as float32 with about zero mean and unit deviation per channel.

    Args:
        images: uint8 [..., width, channels].
        mean: per channel, for pixels in [0, 1].
        std: likewise.
    """
    images = tf.convert_to_tensor(images)
    width = images.shape[-2]
    scale = [1 / (255 * s) for s in std]
    offset = [-m / s for m, s in zip(mean, std, strict=True)]
    # A row of pixels at a time: a broadcast over as few values as there are channels is a loop over
    # single values (CPU time of 128 images of 32x32: 0.2 ms, and 1.6 ms without).
    rows = tf.reshape(tf.cast(images, tf.float32), (-1, width * len(scale)))
    return tf.reshape(rows * (scale * width) + offset * width, tf.shape(images))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset by its splits.

    Attributes:
        name: used in the names of run directories and in results.
        class_names: in the order of the labels.
        splits: sources by name: "train", "test" and, if there is a validation split, "val".
        mean, std: per channel, for pixels in [0, 1]; images are normalized with them.
        augment: the default augmentations, as `parse_augment` reads them.
        earlier_augment: what they were in an earlier version, for runs that were started then.
        eval_crop: fraction of the shorter side of the images that a net is evaluated on.
        skipped: files that are no examples because they cannot be decoded.
        note: what a person should know of the splits, a line.
        own_val: whether "val" is a split of its own, and not held out of train.
    """

    name: str
    class_names: Sequence[str]
    splits: dict[str, Source]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str = "none"
    earlier_augment: str | None = None
    skipped: tuple[pathlib.Path, ...] = ()
    note: str = ""
    own_val: bool = False
    eval_crop: float = 1.0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.splits["train"].image_shape

    def evaluated(self, split: str) -> Source:
        """The images of a split as a net is evaluated on them."""
        return center_cropped(self.splits[split], self.eval_crop)

    def examples(self, split: str, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Some examples of a split, as a net is evaluated on them.

        Returns:
            Normalized images, float32 [n, height, width, channels], and labels, int32 [n].

        Raises:
            DataError: one cannot be read.
        """
        source, numbers = self.evaluated(split), np.asarray(numbers, np.int64)
        try:
            found = tf.function(source.fetch)(tf.constant(numbers))
        except tf.errors.OpError as error:
            raise find_fault(source, single(source), numbers) or error from error
        return normalize(found, self.mean, self.std).numpy(), source.labels[numbers]


def split_by_class(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Divides example numbers in two, with the same fraction of every class in the second part.

    The division depends on the labels and the fraction alone, not on the seed of a run, so that
    runs that are compared are selected on the same examples.

    Args:
        labels: integers [size].
        fraction: of each class that goes into the second part, in [0, 1). Each class with at least
            two examples puts at least one into the second part, unless the fraction is 0, and keeps
            at least one in the first.

    Returns:
        Sorted int64 numbers of the first and of the second part.
    """
    generator = np.random.default_rng(0)
    is_second = np.zeros(len(labels), bool)
    _, starts = np.unique(np.sort(labels), return_index=True)
    for members in np.split(np.argsort(labels, kind="stable"), starts[1:]):
        members = generator.permutation(members)
        count = round(fraction * len(members))
        if fraction > 0:
            count = min(max(count, 1), len(members) - 1)
        is_second[members[:count]] = True
    return np.flatnonzero(~is_second), np.flatnonzero(is_second)
