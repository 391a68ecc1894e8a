"""Augmentations that choose among the operations of AutoAugment: trivial_augment, rand_augment.

The operations are those that both papers have: 14, of geometry, colors and sharpness. All images of
a batch go through the same computations, with parameters of their own that leave it as it is where
another operation was chosen: one affine transformation, one table of values, and one blend.
"""

import dataclasses
import math

import tensorflow as tf

from data import color, tables
from data.augmentation import Augmentation, number
from data.geometry import affine

OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness",
    "contrast", "color", "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Ranges:
    """What the operations do at full strength. Solarize then inverts all values.

    Attributes:
        shear: tangent of the angle.
        shift: of translate, in pixels, or as a fraction of the image if `relative`.
        degrees: of rotate.
        factor: change of the factor of brightness, contrast, color and sharpness, to either side.
        bits: that posterize drops.
        relative: see `shift`.
    """

    shear: float
    shift: float
    degrees: float
    factor: float
    bits: float
    relative: bool = False


# The wide search space of Müller & Hutter 2021.
WIDE = Ranges(shear=0.99, shift=32.0, degrees=135.0, factor=0.99, bits=6.0)
# Those of Cubuk et al. 2018, which Cubuk et al. 2019 use; translate is by 150 pixels of 331 there.
AUTO_AUGMENT = Ranges(shear=0.3, shift=150 / 331, degrees=30.0, factor=0.9, bits=4.0, relative=True)


def apply(
    images: tf.Tensor,
    operations: tf.Tensor,
    strengths: tf.Tensor,
    signs: tf.Tensor,
    ranges: Ranges,
) -> tf.Tensor:
    """Applies one of `OPERATIONS` to each image.

    Args:
        images: uint8 [batch, height, width, channels] of 1 or 3 channels.
        operations: float32 [batch], indices into `OPERATIONS`.
        strengths: float32 [batch] in [0, 1]. What autocontrast and equalize do does not depend on
            it.
        signs: float32 [batch], 1 or -1: the direction of shear, translate and rotate, and whether
            brightness, contrast, color and sharpness are increased or reduced.
        ranges: what the operations do at strength 1.

    Returns:
        Images of the same shape and dtype.
    """

    def chosen(name: str) -> tf.Tensor:
        return operations == float(OPERATIONS.index(name))

    signed = signs * strengths
    images = _move(images, chosen, signed, ranges)
    x = tf.cast(images, tf.float32)
    gray, factors = color.grayscale(x), 1 + ranges.factor * signed
    replaced = _replace(images, chosen, strengths, factors, color.mean_gray(gray), ranges)
    # Sums and products with 0 and 1 are exact, and faster than tf.where with rows of flags.
    blurred = tf.cast(chosen("sharpness"), tf.float32)[:, None, None, None]
    others = gray + blurred * (color.smooth(x) - gray)
    factors = tf.where(chosen("color") | chosen("sharpness"), factors, 1.0)
    return tf.cast(color.blend(replaced, others, factors), images.dtype)


def _move(images, chosen, signed, ranges: Ranges) -> tf.Tensor:
    """Shear, translate and rotate."""
    height, width = images.shape[1:3]
    scales = (width, height) if ranges.relative else (1, 1)

    def amounts(name: str, most: float) -> tf.Tensor:
        return tf.where(chosen(name), most * signed, 0.0)

    return affine(
        images,
        shear=tf.stack([amounts(f"shear_{x}", ranges.shear) for x in "xy"], axis=1),
        shift=tf.stack(
            [
                tf.round(amounts(f"translate_{x}", ranges.shift * scale))
                for x, scale in zip("xy", scales, strict=True)
            ],
            axis=1,
        ),
        radians=amounts("rotate", math.radians(ranges.degrees)),
    )


def _replace(images, chosen, strengths, factors, means, ranges: Ranges) -> tf.Tensor:
    """Brightness, contrast, posterize, solarize, autocontrast and equalize."""
    places = tables.places(images)
    counts = tables.histograms(images, places)
    table = tf.zeros_like(counts) + tables.posterized(tf.fill(tf.shape(strengths), 8.0))
    for name, other in {
        "brightness": tables.blended(0.0, factors),
        "contrast": tables.blended(means, factors),
        "posterize": tables.posterized(8 - tf.round(ranges.bits * strengths)),
        "solarize": tables.solarized(tables.LEVELS * (1 - strengths)),
        "autocontrast": tables.autocontrasted(counts),
        "equalize": tables.equalized(counts),
    }.items():
        table = tf.where(chosen(name)[:, None, None], other, table)
    return tables.look_up(table, places)


@dataclasses.dataclass(frozen=True)
class TrivialAugment(Augmentation):
    """One operation for each image, at a strength that is uniform over 31 (Müller & Hutter 2021).

    The search space is the wide one.
    """

    pixels = True

    def __call__(self, images, labels, draws):
        operation, strength, sign = tf.unstack(draws.uniform(3), axis=1)
        operation = tf.floor(operation * len(OPERATIONS))
        strength = tf.floor(strength * 31) / 30
        return apply(images, operation, strength, _sign(sign), WIDE), labels


@dataclasses.dataclass(frozen=True)
class RandAugment(Augmentation):
    """Several operations for each image, one after the other (Cubuk et al. 2019).

    Attributes:
        count: of operations, N in the paper.
        magnitude: strength of each, M in the paper; 10 is that of AutoAugment.
    """

    pixels = True
    count: int = number(1, 14, default=2)
    magnitude: float = number(0, 10, default=9.0)

    def __call__(self, images, labels, draws):
        for draw in tf.unstack(draws.uniform(self.count, 2), axis=1):
            operation = tf.floor(draw[:, 0] * len(OPERATIONS))
            strength = tf.fill(tf.shape(operation), self.magnitude / 10)
            images = apply(images, operation, strength, _sign(draw[:, 1]), AUTO_AUGMENT)
        return images, labels


def _sign(draws: tf.Tensor) -> tf.Tensor:
    """1 or -1 with equal probability, for draws in [0, 1)."""
    return tf.where(draws < 0.5, -1.0, 1.0)
