"""The host's loop around the device's: when to log, evaluate, save and stop.

    scores = Trainer(...).run()

It goes on from wherever the state is, and gives the same run however often it was stopped.
"""

import dataclasses
import math
import time
from collections.abc import Callable

import tensorflow as tf

from loops.checkpoints import Checkpoints
from loops.errors import RunError
from loops.evaluate import Evaluator, Scores
from loops.interrupt import Interrupted, StopRequest
from loops.logs import MetricsLog, Terminal, bar, duration
from loops.schedule import LearningRate, Plan
from loops.state import TrainState
from loops.step import TrainStep

# The device loop is left about once a second, to look for a signal and tell the progress. How many
# steps that is does not change what is computed.
_SECONDS_PER_CALL = 1.0


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


class Trainer:
    """Trains a state to the end of its plan, and scores it on the test split once.

    Args:
        strategy: whose replicas train.
        state: fresh or restored.
        step: makes the updates.
        plan: how long.
        learning_rate: rate at each global step, for the log.
        train_batches: makes the dataset of batches from a global step on.
        val: split on which the best state is chosen; None to have the last one as the best.
        test: split that is scored at the end.
        checkpoints: of the state.
        log: of the run.
        terminal: where a person reads.
        rhythm: how often.
    """

    def __init__(
        self,
        *,
        strategy: tf.distribute.Strategy,
        state: TrainState,
        step: TrainStep,
        plan: Plan,
        learning_rate: LearningRate,
        train_batches: Callable[[int], tf.data.Dataset],
        val: Split | None,
        test: Split,
        checkpoints: Checkpoints,
        log: MetricsLog,
        terminal: Terminal,
        rhythm: Rhythm,
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
        self._evaluator = Evaluator(strategy, state.eval_net)
        self._stop = StopRequest()
        self._scoring_test = False
        self._traced = False
        self._seconds_per_step = math.nan
        self._seconds_per_eval = 0.0
        self._timed_seconds, self._timed_steps = 0.0, 0

    def run(self) -> tuple[Scores, int]:
        """Trains to the end. Returns the scores on the test split and the step that was scored.

        Raises:
            Interrupted: a signal came; the state is saved.
            RunError: the loss is not finite, or something cannot be written.
        """
        with self._stop:
            self._train()
            self._scoring_test = True
            if self._val is not None and not self._checkpoints.restore_best():
                raise RunError("best/ has no checkpoint to score, though the run had one")
            step = self._state.step
            self._terminal.status("scoring the test split")
            scores = self._scores(self._test)
            self._write_scores(self._test, step, scores)
            return scores, step

    def _train(self) -> None:
        plan, total = self._plan, self._plan.total_steps
        step = self._state.step
        ends = plan.epoch_ends()
        # Stopped between an epoch's last step and its evaluation?
        if step in ends and self._evaluation_is_due(step):
            self._end_epoch(step)
        if step >= total:
            return
        dataset = self._train_batches(step)
        batches = iter(self._strategy.distribute_datasets_from_function(lambda _: dataset))
        last_save = time.monotonic()
        while step < total:
            epoch_end = next(end for end in ends if end > step)
            log_steps = self._rhythm.log_steps
            boundary = min(epoch_end, (step // log_steps + 1) * log_steps)
            step = self._advance(batches, step, min(self._call_size(), boundary - step))
            if step == boundary:
                self._log_window(step)
            if step == epoch_end:
                self._end_epoch(step)
                last_save = time.monotonic()
            self._tell(step)
            if self._stop.signal_number:
                self._leave(step)
            if time.monotonic() - last_save > 60 * self._rhythm.save_minutes:
                self._check_finite(step)
                self._checkpoints.save_last()
                last_save = time.monotonic()

    def _call_size(self) -> int:
        """Steps for the next call of the device loop."""
        if math.isnan(self._seconds_per_step):
            return 1
        return max(1, int(_SECONDS_PER_CALL / self._seconds_per_step))

    def _advance(self, batches, step: int, num_steps: int) -> int:
        """Makes steps, and returns the global step after them."""
        if not self._traced:
            self._terminal.status("tracing the training step")
        started = time.monotonic()
        self._step.run(batches, tf.constant(num_steps))
        after = self._state.step
        seconds = time.monotonic() - started
        if after != step + num_steps:
            raise RunError(f"{num_steps} steps led from step {step} to {after}")
        if self._traced:  # The first call traces, so that its time says nothing.
            self._seconds_per_step = seconds / num_steps
            self._timed_seconds += seconds
            self._timed_steps += num_steps
        self._traced = True
        return after

    def _log_window(self, step: int) -> None:
        """Logs the means since the last row, and starts the sums anew."""
        self._check_finite(step)
        window = {name: variable.numpy() for name, variable in self._state.window.items()}
        figures = {
            "loss": float(window["loss"] / window["examples"]),
            "top_1_accuracy": float(window["correct"] / window["examples"]),
            # The rate of the last update, which started from the step before.
            "learning_rate": float(self._learning_rate(step - 1)),
            "gradient_norm": float(window["gradient_norm"] / int(window["steps"])),
        }
        if self._timed_steps:
            rate = self._timed_steps * self._plan.global_batch_size / self._timed_seconds
            figures["images_per_second"] = round(rate, 1)
        self._timed_seconds, self._timed_steps = 0.0, 0
        self._log.write("train", step, self._plan.epoch(step), **figures)
        for variable in self._state.window.values():
            variable.assign(tf.zeros_like(variable))

    def _check_finite(self, step: int) -> None:
        """Stops before a state is logged or saved whose loss or gradient was not finite."""
        window = self._state.window
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(window[name].numpy()):
                raise RunError(
                    f"the {name.replace('_', ' ')} is not finite at step {step} (learning rate "
                    f"{float(self._learning_rate(step - 1)):.4g}); the last checkpoint is from "
                    "before. Try a lower --learning_rate, --warmup_epochs or --clip_norm"
                )

    def _evaluation_is_due(self, step: int) -> bool:
        if self._val is None or int(self._state.progress["evaluated_step"].numpy()) == step:
            return False
        return step in self._plan.epoch_ends(self._rhythm.eval_epochs)

    def _end_epoch(self, step: int) -> None:
        """Evaluates if it is due, keeps the best, saves, and tells."""
        scores = None
        if self._evaluation_is_due(step):
            self._terminal.status(f"evaluating at step {step:,}")
            scores = self._scores(self._val)
            self._write_scores(self._val, step, scores)
            progress = self._state.progress
            progress["evaluated_step"].assign(step)
            # Of equal accuracies, which small splits often give, the lower loss is the better.
            best = progress["best_top_1_accuracy"].numpy(), -progress["best_loss"].numpy()
            if (scores.top_1_accuracy, -scores.loss) > best:
                progress["best_top_1_accuracy"].assign(scores.top_1_accuracy)
                progress["best_loss"].assign(scores.loss)
                progress["best_step"].assign(step)
                self._checkpoints.save_best()
        self._checkpoints.save_last()
        self._terminal.line(self._epoch_line(step, scores))

    def _scores(self, split: Split) -> Scores:
        def leave_if_asked():
            if self._stop.signal_number:
                self._leave(self._state.step)

        started = time.monotonic()
        scores = self._evaluator.scores(split.dataset, split.examples, after_batch=leave_if_asked)
        self._seconds_per_eval = time.monotonic() - started
        return scores

    def _write_scores(self, split: Split, step: int, scores: Scores) -> None:
        self._log.write(
            split.name,
            step,
            self._plan.epoch(step),
            loss=scores.loss,
            top_1_accuracy=scores.top_1_accuracy,
            top_5_accuracy=scores.top_5_accuracy,
        )

    def _leave(self, step: int) -> None:
        # While the test split is scored the state is the best one, and the last is saved.
        if not self._scoring_test:
            self._check_finite(step)
            self._checkpoints.save_last()
        raise Interrupted(self._stop.signal_number, step)

    def _epoch_line(self, step: int, scores: Scores | None) -> str:
        """An epoch in a line: means over the epoch's rows for training, scores for validation."""
        ends = self._plan.epoch_ends()
        before = max((end for end in ends if end < step), default=0)
        rows = [r for r in self._log.rows if r["split"] == "train" and before < r["step"] <= step]
        starts = [before, *(row["step"] for row in rows)]
        weights = [row["step"] - start for row, start in zip(rows, starts, strict=False)]

        def mean(name):
            return sum(w * r[name] for w, r in zip(weights, rows, strict=True)) / sum(weights)

        text = f"epoch {self._plan.whole_epochs(step):g}/{self._plan.epochs:g}  step {step:,}"
        if rows:
            text += f"  train loss {mean('loss'):.4f} top-1 {mean('top_1_accuracy'):.2%}"
        if scores is not None:
            text += f"  val loss {scores.loss:.4f} top-1 {scores.top_1_accuracy:.2%}"
        if rows and "images_per_second" in rows[-1]:
            text += f"  {rows[-1]['images_per_second']:,.0f} images/s"
        return text + self._time_left(step)

    def _time_left(self, step: int) -> str:
        left = self._plan.total_steps - step
        if math.isnan(self._seconds_per_step) or not left:
            return ""
        evaluations = sum(end > step for end in self._plan.epoch_ends())
        evaluations /= self._rhythm.eval_epochs
        seconds = left * self._seconds_per_step + evaluations * self._seconds_per_eval
        return f"  {duration(seconds)} left"

    def _tell(self, step: int) -> None:
        total = self._plan.total_steps
        last = next((r for r in reversed(self._log.rows) if r["split"] == "train"), None)
        figures = f"  loss {last['loss']:.4f} top-1 {last['top_1_accuracy']:.2%}" if last else ""
        # The last batch of a run may go a little beyond its length.
        epoch = min(self._plan.epoch(step), self._plan.epochs)
        self._terminal.status(
            f"epoch {epoch:.1f}/{self._plan.epochs:g} {bar(step / total)} step {step:,}/{total:,}"
            f"{figures}{self._time_left(step)}"
        )
