"""Settings for short trainings, through the commands."""

import pytest

from commands.checks import parse_train_sizes
from commands.run import Run
from commands.setting import ConfigError
from tests.commands.helpers import TINY, call, refused, tiny_net

METHODS = (
    "--whiten", "--identity", "--bias_learning_rate=0.5", "--lookahead_steps=2",
    "--train_sizes=5:0.4,7:0.6", "--tta=flip,shifts", "--augment=alternating_flip",
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _tiny_net():
    with tiny_net():
        yield


def test_a_run_with_all_of_them(tmp_path):
    at = f"--run_dir={tmp_path / 'run'}"
    call("train.py", *TINY, *METHODS, "--epochs=2", "--learning_rate=0.05", at)
    run = Run.open(tmp_path / "run")
    scores = call("eval.py", at, "--device=cpu")
    assert scores["loss"] == pytest.approx(run.result["loss"], rel=1e-5)
    assert call("eval.py", at, "--device=cpu", "--tta=flip")["loss"] != scores["loss"]
    # From the initial state, and at each of the sizes.
    row = call("replay.py", at, "--step=9", "--device=cpu")["row"]
    assert row["recomputed"]["loss"] == pytest.approx(row["logged"]["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--train_sizes=5",), "--train_sizes=5 is not SIZE:FRACTION,..."),
        (("--train_sizes=5:0.5,6:0.5",), "fractions that increase from 0 to 1"),
        (("--train_sizes=8:0.5",), "--train_sizes: 8 must be less than the 8 pixels"),
        (
            ("--train_sizes=3:0.5", "--net=inception10"),
            "images of 3x3 are too small",
        ),
        (("--train_sizes=5:0.5", "--sync_batch_norm", "--num_gpus=2"), "cannot be combined"),
        (("--whiten", "--init_from=keras"), "--init_from replaces what --whiten"),
        (("--whiten", "--net=inception_v2", "--image_size=64"), "does not begin with a convolut"),
        (("--tta=rotate",), "--tta"),
    ],
)
def test_what_is_refused(flags, line, tmp_path, capsys):
    assert line in refused(capsys, "train.py", *TINY, *flags, f"--run_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_sizes_are_parsed():
    assert parse_train_sizes(("20:0.4", "26:0.75")) == [(20, 0.4), (26, 0.75)]
    for text in ("0:0.5", "20:0", "20:1", "20:nan", "x:0.5", "20:0.5:1"):
        with pytest.raises(ConfigError, match="such as 20"):
            parse_train_sizes((text,))
