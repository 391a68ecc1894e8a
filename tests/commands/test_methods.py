"""Settings for short trainings, through the commands."""

import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

import data
from commands import build, session
from commands.checks import parse_train_sizes
from commands.config import Config
from commands.run import Run
from commands.setting import ConfigError
from loops.settings import StepSettings
from nets.initialize import whiten
from tests.commands.helpers import TINY, call, refused, tiny_net

METHODS = (
    "--whiten", "--identity", "--bias_learning_rate=0.5", "--lookahead_steps=2",
    "--train_sizes=5:0.4,7:0.6", "--tta=flip,shifts", "--augment=alternating_flip",
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _tiny_net():
    with tiny_net():
        yield


@pytest.mark.slow
def test_a_run_with_all_of_them(tmp_path, capsys):
    at = f"--run_dir={tmp_path / 'run'}"
    flags = ("--epochs=2", "--learning_rate=0.05", "--histogram_steps=3")
    call("train.py", *TINY, *METHODS, *flags, at)
    other = ("--tta=shifts,flip", "--train_sizes=5:.40,7:0.60")  # The same in another form.
    call("train.py", *TINY, *METHODS, *other, *flags, at)
    run = Run.open(tmp_path / "run")
    # Of batches of 256 with 8 channels, at 5x5 pixels, and at 8x8, of which every other is taken.
    shown = EventAccumulator(str(tmp_path / "run/train"), size_guidance={"tensors": 0}).Reload()
    counts = {
        event.step: tf.make_ndarray(event.tensor_proto)[:, 2].sum()
        for event in shown.Tensors("stage_activations/stem")
    }
    assert (counts[3], counts[9]) == (256 * 5 * 5 * 8, 256 * 8 * 8 * 8 / 2)
    scores = call("eval.py", at, "--device=cpu")
    assert scores["loss"] == pytest.approx(run.result["loss"], rel=1e-5)
    capsys.readouterr()
    assert call("eval.py", at, "--device=cpu", "--tta=flip")["loss"] != scores["loss"]
    assert ", 2 variants of each image averaged\n" in capsys.readouterr().out
    call("eval.py", at, "--device=cpu", "--tta=none")
    assert "averaged" not in capsys.readouterr().out
    # From the initial state, and at each of the sizes.
    row = call("replay.py", at, "--step=9", "--device=cpu")["row"]
    assert row["recomputed"]["loss"] == pytest.approx(row["logged"]["loss"], rel=1e-5)
    capsys.readouterr()
    call("export.py", at, "--noverify", tmp_path / "model")
    assert "alone, without the variants of --tta=flip,shifts\n" in capsys.readouterr().out


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
        (("--train_sizes=5:0.001",), "steps, none are left for 5 pixels"),
        (("--train_sizes=5:0.999",), "steps, none are left for 8 pixels"),
        (
            ("--whiten", "--net=inception_v3", "--freeze=stem"),
            "more convolutions, which would stay",
        ),
        (("--lookahead_steps=999",), "--lookahead_steps=999 is more than the "),
        (("--tta=rotate",), "--tta"),
    ],
)
def test_what_is_refused(flags, line, tmp_path, capsys):
    assert line in refused(capsys, "train.py", *TINY, *flags, f"--run_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "smaller", "auxiliary"),
    [
        (64, 48, True),
        pytest.param(64, 48, False, marks=pytest.mark.slow),
        pytest.param(32, 24, True, marks=pytest.mark.slow),
    ],
)
def test_auxiliary_heads_that_are_made_for_one_size_are_refused(size, smaller, auxiliary):
    """Those of small grids are not, which are padded to one size."""
    source = types.SimpleNamespace(
        labels=range(512), image_shape=(size, size, 1), fingerprint=lambda: 0
    )
    dataset = data.Dataset(
        "some", ("a", "b"), dict.fromkeys(("train", "test"), source), (0.5,), (0.25,)
    )
    config = Config(net="inception_v1", train_sizes=(f"{smaller}:0.5",), auxiliary=auxiliary)
    if size == 64 and auxiliary:
        with pytest.raises(ConfigError, match=r"--train_sizes: the auxiliary heads .*auxiliary$"):
            build.resolve(config, dataset)
    else:
        assert build.resolve(config, dataset).stem == "small"


@pytest.mark.slow
def test_images_are_read_for_whitening_once(tmp_path, monkeypatch):
    """Not when the run is resumed."""
    calls, run = [], f"--run_dir={tmp_path / 'run'}"
    examples = session.some_examples

    def noted(dataset):
        return lambda count: (calls.append(count), examples(dataset)(count))[1]

    monkeypatch.setattr(session, "some_examples", noted)
    call("train.py", *TINY, "--whiten", "--epochs=1", run)
    assert len(calls) == 1
    (tmp_path / "run" / "result.json").unlink()
    call("train.py", *TINY, "--whiten", "--epochs=1", run)
    assert len(calls) == 1


def test_pixels_of_the_rest_of_a_run():
    settings = StepSettings(8, sizes=((10, 16), (20, 24)), image_size=32)
    assert settings.pixels(0, 40) == 10 / 4 + 10 * 9 / 16 + 20
    assert settings.pixels(5, 6) == 1 / 4
    assert settings.pixels(15, 30) == 5 * 9 / 16 + 10
    assert settings.pixels(25, 30) == 5
    assert StepSettings(8).pixels(5, 30) == 25


def test_the_state_and_the_updates_are_as_the_flags_say(one_replica):
    """`--whiten`, `--identity`, `--bias_learning_rate` and `--train_sizes`."""
    dataset = data.load("digits")
    flags = {"whiten": True, "identity": True, "bias_learning_rate": 0.6, "epochs": 2.0}
    config = Config(net="tiny", dataset="digits", train_sizes=("5:0.25", "7:0.5"), **flags)
    config = build.resolve(config, dataset)
    info = build.data_info(dataset)
    _, learning_rate = build.make_plan(config, info.examples["train"])
    examples = session.some_examples(dataset)
    net = session.make_state(config, info, one_replica, learning_rate, examples=examples).net
    expected = build.build_net(config, info)
    whiten(expected, examples(10**6))
    kernels = (each.stem.conv.conv.kernel for each in (net, expected))
    np.testing.assert_allclose(*kernels)
    ends = dataset.examples("train", [0, info.examples["train"] - 1])[0]
    np.testing.assert_array_equal(examples(2), ends)
    kernel = net.stage_1.conv.conv.kernel.numpy()
    np.testing.assert_array_equal(kernel[1, 1, :, :8], np.eye(8))
    settings = session.step_settings(config, info, dataset.splits["train"].labels, net)
    # The peak rate is 0.2. Scales and kernels have it; offsets of BatchNorm and biases another.
    names = [variable.name for variable in net.trainable_variables]
    assert dict(zip(names, settings.rate_multipliers, strict=True)) == pytest.approx(
        {"kernel": 1, "gamma": 1, "beta": 3, "bias": 3}
    )
    steps = settings.total_steps
    assert settings.sizes == ((round(steps / 4), 5), (round(steps / 2), 7))


@pytest.mark.slow
def test_a_damaged_image_ends_a_whitened_run_in_one_line(tmp_path, capsys):
    for number, split in enumerate(("train", "train", "test")):
        for label in ("a", "b"):
            path = tmp_path / "data" / split / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (50 * number, 100, 20)).save(path)
    damaged = tmp_path / "data" / "train" / "b" / "1.png"
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) - 30])
    flags = ("--net=tiny", "--dataset=folder", f"--data_dir={tmp_path / 'data'}", "--image_size=8")
    run = f"--run_dir={tmp_path / 'run'}"
    line = refused(
        capsys, "train.py", *flags, "--whiten", "--batch_size=2", "--device=cpu", run,
        "--val_fraction=0",
    )  # fmt: skip
    assert str(damaged) in line


def test_sizes_are_parsed():
    assert parse_train_sizes(("20:0.4", "26:0.75")) == [(20, 0.4), (26, 0.75)]
    for text in ("0:0.5", "20:0", "20:1", "20:nan", "x:0.5", "20:0.5:1"):
        with pytest.raises(ConfigError, match="such as 20"):
            parse_train_sizes((text,))
