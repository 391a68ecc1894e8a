"""The pictures of a run: what is drawn, when TensorBoard gets it, and the files."""

import math
import types

import numpy as np
import pytest

import data
import pictures
from commands import dashboards
from commands.dashboards import Pictures, shown_settings
from commands.options import TrainOptions
from commands.pictures import _merged, best_epoch, caption, draw_batch, draw_mistakes
from data.source import ArraySource
from loops.records.predictions import Predictions
from tests.commands import helpers
from tests.commands.helpers import TINY, call, contents, refused
from tests.loops.records.fakes import FakePlan, FakeTrainer, row

NAMES = ("cat", "dog", "cow")


@pytest.fixture
def grids(monkeypatch):
    """The arguments of `pictures.image_grid`, which is replaced."""
    calls = []

    def image_grid(images, captions, *, title):
        assert images.dtype == np.uint8
        calls.append((images, captions, title))

    monkeypatch.setattr(pictures, "image_grid", image_grid)
    return calls


def predictions(labels, predicted, confidences):
    labels, predicted = np.array(labels, np.int32), np.array(predicted, np.int32)
    confidences = np.array(confidences, np.float32)
    return Predictions(labels, predicted, confidences, confidences, confidences)


def source(size, channels=1):
    """Images whose pixels are all ten times their number."""
    pixels = np.arange(size, dtype=np.uint8)[:, None, None, None] * 10
    return ArraySource(np.broadcast_to(pixels, (size, 2, 3, channels)), np.arange(size) % 3)


def test_mistakes_are_the_most_confident_with_both_names(grids):
    draw_mistakes(predictions([0, 1, 2, 0], [1, 1, 0, 2], [0.6, 0.9, 0.8, 0.7]), source(4), NAMES)
    ((images, captions, title),) = grids
    assert images[:, 0, 0, 0].tolist() == [20, 30, 0]
    assert captions == [
        "is cow\npredicted cat\n80%", "is cat\npredicted cow\n70%", "is cat\npredicted dog\n60%",
    ]  # fmt: skip
    assert title == "3 mistakes in 4 examples"


def test_no_mistakes(grids):
    draw_mistakes(predictions([0, 1], [0, 1], [0.6, 0.9]), source(2), NAMES)
    assert grids[0][0].shape == (0, 2, 3, 1)


@pytest.mark.parametrize(("channels", "on_device"), [(1, False), (2, False), (3, False), (3, True)])
def test_the_first_batch_is_drawn_as_the_net_sees_it(grids, channels, on_device):
    """With its own labels, in pixels again, whatever the normalization and where it is done."""
    batches = data.TrainPipeline(
        source(9, channels), global_batch_size=6, seed=3, augmentations=(),
        mean=[0.1, 0.2, 0.3][:channels], std=[0.5, 0.6, 0.7][:channels], num_classes=3,
        on_device=on_device,
    )  # fmt: skip
    info = types.SimpleNamespace(mean=batches.mean, std=batches.std, class_names=NAMES)
    draw_batch(batches, info)
    ((images, captions, title),) = grids
    assert images.shape == (6, 2, 3, 3 if channels == 3 else 1)
    assert captions == [NAMES[pixel // 10 % 3] for pixel in images[:, 0, 0, 0]]
    assert len(set(images[:, 1, 2, 0])) == 6
    assert title == "The first training images, --augment=none"


def test_captions_of_mixed_examples():
    assert caption(np.int32(2), NAMES) == "cow"
    assert caption(np.array([0, 1, 0], np.float32), NAMES) == "dog"
    assert caption(np.array([0.25, 0, 0.75], np.float32), NAMES) == "cow 75%\ncat 25%"


def val(epoch, accuracy, loss):
    return {"split": "val", "epoch": epoch, "top_1_accuracy": accuracy, "loss": loss}


def test_best_epoch():
    rows = [val(1, 0.5, 3.0), val(2, 0.75, 2.0), val(3, 0.75, 1.0), val(4, 0.75, 1.0)]
    rows += [val(5, math.nan, 0.5), {**val(6, 1.0, 0.0), "split": "test"}]
    assert best_epoch(rows, "top_1_accuracy") == 3
    assert best_epoch(rows, "loss") == 5
    assert best_epoch([], "loss") is None
    assert best_epoch([*rows, {"split": "val", "epoch": 9}], "loss") == 5  # Without figures.


class Writer:
    def __init__(self, name, images):
        self.name, self.images = name, images

    def add_image(self, tag, png, step):
        self.images.append((self.name, tag, step))

    def flush(self):
        pass


@pytest.fixture
def hook(monkeypatch):
    """Makes a hook, and the list of the images that it adds."""
    for name in ("draw_batch", "draw_confusion", "draw_mistakes"):
        monkeypatch.setattr(f"commands.pictures.{name}", lambda *args: None)
    monkeypatch.setattr(pictures, "to_png", lambda figure: b"")

    def make(every):
        images = []
        writers = {name: Writer(name, images) for name in ("train", "val", "test")}
        info = types.SimpleNamespace(class_names=NAMES)
        dataset = types.SimpleNamespace(evaluated=lambda split: None)
        return Pictures(writers, info, dataset, every), images

    return make


class Plan(FakePlan):
    def is_epoch_end(self, step, every=1):
        return step % (11 * every) == 0 or step == 33


def evaluate(hook, split, step, stops_early=False):
    scores = types.SimpleNamespace(predictions=f"of {split} at {step}")
    trainer = FakeTrainer(step, plan=Plan())
    trainer.batches, trainer.stops_early = None, stops_early
    hook.on_evaluate(trainer, row(split, step), scores)


@pytest.mark.parametrize(("every", "steps"), [(0, [33]), (1, [11, 22, 33]), (2, [22, 33])])
def test_when_pictures_are_drawn(hook, every, steps):
    """In evaluations that are repeated after a kill, and not later, so that none is missing."""
    pictures_hook, images = hook(every)
    trainer = FakeTrainer(0, plan=Plan())
    trainer.batches = None
    pictures_hook.on_start(trainer)
    assert images == [("train", "pictures/augmentations", 0)]
    images.clear()
    for step in (11, 22, 33):
        evaluate(pictures_hook, "val", step)
    evaluate(pictures_hook, "test", 22)
    kinds = ("pictures/confusion_matrix", "pictures/mistakes")
    assert images == [
        (split, kind, step)
        for split, steps_of in (("val", steps), ("test", [22]))
        for step in steps_of
        for kind in kinds
    ]


def test_pictures_of_a_run_that_stops_early(hook):
    pictures_hook, images = hook(0)
    evaluate(pictures_hook, "val", 11)
    evaluate(pictures_hook, "val", 22, stops_early=True)
    evaluate(pictures_hook, "test", 11)
    assert [(split, step) for split, kind, step in images if "mistakes" in kind] == [
        ("val", 22), ("test", 11),
    ]  # fmt: skip


def test_rows_of_few_steps_are_joined_to_the_one_before():
    """Rows at every 50 steps and at the ends of epochs of 51 steps."""
    rows = [
        {"step": step, "epoch": step / 51, "loss": loss, "top_1_accuracy": 0.5}
        for step, loss in ((50, 2.0), (51, 53.0), (100, 1.0), (102, 50.0))
    ]
    merged = _merged(rows)
    assert [row["step"] for row in merged] == [51, 102]
    assert [row["epoch"] for row in merged] == [1, 2]
    expected = [(50 * 2 + 53) / 51, (49 * 1 + 2 * 50) / 51]
    assert [row["loss"] for row in merged] == pytest.approx(expected)
    assert [row["top_1_accuracy"] for row in merged] == pytest.approx([0.5, 0.5])
    assert _merged([]) == []


def test_settings_that_are_shown_first():
    """Those of the command that make another run, and usual ones up to five."""
    options = TrainOptions(momentum=0.8, histogram_steps=10, seed=2, batch_size=32)
    found = shown_settings(options)
    assert sorted(found) == ["batch_size", "learning_rate", "momentum", "net", "seed"]
    options = TrainOptions(
        momentum=0.8, seed=2, batch_size=32, jit=True, stem="large", epochs=1.0, clip_norm=1.0
    )
    assert len(shown_settings(options)) == 7


def test_a_bar_in_a_setting_does_not_end_its_cell():
    table = dashboards._settings_table({"augment": "mixup:1|cutmix:1", "seed": 3})
    rows = "| augment | mixup:1&#124;cutmix:1 |\n| seed | 3 |"
    assert table == f"| setting | value |\n|---|---|\n{rows}"


FILES = {
    f"{name}.png"
    for name in (
        "augmentations", "calibration", "confusion_matrix", "curves", "first_layer", "mistakes",
    )
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with helpers.tiny_net(draws=True):
        run_dir = tmp_path_factory.mktemp("finished") / "run"
        call("train.py", *TINY, "--epochs=1", "--ema_decay=0.5", f"--run_dir={run_dir}")
        yield run_dir


@pytest.mark.slow
def test_eval_draws_the_pictures_that_training_has_drawn(finished, tmp_path):
    """Of the same weights, byte by byte."""
    call("eval.py", f"--run_dir={finished}", f"--pictures={tmp_path / 'a' / 'b'}")
    found = contents(tmp_path / "a" / "b")
    assert found.keys() == FILES
    assert found == contents(finished / "pictures")


@pytest.mark.slow
def test_what_cannot_be_drawn_is_one_line(finished, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    args = ("eval.py", f"--run_dir={finished}")
    error = refused(capsys, *args, f"--pictures={tmp_path / 'file'}")
    assert f"--pictures={tmp_path / 'file'} is not a directory" in error
    error = refused(capsys, *args, f"--pictures={tmp_path / 'file' / 'below'}")
    assert f"cannot write {tmp_path / 'file' / 'below'}: Not a directory" in error
    error = refused(capsys, *args, "--follow", f"--pictures={tmp_path}")
    assert "leave out --pictures" in error


def test_profile_steps_that_are_not_accepted(tmp_path, capsys):
    error = refused(capsys, "train.py", *TINY, "--profile_steps=9", f"--run_dir={tmp_path / 'a'}")
    assert "--profile_steps: '9' is not FIRST:LAST, such as 100:110" in error
    assert not (tmp_path / "a").exists()
