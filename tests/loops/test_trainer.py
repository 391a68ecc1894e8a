"""The host's loop: logging, resuming, choosing the best. Batches are a function of the step."""

import math

import numpy as np
import pytest
import tensorflow as tf

from loops.evaluator import Scores
from loops.hook import Hook
from loops.interrupt import Interrupted
from loops.metrics import METRICS, Metric
from loops.records.checkpoints import Checkpoints
from loops.schedule import Plan
from tests.loops.helpers import (
    Batches,
    Statistics,
    assert_close,
    examples,
    make_state,
    softmax,
    weights,
)
from tests.loops.training import (
    PLAN,
    TEST,
    TRAINING,
    VAL,
    At,
    last_values,
    make_trainer,
    rows,
)


@pytest.fixture(autouse=True)
def _one_step_in_a_call(monkeypatch):
    monkeypatch.setattr("loops.trainer._SECONDS_PER_CALL", 0.0)


def test_rows_are_logged_at_their_steps(unstopped, one_replica):
    run_dir, outcome = unstopped(one_replica)
    assert [row["step"] for row in rows(run_dir, "train")] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert [row["step"] for row in rows(run_dir, "val")] == [3, 6, 9, 12]
    assert [row["step"] for row in rows(run_dir, "test")] == [outcome.step]
    assert [row["epoch"] for row in rows(run_dir, "val")] == [1.0435, 2.087, 3.1304, 4.1739]


def test_every_metric_is_in_every_row(unstopped, one_replica):
    figures = {"split", "step", "epoch", "loss", *METRICS}
    training = {"learning_rate", "gradient_norm", "highest_loss", "weight_norm"}
    run_dir, _ = unstopped(one_replica)
    for row in rows(run_dir):
        more = training if row["split"] == "train" else set()
        assert row.keys() == figures | more
        assert all(math.isfinite(row[name]) for name in row.keys() - {"split"})


def test_training_rows_are_means_over_their_steps(unstopped, one_replica, tmp_path):
    """Of rows of one step each, the rows of several are the means."""
    make_trainer(one_replica, tmp_path, log_steps=1).run()
    by_step, before = {row["step"]: row for row in rows(tmp_path, "train")}, 0
    for row in rows(unstopped(one_replica)[0], "train"):
        window = [by_step[step] for step in range(before + 1, row["step"] + 1)]
        for name in ("loss", "top_1_accuracy", "gradient_norm"):
            assert row[name] == pytest.approx(np.mean([r[name] for r in window]))
        assert row["learning_rate"] == window[-1]["learning_rate"]
        before = row["step"]
    rates = [by_step[step]["learning_rate"] for step in (1, 2, 3, 12)]
    expected = [0.1, 0.2, 0.2, 0.1 * (1 + math.cos(math.pi * 9 / 10))]
    assert rates == pytest.approx(expected, rel=1e-4)


def test_the_outcome_is_the_best_state_on_the_test_split(unstopped, one_replica):
    run_dir, outcome = unstopped(one_replica)
    val = {row["step"]: (row["top_1_accuracy"], -row["loss"]) for row in rows(run_dir, "val")}
    assert outcome.step == max(val, key=val.get)
    assert outcome.is_best
    assert outcome.checkpoint == f"{run_dir}/best/step-{outcome.step}"
    assert outcome.scores.examples == 9
    (test,) = rows(run_dir, "test")
    assert {name: test[name] for name in outcome.scores.figures} == outcome.scores.figures


EVERYWHERE = [(TRAINING, 1), (VAL, 3), (TRAINING, 6), (TRAINING, 11), (VAL, 12), (TEST, None)]


@pytest.mark.parametrize(
    ("strategy", "stops"),
    [
        ("one_replica", EVERYWHERE),
        pytest.param("one_replica", [(TRAINING, 12)], marks=pytest.mark.slow),
        pytest.param("two_replicas", [(TRAINING, 5), (TEST, None)], marks=pytest.mark.slow),
    ],
    indirect=["strategy"],
    ids=["everywhere", "at_the_end", "two_replicas"],
)
def test_a_stopped_run_is_the_unstopped_one(unstopped, strategy, tmp_path, stops):
    expected_dir, expected = unstopped(strategy)
    for activity, step in stops:
        with pytest.raises(Interrupted) as interrupted:
            make_trainer(strategy, tmp_path, At(activity, step)).run()
        assert interrupted.value.step == (12 if step is None else step)
    outcome = make_trainer(strategy, tmp_path).run()
    assert outcome.scores.figures == expected.scores.figures
    assert (outcome.step, outcome.is_best) == (expected.step, expected.is_best)
    assert rows(tmp_path) == rows(expected_dir)
    found, wanted = last_values(tmp_path), last_values(expected_dir)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_run_killed_between_saves_goes_back_to_the_last(unstopped, one_replica, tmp_path):
    class Killed(Exception):
        pass

    def kill():
        raise Killed

    with pytest.raises(Killed):
        make_trainer(one_replica, tmp_path, At(TRAINING, 8, kill)).run()
    assert last_values(tmp_path)["optimizer/iterations"] == 6
    make_trainer(one_replica, tmp_path).run()
    assert rows(tmp_path) == rows(unstopped(one_replica)[0])


@pytest.mark.slow
def test_a_finished_training_is_scored_again_and_not_trained(unstopped, one_replica, tmp_path):
    make_trainer(one_replica, tmp_path).run()
    before, batches = last_values(tmp_path), Batches()
    make_trainer(one_replica, tmp_path, batches=batches).run()
    assert rows(tmp_path) == rows(unstopped(one_replica)[0])
    assert batches.calls == []
    for name, value in last_values(tmp_path).items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.slow
def test_steps_in_a_call_change_nothing(unstopped, one_replica, tmp_path, monkeypatch):
    monkeypatch.setattr("loops.trainer._SECONDS_PER_CALL", 1e9)
    trainer, calls = make_trainer(one_replica, tmp_path), []
    step, run = trainer.train_step, trainer.train_step.run
    monkeypatch.setattr(step, "run", lambda it, n: (calls.append(int(n)), run(it, n))[1])
    trainer.run()
    assert calls == [1, 1, 1, 1, 2, 2, 1, 1, 2]
    assert rows(tmp_path) == rows(unstopped(one_replica)[0])


@pytest.mark.slow
def test_saves_within_an_epoch_when_they_are_due(one_replica, tmp_path, monkeypatch):
    trainer = make_trainer(one_replica, tmp_path, save_minutes=1e-9)
    saves, save = [], trainer._checkpoints.save_last
    monkeypatch.setattr(
        trainer._checkpoints, "save_last", lambda: (saves.append(trainer.step), save())[1]
    )
    trainer.run()
    assert set(saves) == set(range(13))


NAN = math.nan


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("top_1_accuracy", [0.5, 0.7, NAN, 0.6], 6),
        pytest.param("expected_calibration_error", [NAN, 0.3, 0.1, 0.2], 9, marks=pytest.mark.slow),
        pytest.param("loss", [0.5, 0.7, 0.4, NAN], 9, marks=pytest.mark.slow),
    ],
)
def test_the_best_on_validation_is_what_is_scored(
    one_replica, tmp_path, monkeypatch, metric, values, best
):
    """Its weights are restored for the test split."""
    trainer = make_trainer(one_replica, tmp_path, best_metric=metric)
    state, scripted, seen = trainer.state, iter(values), []

    def scores(self, split, **kwargs):
        seen.append((state.step, weights(state.eval_net)))
        figures = dict.fromkeys(["loss", *METRICS], 0.5)
        figures[metric] = next(scripted, 0.123)
        return Scores(split.size, figures, np.full(3, 0.5))

    monkeypatch.setattr("loops.evaluator.Evaluator.scores", scores)
    outcome = trainer.run()
    assert outcome.scores.figures[metric] == 0.123
    assert (outcome.step, outcome.is_best, state.step) == (best, True, best)
    assert [step for step, _ in seen] == [3, 6, 9, 12, best]
    assert_close(seen[-1][1], dict(seen[:-1])[best], rtol=0, atol=0)
    assert [row["step"] for row in rows(tmp_path, "test")] == [best]


def test_an_unknown_best_metric_is_an_error(one_replica, tmp_path):
    with pytest.raises(ValueError, match="unknown metric 'accuracy'"):
        make_trainer(one_replica, tmp_path, best_metric="accuracy")


def test_scores_are_of_the_averages(unstopped, one_replica):
    """By hand, from what is saved of the state that was scored."""
    run_dir, outcome = unstopped(one_replica)
    state = make_state(one_replica, net=Statistics, optimizer="adam", ema=True)
    checkpoints = Checkpoints(state, run_dir, keep=2)
    checkpoints.restore_last()
    assert checkpoints.restore_best() == outcome.checkpoint
    images, labels = examples(9, seed=2)
    net = state.ema_net
    logits = (images - net.moving_mean.numpy()) @ net.dense.kernel.numpy() + net.dense.bias.numpy()
    loss = -np.mean(np.log(softmax(logits)[np.arange(9), labels]))
    assert outcome.scores.figures["loss"] == pytest.approx(loss, rel=1e-5)


def test_without_validation_the_last_is_scored(one_replica, tmp_path):
    outcome = make_trainer(one_replica, tmp_path, val=False).run()
    assert (outcome.step, outcome.is_best) == (12, False)
    assert outcome.checkpoint == f"{tmp_path}/checkpoints/step-12"
    assert not list((tmp_path / "best").glob("step*"))
    assert {row["split"] for row in rows(tmp_path)} == {"train", "test"}


@pytest.mark.slow
def test_evaluations_can_be_rarer_and_the_run_end_within_an_epoch(one_replica, tmp_path):
    plan = Plan(epochs=2.5, train_examples=23, global_batch_size=8)
    make_trainer(one_replica, tmp_path, plan=plan, log_steps=50, eval_epochs=2).run()
    assert [row["step"] for row in rows(tmp_path, "train")] == [3, 6, 8]
    assert [row["step"] for row in rows(tmp_path, "val")] == [6, 8]


@pytest.mark.slow
def test_a_metric_can_be_added_to_a_run(unstopped, one_replica, tmp_path, monkeypatch):
    """Its figure is unknown for the steps that were made without it, and the rest is the same."""
    with pytest.raises(Interrupted):
        make_trainer(one_replica, tmp_path, At(TRAINING, 5)).run()
    metric = Metric(lambda labels, logits: logits[:, 0], "first")
    monkeypatch.setitem(METRICS, "first_logit", metric)
    outcome = make_trainer(one_replica, tmp_path, best_metric="top_1_accuracy").run()
    found = {row["step"]: row.pop("first_logit", "absent") for row in rows(tmp_path, "train")}
    assert [found[step] for step in (2, 3, 4, 6)] == ["absent"] * 3 + [None]
    assert all(math.isfinite(found[step]) for step in (8, 9, 10, 12))
    assert math.isfinite(outcome.scores.figures["first_logit"])
    before = rows(unstopped(one_replica)[0])
    after = [{k: v for k, v in row.items() if k != "first_logit"} for row in rows(tmp_path)]
    assert after == before


class Watcher(Hook):
    """Notes what a hook can read, at each call of `on_progress`."""

    def __init__(self):
        self.seen = []

    def on_progress(self, trainer):
        timings = dict(trainer.timings)
        self.seen.append((trainer.activity, trainer.step, trainer.seconds_left, timings))


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    watcher, one_replica = Watcher(), tf.distribute.OneDeviceStrategy("CPU:0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loops.trainer._SECONDS_PER_CALL", 0.0)
        run_dir = tmp_path_factory.mktemp("watched")
        make_trainer(one_replica, run_dir, watcher, log_steps=4, eval_epochs=2).run()
    return watcher.seen


def test_what_the_trainer_is_doing(seen):
    activities = [(activity, step) for activity, step, *_ in seen]
    training = [(TRAINING, step) for step in range(1, 13)]
    expected = [("tracing the training step", 0), *training]
    expected.insert(expected.index((TRAINING, 6)), (VAL, 6))
    expected.insert(expected.index((TRAINING, 12)), (VAL, 12))
    assert activities[:-1] == expected
    assert activities[-1][0] == TEST


def test_the_time_left_and_the_speed(seen):
    left = {step: seconds for activity, step, seconds, _ in seen if activity == TRAINING}
    timings = {step: timed for activity, step, _, timed in seen if activity == TRAINING}
    assert math.isnan(left[1])  # The first call also traces the step, so it is not timed.
    assert all(left[step] > 0 for step in range(2, 12))
    assert left[12] == 0
    # Empty after each row.
    assert [step for step, timed in timings.items() if not timed] == [1, 3, 4, 6, 8, 9, 12]
    assert timings[2]["images_per_second"] > 0
    *_, (activity, _, seconds, _) = seen
    assert (activity, seconds) == (TEST, 0)


def test_the_plan_and_the_directory_are_readable(one_replica, tmp_path):
    trainer = make_trainer(one_replica, tmp_path)
    assert (trainer.plan, trainer.run_dir, trainer.evaluated_step) == (PLAN, tmp_path, -1)
    assert (trainer.workers.count, trainer.workers.is_chief) == (1, True)


class Accuracies(Hook):
    """Replaces the evaluator's top-1 accuracy on val, which decides on the best state."""

    def __init__(self, trainer, values):
        evaluate, values = trainer._evaluator.scores, iter(values)

        def scores(split, **kwargs):
            found = evaluate(split, **kwargs)
            if split is trainer._val:
                found.figures["top_1_accuracy"] = next(values)
            return found

        trainer._evaluator.scores = scores


@pytest.mark.parametrize(
    ("values", "patience", "evaluated", "best"),
    [
        # Epochs end at the steps 3, 6, 9 and 12.
        ([0.5, 0.4, 0.4, 0.9], 2, [3, 6, 9], 3),
        pytest.param([0.5, 0.6, 0.6, 0.9], 2, [3, 6, 9, 12], 12, marks=pytest.mark.slow),
        pytest.param([0.5, 0.4, 0.4, 0.9], 1, [3, 6], 3, marks=pytest.mark.slow),
        pytest.param([0.5, 0.4, 0.3, 0.2], 3, [3, 6, 9, 12], 3, marks=pytest.mark.slow),
        pytest.param([0.5, 0.4, 0.3, 0.2], 0, [3, 6, 9, 12], 3, marks=pytest.mark.slow),
    ],
)
def test_training_stops_early_when_patience_ends(
    one_replica, tmp_path, values, patience, evaluated, best
):
    """Of equal accuracies the lower loss is better, so 0.6 after 0.6 may be an improvement."""
    said = []
    trainer = make_trainer(one_replica, tmp_path, patience=patience, say=said)
    Accuracies(trainer, values)
    outcome = trainer.run()
    assert [row["step"] for row in rows(tmp_path, "val")] == evaluated
    if best != 12:
        assert outcome.step == best
    last = {"step": evaluated[-1], "top_1_accuracy": 0.0, "loss": 9.0}
    assert trainer.is_last(last) == (patience > 0 or evaluated[-1] == 12)
    stopped = f"stopped early at step {evaluated[-1]}: no improvement on val for {patience} epochs"
    assert said == ([stopped] if evaluated[-1] < 12 else [])
    # The same command again: the state is out of patience, and is only scored again.
    again = make_trainer(one_replica, tmp_path, patience=patience, say=[])
    assert again.run().step == outcome.step
    assert [row["step"] for row in rows(tmp_path, "val")] == evaluated


@pytest.mark.slow
def test_a_hook_is_called_at_the_steps_that_it_asks_for(one_replica, tmp_path):
    calls = []

    class Every(Hook):
        def __init__(self, interval):
            self.interval = interval

        def next_step(self, step):
            return (step // self.interval + 1) * self.interval if step < 12 else None

        def on_step(self, trainer):
            calls.append((self.interval, trainer.step))

        def on_log(self, trainer, row):
            calls.append(("row", row["step"]))

    make_trainer(one_replica, tmp_path, Every(4), Every(5), log_steps=6).run()
    rows_of_both = [("row", step) for step in (3, 6, 9, 12) for _ in range(2)]
    assert [call for call in calls if call[0] == "row"] == rows_of_both
    assert [call for call in calls if call[0] != "row"] == [
        (4, 4), (5, 5), (4, 8), (5, 10), (4, 12),
    ]  # fmt: skip
    assert calls.index((4, 12)) < calls.index(("row", 12))
