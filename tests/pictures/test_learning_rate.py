import numpy as np
import pytest

import pictures
from pictures.learning_rate import limits

RATES = np.geomspace(1e-4, 1, 5)
LOSSES = np.array([2.0, 1.9, 1.0, 1.5, 80.0])
SMOOTHED = np.array([2.0, 1.95, 1.5, 1.4, 40.0])


def test_losses_and_the_suggested_rate():
    figure = pictures.learning_rate_range(RATES, LOSSES, SMOOTHED, 0.0123)
    (ax,) = figure.axes
    raw, smooth, mark = ax.lines
    np.testing.assert_array_equal(raw.get_xydata(), np.stack([RATES, LOSSES], axis=1))
    np.testing.assert_array_equal(smooth.get_xydata(), np.stack([RATES, SMOOTHED], axis=1))
    np.testing.assert_array_equal(mark.get_xdata(), [0.0123, 0.0123])
    assert ax.get_xscale() == "log"
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["loss of a batch", "smoothed", "suggested, 0.0123"]
    assert ax.xaxis.get_major_formatter()(0.001, None) == "0.001"


def test_without_a_suggestion_there_is_no_mark():
    figure = pictures.learning_rate_range(RATES, LOSSES, SMOOTHED, None)
    assert len(figure.axes[0].lines) == 2


def test_a_diverging_loss_does_not_flatten_the_descent():
    low, high = pictures.learning_rate_range(RATES, LOSSES, SMOOTHED, None).axes[0].get_ylim()
    # Up to 0.6 descents, of 0.6, above the first loss, and from the lowest, with margins of 5%.
    margin = 0.05 * (2.36 - 1.0)
    assert (low, high) == pytest.approx((1.0 - margin, 2.36 + margin))


@pytest.mark.parametrize(
    ("losses", "expected"),
    [([3, 2, 1], (0.9, 3.1)), ([2, 2], (1.5, 2.5)), ([2, np.nan], (1.5, 2.5))],
)
def test_limits_hold_all_of_a_descent(losses, expected):
    losses = np.array(losses, float)
    assert limits(losses, losses) == pytest.approx(expected)


@pytest.mark.parametrize("losses", [[], [np.nan, np.inf]])
def test_nothing_to_show_is_said(losses):
    figure = pictures.learning_rate_range(np.ones(len(losses)), losses, losses, None)
    assert figure.axes[0].texts[0].get_text() == "no data"
    pictures.to_png(figure, dpi=30)


def test_infinite_losses_are_gaps():
    losses = np.array([2.0, 1.0, np.inf])
    ax = pictures.learning_rate_range(RATES[:3], losses, losses, None).axes[0]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [2, 1, np.nan])
