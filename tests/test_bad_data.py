"""The commands on folders with bad images in them."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.commands.helpers import ROOT, call, read, refused, tiny_net

QUICK = (
    *("--net=tiny", "--dataset=folder", "--image_size=8", "--epochs=1", "--batch_size=8"),
    "--device=cpu",
)
ADVICE = (
    "; restore the original file, which runs that have used it need, or remove it; new runs of "
    "train.py can leave it out with --bad_images=skip\n"
)


@pytest.fixture(autouse=True, scope="module")
def _tiny_net():
    with tiny_net():
        yield


def write_tree(root, classes=("blue", "red"), count=10, splits=("train", "test"), suffix="png"):
    generator = np.random.default_rng(0)
    for split in splits:
        for number, name in enumerate(classes):
            for i in range(count):
                path = root / split / name / f"{i}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = generator.integers(0, 50, (8, 8, 3))
                pixels += np.array((200 * number, 0, 200))
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


def cut(path):
    """Damages the body of an image; returns what it was."""
    contents = path.read_bytes()
    path.write_bytes(contents[:-20])
    return contents


def test_a_file_that_is_no_image_is_refused_before_a_run_is_made(tmp_path, capsys):
    bad = write_tree(tmp_path / "colors") / "train" / "red" / "3.png"
    bad.write_bytes(b"text")
    args = (*QUICK, "--val_fraction=0", f"--run_dir={tmp_path / 'run'}")
    error = refused(capsys, "train.py", *args, f"--data_dir={tmp_path / 'colors'}")
    assert f"{bad} cannot be decoded (it is not an image){ADVICE}" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_file_that_is_damaged_later_can_be_restored(tmp_path, capsys, split):
    """Its size is the same, as of a sector that cannot be read any more."""
    root = write_tree(tmp_path / "colors")
    bad = root / split / "red" / "3.png"
    args = (*QUICK, "--val_fraction=0", f"--data_dir={root}", f"--run_dir={tmp_path / 'run'}")
    original = bad.read_bytes()
    bad.write_bytes(original[:-40].ljust(len(original), b"\0"))
    error = refused(capsys, "train.py", *args)
    assert f"{bad} cannot be decoded (its contents are damaged){ADVICE}" in error
    bad.write_bytes(original)
    call("train.py", *args)
    assert read(tmp_path / "run" / "result.json")["examples"] == 20


@pytest.mark.slow
def test_a_file_that_was_never_intact_needs_a_new_run(tmp_path, capsys):
    root = write_tree(tmp_path / "colors")
    bad = root / "train" / "red" / "3.png"
    args = (*QUICK, "--val_fraction=0", f"--data_dir={root}")
    run = f"--run_dir={tmp_path / 'run'}"
    original = cut(bad)
    assert f"(its contents are damaged){ADVICE}" in refused(capsys, "train.py", *args, run)
    error = refused(capsys, "train.py", *args, run, "--bad_images=skip")
    assert "another configuration" in error
    call("train.py", *args, f"--run_dir={tmp_path / 'skipped'}", "--bad_images=skip")
    bad.write_bytes(original)
    assert "another configuration" in refused(capsys, "train.py", *args, run)
    call("train.py", *args, f"--run_dir={tmp_path / 'replaced'}")


@pytest.mark.slow
def test_a_large_tree_with_damaged_images_ends_the_process(tmp_path):
    """As users start it, since a deadlock would only come where Python ends."""
    root = write_tree(tmp_path / "colors", count=800, splits=("train",), suffix="jpg")
    write_tree(root, count=2, splits=("test",), suffix="jpg")
    for i in range(3, 800, 133):
        for name in ("blue", "red"):
            cut(root / "train" / name / f"{i}.jpg")
    args = (f"--data_dir={root}", f"--run_dir={tmp_path / 'run'}", *QUICK[1:])
    with subprocess.Popen(
        [sys.executable, ROOT / "train.py", *args],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "KERAS_HOME": str(tmp_path / "keras")},
    ) as process:  # fmt: skip
        try:
            lines = []
            for line in process.stderr:
                lines.append(line)
                if "cannot be decoded" in line:
                    break
            said = time.monotonic()
            assert process.wait(timeout=60) == 2
            assert time.monotonic() - said < 10
        finally:
            process.kill()
    assert f"{root}/train/" in lines[-1]
    assert lines[-1].endswith(f" cannot be decoded (its contents are damaged){ADVICE}")


@pytest.mark.slow
def test_bad_images_are_skipped_by_training_and_evaluation(tmp_path, capsys):
    root = write_tree(tmp_path / "colors")
    bad = [root / "train/blue/1.png", root / "train/red/3.png", root / "test/red/9.png"]
    bad[0].write_bytes(b"text")
    cut(bad[1])
    cut(bad[2])
    run = f"--run_dir={tmp_path / 'run'}"
    call("train.py", *QUICK, run, f"--data_dir={root}", "--bad_images=skip")
    said = f"skipped 3 bad images: {bad[0]}, {bad[1]} and 1 more"
    out = capsys.readouterr().out.splitlines()
    assert out.count(said) == 1
    assert "data   colors, 8x8x3, 2 classes: 16 train, 19 test, 2 val" in out
    assert read(tmp_path / "run" / "result.json")["examples"] == 19

    call("eval.py", run)
    assert "(19 examples" in capsys.readouterr().out
    # Other data is treated like the run's.
    other = write_tree(tmp_path / "other", count=1, splits=("",))
    (other / "blue" / "1.png").write_bytes(b"text")
    (other / "red" / "1.webp").write_bytes(b"content")
    call("eval.py", run, "--dataset=folder", f"--data_dir={other}")
    out, error = capsys.readouterr()
    assert f"other: left out 1 file (1 .webp) in class directories, such as {other}/red/1" in error
    assert error.count("\n") == 1
    assert f"skipped 1 bad image: {other}/blue/1.png\n" in out
    assert "(2 examples" in out


@pytest.mark.slow
def test_bad_images_of_other_data_are_named(tmp_path, capsys):
    root = write_tree(tmp_path / "colors", count=3)
    run = f"--run_dir={tmp_path / 'run'}"
    call("train.py", *QUICK, run, f"--data_dir={root}", "--val_fraction=0")
    other = write_tree(tmp_path / "other", count=1, splits=("",))
    cut(other / "red" / "0.png")
    error = refused(capsys, "eval.py", run, "--dataset=folder", f"--data_dir={other}")
    assert f"{other}/red/0.png cannot be decoded (its contents are damaged){ADVICE}" in error


@pytest.mark.slow
def test_names_that_cannot_be_printed_are_escaped(tmp_path, capsys):
    strange = os.fsdecode(b"r\xffd\n")
    root = write_tree(tmp_path / "colors", classes=("blue", strange))
    (root / "train" / strange / "0.png").write_bytes(b"text")
    run = f"--run_dir={tmp_path / 'run'}"
    call("train.py", *QUICK, run, f"--data_dir={root}", "--bad_images=skip")
    out = capsys.readouterr().out
    assert f"skipped 1 bad image: {root}/train/r\\udcffd\\n/0.png\n" in out
    call("eval.py", run)
    assert "\n  r\\xffd\\n  " in capsys.readouterr().out


@pytest.mark.slow
def test_three_images_and_a_batch_of_eight(tmp_path, capsys):
    root = write_tree(tmp_path / "few", count=1)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "train" / "red" / "1.png")
    args = (*QUICK, f"--data_dir={root}", f"--run_dir={tmp_path / 'run'}", "--epochs=6")
    call("train.py", *args, "--val_fraction=0", "--augment=none")
    assert "2 classes: 3 train, 2 test" in capsys.readouterr().out
    assert read(tmp_path / "run" / "result.json")["examples"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("bad_images", ["error", "skip"])
def test_other_datasets_ignore_the_setting(tmp_path, capsys, bad_images):
    args = ("--net=tiny", "--dataset=digits", "--epochs=0.1", f"--run_dir={tmp_path / bad_images}")
    call("train.py", *args, f"--bad_images={bad_images}", "--device=cpu")
    assert "skipped" not in capsys.readouterr().out
