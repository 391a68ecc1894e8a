import numpy as np
import pytest
import tensorflow as tf

from loops.metrics import (
    METRICS,
    Metric,
    calibration_gaps,
    figures,
    higher_is_better,
    summarize,
    top_k_correct,
    values_per_example,
)
from tests.loops.helpers import calibration_by_hand, make_state, softmax

LOGITS = tf.math.log(tf.constant([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]))


def random_case(seed=0, size=500, classes=6):
    """Labels that the logits get right about half the time."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, size).astype(np.int32)
    logits = 2 * generator.normal(size=(size, classes)) + 2.5 * np.eye(classes)[labels]
    return labels, logits.astype(np.float32)


@pytest.mark.parametrize(("k", "expected"), [(1, [1, 0]), (2, [1, 1]), (3, [1, 1]), (9, [1, 1])])
def test_top_k(k, expected):
    np.testing.assert_array_equal(top_k_correct(tf.constant([0, 1]), LOGITS, k), expected)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_of_equal_logits_takes_the_first_classes(k):
    logits = np.random.default_rng(0).integers(0, 3, (200, 5)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 5, 200).astype(np.int32)
    highest = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    expected = (highest == labels[:, None]).any(-1)
    np.testing.assert_array_equal(top_k_correct(labels, tf.constant(logits), k), expected)


def test_top_1_is_argmax():
    labels, logits = random_case()
    found = top_k_correct(labels, tf.constant(logits), 1)
    np.testing.assert_array_equal(found, logits.argmax(-1) == labels)
    assert 0.3 < np.mean(found) < 0.9


def test_a_net_that_gives_all_classes_the_same_logit_is_not_always_right():
    assert tf.reduce_sum(top_k_correct(tf.range(10), tf.zeros((10, 10)), 5)) == 5


def test_nan_is_never_correct():
    logits = tf.fill((3, 3), np.nan)
    np.testing.assert_array_equal(top_k_correct(tf.range(3), logits, 3), [0, 0, 0])
    own = tf.constant([[np.nan, 1.0, 2.0], [1.0, np.inf, 0.0]])
    np.testing.assert_array_equal(top_k_correct(tf.constant([0, 1]), own, 3), [0, 0])


def test_values_of_soft_labels_go_by_the_largest():
    labels, logits = random_case()
    soft = np.full((len(labels), 6), 0.1, np.float32)
    soft[np.arange(len(labels)), labels] = 0.5
    hard_values = values_per_example(tf.constant(labels), tf.constant(logits))
    soft_values = values_per_example(tf.constant(soft), tf.constant(logits))
    assert hard_values.keys() == METRICS.keys()
    for name, value in hard_values.items():
        np.testing.assert_array_equal(soft_values[name], value)
        assert value.shape == (len(labels), METRICS[name].size)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [1, 7, 500])
def test_expected_calibration_error_by_hand(seed, size):
    """Also as the mean of parts, as batches give it."""
    labels, logits = random_case(seed, size)
    values = values_per_example(tf.constant(labels), tf.constant(logits))
    found = summarize({name: np.mean(value, axis=0) for name, value in values.items()})
    expected = calibration_by_hand(softmax(logits), labels)
    assert found["expected_calibration_error"] == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert found["top_1_accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == labels))
    order = np.argsort(-logits, axis=-1)[:, :5]
    assert found["top_5_accuracy"] == pytest.approx(np.mean((order == labels[:, None]).any(-1)))


def test_calibration_of_certain_answers_is_their_error_rate():
    """A confidence of 1 is in the last bin."""
    logits = tf.one_hot([0, 1, 2, 0], 3) * 1000
    gaps = calibration_gaps(tf.constant([0, 1, 2, 1]), logits, bins=15)
    np.testing.assert_array_equal(gaps[:, :-1], np.zeros((4, 14)))
    np.testing.assert_array_equal(gaps[:, -1], [0, 0, 0, -1])


def test_calibration_of_nan_is_nan():
    values = calibration_gaps(tf.constant([0, 1]), tf.fill((2, 3), np.nan), bins=15)
    name = "expected_calibration_error"
    assert np.isnan(summarize({name: np.mean(values, axis=0)})[name])


def test_direction_of_each_figure():
    assert not higher_is_better("loss")
    assert higher_is_better("top_1_accuracy")
    assert higher_is_better("top_5_accuracy")
    assert not higher_is_better("expected_calibration_error")
    known = "'accuracy'.*loss, top_1_accuracy, top_5_accuracy, expected_calibration_error"
    with pytest.raises(ValueError, match=known):
        higher_is_better("accuracy")


@pytest.mark.parametrize("name", ["loss", "examples", "gradient_norm", "learning_rate"])
def test_the_name_of_another_figure_is_refused(monkeypatch, one_replica, name):
    monkeypatch.setitem(METRICS, name, Metric(lambda labels, logits: logits[:, 0], "mine"))
    with pytest.raises(ValueError, match=f"a metric cannot be called '{name}'"):
        make_state(one_replica)


def test_a_metric_is_an_entry_in_the_table(monkeypatch):
    """What the documentation tells people to write; its figure is a Python float for JSON."""

    def margin(labels, logits):
        return tf.gather(logits, labels, batch_dims=1) - tf.reduce_max(logits, axis=-1)

    mean = lambda mean: np.float32(mean[0])  # noqa: E731
    monkeypatch.setitem(METRICS, "margin", Metric(margin, "margin", ".2f", summary=mean))
    labels, logits = random_case()
    values = values_per_example(tf.constant(labels), tf.constant(logits))
    found = summarize({name: np.mean(value, axis=0) for name, value in values.items()})["margin"]
    expected = np.mean(logits[np.arange(len(labels)), labels] - logits.max(-1))
    assert type(found) is float
    assert found == pytest.approx(expected, rel=1e-5)
    assert figures()["margin"] == ("margin", ".2f")
    assert list(figures()) == ["loss", *METRICS]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (Metric(lambda labels, logits: tf.reduce_mean(logits), "m"), r"\[n\], not \(\)"),
        (Metric(lambda labels, logits: logits, "m"), r"\[n\], not \(2, 3\)"),
        (Metric(lambda labels, logits: logits[:1, 0], "m"), r"\[n\], not \(1,\)"),
        (Metric(lambda labels, logits: logits, "m", size=4, summary=np.sum), r"\[n, 4\], not"),
    ],
)
def test_a_metric_of_another_shape_is_named(monkeypatch, metric, message):
    monkeypatch.setitem(METRICS, "mine", metric)
    with pytest.raises(ValueError, match=f"metric mine must return a value per example, {message}"):
        values_per_example(tf.constant([0, 1]), LOGITS)


def test_values_may_be_of_any_number_type(monkeypatch):
    monkeypatch.setitem(METRICS, "mine", Metric(lambda labels, logits: labels > 0, "m"))
    found = values_per_example(tf.constant([0, 1]), LOGITS)["mine"]
    assert found.dtype == tf.float32
    np.testing.assert_array_equal(found, [[0], [1]])


def test_a_metric_of_several_values_needs_a_summary():
    with pytest.raises(ValueError, match="size 10 needs a summary"):
        Metric(lambda labels, logits: logits, "m", size=10)
