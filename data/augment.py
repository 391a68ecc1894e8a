"""Augmentations: pure functions of a batch of images and a random draw for each image.

No function here draws a number itself. Draws come in as uniform numbers in [0, 1), so the same
draws give the same pixels, and a test can choose them. Images are [batch, height, width, channels].
"""

import dataclasses

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Which augmentations a training batch goes through; the default is none.

    Attributes:
        crop_padding: pixels of reflected border that a random crop may reach into; 0 is off.
        flip: mirror half of the images left to right.
        cutout: side in pixels of a square that is blanked; 0 is off.
        mixup: alpha of the Beta distribution of mixup's share; 0 is off.
        cutmix: alpha of the Beta distribution of cutmix's share; 0 is off. With mixup too, a coin
            is thrown for each image.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def mixes(self) -> bool:
        """Whether labels become shares of two classes."""
        return self.mixup > 0 or self.cutmix > 0


def crop(images: tf.Tensor, draws: tf.Tensor, padding: int) -> tf.Tensor:
    """Moves each image by up to `padding` pixels; what comes in at the border is its reflection.

    Pad-and-crop as in He et al. 2015, section 4.2, with reflection in the place of zeros.

    Args:
        images: any dtype; `padding` must be smaller than height and width.
        draws: float32 [batch, 2], for the vertical and the horizontal move.
        padding: pixels.
    """
    for axis in (1, 2):
        size = images.shape[axis]
        offsets = tf.cast(draws[:, axis - 1] * (2 * padding + 1), tf.int32) - padding
        rows = tf.abs(tf.range(size) + offsets[:, None])
        rows = tf.minimum(rows, 2 * (size - 1) - rows)
        images = tf.gather(images, rows, axis=axis, batch_dims=1)
    return images


def flip(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Mirrors the images whose draw, float32 [batch], is below a half."""
    return tf.where(draws[:, None, None, None] < 0.5, images[:, :, ::-1], images)


def _box(draws: tf.Tensor, sides: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Masks, bool [batch, height, width, 1], of boxes with uniform centres, cut at the border.

    Args:
        draws: float32 [batch, 2], for the centres.
        sides: float32 [batch, 2], height and width of each box in pixels.
        size: height and width of the image in pixels.
    """
    inside = []
    for axis, length in enumerate(size):
        centre = tf.floor(draws[:, axis] * length)
        start = centre - tf.floor(sides[:, axis] / 2)
        place = tf.range(length, dtype=tf.float32)
        after = place >= start[:, None]
        inside.append(after & (place < (start + sides[:, axis])[:, None]))
    rows, columns = inside
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def cutout(images: tf.Tensor, draws: tf.Tensor, side: int) -> tf.Tensor:
    """Blanks a square of each image (DeVries & Taylor 2017).

    The centre is uniform over the image, so part of the square may lie outside.

    Args:
        images: float32, normalized, so that the blank, 0, is the mean colour.
        draws: float32 [batch, 2], for the centres.
        side: of the square, in pixels.
    """
    sides = tf.fill(tf.shape(draws), float(side))
    return tf.where(_box(draws, sides, images.shape[1:3]), 0.0, images)


def swap_neighbours(x: tf.Tensor) -> tf.Tensor:
    """Swaps rows 0 and 1, 2 and 3, ...: each example's partner in mixup and cutmix.

    Batches are shuffled, so neighbours are as random as any pair, and a worker that has an even
    number of rows finds the partners among its own. The batch must be even.
    """
    pairs = tf.reshape(x, (-1, 2, *x.shape[1:]))
    return tf.reshape(pairs[:, ::-1], tf.shape(x))


def mixup(images: tf.Tensor, labels: tf.Tensor, shares: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Blends each example with its partner (Zhang et al. 2017).

    Args:
        images: float32.
        labels: float32 [batch, classes], one-hot or soft.
        shares: float32 [batch], the weight of the example itself.
    """
    pixels, classes = shares[:, None, None, None], shares[:, None]
    mixed = pixels * images + (1 - pixels) * swap_neighbours(images)
    return mixed, classes * labels + (1 - classes) * swap_neighbours(labels)


def cutmix(
    images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor, shares: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Pastes a box of its partner into each image (Yun et al. 2019).

    The labels are weighted by the area that was really pasted.

    Args:
        images: float32.
        labels: float32 [batch, classes], one-hot or soft.
        draws: float32 [batch, 2], for the centres of the boxes.
        shares: float32 [batch], the share of the area that is left.
    """
    height, width = images.shape[1:3]
    sides = tf.sqrt(1 - shares)[:, None] * tf.constant([height, width], tf.float32)
    box = _box(draws, tf.floor(sides), (height, width))
    kept = 1 - tf.reduce_mean(tf.cast(box, tf.float32), axis=(1, 2))
    mixed = tf.where(box, swap_neighbours(images), images)
    return mixed, kept * labels + (1 - kept) * swap_neighbours(labels)
