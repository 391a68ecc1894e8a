"""Tables of values against Pillow's ImageOps and ImageEnhance."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from data import color, tables

# A dark, a light and a flat photo, and one of a few values.
_DRAWS = np.random.default_rng(0).normal(size=(4, 20, 30, 3))
IMAGES = np.stack(
    [60 + 30 * _DRAWS[0], 180 + 40 * _DRAWS[1], 0 * _DRAWS[2] + 77, 50 * np.floor(_DRAWS[3] + 2)]
)
IMAGES = IMAGES.clip(0, 255).astype(np.uint8)


def replaced(make):
    """The images after tables that `make` returns for their histograms."""
    images = tf.constant(IMAGES)
    places = tables.places(images)
    counts = tables.histograms(images, places)
    table = make(counts) + tf.zeros_like(counts)
    return tables.look_up(table, places).numpy().astype(np.uint8)


def by_pillow(function):
    return np.stack([np.asarray(function(Image.fromarray(image))) for image in IMAGES])


def fill(value):
    return tf.fill([4], float(value))


def test_histograms():
    images = tf.constant(IMAGES)
    found = tables.histograms(images, tables.places(images)).numpy()
    for n, image in enumerate(IMAGES):
        for channel in range(3):
            expected = np.bincount(image[..., channel].reshape(-1), minlength=256)
            np.testing.assert_array_equal(found[n, channel], expected)


@pytest.mark.parametrize("factor", [0.01, 0.3, 1, 1.7])
def test_brightness_and_contrast(factor):
    found = replaced(lambda counts: tables.blended(0.0, fill(factor)))
    expected = by_pillow(lambda image: ImageEnhance.Brightness(image).enhance(factor))
    np.testing.assert_array_equal(found, expected)
    means = color.mean_gray(color.grayscale(tf.cast(IMAGES, tf.float32)))
    found = replaced(lambda counts: tables.blended(means, fill(factor)))
    expected = by_pillow(lambda image: ImageEnhance.Contrast(image).enhance(factor))
    np.testing.assert_allclose(found.astype(int), expected, atol=1)
    assert np.mean(found != expected) < 0.02


def test_posterize_and_solarize():
    for bits in (1, 4, 8):
        found = replaced(lambda counts, bits=bits: tables.posterized(fill(bits)))
        expected = by_pillow(lambda image, bits=bits: ImageOps.posterize(image, bits))
        np.testing.assert_array_equal(found, expected)
    for threshold in (0, 100, 256):
        found = replaced(lambda counts, threshold=threshold: tables.solarized(fill(threshold)))
        expected = by_pillow(lambda image, t=threshold: ImageOps.solarize(image, t))
        np.testing.assert_array_equal(found, expected)


def test_equalize_and_autocontrast():
    np.testing.assert_array_equal(replaced(tables.equalized), by_pillow(ImageOps.equalize))
    found = replaced(tables.autocontrasted)
    # Pillow loses one where rounding makes a whole number a little smaller.
    np.testing.assert_allclose(found.astype(int), by_pillow(ImageOps.autocontrast), atol=1)
    values = IMAGES.astype(int)
    low, high = values.min(axis=(1, 2), keepdims=True), values.max(axis=(1, 2), keepdims=True)
    expected = np.where(high > low, 255 * (values - low) // np.maximum(high - low, 1), values)
    np.testing.assert_array_equal(found, expected)
