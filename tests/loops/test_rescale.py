"""Scaling of images inside of a step."""

import numpy as np
import pytest
import tensorflow as tf

from loops.rescale import rescale


@pytest.mark.parametrize(
    ("shape", "size", "scaled"),
    [((12, 12), 8, (8, 8)), ((12, 9), 6, (8, 6)), ((9, 13), 5, (5, 7)), ((6, 6), 7, (7, 7))],
)
def test_images_are_scaled_as_tensorflow_does(shape, size, scaled):
    """The shorter side has the size, so that the proportions stay."""
    images = tf.random.stateless_uniform((2, *shape, 3), (0, 0))
    expected = tf.image.resize(images, scaled, antialias=True)
    np.testing.assert_allclose(rescale(images, size), expected, atol=1e-5)
