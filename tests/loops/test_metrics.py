import numpy as np
import pytest
import tensorflow as tf

from loops.metrics import cross_entropy, top_k_correct

LOGITS = tf.math.log(tf.constant([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]))


def test_cross_entropy_by_hand():
    np.testing.assert_allclose(
        cross_entropy(tf.constant([0, 1]), LOGITS), -np.log([0.7, 0.3]), rtol=1e-6
    )


def test_label_smoothing_by_hand():
    found = cross_entropy(tf.constant([0, 1]), LOGITS, smoothing=0.3)
    expected = [
        -(0.8 * np.log(0.7) + 0.1 * np.log(0.2) + 0.1 * np.log(0.1)),
        -(0.1 * np.log(0.1) + 0.8 * np.log(0.3) + 0.1 * np.log(0.6)),
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_soft_labels():
    hard = cross_entropy(tf.constant([0, 1]), LOGITS, smoothing=0.1)
    soft = cross_entropy(tf.one_hot([0, 1], 3), LOGITS, smoothing=0.1)
    np.testing.assert_allclose(hard, soft)
    half = cross_entropy(tf.constant([[0.5, 0.5, 0.0]]), LOGITS[:1])
    np.testing.assert_allclose(half, [-0.5 * (np.log(0.7) + np.log(0.2))], rtol=1e-6)


@pytest.mark.parametrize(("k", "expected"), [(1, [1, 0]), (2, [1, 1]), (3, [1, 1]), (9, [1, 1])])
def test_top_k(k, expected):
    np.testing.assert_array_equal(top_k_correct(tf.constant([0, 1]), LOGITS, k), expected)


def test_top_1_is_argmax_also_of_equal_logits():
    logits = tf.constant(np.random.default_rng(0).integers(0, 3, (200, 5)), tf.float32)
    labels = tf.constant(np.random.default_rng(1).integers(0, 5, 200), tf.int32)
    expected = tf.argmax(logits, -1, tf.int32) == labels
    np.testing.assert_array_equal(top_k_correct(labels, logits, 1), tf.cast(expected, tf.float32))


def test_a_net_that_says_the_same_of_all_classes_is_not_always_right():
    assert tf.reduce_sum(top_k_correct(tf.range(10), tf.zeros((10, 10)), 5)) == 5


def test_nan_is_wrong():
    logits = tf.fill((3, 3), np.nan)
    np.testing.assert_array_equal(top_k_correct(tf.range(3), logits, 3), [0, 0, 0])


def test_top_1_of_soft_labels_goes_by_the_largest():
    soft = tf.constant([[0.6, 0.4, 0.0], [0.2, 0.0, 0.8]])
    np.testing.assert_array_equal(top_k_correct(soft, LOGITS, 1), [1, 1])
