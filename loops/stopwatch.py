"""Measures the speed of training, and estimates how long the rest of a run takes."""

import math


class Stopwatch:
    """The times that steps and evaluations have taken.

    Args:
        global_batch_size: examples in a step.
    """

    def __init__(self, global_batch_size: int):
        self._global_batch_size = global_batch_size
        self._seconds_per_step, self._seconds_per_eval = math.nan, 0.0
        self.reset()

    def add_steps(self, num_steps: int, seconds: float, waited: float = 0.0) -> None:
        """Adds the time that some steps took together, and how much of it was waiting for data."""
        self._seconds_per_step = seconds / num_steps
        self._seconds += seconds
        self._waited += waited
        self._steps += num_steps

    def add_evaluation(self, seconds: float) -> None:
        """Adds the time that an evaluation took."""
        self._seconds_per_eval = seconds

    @property
    def timings(self) -> dict[str, float]:
        """Measured since `reset`; empty if no step was timed.

        `images_per_second` and, if known, `waiting_for_data`, a share of the time in [0, 1].
        """
        if not self._steps:
            return {}
        images = self._steps * self._global_batch_size
        timings = {"images_per_second": round(images / self._seconds, 1)}
        if not math.isnan(self._waited):
            timings["waiting_for_data"] = round(min(self._waited / self._seconds, 1.0), 4)
        return timings

    def reset(self) -> None:
        """Starts to measure `timings` again."""
        self._seconds, self._waited, self._steps = 0.0, 0.0, 0

    def steps_in(self, seconds: float) -> int:
        """The number of steps that take about `seconds`; 1 before any step was timed."""
        if math.isnan(self._seconds_per_step):
            return 1
        return max(1, int(seconds / self._seconds_per_step))

    def seconds_left(self, steps: float, evaluations: float) -> float:
        """The estimated time of steps like the last and of evaluations; NaN before any step."""
        return steps * self._seconds_per_step + evaluations * self._seconds_per_eval
