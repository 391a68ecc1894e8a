"""Losses by hand, in numpy."""

import numpy as np
import pytest
import tensorflow as tf

from loops.losses import (
    LOSSES,
    balanced_class_weights,
    binary_cross_entropy,
    cross_entropy,
    example_weights,
    focal,
    losses_per_example,
    soft_targets,
)
from tests.loops.helpers import log_softmax, softmax

# Probabilities 0.7, 0.2, 0.1 and 0.1, 0.3, 0.6.
LOGITS = tf.math.log(tf.constant([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]))
LABELS = tf.constant([0, 1])


def random_case(seed=0, size=20, classes=5, scale=3.0):
    """Targets that sum to 1, and logits."""
    generator = np.random.default_rng(seed)
    targets = generator.dirichlet([0.5] * classes, size).astype(np.float32)
    return targets, (scale * generator.normal(size=(size, classes))).astype(np.float32)


def test_soft_targets_by_hand():
    np.testing.assert_allclose(soft_targets(LABELS, 3), [[1, 0, 0], [0, 1, 0]])
    found = soft_targets(LABELS, 3, smoothing=0.3)
    np.testing.assert_allclose(found, [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]], rtol=1e-6)
    found = soft_targets(tf.constant([[0.5, 0.5, 0.0]]), 3, smoothing=0.3)
    np.testing.assert_allclose(found, [[0.45, 0.45, 0.1]], rtol=1e-6)


def test_cross_entropy_by_hand():
    found = cross_entropy(soft_targets(LABELS, 3), LOGITS)
    np.testing.assert_allclose(found, -np.log([0.7, 0.3]), rtol=1e-6)


def test_cross_entropy_with_smoothing_by_hand():
    found = cross_entropy(soft_targets(LABELS, 3, smoothing=0.3), LOGITS)
    expected = [
        -(0.8 * np.log(0.7) + 0.1 * np.log(0.2) + 0.1 * np.log(0.1)),
        -(0.1 * np.log(0.1) + 0.8 * np.log(0.3) + 0.1 * np.log(0.6)),
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_cross_entropy_of_soft_labels_by_hand():
    found = cross_entropy(soft_targets(tf.constant([[0.5, 0.5, 0.0]]), 3), LOGITS[:1])
    np.testing.assert_allclose(found, [-0.5 * (np.log(0.7) + np.log(0.2))], rtol=1e-6)


def test_binary_cross_entropy_by_hand():
    targets, logits = random_case()
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum(-1)
    np.testing.assert_allclose(binary_cross_entropy(targets, logits), expected, rtol=1e-5)
    # One example: classes 0 and 1 are at 1/2, class 2 is at 3/4.
    found = binary_cross_entropy(tf.constant([[1.0, 0, 0]]), tf.constant([[0.0, 0, np.log(3)]]))
    np.testing.assert_allclose(found, [np.log(2) + np.log(2) + np.log(4)], rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_by_hand(gamma):
    targets, logits = random_case()
    p = softmax(logits.astype(np.float64))
    expected = -(targets * (1 - p) ** gamma * np.log(p)).sum(-1)
    np.testing.assert_allclose(focal(targets, logits, gamma), expected, rtol=1e-4)


def test_focal_of_one_label_by_hand():
    found = LOSSES["focal"](soft_targets(LABELS, 3), LOGITS)
    expected = [-(0.3**2) * np.log(0.7), -(0.7**2) * np.log(0.3)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def value_and_gradient(loss, targets, logits):
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(tf.constant(targets), logits)
    return value.numpy(), tape.gradient(value, logits).numpy()


def test_focal_without_focus_is_cross_entropy():
    targets, logits = random_case()
    found = value_and_gradient(lambda t, x: focal(t, x, 0.0), targets, logits)
    expected = value_and_gradient(cross_entropy, targets, logits)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)
    np.testing.assert_allclose(
        expected[0], -(targets * log_softmax(logits)).sum(-1), rtol=1e-5
    )  # Or both could be wrong.


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_is_finite_where_the_net_is_certain(gamma):
    """There 1 - p is 0, and a power below 1 has no finite gradient."""
    value, gradient = value_and_gradient(
        lambda t, x: focal(t, x, gamma), np.eye(3, dtype=np.float32)[:2], [[300.0, 0.0, 0.0]] * 2
    )
    assert value[0] == pytest.approx(0, abs=1e-6)
    assert value[1] == pytest.approx(300, rel=1e-5)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_least_at_its_target(name):
    """A value per example, not negative, lower for a better answer."""
    targets = soft_targets(tf.range(3), 3)
    bad, unsure, good = (LOSSES[name](targets, targets * x) for x in (-5.0, 0.0, 5.0))
    assert bad.shape == (3,)
    assert np.all(bad > unsure)
    assert np.all(unsure > good)
    assert np.all(good > 0)


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (lambda t, x: tf.reduce_mean(t * x), r"\(\)"),
        (lambda t, x: t * x, r"\(2, 3\)"),
        (lambda t, x: tf.reduce_mean(t * x)[None], r"\(1,\)"),
    ],
    ids=["scalar", "by class", "of one example"],
)
def test_a_loss_of_another_rank_is_named(monkeypatch, loss, shape):
    monkeypatch.setitem(LOSSES, "mine", loss)
    with pytest.raises(ValueError, match=rf"loss mine must return .*, \[n\], not {shape}"):
        losses_per_example("mine", soft_targets(LABELS, 3), LOGITS)


def test_balanced_class_weights_by_hand():
    """12 examples in four classes, of which the third is empty: 12 / (3 * count)."""
    labels = np.array([0] * 8 + [1] * 3 + [3])
    found = balanced_class_weights(labels, 4)
    np.testing.assert_allclose(found, [0.5, 4 / 3, 0.0, 4.0])
    assert np.mean(np.array(found)[labels]) == pytest.approx(1.0)


def test_example_weights_of_labels_and_of_mixed_labels():
    class_weights = (0.5, 2.0, 4.0)
    np.testing.assert_allclose(example_weights(tf.constant([2, 0]), class_weights), [4.0, 0.5])
    mixed = tf.constant([[0.25, 0.75, 0.0]])
    np.testing.assert_allclose(example_weights(mixed, class_weights), [0.25 * 0.5 + 0.75 * 2])
