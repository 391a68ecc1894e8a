"""Predictions for image files: probabilities, formats, bad files, variants and heat maps."""

import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import nets
from commands.prediction_format import FORMATS
from commands.run import Run
from nets.layers import Head
from nets.net import Net
from tests.commands import helpers
from tests.commands.helpers import call, refused
from tests.data.helpers import KINDS, photo


@pytest.fixture(autouse=True, scope="module")
def tiny_net():
    with helpers.tiny_net():
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of photos in all formats, and a run that was trained on them."""
    root = tmp_path_factory.mktemp("root")
    contents = [kind[0] for kind in KINDS.values()]
    for split, count in (("train", 6), ("test", 14)):
        for i in range(2 * count):
            path = root / "data" / split / ("a cat", "dog, big")[i % 2] / f"{i:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            if split == "test" and i < len(contents):
                path.write_bytes(contents[i])
            else:
                photo(40 + 3 * i, 60, seed=i).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", str(root / "home"))
        call("train.py", "--net=tiny", "--dataset=folder", f"--data_dir={root / 'data'}",
             "--image_size=16", "--batch_size=4", "--epochs=1", "--device=cpu", "--verbosity=0",
             f"--run_dir={root / 'run'}")  # fmt: skip
    return root


@pytest.fixture
def here(root, monkeypatch, capsys):
    """The folder as working directory; nothing is converted into a cache."""
    monkeypatch.chdir(root)
    monkeypatch.setenv("KERAS_HOME", str(root / "nowhere"))
    capsys.readouterr()
    yield root
    assert not (root / "nowhere").exists()


def predicted(capsys, *args, code=None):
    """What the command prints as JSON, and its lines on standard error."""
    args = ("predict.py", "--run_dir=run", "--device=cpu", "--format=json", *args)
    if code is None:
        call(*args)
    else:
        with pytest.raises(SystemExit) as caught:
            call(*args)
        assert caught.value.code == code
    out, err = capsys.readouterr()
    program = os.path.basename(sys.argv[0])
    assert all(line.startswith(f"{program}: ") for line in err.splitlines())
    lines = [line.removeprefix(f"{program}: ") for line in err.splitlines()]
    return [json.loads(line) for line in out.splitlines()], lines


def probabilities(rows, names=("a cat", "dog, big")):
    by_class = [{x["class"]: x["probability"] for x in row["predictions"]} for row in rows]
    return np.array([[found[name] for name in names] for found in by_class])


def softmax(net, images):
    return tf.nn.softmax(net(tf.constant(images), training=False)).numpy()


def test_a_test_image_has_the_probabilities_of_the_evaluation(here, capsys, monkeypatch):
    rows, errors = predicted(capsys, "data/test")
    assert errors == []
    monkeypatch.setenv("KERAS_HOME", str(here / "home"))
    run = Run.open("run")
    source = (dataset := run.dataset()).splits["test"]
    assert [row["path"] for row in rows] == [
        os.path.relpath(source.describe(i), here) for i in range(28)
    ]
    images, _ = dataset.examples("test", range(28))
    np.testing.assert_allclose(probabilities(rows), softmax(run.net(), images), atol=1e-6)
    np.testing.assert_allclose(
        [row["predictions"][0]["probability"] for row in rows],
        run.predictions.confidences,
        atol=1e-6,
    )
    firsts = [row["predictions"][0]["class"] for row in rows]
    assert firsts == [run.data.class_names[i] for i in run.predictions.predicted]


@pytest.mark.slow
def test_variants_are_averaged(here, capsys):
    paths = [f"data/train/a cat/{i:02}.jpg" for i in (0, 2, 4)]
    whole = probabilities(predicted(capsys, *paths)[0])
    both = probabilities(predicted(capsys, *paths, "--tta=flip")[0])
    for path in paths:
        with Image.open(path) as image:
            square = Image.fromarray(np.asarray(image)[:, ::-1])
        square.save(f"mirrored-{os.path.basename(path)}.png")
    mirrored = [f"mirrored-{os.path.basename(path)}.png" for path in paths]
    mirror = probabilities(predicted(capsys, *mirrored)[0])
    for path in mirrored:
        os.unlink(path)
    assert np.abs(whole - mirror).max() > 1e-4
    np.testing.assert_allclose(both, (whole + mirror) / 2, atol=5e-3)  # Scaled, then mirrored.
    ten = probabilities(predicted(capsys, *paths, "--tta=shifts,flip")[0])
    np.testing.assert_allclose(ten.sum(axis=1), 1, atol=1e-6)
    assert np.abs(ten - both).max() > 1e-4


def test_bad_files_are_named_and_the_rest_go_on(here, capsys, tmp_path):
    bad = [str(tmp_path / name) for name in ("text.jpg", "empty.png", "cut.jpg", "a\nb \udcff")]
    contents = (here / "data/train/a cat/00.jpg").read_bytes()
    for path, content in zip(bad, (b"text", b"", contents[:-50], b"x"), strict=True):
        with open(path, "wb") as file:
            file.write(content)
    good = ["data/train/a cat/00.jpg", "data/train/a cat/02.jpg"]
    (tmp_path / "none").mkdir()
    arguments = (bad[0], good[0], "missing", *bad[1:], f"{tmp_path}/none", "*.tif", good[1])
    rows, errors = predicted(capsys, *arguments, code=2)
    assert [row["path"] for row in rows] == good
    shown = f"{tmp_path}/a\\nb \\udcff"
    assert errors == [
        f"{bad[0]} cannot be read: it is not an image",
        "missing cannot be read: No such file or directory",
        f"{bad[1]} cannot be read: it is not an image",
        f"{bad[2]} cannot be read: its contents are damaged",
        f"{shown} cannot be read: it is not an image",
        f"{tmp_path}/none has no images (.jpg, .jpeg, .png)",
        "*.tif matches no file",
        "7 of 9 images could not be found or read",
    ]
    assert predicted(capsys, "missing", code=2) == (
        [],
        [errors[1]],
    )


def test_paths_on_standard_input_and_strange_names(here, capsys, tmp_path, monkeypatch):
    contents = (here / "data/train/a cat/00.jpg").read_bytes()
    strange = [os.fsdecode(bytes(tmp_path) + name) for name in (b"/\xff.jpg", b'/a",\n\xc3\xa4[1]')]
    for path in strange:
        with open(path, "wb") as file:
            file.write(contents)
    listed = io.TextIOWrapper(io.BytesIO(os.fsencode(strange[0]) + b"\ndata/train/a cat\n"))
    monkeypatch.setattr(sys, "stdin", listed)
    rows, errors = predicted(capsys, "-", strange[1], strange[1])
    assert errors == []
    names = [f"data/train/a cat/{i:02}.jpg" for i in range(0, 12, 2)]
    assert [row["path"] for row in rows] == [strange[0], *names, strange[1], strange[1]]
    call("predict.py", "--run_dir=run", "--device=cpu", "--format=csv", *strange)
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out, newline="")))
    assert [row["path"] for row in found] == [f"{tmp_path}/\\xff.jpg", strange[1]]
    assert {found[0]["class"], found[0]["class_2"]} == {"a cat", "dog, big"}
    assert np.float32(found[0]["probability"]) == np.float32(
        rows[0]["predictions"][0]["probability"]
    )


PROBABILITIES = np.array([[0.25, 0.5, 0.25], [1.0, 0.0, 0.0]], np.float32)


@pytest.mark.parametrize(
    ("name", "top", "expected"),
    [
        (
            "text",
            5,
            "a.jpg       ant, red  50.0%  cat       25.0%  b\\n       25.0%\n"
            "long\\n.jpg  cat      100.0%  ant, red   0.0%  b\\n        0.0%\n",
        ),
        ("text", 1, "a.jpg       ant, red  50.0%\nlong\\n.jpg  cat      100.0%\n"),
        (
            "csv",
            2,
            "path,class,probability,class_2,probability_2\n"
            'a.jpg,"ant, red",0.5,cat,0.25\n"long\n.jpg",cat,1.0,"ant, red",0.0\n',
        ),
        (
            "json",
            1,
            '{"path": "a.jpg", "predictions": [{"class": "ant, red", "probability": 0.5}]}\n'
            '{"path": "long\\n.jpg", "predictions": [{"class": "cat", "probability": 1.0}]}\n',
        ),
    ],
)
def test_formats(name, top, expected):
    lines = FORMATS[name](["cat", "ant, red", "b\n"], top)
    assert lines.header + lines.rows(["a.jpg", "long\n.jpg"], PROBABILITIES) == expected


def test_columns_keep_their_width():
    lines = FORMATS["text"](["cat", "dog"], 1)
    assert lines.rows(["longer.jpg"], PROBABILITIES[:1, :2]) == "longer.jpg  dog  50.0%\n"
    assert lines.rows(["b.jpg"], PROBABILITIES[:1, :2]) == "b.jpg       dog  50.0%\n"
    lines.rows(["x" * 99], PROBABILITIES[:1, :2])
    assert lines.rows(["b.jpg"], PROBABILITIES[:1, :2]) == f"{'b.jpg':60}  dog  50.0%\n"


@pytest.mark.slow
def test_heat_maps_are_drawn_on_the_images(here, capsys, tmp_path):
    rows, errors = predicted(
        capsys, "data/test/a cat/04.jpg", "missing", "data/train/a cat", "data/test/a cat/04.jpg",
        f"--grad_cam={tmp_path}/new/cam", code=2,
    )  # fmt: skip
    assert len(rows) == 8
    assert len(errors) == 2
    names = [f"data-train-a cat-{i:02}.jpg.png" for i in range(0, 12, 2)]
    names += ["data-test-a cat-04.jpg.png", "data-test-a cat-04.jpg-2.png"]
    assert sorted(os.listdir(tmp_path / "new/cam")) == sorted(names)
    with Image.open(tmp_path / "new/cam" / names[0]) as drawn:
        assert (drawn.size, drawn.mode) == ((512, 512), "RGB")
        drawn = np.asarray(drawn.resize((16, 16), Image.Resampling.BOX), float)
    with Image.open("data/train/a cat/00.jpg") as image:  # 40x60 pixels.
        original = np.asarray(
            image.resize((16, 16), Image.Resampling.BOX, box=(0, 10, 40, 50)), float
        )
    changed = np.abs(drawn - original).mean(axis=-1)
    assert changed.max() > 40
    assert np.corrcoef(drawn.ravel(), original.ravel())[0, 1] > 0.3


def test_what_is_refused(here, capsys, tmp_path, monkeypatch):
    run = ("--run_dir=run", "--device=cpu")
    for args, line in {
        ("a.jpg",): "--run_dir is required",
        run: "name image files, directories or patterns, or - for standard input",
        (*run, "a.jpg", "--tta=flip,blur"): "expected a list of names from flip, shifts",
        (*run, "data", "--grad_cam=data/test/cam"): "--grad_cam=data/test/cam is inside data",
        (*run, "a.jpg", f"--grad_cam={here}/run/config.json"): "the directory cannot be created",
        (*run, "a.jpg", "--top=0"): "--top=0: expected an integer (>= 1",
        (*run, "a.jpg", "--checkpoint=none"): "none",
        ("--run_dir=data", "a.jpg"): "is not a run directory",
    }.items():
        assert line in refused(capsys, "predict.py", *args)

    class Whole(Net):
        def __init__(self, num_classes, *, stem):
            del stem
            super().__init__()
            self.head = Head(num_classes)

        def call(self, images, *, training):
            return self.head(images, training=training)

    monkeypatch.setitem(nets.NETS, "tiny", Whole)
    monkeypatch.setattr(Run, "restore", lambda *args: 1)
    args = (*run, "a.jpg", "--allow_changes", f"--grad_cam={tmp_path}/cam")
    assert "sequence of stages, and Whole" in refused(capsys, "predict.py", *args)
    assert not (tmp_path / "cam").exists()


class Broken(io.StringIO):
    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))


def test_an_output_that_cannot_be_written(here, capsys, monkeypatch):
    args = ("--run_dir=run", "--device=cpu", "data/train/a cat/00.jpg")
    monkeypatch.setattr(sys, "stdout", Broken(errno.ENOSPC))
    line = refused(capsys, "predict.py", *args)
    assert line.endswith("cannot write standard output: No space left on device\n")
    monkeypatch.setattr(sys, "stdout", Broken(errno.EPIPE))
    with pytest.raises(SystemExit) as caught:
        call("predict.py", *args)
    assert caught.value.code == 128 + signal.SIGPIPE
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_gray_images(tmp_path, capsys, monkeypatch):
    """A net for digits takes them as 8x8 gray pixels, of which it knows nothing but the values."""
    monkeypatch.chdir(tmp_path)
    call("train.py", *helpers.TINY, "--epochs=1", "--verbosity=0", "--run_dir=run")
    run = Run.open("run")
    source = (dataset := run.dataset()).splits["test"]
    pixels = source.fetch(tf.range(20, dtype=tf.int64)).numpy()
    for i, image in enumerate(pixels):
        Image.fromarray(image[..., 0]).save(f"{i:02}.png")
    capsys.readouterr()
    rows, _ = predicted(capsys, "*.png", "--top=10")
    expected = softmax(run.net(), dataset.examples("test", range(20))[0])
    found = probabilities(rows, run.data.class_names)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.slow
def test_a_pipe_that_is_closed_early(root, tmp_path, monkeypatch):
    """As by `| head -1`: no traceback, and the rest is not classified."""
    monkeypatch.chdir(root)
    run = f"--run_dir={tmp_path / 'run'}"
    call("train.py", "--net=inception10", "--dataset=folder", "--data_dir=data", "--image_size=32",
         "--batch_size=4", "--epochs=1", "--verbosity=0", "--device=cpu", run)  # fmt: skip
    command = [sys.executable, helpers.ROOT / "predict.py", run, *["data/train"] * 500]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("data/train/a cat/00.jpg  ")
    process.stdout.close()
    assert process.wait(timeout=100) == 128 + signal.SIGPIPE
    assert process.stderr.read() == ""
