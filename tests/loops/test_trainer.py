"""The host's loop: resuming, choosing the best, stopping. Batches are a function of the step."""

import io
import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from loops.checkpoints import Checkpoints, saved_steps
from loops.errors import NumbersError, SaveError
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


def test_numbers_that_are_not_finite_stop_the_run(strategy, tmp_path):
    """With the step, the learning rate and the gradient norm; the last good state stays."""
    wanted = r"the loss is not finite at step 8 \(loss nan, gradient norm nan, learning rate 0\.1\)"
    with pytest.raises(NumbersError, match=wanted):
        trainer(strategy, tmp_path, spoil=[7])[1].run()
    saved = last_values(tmp_path)
    assert saved["optimizer/iterations/.ATTRIBUTES/VARIABLE_VALUE"] == 6
    del saved["_CHECKPOINTABLE_OBJECT_GRAPH"]
    assert all(np.all(np.isfinite(value)) for value in saved.values() if value.dtype.kind == "f")
    # Goes on with another policy, and with the batch mended ends as if nothing had been.
    trainer(strategy, tmp_path)[1].run()


def test_a_weight_that_is_not_finite_is_not_saved(one_replica, tmp_path):
    state, run = trainer(one_replica, tmp_path)
    evaluate = run._scores
    run._scores = lambda split: (state.net.dense.bias.assign([np.inf] * 3), evaluate(split))[1]
    with pytest.raises(NumbersError, match="a weight is not finite at step 3"):
        run.run()
    assert saved_steps(tmp_path / "checkpoints") == [0]


def test_skipped_updates_are_counted(strategy, tmp_path):
    faults = Faults(on_nan="skip")
    _, run = trainer(strategy, tmp_path, spoil=[4, 6], faults=faults)
    assert run.run().step in (3, 6, 9, 12)
    counts = {r["step"]: r["skipped_updates"] for r in rows(tmp_path) if r["split"] == "train"}
    # The window of steps 7 and 8 has one update, that of step 5 and 6 too.
    assert counts == {2: 0, 3: 0, 4: 0, 6: 1, 8: 2, 9: 2, 10: 2, 12: 2}
    assert all(row["loss"] is not None for row in rows(tmp_path))


def test_a_window_without_an_update_is_logged(one_replica, tmp_path):
    _, run = trainer(one_replica, tmp_path, spoil=[4, 5], faults=Faults(on_nan="skip"))
    run.run()
    (row,) = (r for r in rows(tmp_path) if r["split"] == "train" and r["step"] == 6)
    assert (row["loss"], row["gradient_norm"], row["skipped_updates"]) == (None, None, 2)


def test_skips_without_an_end_stop_the_run(one_replica, tmp_path, monkeypatch):
    monkeypatch.setattr("loops.step.MOST_SKIPS_IN_A_ROW", 3)
    _, run = trainer(one_replica, tmp_path, spoil=range(4, 99), faults=Faults(on_nan="skip"))
    with pytest.raises(NumbersError, match="at step 7, as at the 3 steps up to it"):
        run.run()


def test_going_back_leaves_out_the_batches_behind_the_checkpoint(strategy, tmp_path):
    """From step 6 on, the batches 6 and 7 are left out: the run is one that never had them."""
    terminal = Signaller()
    faults = Faults(on_nan="restore")
    _, run = trainer(strategy, tmp_path, terminal, spoil=[7], faults=faults)
    seen = []
    batches = run._train_batches
    run._train_batches = lambda *args: (seen.append(args), batches(*args))[1]
    run.run()
    assert seen == [(0, 0), (6, 2)]
    assert "back to step 6, leaving out the 2 batches behind it (1 of 3 times)" in (
        terminal._stream.getvalue()
    )
    steps = [row["step"] for row in rows(tmp_path) if row["split"] == "train"]
    assert steps == [2, 3, 4, 6, 8, 9, 10, 12]
    guard = {k.split("/")[1]: v for k, v in last_values(tmp_path).items() if "guard" in k}
    assert (guard["restores"], guard["batches_left_out"], guard["stuck"]) == (1, 2, False)


def test_a_run_that_went_back_is_the_same_however_often_it_is_stopped(one_replica, tmp_path):
    faults = Faults(on_nan="restore")
    kwargs = {"spoil": [7], "faults": faults}
    for name in "ab":
        (tmp_path / name).mkdir()
    trainer(one_replica, tmp_path / "a", **kwargs)[1].run()
    for text in ("step 8/12", "step 11/12"):
        with pytest.raises(Interrupted):
            trainer(one_replica, tmp_path / "b", Signaller(text), **kwargs)[1].run()
    trainer(one_replica, tmp_path / "b", **kwargs)[1].run()
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_a_run_goes_back_three_times_at_most(one_replica, tmp_path):
    _, run = trainer(one_replica, tmp_path, spoil=[7, 8, 9, 10], faults=Faults(on_nan="restore"))
    with pytest.raises(NumbersError, match="the run went back 3 times already"):
        run.run()
    # A restart does not count anew.
    terminal = Signaller()
    spoilt = {"spoil": [7, 8, 9, 10], "faults": Faults(on_nan="restore")}
    with pytest.raises(NumbersError, match="the run went back 3 times already"):
        trainer(one_replica, tmp_path, terminal, **spoilt)[1].run()
    assert "back to step" not in terminal._stream.getvalue()
    assert saved_steps(tmp_path / "checkpoints") == [3, 6]


def test_a_loss_that_is_no_number_is_the_worst_of_its_accuracy(one_replica, tmp_path):
    state, run = trainer(one_replica, tmp_path)
    for step, loss in [(3, np.nan), (6, 2.0), (9, np.nan), (12, 1.0)]:
        run._take_if_best(step, SimpleNamespace(top_1_accuracy=0.5, loss=loss))
        assert int(state.progress["best_step"].numpy()) == {3: 3, 6: 6, 9: 6, 12: 12}[step]


class Full(Exception):
    pass


def failing(save, steps, state):
    """A save that fails at some steps, as on a full disk."""

    def attempt():
        if state.step in steps:
            raise SaveError(f"cannot save step-{state.step}: No space left on device")
        save()

    return attempt


@pytest.mark.parametrize("which", ["save_last", "save_best"])
def test_a_save_that_fails_stops_the_run(one_replica, tmp_path, which):
    state, run = trainer(one_replica, tmp_path)
    save = getattr(run._checkpoints, which)
    setattr(run._checkpoints, which, failing(save, {3}, state))
    with pytest.raises(SaveError, match="cannot save step-3: No space left"):
        run.run()


@pytest.mark.parametrize("strategy", ["one_replica"], indirect=True)
@pytest.mark.parametrize("which", ["save_last", "save_best"])
def test_a_run_goes_on_without_a_save(unstopped, strategy, tmp_path, which):
    """And is the same run; also when it is killed after a best state could not be saved."""
    expected_dir, expected = unstopped(strategy)
    terminal = Signaller()
    state, run = trainer(strategy, tmp_path, terminal, faults=Faults(on_save_error="continue"))
    save = getattr(run._checkpoints, which)
    setattr(run._checkpoints, which, failing(save, {3, 6}, state))
    outcome = run.run()
    assert "cannot save step-6: No space left on device; going on" in terminal._stream.getvalue()
    if which == "save_last":
        assert outcome.scores.loss == expected.scores.loss
    assert rows(tmp_path)[:-1] == rows(expected_dir)[:-1]


def test_no_state_is_saved_before_its_rows(one_replica, tmp_path):
    """Nor is a run finished without them; with room again, it is the run that never lacked it."""
    trainer(one_replica, tmp_path)[1].run()
    expected = rows(tmp_path)
    run_dir = tmp_path / "full"
    run_dir.mkdir()
    faults = Faults(on_save_error="continue")
    _, run = trainer(one_replica, run_dir, faults=faults)
    (run_dir / "metrics.jsonl").mkdir()
    with pytest.raises(SaveError, match=r"cannot write .*metrics\.jsonl"):
        run.run()
    assert saved_steps(run_dir / "checkpoints") == []
    (run_dir / "metrics.jsonl").rmdir()
    trainer(one_replica, run_dir, faults=faults)[1].run()
    assert rows(run_dir) == expected


def test_without_room_for_any_best_the_last_is_scored(one_replica, tmp_path):
    terminal = Signaller()
    state, run = trainer(one_replica, tmp_path, terminal, faults=Faults(on_save_error="continue"))
    run._checkpoints.save_best = failing(None, range(99), state)
    outcome = run.run()
    assert (outcome.step, outcome.is_best) == (12, False)
    assert "no best state could be saved" in terminal._stream.getvalue()


def test_a_best_that_was_not_saved_is_made_up_for(one_replica, tmp_path):
    """A kill between the save of the last state and that of the best."""
    _, run = trainer(one_replica, tmp_path)

    def die():
        raise Full

    run._checkpoints.save_best = die
    with pytest.raises(Full):
        run.run()
    assert saved_steps(tmp_path / "checkpoints") == [0, 3]
    assert saved_steps(tmp_path / "best") == []
    _, run = trainer(one_replica, tmp_path)
    run._finish_epoch()
    assert saved_steps(tmp_path / "best") == [3]


def test_progress_is_told(unstopped, one_replica, tmp_path):
    terminal = Signaller()
    trainer(one_replica, tmp_path, terminal)[1].run()
    lines = terminal._stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("epoch 2/4  step 6  train loss ")
    assert "val loss" in lines[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_within_and_as_before_without(number):
    """(A second one ends the process, so that is tested with one of its own.)"""
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal_number is None
        os.kill(os.getpid(), number)
        assert stop.signal_number == number
    assert signal.getsignal(number) is before
    assert signal.set_wakeup_fd(-1) == -1
