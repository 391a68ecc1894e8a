import colorsys

import numpy as np
import pytest
import tensorflow as tf
from PIL import ImageEnhance, ImageFilter

from data import color
from data.augment import ColorJitter
from tests.data.helpers import photo

IMAGE = photo(30, 20)
X = tf.constant(np.array(IMAGE, np.float32)[None])


def test_gray_and_blur_are_those_of_pillow():
    np.testing.assert_array_equal(color.grayscale(X)[0, ..., 0], np.array(IMAGE.convert("L")))
    np.testing.assert_array_equal(
        color.smooth(X)[0], np.array(IMAGE.filter(ImageFilter.SMOOTH), np.float32)
    )
    one_channel = color.grayscale(X)
    assert color.grayscale(one_channel) is one_channel
    np.testing.assert_array_equal(color.smooth(X[:, :2]), X[:, :2])


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.8])
def test_blends_are_those_of_pillow(factor):
    factors = tf.constant([factor])
    for other, enhance in (
        (color.grayscale(X), ImageEnhance.Color),
        (color.smooth(X), ImageEnhance.Sharpness),
        (0.0, ImageEnhance.Brightness),
    ):
        found = np.floor(color.blend(X, other, factors)[0])
        expected = np.array(enhance(IMAGE).enhance(factor), int)
        np.testing.assert_allclose(found, expected, atol=1)
        assert np.mean(found != expected) < 0.02


def test_hue_is_turned_as_by_colorsys():
    pixels = np.array([[[[250, 10, 20], [30, 200, 90], [128, 128, 128], [0, 0, 0]]]], np.float32)
    for turn in (0.0, 0.25, -0.4):
        found = color.turn_hue(tf.constant(pixels), tf.constant([turn]))[0, 0]
        for value, pixel in zip(found, pixels[0, 0], strict=True):
            hue, saturation, brightness = colorsys.rgb_to_hsv(*pixel / 255)
            expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, brightness)
            np.testing.assert_allclose(value, 255 * np.array(expected), atol=0.01)


def test_color_jitter_by_hand():
    """Factors are 1 -+ 0.5 at draws of 0 and 1; red is turned to green by a third."""
    images = tf.constant([[[[100, 0, 0], [200, 0, 0]]]] * 2, tf.uint8)
    only = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}

    def jitter(draw, **values):
        draws = tf.fill((2, 4), draw)
        return color.color_jitter(images, draws, **(only | values))[0, 0].numpy().tolist()

    assert jitter(0.3) == [[100, 0, 0], [200, 0, 0]]
    assert jitter(0.0, brightness=0.5) == [[50, 0, 0], [100, 0, 0]]
    assert jitter(1.0, brightness=0.5) == [[150, 0, 0], [255, 0, 0]]
    # The gray of these is 30 and 60, and their mean 45.
    assert jitter(0.0, contrast=0.5) == [[72, 22, 22], [122, 22, 22]]  # Half of each, 72.5.
    assert jitter(0.0, saturation=0.5) == [[65, 15, 15], [130, 30, 30]]
    assert jitter(1.0, hue=1 / 3) == [[0, 100, 0], [0, 200, 0]]
    assert jitter(0.0, brightness=3.0) == [[0, 0, 0], [0, 0, 0]]  # From 0, not from -2.


def test_color_jitter_of_gray_images_leaves_saturation_and_hue():
    images = tf.constant(np.array(IMAGE.convert("L"))[None, ..., None])
    draws = tf.constant([[0.5, 0.5, 0.1, 0.1]])
    strengths = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.5}
    np.testing.assert_array_equal(color.color_jitter(images, draws, **strengths), images)
    assert ColorJitter() == ColorJitter(0.4, 0.4, 0.4, 0.1)
    with pytest.raises(ValueError, match="color_jitter needs images of 1 or 3 channels"):
        ColorJitter().check((8, 8, 2))
