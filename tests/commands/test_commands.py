"""What train.py and eval.py print and leave, on real digits and on folders of images."""

import os
import pty
import re
import select
import shlex
import shutil
import signal
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import data
import nets
from commands import command_line
from tests.commands import helpers
from tests.commands.helpers import TINY, Command, call, finish, read, refused, rows


@pytest.fixture(autouse=True, scope="module")
def _tiny_net():
    with helpers.tiny_net():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run as a user makes it, what it printed, and its flags."""
    home = tmp_path_factory.mktemp("finished")
    args = ("--dataset=digits", "--epochs=2", "--batch_size=64", "--device=cpu", "--log_steps=10")
    code, out, err = helpers.real("train.py", *args, cwd=home)
    assert (code, err) == (0, "")
    (run_dir,) = (home / "runs").iterdir()
    return run_dir, out, args


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The directory of a finished run of the small net."""
    run_dir = tmp_path_factory.mktemp("tiny") / "run"
    call("train.py", *TINY, "--epochs=2", f"--run_dir={run_dir}")
    return run_dir


def test_what_a_run_prints(finished):
    run_dir, out, _ = finished
    lines = out.splitlines()
    assert lines[0] == "device CPU"
    assert lines[1].split() == ["stage", "output", "parameters", "FLOPs"]
    assert "parameters: 119,354 trainable, 1,184 not" in lines
    assert "data   digits, 8x8x1, 10 classes: 1,295 train, 359 test, 143 val" in lines
    assert f"run    runs/{run_dir.name}, new, 41 steps on 1 replica" in lines
    assert any(line.startswith("epoch 1/2  step 21  train loss ") for line in lines)
    assert re.fullmatch(
        r"test   \d\.\d{4}  \d+\.\d\d%  +\d+\.\d\d%  0\.\d{4}  "
        r"\(359 examples, step \d+, best on val\)",
        lines[-6],
    )
    assert lines[-5:] == [
        f"run       runs/{run_dir.name}",
        f"pictures  runs/{run_dir.name}/pictures",
        "watch     tensorboard --logdir=runs",
        f"score     python eval.py --run_dir=runs/{run_dir.name}",
        f"try       python predict.py --run_dir=runs/{run_dir.name} photo.jpg",
    ]


def test_what_a_run_leaves(finished):
    run_dir, _, _ = finished
    names = {p.name for p in run_dir.iterdir() if not p.name.startswith("events.out.tfevents.")}
    assert names == {
        *("config.json", "lock", "metrics.jsonl", "predictions.npz", "result.json"),
        *("times.json", "best", "checkpoints", "pictures", "train", "val", "test"),
    }
    assert {p.name for p in (run_dir / "pictures").iterdir()} == {
        *("augmentations.png", "calibration.png", "confusion_matrix.png"),
        *("curves.png", "first_layer.png", "mistakes.png"),
    }
    assert re.fullmatch(r"inception10-digits-[0-9a-f]{6}", run_dir.name)
    config = read(run_dir / "config.json")
    assert config["settings"]["learning_rate"] == 0.2
    assert config["data"]["class_names"] == [str(i) for i in range(10)]
    result = read(run_dir / "result.json")
    assert result["examples"] == 359
    assert result["split"] == "test"
    assert list(result["per_class"]) == config["data"]["class_names"]
    splits = [row["split"] for row in rows(run_dir)]
    assert splits.count("test") == 1
    assert splits.count("val") == 2


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_eval_gives_what_the_training_reported(finished, tmp_path, capsys, replicas):
    run_dir, _, _ = finished
    report = tmp_path / "scores.json"
    args = (f"--run_dir={run_dir}", f"--json={report}", f"--num_gpus={replicas}", "--device=cpu")
    if replicas == 1:
        call("eval.py", *args)
        out = capsys.readouterr().out
    else:
        code, out, err = helpers.real("eval.py", *args)
        assert (code, err) == (0, "")
    found, expected = read(report), read(run_dir / "result.json")
    assert found["top_1_accuracy"] == expected["top_1_accuracy"]
    assert found["per_class"] == expected["per_class"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert found["step"] == expected["step"]
    assert set(found) == set(expected) - {"selected_on"}
    line = out.splitlines()[-1]
    assert line.startswith(f"test  loss {expected['loss']:.4f}  top-1 ")
    assert f"top-1 {expected['top_1_accuracy']:.2%}  top-5" in line
    assert line.endswith("(359 examples)")


@pytest.mark.slow
def test_eval_of_splits_and_checkpoints(tiny, tmp_path, capsys):
    examples = {"train": 1295, "val": 143, "test": 359}
    for split, size in examples.items():
        call("eval.py", f"--run_dir={tiny}", f"--split={split}", f"--json={tmp_path / split}")
        assert read(tmp_path / split)["examples"] == size
    best = max(rows(tiny, "val"), key=lambda row: (row["top_1_accuracy"], -row["loss"]))
    assert read(tmp_path / "val")["top_1_accuracy"] == best["top_1_accuracy"]
    report = tmp_path / "named"
    call("eval.py", f"--run_dir={tiny}", "--checkpoint=checkpoints/step-6", f"--json={report}")
    assert read(report)["step"] == 6
    call("eval.py", f"--run_dir={tiny}", "--checkpoint=last", f"--json={report}")
    assert read(report)["step"] == 11


def test_the_same_command_prints_the_result_again(finished):
    """Also on another number of replicas, which may change."""
    run_dir, first, args = finished
    before = helpers.contents(run_dir)
    args = (*args, f"--run_dir=runs/{run_dir.name}", "--num_gpus=2")
    (printed,) = finish(Command("train.py", *args, cwd=run_dir.parent.parent))
    note, *finished_lines, last = printed.splitlines()
    assert note == "device CPU, 2 logical devices (rehearsal): --device=cpu"
    assert finished_lines == [
        "This run is finished.",
        *first.splitlines()[-len(finished_lines) + 1 :],
    ]
    assert last.startswith(f"To start over, remove runs/{run_dir.name} or give another --run_dir")
    assert {**helpers.contents(run_dir), "lock": b""} == {**before, "lock": b""}


@pytest.mark.slow
def test_a_changed_command_starts_another_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for epochs in ("0.1", "0.2", "0.1"):
        call("train.py", *TINY, f"--epochs={epochs}")
    names = [path.name for path in (tmp_path / "runs").iterdir()]
    assert len(names) == 2
    assert all(re.fullmatch(r"tiny-digits-[0-9a-f]{6}", name) for name in names)


def test_a_command_that_does_not_fit_the_run_is_refused(tiny, capsys):
    before = helpers.contents(tiny)
    error = refused(
        capsys, "train.py", *TINY, "--epochs=2", "--seed=1", "--jit", f"--run_dir={tiny}"
    )
    assert "--seed is 1 here and 0 in the run" in error
    assert "--jit is true here and false in the run" in error
    assert helpers.contents(tiny) == before


def test_a_run_on_other_data_is_refused(tiny, tmp_path, capsys):
    """As if the digits had changed since."""
    config = read(tiny / "config.json")
    shutil.copytree(tiny / "best", tmp_path / "run" / "best")
    config["data"]["fingerprints"]["test"] = "00000000"
    (tmp_path / "run" / "config.json").write_text(helpers.json.dumps(config))
    args = (*TINY, "--epochs=2", f"--run_dir={tmp_path / 'run'}")
    test = read(tiny / "config.json")["data"]["fingerprints"]["test"]
    line = f"the data's fingerprints: test {test} here and 00000000 in the run. Use its values"
    assert line in refused(capsys, "train.py", *args)
    error = refused(capsys, "eval.py", f"--run_dir={tmp_path / 'run'}")
    assert "the test split of digits is not the one that" in error


def write_digits(root, split="test"):
    """The digits of a split as files, in directories by class."""
    source = data.load("digits").splits[split]
    images = source.fetch(tf.range(len(source.labels), dtype=tf.int64)).numpy()
    for i, (image, label) in enumerate(zip(images, source.labels, strict=True)):
        path = root / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    return root


@pytest.mark.slow
def test_eval_on_other_data_with_the_same_classes(tiny, tmp_path, capsys):
    """The test digits as files give the same accuracy."""
    write_digits(tmp_path / "digits" / "test")
    args = (f"--run_dir={tiny}", "--dataset=folder", f"--data_dir={tmp_path / 'digits'}")
    call("eval.py", *args, f"--json={tmp_path / 'scores'}")
    expected = read(tiny / "result.json")
    assert read(tmp_path / "scores")["per_class"] == expected["per_class"]
    (tmp_path / "digits" / "test" / "9").rename(tmp_path / "digits" / "test" / "nine")
    error = refused(capsys, "eval.py", *args)
    assert "has classes that the net does not know: nine; it knows 0, 1, 2" in error


def until(process, found):
    """Waits until something is there, as long as the process is running."""
    while not found():
        assert process.returncode is None, process.printed()
        time.sleep(0.02)


@pytest.mark.slow
def test_an_interrupted_run_is_resumed(tmp_path, capsys):
    """Stopped inside an epoch, on a terminal; the end is that of the run that was not stopped."""
    args = (*TINY, "--epochs=3", "--log_steps=4", "--batch_size=32")
    screen, inside = pty.openpty()
    process = Command(
        "train.py", *args, f"--run_dir={tmp_path / 'run'}", terminal=os.ttyname(inside)
    )
    seen, has_signal = "", False
    while process.returncode is None or select.select([screen], [], [], 0)[0]:
        if select.select([screen], [], [], 0.05)[0]:
            seen += os.read(screen, 1000).decode()
        if not has_signal and re.search(r"step \d+/122", seen):
            process.send_signal(signal.SIGINT)
            has_signal = True
    assert process.wait()[::2] == (130, "")
    step = re.search(r"stopped; saved at step ([\d,]+); rerun the command to resume", seen)[1]
    assert 0 < int(step.replace(",", "")) < 122
    call("train.py", *args, f"--run_dir={tmp_path / 'run'}")
    assert f"resumes at step {step}, 122 steps on 1 replica" in capsys.readouterr().out
    call("train.py", *args, f"--run_dir={tmp_path / 'other'}")
    assert rows(tmp_path / "run") == rows(tmp_path / "other")
    results = [read(tmp_path / name / "result.json") for name in ("run", "other")]
    assert results[0].pop("checkpoint") == results[1].pop("checkpoint").replace("other", "run")
    assert results[0] == results[1]


@pytest.mark.slow
def test_follow_scores_a_running_training(tmp_path, capsys):
    run_dir = tmp_path / "run"
    training = Command("train.py", *TINY, "--epochs=6", f"--run_dir={run_dir}")
    until(training, (run_dir / "config.json").exists)
    call(
        "eval.py", f"--run_dir={run_dir}", "--follow", "--split=val", "--device=cpu",
        f"--json={tmp_path / 'scores'}",
    )  # fmt: skip
    assert training.wait()[::2] == (0, "")
    last = rows(run_dir, "val")[-1]
    line, end = capsys.readouterr().out.splitlines()[-2:]
    assert line.startswith(f"epoch {last['epoch']:.4g}  step {last['step']}  val  loss ")
    assert end == f"{run_dir} is finished; all of its checkpoints have been scored"
    assert read(tmp_path / "scores")["top_1_accuracy"] == last["top_1_accuracy"]


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_command_can_be_repeated(tmp_path, capsys):
    """Files cannot grow beyond a limit that fits the configuration and not a checkpoint."""
    args = (*TINY, "--epochs=1", f"--run_dir={tmp_path / 'run'}")
    code, _, err = Command("train.py", *args, largest_file=8_000).wait()
    assert code == 2
    assert err.count("\n") == 1
    assert f"cannot save {tmp_path / 'run' / 'checkpoints' / 'step-0'}: " in err
    # With room again, the same command succeeds.
    call("train.py", *args)
    assert "\ntest  " in capsys.readouterr().out


def write_colours(root, count=20):
    generator = np.random.default_rng(0)
    for name, colour in (("blue", (20, 20, 220)), ("red", (220, 20, 20))):
        for i in range(count):
            path = root / name / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = generator.integers(0, 30, (20, 30, 3))
            Image.fromarray((noise + colour).astype(np.uint8)).save(path)
    return root


@pytest.mark.slow
def test_training_on_own_images(tmp_path, capsys):
    colours, run = write_colours(tmp_path / "colours"), f"--run_dir={tmp_path / 'run'}"
    call(
        "train.py", "--net=tiny", "--dataset=folder", f"--data_dir={colours}", "--image_size=16",
        "--epochs=8", "--batch_size=8", run, "--learning_rate=0.02", "--ema_decay=0.5",
        "--augment=crop:2,flip,cutout:4,mixup:0.2", "--precision=mixed_bfloat16",
        "--optimizer=adamw", "--label_smoothing=0.1", "--clip_norm=1", "--accumulation=2",
    )  # fmt: skip
    assert read(tmp_path / "run" / "result.json")["top_1_accuracy"] == 1.0
    assert read(tmp_path / "run" / "config.json")["data"]["name"] == "colours"
    call("eval.py", run, "--split=train")
    assert "(28 examples)" in capsys.readouterr().out
    # Images that break later, with the same size, are named.
    for path in (colours / "red").iterdir():
        path.write_bytes(path.read_bytes()[:300].ljust(path.stat().st_size, b"\0"))
    error = refused(capsys, "eval.py", run)
    assert re.search(rf"{re.escape(str(colours))}/red/\d+\.jpg cannot be decoded", error)


@pytest.mark.slow
def test_the_advice_about_a_bad_image_can_be_followed(tmp_path, capsys):
    """With the original file the run is resumed; and a new run can leave the file out."""
    colours = write_colours(tmp_path / "colours", 5)
    args = (
        "--net=tiny", "--dataset=folder", f"--data_dir={colours}", "--image_size=8", "--epochs=1",
        "--batch_size=4", "--device=cpu",
    )  # fmt: skip
    run, new = (f"--run_dir={tmp_path / name}" for name in ("run", "new"))
    bad = [colours / "red" / f"{i}.jpg" for i in range(5)]
    originals = [path.read_bytes() for path in bad]
    for path, original in zip(bad, originals, strict=True):
        path.write_bytes(original[:300].ljust(len(original), b"\0"))
    error = refused(capsys, "train.py", *args, run)
    assert "cannot be decoded" in error
    assert "restore the original file, which runs that have used it need, or remove it" in error
    # Neither the flag nor a file of another size fits the run, as the message implies.
    bad[0].write_bytes(originals[0])
    assert "--bad_images is skip here" in refused(
        capsys, "train.py", *args, run, "--bad_images=skip"
    )
    for path, original in zip(bad, originals, strict=True):
        path.write_bytes(original)
    call("train.py", *args, run)
    assert "\ntest  " in capsys.readouterr().out
    bad[0].write_bytes(originals[0][:300])
    call("train.py", *args, new, "--bad_images=skip")
    assert f"skipped 1 bad image: {bad[0]}\n" in capsys.readouterr().out


@pytest.mark.slow
def test_no_validation_split(tmp_path, capsys):
    args = (*TINY, "--val_fraction=0", "--epochs=0.5", f"--run_dir={tmp_path / 'run'}")
    call("train.py", *args)
    assert read(tmp_path / "run" / "result.json")["selected_on"] is None
    assert re.search(r"step 3, last\)\n", capsys.readouterr().out)
    call("eval.py", f"--run_dir={tmp_path / 'run'}")
    error = refused(capsys, "eval.py", f"--run_dir={tmp_path / 'run'}", "--split=val")
    assert "--split=val: the run has test, train" in error
    error = refused(capsys, "eval.py", f"--run_dir={tmp_path / 'run'}", "--checkpoint=best")
    assert "--checkpoint=last scores the last state" in error


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--net=resnet19"], "--net=resnet19 is unknown; known: inception10, inception10_v2"),
        (["--dataset=cifar11"], "--dataset=cifar11 is unknown; known: cifar10, cifar100"),
        (["--batch_size=9", "--num_gpus=2"], "--batch_size=9 is not divisible by --num_gpus=2"),
        (["--batch_size=8", "--accumulation=3"], "use a multiple of 3"),
        (["--device=gpu"], "TensorFlow sees 0 GPUs"),
        (["--data_dir=/no/such/place"], "--data_dir=/no/such/place is not a directory"),
        (["--augment=crop:8"], "crop:8"),
        (["--augment=mixup:0.2", "--batch_size=7"], "batch_size=7 is odd"),
        (["--warmup_epochs=2"], "--warmup_epochs=2 must be less than --epochs=2"),
        (["--num_classes=3"], "--num_classes=3: digits has 10 classes"),
        (
            ["--net=inception_v3", "--stem=large"],
            "must be at least 75x75; with --stem=small",
        ),
        (["--net=inception_v3", "--image_size=6"], "with its small stem they must be at least 7x7"),
        (["--init_from=keras", "--image_size=32"], "no Keras weights for inception10, only"),
        (["--net=resnet50", "--init_from=keras"], "images of 8x8 are too small for resnet50"),
        (["--net=resnet50", "--init_from=keras", "--image_size=32"], "3 channels; those of digits"),
        (["--net=resnet50", "--init_from=keras", "--stem=small"], "have 1"),
        (["--jit", "--deterministic"], "drop --jit or --deterministic"),
        (["--hooks=x"], "unknown hook 'x'"),
    ],
)
def test_bad_training_is_one_line_and_leaves_nothing(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, "train.py", "--dataset=digits", "--epochs=2", *args)
    assert list(tmp_path.iterdir()) == []


def test_a_net_of_which_training_would_ignore_a_part_is_refused(capsys, tmp_path, monkeypatch):
    class TwoHeads(nets.NETS["tiny"]):
        def call(self, images, *, training):
            logits = super().call(images, training=training)
            return (logits, logits) if training else logits

    monkeypatch.setitem(nets.NETS, "two_heads", TwoHeads)
    error = refused(capsys, "train.py", *TINY, "--net=two_heads", f"--run_dir={tmp_path / 'run'}")
    assert "two_heads: it returns 2 outputs in training, but those after the first have" in error
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_loop_of_links_is_one_line(capsys, tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    error = refused(capsys, "train.py", "--dataset=digits", f"--run_dir={loop}")
    assert f"cannot use {loop}: Too many levels of symbolic links" in error
    error = refused(capsys, "train.py", "--dataset=digits", f"--init_from={loop}")
    assert f"--init_from={loop}" in error


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


@pytest.mark.slow
def test_describe_has_the_stem_of_the_weights(capsys):
    call("train.py", "--net=resnet50", "--describe", "--image_size=64", "--init_from=keras")
    assert "stem     16 x 16 x 64" in capsys.readouterr().out


@pytest.mark.exhaustive
def test_starting_from_keras_weights(tmp_path, capsys):
    """An update too small to count leaves Keras' weights, and a resume needs no file."""
    for name, shade in (("dark", 40), ("light", 200)):
        for i in range(8):
            path = tmp_path / "shades" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (shade + i, shade, shade - i)).save(path)
    model = tf.keras.applications.ResNet50(weights=None, classes=5)
    weights = tmp_path / "resnet50.weights.h5"
    model.save_weights(weights)
    args = (
        "--net=resnet50", "--dataset=folder", f"--data_dir={tmp_path / 'shades'}", "--device=cpu",
        "--image_size=32", f"--init_from={weights}", "--epochs=1", "--batch_size=4",
        "--learning_rate=1e-12", "--ema_decay=0.5", f"--run_dir={tmp_path / 'run'}",
    )  # fmt: skip
    call("train.py", *args)
    assert "resnet50.weights.h5; the head is new" in capsys.readouterr().out
    config = read(tmp_path / "run" / "config.json")
    assert config["settings"]["stem"] == "large"
    assert config["data"]["std"] == [1 / 255] * 3
    checkpoint = tf.train.load_checkpoint(
        tf.train.latest_checkpoint(tmp_path / "run" / "checkpoints")
    )
    kernel = "/stage_3/block_5/residual/block_1/conv/conv/_kernel/.ATTRIBUTES/VARIABLE_VALUE"
    theirs = model.get_layer("conv4_block6_2_conv").kernel
    for part in ("net", "ema_net"):
        np.testing.assert_allclose(checkpoint.get_tensor(part + kernel), theirs, atol=1e-6)
    weights.write_bytes(b"other weights")
    error = refused(capsys, "train.py", *args)
    assert "the file of --init_from has other contents than it had for the run" in error
    weights.unlink()
    (tmp_path / "run" / "result.json").unlink()
    call("train.py", *args)
    assert "resumes at step 3," in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--run_dir is required"),
        (["--run_dir=/no/such/place"], "is not a run directory"),
        (["--run_dir=."], "has no config.json"),
        (["--run_dir={run}", "--checkpoint=step-7"], "no checkpoint at"),
        (["--run_dir={run}", "--follow", "--checkpoint=last"], "leave out --checkpoint"),
        (["--run_dir={run}", "--dataset=mnist", "--data_dir=/no/such"], "is not a directory"),
        (["--run_dir={run}", "--json=/no/such/place/x.json"], "no file can be written there"),
        (["--run_dir={run}", "--json={run}/result.json"], "result.json belongs to the run"),
    ],
)
def test_bad_evaluation_is_one_line(tiny, args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = helpers.contents(tiny)
    assert message in refused(capsys, "eval.py", *(arg.format(run=tiny) for arg in args))
    assert helpers.contents(tiny) == before


@pytest.mark.slow
def test_printed_commands_can_be_pasted_into_a_shell(tmp_path, monkeypatch, capsys):
    """Of a run directory that a shell would take for several words."""
    monkeypatch.chdir(tmp_path)
    name = "my runs/it's $HOME; a b"
    call("train.py", *TINY, "--epochs=0.1", f"--run_dir={name}")
    lines = capsys.readouterr().out.splitlines()
    assert shlex.split(lines[-3])[1:] == ["tensorboard", "--logdir=my runs"]
    _, python, program, *args = shlex.split(lines[-2])
    assert (python, program, args) == ("python", "eval.py", [f"--run_dir={name}"])
    call(program, *args)
    assert capsys.readouterr().out.splitlines()[-1].endswith("(359 examples)")
    call("train.py", *TINY, "--epochs=0.1", f"--run_dir={name}")
    last = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(last)[4] == name


def test_a_fault_in_the_code_is_not_hidden():
    with pytest.raises(KeyError, match="a fault"), command_line.one_line_errors():
        raise KeyError("a fault")
