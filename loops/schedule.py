"""How long a run is, and its learning rate at each step."""

import dataclasses
import math

import tensorflow as tf

SCHEDULES = ("constant", "step", "cosine", "one_cycle")


@dataclasses.dataclass(frozen=True)
class Plan:
    """From epochs to steps. Epochs follow each other without a gap, so they can end inside a batch.

    Attributes:
        epochs: length of the run; a fraction is allowed.
        train_examples: examples in an epoch.
        global_batch_size: examples in a step.
    """

    epochs: float
    train_examples: int
    global_batch_size: int

    def steps(self, epochs: float) -> int:
        """Steps until so many epochs have been seen whole."""
        # Rounding first keeps a product that is whole but for its last bit from gaining a step.
        return math.ceil(round(epochs * self.train_examples / self.global_batch_size, 6))

    def epoch(self, step: int) -> float:
        """Epochs seen after `step` steps."""
        return step * self.global_batch_size / self.train_examples

    def whole_epochs(self, step: int) -> float:
        """Whole epochs seen after `step` steps; at the end of the run, its length."""
        seen = math.floor(round(self.epoch(step), 6))
        return self.epochs if step == self.total_steps else min(seen, self.epochs)

    @property
    def total_steps(self) -> int:
        return max(self.steps(self.epochs), 1)

    def epoch_ends(self, every: int = 1) -> list[int]:
        """The steps after which an epoch, each `every`-th one, or the run, ends."""
        whole = {self.steps(e) for e in range(every, math.floor(self.epochs) + 1, every)}
        return sorted(whole | {self.total_steps})


class LearningRate(tf.keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate as a function of the global step.

    It warms up from 0 in a straight line to `peak`, and goes on from there:

    - constant: stays.
    - step: is multiplied by `factor` at each of `boundaries`.
    - cosine: falls to 0 along half a cosine (Loshchilov & Hutter 2016, eq. 5, without restarts).
    - one_cycle: falls to 0 in a straight line. With its warm-up, the triangle of Smith & Topin
      2017.

    Args:
        kind: one of `SCHEDULES`.
        peak: highest rate.
        total_steps: length of the run.
        warmup_steps: length of the warm-up, shorter than the run.
        boundaries: global steps, for "step".
        factor: for "step".

    Raises:
        ValueError: the kind is unknown or the warm-up too long.
    """

    def __init__(
        self,
        kind: str,
        *,
        peak: float,
        total_steps: int,
        warmup_steps: int = 0,
        boundaries: tuple[int, ...] = (),
        factor: float = 0.1,
    ):
        if kind not in SCHEDULES:
            raise ValueError(f"unknown schedule {kind!r}; known: {', '.join(SCHEDULES)}")
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(f"warmup_steps={warmup_steps} must be in [0, {total_steps})")
        self.kind = kind
        self.peak = peak
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.boundaries = boundaries
        self.factor = factor

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """float32 scalar, the rate of the update that makes step `step` (from 0) into the next."""
        step = tf.cast(step, tf.float32)
        # The first of n warm-up updates has 1/n of the peak, not 0, which would waste it.
        warmed = tf.minimum((step + 1) / max(self.warmup_steps, 1), 1.0)
        after = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        after = tf.clip_by_value(after, 0.0, 1.0)
        if self.kind == "cosine":
            decayed = 0.5 * (1 + tf.cos(math.pi * after))
        elif self.kind == "one_cycle":
            decayed = 1 - after
        elif self.kind == "step":
            passed = tf.reduce_sum(tf.cast(step >= list(map(float, self.boundaries)), tf.float32))
            decayed = self.factor**passed
        else:
            decayed = 1.0
        return self.peak * warmed * decayed
