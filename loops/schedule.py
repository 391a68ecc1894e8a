"""The length of a run in steps and epochs, and its learning rate at each step.

    plan = Plan(epochs=30, train_examples=45_000, global_batch_size=128)
    rate = LearningRate("cosine", peak=0.2, total_steps=plan.total_steps, warmup_steps=352)

To add a schedule, write a function from a `Moment` to a factor and add it to `SCHEDULES`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from loops.tracing import with_autograph


@dataclasses.dataclass(frozen=True)
class Plan:
    """Converts epochs to steps. Epochs follow each other without a gap and may end inside a batch.

    Attributes:
        epochs: length of the run; may be fractional.
        train_examples: examples in an epoch.
        global_batch_size: examples in a step.
    """

    epochs: float
    train_examples: int
    global_batch_size: int

    def steps(self, epochs: float) -> int:
        """The number of steps after which `epochs` epochs have been completed."""
        # Rounding keeps a product that is whole but for its last bit from gaining a step.
        return math.ceil(round(epochs * self.train_examples / self.global_batch_size, 6))

    def epoch(self, step: int) -> float:
        """Epochs completed after `step` steps, as a fraction."""
        return step * self.global_batch_size / self.train_examples

    def whole_epochs(self, step: int) -> float:
        """Whole epochs completed after `step` steps; `epochs` at the end of the run."""
        return self.epochs if step == self.total_steps else min(self._whole(step), self.epochs)

    def _whole(self, step: int) -> int:
        # In integers, since a long epoch's last step is within a rounding error of the next epoch.
        return step * self.global_batch_size // self.train_examples

    @property
    def total_steps(self) -> int:
        """The length of the run in steps, at least 1."""
        return max(self.steps(self.epochs), 1)

    def is_epoch_end(self, step: int, every: int = 1) -> bool:
        """Whether an `every`-th epoch, or the run, ends after `step` steps."""
        epoch = self._whole(step) // every * every
        ends = epoch > 0 and epoch <= self.epochs and self.steps(epoch) == step
        return ends or step == self.total_steps

    def next_epoch_end(self, step: int) -> int:
        """The first step after `step` at which an epoch or the run ends."""
        return min(self.steps(self._whole(step) + 1), self.total_steps)

    def epoch_start(self, step: int) -> int:
        """The step at which the epoch that ends at `step` began."""
        return self.steps(self._whole(max(step - 1, 0)))


class Moment(NamedTuple):
    """What a schedule is computed from.

    Attributes:
        step: float32 scalar, the global step.
        fraction: float32 scalar in [0, 1], the part of the run after the warm-up that is over.
        boundaries: global steps at which the rate drops, for "step".
        factor: what it is multiplied by there.
        warmup_steps: length of the warm-up, during which the schedule is multiplied by a line from
            0 to 1; 0 for none.
    """

    step: tf.Tensor
    fraction: tf.Tensor
    boundaries: tuple[int, ...]
    factor: float
    warmup_steps: int


def constant(moment: Moment) -> tf.Tensor:
    """Stays at the peak."""
    del moment
    return tf.constant(1.0)


def step_decay(moment: Moment) -> tf.Tensor:
    """Is multiplied by `factor` at each boundary."""
    passed = moment.step >= [float(boundary) for boundary in moment.boundaries]
    return moment.factor ** tf.reduce_sum(tf.cast(passed, tf.float32))


def cosine(moment: Moment) -> tf.Tensor:
    """Falls to 0 along half a cosine (Loshchilov & Hutter 2016, eq. 5, without restarts)."""
    return 0.5 * (1 + tf.cos(math.pi * moment.fraction))


def linear(moment: Moment) -> tf.Tensor:
    """Falls to 0 linearly. With its warm-up, the triangle of Smith & Topin 2017."""
    return 1 - moment.fraction


SCHEDULES: dict[str, Callable[[Moment], tf.Tensor]] = {
    "constant": constant,
    "step": step_decay,
    "cosine": cosine,
    "one_cycle": linear,
}


class LearningRate(tf.keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate as a function of the global step: linear warm-up, then a schedule.

    Args:
        name: a key of `SCHEDULES`.
        peak: highest rate, reached at the end of the warm-up.
        total_steps: length of the run.
        warmup_steps: length of the warm-up, shorter than the run. The first of n warm-up updates
            uses 1/n of the peak.
        boundaries: global steps, for "step".
        factor: for "step".

    Raises:
        ValueError: the name is unknown or the warm-up is too long.
    """

    def __init__(
        self,
        name: str,
        *,
        peak: float,
        total_steps: int,
        warmup_steps: int = 0,
        boundaries: tuple[int, ...] = (),
        factor: float = 0.1,
    ):
        if name not in SCHEDULES:
            raise ValueError(f"unknown schedule {name!r}; known schedules: {', '.join(SCHEDULES)}")
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(f"warmup_steps={warmup_steps} must be in [0, {total_steps})")
        self._decay = with_autograph(SCHEDULES[name])
        self.peak = peak
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.boundaries = boundaries
        self.factor = factor

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the rate of the update from `step` (from 0) to `step + 1`, a float32 scalar."""
        step = tf.cast(step, tf.float32)
        warmed_up = tf.minimum((step + 1) / max(self.warmup_steps, 1), 1.0)
        fraction = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        fraction = tf.clip_by_value(fraction, 0.0, 1.0)
        moment = Moment(step, fraction, self.boundaries, self.factor, self.warmup_steps)
        return self.peak * warmed_up * self._decay(moment)
