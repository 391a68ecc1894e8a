"""A lost worker stops the others."""

import contextlib
import re
import signal
import socket
import time

import pytest

from benchmarks import kill_runs
from tests.commands import helpers
from tests.commands.helpers import Command, finish
from tests.trust.helpers import ALL, saved_step, until

LONGER = (*ALL, "--net=tiny", "--deterministic", "--epochs=3", "--save_minutes=0.005")


def two_workers(run_dir):
    """Two processes that train together."""
    args = (*LONGER, f"--run_dir={run_dir}")
    return [Command("train.py", *args, **task) for task in helpers.free_cluster(2)]


def two_workers_at_work(run_dir):
    """Two processes that train together, once they have saved a checkpoint of their own."""
    commands = two_workers(run_dir)
    until(commands, lambda: saved_step(run_dir) > 0)
    return commands


def train(run_dir):
    """Trains with two workers to the end; returns what they printed."""
    return finish(*two_workers(run_dir))


@pytest.mark.slow
def test_a_worker_that_dies_stops_the_other(tmp_path):
    """And when both are started again, the run ends like one that was not disturbed."""
    first, second = two_workers_at_work(tmp_path / "run")
    second.send_signal(signal.SIGKILL)
    code, _, err = first.wait(60)
    message = "another worker has stopped; start all workers again to resume the run"
    assert (code, err) == (2, f"train.py: {message}\n")
    assert second.wait()[0] == -signal.SIGKILL
    out, _ = train(tmp_path / "run")
    assert re.search(r"resumes at step [1-9]", out)
    train(tmp_path / "undisturbed")
    assert kill_runs.differences(tmp_path / "undisturbed", tmp_path / "run") == []


@pytest.mark.slow
def test_a_signal_to_one_worker_saves_and_stops_all(tmp_path):
    commands = two_workers_at_work(tmp_path / "run")
    commands[1].send_signal(signal.SIGTERM)
    (code, out, err), other = (command.wait(60) for command in commands)
    assert (code, err) == (143, "")
    assert other == (143, "", "")  # Only the chief prints.
    (step,) = re.findall(r"stopped; saved at step (\d+); rerun the command to resume", out)
    assert (tmp_path / "run" / "checkpoints" / f"step-{step}.index").exists()


@pytest.mark.slow
def test_workers_that_differ_are_refused(tmp_path):
    args = (*LONGER, f"--run_dir={tmp_path / 'run'}")
    tasks = helpers.free_cluster(2)
    commands = [Command("train.py", *args, f"--seed={i}", **task) for i, task in enumerate(tasks)]
    for code, _, err in (command.wait(60) for command in commands):
        assert code == 2
        assert "the workers differ in their flags, data, code or --run_dir; start all wor" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("index", "number"),
    [
        pytest.param(0, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGINT, marks=pytest.mark.exhaustive),
    ],
)
def test_a_worker_that_waits_for_another_stops_at_a_signal(tmp_path, index, number):
    task = helpers.free_cluster(2)[index]
    port = re.findall(r"127.0.0.1:(\d+)", task["TF_CONFIG"])[index]
    process = Command("train.py", *LONGER, f"--run_dir={tmp_path / 'run'}", **task)
    while True:
        assert process.returncode is None
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(port))):
            break
        time.sleep(0.05)
    process.send_signal(number)
    code, out, err = process.wait(10)
    assert (code, err) == ({signal.SIGTERM: -15, signal.SIGINT: 130}[number], "")
    assert "stopped" not in out
    assert not (tmp_path / "run").exists()
