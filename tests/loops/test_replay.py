"""Updates that are made again, against the rows of the run that made them."""

import math

import numpy as np
import pytest

from loops.errors import NonFiniteError
from loops.records.checkpoint_files import checkpoint_path
from loops.records.checkpoints import restore_state
from loops.replay import Replay, window_end
from tests.loops.helpers import Batches, Fault
from tests.loops.training import PLAN, make_trainer, rows


def replay(strategy, home, run_dir, start=None, *, log_steps=2, **kwargs):
    """A replay of a run from the checkpoint of a step, or from its initial state."""
    trainer = make_trainer(strategy, home, **kwargs)
    if start is not None:
        restore_state(trainer.state, checkpoint_path(run_dir / "checkpoints", start))
    step, batches = trainer.train_step, trainer.batches
    return Replay(step, plan=PLAN, batches=batches, log_steps=log_steps)


def figures_of(row):
    return {name: x for name, x in row.items() if name not in ("split", "step", "epoch")}


@pytest.fixture(scope="module")
def singles(tmp_path_factory):
    """The rows, of one step each, of a run that nothing happens to, by strategy and step."""
    runs = {}

    def get(strategy):
        replicas = strategy.num_replicas_in_sync
        if replicas not in runs:
            run_dir = tmp_path_factory.mktemp("singles")
            make_trainer(strategy, run_dir, log_steps=1).run()
            runs[replicas] = {row["step"]: row for row in rows(run_dir, "train")}
        return runs[replicas]

    return get


@pytest.mark.parametrize(
    ("strategy", "start", "step", "row"),
    [
        ("one_replica", None, 2, 2),
        pytest.param("one_replica", None, 5, 6, marks=pytest.mark.slow),
        ("one_replica", 9, 12, 12),
        pytest.param("two_replicas", 9, 11, 12, marks=pytest.mark.slow),
    ],
    indirect=["strategy"],
)
def test_a_step_and_its_row_are_those_of_the_run(
    strategy, unstopped, singles, tmp_path, start, step, row
):
    """Rows end at even steps and at the ends of epochs, the steps 3, 6, 9 and 12."""
    run_dir, _ = unstopped(strategy)
    again = replay(strategy, tmp_path / "again", run_dir, start)
    again.advance(step - 1)
    update = again.update()
    single = singles(strategy)[step]
    assert (update.step, update.made) == (step, True)
    assert update.learning_rate == single["learning_rate"]
    assert update.loss == pytest.approx(single["loss"], rel=1e-6)
    assert update.total.gradient == pytest.approx(single["gradient_norm"], rel=1e-6)
    assert update.losses.shape == update.predicted.shape == (8,)
    assert list(update.stages) == ["dense"]
    assert update.stages["dense"].weights == pytest.approx(update.total.weights)
    (logged,) = (r for r in rows(run_dir, "train") if r["step"] == row)
    assert again.finish_window() == pytest.approx(figures_of(logged), rel=1e-6)
    assert again.state.step == row


def test_where_rows_end():
    ends = [window_end(PLAN, 2, step) for step in range(12)]
    assert ends == [2, 2, 3, 4, 6, 6, 8, 8, 9, 10, 12, 12]


@pytest.mark.slow
def test_batches_that_were_left_out(one_replica, tmp_path):
    """The run went back to step 6 from step 8, and left out two batches."""
    spoiled = {"batches": Batches(spoil=[7]), "on_nan": "restore", "say": []}
    make_trainer(one_replica, tmp_path / "run", **spoiled).run()
    batches = Batches(spoil=[7])
    options = {"batches": batches, "on_nan": "restore"}
    again = replay(one_replica, tmp_path / "again", tmp_path / "run", 9, **options)
    again.advance(11)
    again.update()
    assert batches.calls == [(11, 13), (13, 14), (13, 14)]
    logged = rows(tmp_path / "run", "train")[-1]
    assert again.finish_window() == pytest.approx(figures_of(logged), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_an_update_that_is_not_finite(one_replica, tmp_path, on_nan):
    """It is measured, and not made; the run goes on after it only if it skips."""
    batches = Batches(spoil=[4])
    again = replay(one_replica, tmp_path, tmp_path, batches=batches, on_nan=on_nan)
    again.advance(4)
    before = [v.numpy() for v in again.state.net.variables]
    update = again.update()
    assert not update.made
    assert math.isnan(update.loss)
    assert math.isnan(update.total.gradient)
    assert update.total.update == update.total.ratio == 0
    assert update.total.weights > 0
    # The images of a batch are normalized together, and so are all spoiled.
    assert np.isnan(update.losses).all()
    assert (update.predicted == -1).all()
    # Three columns of the kernel and three biases.
    assert update.total.nonfinite == 15
    for variable, value in zip(again.state.net.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    if on_nan == "stop":
        assert again.finish_window() is None
        with pytest.raises(NonFiniteError, match="is not finite at step 5"):
            replay(one_replica, tmp_path, tmp_path, batches=batches, on_nan=on_nan).advance(5)
        return
    figures = again.finish_window()
    assert again.state.step == 6
    assert math.isfinite(figures["loss"])


def test_a_batch_that_cannot_be_made_is_named(one_replica, tmp_path):
    again = replay(one_replica, tmp_path, tmp_path, batches=Batches(fail=[5]))
    with pytest.raises(Fault, match=r"^batch 5$"):
        again.advance(7)
