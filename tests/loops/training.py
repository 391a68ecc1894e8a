"""A trainer of a small net whose batches are a function of the step, for the tests of the loops."""

import json
import os
import pathlib
import signal

import tensorflow as tf

from loops.hook import Hook
from loops.records.checkpoints import Checkpoints
from loops.records.metrics_log import MetricsLog
from loops.schedule import LearningRate, Plan
from loops.settings import FailurePolicy, Intervals
from loops.step import StepSettings, TrainStep
from loops.trainer import Trainer
from tests.loops.helpers import Batches, Split, Statistics, examples, make_state

# 23 examples in batches of 8: epochs end at the steps 3, 6, 9 and 12.
PLAN = Plan(epochs=4, train_examples=23, global_batch_size=8)
SETTINGS = {"clip_norm": 0.5, "weight_decay": 0.01, "ema_decay": 0.9}


def make_trainer(
    strategy,
    run_dir: pathlib.Path,
    *hooks: Hook,
    batches: Batches | None = None,
    val: Split | bool = True,
    plan=PLAN,
    log_steps=2,
    eval_epochs=1,
    save_minutes=10.0,
    on_nan="stop",
    on_save_error="stop",
    best_metric="top_1_accuracy",
    patience=0.0,
    say=None,
):
    """A trainer that continues with what is in the directory; `say` is a list for its messages."""
    replicas = strategy.num_replicas_in_sync
    rate = LearningRate("cosine", peak=0.2, total_steps=plan.total_steps, warmup_steps=2)
    state = make_state(strategy, net=Statistics, optimizer="adam", rate=rate, ema=True)
    checkpoints = Checkpoints(state, run_dir, keep=2)
    checkpoints.restore_last()
    splits = {"test": Split(*examples(9, seed=2), replicas)}
    if val:
        splits["val"] = Split(*examples(11, seed=1), replicas) if val is True else val
    settings = StepSettings(global_batch_size=8, on_nan=on_nan, **SETTINGS)
    return Trainer(
        TrainStep(strategy, state, settings, rate),
        plan=plan,
        batches=batches or Batches(replicas),
        splits=splits,
        checkpoints=checkpoints,
        hooks=[*hooks, MetricsLog(run_dir)],
        intervals=Intervals(log_steps, eval_epochs, save_minutes),
        policy=FailurePolicy(on_nan, on_save_error),
        best_metric=best_metric,
        patience=patience,
        say=print if say is None else say.append,
    )


TRAINING, VAL, TEST = "training", "evaluating on the val split", "evaluating on the test split"


class At(Hook):
    """Calls a function once, when the trainer does something at a step.

    Args:
        activity: `TRAINING`, `VAL` or `TEST`.
        step: the global step; None for any.
        call: by default, sends SIGTERM to this process.
    """

    def __init__(self, activity, step, call=lambda: os.kill(os.getpid(), signal.SIGTERM)):
        self._moment = activity, step
        self._call = call

    def on_progress(self, trainer):
        activity, step = self._moment
        if self._call and trainer.activity == activity and step in (None, trainer.step):
            call, self._call = self._call, None
            call()


def rows(run_dir, split=None):
    """The rows of metrics.jsonl, or those of a split."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if split in (None, row["split"])]


def last_values(run_dir):
    """The values in the last checkpoint, by name, without those that are TensorFlow's own."""
    path = tf.train.latest_checkpoint(str(run_dir / "checkpoints"))
    names = [name for name, _ in tf.train.list_variables(path)]
    return {
        name.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE"): tf.train.load_variable(path, name)
        for name in names
        if "OBJECT_GRAPH" not in name and "save_counter" not in name
    }
