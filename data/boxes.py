"""Boxes in images: where they are, and what is drawn for them.

A box is (top, left, height, width) in pixels, which need not be whole.
"""

import math

import tensorflow as tf

ATTEMPTS = 10


def masks(draws: tf.Tensor, sides: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Masks, bool [batch, height, width, 1], of boxes with uniform centers, cut at the border.

    Args:
        draws: float32 [batch, 2], for the centers.
        sides: float32 [batch, 2], height and width of each box in pixels.
        size: height and width of the image in pixels.
    """
    centers = tf.floor(draws * tf.constant(tuple(size), tf.float32))
    return inside(centers - tf.floor(sides / 2), sides, size)


def inside(corners: tf.Tensor, sides: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Masks, bool [batch, height, width, 1], of boxes by their top left corners and sides."""
    rows, columns = (
        (position >= corners[:, axis, None]) & (position < (corners + sides)[:, axis, None])
        for axis, position in enumerate(tf.range(length, dtype=tf.float32) for length in size)
    )
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def fitting_sides(
    draws: tf.Tensor, sizes: tf.Tensor, areas: tuple[float, float], aspect: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Sides of random boxes that fit into their images.

    Area and aspect ratio are drawn `ATTEMPTS` times, of which the first box that fits counts.

    Args:
        draws: float32 [batch, ATTEMPTS, 2].
        sizes: float32 [batch, 2], height and width of each image.
        areas: smallest and largest area, as a fraction of the image; the area is uniform.
        aspect: largest ratio of width to height, and of height to width; its logarithm is uniform.

    Returns:
        Height and width in whole pixels, float32 [batch, 2], and whether there is such a box, bool
        [batch].
    """
    smallest, largest = areas
    fraction = smallest + (largest - smallest) * draws[..., 0]
    area = fraction * tf.reduce_prod(sizes, axis=1)[:, None]
    ratio = tf.exp((2 * draws[..., 1] - 1) * math.log(aspect))
    sides = tf.round(tf.sqrt(tf.stack((area / ratio, area * ratio), axis=-1)))
    fits = tf.reduce_all((sides >= 1) & (sides <= sizes[:, None]), axis=-1)
    first = fits & (tf.cumsum(tf.cast(fits, tf.float32), axis=1, exclusive=True) == 0)
    sides = tf.reduce_sum(tf.where(first[..., None], sides, 0.0), axis=1)
    return sides, tf.reduce_any(fits, axis=1)


def placed(draws: tf.Tensor, sides: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
    """Top left corners, in whole pixels, at which boxes lie inside their images; all are likely.

    Args:
        draws: float32 [batch, 2].
        sides: float32 [batch, 2], height and width of each box in whole pixels.
        sizes: float32 [batch, 2], height and width of each image.
    """
    return tf.floor(draws * (sizes - sides + 1))


def middle(sizes: tf.Tensor, size: tuple[int, int], fraction: float = 1.0) -> tf.Tensor:
    """Boxes in the middle of images.

    Args:
        sizes: float32 [batch, 2], height and width of each image.
        size: height and width that the boxes are scaled to, which gives them their aspect ratio.
        fraction: of the height and width of the largest such box.

    Returns:
        float32 [batch, 4].
    """
    target = tf.constant(size, tf.float32)
    sides = fraction * tf.reduce_min(sizes / target, axis=1, keepdims=True) * target
    return tf.concat(((sizes - sides) / 2, sides), axis=1)
