"""Finds the workers of a run in the environment.

    cluster = find_cluster("auto", os.environ)      # None for a single worker

Workers are the processes that train together, usually one on each machine.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping

from loops.errors import RunError

_MAX_WORKERS = 4096
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

    @property
    def local_index(self) -> int:
        """The place of this worker among those on its machine."""
        return self._hosts[: self.index].count(self._hosts[self.index])

    @property
    def local_count(self) -> int:
        """The number of workers on its machine."""
        return self._hosts.count(self._hosts[self.index])

    @property
    def _hosts(self) -> list[str]:
        return [address.rpartition(":")[0] for address in self.addresses]


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
    local_id = environment.get("SLURM_LOCALID", str(hosts[rank][1]))
    if local_id != str(hosts[rank][1]):
        raise RunError(
            f"SLURM_LOCALID={local_id} of task {rank}, of {tasks_per_node} tasks per node: tasks "
            "must fill one node after the other; use srun --distribution=block"
        )
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
