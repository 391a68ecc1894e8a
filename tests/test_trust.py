"""What is promised in BUILD.md under "Trust", through the commands. The long forms are slow."""

import contextlib
import math
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import kill_runs
from commands.run import Run
from loops.hook import Hook
from loops.hooks import HOOKS
from loops.records.checkpoint_files import saved_steps
from loops.records.run import locked
from tests.commands import helpers
from tests.commands.helpers import ROOT, TINY, Command, call, finish, read, refused, rows

# Every update in one: what must mean the same on any number of replicas, and after any kill.
ALL = (
    "--dataset=digits", "--device=cpu", "--batch_size=64", "--clip_norm=0.5", "--ema_decay=0.9",
    "--label_smoothing=0.1", "--augment=crop:1,mixup:0.2|cutmix:1", "--learning_rate=0.02",
    "--log_steps=4",
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _tiny_net():
    with helpers.tiny_net():
        yield


def until(commands, found):
    """Waits until something is there, as long as all commands are running."""
    while not found():
        for command in commands:
            assert command.returncode is None, command.printed()
        time.sleep(0.01)


def saved_step(run_dir):
    """The last step of which there is a checkpoint; -1 for none."""
    return max(saved_steps(run_dir / "checkpoints"), default=-1)


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A run of two epochs without its result, and the arguments to resume it."""
    run_dir = tmp_path_factory.mktemp("unfinished") / "run"
    args = (*TINY, "--epochs=2", "--log_steps=3")
    call("train.py", *args, f"--run_dir={run_dir}")
    return run_dir, args


# A killed run ends like an uninterrupted one.

DETERMINISTIC = (*ALL, "--net=tiny", "--deterministic", "--epochs=2", "--save_minutes=0.0001")


def test_a_killed_run_ends_bit_for_bit_like_an_uninterrupted_one(tmp_path):
    """Killed twice: at the start, and at a random moment."""
    one, other = (f"--run_dir={tmp_path / name}" for name in ("one", "other"))
    finish(Command("train.py", *DETERMINISTIC, one))
    assert saved_step(tmp_path / "one") == 41
    step, seconds = random.randrange(1, 30), 0.05 * random.random()
    print(f"step {step}, {seconds} s")  # Which pytest shows if this fails.
    for last in (0, step):
        command = Command("train.py", *DETERMINISTIC, other)
        until([command], lambda last=last: saved_step(tmp_path / "other") >= last)
        time.sleep(seconds)
        command.send_signal(signal.SIGKILL)
        assert command.wait()[0] == -signal.SIGKILL
    finish(Command("train.py", *DETERMINISTIC, other))
    assert kill_runs.differences(tmp_path / "one", tmp_path / "other") == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["accumulation, clipping, averages", "two workers"])
def test_kills_at_random_moments_change_nothing(tmp_path, name):
    """A part of benchmarks/kill_runs.py."""
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")  # Which pytest shows if this fails.
    generator = random.Random(seed)
    assert kill_runs.try_configuration(name, 2, generator, tmp_path, ("--epochs=2",)) == []


# Signals save and stop.


def test_a_signal_saves_and_the_run_is_resumed(tmp_path, capsys):
    args = (*ALL, "--net=tiny", "--epochs=20", f"--run_dir={tmp_path / 'run'}")
    process = Command("train.py", *args)
    until([process], lambda: (tmp_path / "run" / "metrics.jsonl").exists())
    process.send_signal(signal.SIGTERM)
    code, out, err = process.wait(30)
    assert (code, err) == (143, "")
    step = re.search(r"stopped; saved at step (\d+); rerun the command to resume\n$", out)[1]
    assert saved_step(tmp_path / "run") == int(step) > 0
    assert max(row["step"] for row in rows(tmp_path / "run")) <= int(step)
    process = Command("train.py", *args)
    until([process], lambda: "resumes at step" in process.printed()[0])
    assert f"resumes at step {step}, " in process.printed()[0]
    # While a process trains, another one is refused.
    error = refused(capsys, "train.py", *args)
    assert f"{tmp_path / 'run'} is in use: process " in error
    # Both signals come within the same call of the device loop.
    until([process], lambda: saved_step(tmp_path / "run") > int(step))
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        process.send_signal(number)
    code, out, err = process.wait(10)
    assert code in (130, 143)
    assert "stopped" not in out
    assert err == ""


class StopAt(Hook):
    """Sends a signal when a split is being evaluated, once, since a second one exits at once."""

    split = None

    def on_progress(self, trainer):
        if trainer.activity == f"evaluating on the {StopAt.split} split":
            StopAt.split = None
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("split", "step"), [("val", 6), pytest.param("test", 11, marks=pytest.mark.slow)]
)
def test_a_signal_during_an_evaluation(unfinished, tmp_path, monkeypatch, capsys, split, step):
    """The end is that of the run that was not stopped."""
    monkeypatch.setitem(HOOKS, "stop", StopAt)
    monkeypatch.setattr(StopAt, "split", split)
    run_dir, args = unfinished
    args = (*args, f"--run_dir={tmp_path / 'run'}")
    with pytest.raises(SystemExit) as caught:
        call("train.py", *args, "--hooks=stop")
    assert caught.value.code == 143
    assert f"stopped; saved at step {step}; rerun" in capsys.readouterr().out
    call("train.py", *args)
    assert rows(tmp_path / "run") == rows(run_dir)


# Replicas are equivalent.


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
    """Finished runs of the small net on one replica, two replicas and two workers."""
    home = tmp_path_factory.mktemp("trained")
    args = (*SHORT, "--net=tiny")
    call("train.py", *args, f"--run_dir={home / '1'}")
    workers = (*args, f"--run_dir={home / 'workers'}")
    printed = finish(
        Command("train.py", *args, "--num_gpus=2", f"--run_dir={home / '2'}"),
        *(Command("train.py", *workers, **task) for task in helpers.free_cluster(2)),
    )
    return home, printed


@pytest.mark.parametrize("other", ["2", "workers"])
def test_replicas_and_workers_end_with_the_same_weights(trained, other):
    home, _ = trained
    assert weights(home / "1")["optimizer/iterations/.ATTRIBUTES/VARIABLE_VALUE"] == 9
    assert_equivalent(home / "1", home / other)


def test_only_the_chief_writes_and_prints(trained):
    home, (_, chief, worker) = trained
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
        ["bash", "train.sbatch", *args], cwd=home, env=os.environ | environment,
        capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.slow
def test_one_two_and_four_replicas_and_a_slurm_job_end_with_the_same_weights(tmp_path):
    """A net of the tables, as a user trains it, before a rounding moves a unit of a ReLU."""
    short = (*SHORT, "--epochs=0.09", "--warmup_epochs=0", "--log_steps=1", "--seed=2")
    for replicas in (1, 2, 4):
        args = (*short, f"--num_gpus={replicas}", f"--run_dir={tmp_path / str(replicas)}")
        code, _, err = helpers.real("train.py", *args)
        assert (code, err) == (0, "")
    out = sbatch(tmp_path, *short, "--run_dir=workers")
    assert out.startswith("waiting for 2 workers\n")
    assert out.count("\ntest  ") == 1
    for other in ("2", "4", "workers"):
        assert_equivalent(tmp_path / "1", tmp_path / other)


# A lost worker stops the others.

LONGER = (*ALL, "--net=tiny", "--epochs=3", "--save_minutes=0.005")


def two_workers_at_work(run_dir):
    """Two processes that train together, once they have saved a checkpoint of their own."""
    args = (*LONGER, f"--run_dir={run_dir}")
    commands = [Command("train.py", *args, **task) for task in helpers.free_cluster(2)]
    until(commands, lambda: saved_step(run_dir) > 0)
    return commands


@pytest.mark.parametrize("resumes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_worker_that_dies_stops_the_other(tmp_path, resumes):
    """That nothing is lost by it, benchmarks/kill_runs.py compares bit by bit."""
    first, second = two_workers_at_work(tmp_path / "run")
    second.send_signal(signal.SIGKILL)
    code, _, err = first.wait(60)
    message = "another worker has stopped; start all workers again to resume the run"
    assert (code, err) == (2, f"train.py: {message}\n")
    assert second.wait()[0] == -signal.SIGKILL
    if not resumes:
        return
    args = (*LONGER, f"--run_dir={tmp_path / 'run'}")
    out, _ = finish(*(Command("train.py", *args, **task) for task in helpers.free_cluster(2)))
    assert re.search(r"resumes at step [1-9]", out)
    ends = [21, 41, 61]
    train, val = (rows(tmp_path / "run", split) for split in ("train", "val"))
    assert [row["step"] for row in train] == sorted({*range(4, 61, 4), *ends})
    assert [row["step"] for row in val] == ends


@pytest.mark.slow
def test_a_signal_to_one_worker_saves_and_stops_all(tmp_path):
    commands = two_workers_at_work(tmp_path / "run")
    commands[1].send_signal(signal.SIGTERM)
    (code, out, err), other = (command.wait(60) for command in commands)
    assert (code, err) == (143, "")
    assert other == (143, "", "")  # Only the chief prints.
    (step,) = re.findall(r"stopped; saved at step (\d+); rerun the command to resume", out)
    assert (tmp_path / "run" / "checkpoints" / f"step-{step}.index").exists()


def test_workers_that_differ_are_refused(tmp_path):
    args = (*LONGER, f"--run_dir={tmp_path / 'run'}")
    tasks = helpers.free_cluster(2)
    commands = [Command("train.py", *args, f"--seed={i}", **task) for i, task in enumerate(tasks)]
    for code, _, err in (command.wait(60) for command in commands):
        assert code == 2
        assert "the workers differ in their flags, data or --run_dir; start all workers" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("index", "number"), [(0, signal.SIGTERM), (1, signal.SIGINT)])
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


# Damaged checkpoints and full disks lose no more than necessary.


def copy_of(run, tmp_path):
    run_dir, args = run
    shutil.copytree(run_dir, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    return tmp_path / "run", (*args, f"--run_dir={tmp_path / 'run'}")


def damage(run_dir, step, how):
    for file in (run_dir / "checkpoints").glob(f"step-{step}.*"):
        content = file.read_bytes()
        if how == "truncated":
            file.write_bytes(content[: len(content) // 2])
        elif how == "zeroed":
            file.write_bytes(bytes(len(content)))
        elif how == "altered" and ".data-" in file.name:
            middle = len(content) // 2
            flipped = bytes([content[middle] ^ 255])
            file.write_bytes(content[:middle] + flipped + content[middle + 1 :])
        elif how == "missing":
            file.unlink()


@pytest.mark.parametrize("how", ["truncated", "zeroed", "altered", "missing"])
def test_training_continues_from_the_checkpoint_before_a_damaged_one(
    unfinished, tmp_path, capsys, how
):
    run_dir, args = copy_of(unfinished, tmp_path)
    damage(run_dir, 11, how)
    call("train.py", *args)
    out = capsys.readouterr().out
    assert f"{run_dir}/checkpoints/step-11 is damaged (" in out
    assert f"continuing from {run_dir}/checkpoints/step-6, the one before\n" in out
    assert "resumes at step 6, 11 steps" in out
    assert rows(run_dir) == rows(unfinished[0])
    expected, found = (read(path / "result.json") for path in (unfinished[0], run_dir))
    assert found["per_class"] == expected["per_class"]
    assert len(list((run_dir / "checkpoints").glob("damaged-step-11.*"))) == 2 * (how != "missing")


def test_training_never_starts_over_by_itself(unfinished, tmp_path, capsys):
    run_dir, args = copy_of(unfinished, tmp_path)
    for step in (0, 6, 11):
        damage(run_dir, step, "zeroed")
    error = refused(capsys, "train.py", *args)
    assert f"{run_dir}/checkpoints has no checkpoint that can be read (" in error
    assert f"put one back, or remove {run_dir} to start over" in error
    error = refused(capsys, "eval.py", f"--run_dir={run_dir}", "--checkpoint=last")
    assert f"{run_dir}/checkpoints/step-11 does not restore this net" in error
    shutil.rmtree(run_dir / "checkpoints")
    assert "has no checkpoint that can be read" in refused(capsys, "train.py", *args)


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_loses_nothing(tmp_path):
    """Checkpoints have room, and after some rows no file has more."""
    args = (*TINY, "--epochs=10", "--log_steps=1", "--eval_epochs=5", "--momentum=0")
    run, other = ((*args, f"--run_dir={tmp_path / name}") for name in ("run", "other"))
    call("train.py", *other, "--on_save_error=continue")
    files = (tmp_path / "other" / "best").iterdir()
    limit = max(file.stat().st_size for file in files) + 1000
    assert (tmp_path / "other" / "metrics.jsonl").stat().st_size > limit
    process = Command("train.py", *run, "--on_save_error=continue", largest_file=limit)
    code, out, err = process.wait()
    failure = f"cannot write {tmp_path}/run/metrics.jsonl: File too large"
    assert (code, err) == (2, f"train.py: {failure}\n")
    assert f"{failure}; continuing\n" in out
    # No checkpoint is ahead of the rows that lead to it.
    assert saved_step(tmp_path / "run") <= Run.open(tmp_path / "run").metrics[-1]["step"]
    assert not (tmp_path / "run" / "result.json").exists()
    call("train.py", *run)
    assert kill_runs.differences(tmp_path / "other", tmp_path / "run") == []


def test_damaged_rows_are_kept_and_reported(unfinished, tmp_path, capsys):
    run_dir, args = copy_of(unfinished, tmp_path)
    text = (run_dir / "metrics.jsonl").read_text()
    first, second, rest = text.split("\n", 2)
    damaged = f"{first}\n{second[:20]}\n{rest}"
    (run_dir / "metrics.jsonl").write_text(damaged)
    call("train.py", *args)
    assert f"{run_dir}/metrics.jsonl had 1 damaged line(s); " in capsys.readouterr().out
    assert (run_dir / "damaged-metrics.jsonl").read_text() == damaged
    (lost,) = [row for row in rows(unfinished[0]) if row not in rows(run_dir)]
    assert lost == helpers.json.loads(second)


# Non-finite values never reach a checkpoint.


class Poison(Hook):
    """Makes a weight infinite after the rows of some steps, until the row after."""

    def __init__(self):
        self.finite = None

    def on_log(self, trainer, row):
        bias = trainer.state.net.head.dense.bias
        if trainer.step in Poison.steps:
            Poison.steps.remove(trainer.step)
            self.finite = tf.identity(bias)
            bias.assign(bias + math.inf)
        elif self.finite is not None:
            bias.assign(self.finite)
            self.finite = None


@pytest.fixture
def poison(monkeypatch):
    monkeypatch.setitem(HOOKS, "poison", Poison)

    def poison(steps):
        monkeypatch.setattr(Poison, "steps", steps, raising=False)

    return poison


def assert_checkpoints_are_finite(run_dir):
    for directory in ("checkpoints", "best"):
        for step in saved_steps(run_dir / directory):
            reader = tf.train.load_checkpoint(f"{run_dir}/{directory}/step-{step}")
            for name, shape in reader.get_variable_to_shape_map().items():
                values = reader.get_tensor(name)
                if name.startswith(("net/", "optimizer/")):
                    assert np.isfinite(values).all(), (name, shape)


POISONED = (*TINY, "--epochs=3", "--log_steps=2", "--hooks=poison")


def test_a_run_stops_at_a_value_that_is_not_finite(tmp_path, capsys, poison):
    poison([8])
    args = (*POISONED, f"--run_dir={tmp_path / 'run'}")
    error = refused(capsys, "train.py", *args)
    assert re.search(
        r"the loss is not finite at step 9 \(loss nan, gradient norm nan, learning rate 0\.\d+\); "
        r"the checkpoint of step 6 is kept\. Try a lower --learning_rate, ",
        error,
    )
    assert saved_steps(tmp_path / "run" / "checkpoints") == [0, 6]
    assert_checkpoints_are_finite(tmp_path / "run")
    # Without the fault, the same command resumes the run.
    call("train.py", *args)
    assert "resumes at step 6, 16 steps" in capsys.readouterr().out


def test_a_weight_that_is_not_finite_is_not_saved(tmp_path, capsys, poison):
    """At the end of an epoch, before a save."""
    poison([6])
    error = refused(capsys, "train.py", *POISONED, f"--run_dir={tmp_path / 'run'}")
    message = r"a weight is not finite at step 6 \(.*\); the checkpoint of step 0 is kept\. Try"
    assert re.search(message, error)
    assert saved_steps(tmp_path / "run" / "checkpoints") == [0]


def test_updates_that_are_not_finite_are_skipped_and_counted(tmp_path, capsys, poison):
    poison([8])
    call("train.py", *POISONED, "--on_nan=skip", f"--run_dir={tmp_path / 'run'}")
    skipped = {row["step"]: row["skipped_updates"] for row in rows(tmp_path / "run", "train")}
    assert skipped == {2: 0, 4: 0, 6: 0, 8: 0, 10: 2, 11: 2, 12: 2, 14: 2, 16: 2}
    assert_checkpoints_are_finite(tmp_path / "run")


def test_training_goes_back_and_leaves_out_batches(tmp_path, capsys, poison):
    poison([8, 12])
    args = (*POISONED, "--on_nan=restore", f"--run_dir={tmp_path / 'run'}")
    call("train.py", *args)
    lines = capsys.readouterr().out.splitlines()
    messages = [line for line in lines if "the loss is not finite" in line]
    assert [re.sub(r"\(loss.*rate [\d.]+\)", "", line) for line in messages] == [
        "the loss is not finite at step 9 ; continuing from step 6 without the next 3 batches "
        "(restore 1 of 3)",
        "the loss is not finite at step 13 ; continuing from step 11 without the next 2 batches "
        "(restore 2 of 3)",
    ]
    steps = [row["step"] for row in rows(tmp_path / "run", "train")]
    assert steps == [2, 4, 6, 8, 10, 11, 12, 14, 16]
    assert_checkpoints_are_finite(tmp_path / "run")


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("skip", "the last of 100 in a row (loss "),
        ("restore", "training went back 3 times already; the checkpoint of step 0 is kept. Try a"),
    ],
)
def test_a_run_that_diverges_ends(tmp_path, capsys, policy, message):
    """After each restore, it does so again."""
    args = (*TINY, "--epochs=3", "--batch_size=10", "--learning_rate=1e9", f"--on_nan={policy}")
    error = refused(capsys, "train.py", *args, f"--run_dir={tmp_path / 'run'}")
    assert message in error
    assert_checkpoints_are_finite(tmp_path / "run")


# One line for each failure, also in scoring.


def test_eval_stops_at_a_signal(unfinished, tmp_path):
    run_dir, _ = copy_of(unfinished, tmp_path)
    with locked(run_dir):  # As while the run is trained.
        process = Command("eval.py", f"--run_dir={run_dir}", "--follow")
        until([process], lambda: "step 11" in process.printed()[0])
        process.send_signal(signal.SIGINT)
        code, _, err = process.wait(10)
    assert (code, err) == (130, "")
