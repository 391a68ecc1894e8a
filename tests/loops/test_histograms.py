"""Histograms: which values they are of, at which steps, and that a resume gives the same."""

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from loops import histograms
from loops.histograms import Histograms, by_stage
from loops.hook import Hook
from loops.records.tensorboard import TensorBoard
from tests.loops import training
from tests.loops.helpers import Batches, Statistics
from tests.loops.training import make_trainer


class Staged(Statistics):
    """As `Statistics`, as a sequence of two stages."""

    stage_names = ("twice", "head")

    @property
    def stages(self):
        return {"head": self.dense}

    def run_stages(self, images, *, training):
        assert not training
        yield "twice", 2 * images
        yield "head", self.dense(images - self.moving_mean.value)


def bins(run_dir):
    """The bins of each histogram that TensorBoard shows, by tag and step."""
    shown = EventAccumulator(str(run_dir / "train"), size_guidance={"tensors": 0}).Reload()
    points = [
        ((tag, event.step), tf.make_ndarray(event.tensor_proto))
        for tag in shown.PluginTagToContent("histograms")
        for event in shown.Tensors(tag)
    ]
    assert len(dict(points)) == len(points)
    return dict(points)


def make(strategy, run_dir, *hooks, every=4, batches=None):
    board = TensorBoard(run_dir)
    hooks = (board, Histograms(board.writers["train"], every), *hooks)
    return make_trainer(strategy, run_dir, *hooks, batches=batches, log_steps=4)


class Kernels(Hook):
    """Notes the kernel after each step."""

    def __init__(self):
        self.kernels = {}

    def next_step(self, step):
        return step + 1

    def on_step(self, trainer):
        self.kernels[trainer.step] = trainer.state.net.dense.kernel.numpy()


def range_of(array):
    return array[0, 0], array[-1, 1], array[:, 2].sum()


@pytest.fixture(autouse=True, scope="module")
def _staged():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "Statistics", Staged)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run's directory, the kernels after each step, and the batches that were asked for."""
    run_dir, noted, batches = tmp_path_factory.mktemp("whole"), Kernels(), Batches()
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    make(strategy, run_dir, noted, batches=batches).run()
    return run_dir, noted.kernels, batches.calls


@pytest.mark.slow
def test_histograms_are_of_the_weights_and_the_batch_of_each_multiple(whole):
    run_dir, kernels, calls = whole
    found = bins(run_dir)
    kinds = {"stage_weights/head", "stage_gradients/head"}
    kinds |= {"stage_activations/twice", "stage_activations/head"}
    assert found.keys() == {(kind, step) for kind in kinds for step in (4, 8, 12)}
    for step in (4, 8, 12):
        kernel = kernels[step]
        expected = kernel.min(), kernel.max(), kernel.size
        assert range_of(found["stage_weights/head", step]) == pytest.approx(expected)
        images = np.concatenate([x for x, _ in Batches().batches(step - 1, step)])
        expected = 2 * images.min(), 2 * images.max(), 32
        assert range_of(found["stage_activations/twice", step]) == pytest.approx(expected)
        assert found["stage_gradients/head", step][:, 2].sum() == 12
    assert [call for call in calls if call[1] is not None] == [(3, 4), (7, 8), (11, 12)]


class Crash(Hook):
    def next_step(self, step):
        return 8 if step < 8 else None

    def on_step(self, trainer):
        raise KeyError


@pytest.mark.slow
def test_a_resumed_run_has_the_same_histograms_once(one_replica, whole, tmp_path):
    """It is stopped behind histograms that are not in its last state, that of step 6."""
    with pytest.raises(KeyError):
        make(one_replica, tmp_path, Crash()).run()
    assert {step for _, step in bins(tmp_path)} == {4, 8}
    make(one_replica, tmp_path).run()
    one, other = bins(whole[0]), bins(tmp_path)
    assert one.keys() == other.keys()
    for key, values in one.items():
        np.testing.assert_allclose(values, other[key], rtol=1e-6)


@pytest.mark.slow
def test_a_net_without_stages_and_several_replicas(two_replicas, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "Statistics", Statistics)
    make(two_replicas, tmp_path, batches=Batches(2)).run()
    kinds = ("stage_weights/net", "stage_gradients/net")
    assert bins(tmp_path).keys() == {(kind, step) for kind in kinds for step in (4, 8, 12)}


class Net:
    def __init__(self, *shapes):
        self.a, self.b = (
            [tf.Variable(tf.zeros(shape)) for shape in part] for part in (shapes[:2], shapes[2:])
        )
        self.trainable_variables = self.a + self.b

    @property
    def stages(self):
        class Stage:
            def __init__(self, variables):
                self.trainable_variables = variables

        return {"a": Stage(self.a), "b": Stage(self.b)}


def test_only_kernels_of_a_stage_are_taken_and_evenly_spaced(monkeypatch):
    monkeypatch.setattr(histograms, "MAX_VALUES", 4)
    net = Net((2, 2), (3,), (5,))
    values = [[[1, 2], [3, 4]], [7, 7, 7], [8, 8, 8, 8, 8]]
    found = by_stage(net, [tf.constant(x) for x in values])
    assert {name: x.tolist() for name, x in found.items()} == {"a": [1, 2, 3, 4]}
    net = Net((2, 2), (3, 2), (1, 1))
    values = [[[0, 1], [2, 3]], [[4, 5], [6, 7], [8, 9]], [[10]]]
    found = by_stage(net, [tf.constant(x) for x in values])
    assert {name: x.tolist() for name, x in found.items()} == {"a": [0, 3, 4, 7], "b": [10]}
