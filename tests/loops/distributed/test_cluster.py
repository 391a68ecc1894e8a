"""The cluster that the environment describes. Nothing here connects workers."""

import json
import time

import pytest

from loops.distributed.cluster import Cluster, find_cluster
from loops.errors import RunError

TWO = {"worker": ["a:2222", "b:2222"]}


def tf_config(cluster=TWO, kind="worker", index=0):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


def slurm(**kwargs):
    """Slurm's variables, by default for four tasks; None unsets one."""
    values = {
        "PROCID": 1, "STEP_NUM_TASKS": 4, "STEP_NODELIST": "node[9-10]",
        "STEP_TASKS_PER_NODE": "2(x2)", "JOB_ID": 1234,
    } | kwargs  # fmt: skip
    return {f"SLURM_{k}": str(v) for k, v in values.items() if v is not None}


def test_tf_config():
    assert find_cluster("auto", tf_config(index=1)) == Cluster(("a:2222", "b:2222"), 1)
    assert find_cluster("tf_config", tf_config()) == Cluster(("a:2222", "b:2222"), 0)
    assert find_cluster("none", tf_config()) is None


def test_a_job_called_chief_is_the_first_worker():
    cluster = {"worker": ["a:1", "b:1"], "chief": ["c:1"]}
    addresses = ("c:1", "a:1", "b:1")
    assert find_cluster("auto", tf_config(cluster, kind="chief")) == Cluster(addresses, 0)
    assert find_cluster("auto", tf_config(cluster, index=1)) == Cluster(addresses, 2)


def test_tf_config_wins_over_slurm():
    assert find_cluster("auto", tf_config() | slurm()).addresses == ("a:2222", "b:2222")
    assert len(find_cluster("slurm", tf_config() | slurm()).addresses) == 4


def test_slurm_ranks_follow_the_node_list():
    """Also where names do not sort as numbers do."""
    found = find_cluster("auto", slurm())
    port = 20_000 + 1234 * 16
    nodes = ("node9", "node9", "node10", "node10")
    ports = (port, port + 1, port, port + 1)
    expected = tuple(f"{node}:{p}" for node, p in zip(nodes, ports, strict=True))
    assert found == Cluster(expected, 1)


@pytest.mark.parametrize(
    ("job_id", "port"),
    [(0, 20_000), (1, 20_016), (1249, 39_984), (1250, 20_000), (10**12, 20_000)],
)
def test_slurm_jobs_that_share_a_node_get_different_ports(job_id, port):
    found = find_cluster("slurm", slurm(JOB_ID=job_id))
    assert found.addresses[0] == f"node9:{port}"


@pytest.mark.parametrize(
    ("node_list", "nodes"),
    [
        ("a,b", "a b"),
        ("node[1-3]", "node1 node2 node3"),
        ("node[1-3,07,10-12]", "node1 node2 node3 node07 node10 node11 node12"),
        ("node[9-11]", "node9 node10 node11"),
        ("node[08-10]", "node08 node09 node10"),
        ("node[099-101,5]", "node099 node100 node101 node5"),
        ("a,b[01-02]-ib", "a b01-ib b02-ib"),
        ("z[2,1],a", "z2 z1 a"),
        ("[1-2],x", "1 2 x"),
        ("[1-2].gpu.example.org", "1.gpu.example.org 2.gpu.example.org"),
        ("rack[1-2]-[08-09]", "rack1-08 rack1-09 rack2-08 rack2-09"),
        ("r[1,3]n[1-2]-ib,login", "r1n1-ib r1n2-ib r3n1-ib r3n2-ib login"),
        ("n[1-1],n[2]", "n1 n2"),
        ("gpu_a-1,gpu_a-2", "gpu_a-1 gpu_a-2"),
    ],
)
def test_slurm_host_lists(node_list, nodes):
    nodes = nodes.split()
    n = len(nodes)
    found = find_cluster(
        "slurm",
        slurm(STEP_NODELIST=node_list, STEP_NUM_TASKS=n, STEP_TASKS_PER_NODE=f"1(x{n})"),
    )
    assert [address.rpartition(":")[0] for address in found.addresses] == nodes


@pytest.mark.parametrize(
    ("tasks_per_node", "counts"),
    [
        ("1,1,1", (1, 1, 1)),
        ("1(x3)", (1, 1, 1)),
        ("2(x3)", (2, 2, 2)),
        ("2(x2),1", (2, 2, 1)),
        ("3,2(x1),1", (3, 2, 1)),
        ("1,12,1", (1, 12, 1)),
    ],
)
def test_slurm_tasks_per_node(tasks_per_node, counts):
    found = find_cluster(
        "slurm",
        slurm(
            STEP_NODELIST="a,b,c", STEP_NUM_TASKS=sum(counts), STEP_TASKS_PER_NODE=tasks_per_node
        ),
    )
    port = 20_000 + 1234 * 16
    expected = [
        f"{node}:{port + i}" for node, n in zip("abc", counts, strict=True) for i in range(n)
    ]
    assert list(found.addresses) == expected


def test_many_slurm_tasks():
    found = find_cluster(
        "slurm",
        slurm(STEP_NODELIST="n[1-64]", STEP_NUM_TASKS=4096, STEP_TASKS_PER_NODE="64(x64)"),
    )
    assert len(found.addresses) == 4096
    assert found.addresses[-1] == f"n64:{20_000 + 1234 * 16 + 63}"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"TF_CONFIG": ""},
        tf_config({"worker": ["a:1"]}),
        slurm(STEP_NUM_TASKS=1, STEP_NODELIST="node1", STEP_TASKS_PER_NODE="1", PROCID=0),
    ],
)
def test_a_single_worker_is_no_cluster(environment):
    assert find_cluster("auto", environment) is None


@pytest.mark.parametrize(
    ("kind", "environment", "message"),
    [
        ("tf_config", {}, "TF_CONFIG must be like"),
        ("auto", {"TF_CONFIG": "{"}, "TF_CONFIG must be like"),
        ("auto", {"TF_CONFIG": "[]"}, "TF_CONFIG must be like"),
        ("auto", {"TF_CONFIG": "[" * 100_000}, "TF_CONFIG must be like"),
        ("auto", {"TF_CONFIG": '{"cluster": {}}'}, "TF_CONFIG must be like"),
        ("auto", {"TF_CONFIG": '{"cluster": [], "task": {}}'}, "TF_CONFIG must be like"),
        ("auto", tf_config(index=2), "TF_CONFIG must be like"),
        ("auto", tf_config(index=-1), "TF_CONFIG must be like"),
        ("auto", tf_config(index="0"), "TF_CONFIG must be like"),
        ("auto", tf_config(index=True), "TF_CONFIG must be like"),
        ("auto", tf_config(index=0.0), "TF_CONFIG must be like"),
        ("auto", tf_config(kind="ps"), "TF_CONFIG must be like"),
        ("auto", tf_config(kind=["worker"]), "TF_CONFIG must be like"),
        ("auto", tf_config({**TWO, "ps": ["c:1"]}), "TF_CONFIG must be like"),
        ("auto", tf_config({"worker": ["a", "b:1"]}), "TF_CONFIG must be like"),
        ("auto", tf_config({"worker": ["a:x", "b:1"]}), "TF_CONFIG must be like"),
        ("auto", tf_config({"worker": ["a:0", "b:1"]}), "TF_CONFIG must be like"),
        ("auto", tf_config({"worker": ["a:65536", "b:1"]}), "TF_CONFIG must be like"),
        ("auto", tf_config({"worker": ["a b:1", "b:1"]}), "TF_CONFIG must be like"),
        ("auto", tf_config({"worker": [1, "b:1"]}), "TF_CONFIG must be like"),
        ("auto", tf_config({"worker": "a:1"}), "TF_CONFIG must be like"),
        ("auto", tf_config({"worker": ["a:1", "a:1"]}), "two workers have the same address: a:1"),
        ("slurm", {}, r"SLURM_PROCID='\(not set\)'.*; start the workers with srun or use"),
        ("auto", slurm(JOB_ID=None), r"SLURM_JOB_ID='\(not set\)'"),
        ("auto", slurm(JOB_ID="x\ny"), r"SLURM_JOB_ID='x\\ny'"),
        ("auto", slurm(PROCID=4), "SLURM_PROCID='4', SLURM_STEP_NUM_TASKS='4'"),
        ("auto", slurm(PROCID=-1), "SLURM_PROCID='-1'"),
        ("auto", slurm(PROCID="x"), "do not describe a step"),
        ("auto", slurm(STEP_NUM_TASKS="four"), "do not describe a step"),
        ("auto", slurm(STEP_NUM_TASKS=-4), "do not describe a step"),
        ("auto", slurm(STEP_NUM_TASKS=3), "do not describe a step"),
        ("auto", slurm(STEP_TASKS_PER_NODE="2"), "do not describe a step"),
        ("auto", slurm(STEP_TASKS_PER_NODE="4"), "do not describe a step"),
        ("auto", slurm(STEP_TASKS_PER_NODE="2(x3)"), "do not describe a step"),
        ("auto", slurm(STEP_TASKS_PER_NODE="many"), "do not describe a step"),
        ("auto", slurm(STEP_TASKS_PER_NODE=""), "do not describe a step"),
        ("auto", slurm(STEP_NODELIST=""), "do not describe a step"),
        ("auto", slurm(STEP_NODELIST="node[9"), "do not describe a step"),
        ("auto", slurm(STEP_NODELIST="node9]"), "do not describe a step"),
        ("auto", slurm(STEP_NODELIST="node[9-10],"), "do not describe a step"),
        ("auto", slurm(STEP_NODELIST="node[10-9],a,b"), "do not describe a step"),
        ("auto", slurm(STEP_NODELIST="node[9,]"), "do not describe a step"),
        ("auto", slurm(STEP_NODELIST="node[9-10-11]"), "do not describe a step"),
        ("auto", slurm(STEP_NODELIST="node[a-b]"), "do not describe a step"),
        ("auto", slurm(STEP_NODELIST="node[9-[10]]"), "do not describe a step"),
        ("auto", slurm(STEP_NODELIST="node9 node10"), "do not describe a step"),
        ("auto", slurm(STEP_NODELIST="a,a"), "two workers have the same address: a:"),
    ],
)
def test_a_wrong_description_is_refused_in_one_line(kind, environment, message):
    with pytest.raises(RunError, match=message) as caught:
        find_cluster(kind, environment)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "kwargs",
    [
        {"STEP_NODELIST": "node[1-1000000000]"},
        {"STEP_NODELIST": "node[1-1000000000]", "STEP_NUM_TASKS": 10**9},
        {"STEP_NODELIST": "node" + "[0-9]" * 9},
        {"STEP_NODELIST": "node" + "[1]" * 30_000},
        {"STEP_NODELIST": "node[1-1000000000][2-1]"},
        {"STEP_NODELIST": "node[1-" + "9" * 4000 + "]"},
        {"STEP_NODELIST": "node[1-" + "9" * 5000 + "]"},
        {"STEP_TASKS_PER_NODE": "2(x1000000000)"},
        {"STEP_TASKS_PER_NODE": "1000000000(x2)"},
        {
            "STEP_NODELIST": "a,b",
            "STEP_TASKS_PER_NODE": "1000000000(x2)",
            "STEP_NUM_TASKS": 2 * 10**9,
        },
        {"STEP_NODELIST": "a", "STEP_TASKS_PER_NODE": "4097", "STEP_NUM_TASKS": 4097},
    ],
    ids=range(11),
)
def test_absurd_lists_are_refused_quickly(kwargs):
    started = time.process_time()
    with pytest.raises(RunError, match="do not describe a step of at most 4096 tasks"):
        find_cluster("auto", slurm(**kwargs))
    assert time.process_time() - started < 2


def places(environments):
    """Of each worker, its place among those on its machine, and their number."""
    clusters = [find_cluster("auto", environment) for environment in environments]
    return [(cluster.local_index, cluster.local_count) for cluster in clusters]


def test_the_place_of_a_worker_on_its_machine():
    cluster = {"worker": ["a:1", "b:1", "a:2", "[::1]:1", "[::1]:2"]}
    environments = [tf_config(cluster, index=i) for i in range(5)]
    assert places(environments) == [(0, 2), (0, 1), (1, 2), (0, 2), (1, 2)]
    layout = {"STEP_NODELIST": "a,b", "STEP_TASKS_PER_NODE": "3,1"}
    tasks = [slurm(**layout, PROCID=i, LOCALID=n) for i, n in enumerate([0, 1, 2, 0])]
    assert places(tasks) == [(0, 3), (1, 3), (2, 3), (0, 1)]


def test_slurm_tasks_that_alternate_between_nodes_are_refused():
    """As with srun --distribution=cyclic, where task 1 is the first on the second node."""
    with pytest.raises(RunError, match=r"SLURM_LOCALID=0 of task 1.*use srun --distribution=block"):
        find_cluster("auto", slurm(PROCID=1, LOCALID=0))
