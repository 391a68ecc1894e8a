"""The commands on folders with bad images in them."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from tests.test_commands import call, read, refused

QUICK = ("--dataset=folder", "--image_size=8", "--epochs=1", "--batch_size=8", "--device=cpu")


def write_tree(root, classes=("blue", "red"), count=10):
    for split in ("train", "test"):
        for number, name in enumerate(classes):
            for i in range(count):
                path = root / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (200 * number, 0, 200)).save(path)
    return root


def test_a_bad_image_met_in_training_ends_it_with_one_line(tmp_path, capsys):
    bad = write_tree(tmp_path / "colours") / "train" / "red" / "3.png"
    bad.write_bytes(b"text")
    args = (*QUICK, "--val_fraction=0", f"--run_dir={tmp_path / 'run'}")
    error = refused(capsys, "train.py", *args, f"--data_dir={tmp_path / 'colours'}")
    assert f"{bad} cannot be decoded (its contents are no image)" in error
    assert "--bad_images=skip" in error


def test_bad_images_are_skipped_by_training_and_evaluation(tmp_path, capsys):
    root = write_tree(tmp_path / "colours")
    bad = [root / "train/blue/1.png", root / "train/red/3.png", root / "test/red/9.png"]
    for path in bad:
        path.write_bytes(b"text")
    run = f"--run_dir={tmp_path / 'run'}"
    call("train.py", *QUICK, run, f"--data_dir={root}", "--bad_images=skip")
    said = f"skipped 3 bad images: {bad[0]}, {bad[1]} and 1 more"
    out = capsys.readouterr().out.splitlines()
    assert out.count(said) == 1
    assert "data   colours, 8x8x3, 2 classes: 16 train, 19 test, 2 val" in out
    assert read(tmp_path / "run" / "result.json")["examples"] == 19

    call("eval.py", run)
    out = capsys.readouterr().out
    assert said in out.splitlines()
    assert "(19 examples)" in out
    # Other data is treated like the run's.
    other = write_tree(tmp_path / "other")
    (other / "test" / "blue" / "0.png").write_bytes(b"text")
    call("eval.py", run, "--dataset=folder", f"--data_dir={other}")
    assert f"skipped 1 bad image: {other}/test/blue/0.png\n" in capsys.readouterr().out
    # A run from before there was the flag skips nothing.
    config = read(tmp_path / "run" / "config.json")
    assert config["flags"].pop("bad_images") == "skip"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert f"{bad[2]} cannot be decoded" in refused(capsys, "eval.py", run)


def test_names_that_cannot_be_printed_are_escaped(tmp_path, capsys):
    strange = os.fsdecode(b"r\xffd\n")
    root = write_tree(tmp_path / "colours", classes=("blue", strange))
    (root / "train" / strange / "0.png").write_bytes(b"text")
    run = f"--run_dir={tmp_path / 'run'}"
    call("train.py", *QUICK, run, f"--data_dir={root}", "--bad_images=skip")
    out = capsys.readouterr().out
    assert f"skipped 1 bad image: {root}/train/r\\udcffd\\n/0.png\n" in out
    call("eval.py", run)
    assert "\n  r\\udcffd\\n  " in capsys.readouterr().out


def test_three_images_and_a_batch_of_eight(tmp_path, capsys):
    root = write_tree(tmp_path / "few", classes=("blue", "red"), count=1)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "train" / "red" / "1.png")
    args = (*QUICK, f"--data_dir={root}", f"--run_dir={tmp_path / 'run'}", "--epochs=6")
    call("train.py", *args, "--val_fraction=0", "--crop_padding=0")
    assert "2 classes: 3 train, 2 test" in capsys.readouterr().out
    assert read(tmp_path / "run" / "result.json")["examples"] == 2


@pytest.mark.parametrize("bad_images", ["error", "skip"])
def test_other_datasets_take_no_notice(tmp_path, capsys, bad_images):
    args = ("--dataset=digits", "--epochs=0.1", f"--run_dir={tmp_path / bad_images}")
    call("train.py", *args, f"--bad_images={bad_images}", "--device=cpu")
    assert "skipped" not in capsys.readouterr().out
