"""The host's loop around the device's: when to log, evaluate, save and stop.

    outcome = Trainer(...).run()

It goes on from wherever the state is, and gives the same run however often it was stopped.
"""

import dataclasses
import math
import signal
import time
from collections.abc import Callable

import tensorflow as tf

from loops.checkpoints import Checkpoints
from loops.cluster import Workers
from loops.errors import NumbersError, RunError, SaveError
from loops.evaluate import Evaluator, Scores
from loops.interrupt import Interrupted, StopRequest
from loops.logs import MetricsLog, Terminal
from loops.progress import Progress
from loops.schedule import LearningRate, Plan
from loops.state import TrainState
from loops.step import TrainStep

# The device loop is left about once a second, to look for a signal and tell the progress. How many
# steps that is does not change what is computed.
_SECONDS_PER_CALL = 1.0
# How often a run goes back to a checkpoint because of numbers that are not finite.
MOST_RESTORES = 3


@dataclasses.dataclass(frozen=True)
class Split:
    """A split to evaluate on.

    Attributes:
        name: "val" or "test".
        dataset: as `loops.evaluate.Evaluator` takes it.
        examples: size of the split.
    """

    name: str
    dataset: tf.data.Dataset
    examples: int


@dataclasses.dataclass(frozen=True)
class Rhythm:
    """How often things happen.

    Attributes:
        log_steps: steps between rows of training metrics.
        eval_epochs: epochs between evaluations on the validation split.
        save_minutes: minutes between saves within an epoch; at an epoch's end there is always one.
    """

    log_steps: int = 50
    eval_epochs: int = 1
    save_minutes: float = 10.0


@dataclasses.dataclass(frozen=True)
class Faults:
    """What to do where something goes wrong.

    Attributes:
        on_nan: "stop"; "skip" the update; or "restore" the last checkpoint, and leave out the
            batches from there to where the numbers went wrong. `StepSettings.on_nan` is the same.
        on_save_error: "stop", or "continue" and try again at the next occasion.
    """

    on_nan: str = "stop"
    on_save_error: str = "stop"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        scores: on the test split.
        step: global step of the state that was scored.
        is_best: whether that is the best on validation, and not simply the last.
    """

    scores: Scores
    step: int
    is_best: bool


class Trainer:
    """Trains a state to the end of its plan, and scores it on the test split once.

    Args:
        strategy: whose replicas train.
        state: fresh or restored.
        step: makes the updates.
        plan: how long.
        learning_rate: rate at each global step, for the log.
        train_batches: makes the dataset of batches from a global step on, with so many batches left
            out before.
        val: split on which the best state is chosen; None to have the last one as the best.
        test: split that is scored at the end.
        checkpoints: of the state.
        log: of the run.
        terminal: where a person reads.
        rhythm: how often.
        faults: what to do where something goes wrong.
        workers: the machines that train together; None for a single one.
    """

    def __init__(
        self,
        *,
        strategy: tf.distribute.Strategy,
        state: TrainState,
        step: TrainStep,
        plan: Plan,
        learning_rate: LearningRate,
        train_batches: Callable[[int, int], tf.data.Dataset],
        val: Split | None,
        test: Split,
        checkpoints: Checkpoints,
        log: MetricsLog,
        terminal: Terminal,
        rhythm: Rhythm,
        faults: Faults = Faults(),
        workers: Workers | None = None,
    ):
        self._strategy = strategy
        self._state = state
        self._step = step
        self._plan = plan
        self._learning_rate = learning_rate
        self._train_batches = train_batches
        self._val = val
        self._test = test
        self._checkpoints = checkpoints
        self._log = log
        self._terminal = terminal
        self._rhythm = rhythm
        self._faults = faults
        self._workers = workers or Workers(strategy)
        self._progress = Progress(plan, log, terminal, rhythm.eval_epochs)
        self._evaluator = Evaluator(strategy, state.eval_net)
        self._stop = StopRequest()
        self._scoring_test = False
        self._traced = False

    def run(self) -> Outcome:
        """Trains to the end.

        Raises:
            Interrupted: a signal came; the state is saved.
            NumbersError: a loss, a gradient or a weight is not finite, and nothing helped.
            RunError: something cannot be written, or not be read back.
        """
        with self._stop:
            # From here on, a directory without a checkpoint is a directory that has lost them.
            self._save(self._checkpoints.save_last)
            if self._state.step >= self._plan.total_steps:
                self._finish_epoch()
            while self._state.step < self._plan.total_steps:
                try:
                    self._train()
                except NumbersError as error:
                    if self._faults.on_nan != "restore":
                        raise NumbersError(f"{error}; {self._advice()}") from error
                    self._go_back(error)
            return self._score_test()

    def _score_test(self) -> Outcome:
        # A run is not finished while something of it is not on the disk.
        self._log.flush()
        self._checkpoints.save_last()
        self._scoring_test = True
        has_best = self._val is not None and int(self._state.progress["best_step"].numpy()) >= 0
        if has_best:
            self._checkpoints.restore_best()
        elif self._val is not None:
            self._terminal.line("no best state could be saved; the last one is scored")
        step = self._state.step
        self._terminal.status("scoring the test split")
        scores = self._scores(self._test)
        self._write_scores(self._test, step, scores)
        self._log.flush()
        return Outcome(scores, step, has_best)

    def _train(self) -> None:
        """Trains from where the state is to the end of the plan."""
        plan, total = self._plan, self._plan.total_steps
        self._finish_epoch()
        step, ends = self._state.step, plan.epoch_ends()
        dataset = self._train_batches(step, int(self._state.guard["batches_left_out"].numpy()))
        batches = iter(self._strategy.distribute_datasets_from_function(lambda _: dataset))
        last_save = time.monotonic()
        while step < total:
            steps, save_is_due = self._agree(last_save)
            if save_is_due:
                self._save(self._checkpoints.save_last)
                last_save = time.monotonic()
            epoch_end = next(end for end in ends if end > step)
            log_steps = self._rhythm.log_steps
            boundary = min(epoch_end, (step // log_steps + 1) * log_steps)
            step = self._advance(batches, step, min(steps, boundary - step))
            if step == boundary:
                self._log_window(step)
            if step == epoch_end:
                self._end_epoch(step)
                last_save = time.monotonic()
            self._progress.step(step)

    def _agree(self, last_save: float) -> tuple[int, bool]:
        """What the workers do next: steps for the next call of the device loop; whether to save.

        Raises:
            Interrupted: one of them got a signal.
        """
        self._leave_if_asked()
        seconds = self._progress.seconds_per_step
        steps = 1 if math.isnan(seconds) else max(1, int(_SECONDS_PER_CALL / seconds))
        due = time.monotonic() - last_save > 60 * self._rhythm.save_minutes
        chief = self._workers.is_chief
        steps, due = self._workers.total([steps * chief, due * chief])
        return int(steps), bool(due)

    def _leave_if_asked(self) -> None:
        came = self._stop.signal_number
        numbers = (signal.SIGTERM, signal.SIGINT)
        totals = self._workers.total([came == number for number in numbers])
        asked = [number for number, total in zip(numbers, totals, strict=True) if total]
        if not asked:
            return
        # While the test split is scored the state is the best one, and the last is saved.
        if not self._scoring_test:
            self._save(self._checkpoints.save_last)
        self._workers.part()
        raise Interrupted(asked[0], self._checkpoints.safe_step)

    def _advance(self, batches, step: int, num_steps: int) -> int:
        """Makes steps, and returns the global step after them."""
        if not self._traced:
            self._terminal.status("tracing the training step")
        started = time.monotonic()
        self._step.run(batches, tf.constant(num_steps))
        after = self._state.step
        seconds = time.monotonic() - started
        if self._state.guard["stuck"].numpy():
            raise NumbersError(self._what_is_wrong(after))
        if after != step + num_steps:
            raise RunError(f"{num_steps} steps led from step {step} to {after}")
        if self._traced:  # The first call traces, so that its time says nothing.
            self._progress.time_steps(num_steps, seconds)
        self._traced = True
        return after

    def _what_is_wrong(self, step: int) -> str:
        """Of an update that was not made; where updates are skipped, of the last of them."""
        guard = {name: variable.numpy() for name, variable in self._state.guard.items()}
        skips = self._faults.on_nan == "skip"
        what = "gradient" if math.isfinite(guard["loss"]) else "loss"
        wrong = step if skips else step + 1
        in_a_row = f", as at the {guard['in_a_row']} steps up to it" if skips else ""
        return (
            f"the {what} is not finite at step {wrong}{in_a_row} (loss {guard['loss']:.4g}, "
            f"gradient norm {guard['gradient_norm']:.4g}, learning rate "
            f"{float(self._learning_rate(wrong - 1)):.4g})"
        )

    def _advice(self) -> str:
        return (
            f"the state of step {self._checkpoints.safe_step or 0} is kept. Try a lower "
            "--learning_rate, longer --warmup_epochs, --clip_norm, or another --on_nan"
        )

    def _go_back(self, error: NumbersError) -> None:
        """Restores the last checkpoint, and leaves out the batches that led to wrong numbers."""
        guard = self._state.guard
        # Where an update was not made, its batch is the last of them.
        behind = self._state.step + int(guard["stuck"].numpy())
        left_out, restores = int(guard["batches_left_out"].numpy()), int(guard["restores"].numpy())
        if restores == MOST_RESTORES:
            raise NumbersError(
                f"{error}; the run went back {restores} times already; {self._advice()}"
            ) from error
        if not self._checkpoints.restore_last():
            raise error
        step = self._state.step
        guard["restores"].assign(restores + 1)
        guard["batches_left_out"].assign(left_out + behind - step)
        self._log.rewind(step, int(self._state.progress["evaluated_step"].numpy()))
        self._terminal.line(
            f"{error}; back to step {step}, leaving out the {behind - step} batches behind it "
            f"({restores + 1} of {MOST_RESTORES} times)"
        )
        # So that a restart does not begin to count anew.
        self._save(self._checkpoints.save_last)

    def _log_window(self, step: int) -> None:
        """Logs the means since the last row, and starts the sums anew."""
        window = {name: variable.numpy() for name, variable in self._state.window.items()}
        # Updates that were dropped are in no sum.
        examples, steps = window["examples"] or math.nan, window["steps"] or math.nan
        figures = {
            "loss": float(window["loss"] / examples),
            "top_1_accuracy": float(window["correct"] / examples),
            # The rate of the last update, which started from the step before.
            "learning_rate": float(self._learning_rate(step - 1)),
            "gradient_norm": float(window["gradient_norm"] / steps),
        }
        if self._faults.on_nan == "skip":
            figures["skipped_updates"] = int(self._state.guard["skipped"].numpy())
        self._write("train", step, timings=self._progress.take_timings(), **figures)
        for variable in self._state.window.values():
            variable.assign(tf.zeros_like(variable))

    def _evaluation_is_due(self, step: int) -> bool:
        if self._val is None or int(self._state.progress["evaluated_step"].numpy()) == step:
            return False
        return step in self._plan.epoch_ends(self._rhythm.eval_epochs)

    def _finish_epoch(self) -> None:
        """Does what is missing where a run was stopped just at the end of an epoch."""
        step = self._state.step
        if self._evaluation_is_due(step):
            self._end_epoch(step)
        elif self._val is not None and int(self._state.progress["best_step"].numpy()) == step:
            chief = self._workers.is_chief
            if not self._workers.chiefs(self._checkpoints.has_best() if chief else 0):
                self._save(self._checkpoints.save_best)

    def _end_epoch(self, step: int) -> None:
        """Evaluates if it is due, saves, keeps the best, and tells.

        The last state is saved before the best one: it then knows that it is the best, so that one
        that is missing can be made up for.
        """
        scores, before = None, None
        if self._evaluation_is_due(step):
            self._terminal.status(f"evaluating at step {step:,}")
            scores = self._scores(self._val)
            self._write_scores(self._val, step, scores)
            self._state.progress["evaluated_step"].assign(step)
            before = self._take_if_best(step, scores)
        self._save(self._checkpoints.save_last)
        if before is not None and not self._save(self._checkpoints.save_best):
            for name, value in before.items():  # The best is still the one on disk.
                self._state.progress[name].assign(value)
        self._progress.epoch(step, scores)

    def _take_if_best(self, step: int, scores: Scores) -> dict | None:
        """Enters scores as the best if they are; returns those that were, or None if they stay."""
        progress = self._state.progress
        names = ("best_top_1_accuracy", "best_loss", "best_step")
        before = {name: progress[name].numpy() for name in names}
        # Of equal accuracies, which small splits often give, the lower loss is the better.
        best = before["best_top_1_accuracy"], -_worst_if_nan(before["best_loss"])
        these = scores.top_1_accuracy, -_worst_if_nan(scores.loss)
        if not self._workers.chiefs(these > best):
            return None
        for name, value in zip(names, (scores.top_1_accuracy, scores.loss, step), strict=True):
            progress[name].assign(value)
        return before

    def _scores(self, split: Split) -> Scores:
        started = time.monotonic()
        scores = self._evaluator.scores(
            split.dataset, split.examples, after_batch=self._leave_if_asked
        )
        self._progress.seconds_per_eval = time.monotonic() - started
        return scores

    def _write_scores(self, split: Split, step: int, scores: Scores) -> None:
        self._write(
            split.name,
            step,
            loss=scores.loss,
            top_1_accuracy=scores.top_1_accuracy,
            top_5_accuracy=scores.top_5_accuracy,
        )

    def _write(self, split: str, step: int, **figures) -> None:
        self._try(lambda: self._log.write(split, step, self._plan.epoch(step), **figures))

    def _save(self, save: Callable[[], None]) -> bool:
        """Saves a state that is good; whether it was saved."""
        if not self._state.is_finite():
            raise NumbersError(
                f"a weight is not finite at step {self._state.step} (learning rate "
                f"{float(self._learning_rate(self._state.step - 1)):.4g})"
            )
        # A state must not be ahead of its rows: they would not be made again. The chief decides, as
        # it alone writes, and a save needs all workers.
        if not self._workers.chiefs(self._try(self._log.flush)):
            return False
        return bool(self._workers.chiefs(self._try(save)))

    def _try(self, write: Callable[[], None]) -> bool:
        """Writes something, or says that it cannot be written."""
        try:
            write()
        except SaveError as error:
            if self._faults.on_save_error == "stop":
                raise
            self._terminal.line(f"{error}; going on")
            return False
        return True


def _worst_if_nan(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss
