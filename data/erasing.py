"""Augmentations that erase a part of each image: cutout and random erasing.

The functions draw no random numbers: draws come in as uniform numbers in [0, 1), so the same draws
give the same pixels. Images are float32 [batch, height, width, channels], normalized, so that 0 is
the mean color.
"""

import dataclasses

import tensorflow as tf

from data import boxes
from data.augmentation import Augmentation, number
from data.geometry import MAX_PIXELS


def cutout(images: tf.Tensor, draws: tf.Tensor, side: int) -> tf.Tensor:
    """Sets a square of each image to 0 (DeVries & Taylor 2017).

    The center is uniform over the image, so part of the square may lie outside.

    Args:
        images: see above.
        draws: float32 [batch, 2], for the centers.
        side: of the square, in pixels.
    """
    sides = tf.fill(tf.shape(draws), float(side))
    return tf.where(boxes.masks(draws, sides, images.shape[1:3]), 0.0, images)


def random_erasing(
    images: tf.Tensor,
    draws: tf.Tensor,
    *,
    probability: float,
    areas: tuple[float, float],
    aspect: float,
) -> tf.Tensor:
    """Sets a box inside some of the images to 0 (Zhong et al. 2017, algorithm 1 and "RE-M").

    An image in which no box fits in ten attempts stays as it is.

    Args:
        images: see above.
        draws: float32 [batch, 3 + 2 * ATTEMPTS]: whether, where, and how large.
        probability: of an image to be erased in.
        areas: smallest and largest area of the box, as a fraction of the image.
        aspect: largest ratio of its sides. In the paper the ratio is uniform, here its logarithm.
    """
    size = tuple(images.shape[1:3])
    attempts = tf.reshape(draws[:, 3:], (-1, boxes.ATTEMPTS, 2))
    sizes = tf.constant([size], tf.float32)
    sides, fits = boxes.fitting_sides(attempts, sizes, areas, aspect)
    mask = boxes.inside(boxes.placed(draws[:, 1:3], sides, sizes), sides, size)
    chosen = fits & (draws[:, 0] < probability)
    return tf.where(mask & chosen[:, None, None, None], 0.0, images)


@dataclasses.dataclass(frozen=True)
class Cutout(Augmentation):
    """Sets a square with sides of `side` pixels to the mean color."""

    normalized = True
    side: int = number(0, MAX_PIXELS)

    def __call__(self, images, labels, draws):
        return cutout(images, draws.uniform(2), self.side), labels


@dataclasses.dataclass(frozen=True)
class RandomErasing(Augmentation):
    """Sets a box to the mean color, in some of the images.

    Attributes:
        probability: of an image to be erased in.
        smallest, largest: area of the box, as a fraction of the image.
        aspect: largest ratio of the longer side to the shorter.
    """

    normalized = True
    probability: float = number(0, 1, default=0.5)
    smallest: float = number(0, 1, default=0.02)
    largest: float = number(0, 1, default=0.4)
    aspect: float = number(1, 100, default=3.3333)

    def __post_init__(self):
        super().__post_init__()
        if self.smallest > self.largest:
            raise ValueError(
                f"smallest of {self.name()} must not be above largest, which is {self.largest:g}"
            )

    def __call__(self, images, labels, draws):
        erased = random_erasing(
            images,
            draws.uniform(3 + 2 * boxes.ATTEMPTS),
            probability=self.probability,
            areas=(self.smallest, self.largest),
            aspect=self.aspect,
        )
        return erased, labels
