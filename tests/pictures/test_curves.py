import warnings

import numpy as np
import pytest

import pictures
from pictures.curves import moving_average


def rows(epochs, losses, accuracies):
    return {
        "epoch": np.array(epochs, float),
        "loss": np.array(losses, float),
        "top_1_accuracy": np.array(accuracies, float),
    }


TRAIN = rows([0.5, 1, 1.5, 2], [2.0, 1.5, 1.2, 1.0], [0.2, 0.4, 0.5, 0.6])
VAL = rows([1, 2], [1.6, 1.3], [0.35, 0.45])
EMPTY = rows([], [], [])


def legend(figure):
    return [text.get_text() for box in figure.legends for text in box.get_texts()]


def test_accuracy_is_left_and_loss_right_with_both_splits():
    figure = pictures.curves(TRAIN, VAL)
    left, right = figure.axes
    assert (left.get_title(loc="left"), right.get_title(loc="left")) == ("Accuracy", "Loss")
    assert left.get_position().x0 < right.get_position().x0
    for ax, key in ((left, "top_1_accuracy"), (right, "loss")):
        assert [line.get_label() for line in ax.lines] == ["training", "validation"]
        for line, split in zip(ax.lines, (TRAIN, VAL), strict=True):
            np.testing.assert_array_equal(line.get_xdata(), split["epoch"])
            np.testing.assert_array_equal(line.get_ydata(), split[key])
    assert left.lines[0].get_color() != left.lines[1].get_color()
    assert left.lines[0].get_color() == right.lines[0].get_color()
    assert left.yaxis.get_major_formatter()(0.45) == "45%"
    assert legend(figure) == ["training", "validation"]


def test_the_best_epoch_is_marked_in_both():
    figure = pictures.curves(TRAIN, VAL, best_epoch=1.5)
    for ax in figure.axes:
        np.testing.assert_array_equal(ax.lines[2].get_xdata(), [1.5, 1.5])
    assert legend(figure) == ["training", "validation", "best checkpoint, epoch 1.5"]
    assert [len(ax.lines) for ax in pictures.curves(TRAIN, VAL, best_epoch=np.nan).axes] == [2, 2]


def test_nan_and_infinity_leave_gaps():
    figure = pictures.curves(rows([1, 2, 3], [1, np.inf, 2], [0.1, np.nan, 0.2]), EMPTY)
    for ax, expected in zip(figure.axes, ([0.1, np.nan, 0.2], [1, np.nan, 2]), strict=True):
        assert len(ax.lines) == 1
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), expected)


def test_many_points_are_pale_with_a_moving_average():
    epochs = np.arange(1, 1501) / 100
    losses = np.where(np.arange(1500) % 2, 1.0, 3.0)
    figure = pictures.curves(rows(epochs, losses, losses / 4), VAL)
    pale, smooth, val = figure.axes[1].lines
    np.testing.assert_array_equal(pale.get_ydata(), losses)
    assert pale.get_alpha() < 0.5
    # A window of 20 points holds as many of 1 as of 3.
    np.testing.assert_allclose(smooth.get_ydata()[20:-20], 2.0)
    assert smooth.get_label() == "training"
    np.testing.assert_array_equal(val.get_ydata(), VAL["loss"])
    assert legend(figure) == ["training", "validation"]


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([1, 2, 6, 4], 3, [1.5, 3, 4, 5]),
        ([1, np.nan, 6, 4], 3, [1, np.nan, 5, 5]),
        ([1, 2, 3], 1, [1, 2, 3]),
    ],
)
def test_moving_average(values, width, expected):
    np.testing.assert_allclose(moving_average(np.array(values, float), width), expected)


@pytest.mark.parametrize("train", [{}, EMPTY, rows([1, 2], [np.nan] * 2, [np.nan] * 2)])
def test_nothing_to_show_is_said(train):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = pictures.curves(train, {}, best_epoch=1.0)
        pictures.to_png(figure, dpi=30)
    assert [[text.get_text() for text in ax.texts] for ax in figure.axes] == [["no data"]] * 2
    assert [len(ax.lines) for ax in figure.axes] == [0, 0]


def test_a_single_point_is_visible():
    figure = pictures.curves(rows([1], [2], [0.5]), EMPTY)
    assert figure.axes[0].lines[0].get_marker() == "o"
