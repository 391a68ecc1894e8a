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
from loops.distributed.cluster import connect, find_cluster
from loops.distributed.workers import Workers

signals = []
signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
cluster = find_cluster("auto", os.environ)
workers = Workers(connect(cluster), cluster)
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


def test_a_single_worker_agrees_with_itself(strategy):
    workers = Workers(strategy)
    assert (workers.count, workers.index, workers.is_chief) == (1, 0, True)
    np.testing.assert_array_equal(workers.total([1, 2.5]), [1, 2.5])
    assert workers.total([1]).dtype == np.float64
    assert workers.broadcast_from_chief(7) == 7
    assert workers.agree("anything")
    assert workers.barrier()


@pytest.mark.slow
def test_two_workers():
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    processes = []
    for index in range(2):
        # TensorFlow must not read TF_CONFIG itself: there it would find a job "chief".
        jobs = {"chief": addresses[:1], "worker": addresses[1:]}
        task = {"type": list(jobs)[index], "index": 0}
        config = json.dumps({"cluster": jobs, "task": task})
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                env=os.environ | {"TF_CONFIG": config, "CUDA_VISIBLE_DEVICES": "-1"},
            )
        )  # fmt: skip
    try:
        outputs = [process.communicate(timeout=100)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0]
    results = [json.loads(output) for output in outputs]
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
