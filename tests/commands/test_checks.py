"""What is wrong with options is found before TensorFlow is imported, and in Python too."""

import pathlib
import subprocess
import sys
import time
import typing

import pytest
from absl import flags as absl_flags

from commands import checks, flags, options
from commands.config import Tta
from commands.setting import ConfigError
from loops.errors import RunError
from tests.conftest import ROOT

TRAIN, EVALUATE, PREDICT = options.TrainOptions, options.EvaluateOptions, options.PredictOptions
EXPORT, COMPARE, REPLAY = options.ExportOptions, options.CompareOptions, options.ReplayOptions
RUN = "--run_dir=run"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, with a run as far as options are concerned, a directory and a file."""
    monkeypatch.chdir(tmp_path)
    for name in ("best", "pictures"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run/config.json").touch()
    (tmp_path / "run/lock").touch()
    (tmp_path / "project/test").mkdir(parents=True)
    (tmp_path / "project/config.json").touch()  # Of something else.
    (tmp_path / "images/below").mkdir(parents=True)
    (tmp_path / "model.onnx").touch()
    return tmp_path


def parse(cls, *args):
    return flags.parse(["command.py", *args], cls, absl_flags.FlagValues())


MISTAKES = [
    *((cls, args, "--run_dir is required") for cls, args in (
        (EVALUATE, ()), (PREDICT, ("a.jpg",)), (EXPORT, ("model",)), (REPLAY, ("--step=1",)),
    )),
    *((cls, ("--run_dir=none", *args), "none is not a run directory: it is not a directory")
      for cls, args in (
        (EVALUATE, ()), (PREDICT, ("a.jpg",)), (EXPORT, ("model",)), (REPLAY, ("--step=1",)),
    )),
    (EVALUATE, ("--run_dir=images",), "images is not a run directory: it has no config.json"),
    (EVALUATE, (RUN, "--follow", "--checkpoint=last"), "leave out --checkpoint"),
    (EVALUATE, (RUN, "--json=none/a.json"), "--json=none/a.json: no file can be written there"),
    (EVALUATE, (RUN, "--json=run/config.json"), "config.json belongs to the run"),
    (EVALUATE, (RUN, "--json=run/predictions.npz"), "predictions.npz belongs to the run"),
    (EVALUATE, (RUN, "--json=run/best/step-6.index"), "best belongs to the run"),
    (EVALUATE, (RUN, "--pictures=run/best"), "best belongs to the run"),
    (EVALUATE, (RUN, "--pictures=model.onnx"), "--pictures=model.onnx is not a directory"),
    (PREDICT, (RUN,), "name image files, directories or patterns"),
    (PREDICT, (RUN, "a.jpg", "--tta=flip,foo"), "expected a list of names from flip, shifts"),
    (PREDICT, (RUN, "images", "--grad_cam=images/below/cam"), "is inside images, whose images"),
    (EXPORT, (RUN,), "OUT is required"),
    (EXPORT, (RUN, "a", "b"), "one OUT is expected, not 2: a b"),
    (EXPORT, (RUN, "a", "--int8"), "--int8 is for --format=tflite, not --format=saved_model"),
    (EXPORT, (RUN, "a.onnx", "--format=tflite"), "a.onnx is a name for --format=onnx, not tflite"),
    (EXPORT, (RUN, "model.onnx", "--format=onnx"), "OUT=model.onnx exists already"),
    (EXPORT, (RUN, "none/a"), "OUT=none/a: there is no directory"),
    (EXPORT, (RUN, "run/train"), "OUT=run/train: train belongs to the run"),
    (EXPORT, (RUN, "a", "--weights_txt=images/../a"), "OUT and --weights_txt are both"),
    (COMPARE, (), "nothing to compare"),
    (COMPARE, ("run", "none"), "none is not a run directory, it is not a directory"),
    (COMPARE, ("run", "--chart=a.svg"), "--chart=a.svg: expected the name of a .png file"),
    (COMPARE, ("run", "--examples=none/a.png"), "--examples=none/a.png: expected the name of"),
    (COMPARE, ("run", "--chart=run/best/a.png"), "best belongs to the run"),
    (COMPARE, ("run", "--chart=a.png", "--examples=./a.png"), "--chart and --examples are both"),
    (REPLAY, (RUN,), "--step is required"),
    (REPLAY, (RUN, "--step=1", "--picture=run/times.json"), "times.json belongs to the run"),
    (REPLAY, (RUN, "--step=1", "--picture=a", "--json=images/../a"), "--picture and --json are"),
    (REPLAY, (RUN, "--step=1", "--picture=none/a.png"), "--picture=none/a.png: no file can be"),
    (TRAIN, ("--profile_steps=9",), "--profile_steps: '9' is not FIRST:LAST"),
    (TRAIN, ("--seeds=1,2,1",), "--seeds=1,2,1: a seed is given twice"),
    (TRAIN, ("--seeds=1,2", "--seed=3"), "--seed=3 and --seeds exclude each other"),
    (TRAIN, ("--seeds=1,2", "--find_learning_rate"), "use --seed, not --seeds"),
    (TRAIN, ("--patience=2", "--val_fraction=0"), "--patience needs a validation split"),
    (TRAIN, ("--sampling=balanced", "--class_weights=balanced"), "balance the classes twice"),
    (TRAIN, ("--jit", "--deterministic"), "drop --jit or --deterministic"),
    (TRAIN, ("--jit", "--sync_batch_norm", "--num_gpus=2"), "drop one"),
    (TRAIN, ("--schedule=step", "--step_epochs="), "--schedule=step needs --step_epochs"),
    (TRAIN, ("--batch_size=9", "--num_gpus=2"), "--batch_size=9 is not divisible by"),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "args", "message"), MISTAKES)
def test_a_mistake_is_refused(here, cls, args, message):
    with pytest.raises((ConfigError, RunError)) as caught:
        parse(cls, *args)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "args"),
    [
        (EVALUATE, (RUN, "--follow", "--json=a.json", "--split=val")),
        (PREDICT, (RUN, "images", "--tta=shifts,flip", "--grad_cam=cam")),
        (EXPORT, (RUN, "a.tflite", "--format=tflite", "--int8", "--weights_txt=a.txt")),
        (EXPORT, (RUN, "--weights_txt=a.txt")),
        (COMPARE, ("run", "images", "--chart=a.png")),
        (COMPARE, ("run", "--chart=project/test/a.png")),
        (REPLAY, (RUN, "--step=1", "--picture=images/a.png")),
        (REPLAY, (RUN, "--step=1", "--picture=run/pictures/a.png", "--json=run/a.json")),
        (TRAIN, ("--profile_steps=100:110", "--seeds=1,2", "--jit", "--patience=2")),
        (TRAIN, ("--find_learning_rate", "--schedule=step", "--step_epochs=3")),
        (TRAIN, ("--describe", "--batch_size=9", "--num_gpus=2")),  # It uses neither.
    ],
)
def test_what_fits_is_accepted(here, cls, args):
    assert isinstance(parse(cls, *args), cls)


@pytest.mark.parametrize(
    ("program", "args"), [("predict.py", ("a.jpg",)), ("compare.py", ("none",))]
)
def test_a_mistake_takes_less_than_a_second(tmp_path, program, args):
    """The stub ends a process that imports TensorFlow; the quickest of three is not disturbed."""
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('tensorflow was imported')")
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, ROOT / program, *args],
            env={"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds.append(time.monotonic() - start)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{program}: ")
    assert done.stderr.count("\n") == 1
    assert min(seconds) < 1


def test_commands_check_options_that_are_made_in_python(here):
    from commands.compare import compare
    from commands.evaluate import evaluate
    from commands.export import export
    from commands.predict import predict
    from commands.replay import replay
    from commands.train import train

    for command, wrong, message in (
        (train, TRAIN(seeds=(1, 2), find_learning_rate=True), "use --seed, not --seeds"),
        (evaluate, EVALUATE(), "--run_dir is required"),
        (predict, PREDICT(run_dir="run"), "name image files"),
        (export, EXPORT(run_dir="run"), "OUT is required"),
        (compare, COMPARE(), "nothing to compare"),
        (replay, REPLAY(run_dir="run"), "--step is required"),
    ):
        with pytest.raises(ConfigError, match=message):
            command(wrong)


def test_the_names_for_tta_are_those_of_the_table():
    from data.variants import VARIANTS

    assert typing.get_args(typing.get_args(Tta)[0]) == tuple(VARIANTS)


def test_profiled_steps():
    assert checks.profiled_steps("100:110") == (100, 110)
    assert checks.profiled_steps("1:1") == (1, 1)
    for text in ("", "5", "5:", "0:3", "4:3", "-1:3", "1:2:3", "a:b", "1:9999999999999", "1 :2"):
        with pytest.raises(ConfigError) as caught:
            checks.profiled_steps(text)
        assert repr(text) in str(caught.value)


def test_a_working_directory_that_does_not_exist(here):
    pathlib.Path("gone").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir("gone")
        (here / "gone").rmdir()
        with pytest.raises(RunError, match="the working directory does not exist"):
            parse(EVALUATE, RUN)
