import shutil

import numpy as np
import pytest
import tensorflow as tf

from loops.errors import RunError, SaveError
from loops.records.checkpoint_files import find_checkpoint, saved_steps
from loops.records.checkpoints import Checkpoints
from loops.variables import named_variables, nest
from tests.loops.helpers import (
    Linear,
    Statistics,
    full_disk,
    make_state,
    weights,
)


def all_variables(state):
    """Every variable there is, found without a checkpoint's help."""
    scale = state.loss_scale
    return [
        *state.net.variables,
        *state.ema_net.variables,
        *state.optimizer.variables,
        *state.window.values(),
        *state.progress.values(),
        *state.guard.values(),
        scale.scale,
        scale.good_steps,
    ]


def values(state):
    return [np.copy(v.numpy()) for v in all_variables(state)]


def fill(state, base):
    """Known numbers, all different."""
    for i, variable in enumerate(all_variables(state)):
        variable.assign(tf.cast(tf.fill(variable.shape, base + i), variable.dtype))


def full_state(strategy, **kwargs):
    return make_state(strategy, net=Statistics, ema=True, loss_scale=True, **kwargs)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_all_there_is_comes_back(tmp_path, strategy, optimizer):
    state = full_state(strategy, optimizer=optimizer)
    fill(state, 10)
    saved = values(state)
    Checkpoints(state, tmp_path, keep=2).save_last()

    other = full_state(strategy, optimizer=optimizer)
    fill(other, 500)
    assert Checkpoints(other, tmp_path, keep=2).restore_last()
    for a, b in zip(values(other), saved, strict=True):
        np.testing.assert_array_equal(a, b)


def test_from_one_replica_to_two_and_back(tmp_path, one_replica, two_replicas):
    for first, second in ((one_replica, two_replicas), (two_replicas, one_replica)):
        state = full_state(first)
        fill(state, 10)
        Checkpoints(state, tmp_path, keep=2).save_last()
        other = full_state(second)
        fill(other, 500)
        assert Checkpoints(other, tmp_path, keep=2).restore_last()
        for a, b in zip(values(other), values(state), strict=True):
            np.testing.assert_array_equal(a, b)


def test_variables_are_saved_by_name(tmp_path, one_replica):
    state = full_state(one_replica)
    Checkpoints(state, tmp_path, keep=2).save_last()
    keys = {k.split("/.ATTR")[0] for k, _ in tf.train.list_variables(str(tmp_path / "checkpoints"))}
    for key in (
        "net/dense/_kernel",
        "net/moving_mean",
        "ema_net/moving_mean",
        "optimizer/iterations",
        "optimizer/momentum/dense/kernel",
        "progress/best_step",
        "window/loss",
        "loss_scale/scale",
    ):
        assert key in keys


def test_names_of_a_net(one_replica):
    names = named_variables(make_state(one_replica, net=Statistics).net)
    assert set(names) == {"moving_mean", "dense/kernel", "dense/bias"}
    assert nest({"a/b": 1, "a/c": 2, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}


class HeldInAList(Linear):
    """Its hidden layers would be in no checkpoint."""

    def __init__(self):
        super().__init__()
        self.hidden = [tf.keras.layers.Dense(4), tf.keras.layers.Dense(4)]

    def call(self, images, *, training):
        for layer in self.hidden:
            images = layer(images)
        return super().call(images, training=training)


def test_layers_in_a_list_are_refused(one_replica, tmp_path):
    with pytest.raises(RunError, match="hold layers as attributes or in tuples"):
        Checkpoints(make_state(one_replica, net=HeldInAList), tmp_path, keep=2)


@pytest.mark.parametrize("part", ["net", "ema_net", "optimizer", "window", "progress", "guard"])
def test_a_save_that_leaves_something_out_is_refused(one_replica, tmp_path, monkeypatch, part):
    state = full_state(one_replica)
    parts = state.parts()
    del parts[part]
    monkeypatch.setattr(state, "parts", lambda: parts)
    with pytest.raises(RunError, match=r"holds \d+ variables of \d+"):
        Checkpoints(state, tmp_path, keep=2).save_last()


def test_a_checkpoint_that_lacks_a_variable_is_refused_by_name(one_replica, tmp_path):
    Checkpoints(make_state(one_replica, net=Linear), tmp_path, keep=2).save_last()
    state = make_state(one_replica, net=Statistics)
    with pytest.raises(
        RunError, match=r"step-0 does not restore this run: it lacks net/moving_mean \[4\]$"
    ):
        Checkpoints(state, tmp_path, keep=2).restore_last()


def test_a_checkpoint_of_more_than_there_is_is_refused_by_name(one_replica, tmp_path):
    Checkpoints(make_state(one_replica, net=Statistics), tmp_path, keep=2).save_last()
    state = make_state(one_replica, net=Linear)
    with pytest.raises(
        RunError, match=r"step-0 does not restore this run: it also has net/moving_mean \[4\]$"
    ):
        Checkpoints(state, tmp_path, keep=2).restore_last()


def test_another_optimizer_is_refused_by_name(one_replica, tmp_path):
    Checkpoints(make_state(one_replica, optimizer="adam"), tmp_path, keep=2).save_last()
    with pytest.raises(
        RunError, match=r"it also has optimizer/velocity/dense/bias \[3\], optimizer/velocity/\w+"
    ):
        Checkpoints(make_state(one_replica, optimizer="sgd"), tmp_path, keep=2).restore_last()


def add_metric(state):
    """A metric of four values per example."""
    state.window["new"] = tf.Variable(tf.zeros(4, tf.float64), trainable=False)
    return state


def without_window(state):
    return [np.copy(v.numpy()) for v in all_variables(state) if id(v) not in
            {id(w) for w in state.window.values()}]  # fmt: skip


def resize(state):
    state.window["top_1_accuracy"] = tf.Variable(tf.zeros(7, tf.float64), trainable=False)
    return state


def remove(state):
    del state.window["top_1_accuracy"]
    return state


def same(state):
    return state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "unknown"),
    [
        (same, add_metric, {"new"}),
        (add_metric, same, set()),
        (same, remove, set()),
        (same, resize, {"top_1_accuracy"}),
        (remove, add_metric, {"new", "top_1_accuracy"}),
    ],
)
def test_with_other_metrics_all_else_comes_back(one_replica, tmp_path, before, after, unknown):
    state = before(full_state(one_replica))
    fill(state, 10)
    Checkpoints(state, tmp_path, keep=2).save_last()
    other = after(full_state(one_replica))
    fill(other, 500)
    checkpoints = Checkpoints(other, tmp_path, keep=2)
    assert checkpoints.restore_last()
    for a, b in zip(without_window(other), without_window(state), strict=True):
        np.testing.assert_array_equal(a, b)
    for name, variable in other.window.items():
        expected = np.nan if name in unknown else state.window[name].numpy()
        np.testing.assert_array_equal(variable.numpy(), np.broadcast_to(expected, variable.shape))
    # It is then saved with the metrics that there are.
    other.optimizer.iterations.assign_add(1)
    checkpoints.save_last()
    assert Checkpoints(other, tmp_path, keep=2).restore_last()


def test_with_other_metrics_two_replicas_restore_what_one_saved(
    one_replica, two_replicas, tmp_path
):
    state = full_state(one_replica)
    fill(state, 10)
    Checkpoints(state, tmp_path, keep=2).save_last()
    with two_replicas.scope():
        other = add_metric(full_state(two_replicas))
    assert Checkpoints(other, tmp_path, keep=2).restore_last()
    for a, b in zip(without_window(other), without_window(state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.isnan(other.window["new"].numpy()).all()


@pytest.mark.parametrize("name", ["examples", "steps"])
def test_a_count_of_the_window_that_is_missing_is_refused(one_replica, tmp_path, name):
    state = make_state(one_replica)
    count = state.window.pop(name)
    Checkpoints(state, tmp_path, keep=2).save_last()
    state.window[name] = count
    with pytest.raises(RunError, match=rf"it lacks window/{name} \[\]$"):
        Checkpoints(state, tmp_path, keep=2).restore_last()


def test_nothing_saved_is_nothing_restored(one_replica, tmp_path):
    assert not Checkpoints(make_state(one_replica), tmp_path, keep=2).restore_last()


def test_the_last_few_and_the_best_are_kept(one_replica, tmp_path):
    state = make_state(one_replica)
    checkpoints = Checkpoints(state, tmp_path, keep=2)
    for step in (10, 20, 30):
        state.optimizer.iterations.assign(step)
        checkpoints.save_last()
        if step == 20:
            state.progress["best_step"].assign(20)
            checkpoints.save_best()
    assert {p.stem for p in (tmp_path / "checkpoints").glob("*.index")} == {"step-20", "step-30"}
    assert {p.stem for p in (tmp_path / "best").glob("*.index")} == {"step-20"}
    assert checkpoints.restore_best() == f"{tmp_path}/best/step-20"
    assert state.step == 20
    assert checkpoints.path_of(20, best=True) == f"{tmp_path}/best/step-20"
    assert checkpoints.path_of(30, best=False) == f"{tmp_path}/checkpoints/step-30"


def test_a_save_that_fails_leaves_the_earlier_ones(one_replica, tmp_path):
    state = make_state(one_replica)
    checkpoints = Checkpoints(state, tmp_path, keep=2)
    checkpoints.save_last()
    saved = weights(state.net)

    state.optimizer.iterations.assign(7)
    state.net.dense.bias.assign([7.0, 7.0, 7.0])
    with (
        full_disk(),
        pytest.raises(SaveError, match=r"cannot save .*step-7: .*; .*step-0 is still good"),
    ):
        checkpoints.save_last()
    other = make_state(one_replica)
    assert Checkpoints(other, tmp_path, keep=2).restore_last()
    for a, b in zip(weights(other.net), saved, strict=True):
        np.testing.assert_array_equal(a, b)


# Ways in which the files of a state go bad, the first of them its index, the second its data.


def truncate(index, data):
    data.write_bytes(data.read_bytes()[:-7])


def empty(index, data):
    data.write_bytes(b"")


def zero(index, data):
    data.write_bytes(bytes(data.stat().st_size))


def flip_a_bit(index, data):
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)


def truncate_index(index, data):
    index.write_bytes(index.read_bytes()[:-7])


def empty_index(index, data):
    index.write_bytes(b"")


def zero_index(index, data):
    index.write_bytes(bytes(index.stat().st_size))


def remove_both(index, data):
    index.unlink()
    data.unlink()


def remove_data(index, data):
    data.unlink()


def remove_index(index, data):
    index.unlink()


DAMAGES = (
    truncate, empty, zero, flip_a_bit, truncate_index, empty_index, zero_index, remove_both,
    remove_data, remove_index,
)  # fmt: skip


def saved(strategy, run_dir, steps=(10, 20, 30)):
    """Checkpoints of a state, its bias being the step."""
    state = make_state(strategy)
    checkpoints = Checkpoints(state, run_dir, keep=3)
    for step in steps:
        state.optimizer.iterations.assign(step)
        state.net.dense.bias.assign([float(step)] * 3)
        checkpoints.save_last()
    return state


def damage(run_dir, step, how, part="checkpoints"):
    how(run_dir / part / f"step-{step}.index", run_dir / part / f"step-{step}.data-00000-of-00001")


def restored(strategy, run_dir):
    """A fresh state that restored the last, the checkpoints, and what was said."""
    state, said = make_state(strategy), []
    checkpoints = Checkpoints(state, run_dir, keep=3, say=said.append)
    assert checkpoints.restore_last()
    assert np.all(state.net.dense.bias.numpy() == state.step)
    return state, checkpoints, said


@pytest.mark.parametrize("how", DAMAGES, ids=lambda how: how.__name__)
def test_a_damaged_newest_falls_back_to_the_one_before(one_replica, tmp_path, how):
    saved(one_replica, tmp_path)
    damage(tmp_path, 30, how)
    state, checkpoints, said = restored(one_replica, tmp_path)
    assert state.step == 20
    assert f"{tmp_path}/checkpoints/step-30 is damaged (" in said[0]
    assert said[1] == f"continuing from {tmp_path}/checkpoints/step-20, the one before"
    # It is not taken again, nor by eval.py, and the run saves that step anew.
    assert find_checkpoint(tmp_path, "last") == f"{tmp_path}/checkpoints/step-20"
    state.optimizer.iterations.assign(30)
    state.net.dense.bias.assign([30.0] * 3)
    checkpoints.save_last()
    state, _, said = restored(one_replica, tmp_path)
    assert (state.step, said) == (30, [])


def test_two_damaged_ones_fall_back_to_the_third(one_replica, tmp_path):
    saved(one_replica, tmp_path)
    damage(tmp_path, 30, zero)
    damage(tmp_path, 20, remove_data)
    state, _, said = restored(one_replica, tmp_path)
    assert state.step == 10
    assert [line.split(" is damaged")[0][-7:] for line in said[:2]] == ["step-30", "step-20"]


def test_damage_is_told_once_also_if_training_goes_back_again(one_replica, tmp_path):
    saved(one_replica, tmp_path)
    damage(tmp_path, 30, remove_both)
    _, checkpoints, said = restored(one_replica, tmp_path)
    assert said[0].endswith("step-30 is damaged (its files are missing)")
    assert len(said) == 2
    assert checkpoints.restore_last()
    assert len(said) == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGES, ids=lambda how: how.__name__)
def test_none_good_is_not_a_fresh_start(one_replica, tmp_path, how):
    saved(one_replica, tmp_path)
    for step in (10, 20, 30):
        damage(tmp_path, step, how)
    for _ in range(2):  # Nor the second time.
        state = make_state(one_replica)
        checkpoints = Checkpoints(state, tmp_path, keep=3)
        with pytest.raises(RunError, match="has no checkpoint that can be read") as caught:
            checkpoints.restore_last()
        assert "\n" not in str(caught.value)


def test_a_directory_without_states_is_not_a_fresh_start_where_rows_are(one_replica, tmp_path):
    saved(one_replica, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "metrics.jsonl").write_text('{"split": "train", "step": 7}\n')
    with pytest.raises(RunError, match=f"or remove {tmp_path} to start over"):
        Checkpoints(make_state(one_replica), tmp_path, keep=3).restore_last()


@pytest.mark.parametrize("contents", ["", "half of", None])
def test_a_damaged_list_of_checkpoints_is_made_anew(one_replica, tmp_path, contents):
    saved(one_replica, tmp_path)
    listed = tmp_path / "checkpoints" / "checkpoint"
    if contents is None:
        listed.unlink()
    else:
        listed.write_text(contents)
    state, _, said = restored(one_replica, tmp_path)
    assert (state.step, said) == (30, [])
    assert tf.train.latest_checkpoint(tmp_path / "checkpoints").endswith("step-30")


def test_a_process_that_goes_on_keeps_no_more_than_it_should(one_replica, tmp_path):
    saved(one_replica, tmp_path)
    state, checkpoints, _ = restored(one_replica, tmp_path)
    for step in (40, 50):
        state.optimizer.iterations.assign(step)
        checkpoints.save_last()
    assert saved_steps(tmp_path / "checkpoints") == [30, 40, 50]


def test_what_a_killed_save_left_is_tidied_up(one_replica, tmp_path):
    saved(one_replica, tmp_path)
    directory = tmp_path / "checkpoints"
    (directory / "step-40_temp").mkdir()
    (directory / "step-40_temp" / "part-00000-of-00001.data-00000-of-00001").write_text("half")
    (directory / "step-40.data-00000-of-00001").write_text("no index yet")
    restored(one_replica, tmp_path)
    assert not list(directory.glob("step-40*"))


def test_a_state_is_written_once_until_it_is_evaluated(one_replica, tmp_path):
    state = make_state(one_replica)
    checkpoints = Checkpoints(state, tmp_path, keep=2)
    index = tmp_path / "checkpoints" / "step-0.index"
    times = []
    for evaluated in (-1, -1, 0):
        state.progress["evaluated_step"].assign(evaluated)
        checkpoints.save_last()
        times.append(index.stat().st_mtime_ns)
    assert times[0] == times[1] != times[2]


@pytest.mark.parametrize("how", DAMAGES, ids=lambda how: how.__name__)
def test_a_damaged_best_is_noticed(one_replica, tmp_path, how):
    state = make_state(one_replica)
    state.progress["best_step"].assign(0)
    checkpoints = Checkpoints(state, tmp_path, keep=2)
    checkpoints.save_best()
    assert checkpoints.has_best()
    damage(tmp_path, 0, how, part="best")
    assert not checkpoints.has_best()
    with pytest.raises(RunError, match="best/step-0, the best checkpoint, cannot be scored"):
        checkpoints.restore_best()
    # The same state among the last ones will do.
    checkpoints.save_last()
    assert checkpoints.restore_best() == f"{tmp_path}/checkpoints/step-0"


def test_a_best_that_is_missing_is_replaced_by_the_one_that_is_there(one_replica, tmp_path):
    state, said = make_state(one_replica), []
    checkpoints = Checkpoints(state, tmp_path, keep=2, say=said.append)
    state.optimizer.iterations.assign(10)
    checkpoints.save_best()
    state.progress["best_step"].assign(20)
    assert not checkpoints.has_best()
    assert checkpoints.restore_best() == f"{tmp_path}/best/step-10"
    assert said == [f"{tmp_path}/best/step-20 is missing; using step-10"]


def test_a_save_is_known_by_step_evaluation_and_restores(one_replica, tmp_path):
    state = make_state(one_replica)
    checkpoints = Checkpoints(state, tmp_path, keep=2)
    assert checkpoints.safe_step is None
    checkpoints.save_last()
    assert checkpoints.safe_step == 0
    state.guard["restores"].assign(1)
    state.net.dense.bias.assign([5.0] * 3)
    checkpoints.save_last()
    other = make_state(one_replica)
    assert Checkpoints(other, tmp_path, keep=2).restore_last()
    assert list(other.net.dense.bias.numpy()) == [5, 5, 5]


class SecondWorker:
    """Stands in for `Workers` on a machine that is not the chief."""

    is_chief = False
    chief_says = 0

    def broadcast_from_chief(self, number):
        return self.chief_says


def test_a_worker_that_is_not_the_chief_saves_nothing(one_replica, tmp_path):
    state = saved(one_replica, tmp_path / "chief")
    workers = SecondWorker()
    checkpoints = Checkpoints(state, tmp_path / "worker", keep=2, workers=workers)
    checkpoints.save_last()
    checkpoints.save_best()
    assert not (tmp_path / "worker").exists()
    follower = make_state(one_replica)
    workers.chief_says = 20
    assert Checkpoints(follower, tmp_path / "chief", keep=2, workers=workers).restore_last()
    assert follower.step == 20


def test_the_chief_says_which_best_state_is_restored(one_replica, tmp_path):
    """Whatever a worker itself sees, or believes to be the best."""
    state = saved(one_replica, tmp_path)
    workers = SecondWorker()
    workers.total = lambda numbers: (10, 0)  # It is among the last checkpoints.
    state.progress["best_step"].assign(99)
    Checkpoints(state, tmp_path, keep=3, workers=workers).restore_best()
    assert state.step == 10


def test_a_worker_saves_whenever_the_chief_does(one_replica, tmp_path, monkeypatch):
    """Also where it had no trouble with a state that the chief could not write."""
    state = make_state(one_replica)
    checkpoints = Checkpoints(state, tmp_path, keep=2, workers=SecondWorker())
    made = []
    monkeypatch.setattr(checkpoints, "_save_nowhere", lambda: made.append(state.step))
    checkpoints.save_last()
    checkpoints.save_last()
    assert made == [0, 0]
