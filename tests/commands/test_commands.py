"""The commands as a user gives them, on real digits."""

import json
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from PIL import Image

import cli
import configuration
import evaluation
import experiment
from tests.conftest import ROOT

QUICK = ("--dataset=digits", "--epochs=2", "--batch_size=64", "--device=cpu")


def start(program, *args, **kwargs):
    """Starts a command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / program), *args],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **kwargs},
    )


def run(program, *args, code=0, **kwargs):
    """Runs a command, and returns what it printed."""
    process = start(program, *args, **kwargs)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    if code == 0:
        assert err == ""
    return out if code == 0 else err


def call(program, *args):
    """Runs a command in this process, which has TensorFlow already."""
    define = {"train.py": cli.define_train_flags, "eval.py": cli.define_eval_flags}[program]
    main = {"train.py": experiment.train, "eval.py": evaluation.evaluate}[program]
    with experiment.plain_errors():
        main(cli.parse([program, *args], define, flags.FlagValues()))


def refused(capsys, program, *args):
    """The one line that a command is refused with."""
    with pytest.raises(SystemExit) as caught:
        call(program, *args)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def read(path):
    return json.loads(pathlib.Path(path).read_text())


def rows(run_dir):
    return [json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run on two replicas, and what it printed."""
    home = tmp_path_factory.mktemp("finished")
    out = run("train.py", *QUICK, "--num_gpus=2", "--log_steps=10", cwd=home)
    (run_dir,) = (home / "runs").iterdir()
    return run_dir, out


def test_what_a_run_says(finished):
    run_dir, out = finished
    lines = out.splitlines()
    assert lines[0] == "--device=cpu: 2 replicas run on logical CPU devices, as a rehearsal"
    assert lines[1].split() == ["stage", "output", "parameters", "FLOPs"]
    assert "parameters: 119,354 trainable, 1,184 not" in lines
    assert "data   digits, 8x8x1, 10 classes: 1,295 train, 359 test, 143 val" in lines
    assert f"run    runs/{run_dir.name}, new, 41 steps on 2 replica(s)" in lines
    assert any(line.startswith("epoch 1/2  step 21  train loss ") for line in lines)
    assert re.match(r"test   top-1 \d+\.\d\d%  top-5 \d+\.\d\d%  loss \d", lines[-4])
    assert lines[-2] == "watch  tensorboard --logdir=runs"
    assert lines[-1] == f"score  python eval.py --run_dir=runs/{run_dir.name}"


def test_what_a_run_leaves(finished):
    run_dir, _ = finished
    names = {p.name for p in run_dir.iterdir()}
    assert names == {
        *("config.json", "lock", "metrics.jsonl", "result.json"),
        *("best", "checkpoints", "train", "val", "test"),
    }
    assert re.fullmatch(r"inception10-digits-[0-9a-f]{6}", run_dir.name)
    config = read(run_dir / "config.json")
    assert config["flags"]["learning_rate"] == 0.2
    assert config["data"]["class_names"] == [str(i) for i in range(10)]
    result = read(run_dir / "result.json")
    assert result["examples"] == 359
    assert result["split"] == "test"
    assert list(result["per_class"]) == config["data"]["class_names"]
    splits = [row["split"] for row in rows(run_dir)]
    assert splits.count("test") == 1
    assert splits.count("val") == 2


@pytest.mark.parametrize("replicas", [1, 2])
def test_eval_gives_what_the_training_reported(finished, tmp_path, capsys, replicas):
    run_dir, _ = finished
    report = tmp_path / "scores.json"
    args = (f"--run_dir={run_dir}", f"--json={report}", f"--num_gpus={replicas}", "--device=cpu")
    if replicas == 1:
        call("eval.py", *args)
        out = capsys.readouterr().out
    else:
        out = run("eval.py", *args)
    found, expected = read(report), read(run_dir / "result.json")
    assert found["top_1_accuracy"] == expected["top_1_accuracy"]
    assert found["per_class"] == expected["per_class"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert found["step"] == expected["step"]
    assert set(found) == set(expected) - {"selected_on"}
    assert f"test  top-1 {expected['top_1_accuracy']:.2%}" in out


def test_eval_of_splits_and_checkpoints(finished, tmp_path, capsys):
    run_dir, _ = finished
    examples = {"train": 1295, "val": 143, "test": 359}
    for split, size in examples.items():
        call("eval.py", f"--run_dir={run_dir}", f"--split={split}", f"--json={tmp_path / split}")
        assert read(tmp_path / split)["examples"] == size
    val = [row for row in rows(run_dir) if row["split"] == "val"]
    best = max(val, key=lambda row: (row["top_1_accuracy"], -row["loss"]))
    assert read(tmp_path / "val")["top_1_accuracy"] == best["top_1_accuracy"]
    report = tmp_path / "named"
    call("eval.py", f"--run_dir={run_dir}", "--checkpoint=checkpoints/step-21", f"--json={report}")
    assert read(report)["step"] == 21
    call("eval.py", f"--run_dir={run_dir}", "--checkpoint=last", f"--json={report}")
    assert read(report)["step"] == 41


def test_the_same_command_says_that_it_is_finished(finished):
    run_dir, first = finished
    out = run("train.py", *QUICK, "--num_gpus=2", "--log_steps=10", cwd=run_dir.parent.parent)
    assert out.startswith("--device=cpu")
    assert "This run is finished.\n" + "\n".join(first.splitlines()[-4:]) in out
    assert "To start over, remove runs/" in out


def test_a_changed_command_starts_another_run(finished, capsys, monkeypatch):
    run_dir, _ = finished
    before = set(run_dir.parent.iterdir())
    monkeypatch.chdir(run_dir.parent.parent)
    call("train.py", *QUICK, "--epochs=0.1")
    assert len(set(run_dir.parent.iterdir()) - before) == 1


def test_a_command_that_does_not_fit_the_run_is_refused(finished, capsys):
    run_dir, _ = finished
    config = (run_dir / "config.json").read_text()
    error = refused(
        capsys, "train.py", *QUICK, "--log_steps=10", "--seed=1", "--jit", f"--run_dir={run_dir}"
    )
    assert "--seed is 1 here and 0 in the run" in error
    assert "--jit is True here and False in the run" in error
    assert (run_dir / "config.json").read_text() == config


def test_eval_on_other_data_with_the_same_classes(finished, tmp_path, capsys):
    """The test digits as files, in classes whose order is another, give the same accuracy."""
    run_dir, _ = finished
    test = experiment.data.load("digits").splits["test"]
    images = test.fetch(np.arange(359))
    for i, (image, label) in enumerate(zip(images, test.labels, strict=True)):
        for split in ("train", "test"):
            path = tmp_path / "digits" / split / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(path)
    call(
        "eval.py", f"--run_dir={run_dir}", "--dataset=folder", f"--json={tmp_path / 'scores'}",
        f"--data_dir={tmp_path / 'digits'}",
    )  # fmt: skip
    expected = read(run_dir / "result.json")["top_1_accuracy"]
    assert read(tmp_path / "scores")["top_1_accuracy"] == expected
    (tmp_path / "digits" / "test" / "9").rename(tmp_path / "digits" / "test" / "nine")
    (tmp_path / "digits" / "train" / "9").rename(tmp_path / "digits" / "train" / "nine")
    error = refused(
        capsys, "eval.py", f"--run_dir={run_dir}", "--dataset=folder",
        f"--data_dir={tmp_path / 'digits'}",
    )  # fmt: skip
    assert "lacks 9 and has besides nine" in error


def test_an_interrupted_run_goes_on(finished, tmp_path):
    """Stopped inside an epoch; the end is that of the run that was not stopped."""
    run_dir, _ = finished
    args = (*QUICK, "--num_gpus=2", "--log_steps=10", f"--run_dir={tmp_path / 'run'}")
    screen, inside = pty.openpty()  # On a screen each step is told.
    process = start("train.py", *args, stdout=inside)
    os.close(inside)
    seen = ""
    while "step 2/41" not in seen:
        seen += os.read(screen, 1000).decode()
    process.send_signal(signal.SIGINT)
    while True:
        try:
            seen += os.read(screen, 1000).decode()
        except OSError:  # The end, on Linux.
            break
    assert process.wait() == 130
    assert process.stderr.read() == ""
    step = int(re.search(r"stopped; saved at step (\d+); the same command goes on", seen)[1])
    assert 2 <= step < 41
    out = run("train.py", *args)
    assert f"goes on from step {step}," in out
    assert rows(tmp_path / "run") == rows(run_dir)
    expected = read(run_dir / "result.json")
    assert read(tmp_path / "run" / "result.json")["per_class"] == expected["per_class"]


def test_follow_scores_a_running_training(tmp_path):
    args = ("--dataset=digits", "--epochs=6", "--device=cpu", f"--run_dir={tmp_path / 'run'}")
    with start("train.py", *args) as training:
        while not (tmp_path / "run" / "config.json").exists():
            assert training.poll() is None
            time.sleep(0.1)
        out = run(
            "eval.py", f"--run_dir={tmp_path / 'run'}", "--follow", "--split=val", "--device=cpu",
            f"--json={tmp_path / 'scores'}",
        )  # fmt: skip
        training.communicate()
    last = [row for row in rows(tmp_path / "run") if row["split"] == "val"][-1]
    assert out.splitlines()[-1].startswith(f"epoch {last['epoch']:.4g}  step {last['step']}  val")
    assert read(tmp_path / "scores")["top_1_accuracy"] == last["top_1_accuracy"]
    assert list((tmp_path / "run" / "follow-val").glob("events*"))


def test_a_full_disk_is_one_line_and_the_command_can_be_repeated(tmp_path, capsys):
    """As on a full disk, files cannot grow beyond a limit; the configuration fits, a state not."""
    args = (*QUICK, f"--run_dir={tmp_path / 'run'}")
    code = (
        "import resource, runpy, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        f"sys.argv[0] = 'train.py'; sys.path.insert(0, {str(ROOT)!r})\n"
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "cannot save" in done.stderr
    # With room again, the same command goes through.
    call("train.py", *args)
    assert "test   top-1" in capsys.readouterr().out


def test_fitting_own_images(tmp_path, capsys):
    generator = np.random.default_rng(0)
    for name, colour in (("blue", (20, 20, 220)), ("red", (220, 20, 20))):
        for i in range(20):
            path = tmp_path / "colours" / name / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = generator.integers(0, 30, (20, 30, 3))
            Image.fromarray((noise + colour).astype(np.uint8)).save(path)
    call(
        "train.py", "--dataset=folder", f"--data_dir={tmp_path / 'colours'}", "--image_size=16",
        "--epochs=4", "--batch_size=8", f"--run_dir={tmp_path / 'run'}", "--learning_rate=0.02",
        "--ema_decay=0.5", "--mixup=0.2", "--cutout=4", "--precision=mixed_bfloat16",
        "--optimizer=adamw", "--label_smoothing=0.1", "--clip_norm=1", "--accumulation=2",
    )  # fmt: skip
    assert read(tmp_path / "run" / "result.json")["top_1_accuracy"] == 1.0
    assert read(tmp_path / "run" / "config.json")["data"]["name"] == "colours"
    call("eval.py", f"--run_dir={tmp_path / 'run'}", "--split=train")
    assert "(28 examples)" in capsys.readouterr().out
    # Images that break later are named.
    broken = tmp_path / "colours" / "red"
    for path in broken.iterdir():
        path.write_bytes(path.read_bytes()[:300])
    error = refused(capsys, "eval.py", f"--run_dir={tmp_path / 'run'}")
    assert re.search(rf"{broken}/\d+\.jpg cannot be decoded", error)


def test_no_validation_split(tmp_path, capsys):
    args = (*QUICK, "--val_fraction=0", "--epochs=0.5", f"--run_dir={tmp_path / 'run'}")
    call("train.py", *args)
    assert read(tmp_path / "run" / "result.json")["selected_on"] is None
    call("eval.py", f"--run_dir={tmp_path / 'run'}")
    error = refused(capsys, "eval.py", f"--run_dir={tmp_path / 'run'}", "--split=val")
    assert "holds out no validation split" in error
    error = refused(capsys, "eval.py", f"--run_dir={tmp_path / 'run'}", "--checkpoint=best")
    assert "--checkpoint=last scores the last state" in error


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--net=resnet19"], "unknown net 'resnet19'; known nets: inception10, inception10_v2"),
        (["--dataset=cifar11"], "unknown dataset 'cifar11'; known datasets: cifar10, cifar100"),
        (["--batch_size=9", "--num_gpus=2"], "--batch_size=9 does not divide by --num_gpus=2"),
        (["--batch_size=8", "--accumulation=3"], "use a multiple of 3"),
        (["--device=gpu"], "TensorFlow sees 0 GPUs"),
        (["--data_dir=/no/such/place"], "--data_dir=/no/such/place is not a directory"),
        (["--crop_padding=8"], "crop_padding=8 must be smaller than the images"),
        (["--mixup=0.2", "--batch_size=7"], "batch_size=7 is odd"),
        (["--warmup_epochs=2"], "--warmup_epochs=2 must be less than --epochs=2"),
        (["--num_classes=3"], "--num_classes=3: digits has 10 classes"),
        (["--net=inception_v3", "--stem=large"], "takes them from 75x75; --stem=small takes them"),
        (["--net=inception_v3", "--image_size=6"], "with its small stem takes them from 7x7"),
        (["--init_from=keras"], "no Keras weights for inception10; there are for inception_v3"),
        (["--net=resnet50", "--init_from=keras"], "images of 8x8 are too small for resnet50"),
        (["--net=resnet50", "--init_from=keras", "--image_size=32"], "3 channels; these have 1"),
        (["--net=resnet50", "--init_from=keras", "--stem=small"], "these have 1"),
    ],
)
def test_bad_training_is_one_line_and_leaves_nothing(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, "train.py", *QUICK[:2], *args)
    assert list(tmp_path.iterdir()) == []


def test_describe_needs_no_data(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call("train.py", "--net=resnet50", "--describe", "--image_size=224", "--num_classes=1000")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "parameters: 25,557,032 trainable, 53,120 not"
    assert lines[-3].split() == ["total", "25,557,032", "3,857,973,248"]
    assert list(tmp_path.iterdir()) == []


def test_describe_refuses_what_training_would(capsys):
    args = ("--describe", "--net=inception_v4", "--stem=large")
    assert "images of 32x32 are too small" in refused(capsys, "train.py", *args)


def test_starting_from_keras_weights(tmp_path, capsys):
    """An update too small to count leaves Keras' weights, and a resume needs no file."""
    for name, shade in (("dark", 40), ("light", 200)):
        for i in range(8):
            path = tmp_path / "shades" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (shade + i, shade, shade - i)).save(path)
    model = tf.keras.applications.ResNet50(weights=None, classes=5)
    model.save_weights(tmp_path / "resnet50.weights.h5")
    args = (
        "--net=resnet50", "--dataset=folder", f"--data_dir={tmp_path / 'shades'}", "--device=cpu",
        "--image_size=32", f"--init_from={tmp_path / 'resnet50.weights.h5'}", "--epochs=1",
        "--batch_size=4", "--learning_rate=1e-12", "--ema_decay=0.5",
        f"--run_dir={tmp_path / 'run'}",
    )  # fmt: skip
    call("train.py", *args)
    assert "resnet50.weights.h5; the head is new" in capsys.readouterr().out
    config = read(tmp_path / "run" / "config.json")
    assert config["flags"]["stem"] == "large"
    assert config["data"]["std"] == [1 / 255] * 3
    checkpoint = tf.train.load_checkpoint(
        tf.train.latest_checkpoint(tmp_path / "run" / "checkpoints")
    )
    kernel = "/stage_3/block_5/residual/block_1/conv/conv/_kernel/.ATTRIBUTES/VARIABLE_VALUE"
    theirs = model.get_layer("conv4_block6_2_conv").kernel
    for part in ("net", "ema_net"):
        np.testing.assert_allclose(checkpoint.get_tensor(part + kernel), theirs, atol=1e-6)
    (tmp_path / "resnet50.weights.h5").unlink()
    (tmp_path / "run" / "result.json").unlink()
    capsys.readouterr()
    call("train.py", *args)
    assert "goes on from step" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--run_dir is required"),
        (["--run_dir=/no/such/place"], "is not a run directory"),
        (["--run_dir=."], "has no config.json"),
        (["--run_dir={run}", "--checkpoint=step-7"], "no checkpoint at"),
        (["--run_dir={run}", "--follow", "--checkpoint=last"], "leave out --checkpoint"),
        (["--run_dir={run}", "--dataset=mnist", "--data_dir=/no/such"], "is not a directory"),
        (["--run_dir={run}", "--json=/no/such/place/x.json"], "cannot write"),
    ],
)
def test_bad_evaluation_is_one_line(finished, args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = [arg.format(run=finished[0]) for arg in args]
    assert message in refused(capsys, "eval.py", *args)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--net=inception_v3"], {"label_smoothing": 0.1, "stem": "small"}),
        (["--net=inception_v3", "--epochs=5"], {"batch_norm_momentum": 0.9}),
        (["--net=inception_v3", "--label_smoothing=0"], {"label_smoothing": 0}),
        # 1,295 examples are 1,012 steps of 128 in 100 epochs, and 202,344 in 20,000.
        (["--net=inception_v3", "--epochs=100"], {"batch_norm_momentum": 0.9506}),
        (["--net=inception_v3", "--epochs=20000"], {"batch_norm_momentum": 0.9997}),
        (["--net=inception_v3", "--batch_norm_momentum=0.5"], {"batch_norm_momentum": 0.5}),
        (["--net=resnet18", "--epochs=20000"], {"label_smoothing": 0, "batch_norm_momentum": 0.9}),
        (["--net=resnet50", "--init_from=keras"], {"stem": "large", "init_from": "keras"}),
    ],
)  # fmt: skip
def test_defaults_that_depend_on_the_net(args, expected):
    command = cli.parse(["train.py", *args], cli.define_train_flags, flags.FlagValues())
    found = configuration.resolve(command, experiment.data.load("digits", val_fraction=0.1))
    assert {name: found[name] for name in expected} == expected
    # What only a command needs is no part of a run.
    assert not {"describe", "num_classes", "run_dir"} & set(found)


def test_settings_of_a_step_are_the_flags_and_the_net():
    args = ["--net=inception_v3", "--seed=7", "--label_smoothing=0.2", "--clip_norm=3"]
    command = cli.parse(["train.py", *args], cli.define_train_flags, flags.FlagValues())
    found = configuration.resolve(command, experiment.data.load("digits", val_fraction=0.1))
    settings = experiment._step_settings(found)
    assert (settings.seed, settings.auxiliary_weight) == (7, 0.4)
    assert (settings.label_smoothing, settings.clip_norm) == (0.2, 3.0)


def test_describe_has_the_stem_of_the_weights(capsys):
    call("train.py", "--net=resnet50", "--describe", "--image_size=64", "--init_from=keras")
    assert "stem     16 x 16 x 64" in capsys.readouterr().out
