"""Several machines that train together: who they are, and what their hosts agree on.

    cluster = find_cluster("auto", os.environ)      # None on a single machine
    strategy = connect(cluster)
    workers = Workers(strategy, cluster)
    if workers.total([signal_came])[0]: ...

Every worker runs the same program on its own rows of each batch. What a host decides by itself, by
its clock or by a signal, it must first agree on with the others, or they would wait for each other.
"""

import dataclasses
import json
import os
import re
import signal
import zlib
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from loops.errors import RunError, reason
from loops.meeting import meet

CLUSTERS = ("auto", "none", "tf_config", "slurm")
_MINUTES_TO_MEET = 5
_LOWEST_PORT, _PORTS = 20_000, 20_000


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run.

    Attributes:
        addresses: of the workers, as host:port.
        index: which of them this one is; 0 is the chief, who writes.
    """

    addresses: tuple[str, ...]
    index: int


def find_cluster(kind: str, environment: Mapping[str, str]) -> Cluster | None:
    """The cluster that the environment describes; None for a single machine.

    Args:
        kind: "tf_config" or "slurm" insists on that description, "auto" takes TF_CONFIG or, within
            a step of `srun` with more than one task, Slurm's variables; "none" takes neither.
        environment: variables by name.

    Raises:
        RunError: there is no such description, or it is wrong.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    found = None
    if kind == "tf_config" or (kind == "auto" and environment.get("TF_CONFIG")):
        found = _from_tf_config(environment.get("TF_CONFIG", ""))
    elif kind == "slurm" or (kind == "auto" and tasks != "1"):
        found = _from_slurm(environment)
    return found if found and len(found.addresses) > 1 else None


def _from_tf_config(text: str) -> Cluster:
    wanted = (
        'TF_CONFIG must be like {"cluster": {"worker": ["host:port", ...]}, '
        '"task": {"type": "worker", "index": 0}}'
    )
    try:
        config = json.loads(text)
        jobs, task = config["cluster"], config["task"]
        # As TensorFlow has it, a job "chief" is the first worker.
        addresses = [*jobs.get("chief", []), *jobs.get("worker", [])]
        index = task["index"] + (len(jobs.get("chief", [])) if task["type"] == "worker" else 0)
        good = (
            set(jobs) <= {"chief", "worker"}
            and task["type"] in jobs
            and type(task["index"]) is int
            and 0 <= task["index"] < len(jobs[task["type"]])
            and all(_is_address(address) for address in addresses)
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise RunError(f"{wanted}, and is {text[:200]!r}")
    if len(set(addresses)) < len(addresses):
        raise RunError(f"TF_CONFIG has an address twice: {', '.join(addresses)}")
    return Cluster(tuple(addresses), index)


def _is_address(text) -> bool:
    host, _, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    return bool(host) and not re.search(r"\s", host) and port.isdecimal() and 0 < int(port) < 65_536


def _from_slurm(environment: Mapping[str, str]) -> Cluster:
    """Workers in the order of Slurm's ranks, which follow the list of nodes.

    (`SlurmClusterResolver.cluster_spec` sorts nodes by name, which puts node10 before node9, and
    needs GPUs.)
    """
    needed = ("PROCID", "STEP_NUM_TASKS", "STEP_NODELIST", "STEP_TASKS_PER_NODE", "JOB_ID")
    missing = [f"SLURM_{name}" for name in needed if f"SLURM_{name}" not in environment]
    if missing:
        raise RunError(
            f"Slurm's {', '.join(missing)} is not set; start the workers with srun, or use "
            "--cluster=none"
        )
    try:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            gpus_per_node=1 << 16, gpus_per_task=1, auto_set_gpu=False
        )
        tasks = resolver._resolve_task_configuration()
        # Jobs that share a node must not share a port.
        port = _LOWEST_PORT + int(environment["SLURM_JOB_ID"]) * 16 % _PORTS
        index = int(environment["SLURM_PROCID"])
    except (ValueError, RuntimeError, AssertionError) as error:
        raise RunError(f"Slurm's variables do not describe a cluster: {error}") from error
    addresses = [f"{host}:{port + i}" for host, count in tasks.items() for i in range(count)]
    if not 0 <= index < len(addresses) or len(addresses) != int(
        environment["SLURM_STEP_NUM_TASKS"]
    ):
        raise RunError(
            f"Slurm's variables do not fit together: rank {index}, {len(addresses)} places for "
            f"{environment['SLURM_STEP_NUM_TASKS']} tasks"
        )
    return Cluster(tuple(addresses), index)


def connect(cluster: Cluster) -> tf.distribute.MultiWorkerMirroredStrategy:
    """The strategy of all workers. It waits for them.

    Raises:
        RunError: they do not come, or no connection can be made.
    """
    # TensorFlow would read it once more, and find a job "chief" that is not among the workers.
    os.environ.pop("TF_CONFIG", None)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.addresses)}),
        task_type="worker",
        task_id=cluster.index,
        rpc_layer="grpc",
    )
    meet(cluster.addresses, cluster.index, 60 * _MINUTES_TO_MEET)
    try:
        # Should one die in this moment, TensorFlow would wait for it for an hour, and nothing of
        # Python can run meanwhile; but an alarm ends the process.
        signal.alarm(60 * _MINUTES_TO_MEET)
        strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
        # TensorFlow has taken it to tell of preemption, and would keep it from us.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return strategy
    except (tf.errors.OpError, RuntimeError) as error:
        raise RunError(
            f"worker {cluster.index} cannot join {', '.join(cluster.addresses)}: {reason(error)}"
        ) from error
    finally:
        signal.alarm(0)


class Workers:
    """The hosts of a run; on a single machine there is one, and it agrees with itself.

    Every worker must call a method as often as the others, and in the same order.

    Args:
        strategy: whose replicas they have.
        cluster: None for a single machine.
    """

    def __init__(self, strategy: tf.distribute.Strategy, cluster: Cluster | None = None):
        self.strategy = strategy
        self.count = len(cluster.addresses) if cluster else 1
        self.index = cluster.index if cluster else 0

    @property
    def is_chief(self) -> bool:
        """Whether this is the one who writes and decides."""
        return self.index == 0

    def total(self, numbers) -> np.ndarray:
        """The sum over workers of each of some numbers, float64."""
        numbers = np.asarray(numbers, np.float64)
        if self.count == 1:
            return numbers
        here = self.strategy.num_replicas_in_sync // self.count

        def value(context):
            first = context.replica_id_in_sync_group % here == 0
            return tf.constant(numbers if first else np.zeros_like(numbers))

        values = self.strategy.experimental_distribute_values_from_function(value)
        return self.strategy.reduce("SUM", values, axis=None).numpy()

    def agree(self, content: str) -> bool:
        """Whether every worker has the same text."""
        digest = float(zlib.crc32(content.encode("utf-8", "surrogateescape")))
        # With the squares, unequal ones have another sum for every worker.
        mine = np.asarray([digest, digest**2])
        return bool(np.allclose(self.total(mine), self.count * mine, rtol=1e-14, atol=0))

    def chiefs(self, number: float) -> float:
        """The chief's number."""
        return float(self.total([number if self.is_chief else 0.0])[0])

    def part(self) -> bool:
        """Waits for the others where nothing is left to be done together; whether they came.

        Without, the first that leaves would look like one that died.
        """
        try:
            self.total([0])
        except tf.errors.OpError as error:
            if not lost_worker(error):
                raise
            return False
        return True


def lost_worker(error: Exception) -> str | None:
    """What to tell if TensorFlow says that another worker is gone, and None if it does not."""
    kinds = (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.FailedPreconditionError,
        tf.errors.DeadlineExceededError,
        tf.errors.CancelledError,
    )
    words = ("Collective ops is aborted", "heartbeat", "/job:worker", "CoordinationService")
    if not isinstance(error, kinds) or not any(word in error.message for word in words):
        return None
    # Which one, TensorFlow does not tell apart from who noticed.
    return "another worker is gone, so this one stops; start all workers again to go on"
