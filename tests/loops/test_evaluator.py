import numpy as np
import pytest
import tensorflow as tf

from loops.errors import RunError
from loops.evaluate import Evaluator, Scores
from tests.loops.helpers import examples, make_state


def batched(images, labels, size, replicas):
    """As the pipeline does it: the last batch is filled up and masked."""
    filled = -(-len(images) // size) * size
    order = np.minimum(np.arange(filled), len(images) - 1)
    mask = (np.arange(filled) < len(images)).astype(np.float32)
    dataset = tf.data.Dataset.from_tensor_slices((images[order], labels[order], mask))
    return dataset.batch(size // replicas)


@pytest.mark.parametrize("size", [6, 7, 12, 30])
def test_scores_by_hand(strategy, size):
    state, (images, labels) = make_state(strategy), examples(size)
    labels[labels == 2] = 1
    kernel, bias = state.net.dense.get_weights()
    logits = images @ kernel + bias
    log_shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    right = logits.argmax(1) == labels
    dataset = batched(images, labels, 6, strategy.num_replicas_in_sync)
    scores = Evaluator(strategy, state.net).scores(dataset, size)
    assert scores.examples == size
    assert scores.loss == pytest.approx(-log_shares[np.arange(size), labels].mean(), rel=1e-5)
    assert scores.top_1_accuracy == pytest.approx(right.mean())
    assert scores.top_5_accuracy == 1
    with np.errstate(invalid="ignore"):
        expected = [right[labels == 0].sum(), right[labels == 1].sum(), 0] / np.bincount(
            labels, minlength=3
        )
    np.testing.assert_allclose(scores.class_accuracy, expected)


def test_another_number_of_examples_is_an_error(one_replica):
    dataset = batched(*examples(7), 6, 1)
    with pytest.raises(RunError, match="evaluated 7 examples of a split of 8"):
        Evaluator(one_replica, make_state(one_replica).net).scores(dataset, 8)


def test_scores_as_json():
    scores = Scores(4, 0.5, 0.75, 1.0, np.array([1.0, np.nan]))
    assert scores.as_dict(["cat", "dog"]) == {
        "top_1_accuracy": 0.75,
        "top_5_accuracy": 1.0,
        "loss": 0.5,
        "examples": 4,
        "per_class": {"cat": 1.0, "dog": None},
    }


def test_evaluation_can_be_left(one_replica):
    def leave():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Evaluator(one_replica, make_state(one_replica).net).scores(
            batched(*examples(7), 6, 1), 7, after_batch=leave
        )
