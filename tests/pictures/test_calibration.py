import numpy as np
import pytest
import tensorflow as tf

import pictures
from loops.metrics import calibration_gaps
from pictures.calibration import reliability

# Bins [0, 0.5) and [0.5, 1]: three examples and one, of mean confidence 0.3 and 0.9.
CONFIDENCES = np.array([0.2, 0.3, 0.4, 0.9])
CORRECT = np.array([True, False, False, True])


def bars(ax, group):
    return np.array(
        [(bar.get_x(), bar.get_width(), bar.get_y(), bar.get_height()) for bar in group]
    )


def test_bars_by_hand():
    figure = pictures.calibration(CONFIDENCES, CORRECT, bins=2, error=None)
    top, bottom = figure.axes
    np.testing.assert_allclose(
        bars(top, top.containers[0]), [[0, 0.5, 0, 0.75], [0.5, 0.5, 0, 0.25]]
    )
    accuracy, gap = bottom.containers
    np.testing.assert_allclose(
        bars(bottom, accuracy), [[0, 0.5, 0, 1 / 3], [0.5, 0.5, 0, 1]], rtol=1e-6
    )
    # The gap is between accuracy and mean confidence: 0.3 - 1/3 and 0.9 - 1.
    np.testing.assert_allclose(
        bars(bottom, gap), [[0, 0.5, 1 / 3, -1 / 30], [0.5, 0.5, 1, -0.1]], rtol=1e-5
    )
    np.testing.assert_array_equal(bottom.lines[0].get_xydata(), [[0, 0], [1, 1]])
    # 0.75 / 30 + 0.25 * 0.1
    assert top.get_title(loc="left") == "Expected calibration error 0.0500"


def test_a_given_error_is_in_the_title():
    figure = pictures.calibration(CONFIDENCES, CORRECT, error=0.0166)
    assert figure.axes[0].get_title(loc="left") == "Expected calibration error 0.0166"
    assert len(figure.axes[1].containers[0]) == 15


def test_bins_are_those_of_the_metric():
    random = np.random.default_rng(0)
    logits = random.normal(size=(500, 4)).astype(np.float32) * 3
    # Confidences at the edges of bins: one quarter, and one.
    logits[:5], logits[5:10] = 0, [99, 0, 0, 0]
    labels = random.integers(0, 4, 500).astype(np.int32)
    for bins in (4, 15):
        gaps = calibration_gaps(labels, tf.constant(logits), bins).numpy().mean(axis=0)
        confidences = tf.nn.softmax(logits).numpy().max(axis=-1)
        counts, confidence, accuracy = reliability(
            confidences, logits.argmax(axis=-1) == labels, bins
        )
        assert counts.sum() == 500
        np.testing.assert_allclose(
            np.nan_to_num(accuracy - confidence) * counts / 500, gaps, atol=1e-6
        )


def test_empty_bins_and_nan():
    counts, confidence, accuracy = reliability([0.1, np.nan, 1.0], [True, True, False], 5)
    np.testing.assert_array_equal(counts, [1, 0, 0, 0, 1])
    np.testing.assert_allclose(confidence, [0.1, np.nan, np.nan, np.nan, 1], rtol=1e-6)
    np.testing.assert_allclose(accuracy, [1, np.nan, np.nan, np.nan, 0])


@pytest.mark.parametrize("confidences", [[], [np.nan]])
def test_no_examples(confidences):
    figure = pictures.calibration(confidences, [True] * len(confidences), error=None)
    assert figure.axes[0].get_title(loc="left") == "Calibration"
    assert figure.axes[0].texts[0].get_text() == "no data"
    pictures.to_png(figure, dpi=30)
