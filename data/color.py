"""Changes of color, and the augmentation color_jitter.

The functions draw no random numbers. Images are float32 [batch, height, width, channels] with
values from 0 to 255 and 1 or 3 channels. The formulas are those of Pillow's ImageEnhance.
"""

import dataclasses

import tensorflow as tf

from data.augmentation import Augmentation, number

_WHITE = 255.0
# Weights of red, green and blue in the brightness (ITU-R BT.601), in 2**-16, as in Pillow. Sums of
# whole numbers below 2**24 are exact in float32.
_WEIGHTS = (19595.0, 38470.0, 7471.0)


def grayscale(images: tf.Tensor) -> tf.Tensor:
    """The brightness, whole numbers for whole numbers, float32 [batch, height, width, 1]."""
    if images.shape[-1] == 1:
        return images
    red, green, blue = (images[..., i : i + 1] * weight for i, weight in enumerate(_WEIGHTS))
    return tf.floor((red + green + blue + 2**15) / 2**16)


def mean_gray(gray: tf.Tensor) -> tf.Tensor:
    """The mean brightness, rounded to whole numbers, float32 [batch]; `gray` as by `grayscale`."""
    return tf.floor(tf.reduce_mean(gray, axis=(1, 2, 3)) + 0.5)


def smooth(images: tf.Tensor) -> tf.Tensor:
    """The images, of whole numbers, blurred as by `PIL.ImageFilter.SMOOTH`.

    The center has weight 5/13, each of its eight neighbours 1/13. Pixels at the border stay.
    """
    if min(images.shape[1:3]) < 3:
        return images
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * images[:, 1:-1, 1:-1]
    blurred = tf.floor((total + 6.5) / 13)  # Rounded to the nearest.
    blurred = tf.pad(blurred, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1.0)
    return tf.where(blurred < 0, images, blurred)


def blend(images: tf.Tensor, others: tf.Tensor | float, factors: tf.Tensor) -> tf.Tensor:
    """The images where a factor is 1, `others` where it is 0, and beyond the images above 1.

    Args:
        images: see above.
        others: of a shape that fits.
        factors: float32 [batch].
    """
    mixed = others + factors[:, None, None, None] * (images - others)
    return tf.clip_by_value(mixed, 0.0, _WHITE)


def turn_hue(images: tf.Tensor, turns: tf.Tensor) -> tf.Tensor:
    """Adds turns of the color circle, float32 [batch], to the hue of RGB images."""
    hue, rest = tf.split(tf.image.rgb_to_hsv(images / _WHITE), (1, 2), axis=-1)
    hue = tf.math.floormod(hue + turns[:, None, None, None], 1.0)
    return _WHITE * tf.image.hsv_to_rgb(tf.concat((hue, rest), axis=-1))


def color_jitter(
    images: tf.Tensor,
    draws: tf.Tensor,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> tf.Tensor:
    """Changes brightness, contrast, saturation and hue, in this order.

    As Howard 2013, with hue in addition, and always in this order.

    Args:
        images: uint8.
        draws: float32 [batch, 4].
        brightness: images are blended with black, by a factor that is uniform from 1 minus this
            value, at least 0, to 1 plus this value.
        contrast: likewise, with their mean brightness.
        saturation: likewise, with themselves in gray.
        hue: it is turned by at most this fraction of the color circle to either side.
    """
    x = tf.cast(images, tf.float32)

    def factors(column: int, strength: float) -> tf.Tensor:
        low = max(0.0, 1 - strength)
        return low + (1 + strength - low) * draws[:, column]

    if brightness:
        x = blend(x, 0.0, factors(0, brightness))
    if contrast:
        x = blend(x, mean_gray(grayscale(x))[:, None, None, None], factors(1, contrast))
    if images.shape[-1] == 3 and saturation:
        x = blend(x, grayscale(x), factors(2, saturation))
    if images.shape[-1] == 3 and hue:
        x = turn_hue(x, (2 * draws[:, 3] - 1) * hue)
    return tf.cast(tf.round(x), images.dtype)


@dataclasses.dataclass(frozen=True)
class ColorJitter(Augmentation):
    """Changes the colors of each image at random; saturation and hue only if there are colors.

    Attributes:
        brightness, contrast, saturation: largest relative change.
        hue: largest change, as a fraction of the color circle.
    """

    pixels = True
    brightness: float = number(0, 10, default=0.4)
    contrast: float = number(0, 10, default=0.4)
    saturation: float = number(0, 10, default=0.4)
    hue: float = number(0, 0.5, default=0.1)

    def __call__(self, images, labels, draws):
        changed = color_jitter(
            images,
            draws.uniform(4),
            brightness=self.brightness,
            contrast=self.contrast,
            saturation=self.saturation,
            hue=self.hue,
        )
        return changed, labels
