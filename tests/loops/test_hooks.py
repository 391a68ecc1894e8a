"""The calls of hooks: their order, their arguments, and what happens when one cannot write."""

import numpy as np
import pytest
import tensorflow as tf

from loops.errors import SaveError
from loops.hook import Hook
from loops.hooks import HOOKS, make_hooks
from loops.records.checkpoint_files import saved_steps
from loops.stage_norms import StageNorms
from tests.loops.helpers import Batches, make_state
from tests.loops.training import PLAN, make_trainer, rows

METHODS = ("on_start", "on_log", "on_evaluate", "on_epoch", "on_save", "on_end")


class Calls(Hook):
    """Notes every call but those of `on_progress`, with what describes its arguments."""

    def __init__(self, calls, name=""):
        self.calls, self.name = calls, name

    def on_start(self, trainer):
        self._note("on_start", trainer.step, trainer.evaluated_step)

    def on_log(self, trainer, row):
        self._note("on_log", trainer.step, row["split"], row["step"])

    def on_evaluate(self, trainer, row, scores):
        assert {name: row[name] for name in scores.figures} == scores.figures
        assert scores.examples == {"val": 11, "test": 9}[row["split"]]
        self._note("on_evaluate", trainer.step, row["split"], row["step"])

    def on_epoch(self, trainer):
        self._note("on_epoch", trainer.step, trainer.evaluated_step)

    def on_save(self, trainer):
        self._note("on_save", trainer.step, trainer.evaluated_step)

    def on_end(self, trainer, outcome):
        self._note("on_end", trainer.step, outcome.step)

    def _note(self, *call):
        self.calls.append((*([self.name] if self.name else []), *call))


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory):
    """The calls that a run makes to two hooks, its directory, and its outcome."""
    calls, run_dir = [], tmp_path_factory.mktemp("ordinary")
    hooks = Calls(calls, "first"), Calls(calls, "second")
    one_replica = tf.distribute.OneDeviceStrategy("CPU:0")
    outcome = make_trainer(one_replica, run_dir, *hooks, eval_epochs=2).run()
    return calls, run_dir, outcome


def test_the_calls_of_a_run_in_order(ordinary):
    calls, _, outcome = ordinary
    best = outcome.step
    epochs = [
        # Epochs 1 and 3 are not evaluated. The second save of the others is that of the best.
        ("on_log", 2, "train", 2), ("on_log", 3, "train", 3),
        ("on_save", 3, -1), ("on_epoch", 3, -1),
        ("on_log", 4, "train", 4), ("on_log", 6, "train", 6),
        ("on_evaluate", 6, "val", 6), ("on_save", 6, 6), ("on_save", 6, 6), ("on_epoch", 6, 6),
        ("on_log", 8, "train", 8), ("on_log", 9, "train", 9),
        ("on_save", 9, 6), ("on_epoch", 9, 6),
        ("on_log", 10, "train", 10), ("on_log", 12, "train", 12),
        ("on_evaluate", 12, "val", 12), ("on_save", 12, 12),
        *[("on_save", 12, 12)] * (best == 12), ("on_epoch", 12, 12),
    ]  # fmt: skip
    expected = [
        ("on_start", 0, -1),
        ("on_save", 0, -1),
        *epochs,
        ("on_save", 12, 12),
        ("on_evaluate", best, "test", best),
        ("on_save", best, best),
        ("on_end", best, best),
    ]
    assert calls == [(name, *call) for call in expected for name in ("first", "second")]
    assert {call[0] for call in expected} == set(METHODS)


def test_a_hook_can_add_a_figure_that_later_hooks_see(one_replica, tmp_path):
    class Adds(Hook):
        def on_log(self, trainer, row):
            row["twice_the_step"] = 2 * trainer.step

        def on_evaluate(self, trainer, row, scores):
            row["squared_step"] = trainer.step**2

    make_trainer(one_replica, tmp_path, Adds()).run()
    for row in rows(tmp_path, "train"):
        assert row["twice_the_step"] == 2 * row["step"]
        assert 0.1 < row["weight_norm"] < 10
    evaluated = rows(tmp_path, "val") + rows(tmp_path, "test")
    assert len(evaluated) == PLAN.epochs + 1
    for row in evaluated:
        assert row["squared_step"] == row["step"] ** 2
        assert "weight_norm" not in row


@pytest.mark.slow
def test_hooks_start_again_after_going_back_to_a_checkpoint(one_replica, tmp_path):
    """With the step of the checkpoint, before any row of a later step."""
    calls, batches = [], Batches(spoil=[7])
    make_trainer(
        one_replica, tmp_path, Calls(calls), batches=batches, on_nan="restore", say=[]
    ).run()
    starts = [number for number, call in enumerate(calls) if call[0] == "on_start"]
    assert [calls[number] for number in starts] == [("on_start", 0, -1), ("on_start", 6, 6)]
    logged = [call[3] for call in calls[starts[1] :] if call[0] == "on_log"]
    assert logged == [8, 9, 10, 12]


class Fails(Hook):
    """Raises SaveError in a method, the first `times` times from a step on."""

    def __init__(self, method, step=0, times=10**9):
        self.left = times
        setattr(self, method, self._call)
        self._step = step

    def _call(self, trainer, *args):
        del args
        if trainer.step >= self._step and self.left:
            self.left -= 1
            raise SaveError(f"cannot write at {trainer.step}: No space left on device")


@pytest.mark.parametrize("method", ["on_log", "on_save"])
def test_a_hook_that_cannot_write_stops_the_run(one_replica, tmp_path, method):
    after = Calls([])
    trainer = make_trainer(one_replica, tmp_path, Fails(method), after)
    with pytest.raises(SaveError, match=r"cannot write at \d+: No space left on device$"):
        trainer.run()
    assert method not in {call[0] for call in after.calls}


@pytest.mark.slow
def test_a_run_continues_without_what_hooks_cannot_write(ordinary, one_replica, tmp_path):
    """And calls the other hooks as always."""
    calls, messages = [], []
    hooks = *(Fails(method) for method in METHODS if method != "on_save"), Calls(calls, "first")
    settings = {"eval_epochs": 2, "on_save_error": "continue", "say": messages}
    make_trainer(one_replica, tmp_path, *hooks, **settings).run()
    assert calls == [call for call in ordinary[0] if call[0] == "first"]
    assert rows(tmp_path) == rows(ordinary[1])
    assert len(messages) == sum(call[1] != "on_save" for call in calls)
    assert messages[0] == "cannot write at 0: No space left on device; continuing"


@pytest.mark.slow
def test_no_checkpoint_is_written_if_a_hook_cannot_write_before(one_replica, tmp_path):
    messages, fails = [], Fails("on_save", step=1, times=3)
    trainer = make_trainer(one_replica, tmp_path, fails, on_save_error="continue", say=messages)
    saved, save = [], trainer._checkpoints.save_last
    trainer._checkpoints.save_last = lambda: (saved.append(trainer.step), save())[1]
    trainer.run()
    # At step 3 neither the last state nor the best could be saved, at step 6 not the last.
    assert messages == [
        f"cannot write at {n}: No space left on device; continuing" for n in (3, 3, 6)
    ]
    assert saved == [0, 9, 12, 12]


@pytest.mark.slow
def test_a_run_does_not_end_while_a_hook_cannot_write(one_replica, tmp_path):
    """Whatever the policy; when it can, the same command ends the run."""
    after = Calls([])
    hooks = Fails("on_save", step=12), after
    trainer = make_trainer(one_replica, tmp_path, *hooks, on_save_error="continue", say=[])
    with pytest.raises(SaveError, match="cannot write at 12"):
        trainer.run()
    assert saved_steps(tmp_path / "checkpoints") == [6, 9]
    assert "test" not in {call[2] for call in after.calls if call[0] == "on_evaluate"}
    make_trainer(one_replica, tmp_path).run()
    assert [row["step"] for row in rows(tmp_path, "train")] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert [row["step"] for row in rows(tmp_path, "val")] == [3, 6, 9, 12]
    assert len(rows(tmp_path, "test")) == 1


def test_weight_norms_by_hand(strategy):
    """Of the whole net, and of a stage."""
    state = make_state(strategy)
    kernel, bias = np.arange(12.0).reshape(4, 3), np.array([1.0, 2.0, -2.0])
    state.net.dense.set_weights([kernel, bias])
    state.net.stages = {"dense": state.net.dense}

    class Trainer:
        pass

    trainer, row = Trainer(), {"loss": 1.0}
    trainer.state = state
    StageNorms().on_log(trainer, row)
    assert row.keys() == {"loss", "weight_norm_dense"}
    expected = np.sqrt(np.sum(np.arange(12) ** 2) + 9)
    for norm in (row["weight_norm_dense"], state.weight_norm()):
        assert type(norm) is float
        assert norm == pytest.approx(expected)


def test_hooks_by_their_names(monkeypatch):
    assert make_hooks(()) == []
    with pytest.raises(ValueError, match="'stage_nrms'; known hooks: stage_norms"):
        make_hooks(("stage_nrms",))
    monkeypatch.setitem(HOOKS, "other", Hook)
    assert [type(hook) for hook in make_hooks(("other", "stage_norms"))] == [Hook, StageNorms]


class Adds(Hook):
    def __init__(self, values):
        self.values = values

    def on_log(self, trainer, row):
        row["mine"] = next(self.values)


def test_what_a_hook_adds_becomes_a_number(one_replica, tmp_path):
    values = iter((True, np.float32(1), tf.constant(1.0), np.int64(1), *[1] * 4))
    make_trainer(one_replica, tmp_path, Adds(values)).run()
    found = [row["mine"] for row in rows(tmp_path) if row["split"] == "train"]
    assert found == [1.0] * 8


def test_what_a_hook_adds_must_be_a_number(one_replica, tmp_path):
    with pytest.raises(ValueError, match=r"Adds set row\['mine'\] to '1.5', which is not a num"):
        make_trainer(one_replica, tmp_path, Adds(iter(["1.5"]))).run()
    assert not (tmp_path / "metrics.jsonl").exists()
