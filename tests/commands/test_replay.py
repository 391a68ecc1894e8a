"""A step that is shown again: what replay.py finds is what training did."""

import contextlib
import dataclasses
import io
import json
import math
import re
import shutil
import signal
from typing import ClassVar

import numpy as np
import pytest
import tensorflow as tf

from commands.earlier_state import restore_before
from commands.replay import _hint
from commands.run import Run
from data.pipeline import example_numbers
from loops.errors import RunError
from loops.hook import Hook
from loops.hooks import HOOKS
from tests.commands import helpers
from tests.commands.helpers import TINY, Command, call, contents, finish, read, refused, rows
from tests.trust.helpers import saved_step, until

# 1,295 examples: epochs end at the steps 21 and 41.
ARGS = (
    *TINY, "--batch_size=64", "--epochs=2", "--augment=crop:1,mixup:0.2|cutmix:1", "--log_steps=8",
    "--label_smoothing=0.1", "--ema_decay=0.9", "--accumulation=2", "--momentum=0",
    "--weight_decay=0",
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _tiny_net():
    with helpers.tiny_net():
        yield


class Record(Hook):
    """Keeps the weights after every step, and the loss and the gradient norm of the step."""

    weights: ClassVar[dict] = {}
    figures: ClassVar[dict] = {}

    def next_step(self, step):
        return step + 1

    def on_step(self, trainer):
        step, window = trainer.step, trainer.state.window
        net = trainer.state.net
        self.weights[step] = {v.path: v.numpy().copy() for v in net.trainable_variables}
        sums = np.array([window["loss"].numpy()[0] / 64, window["gradient_norm"].numpy()])
        first = window["steps"].numpy() == 1
        self.figures[step] = sums - (0 if first else self._sums)
        self._sums = sums


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A finished run, of which `Record` has every step."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(HOOKS, "record", Record)
        call("train.py", *ARGS, "--hooks=record", f"--run_dir={run_dir}")
    return run_dir


def replay(run_dir, step, *args):
    return call("replay.py", f"--run_dir={run_dir}", f"--step={step}", *args)


@pytest.fixture(scope="module")
def replayed(run_dir, tmp_path_factory):
    """Of step 30: what the command returns, prints and writes, and the run before and after."""
    path, before = tmp_path_factory.mktemp("replayed") / "json", contents(run_dir)
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        found = replay(run_dir, 30, f"--json={path}")
    return found, stream.getvalue(), read(path), before, contents(run_dir)


def norm(arrays):
    return math.sqrt(sum(float(np.sum(np.square(a, dtype=np.float64))) for a in arrays))


def check_step(found, step):
    """Compares what was found with what `Record` has."""
    loss, gradient_norm = Record.figures[step]
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["gradient_norm"] == pytest.approx(gradient_norm, rel=1e-5)
    before, after = Record.weights[step - 1], Record.weights[step]
    changes = {path: after[path] - before[path] for path in before}
    assert found["weight_norm"] == pytest.approx(norm(before.values()), rel=1e-6)
    assert found["update_norm"] == pytest.approx(norm(changes.values()), rel=1e-4)
    assert list(found["stages"]) == ["stem", "stage_1", "head"]
    # Of a convolution: the kernel, scales and offsets; of the head: the kernel and biases.
    for part, figures in zip(((0, 3), (3, 6), (6, 8)), found["stages"].values(), strict=True):
        paths = list(before)[slice(*part)]
        size = norm([changes[path] for path in paths])
        assert figures["update_norm"] == pytest.approx(size, rel=1e-4)
        # Plain gradient descent: the update is the gradient times the learning rate.
        assert figures["gradient_norm"] == pytest.approx(size / found["learning_rate"], rel=1e-3)
        assert figures["weight_norm"] == pytest.approx(norm([before[p] for p in paths]), rel=1e-5)
        assert figures["update_ratio"] == figures["update_norm"] / figures["weight_norm"]
        assert figures["nonfinite_gradients"] == 0
    losses = [example["loss"] for example in found["examples"]]
    assert np.mean(losses) == pytest.approx(loss, rel=1e-5)


def check_row(found, run_dir, step):
    row = found["row"]
    assert row["step"] == step
    assert row["logged"] in rows(run_dir, "train")
    for name in ("loss", "top_1_accuracy", "gradient_norm", "weight_norm", "highest_loss"):
        assert row["recomputed"][name] == pytest.approx(row["logged"][name], rel=1e-5)


@pytest.mark.slow
def test_a_step_is_that_of_the_run(run_dir, replayed):
    found, printed, written, _, _ = replayed
    check_step(found, 30)
    check_row(found, run_dir, 32)
    assert written == json.loads(json.dumps(found))
    assert found["checkpoint"] == f"{run_dir}/checkpoints/step-21"
    assert f"from     {run_dir}/checkpoints/step-21, 8 steps before it\n" in printed
    assert f"row      of step 32: loss {found['row']['logged']['loss']:.4f} logged, " in printed
    assert f"update   loss {found['loss']:.6g}, gradient norm " in printed


@pytest.mark.parametrize(
    ("step", "row"),
    [
        pytest.param(21, 21, marks=pytest.mark.slow),
        *(
            pytest.param(*steps, marks=pytest.mark.exhaustive)
            for steps in [(20, 21), (22, 24), (24, 24), (25, 32)]
        ),
    ],
)
def test_steps_at_the_ends_of_rows_and_epochs(run_dir, tmp_path, step, row):
    found = replay(run_dir, step, f"--picture={tmp_path / 'a.png'}")
    check_step(found, step)
    check_row(found, run_dir, row)


@pytest.mark.slow
def test_changed_code_is_named_as_the_reason(run_dir, tmp_path, capsys):
    """The run is made one of other code, and its row another."""
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(re.sub(r'"loss": \d', '"loss": 9', text))
    replay(run, 10)
    assert "small differences are expected without --deterministic" in capsys.readouterr().out
    config = read(run / "config.json")
    config["code"][0]["sources"] = "01234567"
    (run / "config.json").write_text(json.dumps(config))
    replay(run, 10)
    out = capsys.readouterr().out
    code = r"the code in nets/, data/, loops/ or commands/session\.py has changed since"
    assert re.search(rf"they differ \(.*\); {code}", out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "start", "step", "is_reason"),
    [
        ("second", 0, 16, False),  # The second code makes step 17 first.
        ("second", 0, 17, True),
        ("first", 15, 24, True),
        ("first", 16, 24, False),
    ],
)
def test_code_of_other_steps_is_no_reason(run_dir, changed, start, step, is_reason):
    run = Run.open(run_dir)
    (present,) = run.saved.code
    other = dataclasses.replace(present, sources="01234567")
    first, second = (present, other) if changed == "second" else (other, present)
    code = (first, dataclasses.replace(second, from_step=16))
    run = Run(run.path, dataclasses.replace(run.saved, code=code))
    assert ("has changed since" in _hint(run, run.config, start, step)) == is_reason


@pytest.mark.slow
def test_the_examples_are_those_of_the_batch(run_dir, replayed):
    """By loss; each with the other of its pair, and its prediction."""
    result, printed, *_ = replayed
    found = result["examples"]
    numbers = example_numbers(
        tf.constant(29, tf.int64),
        tf.range(64, dtype=tf.int64),
        size=1295,
        global_batch_size=64,
        seed=0,
    )[0].numpy()
    train = Run.open(run_dir).dataset().splits["train"]
    assert sorted(x["row"] for x in found) == list(range(64))
    assert [x["loss"] for x in found] == sorted((x["loss"] for x in found), reverse=True)
    for x in found:
        assert x["number"] == numbers[x["row"]]
        assert x["name"] == train.describe(x["number"])
        assert x["mixed_with"] == train.describe(numbers[x["row"] ^ 1])
        pair = [str(train.labels[numbers[row]]) for row in (x["row"], x["row"] ^ 1)]
        assert {name for name, _ in x["labels"]} <= set(pair)
        assert sum(weight for _, weight in x["labels"]) == pytest.approx(1)
    assert any(len(x["labels"]) == 2 for x in found)
    worst = found[0]
    assert "examples by loss, the 10 highest of 64\n" in printed
    assert f"{worst['loss']:9.4f}  " in printed
    assert f"{worst['name']} with {worst['mixed_with']}\n" in printed


@pytest.mark.slow
def test_only_the_picture_is_new(replayed):
    *_, before, after = replayed
    assert after.pop("pictures/step-30.png").startswith(b"\x89PNG")
    assert after == before


@pytest.mark.slow
def test_a_run_that_was_killed(run_dir, tmp_path, capsys):
    """Before the first row, and its checkpoint is damaged: it starts from the seed."""
    shutil.copytree(run_dir, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    for path in ("best", "checkpoints"):
        for file in (tmp_path / "run" / path).glob("step-*.data*"):
            file.write_bytes(file.read_bytes()[:100])
    found = replay(tmp_path / "run", 3)
    check_step(found, 3)
    assert found["checkpoint"] is None
    assert found["row"]["logged"] is None
    assert found["row"]["is_equal"] is None
    printed = capsys.readouterr().out
    assert "from     the initial state, 2 steps before it\n" in printed
    assert "row      none of step 8 was logged: the run was stopped before it; its loss" in printed


@pytest.mark.slow
def test_a_loss_that_is_not_finite(tmp_path, capsys):
    """The message of the run names the command, and that shows what is not finite where."""
    args = (*TINY, "--epochs=2", "--learning_rate=1e9", "--warmup_epochs=0")
    error = refused(capsys, "train.py", *args, f"--run_dir={tmp_path / 'run'}")
    command, _, step = error.strip().rpartition(" --step=")
    assert command.endswith(f"See the step with python replay.py --run_dir={tmp_path / 'run'}")
    assert f"is not finite at step {step}" in error
    before = contents(tmp_path / "run")
    found = replay(tmp_path / "run", step, f"--picture={tmp_path / 'a.png'}")
    assert contents(tmp_path / "run") == before
    assert not found["update_is_made"]
    assert not math.isfinite(found["loss"]) or not math.isfinite(found["gradient_norm"])
    assert found["update_norm"] == 0
    assert any(stage["nonfinite_gradients"] for stage in found["stages"].values())
    printed = capsys.readouterr().out
    assert "not made: the loss or the gradient is not finite\n" in printed
    assert re.search(r"\nstem +\S+ +\S+ +- +- +\d+\n", printed)
    assert "training stops at this update\n" in printed


@pytest.mark.slow
def test_a_folder_of_images(tmp_path, capsys):
    generator = np.random.default_rng(0)
    for number in range(30):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        path.write_bytes(tf.io.encode_png(pixels).numpy())
    args = ("--net=tiny", "--device=cpu", "--dataset=folder", f"--data_dir={tmp_path / 'images'}")
    args += ("--image_size=8", "--batch_size=8", "--epochs=1", f"--run_dir={tmp_path / 'run'}")
    call("train.py", *args)
    found = replay(tmp_path / "run", 2)["examples"]
    printed = capsys.readouterr().out
    for x in found:
        label, name = x["labels"][0][0], x["name"]
        assert name.startswith(f"{tmp_path / 'images' / label}/")
        assert x["mixed_with"] is None
        assert name in printed
    shutil.move(tmp_path / "images", tmp_path / "moved")
    assert "images" in refused(capsys, "replay.py", f"--run_dir={tmp_path / 'run'}", "--step=2")
    again = replay(tmp_path / "run", 2, f"--data_dir={tmp_path / 'moved'}")["examples"]
    assert [x["loss"] for x in again] == pytest.approx([x["loss"] for x in found], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (("--step=3",), "--run_dir is required"),
        (("--run_dir={run}",), "--step is required"),
        (("--run_dir={run}", "--step=0"), "--step=0: expected an integer (>= 1"),
        (("--run_dir={run}", "--step=42"), "--step=42: {run} has 41 steps"),
        (("--run_dir={run}/none", "--step=3"), "{run}/none is not a run directory"),
        (("--run_dir={run}", "--step=3", "--picture={run}/none/a.png"), "no file can be written"),
        (("--run_dir={run}", "--step=3", "--json={run}/result.json"), "belongs to the run"),
        (("--run_dir={run}", "--step=3", "--num_gpus=3"), "--batch_size=64 is not divisible by"),
    ],
)
def test_bad_input_is_one_line(run_dir, capsys, args, wanted):
    arguments = [argument.format(run=run_dir) for argument in args]
    assert wanted.format(run=run_dir) in refused(capsys, "replay.py", *arguments)


# A run that went back to a checkpoint.


def write_history(run_dir, saved):
    """Checkpoints with no more than the number of restores, by their place."""
    for place, restores in saved.items():
        (run_dir / place).parent.mkdir(parents=True, exist_ok=True)
        guard = {"restores": tf.Variable(restores, dtype=tf.int64)}
        tf.train.Checkpoint(guard=guard).write(str(run_dir / place))


CURRENT = {"checkpoints/step-20": 1, "checkpoints/step-30": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved", "step", "start"),
    [
        ({"best/step-10": 0, **CURRENT}, 25, "checkpoints/step-20"),
        ({"best/step-10": 0, **CURRENT}, 40, "checkpoints/step-30"),
        # Went back to 20 or to a step before.
        ({"best/step-10": 0, **CURRENT}, 15, None),
        # The best state is one of those that the run went back from.
        ({"best/step-25": 0, **CURRENT}, 28, "checkpoints/step-20"),
        # It is the one that the run went back to, and was saved before.
        ({"best/step-20": 0, **CURRENT}, 25, "checkpoints/step-20"),
        ({"checkpoints/step-10": 0, "best/step-20": 0, **CURRENT}, 15, "checkpoints/step-10"),
        (CURRENT, 15, None),
        ({"checkpoints/step-30": 0}, 15, "initial"),
        ({}, 15, "initial"),
    ],
)
def test_the_state_is_of_the_same_history(tmp_path, run_dir, monkeypatch, saved, step, start):
    run = Run(tmp_path, Run.open(run_dir).saved)
    write_history(tmp_path, saved)
    monkeypatch.setattr("commands.earlier_state.restore_state", lambda state, path: None)
    if start is None:
        with pytest.raises(RunError, match=rf"so that of step {step} is not known"):
            restore_before(run, step, lambda start, is_initial: "state", say=print)
        return
    state, found = restore_before(run, step, lambda start, is_initial: is_initial, say=print)
    assert state == (start == "initial")
    expected = None if start == "initial" else f"{tmp_path}/{start}"
    assert (found and found.path) == expected


# To the last bit.

EXACT = (*ARGS, "--deterministic", "--save_minutes=0.0001")
LONG = ("--num_gpus=2", "--clip_norm=0.5", "--optimizer=adamw", "--precision=mixed_float16")


@pytest.mark.slow
def test_every_figure_is_equal_to_the_last_bit(tmp_path):
    """Of a finished run, and of one that was killed, in the middle of a window."""
    args = (*EXACT, *LONG)
    finish(
        Command("train.py", *args, f"--run_dir={tmp_path / 'run'}"),
        Command("train.py", *args, "--log_steps=1", f"--run_dir={tmp_path / 'steps'}"),
    )
    killed = Command("train.py", *args, f"--run_dir={tmp_path / 'killed'}")
    until([killed], lambda: saved_step(tmp_path / "killed") >= 10)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    steps = {row["step"]: row for row in rows(tmp_path / "steps", "train")}
    cases = [("run", 13), ("killed", saved_step(tmp_path / "killed") + 2)]
    for name, step in cases:
        output = [f"--json={tmp_path / name}.json", f"--picture={tmp_path / name}.png"]
        command = Command("replay.py", f"--run_dir={tmp_path / name}", f"--step={step}", *output)
        code, printed, _ = command.wait()  # How far it is, if it takes long, is on standard error.
        assert code == 0
        found = read(tmp_path / f"{name}.json")
        assert found["loss"] == steps[step]["loss"] == steps[step]["highest_loss"]
        assert found["gradient_norm"] == steps[step]["gradient_norm"]
        assert found["learning_rate"] == steps[step]["learning_rate"]
        if name == "run":
            assert found["row"]["is_equal"] is True
            assert "recomputed: equal\n" in printed
