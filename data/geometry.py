"""Augmentations that move pixels: crop and flip, and affine transformations.

The functions draw no random numbers: draws come in as uniform numbers in [0, 1), so the same draws
give the same pixels. Images are [batch, height, width, channels].
"""

import dataclasses

import tensorflow as tf

from data.augmentation import Augmentation, number

MAX_PIXELS = 4096


def crop(images: tf.Tensor, draws: tf.Tensor, padding: int) -> tf.Tensor:
    """Shifts each image by up to `padding` pixels; the border is filled by reflection.

    Pad-and-crop as in He et al. 2015, section 4.2, with reflection instead of zeros.

    Args:
        images: any dtype; `padding` must be smaller than height and width.
        draws: float32 [batch, 2], for the vertical and the horizontal shift.
        padding: pixels.
    """
    places = []
    for axis in (1, 2):
        size = images.shape[axis]
        offsets = tf.floor(draws[:, axis - 1] * (2 * padding + 1)) - padding
        rows = tf.abs(tf.range(size, dtype=tf.float32) + offsets[:, None])
        places.append(tf.minimum(rows, 2 * (size - 1) - rows))
    return _gather(images, *places)


def flip(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Mirrors the images whose draw, float32 [batch], is below a half, left to right."""
    columns = tf.range(images.shape[2], dtype=tf.float32)
    # Several times as fast as to reverse all of them, and to choose.
    columns = tf.where(draws[:, None] < 0.5, images.shape[2] - 1 - columns, columns)
    return _gather(images, None, columns)


def _gather(images: tf.Tensor, rows: tf.Tensor | None, columns: tf.Tensor | None) -> tf.Tensor:
    """Rows and columns of each image by their numbers, float32 [batch, n]; None for all."""
    # On GPUs, tf.gather takes no uint8, and arithmetic with int32 would be done on the host.
    found = tf.cast(images, tf.float16) if images.dtype == tf.uint8 else images
    for axis, places in enumerate((rows, columns), start=1):
        if places is not None:
            found = tf.gather(found, tf.cast(places, tf.int32), axis=axis, batch_dims=1)
    return tf.cast(found, images.dtype)


def affine(
    images: tf.Tensor,
    *,
    shear: tf.Tensor,
    shift: tf.Tensor,
    radians: tf.Tensor,
) -> tf.Tensor:
    """Shears, shifts and rotates images, with the nearest pixel, and 0 where there is none.

    Pixel (x, y) of the result is that at A (x, y) + t of the image, where x and y run from the left
    and the top edge in pixels, as for `PIL.Image.transform`.

    Args:
        images: uint8 or float32.
        shear: float32 [batch, 2]: x grows by the first times y, y by the second times x.
        shift: float32 [batch, 2], of x and of y, in pixels.
        radians: float32 [batch], of the rotation about the center.
    """
    height, width = images.shape[1:3]
    cos, sin = tf.cos(radians), tf.sin(radians)
    # A is the rotation and the shear, of which a caller uses one.
    a, b, d, e = cos, sin + shear[:, 0], shear[:, 1] - sin, cos
    x, y = width / 2, height / 2
    right = x - cos * x - sin * y + shift[:, 0]
    down = y + sin * x - cos * y + shift[:, 1]
    # The operation counts from the center of the first pixel.
    right, down = right + (a + b - 1) / 2, down + (d + e - 1) / 2
    zeros = tf.zeros_like(a)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack((a, b, right, d, e, down, zeros, zeros), axis=1),
        output_shape=(height, width),
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )


@dataclasses.dataclass(frozen=True)
class Crop(Augmentation):
    """Random shift by up to `padding` pixels, the border reflected."""

    padding: int = number(0, MAX_PIXELS)

    def check(self, image_shape):
        height, width, _ = image_shape
        if self.padding >= min(height, width):
            raise ValueError(
                f"padding of crop must be smaller than the images, which are {height}x{width}"
            )

    def __call__(self, images, labels, draws):
        return crop(images, draws.uniform(2), self.padding), labels


@dataclasses.dataclass(frozen=True)
class Flip(Augmentation):
    """Mirrors half of the images left to right."""

    def __call__(self, images, labels, draws):
        return flip(images, draws.uniform()), labels
