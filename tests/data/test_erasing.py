import numpy as np
import pytest
import tensorflow as tf

from data import boxes, erasing
from data.augment import RandomErasing
from data.augmentation import Draws


def test_cutout_sets_a_square_cut_at_the_border():
    images = tf.ones((2, 8, 8, 3))
    draws = tf.constant([[0.5, 0.5], [0.0, 0.99]])
    cut = erasing.cutout(images, draws, side=4)[..., 0].numpy()
    expected = np.ones((2, 8, 8))
    expected[0, 2:6, 2:6] = 0
    expected[1, 0:2, 5:8] = 0
    np.testing.assert_array_equal(cut, expected)


def test_random_erasing_by_hand():
    """An eighth of the area, twice as wide as high, at the first and the last place."""
    images = tf.ones((3, 16, 16, 2))
    draws = np.zeros((3, 3 + 2 * boxes.ATTEMPTS), np.float32)
    draws[:, 0] = (0.49, 0.0, 0.5)  # The last is not chosen.
    draws[1, 1:3] = 0.999
    draws[:, 3:] = [0.5, 1 - 2**-24] * boxes.ATTEMPTS
    erased = erasing.random_erasing(images, draws, probability=0.5, areas=(0.0, 0.25), aspect=2.0)
    expected = np.ones((3, 16, 16))
    expected[0, :4, :8] = 0  # sqrt(32 / 2) = 4 and sqrt(32 * 2) = 8.
    expected[1, 12:, 8:] = 0
    np.testing.assert_array_equal(erased[..., 0], expected)
    np.testing.assert_array_equal(erased[..., 0], erased[..., 1])


def test_how_often_and_how_much_is_erased():
    rows = 4000
    images = tf.ones((rows, 32, 32, 1))
    draws = Draws(tf.constant([3, 4], tf.int64), tf.range(rows, dtype=tf.int64), rows)
    found = RandomErasing(0.4, 0.02, 0.3)(images, None, draws)[0]
    area = 1 - tf.reduce_mean(found, axis=(1, 2, 3)).numpy()
    assert np.mean(area > 0) == pytest.approx(0.4, abs=5 * (0.24 / rows) ** 0.5)
    # Up to 0.3 every box of an aspect ratio of up to 10/3 fits: sqrt(0.3 * 10 / 3) = 1.
    assert np.quantile(area[area > 0], (0.1, 0.5, 0.9)) == pytest.approx(
        0.02 + 0.28 * np.array([0.1, 0.5, 0.9]), abs=0.02
    )
    # As often at the left as at the right, and at the top as at the bottom.
    erased = 1 - tf.reduce_mean(found, axis=0)[..., 0].numpy()
    for half in (erased[:16], erased[:, :16]):
        assert half.mean() == pytest.approx(erased.mean(), rel=0.1)


def test_an_image_in_which_no_box_fits_stays_as_it_is():
    images = tf.ones((1, 1, 2, 1))
    draws = np.zeros((1, 3 + 2 * boxes.ATTEMPTS), np.float32)
    found = erasing.random_erasing(images, draws, probability=1.0, areas=(0.02, 0.1), aspect=1.0)
    assert np.all(found == 1)
    assert RandomErasing() == RandomErasing(0.5, 0.02, 0.4, 3.3333)
    with pytest.raises(ValueError, match="smallest of random_erasing must not be above largest"):
        RandomErasing(0.5, 0.5, 0.4)
