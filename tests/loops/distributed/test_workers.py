"""What workers decide together: a single one, and two processes on this machine."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.kill_runs import free_ports
from loops.distributed.workers import Workers, lost_worker
from tests.conftest import ROOT

# Each worker prints what it got. Then worker 1 dies.
SCRIPT = """
import json, os, signal
from loops.distributed.cluster import find_cluster
from loops.distributed.connection import connect
from loops.distributed.workers import Workers

signals = []
signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
cluster = find_cluster("auto", os.environ)
workers = Workers(connect(cluster, "CPU", 1), cluster)
os.kill(os.getpid(), signal.SIGTERM)
index = workers.index
results = {
    "count": workers.count, "index": index, "is_chief": workers.is_chief, "signals": signals,
    "replicas": workers.strategy.num_replicas_in_sync,
    "total": workers.total([[1.5, index], [1e300, 2.0**-40]]).tolist(),
    "from_chief": workers.broadcast_from_chief(7.25 if index == 0 else -3.0),
    "same": workers.agree("the same \\udcff"), "different": workers.agree(f"worker {index}"),
    "nan": str(workers.broadcast_from_chief(float("nan") if index == 0 else 1.0)),
    "came": workers.barrier(),
}
if index == 1:
    os._exit(0 if print(json.dumps(results), flush=True) is None else 1)
print(json.dumps(results | {"came_after_death": workers.barrier()}), flush=True)
os._exit(0)
"""

# Updates of a small net, of which this worker computes its part, and a sum over workers.
UPDATES = """
import json, os, sys
import tensorflow as tf
from loops.distributed.cluster import find_cluster
from loops.distributed.devices import make_strategy
from loops.distributed.workers import Workers
from loops.inputs import iterate
from loops.step import StepSettings, TrainStep
from tests.loops.helpers import Statistics, examples, make_state, schedule

cluster = find_cluster("auto", os.environ)
strategy, description = make_strategy(int(sys.argv[1]), "cpu", cluster)
workers = Workers(strategy, cluster)
rows = 8 // workers.count
images, labels = zip(*(examples(8, seed) for seed in range(3)))
mine = slice(workers.index * rows, (workers.index + 1) * rows)
parts = tf.concat([x[mine] for x in images], 0), tf.concat([x[mine] for x in labels], 0)
dataset = tf.data.Dataset.from_tensor_slices(parts).batch(2, drop_remainder=True).repeat()
state = make_state(strategy, Statistics, ema=True)
step = TrainStep(strategy, state, StepSettings(8, clip_norm=0.5, ema_decay=0.9), schedule(0.1))
step.run(iterate(strategy, dataset), tf.constant(3))
results = {
    "description": description,
    "devices": [name.rpartition("device:")[2] for name in strategy.extended.worker_devices],
    "replicas": strategy.num_replicas_in_sync,
    "total": workers.total([1.5, workers.index]).tolist(),
    "weights": [v.numpy().tolist() for v in (*state.net.variables, *state.ema_net.variables)],
    "loss": state.window["loss"].numpy().tolist(),
}
print(json.dumps(results), flush=True)
os._exit(0)
"""


def test_a_single_worker_agrees_with_itself(strategy):
    workers = Workers(strategy)
    assert (workers.count, workers.index, workers.is_chief) == (1, 0, True)
    np.testing.assert_array_equal(workers.total([1, 2.5]), [1, 2.5])
    assert workers.total([1]).dtype == np.float64
    assert workers.broadcast_from_chief(7) == 7
    assert workers.agree("anything")
    assert workers.barrier()


def started(script, environment, *args):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)], cwd=ROOT, stdout=subprocess.PIPE,
        text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1"} | environment,
    )  # fmt: skip


def printed(processes):
    """The JSON that each process has printed."""
    try:
        outputs = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes)
    return [json.loads(output) for output in outputs]


def two_workers():
    """The environments of two workers. TensorFlow must not read them itself, and find a chief."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    jobs = {"chief": addresses[:1], "worker": addresses[1:]}
    for kind in jobs:
        yield {"TF_CONFIG": json.dumps({"cluster": jobs, "task": {"type": kind, "index": 0}})}


@pytest.mark.slow
def test_two_workers():
    results = printed([started(SCRIPT, environment) for environment in two_workers()])
    assert results[0].pop("came_after_death") is False
    for index, result in enumerate(results):
        assert result == {
            "count": 2,
            "index": index,
            "is_chief": index == 0,
            "signals": [15],
            "replicas": 2,
            "total": [[3.0, 1.0], [2e300, 2.0**-39]],
            "from_chief": 7.25,
            "same": True,
            "different": False,
            "nan": "nan",
            "came": True,
        }


@pytest.mark.slow
def test_two_workers_of_two_replicas_make_the_updates_of_one_process_with_four():
    processes = [started(UPDATES, {}, 4), *(started(UPDATES, task, 2) for task in two_workers())]
    one, *workers = printed(processes)
    assert (one["replicas"], one["total"]) == (4, [1.5, 0])
    for worker in workers:
        assert worker["description"].startswith(
            "2 workers, each CPU, 2 logical devices (rehearsal)"
        )
        assert (worker["devices"], worker["replicas"]) == (["CPU:0", "CPU:1"], 4)
        assert worker["total"] == [3, 1]
        np.testing.assert_allclose(worker["loss"], one["loss"], rtol=1e-6)
        for a, b in zip(worker["weights"], one["weights"], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (
            tf.errors.UnavailableError(
                None,
                None,
                "Collective ops is aborted by: Error reported from /job:worker/task:3: x",
            ),
            True,
        ),
        (tf.errors.UnavailableError(None, None, "stopped sending heartbeats"), True),
        (tf.errors.AbortedError(None, None, "from /job:worker/task:3"), True),
        (tf.errors.InvalidArgumentError(None, None, "/job:worker/task:3"), False),
        (tf.errors.UnavailableError(None, None, "something else"), False),
        (tf.errors.InternalError(None, None, "Collective ops is aborted by: a mismatch"), False),
        (ValueError("Collective ops is aborted"), False),
    ],
)
def test_the_loss_of_a_worker_is_told_from_other_errors(error, is_lost):
    message = "another worker has stopped; start all workers again to resume the run"
    assert lost_worker(error) == (message if is_lost else None)
