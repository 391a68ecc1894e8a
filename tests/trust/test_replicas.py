"""Replicas are equivalent, on one machine and on several."""

import os
import pathlib
import random
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import kill_runs
from tests.commands import helpers
from tests.commands.helpers import ROOT, Command, call, finish, read, rows
from tests.trust.helpers import ALL


def weights(run_dir):
    """Everything that the last checkpoint holds of the net, its average and the optimizer."""
    tensors = kill_runs.tensors(run_dir / "checkpoints")
    parts = ("net/", "ema_net/", "optimizer/")
    return {name: value for name, value in tensors.items() if name.startswith(parts)}


def assert_equivalent(run_dir, other):
    """The same weights and rows, to a few roundings of the largest number in each array."""
    expected, found = weights(run_dir), weights(other)
    assert any("moving_variance" in name for name in expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(found[name], value, atol=2e-5 * scale, rtol=0, err_msg=name)
    for a, b in zip(rows(run_dir), rows(other), strict=True):
        assert a.pop("split") == b.pop("split")
        # A rounding can move an example into the next bin.
        a.pop("expected_calibration_error"), b.pop("expected_calibration_error")
        assert a == pytest.approx(b, rel=1e-4)


# Of another seed, as of 0, a rounding can take a unit of a ReLU across 0: then it is 1e-3.
SHORT = (*ALL, "--epochs=0.4", "--sync_batch_norm", "--seed=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Finished runs of the small net on one replica and on two workers, and what these printed."""
    home = tmp_path_factory.mktemp("trained")
    args = (*SHORT, "--net=tiny")
    call("train.py", *args, f"--run_dir={home / '1'}")
    workers = (*args, f"--run_dir={home / 'workers'}")
    return home, finish(*(Command("train.py", *workers, **x) for x in helpers.free_cluster(2)))


@pytest.mark.slow
def test_workers_end_with_the_weights_of_one_replica(trained):
    home, _ = trained
    assert weights(home / "1")["optimizer/iterations/.ATTRIBUTES/VARIABLE_VALUE"] == 9
    assert_equivalent(home / "1", home / "workers")


@pytest.mark.slow
def test_replicas_end_with_the_weights_of_one(trained):
    home, _ = trained
    finish(Command("train.py", *SHORT, "--net=tiny", "--num_gpus=2", f"--run_dir={home / '2'}"))
    assert_equivalent(home / "1", home / "2")


@pytest.mark.slow
def test_only_the_chief_writes_and_prints(trained):
    home, (chief, worker) = trained
    assert worker == ""
    assert chief.startswith("waiting for 2 workers\n")
    assert chief.count("9 steps on 2 replicas") == 1
    assert chief.count("\ntest  ") == 1
    # The names of event files hold the time and the process.
    names = [
        sorted(p.name.split(".2")[0].split(".1")[0] for p in (home / run).iterdir())
        for run in ("workers", "1")
    ]
    assert names[0] == names[1]
    for split in ("train", "val", "test"):
        assert len(list((home / "workers" / split).iterdir())) == 1


@pytest.mark.slow
def test_a_run_of_two_workers_is_resumed_by_one(trained, tmp_path, capsys):
    home, _ = trained
    shutil.copytree(home / "workers", tmp_path / "run")
    result = read(tmp_path / "run" / "result.json")
    (tmp_path / "run" / "result.json").unlink()
    call("train.py", *SHORT, "--net=tiny", f"--run_dir={tmp_path / 'run'}")
    assert "resumes at step 9, 9 steps on 1 replica" in capsys.readouterr().out
    found = read(tmp_path / "run" / "result.json")
    assert found["loss"] == pytest.approx(result["loss"], rel=1e-5)
    assert found["per_class"] == result["per_class"]


# What srun does for two tasks, where there is no Slurm.
SRUN = """#!/bin/bash
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_STEP_NUM_TASKS=2 \\
        SLURM_STEP_NODELIST=localhost SLURM_STEP_TASKS_PER_NODE=2 "$@" &
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
        ["bash", "train.sbatch", *args], cwd=home, env=os.environ | environment,
        capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.exhaustive
def test_a_slurm_job_of_four_replicas_ends_with_the_weights_of_one(tmp_path):
    """A net of the tables, as a user trains it, before a rounding moves a unit of a ReLU."""
    short = (*SHORT, "--epochs=0.09", "--warmup_epochs=0", "--log_steps=1", "--seed=2")
    code, _, err = helpers.real("train.py", *short, f"--run_dir={tmp_path / 'one'}")
    assert (code, err) == (0, "")
    out = sbatch(tmp_path, *short, "--num_gpus=2", "--run_dir=workers")
    assert out.startswith("waiting for 2 workers\ndevice 2 workers, each CPU, 2 logical devices")
    assert out.count(" on 4 replicas\n") == 1
    assert out.count("\ntest  ") == 1
    assert_equivalent(tmp_path / "one", tmp_path / "workers")
