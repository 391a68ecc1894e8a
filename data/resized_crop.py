"""Crops of random size and shape, which are decided before the image is decoded."""

import dataclasses

import tensorflow as tf

from data import boxes
from data.augmentation import SourceCrop, number


def random_boxes(
    sizes: tf.Tensor, draws: tf.Tensor, *, areas: tuple[float, float], aspect: float
) -> tf.Tensor:
    """Boxes to cut out of images (Szegedy et al. 2014, section 6).

    If no box fits in ten attempts, it is the largest in the middle whose aspect ratio is allowed.

    Args:
        sizes: int32 or float32 [batch, 2], height and width of each image in pixels.
        draws: float32 [batch, 2 + 2 * ATTEMPTS]: where, and how large.
        areas: smallest and largest area of a box, as a fraction of the image; uniform.
        aspect: largest ratio of its sides. Its logarithm is uniform; the paper does not say.

    Returns:
        (top, left, height, width) in whole pixels, float32 [batch, 4].
    """
    sizes = tf.cast(sizes, tf.float32)
    attempts = tf.reshape(draws[:, 2:], (-1, boxes.ATTEMPTS, 2))
    sides, fits = boxes.fitting_sides(attempts, sizes, areas, aspect)
    corners = boxes.placed(draws[:, :2], sides, sizes)
    largest = tf.minimum(sizes, tf.round(aspect * sizes[:, ::-1]))
    middle = tf.concat((tf.floor((sizes - largest) / 2), largest), axis=1)
    return tf.where(fits[:, None], tf.concat((corners, sides), axis=1), middle)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(SourceCrop):
    """Scales a random box of each image to the size of the images.

    Attributes:
        smallest, largest: area of the box, as a fraction of the image.
        aspect: largest ratio of width to height, and of height to width.
    """

    smallest: float = number(0.001, 1, default=0.08)
    largest: float = number(0.001, 1, default=1.0)
    aspect: float = number(1, 100, default=1.3333)

    def __post_init__(self):
        super().__post_init__()
        if self.smallest > self.largest:
            raise ValueError(
                f"smallest of {self.name()} must not be above largest, which is {self.largest:g}"
            )

    def boxes(self, sizes, draws):
        return random_boxes(
            sizes,
            draws.uniform(2 + 2 * boxes.ATTEMPTS),
            areas=(self.smallest, self.largest),
            aspect=self.aspect,
        )
