import json

import numpy as np
import pytest
import tensorflow as tf

from loops.evaluator import Evaluator, Scores
from loops.losses import LOSSES, soft_targets
from loops.metrics import METRICS, Metric
from tests.loops.helpers import (
    Fault,
    Split,
    calibration_by_hand,
    examples,
    log_softmax,
    make_state,
    softmax,
)


def test_scores_by_hand(strategy):
    """On splits that fill their batches and that do not, and more than once."""
    state = make_state(strategy)
    evaluator = Evaluator(strategy, state.net)
    for size in (6, 7, 12, 30):
        images, labels = examples(size)
        labels[labels == 2] = 1
        kernel, bias = state.net.dense.get_weights()
        logits = images @ kernel + bias
        correct = logits.argmax(1) == labels
        split = Split(images, labels, strategy.num_replicas_in_sync, batch=6)
        scores = evaluator.scores(split)
        assert scores.examples == size
        assert scores.figures.keys() == {"loss", *METRICS}
        losses = -log_softmax(logits)[np.arange(size), labels]
        assert scores.figures["loss"] == pytest.approx(losses.mean(), rel=1e-5)
        assert scores.figures["top_1_accuracy"] == pytest.approx(correct.mean())
        assert scores.figures["top_5_accuracy"] == 1
        error = calibration_by_hand(softmax(logits), labels)
        assert scores.figures["expected_calibration_error"] == pytest.approx(error, rel=1e-4)
        with np.errstate(invalid="ignore"):
            expected = [correct[labels == 0].sum(), correct[labels == 1].sum(), 0] / np.bincount(
                labels, minlength=3
            )
        np.testing.assert_allclose(scores.class_accuracy, expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_that_of_training(one_replica, loss):
    state, (images, labels) = make_state(one_replica), examples(7)
    kernel, bias = state.net.dense.get_weights()
    targets = soft_targets(tf.constant(labels), 3)
    expected = np.mean(LOSSES[loss](targets, images @ kernel + bias))
    scores = Evaluator(one_replica, state.net, loss).scores(Split(images, labels))
    assert scores.figures["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_row_that_only_fills_a_batch_can_hold_anything(strategy):
    """It is left out, not multiplied by 0."""
    state, (images, labels) = make_state(strategy), examples(7)
    replicas, evaluator = strategy.num_replicas_in_sync, Evaluator(strategy, state.net)
    expected = evaluator.scores(Split(images, labels, replicas))
    split = Split(images, labels, replicas)

    def spoil(images, labels, mask):
        return tf.where(mask[:, None] > 0, images, np.nan), labels, mask

    dataset = split.batches().map(spoil)
    split.batches = lambda: dataset
    found = evaluator.scores(split)
    assert found.figures == expected.figures
    np.testing.assert_array_equal(found.class_accuracy, expected.class_accuracy)


def test_a_metric_in_the_table_is_a_figure(one_replica, monkeypatch):
    monkeypatch.setitem(METRICS, "first_logit", Metric(lambda labels, logits: logits[:, 0], "1st"))
    state, (images, labels) = make_state(one_replica), examples(7)
    kernel, bias = state.net.dense.get_weights()
    figures = Evaluator(one_replica, state.net).scores(Split(images, labels)).figures
    assert figures["first_logit"] == pytest.approx(np.mean((images @ kernel + bias)[:, 0]))


@pytest.mark.parametrize("strategy", ["two_replicas"], indirect=True)
def test_variants_have_their_mean_probabilities_scored(strategy):
    state, (images, labels) = make_state(strategy), examples(7)
    kernel, bias = state.net.dense.get_weights()
    split = Split(images, labels, strategy.num_replicas_in_sync)
    evaluator = Evaluator(strategy, state.net, variants=lambda images: [images, -2 * images])
    mean = (softmax(images @ kernel + bias) + softmax(-2 * images @ kernel + bias)) / 2
    scores = evaluator.scores(split)
    assert scores.figures["loss"] == pytest.approx(-np.log(mean[range(7), labels]).mean(), 1e-5)
    assert scores.figures["top_1_accuracy"] == pytest.approx(np.mean(mean.argmax(1) == labels))
    np.testing.assert_allclose(scores.predictions.confidences, mean.max(1), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "focal"])
def test_equal_variants_are_scored_as_one(one_replica, loss):
    state, split = make_state(one_replica), Split(*examples(7))
    one = Evaluator(one_replica, state.net, loss).scores(split)
    two = Evaluator(one_replica, state.net, loss, variants=lambda images: [images] * 2).scores(
        split
    )
    assert two.figures == pytest.approx(one.figures, rel=1e-5)
    np.testing.assert_allclose(two.predictions.losses, one.predictions.losses, rtol=1e-5)


def test_another_number_of_examples_is_an_error(one_replica):
    split = Split(*examples(7), batch=6, size=8)
    with pytest.raises(RuntimeError, match="evaluated 7 examples of a split of 8"):
        Evaluator(one_replica, make_state(one_replica).net).scores(split)


def test_scores_as_json():
    figures = {"loss": 0.5, "top_1_accuracy": 0.75}
    found = Scores(4, figures, np.array([1.0, np.nan])).as_dict(["cat", "dog"])
    per_class = {"cat": 1.0, "dog": None}
    assert found == {"loss": 0.5, "top_1_accuracy": 0.75, "examples": 4, "per_class": per_class}
    assert json.loads(json.dumps(found)) == found
    with pytest.raises(ValueError, match="zip"):
        Scores(4, figures, np.array([1.0])).as_dict(["cat", "dog"])


def test_evaluation_can_be_left_after_a_batch(one_replica):
    calls = []

    def leave():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    evaluator = Evaluator(one_replica, make_state(one_replica).net)
    with pytest.raises(KeyboardInterrupt):
        evaluator.scores(Split(*examples(30), batch=6), after_batch=leave)
    assert len(calls) == 2


@pytest.mark.parametrize("batch", [0, 3])
def test_a_batch_that_cannot_be_made_is_named(strategy, batch):
    split = Split(*examples(30), strategy.num_replicas_in_sync, fail=[batch])
    with pytest.raises(Fault, match=f"batch {batch}") as error:
        Evaluator(strategy, make_state(strategy).net).scores(split)
    assert "bad bytes" in str(error.value.__cause__)
    assert split.asked == [batch]
