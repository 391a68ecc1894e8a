"""The host's loop: resuming, choosing the best, stopping. Batches are a function of the step."""

import io
import json
import os
import signal

import numpy as np
import pytest
import tensorflow as tf

from loops.checkpoints import Checkpoints
from loops.evaluate import Scores
from loops.interrupt import Interrupted, StopRequest
from loops.logs import MetricsLog, Terminal
from loops.schedule import LearningRate, Plan
from loops.step import StepSettings, TrainStep
from loops.train import Faults, Rhythm, Split, Trainer
from tests.loops.helpers import Statistics, examples, make_state, weights

# 23 examples in batches of 8: epochs end at the steps 3, 6, 9 and 12.
PLAN = Plan(epochs=4, train_examples=23, global_batch_size=8)
SETTINGS = {"clip_norm": 0.5, "weight_decay": 0.01, "ema_decay": 0.9, "accumulation": 2}


@pytest.fixture(autouse=True)
def _leave_the_device_loop_at_each_step(monkeypatch):
    monkeypatch.setattr("loops.train._SECONDS_PER_CALL", 0.0)


class Signaller(Terminal):
    """Sends a signal to this process when a text is told."""

    def __init__(self, text=None):
        super().__init__(io.StringIO())
        self.text = text

    def status(self, text):
        if self.text and self.text in text:
            self.text = None
            os.kill(os.getpid(), signal.SIGTERM)

    def line(self, text):
        self.status(text)
        super().line(text)


def split(name, seed, replicas):
    images, labels = examples(8, seed)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels, np.ones(8, np.float32)))
    return Split(name, dataset.batch(8 // replicas), 8)


def trainer(
    strategy, run_dir, terminal=None, val=True, plan=PLAN, spoil=(), rhythm=None, faults=None
):
    """A trainer that goes on with what is in the directory; batches in `spoil` have a NaN."""
    faults = faults or Faults()
    replicas = strategy.num_replicas_in_sync
    rate = LearningRate("cosine", peak=0.2, total_steps=plan.total_steps, warmup_steps=2)
    state = make_state(strategy, net=Statistics, optimizer="adam", rate=rate, ema=True)
    terminal = terminal or Signaller()
    checkpoints = Checkpoints(state, run_dir, keep=2, say=terminal.line)
    checkpoints.restore_last()
    log = MetricsLog(run_dir)
    log.rewind(state.step, int(state.progress["evaluated_step"].numpy()))

    def batches(start, left_out):
        numbers = range(start + left_out, plan.total_steps + left_out)
        batches = {number: examples(8, seed=100 + number) for number in numbers}
        for number in batches.keys() & set(spoil):
            batches[number][0][0] = np.nan
        batches = list(batches.values())
        images, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
        return tf.data.Dataset.from_tensor_slices((images, labels)).batch(8 // replicas)

    return state, Trainer(
        strategy=strategy,
        state=state,
        step=TrainStep(
            strategy, state, StepSettings(global_batch_size=8, on_nan=faults.on_nan, **SETTINGS)
        ),
        plan=plan,
        learning_rate=rate,
        train_batches=batches,
        val=split("val", 1, replicas) if val else None,
        test=split("test", 2, replicas),
        checkpoints=checkpoints,
        log=log,
        terminal=terminal,
        rhythm=rhythm or Rhythm(log_steps=2),
        faults=faults,
    )


def rows(run_dir):
    return [json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().splitlines()]


def last_values(run_dir):
    path = tf.train.latest_checkpoint(str(run_dir / "checkpoints"))
    return {name: tf.train.load_variable(path, name) for name, _ in tf.train.list_variables(path)}


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory):
    """The run that is never stopped, by number of replicas."""
    runs = {}

    def get(strategy):
        replicas = strategy.num_replicas_in_sync
        if replicas not in runs:
            run_dir = tmp_path_factory.mktemp("unstopped")
            runs[replicas] = run_dir, trainer(strategy, run_dir)[1].run()
        return runs[replicas]

    return get


def test_rows_are_logged_at_their_steps(unstopped, one_replica):
    found = [(row["split"], row["step"]) for row in rows(unstopped(one_replica)[0])]
    train = [2, 3, 4, 6, 8, 9, 10, 12]
    assert [s for split, s in found if split == "train"] == train
    assert [s for split, s in found if split == "val"] == [3, 6, 9, 12]
    assert [split for split, _ in found].count("test") == 1


@pytest.mark.parametrize(
    "stops",
    [
        ["step 1/12"],
        ["step 5/12", "step 7/12"],
        ["step 6/12"],
        ["evaluating at step 6"],
        ["evaluating at step 12"],
        ["scoring the test split"],
        ["step 1/12", "step 4/12", "step 8/12", "step 11/12"],
    ],
    ids=lambda stops: f"{len(stops)}x {stops[0]}",
)
def test_a_stopped_run_is_the_unstopped_one(unstopped, strategy, tmp_path, stops):
    expected_dir, expected = unstopped(strategy)
    for text in stops:
        with pytest.raises(Interrupted):
            trainer(strategy, tmp_path, Signaller(text))[1].run()
    outcome = trainer(strategy, tmp_path)[1].run()
    assert (outcome.scores.loss, outcome.step) == (expected.scores.loss, expected.step)
    assert rows(tmp_path) == rows(expected_dir)
    found, wanted = last_values(tmp_path), last_values(expected_dir)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        # The save counter and the graph of objects are TensorFlow's own.
        if "save_counter" not in name and "OBJECT_GRAPH" not in name:
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_run_killed_between_saves_goes_back_to_the_last(unstopped, one_replica, tmp_path):
    expected_dir, _ = unstopped(one_replica)

    class Killed(Exception):
        pass

    class Killer(Signaller):
        def status(self, text):
            if "step 8/12" in text:
                raise Killed

    with pytest.raises(Killed):
        trainer(one_replica, tmp_path, Killer())[1].run()
    assert last_values(tmp_path)["optimizer/iterations/.ATTRIBUTES/VARIABLE_VALUE"] == 6
    trainer(one_replica, tmp_path)[1].run()
    assert rows(tmp_path) == rows(expected_dir)


def test_saves_within_an_epoch(one_replica, tmp_path):
    _, run = trainer(one_replica, tmp_path, rhythm=Rhythm(save_minutes=1e-9))
    saved = []
    save = run._checkpoints.save_last
    run._checkpoints.save_last = lambda: (saved.append(run._state.step), save())
    run.run()
    assert {1, 2, 4, 5} <= set(saved)


@pytest.mark.parametrize(
    ("val", "best"),
    [
        ([(0.5, 1.0), (0.7, 1.0), (0.6, 0.5), (0.6, 0.4)], 6),
        ([(0.5, 1.0), (0.7, 1.0), (0.7, 0.9), (0.7, 0.95)], 9),
        ([(0.5, 1.0), (0.5, 1.0), (0.5, 1.0), (0.5, 1.0)], 3),
        ([(0.0, 1.0), (0.1, 1.0), (0.2, 1.0), (0.3, 2.0)], 12),
    ],
)
def test_the_best_on_validation_is_what_is_scored(one_replica, tmp_path, monkeypatch, val, best):
    """By accuracy, then by loss, then the earlier; its weights are restored for the test split."""
    state, run = trainer(one_replica, tmp_path)
    scripted, seen = iter(val), []

    def scores(self, dataset, examples, **kwargs):
        seen.append((state.step, weights(state.eval_net)))
        accuracy, loss = next(scripted, (0.25, 3.0))
        return Scores(examples, loss, accuracy, 1.0, np.full(3, accuracy))

    monkeypatch.setattr("loops.evaluate.Evaluator.scores", scores)
    outcome = run.run()
    assert (outcome.scores.loss, outcome.step, state.step) == (3.0, best, best)
    assert outcome.is_best
    (scored_step, scored), at_best = seen[-1], dict(seen[:-1])[best]
    assert scored_step == best
    for a, b in zip(scored, at_best, strict=True):
        np.testing.assert_array_equal(a, b)
    (test,) = (row for row in rows(tmp_path) if row["split"] == "test")
    assert test["step"] == best


def test_without_validation_the_last_is_scored(one_replica, tmp_path):
    _, run = trainer(one_replica, tmp_path, val=False)
    outcome = run.run()
    assert (outcome.step, outcome.is_best) == (12, False)
    assert not list((tmp_path / "best").glob("*"))


def test_evaluations_can_be_rarer(one_replica, tmp_path):
    trainer(one_replica, tmp_path, rhythm=Rhythm(eval_epochs=3))[1].run()
    assert [row["step"] for row in rows(tmp_path) if row["split"] == "val"] == [9, 12]


def test_a_finished_training_is_scored_again_and_not_trained(unstopped, one_replica, tmp_path):
    trainer(one_replica, tmp_path)[1].run()
    before = last_values(tmp_path)
    trainer(one_replica, tmp_path)[1].run()
    assert rows(tmp_path) == rows(unstopped(one_replica)[0])
    for name, value in last_values(tmp_path).items():
        np.testing.assert_array_equal(value, before[name])


def test_progress_is_told(unstopped, one_replica, tmp_path):
    terminal = Signaller()
    trainer(one_replica, tmp_path, terminal)[1].run()
    lines = terminal._stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("epoch 2/4  step 6  train loss ")
    assert "val loss" in lines[1]


def test_a_second_signal_leaves_at_once():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert stop.signal_number is None
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_number == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before
