import numpy as np
import tensorflow as tf

from data import mixing


def test_neighbours_are_partners():
    np.testing.assert_array_equal(mixing.swap_neighbours(tf.range(6)), [1, 0, 3, 2, 5, 4])


def test_mixup_blends_images_and_labels_alike():
    images = tf.constant([0.0, 1.0, 10.0, 20.0])[:, None, None, None] * tf.ones((4, 2, 2, 1))
    labels = tf.one_hot([0, 1, 2, 2], 3)
    mixed, soft = mixing.mixup(images, labels, tf.constant([0.75, 1.0, 0.5, 0.0]))
    np.testing.assert_allclose(mixed[:, 0, 0, 0], [0.25, 1.0, 15.0, 10.0])
    np.testing.assert_allclose(soft, [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]])


def test_cutmix_weighs_labels_by_the_area_that_was_pasted():
    images = tf.constant([0.0, 1.0])[:, None, None, None] * tf.ones((2, 8, 8, 1))
    labels = tf.one_hot([0, 1], 2)
    # A quarter of the area, in the middle, and cut to a quarter of that in a corner.
    draws = tf.constant([[0.5, 0.5], [0.0, 0.0]])
    mixed, soft = mixing.cutmix(images, labels, draws, tf.constant([0.75, 0.75]))
    assert tf.reduce_mean(mixed[0]).numpy() == 0.25
    np.testing.assert_allclose(soft[0], [0.75, 0.25])
    assert tf.reduce_mean(mixed[1]).numpy() == 1 - 4 / 64
    np.testing.assert_allclose(soft[1], [4 / 64, 1 - 4 / 64])
