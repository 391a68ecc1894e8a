"""Tells of a step whose loss stands out, with the command that shows it."""

import math
from collections.abc import Callable, Sequence

from loops.hook import Hook
from loops.records.metrics_log import MetricsLog
from loops.recovery import replay_command

_FACTOR = 3.0
_ROWS = 10


class Spikes(Hook):
    """Prints a line when `is_reported` is true of the last row of training metrics.

    That depends on the logged rows alone, so a resumed run prints the same lines.

    Args:
        log: of the run; a hook before this one.
        say: prints a message.
    """

    def __init__(self, log: MetricsLog, say: Callable[[str], None]):
        self._log = log
        self._say = say

    def on_log(self, trainer, row: dict) -> None:
        recent = []
        for logged in reversed(self._log.rows):
            if logged["split"] == "train":
                recent.append(logged.get("highest_loss", math.nan))
            if len(recent) > 2 * _ROWS:
                break
        if is_reported(recent[::-1]):
            step = int(trainer.state.window["highest_loss_step"].numpy())
            self._say(
                f"the loss rose to {row['highest_loss']:.4g} at step {step:,}, more than "
                f"{_FACTOR:g} times the highest of the {_ROWS} rows before; see the step with "
                f"{replay_command(trainer.run_dir, step)}"
            )


def is_reported(highest: Sequence[float]) -> bool:
    """Whether the last row stands out, and none of the ten before it does.

    Args:
        highest: the highest loss of an update in each of the last 21 rows or more, or in all of
            them; NaN where it is not known.
    """
    *before, last = range(len(highest))
    return _stands_out(highest, last) and not any(_stands_out(highest, n) for n in before[-_ROWS:])


def _stands_out(highest: Sequence[float], row: int) -> bool:
    """Whether a row has a loss that is higher than three times all in the ten rows before it.

    Single losses vary widely late in a run, so the mean or the median says little about them.
    """
    known = [loss for loss in highest[max(row - _ROWS, 0) : row] if math.isfinite(loss)]
    if row < _ROWS or not known:
        return False
    return math.isfinite(highest[row]) and highest[row] > _FACTOR * max(known)
