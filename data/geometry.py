"""Augmentations that move pixels: crop and flip, and affine transformations.

The functions draw no random numbers: draws come in as uniform numbers in [0, 1), so the same draws
give the same pixels. Images are [batch, height, width, channels].
"""

import dataclasses

import tensorflow as tf

from data.augmentation import Augmentation, Draws, number

MAX_PIXELS = 4096


def crop_places(
    size: tuple[int, int], draws: tf.Tensor, padding: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Rows and columns of images that are shifted by up to `padding` pixels.

    The border is filled by reflection. Pad-and-crop as in He et al. 2015, section 4.2, with
    reflection instead of zeros.

    Args:
        size: height and width of the images, which must be larger than `padding`.
        draws: float32 [batch, 2], for the vertical and the horizontal shift.
        padding: pixels.

    Returns:
        What `rearranged` takes.
    """
    places = []
    for axis, length in enumerate(size):
        offsets = tf.floor(draws[:, axis] * (2 * padding + 1)) - padding
        found = tf.abs(tf.range(length, dtype=tf.float32) + offsets[:, None])
        places.append(tf.minimum(found, 2 * (length - 1) - found))
    return tuple(places)


def flip_columns(width: int, draws: tf.Tensor) -> tf.Tensor:
    """Columns of images that are mirrored where the draw, float32 [batch], is below a half."""
    columns = tf.range(width, dtype=tf.float32)
    return tf.where(draws[:, None] < 0.5, width - 1 - columns, columns)


def rearranged(images: tf.Tensor, rows: tf.Tensor | None, columns: tf.Tensor | None) -> tf.Tensor:
    """The rows and columns of each image that are asked for, by their numbers.

    Args:
        images: any dtype.
        rows: float32 [batch, height]; None for all as they are.
        columns: float32 [batch, width], or None.
    """
    # On GPUs, tf.gather takes no uint8, and arithmetic with int32 would be done on the host.
    found = tf.cast(images, tf.float16) if images.dtype == tf.uint8 else images
    for axis, places in enumerate((rows, columns), start=1):
        if places is not None:
            found = tf.gather(found, tf.cast(places, tf.int32), axis=axis, batch_dims=1)
    return tf.cast(found, images.dtype)


# On CPUs, XLA makes one loop of it, where tf.gather copies pixel by pixel (CPU time of crop and
# flip of 128 images of 32x32: 0.5 ms, and 1.5 ms without). It compiles in 0.1 s.
compiled_rearranged = tf.function(rearranged, jit_compile=True, autograph=False)


def composed(first: tf.Tensor | None, then: tf.Tensor | None) -> tf.Tensor | None:
    """Rows, or columns, of which one rearrangement does what two would, one after the other."""
    if first is None or then is None:
        return first if then is None else then
    return tf.gather(first, tf.cast(then, tf.int32), axis=1, batch_dims=1)


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


class Rearrangement(Augmentation):
    """Base class of what replaces rows and columns of each image by others of its own.

    Several in a row are one pass over the images (see `joined` in `data/augment.py`).
    """

    def places(
        self, size: tuple[int, int], draws: Draws
    ) -> tuple[tf.Tensor | None, tf.Tensor | None]:
        """Rows and columns, as `rearranged` takes them, for images of a height and width."""
        raise NotImplementedError

    def __call__(self, images, labels, draws):
        return rearranged(images, *self.places(images.shape[1:3], draws)), labels


@dataclasses.dataclass(frozen=True)
class Crop(Rearrangement):
    """Random shift by up to `padding` pixels, the border reflected."""

    padding: int = number(0, MAX_PIXELS)

    def check(self, image_shape):
        height, width, _ = image_shape
        if self.padding >= min(height, width):
            raise ValueError(
                f"padding of crop must be smaller than the images, which are {height}x{width}"
            )

    def places(self, size, draws):
        return crop_places(size, draws.uniform(2), self.padding)


@dataclasses.dataclass(frozen=True)
class Flip(Rearrangement):
    """Mirrors half of the images left to right."""

    def places(self, size, draws):
        return None, flip_columns(size[1], draws.uniform())


@dataclasses.dataclass(frozen=True)
class AlternatingFlip(Rearrangement):
    """Mirrors half of the images left to right, and when they are seen again, the other half.

    So an image that is seen twice is seen both ways, where `Flip` shows half of them twice the same
    way (Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", section 3.6).
    """

    def places(self, size, draws):
        mirrored = tf.math.logical_xor(draws.of_example() < 0.5, draws.occurrences() % 2 == 1)
        return None, flip_columns(size[1], tf.where(mirrored, 0.0, 1.0))
