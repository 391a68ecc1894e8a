"""Finds the workers of a run in the environment, and connects them.

    cluster = find_cluster("auto", os.environ)      # None for a single worker
    strategy = connect(cluster)

Workers are the processes that train together, usually one on each machine.
"""

import contextlib
import dataclasses
import itertools
import json
import re
import signal
from collections.abc import Iterator, Mapping

import tensorflow as tf

from loops.distributed.rendezvous import meet
from loops.errors import RunError, reason

_MAX_WORKERS = 4096
_CONNECT_SECONDS = 300
_FIRST_PORT, _NUM_PORTS = 20_000, 20_000


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run.

    Attributes:
        addresses: of all workers, as host:port. The first worker is the chief.
        index: of this worker in `addresses`.
    """

    addresses: tuple[str, ...]
    index: int


def find_cluster(kind: str, environment: Mapping[str, str]) -> Cluster | None:
    """Returns the cluster that the environment describes, or None for a single worker.

    Args:
        kind: "tf_config" and "slurm" require that description; "auto" uses TF_CONFIG if it is set,
            or else Slurm's variables in a step of more than one task; "none" ignores both.
        environment: variables by name.

    Raises:
        RunError: the description is missing or invalid.
    """
    num_tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if kind == "tf_config" or (kind == "auto" and environment.get("TF_CONFIG")):
        cluster = _from_tf_config(environment.get("TF_CONFIG", ""))
    elif kind == "slurm" or (kind == "auto" and num_tasks != "1"):
        cluster = _from_slurm(environment)
    else:
        return None
    if len(set(cluster.addresses)) < len(cluster.addresses):
        raise RunError(f"two workers have the same address: {', '.join(cluster.addresses)}")
    return cluster if len(cluster.addresses) > 1 else None


def _from_tf_config(text: str) -> Cluster:
    try:
        config = json.loads(text)
        jobs, task = config["cluster"], config["task"]
        # As in TensorFlow, a job "chief" comes before the workers.
        order = [job for job in ("chief", "worker") if job in jobs]
        addresses = tuple(address for job in order for address in jobs[job])
        tasks = [(job, i) for job in order for i in range(len(jobs[job]))]
        index = tasks.index((task["type"], task["index"]))
        is_known = len(order) == len(jobs) and type(task["index"]) is int
        if not is_known or not all(map(_is_address, addresses)):
            raise ValueError(text)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(
            'TF_CONFIG must be like {"cluster": {"worker": ["host:port", ...]}, "task": '
            f'{{"type": "worker", "index": 0}}}}, but is {text[:200]!r}'
        ) from error
    return Cluster(addresses, index)


def _is_address(text: str) -> bool:
    match = re.fullmatch(r"\S+:(\d{1,5})", text)
    return match is not None and 0 < int(match[1]) < 65_536


def _from_slurm(environment: Mapping[str, str]) -> Cluster:
    """The cluster of a job step. Ranks fill one node after the other, which is Slurm's default."""
    names = ("PROCID", "STEP_NUM_TASKS", "JOB_ID", "STEP_NODELIST", "STEP_TASKS_PER_NODE")
    variables = {f"SLURM_{name}": environment.get(f"SLURM_{name}", "(not set)") for name in names}
    *numbers, node_list, tasks_per_node = variables.values()
    try:
        rank, num_tasks, job_id = map(int, numbers)
        # A node has at least one task, so longer lists are wrong and need not be expanded.
        limit = min(num_tasks, _MAX_WORKERS) + 1
        nodes = list(itertools.islice(_expand_hosts(node_list), limit))
        counts = list(itertools.islice(_expand_counts(tasks_per_node), limit))
        if not 0 <= rank < num_tasks == sum(counts) <= _MAX_WORKERS or len(nodes) != len(counts):
            raise ValueError("the variables do not match")
    except (ValueError, RecursionError) as error:
        given = ", ".join(f"{name}={value[:100]!r}" for name, value in variables.items())
        raise RunError(
            f"Slurm's variables do not describe a step of at most {_MAX_WORKERS} tasks: {given}; "
            "start the workers with srun or use --cluster=none"
        ) from error
    port = _FIRST_PORT + job_id * 16 % _NUM_PORTS  # Jobs that share a node get different ports.
    hosts = [(node, i) for node, count in zip(nodes, counts, strict=True) for i in range(count)]
    return Cluster(tuple(f"{host}:{port + i}" for host, i in hosts), rank)


def _expand_hosts(text: str) -> Iterator[str]:
    """Yields the hosts in a Slurm host list, such as "login,rack[1-2]-[01-16,20]"."""
    host = r"(?:[\w.-]|\[[\d,-]+\])+"
    if not re.fullmatch(f"{host}(?:,{host})*", text):
        raise ValueError(text)
    for pattern in re.findall(host, text):
        yield from _expand_host(pattern)


def _expand_host(pattern: str) -> Iterator[str]:
    prefix, bracket, rest = pattern.partition("[")
    if not bracket:
        yield prefix
        return
    ranges, _, suffix = rest.partition("]")
    for item in ranges.split(","):
        first, _, last = item.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        if not numbers:
            raise ValueError(item)
        for number in numbers:
            for end in _expand_host(suffix):
                yield f"{prefix}{str(number).zfill(len(first))}{end}"


def _expand_counts(text: str) -> Iterator[int]:
    """Yields the number of tasks of each node from text such as "2(x3),1"."""
    for item in text.split(","):
        count, _, repeats = item.removesuffix(")").partition("(x")
        yield from (int(count) for _ in range(int(repeats or 1)))


def connect(cluster: Cluster) -> tf.distribute.MultiWorkerMirroredStrategy:
    """Waits for all workers, connects them and returns their strategy.

    Raises:
        RunError: a worker is missing, stops, or cannot be connected.
    """
    jobs = tf.train.ClusterSpec({"worker": list(cluster.addresses)})
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        jobs, task_type="worker", task_id=cluster.index, rpc_layer="grpc"
    )
    meet(cluster.addresses, cluster.index, _CONNECT_SECONDS)
    try:
        # If a worker dies now, TensorFlow waits for an hour, and an alarm is all that can end it.
        signal.alarm(_CONNECT_SECONDS)
        strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except (tf.errors.OpError, RuntimeError) as error:
        raise RunError(f"cannot connect to the other workers: {reason(error)}") from error
    finally:
        signal.alarm(0)
    with contextlib.suppress(ValueError):  # Outside the main thread.
        # TensorFlow has installed a handler of its own, which would hide the signal from Python.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)
    return strategy
