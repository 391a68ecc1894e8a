"""The host's loop around the device's: when to log, evaluate, save and stop.

    outcome = Trainer(step, plan=plan, batches=pipeline, splits=splits, checkpoints=...).run()

Training continues from whatever step the state is at, and gives the same run however often it was
stopped. What happens beside training is done by hooks (see `loops.hook`).
"""

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from loops import recovery
from loops.best import Best
from loops.distributed.workers import Workers, lost_worker
from loops.errors import NonFiniteError
from loops.evaluator import Evaluator, Scores
from loops.hook import Hook
from loops.inputs import EvalInput, TrainInput, iterate
from loops.interrupt import Interrupted, StopRequest
from loops.recorder import Recorder
from loops.records.checkpoints import Checkpoints
from loops.schedule import Plan
from loops.settings import FailurePolicy, Intervals
from loops.step import TrainStep
from loops.stopwatch import Stopwatch

# The device loop returns to the host about once a second, to check for signals and to report
# progress. The number of steps in a call does not change what is computed.
_SECONDS_PER_CALL = 1.0
_INTERVALS, _POLICY = Intervals(), FailurePolicy()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The end of a run.

    Attributes:
        scores: on the test split.
        step: global step of the state that was scored.
        checkpoint: path of its checkpoint.
        is_best: whether that is the best on validation, and not the last.
    """

    scores: Scores
    step: int
    checkpoint: str
    is_best: bool


class Trainer:
    """Trains a state to the end of its plan, and scores it on the test split once.

    Args:
        step: makes the updates; it holds the strategy and the state.
        plan: the length of the run.
        batches: what to train on.
        splits: "test", which is scored at the end, and "val", by which the best state is chosen.
            Without "val" the last state is scored.
        checkpoints: of the state.
        hooks: called in this order.
        intervals: how often to log, evaluate and save.
        policy: what to do on a failure.
        best_metric: "loss" or a key of `loops.metrics.METRICS` (see `loops.best`).
        patience: stop early at an evaluation if the best state is at least as many epochs old;
            0 never stops early.
        workers: the processes that train together; None for a single one.
        variants: of images, for test-time augmentation (see `loops.evaluator`).
        say: prints a message.

    Attributes: see `loops.hook`.
    """

    def __init__(
        self,
        step: TrainStep,
        *,
        plan: Plan,
        batches: TrainInput,
        splits: Mapping[str, EvalInput],
        checkpoints: Checkpoints,
        hooks: Sequence[Hook] = (),
        intervals: Intervals = _INTERVALS,
        policy: FailurePolicy = _POLICY,
        best_metric: str = "top_1_accuracy",
        patience: float = 0.0,
        workers: Workers | None = None,
        variants: Callable[[tf.Tensor], Sequence[tf.Tensor]] = lambda images: [images],
        say: Callable[[str], None] = print,
    ):
        self.state = step.state
        self.plan = plan
        self.run_dir = checkpoints.run_dir
        self.workers = workers or Workers(step.strategy)
        self.activity = "starting"
        self.train_step = step
        self.batches = batches
        self._val, self._test = splits.get("val"), splits["test"]
        self._checkpoints = checkpoints
        self._recorder = Recorder(self, hooks, policy, say)
        self._intervals = intervals
        self._policy = policy
        self.best = Best(self.state.progress, best_metric)
        self._patience = patience
        self._say = say
        loss = step.settings.loss
        prepare = self._test.prepare
        self._evaluator = Evaluator(
            step.strategy, self.state.eval_net, loss, prepare=prepare, variants=variants
        )
        self._stop = StopRequest()
        self._scoring_test = False
        self._traced = False
        self._stopwatch = Stopwatch(plan.global_batch_size)

    @property
    def step(self) -> int:
        """The global step."""
        return self.state.step

    @property
    def evaluated_step(self) -> int:
        """The last step whose validation scores the state includes; -1 for none."""
        return int(self.state.progress["evaluated_step"].numpy())

    @property
    def timings(self) -> dict[str, float]:
        """Measured since the last row of training metrics (see `loops.hook`); empty if unknown."""
        return self._stopwatch.timings

    @property
    def seconds_left(self) -> float:
        """Estimated time to the end of the run in seconds; NaN before any step was timed."""
        if self._scoring_test:  # The step is that of the best state.
            return 0.0
        step, plan = self.step, self.plan
        epochs = math.floor(plan.epochs) - math.floor(plan.epoch(step))
        evaluations = 0 if self._val is None else max(epochs, 0) / self._intervals.eval_epochs
        # An update takes about as long as it has pixels.
        pixels = self.train_step.settings.pixels
        steps = pixels(step, plan.total_steps) / pixels(max(step - 1, 0), max(step, 1))
        return self._stopwatch.seconds_left(steps, evaluations)

    def learning_rate(self, step: int) -> float:
        """The learning rate of the update from `step` to `step + 1`."""
        return float(self.train_step.learning_rate(step))

    def run(self) -> Outcome:
        """Trains to the end.

        Raises:
            Interrupted: a signal came; the state is saved.
            NonFiniteError: a loss, a gradient or a weight is not finite, and the policy says stop.
            RunError: something cannot be written, or cannot be read back.
        """
        with self._stop:
            self._recorder.call("on_start")
            # From here on, a directory without a checkpoint is one that has lost them.
            self._recorder.save(self._checkpoints.save_last)
            if self.step >= self.plan.total_steps:
                self._finish_epoch()
            while self.step < self.plan.total_steps and not self._is_out_of_patience():
                try:
                    self._train()
                except NonFiniteError as error:
                    if self._policy.on_nan != "restore":
                        raise recovery.with_advice(error, self._checkpoints) from error
                    self._go_back(error)
            return self._score_test()

    def _train(self) -> None:
        """Trains from the step of the state to the end of the plan, or until patience ends."""
        self._finish_epoch()
        if self._is_out_of_patience():
            return
        step, total, log_steps = self.step, self.plan.total_steps, self._intervals.log_steps
        left_out = int(self.state.guard["batches_left_out"].numpy())
        dataset = self.batches.batches(step + left_out)
        strategy = self.train_step.strategy
        iterator = iterate(strategy, dataset)
        last_save = time.monotonic()
        while step < total:
            steps, save_is_due = self._agree(last_save)
            if save_is_due:
                self._recorder.save(self._checkpoints.save_last)
                last_save = time.monotonic()
            epoch_end = self.plan.next_epoch_end(step)
            log_step = min(epoch_end, (step // log_steps + 1) * log_steps)
            hook_step = self._recorder.next_step(step)
            boundary = log_step if hook_step is None else min(log_step, hook_step)
            step = self._advance(iterator, step, min(steps, boundary - step))
            if step == hook_step:
                self._recorder.call_step(step)
            if step == log_step:
                self._log_window(step)
            if step == epoch_end:
                self._end_epoch(step)
                last_save = time.monotonic()
                if self._is_out_of_patience():
                    return
            self._recorder.call("on_progress")

    def _is_out_of_patience(self) -> bool:
        """Whether the state has just been evaluated, and the best state is too old."""
        step = self.step
        if not self._patience or self._val is None or self.evaluated_step != step:
            return False
        return self.best.step >= 0 and self._age(step) >= self._patience

    def is_last(self, row: dict) -> bool:
        """Whether training ends with an evaluation on val, whose row this is."""
        if row["step"] >= self.plan.total_steps:
            return True
        if not self._patience or self.best.step < 0 or self.best.is_beaten_by(row):
            return False
        return self._age(row["step"]) >= self._patience

    def _age(self, step: int) -> float:
        """Epochs from the best state to a step, both at the end of an epoch."""
        return self.plan.whole_epochs(step) - self.plan.whole_epochs(self.best.step)

    def _agree(self, last_save: float) -> tuple[int, bool]:
        """The steps of the next call of the device loop, and whether to save before it.

        The chief decides, since clocks differ.

        Raises:
            Interrupted: a worker got a signal.
        """
        self._stop_if_asked()
        steps = self._stopwatch.steps_in(_SECONDS_PER_CALL)
        due = time.monotonic() - last_save > 60 * self._intervals.save_minutes
        chief = self.workers.is_chief
        steps, due = self.workers.total([steps * chief, due * chief])
        return int(steps), bool(due)

    def _stop_if_asked(self) -> None:
        came = self._stop.signal_number
        numbers = (signal.SIGTERM, signal.SIGINT)
        totals = self.workers.total([came == number for number in numbers])
        asked = [number for number, total in zip(numbers, totals, strict=True) if total]
        if not asked:
            return
        # While the test split is scored the state is the best one, and the last is saved.
        if not self._scoring_test:
            self._recorder.save(self._checkpoints.save_last)
        self.workers.barrier()
        raise Interrupted(asked[0], self._checkpoints.safe_step)

    def _advance(self, iterator, step: int, num_steps: int) -> int:
        """Makes steps, and returns the global step after them."""
        if not self._traced:
            self.activity = "tracing the training step"
            self._recorder.call("on_progress")
        started = time.monotonic()
        try:
            self.train_step.run(iterator, tf.constant(num_steps))
        except tf.errors.OpError as error:
            fault = None if lost_worker(error) else self._find_fault(step + num_steps)
            if fault is None:
                raise
            raise fault from error
        after, seconds = self.step, time.monotonic() - started
        self.activity = "training"
        if self.state.guard["stuck"].numpy():
            skips = self._policy.on_nan == "skip"
            raise recovery.update_error(self.state, self.learning_rate, skips=skips)
        if after != step + num_steps:
            raise RuntimeError(f"{num_steps} steps led from step {step} to {after}")
        waited = self.train_step.seconds_waited()
        if self._traced:  # The first call also traces, so its time says nothing.
            self._stopwatch.add_steps(num_steps, seconds, waited)
        self._traced = True
        return after

    def _find_fault(self, stop_step: int) -> Exception | None:
        """The reason why the batch of a step from the state's to `stop_step` cannot be made."""
        # When a call of the device loop fails, its last update may not be counted yet.
        left_out = int(self.state.guard["batches_left_out"].numpy())
        faults = (self.batches.find_fault(n + left_out) for n in range(self.step, stop_step))
        return next((fault for fault in faults if fault is not None), None)

    def _go_back(self, error: NonFiniteError) -> None:
        """Continues from the last checkpoint, without the batches up to the failing update."""
        message = recovery.go_back(self.state, self._checkpoints, error)
        self._recorder.call("on_start")
        self._say(message)
        # So that a restart does not begin to count again.
        self._recorder.save(self._checkpoints.save_last)

    def _log_window(self, step: int) -> None:
        """Logs the figures since the last row, and begins a new window."""
        figures = self.state.window_figures()
        # The rate of the last update, which started from the step before.
        figures["learning_rate"] = self.learning_rate(step - 1)
        figures["weight_norm"] = self.state.weight_norm()
        if self._policy.on_nan == "skip":
            figures["skipped_updates"] = int(self.state.guard["skipped"].numpy())
        self._recorder.call("on_log", self._row("train", step, figures))
        self._stopwatch.reset()
        self.state.reset_window()

    def _row(self, split: str, step: int, figures: dict) -> dict:
        return {"split": split, "step": step, "epoch": round(self.plan.epoch(step), 4), **figures}

    def _evaluation_is_due(self, step: int) -> bool:
        if self._val is None or self.evaluated_step == step:
            return False
        return self.plan.is_epoch_end(step, self._intervals.eval_epochs)

    def _finish_epoch(self) -> None:
        """Does what is missing where a run was stopped just at the end of an epoch."""
        step = self.step
        if self._evaluation_is_due(step):
            self._end_epoch(step)
        elif self._val is not None and self.best.step == step:
            has_best = self.workers.is_chief and self._checkpoints.has_best()
            if not self.workers.broadcast_from_chief(has_best):
                self._recorder.save(self._checkpoints.save_best)

    def _end_epoch(self, step: int) -> None:
        """Evaluates if it is due, saves, and keeps the best.

        The last state is saved before the best one. It then includes that it is the best, so that a
        missing best checkpoint can be written later.
        """
        before = None
        if self._evaluation_is_due(step):
            scores = self._evaluate("val", self._val)
            self.activity = "training"
            self.state.progress["evaluated_step"].assign(step)
            before = self._take_if_best(step, scores)
        self._recorder.save(self._checkpoints.save_last)
        if before is not None and not self._recorder.save(self._checkpoints.save_best):
            self.best.restore(before)  # It is still the one on disk.
        self._recorder.call("on_epoch")

    def _take_if_best(self, step: int, scores: Scores) -> dict | None:
        """Records scores that are the best; returns the previous best, or None if it stays."""
        if not self.workers.broadcast_from_chief(self.best.is_beaten_by(scores.figures)):
            return None
        return self.best.replace(step, scores.figures)

    def _evaluate(self, name: str, split: EvalInput) -> Scores:
        self.activity = f"evaluating on the {name} split"
        self._recorder.call("on_progress")
        started = time.monotonic()
        scores = self._evaluator.scores(split, after_batch=self._stop_if_asked)
        self._stopwatch.add_evaluation(time.monotonic() - started)
        self._recorder.call("on_evaluate", self._row(name, self.step, dict(scores.figures)), scores)
        return scores

    def _score_test(self) -> Outcome:
        if self.step < self.plan.total_steps:
            self._say(
                f"stopped early at step {self.step:,}: no improvement on val for "
                f"{self._age(self.step):g} epochs"
            )
        # A run is not finished while a part of it is not on disk.
        self._recorder.flush()
        self._checkpoints.save_last()
        self._scoring_test = True
        has_best = self._val is not None and self.best.step >= 0
        checkpoint = self._checkpoints.path_of(self.step, best=False)
        if has_best:
            checkpoint = self._checkpoints.restore_best()
        elif self._val is not None:
            self._say("no best checkpoint could be saved; scoring the last")
        step = self.step
        outcome = Outcome(self._evaluate("test", self._test), step, checkpoint, has_best)
        self._recorder.flush()
        self._recorder.call("on_end", outcome)
        return outcome
