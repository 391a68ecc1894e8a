"""Which state of a run is the best on validation."""

import functools
import math
from collections.abc import Iterable, Mapping

import tensorflow as tf

from loops.metrics import higher_is_better


def rank(metric: str, figures: Mapping[str, float]) -> tuple[float, float]:
    """What orders states by their validation figures; the highest is the best.

    Of equal values, which small splits often give, the lower loss is better. NaN is worse than any
    number.

    Args:
        metric: the figure to choose by, "loss" or a key of `loops.metrics.METRICS`.
        figures: the figures of a state; its loss is among them.
    """
    sign = 1 if higher_is_better(metric) else -1
    signed = (sign * figures[metric], -figures["loss"])
    return tuple(-math.inf if math.isnan(x) else float(x) for x in signed)


def best_row(metric: str, rows: Iterable[Mapping]) -> Mapping | None:
    """The best of the rows of `metrics.jsonl` on the validation split; of equal ones, the first.

    A row without the figures that `rank` takes is none.
    """
    figures = {metric, "loss"}
    whole = [row for row in rows if row["split"] == "val" and figures <= row.keys()]
    return max(whole, key=functools.partial(rank, metric), default=None)


class Best:
    """The best validation figures so far, kept in variables of the state.

    The order is that of `rank`; of equal states, the earlier is the best.

    Args:
        progress: `TrainState.progress`.
        metric: the figure to choose by, "loss" or a key of `loops.metrics.METRICS`.

    Raises:
        ValueError: there is no such figure.
    """

    def __init__(self, progress: Mapping[str, tf.Variable], metric: str):
        self._progress = progress
        self._metric = metric
        higher_is_better(metric)  # Raises if there is no such figure.

    @property
    def step(self) -> int:
        """The step of the best state; -1 if there is none."""
        return int(self._progress["best_step"].numpy())

    def is_beaten_by(self, figures: Mapping[str, float]) -> bool:
        """Whether a state with these figures would be the best."""
        value, loss = (self._progress[n].numpy() for n in ("best_metric_value", "best_loss"))
        best = {self._metric: value, "loss": loss}
        return self.step < 0 or rank(self._metric, figures) > rank(self._metric, best)

    def replace(self, step: int, figures: Mapping[str, float]) -> dict[str, float]:
        """Makes a state the best, and returns the previous values of the variables."""
        new = {
            "best_metric_value": figures[self._metric],
            "best_loss": figures["loss"],
            "best_step": step,
        }
        before = {name: self._progress[name].numpy() for name in new}
        self.restore(new)
        return before

    def restore(self, values: Mapping[str, float]) -> None:
        """Sets the variables to values that `replace` returned."""
        for name, value in values.items():
            self._progress[name].assign(value)
