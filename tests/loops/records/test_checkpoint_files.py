import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from loops.errors import RunError, SaveError, reason
from loops.records import checkpoint_files as files
from loops.records.checkpoints import Checkpoints
from tests.conftest import ROOT
from tests.loops.helpers import Linear, Statistics, full_disk, make_state, weights

SLOW = pytest.mark.slow
# Names of directories, each with a neighbour that it would match as a pattern, or begins with it.
NAMES = {
    "lr?": "lr1",
    "lr[1]": "lr1",
    "lr=[0.1]": "lr=0",
    "[!a]": "b",
    "a*b": "a-b",
    "*": "anything",
    "a\\b": "ab",
    "a\\*": "a*",
    "{a,b}": "a",
    "a\nb": "a",
    "a b": "a",
    """it's "q" """: "q",
    "-rf": "rf",
    "größe 写真": "größe",
    "a\u2028\x1b\tb": "ab",
    os.fsdecode(b"lr\xff"): "lr",
    "$HOME;~": "~",
    "..a": "a",
}


def contents(directory):
    return {
        path.relative_to(directory): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def save(run_dir, steps, keep=2):
    """Checkpoints of a state whose bias is the step, which is the best each time."""
    state = make_state(tf.distribute.get_strategy())
    checkpoints = Checkpoints(state, run_dir, keep)
    for step in steps:
        state.optimizer.iterations.assign(step)
        state.progress["best_step"].assign(step)
        state.net.dense.bias.assign([float(step)] * 3)
        checkpoints.save_last()
        checkpoints.save_best()
    return state, checkpoints


@pytest.fixture(scope="module")
def neighbour(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("neighbour") / "run"
    save(run_dir, (1, 2, 3))
    return run_dir


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("lr?", "lr=[0.1]", "a\\*", "a\nb") else SLOW)
        for name in NAMES
    ],
    ids=ascii,
)
def test_a_run_in_a_directory_of_any_name_works_and_touches_no_other(tmp_path, neighbour, name):
    run_dir, other = tmp_path / name, tmp_path / NAMES[name]
    shutil.copytree(neighbour, other)
    before = contents(other)

    save(run_dir, (1, 2, 3, 4))
    (run_dir / "config.json").write_text("{}")
    assert files.saved_steps(run_dir / "checkpoints") == [3, 4]
    assert files.saved_steps(run_dir / "best") == [4]
    # A restart.
    state, checkpoints = save(run_dir, ())
    assert checkpoints.restore_last()
    assert (state.step, *state.net.dense.bias.numpy()) == (4, 4, 4, 4)
    state.optimizer.iterations.assign(5)
    checkpoints.save_last()
    assert files.saved_steps(run_dir / "checkpoints") == [4, 5]
    assert checkpoints.has_best()
    assert checkpoints.restore_best() == f"{run_dir}/best/step-4"
    assert state.step == 4
    # A damaged checkpoint.
    data = run_dir / "checkpoints" / "step-5.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-7])
    assert files.why_unreadable(f"{run_dir}/checkpoints/step-5")
    state, said = make_state(tf.distribute.get_strategy()), []
    assert Checkpoints(state, run_dir, 2, say=said.append).restore_last()
    assert state.step == 4
    assert said[0].startswith(f"{run_dir}/checkpoints/step-5 is damaged (")
    assert (run_dir / "checkpoints" / "damaged-step-5.index").exists()
    # Scoring.
    for which in ("last", "best", "best/step-4", f"{run_dir}/best/step-4.index", str(run_dir)):
        prefix = files.find_checkpoint(run_dir, which)
        assert prefix == f"{run_dir}/{'best' if 'best' in which else 'checkpoints'}/step-4"
    net = make_state(tf.distribute.get_strategy()).net
    assert files.restore_net(net, files.find_checkpoint(run_dir, "best"), average=False) == 4
    assert list(net.dense.bias.numpy()) == [4, 4, 4]
    assert contents(other) == before
    assert set(os.listdir(tmp_path)) == {name, NAMES[name]}


@pytest.mark.parametrize("name", ["lr?", "a\nb"], ids=ascii)
def test_messages_have_the_path_that_was_given(tmp_path, name):
    run_dir = tmp_path / name
    state, checkpoints = save(run_dir, (1,))
    state.optimizer.iterations.assign(2)
    with full_disk(), pytest.raises(SaveError) as caught:
        checkpoints.save_last()
    shown = str(tmp_path / ascii(name)[1:-1])
    assert str(caught.value) == (
        f"cannot save {shown}/checkpoints/step-2: File too large; "
        f"{shown}/checkpoints/step-1 is still good"
    )
    (run_dir / "checkpoints" / "step-1.index").unlink()
    with pytest.raises(RunError) as caught:
        files.restore_net(state.net, f"{run_dir}/checkpoints/step-1", average=False)
    prefix = f"{shown}/checkpoints/step-1"
    assert str(caught.value).startswith(f"{prefix} does not restore this net: ")
    assert str(caught.value).endswith(f"any matching files for {prefix}")  # TensorFlow's reason.


def test_a_checkpoint_whose_own_name_is_a_pattern_is_refused(tmp_path):
    state, _ = save(tmp_path, (1,))
    for path in (tmp_path / "best").glob("step-1.*"):
        path.rename(path.with_name(path.name.replace("step", "step[1]")))
    prefix = files.find_checkpoint(tmp_path, "best/step[1]-1")
    with pytest.raises(RunError, match=r"cannot read a checkpoint named step\[1\]-1; rename"):
        files.restore_net(state.net, prefix, average=False)


def test_a_path_with_a_link_and_dots_is_the_one_that_python_takes(tmp_path):
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "sub")
    save(tmp_path / "link" / ".." / "run", (1,))
    assert (tmp_path / "real" / "run" / "best" / "step-1.index").exists()


@pytest.mark.slow
def test_links_are_removed_at_exit_and_what_they_lead_to_is_not(tmp_path):
    directory = tmp_path / "a*"
    directory.mkdir()
    (directory / "weights").write_text("kept")
    code = (
        "import sys; from loops.records.checkpoint_files import literal_path as literal; "
        "print(literal(sys.argv[1])); print(literal(sys.argv[1])); print(literal('/usr'))"
    )
    temporary = tmp_path / "temporary [1]"  # It may have such a name as well.
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, directory], cwd=ROOT, check=True, capture_output=True,
        text=True, env=os.environ | {"TMPDIR": str(temporary)},
    )  # fmt: skip
    first, second, plain = done.stdout.splitlines()
    assert first == second
    assert not set(first) & set("*?[]")
    assert plain == "/usr"
    assert not os.path.lexists(os.path.dirname(first))
    assert (directory / "weights").read_text() == "kept"


def test_steps_are_those_of_whole_names(tmp_path):
    for name in (
        "step-10.index", "step-9.index", "step-x.index", "step-07.index", "step-٣.index",
        "step-8.data-00000-of-00001", "damaged-step-7.index", "step-6.index.new",
    ):  # fmt: skip
        (tmp_path / name).touch()
    assert files.saved_steps(tmp_path) == [9, 10]
    assert files.saved_steps(tmp_path / "none") == []


def test_only_what_a_save_leaves_is_removed(tmp_path):
    kept = [
        "step-1.index", "step-1.data-00000-of-00001", "step-2.notes", "step-1-copy", "thesis.txt",
        "step-2_temp.txt",
    ]  # fmt: skip
    for name in [
        *kept, "step-2.data-00000-of-00001", "step-3_temp/part-00000-of-00001.index",
        "step-1.index.tempstate123", "step-4.data-00000-of-00001.tempstate9",
    ]:  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files.remove_partial(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


class Deep(tf.keras.layers.Layer):
    """Layers as attributes, in tuples and shared, whose names TensorFlow escapes."""

    def __init__(self):
        super().__init__()
        self.first = tf.keras.layers.Dense(2)
        self.stages = (tf.keras.layers.Dense(2), self.first)
        self.block = tf.keras.Sequential([self.stages[0], tf.keras.layers.BatchNormalization()])
        setattr(self, "a.b/c", tf.keras.layers.Dense(2))


@pytest.mark.parametrize("fixture", ["one_replica", "two_replicas"])
def test_names_are_those_that_tensorflow_gives(tmp_path, request, fixture):
    with request.getfixturevalue(fixture).scope():
        net = Deep()
        for layer in (net.first, net.block, getattr(net, "a.b/c")):
            layer.build((1, 2))
        numbers = {"x": tf.Variable(1.0), "a/b": {"c": tf.Variable([1, 2])}}
        checkpoint = tf.train.Checkpoint(net=net, numbers=numbers)
        checkpoint.save_counter.assign(1)
        found = files.object_variables(checkpoint)
        assert found == files.saved_variables(checkpoint.write(str(tmp_path / "x")))
    assert found["net/first/_kernel"] == [2, 2]
    assert len(found) == 3 * 2 + 4 + 2


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    """A run of a net with averages, and its state."""
    run_dir = tmp_path_factory.mktemp("full") / "run"
    state = make_state(tf.distribute.get_strategy(), net=Statistics, ema=True)
    for i, variable in enumerate([*state.net.variables, *state.ema_net.variables]):
        variable.assign(tf.fill(variable.shape, float(i)))
    state.optimizer.iterations.assign(12)
    state.progress["best_step"].assign(12)
    checkpoints = Checkpoints(state, run_dir, keep=2)
    checkpoints.save_last()
    checkpoints.save_best()
    (run_dir / "config.json").write_text("{}")
    return run_dir, state


def test_a_checkpoint_is_found_by_its_name_and_by_its_paths(full_run, monkeypatch):
    run_dir, _ = full_run
    monkeypatch.chdir(run_dir)
    prefix = str(run_dir / "checkpoints" / "step-12")
    for which in (
        "last", "checkpoints", "checkpoints/step-12", prefix, prefix + ".index", ".", str(run_dir),
        prefix + ".data-00000-of-00001", "best/../checkpoints/step-12",
    ):  # fmt: skip
        assert os.path.realpath(files.find_checkpoint(run_dir, which)) == prefix
    assert files.find_checkpoint(run_dir, "best") == str(run_dir / "best" / "step-12")


@pytest.mark.parametrize(
    "which", ["best", "last", "step-1", "/no/such/place", "~nobody/x", ".index", "..", "a\nb"]
)
def test_a_checkpoint_that_is_not_there(tmp_path, which):
    with pytest.raises(RunError, match="no checkpoint at") as caught:
        files.find_checkpoint(tmp_path / "run", which)
    assert ("--checkpoint=last" in str(caught.value)) == (which == "best")


@pytest.mark.parametrize("average", [False, True])
def test_a_net_alone_is_restored(full_run, average):
    run_dir, state = full_run
    net = make_state(tf.distribute.get_strategy(), net=Statistics).net
    prefix = files.find_checkpoint(run_dir, "best")
    assert files.restore_net(net, prefix, average=average) == 12
    for a, b in zip(weights(net), weights(state.ema_net if average else state.net), strict=True):
        np.testing.assert_array_equal(a, b)


class Wide(Linear):
    def __init__(self):
        super().__init__(classes=5)


class Longer(Statistics):
    def build(self, input_shape):
        super().build(input_shape)
        for i in range(5):
            setattr(self, f"extra_{i}", tf.keras.Variable([0.0]))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Linear, r"it also has net/moving_mean \[4\]$"),
        (
            Longer,
            r"it lacks net/extra_0 \[1\], net/extra_1 \[1\], net/extra_2 \[1\] and 2 more$",
        ),
        (
            Wide,
            r"it lacks net/dense/_kernel \[4, 5\], net/dense/bias \[5\]; it also has "
            r"net/dense/_kernel \[4, 3\], net/dense/bias \[3\], net/moving_mean \[4\]$",
        ),
    ],
)
def test_a_checkpoint_of_another_net_is_refused_by_name(full_run, net, message):
    run_dir, _ = full_run
    net = make_state(tf.distribute.get_strategy(), net=net).net
    before = weights(net)
    with pytest.raises(RunError, match=f"step-12 does not restore this net: {message}"):
        files.restore_net(net, files.find_checkpoint(run_dir, "last"), average=False)
    for a, b in zip(weights(net), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_averages_that_a_checkpoint_lacks_are_named(tmp_path):
    state, _ = save(tmp_path, (1,))
    with pytest.raises(RunError, match="it lacks ema_net/dense/_kernel"):
        files.restore_net(state.net, files.find_checkpoint(tmp_path, "last"), average=True)


def test_a_net_in_a_damaged_checkpoint_is_one_line(tmp_path):
    state, _ = save(tmp_path, (1,))
    data = tmp_path / "checkpoints" / "step-1.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:20])
    with pytest.raises(RunError, match="step-1 does not restore this net") as caught:
        files.restore_net(state.net, str(tmp_path / "checkpoints" / "step-1"), average=False)
    assert "\n" not in str(caught.value)


def test_reasons_are_without_decoration():
    error = tf.errors.UnknownError(None, None, "{{node x}} disk is full [Op:SaveV2] name: \nmore")
    assert reason(error) == "disk is full"
    for directory in ("a", "a b", "a; b", "a\nb"):
        text = f"/{directory}/step-1_temp/x.tempstate1; disk is full"
        assert reason(tf.errors.ResourceExhaustedError(None, None, text)) == "disk is full"
    assert reason(OSError(28, "No space left on device", "a")) == "No space left on device"
    assert reason(ValueError()) == "ValueError"
