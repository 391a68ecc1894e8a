"""The commands on folders that have train/, val/ and test/, and on many classes."""

import numpy as np
import pytest
from PIL import Image

from commands import build
from commands.config import Config
from commands.evaluate import _class_lines
from commands.setting import ConfigError
from tests.commands.helpers import call, read, refused, tiny_net

QUICK = ("--net=tiny", "--dataset=folder", "--image_size=8", "--epochs=1", "--batch_size=8",
         "--device=cpu")  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _tiny_net():
    with tiny_net():
        yield


def write_splits(root, *names, classes=("blue", "red")):
    """A tree whose splits have 10, 20, ... images of each class."""
    generator = np.random.default_rng(0)
    for count, split in enumerate(names, start=1):
        for label, name in enumerate(classes):
            for i in range(10 * count):
                path = root / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = generator.integers(0, 50, (8, 8, 3)) + np.array((200 * label, 0, 0))
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


@pytest.mark.slow
def test_val_of_imagenet_is_the_test_split(tmp_path, capsys):
    root = write_splits(tmp_path / "data", "train", "val")
    run = f"--run_dir={tmp_path / 'run'}"
    call("train.py", *QUICK, f"--data_dir={root}", run, "--val_fraction=0.2")
    out = capsys.readouterr().out.splitlines()
    (note,) = (line for line in out if line.startswith("note"))
    assert note.startswith(f"note   {root}/val is the test split, to be scored once; ")
    assert "data   data, 8x8x3, 2 classes: 16 train, 40 test, 4 val" in out
    assert read(tmp_path / "run" / "result.json")["examples"] == 40
    for args, count in (
        ((), 40),
        (("--split=val",), 4),
        (("--dataset=folder", f"--data_dir={root}", "--split=val"), 40),
        (("--dataset=folder", f"--data_dir={root}", "--split=train"), 20),
    ):
        call("eval.py", run, *args)
        assert f"({count} examples" in capsys.readouterr().out


@pytest.mark.slow
def test_val_beside_test_is_the_validation_split(tmp_path, capsys):
    root = write_splits(tmp_path / "data", "train", "val", "test")
    args = (*QUICK, f"--data_dir={root}")
    call("train.py", *args, f"--run_dir={tmp_path / 'run'}")
    out = capsys.readouterr().out.splitlines()
    assert f"note   {root}/val is the validation split; nothing is held out of train" in out
    assert "data   data, 8x8x3, 2 classes: 20 train, 60 test, 40 val" in out
    call("eval.py", f"--run_dir={tmp_path / 'run'}", "--split=val")
    assert "(40 examples" in capsys.readouterr().out
    call("train.py", *args, f"--run_dir={tmp_path / 'without'}", "--val_fraction=0")
    out = capsys.readouterr().out.splitlines()
    assert "note   the validation split of data is not used (--val_fraction=0)" in out
    assert "data   data, 8x8x3, 2 classes: 20 train, 60 test" in out
    error = refused(capsys, "train.py", *args, f"--run_dir={tmp_path / 'x'}", "--val_fraction=0.2")
    assert "--val_fraction=0.2: data has a validation split of its own; leave the flag" in error
    assert not (tmp_path / "x").exists()


def test_a_fraction_is_not_held_out_beside_a_validation_split(tmp_path):
    root = write_splits(tmp_path / "data", "train", "val", "test", classes=("a", "b"))
    config = Config(dataset="folder", data_dir=str(root), image_size=8)
    dataset = build.load_data(config)
    assert len(dataset.splits["val"].labels) == 40
    build.check_validation(config, dataset)
    config = Config(dataset="folder", data_dir=str(root), image_size=8, val_fraction=0.5)
    with pytest.raises(ConfigError, match=r"val_fraction=0[.]5: data has a validation"):
        build.check_validation(config, build.load_data(config))


def accuracies(*values):
    return {f"class {number}": value for number, value in enumerate(values)}


def test_few_classes_are_all_shown_in_their_order():
    lines = _class_lines({"cat": 0.5, "a\ndog": 1.0, "eel": None}, every=False)
    assert lines == ["  cat      50.00%", "  a\\ndog  100.00%", "  eel     -"]
    assert len(_class_lines(accuracies(*[0.5] * 20), every=False)) == 20


def test_of_many_classes_the_best_and_the_worst_are_shown():
    values = [((7 * i) % 1000) / 1000 for i in range(999)]
    per_class = accuracies(*values, None)
    lines = _class_lines(per_class, every=False)
    shown = [line.rsplit(None, 1)[-1] for line in lines]
    ranked = [f"{value:.2%}" for value in sorted(values, reverse=True)]
    assert shown[:10] == ranked[:10]
    assert shown[11:] == ranked[-10:]
    assert lines[10] == "  1,000 classes, 999 with examples; --per_class shows all"
    assert lines[0].split() == ["class", str(values.index(max(values))), ranked[0]]
    every = _class_lines(per_class, every=True)
    assert [line.split()[1] for line in every] == [str(number) for number in range(1000)]


def test_of_many_classes_with_examples_of_few_these_are_shown():
    lines = _class_lines(accuracies(*[None] * 30, 0.25, 0.75), every=False)
    assert [line.split()[-1] for line in lines] == ["75.00%", "25.00%", "all"]
    assert lines[-1] == "  32 classes, 2 with examples; --per_class shows all"
    # The first of those that are equal comes first.
    lines = _class_lines(accuracies(*[1.0] * 21), every=False)
    assert [line.split()[1] for line in lines if "%" in line][:3] == ["0", "1", "2"]
