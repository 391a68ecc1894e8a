"""What a person is told while a net trains: a line for each epoch, a status in between."""

import math

from loops.evaluate import Scores
from loops.logs import MetricsLog, Terminal, bar, duration
from loops.schedule import Plan


class Progress:
    """Tells how far a run is, and how long it will take.

    Args:
        plan: of the run.
        log: whose rows are told.
        terminal: where to.
        eval_epochs: epochs between evaluations.
    """

    def __init__(self, plan: Plan, log: MetricsLog, terminal: Terminal, eval_epochs: int):
        self._plan = plan
        self._log = log
        self._terminal = terminal
        self._eval_epochs = eval_epochs
        self.seconds_per_step = math.nan
        self.seconds_per_eval = 0.0
        self.images_per_second = None
        self._seconds, self._steps = 0.0, 0

    def time_steps(self, steps: int, seconds: float) -> None:
        """Takes note of how long some steps took."""
        self.seconds_per_step = seconds / steps
        self._seconds += seconds
        self._steps += steps

    def take_timings(self) -> dict[str, float]:
        """Speed since it was asked last; empty where no step was timed."""
        if not self._steps:
            return {}
        rate = self._steps * self._plan.global_batch_size / self._seconds
        self.images_per_second = rate
        self._seconds, self._steps = 0.0, 0
        return {"images_per_second": round(rate, 1)}

    def epoch(self, step: int, scores: Scores | None) -> None:
        """An epoch in a line: means over the epoch's rows for training, scores for validation."""
        ends = self._plan.epoch_ends()
        before = max((end for end in ends if end < step), default=0)
        rows = [r for r in self._log.rows if r["split"] == "train" and before < r["step"] <= step]
        starts = [before, *(row["step"] for row in rows)]
        weighted = [
            (row["step"] - start, row)
            for row, start in zip(rows, starts, strict=False)
            if _has_figures(row)
        ]

        def mean(name):
            return sum(w * r[name] for w, r in weighted) / sum(w for w, _ in weighted)

        text = f"epoch {self._plan.whole_epochs(step):g}/{self._plan.epochs:g}  step {step:,}"
        if weighted:
            text += f"  train loss {mean('loss'):.4f} top-1 {mean('top_1_accuracy'):.2%}"
        if scores is not None:
            text += f"  val loss {scores.loss:.4f} top-1 {scores.top_1_accuracy:.2%}"
        if self.images_per_second is not None:
            text += f"  {self.images_per_second:,.0f} images/s"
        self._terminal.line(text + self._time_left(step))

    def step(self, step: int) -> None:
        """A status: a bar, the last figures, the time that is left."""
        total = self._plan.total_steps
        last = next((r for r in reversed(self._log.rows) if r["split"] == "train"), None)
        figures = ""
        if last and _has_figures(last):
            figures = f"  loss {last['loss']:.4f} top-1 {last['top_1_accuracy']:.2%}"
        # The last batch of a run may go a little beyond its length.
        epoch = min(self._plan.epoch(step), self._plan.epochs)
        self._terminal.status(
            f"epoch {epoch:.1f}/{self._plan.epochs:g} {bar(step / total)} step {step:,}/{total:,}"
            f"{figures}{self._time_left(step)}"
        )

    def _time_left(self, step: int) -> str:
        left = self._plan.total_steps - step
        if math.isnan(self.seconds_per_step) or not left:
            return ""
        evaluations = sum(end > step for end in self._plan.epoch_ends()) / self._eval_epochs
        seconds = left * self.seconds_per_step + evaluations * self.seconds_per_eval
        return f"  {duration(seconds)} left"


def _has_figures(row: dict) -> bool:
    """Whether there is something to tell of a row; where every update was dropped there is not."""
    figures = (row.get("loss"), row.get("top_1_accuracy"))
    return all(isinstance(value, float) and math.isfinite(value) for value in figures)
