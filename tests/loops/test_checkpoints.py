import contextlib
import resource

import numpy as np
import pytest
import tensorflow as tf

from loops.checkpoints import Checkpoints, find_checkpoint, restore_net
from loops.errors import RunError, reason
from loops.variables import named_variables, nest
from tests.loops.helpers import Linear, Statistics, examples, make_state, take_steps, weights


@contextlib.contextmanager
def full_disk():
    """Makes every write beyond a file's first 100 bytes fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def all_variables(state):
    """Every variable there is, found without a checkpoint's help."""
    scale = state.loss_scale
    return [
        *state.net.variables,
        *state.ema_net.variables,
        *state.optimizer.variables,
        *state.window.values(),
        *state.progress.values(),
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
    Checkpoints(state, tmp_path, keep=1).save_last()

    other = full_state(strategy, optimizer=optimizer)
    fill(other, 500)
    assert Checkpoints(other, tmp_path, keep=1).restore_last()
    for a, b in zip(values(other), saved, strict=True):
        np.testing.assert_array_equal(a, b)


def test_from_one_replica_to_two_and_back(tmp_path, one_replica, two_replicas):
    for first, second in ((one_replica, two_replicas), (two_replicas, one_replica)):
        state = full_state(first)
        take_steps(first, state, [examples()], ema_decay=0.9)
        Checkpoints(state, tmp_path, keep=1).save_last()
        other = full_state(second)
        fill(other, 500)
        assert Checkpoints(other, tmp_path, keep=1).restore_last()
        for a, b in zip(values(other), values(state), strict=True):
            np.testing.assert_array_equal(a, b)


def test_variables_are_saved_by_name(tmp_path, one_replica):
    state = full_state(one_replica)
    Checkpoints(state, tmp_path, keep=1).save_last()
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
        Checkpoints(make_state(one_replica, net=HeldInAList), tmp_path, keep=1)


@pytest.mark.parametrize("part", ["net", "ema_net", "optimizer", "window", "progress"])
def test_a_save_that_leaves_something_out_is_refused(one_replica, tmp_path, monkeypatch, part):
    state = full_state(one_replica)
    parts = state.parts()
    del parts[part]
    monkeypatch.setattr(state, "parts", lambda: parts)
    with pytest.raises(RunError, match=r"holds \d+ variables of \d+"):
        Checkpoints(state, tmp_path, keep=1).save_last()


def test_a_checkpoint_that_lacks_a_variable_is_refused(one_replica, tmp_path):
    Checkpoints(make_state(one_replica, net=Linear), tmp_path, keep=1).save_last()
    with pytest.raises(RunError, match="does not restore"):
        Checkpoints(make_state(one_replica, net=Statistics), tmp_path, keep=1).restore_last()


def test_a_checkpoint_of_more_than_there_is_is_refused(one_replica, tmp_path):
    Checkpoints(make_state(one_replica, net=Statistics), tmp_path, keep=1).save_last()
    with pytest.raises(RunError, match="does not restore"):
        Checkpoints(make_state(one_replica, net=Linear), tmp_path, keep=1).restore_last()


def test_nothing_saved_is_nothing_restored(one_replica, tmp_path):
    assert not Checkpoints(make_state(one_replica), tmp_path, keep=1).restore_last()


def test_the_last_few_and_the_best_are_kept(one_replica, tmp_path):
    state = make_state(one_replica)
    checkpoints = Checkpoints(state, tmp_path, keep=2)
    for step in (10, 20, 30):
        state.optimizer.iterations.assign(step)
        checkpoints.save_last()
        if step == 20:
            checkpoints.save_best()
    assert {p.stem for p in (tmp_path / "checkpoints").glob("*.index")} == {"step-20", "step-30"}
    assert {p.stem for p in (tmp_path / "best").glob("*.index")} == {"step-20"}
    assert checkpoints.restore_best()
    assert state.step == 20


def test_a_save_that_fails_leaves_the_earlier_ones(one_replica, tmp_path):
    state = make_state(one_replica)
    checkpoints = Checkpoints(state, tmp_path, keep=1)
    checkpoints.save_last()
    saved = weights(state.net)

    state.optimizer.iterations.assign(7)
    state.net.dense.bias.assign([7.0, 7.0, 7.0])
    with (
        full_disk(),
        pytest.raises(RunError, match=r"cannot save .*step-7: .*; .*step-0 is still good"),
    ):
        checkpoints.save_last()
    other = make_state(one_replica)
    assert Checkpoints(other, tmp_path, keep=1).restore_last()
    for a, b in zip(weights(other.net), saved, strict=True):
        np.testing.assert_array_equal(a, b)


def test_finding_and_restoring_a_net_alone(one_replica, tmp_path, monkeypatch):
    state = full_state(one_replica)
    fill(state, 3)
    state.optimizer.iterations.assign(12)
    checkpoints = Checkpoints(state, tmp_path, keep=1)
    checkpoints.save_last()
    checkpoints.save_best()
    prefix = str(tmp_path / "checkpoints" / "step-12")
    monkeypatch.chdir(tmp_path)
    for which in (
        "last",
        "checkpoints",
        "checkpoints/step-12",
        prefix,
        prefix + ".index",
        prefix + ".data-00000-of-00001",
    ):
        assert (tmp_path / find_checkpoint(tmp_path, which)).resolve() == tmp_path / prefix
    assert find_checkpoint(tmp_path, "best") == str(tmp_path / "best" / "step-12")
    for average, part in ((True, state.ema_net), (False, state.net)):
        net = full_state(one_replica).net
        assert restore_net(net, prefix, average=average) == 12
        for a, b in zip(weights(net), weights(part), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("which", ["best", "last", "step-1", "/no/such/place"])
def test_a_checkpoint_that_is_not_there(tmp_path, which):
    with pytest.raises(RunError, match="no checkpoint at"):
        find_checkpoint(tmp_path, which)


def test_a_damaged_checkpoint_is_one_line(one_replica, tmp_path):
    state = make_state(one_replica)
    Checkpoints(state, tmp_path, keep=1).save_last()
    data = tmp_path / "checkpoints" / "step-0.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:20])
    for restore in (
        Checkpoints(state, tmp_path, keep=1).restore_last,
        lambda: restore_net(state.net, str(tmp_path / "checkpoints" / "step-0"), average=False),
    ):
        with pytest.raises(RunError, match="step-0 does not restore") as caught:
            restore()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("contents", ["", "half of", None])
def test_a_damaged_list_of_checkpoints_is_not_a_fresh_start(one_replica, tmp_path, contents):
    state = make_state(one_replica)
    Checkpoints(state, tmp_path, keep=1).save_last()
    listed = tmp_path / "checkpoints" / "checkpoint"
    if contents is None:
        listed.unlink()
    else:
        listed.write_text(contents)
    with pytest.raises(RunError, match=r"damaged|no file `checkpoint`"):
        Checkpoints(state, tmp_path, keep=1)


def test_reasons_are_without_decoration():
    error = tf.errors.UnknownError(None, None, "{{node x}} disk is full [Op:SaveV2] name: \nmore")
    assert reason(error) == "disk is full"
    assert reason(OSError(28, "No space left on device", "a")) == "No space left on device"
    assert reason(ValueError()) == "ValueError"
