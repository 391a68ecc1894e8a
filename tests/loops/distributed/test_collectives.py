"""The exchange between replicas, and between workers that are made up."""

import pytest
import tensorflow as tf

from loops.distributed import connection
from loops.distributed.cluster import Cluster
from loops.distributed.collectives import gradient_options
from loops.errors import RunError
from loops.step import StepSettings, TrainStep
from tests.loops.helpers import examples, make_state, schedule

CLUSTER = Cluster(("a:1", "b:1"), 1)


class Deep(tf.keras.layers.Layer):
    """Three layers, of which the gradients are computed one after the other, the last first."""

    def __init__(self, classes=3):
        super().__init__()
        self.layers = [tf.keras.layers.Dense(units) for units in (5, 4, classes)]

    def call(self, images, *, training):
        del training
        for layer in self.layers:
            images = layer(images)
        return images


def work_before(operation):
    """The number of matrix products that must be done before an operation."""
    found, left = set(), [operation]
    while left:
        last = left.pop()
        new = {*last.control_inputs, *(x.op for x in last.inputs)} - found
        found |= new
        left += new
    return sum(op.type == "MatMul" for op in found)


@pytest.mark.slow
def test_on_gpus_gradients_are_exchanged_while_others_are_computed(two_replicas, monkeypatch):
    monkeypatch.setattr("loops.distributed.collectives._PACK_BYTES", 1)
    monkeypatch.setattr("loops.step.on_gpus", lambda strategy: True)
    state = make_state(two_replicas, Deep)
    step = TrainStep(two_replicas, state, StepSettings(global_batch_size=8), schedule(0.1))

    def rows(context):
        first = 4 * context.replica_id_in_sync_group
        return tuple(tf.constant(x[first : first + 4]) for x in examples())

    batch = two_replicas.experimental_distribute_values_from_function(rows)
    operations = step.inspect.get_concrete_function(batch).graph.get_operations()
    exchanges = [op for op in operations if op.type == "CollectiveReduceV2"]
    for device in two_replicas.extended.worker_devices:
        work = [work_before(op) for op in exchanges if op.device == device]
        # The metrics and the last bias need the forward pass only, each kernel one product more,
        # and each earlier bias one more.
        assert work[-6:] == [3, 4, 5, 6, 7, 8]
        assert set(work[:-6]) == {3}


def test_on_cpus_gradients_are_one_pack():
    assert gradient_options(on_gpus=False).bytes_per_pack == 0


class Strategy:
    """In place of TensorFlow's, which would wait for workers."""

    num_replicas_in_sync = 4
    devices = ("/job:worker/task:1/device:GPU:0", "/job:worker/task:1/device:GPU:1")

    def __init__(self, resolver, options):
        self.resolver, self.options = resolver, options
        self.extended = self
        self.worker_devices = self.devices


@pytest.fixture
def met(monkeypatch):
    """What workers tell each other."""
    found = []
    monkeypatch.setattr(connection, "meet", lambda *args: found.append(args[-1]))
    monkeypatch.setattr("tensorflow.distribute.MultiWorkerMirroredStrategy", Strategy)
    monkeypatch.setattr(connection, "_Rehearsal", Strategy)
    return found


def test_workers_with_gpus_take_all_of_them_and_exchange_by_nccl(met):
    strategy = connection.connect(CLUSTER, "GPU", 2)
    assert strategy.resolver.num_accelerators() == {"GPU": 2}
    assert strategy.options.implementation.name == "NCCL"
    assert met == ["2 GPUs"]


def test_workers_without_gpus_exchange_by_rings(met, monkeypatch):
    monkeypatch.setattr(Strategy, "devices", ("CPU:0", "CPU:1"))
    strategy = connection.connect(CLUSTER, "CPU", 2)
    assert strategy.resolver.num_accelerators() == {"CPU": 2}
    assert strategy.options.implementation.name == "AUTO"
    assert strategy.options.bytes_per_pack == 0
    assert met == ["2 CPUs"]


@pytest.mark.parametrize(
    ("count", "devices"), [(2, ("/task:1/device:CPU:0",)), (4, ("/task:1/device:GPU:0",))]
)
def test_workers_that_would_not_use_their_gpus_are_refused(met, monkeypatch, count, devices):
    monkeypatch.setattr(Strategy, "devices", devices)
    with pytest.raises(RunError) as caught:
        connection.connect(CLUSTER, "GPU", count)
    assert str(caught.value) == (
        f"2 workers with --num_gpus={count} should make {2 * count} replicas, one on each GPU, but "
        f"TensorFlow has made 4, here on {devices[0]}; use --num_gpus=1"
    )
