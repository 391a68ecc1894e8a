"""Variants of images whose predictions are averaged: test-time augmentation.

Krizhevsky et al. 2012, section 4.1, average over crops and mirror images.
"""

from collections.abc import Sequence

import tensorflow as tf

from data.geometry import crop_places, rearranged


def _flip(images: tf.Tensor) -> list[tf.Tensor]:
    """The images and their mirror images, left to right."""
    return [images, images[:, :, ::-1]]


def _shifts(images: tf.Tensor) -> list[tf.Tensor]:
    """The images, and those shifted up, down, left and right by 1/32 of their size.

    At least by one pixel. The border is filled by reflection, as in the augmentation "crop".
    """
    shifted = [images]
    for axis in (0, 1):
        size = images.shape[1 + axis]
        pixels = min(max(1, size // 32), size - 1)
        # `crop_places` takes one of 2 * pixels + 1 offsets in each direction: the first, the
        # middle or the last.
        first, middle, last = ((i + 0.5) / (2 * pixels + 1) for i in (0, pixels, 2 * pixels))
        for draw in (first, last):
            draws = [draw, middle] if axis == 0 else [middle, draw]
            draws = tf.tile([draws], (tf.shape(images)[0], 1))
            shifted.append(rearranged(images, *crop_places(images.shape[1:3], draws, pixels)))
    return shifted


# Functions from images to a list of images, of which the first are those that they are given.
VARIANTS = {"flip": _flip, "shifts": _shifts}


def count(names: Sequence[str]) -> int:
    """The number of variants of an image, itself among them, that `variants` returns."""
    return len(variants(tf.zeros([1, 32, 32, 1], tf.uint8), names))


def variants(images: tf.Tensor, names: Sequence[str]) -> list[tf.Tensor]:
    """The images, [batch, height, width, channels], and all combinations of their variants.

    Args:
        images: the images.
        names: keys of `VARIANTS`; one that is there twice counts once.
    """
    found = [images]
    for name in dict.fromkeys(names):
        found = [variant for group in found for variant in VARIANTS[name](group)]
    return found
