"""The learning-rate range test: the loss while the rate rises from step to step.

Smith 2015, "Cyclical Learning Rates for Training Neural Networks", section 3.3, with a rate that
rises exponentially and a smoothed loss, as is common since.
"""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from loops.step import TrainStep

_SMOOTHING = 0.9
# The test ends when the smoothed loss is this many times its lowest value.
_DIVERGED = 4.0
_FIRST_CHECK = 10  # Steps before which it does not end, since the first losses are noisy.


class ExponentialRate(tf.keras.optimizers.schedules.LearningRateSchedule):
    """Rises from `low` to `high` in `steps` steps, by the same factor at each.

    Args:
        low: rate of the first update, positive.
        high: rate of the last update, above `low`.
        steps: number of updates, at least 2.
    """

    def __init__(self, low: float, high: float, steps: int):
        if not 0 < low < high or steps < 2:
            raise ValueError(f"0 < low={low} < high={high} and steps={steps} >= 2 must hold")
        self.low, self.high, self.steps = low, high, steps

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the rate of the update from `step` to `step + 1`, a float32 scalar."""
        exponent = tf.cast(step, tf.float32) / (self.steps - 1)
        return self.low * (self.high / self.low) ** exponent


@dataclasses.dataclass(frozen=True)
class RateRange:
    """The outcome of a range test.

    Attributes:
        rates: float64 [n], the rate of each update.
        losses: float64 [n], the training loss of the batch of each update.
        smoothed: float64 [n], a moving average of `losses`.
        suggested: a peak learning rate; None if the loss did not fall.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggested: float | None


def smooth(losses) -> np.ndarray:
    """The exponential moving average of losses, float64 [n], without the bias of its start.

    Losses that are not finite, those of updates that were not made, are left out; the average is
    NaN before the first finite one.
    """
    average, weight, found = 0.0, 0.0, []
    for loss in losses:
        if math.isfinite(loss):
            average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
            weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        found.append(average / weight if weight else math.nan)
    return np.array(found)


def suggest(rates, smoothed) -> float | None:
    """A tenth of the rate at which the smoothed loss is lowest; None if the loss has not fallen.

    At the lowest point the loss is about to rise; the margin of ten is the usual one.

    Args:
        rates: [n], rising.
        smoothed: [n], the smoothed loss at each rate.
    """
    known = np.flatnonzero(np.isfinite(smoothed))
    if not len(known):
        return None
    lowest = int(np.nanargmin(smoothed))
    if lowest == known[0] or not smoothed[lowest] < 0.95 * smoothed[known[0]]:
        return None
    return float(rates[lowest]) / 10


def range_test(step: TrainStep, iterator, schedule: ExponentialRate) -> RateRange:
    """Makes an update at each rate, until the loss diverges; the state is not usable afterwards.

    Args:
        step: with a state whose optimizer has the schedule.
        iterator: over the training batches.
        schedule: the rates.
    """
    losses, smoothed = [], []
    for _ in range(schedule.steps):
        step.run(iterator, tf.constant(1))
        if step.state.guard["stuck"].numpy():
            break
        losses.append(step.state.window_figures()["loss"])
        step.state.reset_window()
        smoothed = smooth(losses)
        if len(losses) > _FIRST_CHECK and smoothed[-1] > _DIVERGED * np.fmin.reduce(smoothed):
            break
    rates = np.array([float(schedule(number)) for number in range(len(losses))])
    losses = np.array([loss if math.isfinite(loss) else math.nan for loss in losses])
    return RateRange(rates, losses, np.array(smoothed), suggest(rates, smoothed))
