"""What a trainer does about values that are not finite, failed saves and batches it cannot make."""

import numpy as np
import pytest
import tensorflow as tf

from loops.errors import NonFiniteError, SaveError
from loops.interrupt import Interrupted
from loops.records.checkpoint_files import saved_steps
from tests.loops.helpers import Batches, Fault, Split, examples
from tests.loops.training import TRAINING, VAL, At, last_values, make_trainer, rows


@pytest.fixture(autouse=True)
def _one_step_in_a_call(monkeypatch):
    monkeypatch.setattr("loops.trainer._SECONDS_PER_CALL", 0.0)


# Values that are not finite.


def test_a_loss_that_is_not_finite_stops_the_run(one_replica, tmp_path):
    """With the step, the learning rate and the gradient norm; the last good state stays."""
    wanted = (
        r"the loss is not finite at step 8 \(loss nan, gradient norm nan, learning rate 0\.1\); "
        r"the checkpoint of step 6 is kept\. Try a lower --learning_rate, .* --on_nan"
    )
    with pytest.raises(NonFiniteError, match=wanted):
        make_trainer(one_replica, tmp_path, batches=Batches(spoil=[7])).run()
    saved = last_values(tmp_path)
    assert saved["optimizer/iterations"] == 6
    floats = {name: v for name, v in saved.items() if v.dtype.kind == "f"}
    assert len(floats) > 15
    assert all(np.all(np.isfinite(value)) for value in floats.values())


def test_a_weight_that_is_not_finite_is_not_saved(one_replica, tmp_path):
    trainer = make_trainer(
        one_replica,
        tmp_path,
        At(VAL, 3, lambda: trainer.state.net.dense.bias.assign([np.inf] * 3)),
    )
    wanted = r"a weight is not finite at step 3 \(learning rate 0\.2\); the checkpoint of step 0"
    with pytest.raises(NonFiniteError, match=wanted):
        trainer.run()
    assert saved_steps(tmp_path / "checkpoints") == [0]
    assert saved_steps(tmp_path / "best") == []


@pytest.mark.slow
def test_skipped_updates_are_counted(one_replica, tmp_path):
    """Also where a row has no others: the first two are all those of a row."""
    batches = Batches(spoil=[4, 5, 6])
    make_trainer(one_replica, tmp_path, batches=batches, on_nan="skip").run()
    found = {row["step"]: row for row in rows(tmp_path, "train")}
    counts = {step: row["skipped_updates"] for step, row in found.items()}
    assert counts == {2: 0, 3: 0, 4: 0, 6: 2, 8: 3, 9: 3, 10: 3, 12: 3}
    for step, row in found.items():
        assert (row["loss"] is None) == (row["gradient_norm"] is None) == (step == 6)
        assert (row["expected_calibration_error"] is None) == (step == 6)


def test_skips_without_an_end_stop_the_run(one_replica, tmp_path, monkeypatch):
    monkeypatch.setattr("loops.update.MAX_CONSECUTIVE_SKIPS", 3)
    trainer = make_trainer(
        one_replica, tmp_path, batches=Batches(spoil=range(4, 99)), on_nan="skip"
    )
    with pytest.raises(
        NonFiniteError, match=r"not finite at step 7, the last of 3 in a row \(loss"
    ):
        trainer.run()


@pytest.mark.slow
def test_going_back_leaves_out_batches(two_replicas, tmp_path):
    """From step 6 on, the batches 6 and 7 are left out: the run is one that never had them.

    The last one is number 13. That the next, which is prefetched, cannot be made does not matter.
    """
    batches, messages = Batches(2, spoil=[7], fail=[14]), []
    make_trainer(two_replicas, tmp_path, batches=batches, on_nan="restore", say=messages).run()
    assert batches.calls == [(0, None), (8, None)]
    assert batches.asked == []
    (message,) = messages
    assert message.startswith("the loss is not finite at step 8 (loss nan, ")
    assert message.endswith("; continuing from step 6 without the next 2 batches (restore 1 of 3)")
    assert [row["step"] for row in rows(tmp_path, "train")] == [2, 3, 4, 6, 8, 9, 10, 12]
    saved = last_values(tmp_path)
    guard = [saved[f"guard/{name}"] for name in ("restores", "batches_left_out", "stuck")]
    assert guard == [1, 2, False]


@pytest.mark.slow
def test_a_run_that_went_back_is_the_same_if_it_is_stopped_afterwards(one_replica, tmp_path):
    def trainer(name, *hooks):
        batches = Batches(spoil=[7])
        return make_trainer(
            one_replica, tmp_path / name, *hooks, batches=batches, on_nan="restore", say=[]
        )

    trainer("a").run()
    with pytest.raises(Interrupted):
        trainer("b", At(TRAINING, 8)).run()
    trainer("b").run()
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


@pytest.mark.slow
def test_a_run_goes_back_three_times_at_most(one_replica, tmp_path):
    """Without one batch more each time, also if it is started again."""
    wanted = r"at step 7 .*; training went back 3 times already; the checkpoint of step 6 is kept"
    for times, starts in ((3, [0, 8, 9, 10]), (0, [10])):
        batches, messages = Batches(spoil=[7, 8, 9, 10]), []
        trainer = make_trainer(
            one_replica, tmp_path, batches=batches, on_nan="restore", say=messages
        )
        with pytest.raises(NonFiniteError, match=wanted):
            trainer.run()
        assert [message[-16:] for message in messages] == [
            f"(restore {n} of 3)" for n in range(1, times + 1)
        ]
        assert [start for start, _ in batches.calls] == starts
    assert saved_steps(tmp_path / "checkpoints") == [3, 6]


# Saves that fail.


def fail_at(trainer, which, steps):
    """Makes a save fail at some steps, as on a full disk."""
    checkpoints = trainer._checkpoints
    save = getattr(checkpoints, which)

    def attempt():
        if trainer.step in steps:
            raise SaveError(f"cannot save step-{trainer.step}: No space left on device")
        save()

    setattr(checkpoints, which, attempt)
    return trainer


@pytest.mark.parametrize(("which", "step"), [("save_last", 0), ("save_best", 3)])
def test_a_save_that_fails_stops_the_run(one_replica, tmp_path, which, step):
    trainer = fail_at(make_trainer(one_replica, tmp_path), which, {step})
    with pytest.raises(SaveError, match=rf"cannot save step-{step}: No space left on device$"):
        trainer.run()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["save_last", pytest.param("save_best", marks=pytest.mark.slow)])
def test_a_run_continues_without_a_save(unstopped, one_replica, tmp_path, which):
    """And is the same run."""
    expected_dir, expected = unstopped(one_replica)
    messages = []
    trainer = make_trainer(one_replica, tmp_path, on_save_error="continue", say=messages)
    outcome = fail_at(trainer, which, {3, 6}).run()
    assert "cannot save step-6: No space left on device; continuing" in messages
    assert [r for r in rows(tmp_path) if r["split"] != "test"] == [
        r for r in rows(expected_dir) if r["split"] != "test"
    ]
    if which == "save_last" or expected.step > 6:
        assert outcome.scores.figures == expected.scores.figures


def test_without_room_for_any_best_the_last_is_scored(one_replica, tmp_path):
    messages = []
    trainer = make_trainer(one_replica, tmp_path, on_save_error="continue", say=messages)
    outcome = fail_at(trainer, "save_best", range(99)).run()
    assert (outcome.step, outcome.is_best) == (12, False)
    assert outcome.checkpoint == f"{tmp_path}/checkpoints/step-12"
    assert messages[-1] == "no best checkpoint could be saved; scoring the last"


@pytest.mark.slow
def test_a_best_that_was_not_saved_is_made_up_for(one_replica, tmp_path):
    """After the process is killed between the save of the last state and that of the best."""

    class Killed(Exception):
        pass

    def die():
        raise Killed

    trainer = make_trainer(one_replica, tmp_path)
    trainer._checkpoints.save_best = die
    with pytest.raises(Killed):
        trainer.run()
    assert saved_steps(tmp_path / "checkpoints") == [0, 3]
    assert saved_steps(tmp_path / "best") == []
    with pytest.raises(Interrupted):
        make_trainer(one_replica, tmp_path, At("tracing the training step", 3)).run()
    assert saved_steps(tmp_path / "best") == [3]


# Batches that cannot be made.


@pytest.mark.parametrize(
    ("strategy", "fail", "seconds_per_call"),
    [
        pytest.param("one_replica", 5, 0.0, marks=pytest.mark.slow),
        # From step 3 on, a call of the device loop makes three steps.
        ("one_replica", 7, 1e9),
        pytest.param("two_replicas", 8, 1e9, marks=pytest.mark.slow),
    ],
    indirect=["strategy"],
)
def test_a_batch_that_cannot_be_made_is_named(
    strategy, tmp_path, monkeypatch, fail, seconds_per_call
):
    monkeypatch.setattr("loops.trainer._SECONDS_PER_CALL", seconds_per_call)
    batches = Batches(strategy.num_replicas_in_sync, fail=[fail])
    trainer = make_trainer(strategy, tmp_path, batches=batches, log_steps=50)
    with pytest.raises(Fault, match=f"^batch {fail}$") as error:
        trainer.run()
    assert isinstance(error.value.__cause__, tf.errors.InvalidArgumentError)
    assert "bad bytes" in str(error.value.__cause__)
    assert batches.asked[-1] == fail
    assert trainer.step == fail


@pytest.mark.slow
def test_a_batch_is_named_after_others_were_left_out(one_replica, tmp_path, monkeypatch):
    """Batches 6 and 7 are left out, so the update from step 8 on is that of batch 10."""
    monkeypatch.setattr("loops.trainer._SECONDS_PER_CALL", 1e9)
    batches = Batches(spoil=[7], fail=[10])
    trainer = make_trainer(
        one_replica, tmp_path, batches=batches, log_steps=50, on_nan="restore", say=[]
    )
    with pytest.raises(Fault, match=r"^batch 10$"):
        trainer.run()
    assert trainer.step == 8
    assert batches.asked[-1] == 10


def test_a_fault_that_is_not_the_datas_is_raised_as_it_is(one_replica, tmp_path):
    batches = Batches(fail=[5], faults=[])
    with pytest.raises(tf.errors.InvalidArgumentError, match="bad bytes"):
        make_trainer(one_replica, tmp_path, batches=batches).run()
    assert batches.asked == [5]


def test_a_lost_worker_is_not_looked_for_in_the_data(one_replica, tmp_path):
    batches = Batches()
    trainer = make_trainer(one_replica, tmp_path, batches=batches)

    def run(iterator, num_steps):
        raise tf.errors.UnavailableError(None, None, "Collective ops is aborted by: ...")

    trainer.train_step.run = run
    with pytest.raises(tf.errors.UnavailableError):
        trainer.run()
    assert batches.asked == []


def test_a_step_whose_count_came_too_late_is_found_too(one_replica, tmp_path):
    """TensorFlow may cancel the count of the last update when the next batch fails."""
    batches = Batches(fail=[7])
    trainer = make_trainer(one_replica, tmp_path, batches=batches)
    run = trainer.train_step.run

    def late(iterator, num_steps):
        try:
            run(iterator, num_steps)
        except tf.errors.OpError:
            trainer.state.optimizer.iterations.assign_sub(1)
            raise

    trainer.train_step.run = late
    with pytest.raises(Fault, match=r"^batch 7$"):
        trainer.run()
    assert batches.asked == [6, 7]


def test_a_batch_of_a_split_that_cannot_be_made_is_named(one_replica, tmp_path):
    val = Split(*examples(11, seed=1), fail=[1])
    with pytest.raises(Fault, match=r"^batch 1$"):
        make_trainer(one_replica, tmp_path, val=val).run()
    assert val.asked == [1]
