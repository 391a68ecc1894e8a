"""Who the workers are, from what the environment says; nothing here connects any."""

import json

import numpy as np
import pytest
import tensorflow as tf

from loops.cluster import Cluster, Workers, find_cluster, lost_worker
from loops.devices import make_strategy
from loops.errors import RunError

TWO = {"worker": ["a:2222", "b:2222"]}


def tf_config(cluster=TWO, kind="worker", index=0):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


def slurm(**kwargs):
    values = {
        "PROCID": 1, "STEP_NUM_TASKS": 4, "STEP_NODELIST": "node[9-10]",
        "STEP_TASKS_PER_NODE": "2(x2)", "JOB_ID": 1234,
    } | kwargs  # fmt: skip
    return {f"SLURM_{k}": str(v) for k, v in values.items() if v is not None}


@pytest.fixture
def find(monkeypatch):
    """find_cluster, with the variables in the environment too, where TensorFlow looks for them."""

    def find(kind, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return find_cluster(kind, environment)

    return find


def test_tf_config(find):
    assert find("auto", tf_config(index=1)) == Cluster(("a:2222", "b:2222"), 1)
    assert find("tf_config", tf_config()) == Cluster(("a:2222", "b:2222"), 0)
    assert find("none", tf_config()) is None


def test_a_job_called_chief_is_the_first_worker(find):
    cluster = {"chief": ["c:1"], "worker": ["a:1", "b:1"]}
    addresses = ("c:1", "a:1", "b:1")
    assert find("auto", tf_config(cluster, kind="chief")) == Cluster(addresses, 0)
    assert find("auto", tf_config(cluster, index=1)) == Cluster(addresses, 2)


def test_slurm_keeps_the_order_of_its_ranks(find):
    """Also where names do not sort as numbers do; jobs that share a node have other ports."""
    found = find("auto", slurm())
    port = int(found.addresses[0].split(":")[1])
    nodes = ("node9", "node9", "node10", "node10")
    ports = (port, port + 1, port, port + 1)
    expected = tuple(f"{node}:{p}" for node, p in zip(nodes, ports, strict=True))
    assert found == Cluster(expected, 1)
    assert 20_000 <= port < 40_000
    assert find("slurm", slurm(JOB_ID=1235)).addresses[0] != found.addresses[0]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"TF_CONFIG": ""},
        tf_config({"worker": ["a:1"]}),
        slurm(STEP_NUM_TASKS=1, STEP_NODELIST="node1", STEP_TASKS_PER_NODE="1", PROCID=0),
    ],
)
def test_one_machine_is_no_cluster(find, environment):
    assert find("auto", environment) is None


@pytest.mark.parametrize(
    ("kind", "environment", "message"),
    [
        ("tf_config", {}, "TF_CONFIG must be like"),
        ("auto", {"TF_CONFIG": "{"}, "TF_CONFIG must be like"),
        ("auto", {"TF_CONFIG": "[]"}, "TF_CONFIG must be like"),
        ("auto", {"TF_CONFIG": '{"cluster": {}}'}, "TF_CONFIG must be like"),
        ("auto", tf_config(index=2), "TF_CONFIG must be like"),
        ("auto", tf_config(index=-1), "TF_CONFIG must be like"),
        ("auto", tf_config(index="0"), "TF_CONFIG must be like"),
        ("auto", tf_config(index=True), "TF_CONFIG must be like"),
        ("auto", tf_config(index=0.0), "TF_CONFIG must be like"),
        ("auto", tf_config(kind="ps"), "TF_CONFIG must be like"),
        ("auto", tf_config({**TWO, "ps": ["c:1"]}), "TF_CONFIG must be like"),
        ("auto", tf_config({"worker": ["a", "b:1"]}), "TF_CONFIG must be like"),
        ("auto", tf_config({"worker": ["a:x", "b:1"]}), "TF_CONFIG must be like"),
        ("auto", tf_config({"worker": "a:1"}), "TF_CONFIG must be like"),
        ("auto", tf_config({"worker": ["a:1", "a:1"]}), "an address twice"),
        ("slurm", {}, r"SLURM_PROCID, .* is not set; start the workers with srun"),
        ("auto", slurm(JOB_ID=None), "SLURM_JOB_ID is not set"),
        ("auto", slurm(PROCID=4), "rank 4, 4 places for 4 tasks"),
        ("auto", slurm(PROCID="x"), "do not describe a cluster"),
        ("auto", slurm(STEP_TASKS_PER_NODE="2"), "do not describe a cluster"),
        ("auto", slurm(STEP_TASKS_PER_NODE="many"), "do not describe a cluster"),
        ("auto", slurm(STEP_NODELIST="node[9"), "do not"),
        ("auto", slurm(STEP_NUM_TASKS="four"), "do not"),
    ],
)
def test_a_wrong_description_is_one_line(find, kind, environment, message):
    with pytest.raises(RunError, match=message) as caught:
        find(kind, environment)
    assert "\n" not in str(caught.value)


def test_several_replicas_on_each_of_several_machines_need_gpus():
    with pytest.raises(RunError, match="--num_gpus=2 on several machines needs GPUs"):
        make_strategy(2, "cpu", Cluster(("a:1", "b:1"), 0))


def test_a_single_machine_agrees_with_itself(strategy):
    workers = Workers(strategy)
    assert workers.is_chief
    np.testing.assert_array_equal(workers.total([1, 2.5]), [1, 2.5])
    assert workers.chiefs(7) == 7
    assert workers.agree("anything")
    assert workers.part()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            tf.errors.UnavailableError(
                None,
                None,
                "Collective ops is aborted by: Error reported from /job:worker/task:3: x",
            ),
            "another worker is gone",
        ),
        (
            tf.errors.UnavailableError(None, None, "stopped sending heartbeats"),
            "another worker is gone",
        ),
        (tf.errors.InvalidArgumentError(None, None, "/job:worker/task:3"), None),
        (tf.errors.UnavailableError(None, None, "something else"), None),
        (tf.errors.InternalError(None, None, "Collective ops is aborted by: a mismatch"), None),
        (ValueError("Collective ops is aborted"), None),
    ],
)
def test_a_lost_worker_is_told_from_other_errors(error, message):
    found = lost_worker(error)
    assert found is None if message is None else found.startswith(message)
