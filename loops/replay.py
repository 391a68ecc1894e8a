"""Makes the updates of a run again, as its trainer made them, and measures one of them.

    replay = Replay(train_step, plan=plan, batches=batches, log_steps=50)
    replay.advance(1233)
    update = replay.update()    # That of step 1234.
    figures = replay.finish_window()

Nothing is written.
"""

import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from loops import recovery
from loops.errors import NonFiniteError
from loops.inputs import TrainInput, iterate
from loops.schedule import Plan
from loops.step import TrainStep
from loops.stopwatch import Stopwatch
from loops.variables import named_variables

# As in a trainer, so that progress can be shown.
_SECONDS_PER_CALL = 1.0


@dataclasses.dataclass(frozen=True)
class Norms:
    """Euclidean norms of some weights, before an update, and what it did to them.

    Attributes:
        gradient: of the gradient, before clipping.
        weights: of the weights.
        update: of the change of the weights; 0 if the update was not made.
        nonfinite: number of elements of the gradient that are not finite.
    """

    gradient: float
    weights: float
    update: float
    nonfinite: int

    @property
    def ratio(self) -> float:
        """The size of the update relative to the weights; NaN if they are 0."""
        return self.update / self.weights if self.weights else math.nan


@dataclasses.dataclass(frozen=True)
class Update:
    """An update, looked at closely.

    Attributes:
        step: the global step that it led to.
        learning_rate: of the update.
        made: whether it was made; it is not if the loss or the gradient is not finite.
        loss: mean over the batch, as it enters the rows of training metrics.
        losses: float32 [global_batch_size], by row of the batch.
        predicted: int64 [global_batch_size], the class with the highest logit; -1 for NaN.
        stages: norms by stage, in the order of the net's weights.
        total: those of all trainable weights.
    """

    step: int
    learning_rate: float
    made: bool
    loss: float
    losses: np.ndarray
    predicted: np.ndarray
    stages: dict[str, Norms]
    total: Norms


def window_end(plan: Plan, log_steps: int, step: int) -> int:
    """The first step after `step` at which a row of training metrics is logged."""
    return min(plan.next_epoch_end(step), (step // log_steps + 1) * log_steps)


class Replay:
    """Makes the updates of a run again, from whatever step the state is at.

    Args:
        step: makes the updates; it holds the strategy and the state.
        plan: the length of the run.
        batches: what it is trained on.
        log_steps: steps between rows of training metrics.
        on_progress: called with the global step, about once a second.
    """

    def __init__(
        self,
        step: TrainStep,
        *,
        plan: Plan,
        batches: TrainInput,
        log_steps: int,
        on_progress: Callable[[int], None] = lambda step: None,
    ):
        self.state = step.state
        self._step = step
        self._plan = plan
        self._batches = batches
        self._log_steps = log_steps
        self._on_progress = on_progress
        self._stopwatch = Stopwatch(plan.global_batch_size)

    def advance(self, target: int) -> None:
        """Makes the updates up to a global step.

        Raises:
            NonFiniteError: one of them cannot be made, and the run does not skip it.
            Exception: a batch cannot be made; it is what `batches.find_fault` returns.
        """
        start = self.state.step
        if start < target:
            self._guarded(lambda: self._advance(start, target), target)

    def _advance(self, step: int, target: int) -> None:
        iterator = iterate(self._step.strategy, self._dataset(step, target))
        while step < target:
            self._on_progress(step)
            end = window_end(self._plan, self._log_steps, step)
            if step and window_end(self._plan, self._log_steps, step - 1) == step:
                self.state.reset_window()  # The trainer has logged a row.
            count = min(self._stopwatch.steps_in(_SECONDS_PER_CALL), end - step, target - step)
            started = time.monotonic()
            self._step.run(iterator, tf.constant(count))
            if self.state.guard["stuck"].numpy():
                skips = self._step.settings.on_nan == "skip"
                raise recovery.update_error(self.state, self.learning_rate, skips=skips)
            self._stopwatch.add_steps(count, time.monotonic() - started)
            step = self.state.step

    def _dataset(self, start: int, stop: int) -> tf.data.Dataset:
        left_out = int(self.state.guard["batches_left_out"].numpy())
        return self._batches.batches(start + left_out, stop + left_out)

    def _guarded(self, call: Callable, target: int):
        """Calls a function that makes updates up to a step; names a batch that cannot be made."""
        try:
            return call()
        except tf.errors.OpError as error:
            left_out = int(self.state.guard["batches_left_out"].numpy())
            numbers = range(self.state.step + left_out, target + left_out)
            faults = map(self._batches.find_fault, numbers)
            fault = next((fault for fault in faults if fault is not None), None)
            if fault is None:
                raise
            raise fault from error

    def learning_rate(self, step: int) -> float:
        """The learning rate of the update from `step` to `step + 1`."""
        return float(self._step.learning_rate(step))

    def update(self) -> Update:
        """Makes the next update, if it is finite, and measures it; raises as `advance`."""
        step = self.state.step
        return self._guarded(lambda: self._update(step), step + 1)

    def _update(self, step: int) -> Update:
        strategy, weights = self._step.strategy, self.state.net.trainable_variables
        (batch,) = iterate(strategy, self._dataset(step, step + 1))
        inspected = self._step.inspect(batch)
        before = [v.numpy() for v in weights]
        try:
            self.advance(step + 1)
        except NonFiniteError:
            made = False
        else:
            made = bool(np.isfinite(inspected.loss) and np.isfinite(inspected.norm))
        changes = [v.numpy() - old for v, old in zip(weights, before, strict=True)]
        arrays = list(zip([g.numpy() for g in inspected.gradients], before, changes, strict=True))
        logits = inspected.logits.numpy()
        known = ~np.isnan(logits).any(axis=1)
        return Update(
            step=step + 1,
            learning_rate=self.learning_rate(step),
            made=made,
            loss=float(inspected.loss),
            losses=inspected.losses.numpy(),
            predicted=np.where(known, logits.argmax(axis=1), -1),
            stages={name: _norms(arrays, places) for name, places in _by_stage(self.state.net)},
            # The norm as it was logged.
            total=dataclasses.replace(_norms(arrays), gradient=float(inspected.norm)),
        )

    def finish_window(self) -> dict[str, float] | None:
        """Makes the updates up to the next row, and returns its figures as the trainer logs them.

        Call it after `update`. None if training stops at that update. Raises as `advance`.
        """
        if self.state.guard["stuck"].numpy():
            return None
        end = window_end(self._plan, self._log_steps, self.state.step - 1)
        self.advance(end)
        figures = self.state.window_figures()
        figures["learning_rate"] = self.learning_rate(end - 1)
        figures["weight_norm"] = self.state.weight_norm()
        return figures


def _by_stage(net) -> list[tuple[str, list[int]]]:
    """The places of each stage's variables in `net.trainable_variables`.

    A stage is a layer that is an attribute of the net.
    """
    paths = {id(variable): path for path, variable in named_variables(net).items()}
    stages: dict[str, list[int]] = {}
    for place, variable in enumerate(net.trainable_variables):
        stages.setdefault(paths[id(variable)].partition("/")[0], []).append(place)
    return list(stages.items())


def _norms(arrays: list[tuple[np.ndarray, ...]], places: list[int] | None = None) -> Norms:
    """The norms of some variables, of which gradients, weights and changes are given."""
    chosen = arrays if places is None else [arrays[place] for place in places]
    gradients, weights, changes = zip(*chosen, strict=True)
    nonfinite = sum(int(np.count_nonzero(~np.isfinite(g))) for g in gradients)
    return Norms(_norm(gradients), _norm(weights), _norm(changes), nonfinite)


def _norm(arrays) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return math.sqrt(sum(float(np.sum(np.square(a, dtype=np.float64))) for a in arrays))
