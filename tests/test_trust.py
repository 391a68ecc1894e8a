"""What researchers must be able to rely on, through the commands as they give them."""

import contextlib
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks import kill_runs
from tests.conftest import ROOT

# Every update in one: what must mean the same on any number of replicas, and after any kill.
ALL = (
    "--dataset=digits", "--device=cpu", "--batch_size=64", "--accumulation=2", "--clip_norm=0.5",
    "--label_smoothing=0.1", "--ema_decay=0.9", "--mixup=0.2", "--cutmix=1", "--learning_rate=0.02",
    "--log_steps=4",
)  # fmt: skip


def start(run_dir, *args, **environment):
    command = [sys.executable, str(ROOT / "train.py"), *ALL, *args, f"--run_dir={run_dir}"]
    return subprocess.Popen(
        command, env=os.environ | environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(*processes):
    """Waits for processes to end well, and returns what they printed."""
    outputs = [process.communicate(timeout=400) for process in processes]
    for process, (_, err) in zip(processes, outputs, strict=True):
        assert (process.returncode, err) == (0, "")
    return [out for out, _ in outputs]


def weights(run_dir):
    """Everything that the last checkpoint holds of the net, its average and the optimizer."""
    tensors = kill_runs.tensors(run_dir / "checkpoints")
    parts = ("net/", "ema_net/", "optimizer/")
    return {name: value for name, value in tensors.items() if name.startswith(parts)}


def assert_close(found, expected):
    """To a few roundings of the largest number in each array."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(found[name], value, atol=2e-5 * scale, rtol=0, err_msg=name)


# Of another seed, as of 0, a rounding can take a unit of a ReLU across 0: then it is 1e-3.
SHORT = ("--epochs=0.4", "--sync_batch_norm", "--accumulation=1", "--seed=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Finished runs by number of replicas, and with two workers, which Slurm started."""
    home = tmp_path_factory.mktemp("trained")
    for replicas in (1, 2, 4):
        finish(start(home / str(replicas), *SHORT, f"--num_gpus={replicas}"))
    return home, sbatch(home, *SHORT, "--run_dir=workers")


@pytest.mark.parametrize("other", ["2", "4", "workers"])
def test_replicas_and_workers_end_with_the_same_weights(trained, other):
    home, _ = trained
    one, found = weights(home / "1"), weights(home / other)
    assert any("moving_variance" in name for name in one)
    assert one["optimizer/iterations/.ATTRIBUTES/VARIABLE_VALUE"] == 9
    assert_close(found, one)
    rows = [
        [json.loads(line) for line in (home / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("1", other)
    ]
    for a, b in zip(*rows, strict=True):
        assert a.pop("split") == b.pop("split")
        assert a == pytest.approx(b, rel=1e-4)


def cluster(count):
    """TF_CONFIG of each of some workers on this machine."""
    workers = [f"127.0.0.1:{port}" for port in kill_runs.free_ports(count)]
    return [
        {
            "TF_CONFIG": json.dumps(
                {"cluster": {"worker": workers}, "task": {"type": "worker", "index": i}}
            )
        }
        for i in range(count)
    ]


# What srun does for two tasks, where there is no Slurm.
SRUN = """#!/bin/bash
for task in 0 1; do
    SLURM_PROCID=$task SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=localhost \\
        SLURM_STEP_TASKS_PER_NODE=2 "$@" &
    tasks+=($!)
done
for task in ${tasks[@]}; do wait $task || code=$?; done
exit $code
"""


def sbatch(home, *args):
    """Runs the script that BUILD.md shows, as it is there, and returns what it printed."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "BUILD.md").read_text(), re.DOTALL)
    (script,) = (block for block in blocks if "#SBATCH" in block)
    (home / "train.sbatch").write_text(script)
    (home / "bin").mkdir()
    (home / "bin" / "srun").write_text(SRUN)
    (home / "bin" / "srun").chmod(0o755)
    (home / "train.py").symlink_to(ROOT / "train.py")
    environment = {
        "PATH": f"{home / 'bin'}:{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(random.randrange(1_000_000)),
    }
    done = subprocess.run(
        ["bash", "train.sbatch", *ALL, *args], cwd=home, env=os.environ | environment,
        capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_only_the_chief_writes_and_speaks(trained):
    home, output = trained
    assert output.startswith("waiting for 2 workers to come up\n")
    assert output.count("9 steps on 2 replica(s)") == 1
    assert output.count("test   top-1") == 1
    names = {p.name for p in (home / "workers").iterdir()}
    assert names == {p.name for p in (home / "2").iterdir()}
    for split in ("train", "val", "test"):
        assert len(list((home / "workers" / split).iterdir())) == 1


LONGER = ("--epochs=3", "--accumulation=1", "--save_minutes=0.005")


def two_workers_at_work(run_dir):
    """Two processes that train together, once they have saved a state of their own."""
    processes = [start(run_dir, *LONGER, **task) for task in cluster(2)]
    while not list((run_dir / "checkpoints").glob("step-[1-9]*.index")):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)
    return processes


def test_a_worker_that_dies_stops_the_other_and_all_go_on(tmp_path):
    """(That nothing is lost by it, benchmarks/kill_runs.py compares bit by bit.)"""
    first, second = two_workers_at_work(tmp_path / "run")
    second.kill()
    killed = time.monotonic()
    _, err = first.communicate(timeout=100)
    assert time.monotonic() - killed < 60
    assert first.returncode == 2
    assert (
        err
        == "train.py: another worker is gone, so this one stops; start all workers again to go on\n"
    )
    second.communicate()
    out, _ = finish(*(start(tmp_path / "run", *LONGER, **task) for task in cluster(2)))
    assert re.search(r"goes on from step [1-9]", out)
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    ends = {split: [r["step"] for r in rows if r["split"] == split] for split in ("train", "val")}
    assert ends == {
        "train": sorted({*range(4, 62, 4), 21, 41, 61}),
        "val": [21, 41, 61],
    }


def test_a_signal_to_one_worker_saves_and_stops_all(tmp_path):
    processes = two_workers_at_work(tmp_path / "run")
    processes[1].send_signal(signal.SIGTERM)
    (out, err), (_, other_err) = (process.communicate(timeout=60) for process in processes)
    assert [process.returncode for process in processes] == [143, 143]
    assert (err, other_err) == ("", "")
    step = re.search(r"stopped; saved at step (\d+); the same command goes on", out)[1]
    assert (tmp_path / "run" / "checkpoints" / f"step-{step}.index").exists()


@pytest.fixture
def sigint_is_heard():
    """A shell makes what it starts in the background deaf to it, and what that starts too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("index", "number"), [(0, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_worker_that_waits_for_another_leaves_at_a_signal(
    tmp_path, index, number, sigint_is_heard
):
    task = cluster(2)[index]
    port = int(json.loads(task["TF_CONFIG"])["cluster"]["worker"][index].rpartition(":")[2])
    process = start(tmp_path / "run", **task)
    while True:
        assert process.poll() is None
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            break
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, err) == ({signal.SIGTERM: -15, signal.SIGINT: 130}[number], "")
    assert "stopped" not in out
    assert not (tmp_path / "run").exists()


def test_kills_at_random_moments_change_nothing(tmp_path):
    """The short form of benchmarks/kill_runs.py."""
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")  # Which pytest shows if this fails.
    generator = random.Random(seed)
    shorter = ("--epochs=2",)
    name = "accumulation, clipping, averages"
    assert kill_runs.try_configuration(name, 2, generator, tmp_path, shorter) == []


def test_a_second_signal_leaves_at_once(tmp_path):
    process = start(tmp_path / "run", "--epochs=100")
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    while not (tmp_path / "run" / "metrics.jsonl").read_text():
        time.sleep(0.05)
    process.send_signal(signal.SIGSTOP)  # So that both come within the same call of the device.
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=10)
    assert "stopped" not in out
    assert err == ""
    assert process.returncode in (130, 143)
