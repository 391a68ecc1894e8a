import numpy as np
import pytest

from loops.best import Best
from tests.loops.helpers import make_state

NAN = float("nan")


@pytest.fixture
def progress(one_replica):
    return make_state(one_replica).progress


def best_steps(progress, metric, values):
    """The best step after each evaluation of (metric, loss)."""
    best, found = Best(progress, metric), []
    for step, (value, loss) in enumerate(values, start=1):
        figures = {metric: value, "loss": loss}
        if best.is_beaten_by(figures):
            best.replace(step, figures)
        found.append(best.step)
    return found


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        # Higher is better.
        ("top_1_accuracy", [(0.5, 1), (0.7, 1), (0.6, 0.5), (0.6, 0.4)], [1, 2, 2, 2]),
        ("top_1_accuracy", [(0.0, 1), (0.1, 1), (0.2, 1), (0.3, 2)], [1, 2, 3, 4]),
        # Of equal values the lower loss, of equal losses the earlier.
        ("top_1_accuracy", [(0.5, 1), (0.7, 1), (0.7, 0.9), (0.7, 0.95)], [1, 2, 3, 3]),
        ("top_1_accuracy", [(0.5, 1), (0.5, 1), (0.5, 1)], [1, 1, 1]),
        ("top_1_accuracy", [(0.5, NAN), (0.5, 2), (0.5, NAN), (0.5, 1)], [1, 2, 2, 4]),
        # Lower is better.
        ("expected_calibration_error", [(0.3, 1), (0.1, 2), (0.2, 1), (0.0, 3)], [1, 2, 2, 4]),
        ("expected_calibration_error", [(0.3, 1), (0.3, 0.5), (0.3, 2)], [1, 2, 2]),
        # NaN never stays, nor becomes, the best.
        ("top_1_accuracy", [(NAN, 1), (0.0, 9), (NAN, 0.1), (0.1, 9)], [1, 2, 2, 4]),
        ("expected_calibration_error", [(NAN, 1), (0.9, 9), (NAN, 0.1)], [1, 2, 2]),
        ("expected_calibration_error", [(NAN, NAN), (NAN, 2), (NAN, 1), (9.0, NAN)], [1, 2, 3, 4]),
    ],
)
def test_the_best_step(progress, metric, values, expected):
    assert best_steps(progress, metric, values) == expected


def test_the_loss_can_be_what_is_chosen_by(progress):
    losses = [(x, x) for x in (NAN, 2.0, 1.0, 1.5, NAN, 0.5)]
    assert best_steps(progress, "loss", losses) == [1, 2, 3, 3, 3, 6]


def test_the_previous_best_can_be_put_back(progress):
    best = Best(progress, "top_1_accuracy")
    assert best.step == -1
    before = best.replace(3, {"top_1_accuracy": 0.5, "loss": 1.0})
    best.replace(6, {"top_1_accuracy": 0.9, "loss": 0.5})
    values = {name: variable.numpy() for name, variable in progress.items()}
    assert values == {
        "best_metric_value": 0.9, "best_loss": 0.5, "best_step": 6, "evaluated_step": -1
    }  # fmt: skip
    best.restore(before)
    assert best.step == -1
    assert np.isnan(progress["best_metric_value"].numpy())
    assert best.is_beaten_by({"top_1_accuracy": 0.0, "loss": NAN})


def test_an_unknown_metric_lists_the_known_ones(progress):
    with pytest.raises(ValueError, match="'accuracy'; known metrics: loss, top_1_accuracy"):
        Best(progress, "accuracy")
