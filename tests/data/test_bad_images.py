"""Files that only look like images, and what else a folder can have."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import data
from data.decode import decode
from data.source import DataError
from tests.conftest import ROOT
from tests.data.test_decode import palette, png


def write(path, colour=(200, 30, 30), mode="RGB", size=(16, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)
    return path


def write_tree(root, count=2, splits=("train", "test")):
    for split in splits:
        for name, colour in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
            for i in range(count):
                write(root / split / name / f"{i}.png", colour)
    return root


def noise(path, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def refused(path, message):
    with pytest.raises(DataError) as caught:
        decode(path, (8, 8, 3))
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "--bad_images=skip" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# Files that cannot be decoded.


def test_text_and_nothing_are_no_images(tmp_path):
    for contents in (b"", b"a text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"):
        path = tmp_path / "a.jpg"
        path.write_bytes(contents)
        refused(path, "its contents are no image")


@pytest.mark.parametrize("size", [8, 64, 300])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 95}])
def test_truncation_is_found_at_every_scale(tmp_path, size, options):
    """Also where the decoder leaves out most of the detail."""
    whole = noise(tmp_path / "whole.jpg", **options).read_bytes()
    path = tmp_path / "cut.jpg"
    for kept in (len(whole) // 10, len(whole) // 2, len(whole) - 200, len(whole) - 2):
        path.write_bytes(whole[:kept])
        with pytest.raises(DataError, match=r"cut\.jpg cannot be decoded"):
            decode(path, (size, size, 3))
    path.write_bytes(whole)
    decode(path, (size, size, 3))


def test_damaged_png_is_named(tmp_path):
    whole = noise(tmp_path / "a.png").read_bytes()
    path = tmp_path / "cut.png"
    middle = len(whole) // 2
    changed = whole[:middle] + b"??" + whole[middle + 2 :]
    for contents in (whole[:100], whole[:middle], whole[:-300], changed):
        path.write_bytes(contents)
        refused(path, "cannot be decoded")


def test_a_decompression_bomb_is_named(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(60_000, 60_000, 1, 0, [b"\0"]))
    refused(path, "3600000000 pixels")


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "secret.png")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    refused(path, "Permission denied")


def test_nothing_is_said_on_standard_error(tmp_path):
    """Of damaged metadata, large images and palettes, about which Pillow warns."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x02\0\0\xff\xff\0\0\xff\xff garbage"
    Image.new("RGB", (8, 8)).save(tmp_path / "exif.jpg", exif=exif)
    (tmp_path / "palette.png").write_bytes(palette(bytes([255, 51])))
    Image.new("1", (9500, 9500)).save(tmp_path / "large.png")  # 90 million pixels.
    code = (
        "import sys, pathlib, os; sys.path.insert(0, sys.argv[1])\n"
        "from data.decode import decode\n"
        "os.write(2, b'START')\n"
        "for path in sorted(pathlib.Path(sys.argv[2]).iterdir()): decode(path, (8, 8, 3))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, ROOT, tmp_path], capture_output=True, text=True, check=True
    )
    assert done.stderr.partition("START")[2] == ""


# Paths that are no files, and links.


def spoil_as_directory(path):
    path.mkdir()


def spoil_as_pipe(path):
    os.mkfifo(path)


def spoil_as_dangling_link(path):
    path.symlink_to("no-such-file")


def spoil_as_loop(path):
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (spoil_as_directory, "a directory"),
        (spoil_as_pipe, "a pipe or a device"),
        (spoil_as_dangling_link, "a link that cannot be followed"),
        (spoil_as_loop, "a link that cannot be followed"),
    ],
)
def test_what_is_no_file_is_refused_or_skipped(tmp_path, spoil, what):
    write_tree(tmp_path)
    path = tmp_path / "train" / "blue" / "odd.jpg"
    spoil(path)
    with pytest.raises(DataError, match=rf"blue/odd\.jpg is no image file but {what}; remove it"):
        data.load("folder", data_dir=tmp_path)
    dataset = data.load("folder", data_dir=tmp_path, bad_images="skip")
    assert dataset.skipped == (path,)
    assert len(dataset.splits["train"].labels) == 4


def test_links_to_files_and_classes_elsewhere_are_followed(tmp_path):
    write_tree(tmp_path / "all", count=4, splits=("",))
    for split in ("train", "test"):
        red = tmp_path / "some" / split / "red"
        red.mkdir(parents=True)
        for i in range(2):
            (red / f"{i}.png").symlink_to(tmp_path / "all" / "red" / f"{i}.png")
        (tmp_path / "some" / split / "blue").symlink_to(tmp_path / "all" / "blue")
    for bad_images in ("error", "skip"):
        dataset = data.load("folder", data_dir=tmp_path / "some", bad_images=bad_images)
        train = dataset.splits["train"]
        assert train.labels.tolist() == [0] * 4 + [1] * 2
        assert train.fetch(np.array([0, 5]))[:, 0, 0].tolist() == [[0, 0, 200], [200, 0, 0]]
        assert dataset.skipped == ()


@pytest.mark.parametrize("bad_images", ["error", "skip"])
def test_class_directories_that_are_links_in_a_loop_are_refused(tmp_path, bad_images):
    write_tree(tmp_path, splits=("",))
    write(tmp_path / "stray.png")
    (tmp_path / "root").symlink_to(tmp_path)
    for target in ("..", tmp_path):  # To a parent, and by a link that leads back here.
        link = tmp_path / "green"
        link.symlink_to(target)
        with pytest.raises(DataError, match=r"green is a link to .*, which it lies in; remove it"):
            data.load("folder", data_dir=tmp_path, bad_images=bad_images)
        link.unlink()
    (tmp_path / "root").unlink()
    for target in ("green", "nowhere"):
        (tmp_path / "green").symlink_to(target)
        with pytest.raises(DataError, match="green is a link that cannot be followed; remove it"):
            data.load("folder", data_dir=tmp_path, bad_images=bad_images)
        (tmp_path / "green").unlink()


def test_a_file_that_goes_away_is_named(tmp_path):
    train = data.load("folder", data_dir=write_tree(tmp_path)).splits["train"]
    (tmp_path / "train" / "red" / "1.png").unlink()
    with pytest.raises(DataError, match=r"red/1\.png cannot be read: No such file"):
        train.fingerprint()
    with pytest.raises(DataError, match=r"red/1\.png cannot be decoded \(No such file"):
        train.fetch(np.array([3]))


# --bad_images=skip.


def test_bad_images_are_left_out_before_examples_are_numbered(tmp_path):
    write_tree(tmp_path, count=4)
    (tmp_path / "train" / "blue" / "0.png").write_bytes(b"text")
    (tmp_path / "train" / "red" / "2.png").write_bytes(b"")
    cut = tmp_path / "test" / "red" / "3.png"
    cut.write_bytes(cut.read_bytes()[:50])
    dataset = data.load("folder", data_dir=tmp_path, bad_images="skip")
    names = ("train/blue/0.png", "train/red/2.png", "test/red/3.png")
    assert dataset.skipped == tuple(tmp_path / name for name in names)
    train, test = dataset.splits["train"], dataset.splits["test"]
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert test.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    colours = train.fetch(np.arange(6))[:, 0, 0]
    assert colours.tolist() == [[0, 0, 200]] * 3 + [[200, 0, 0]] * 3
    for name in names:
        (tmp_path / name).unlink()
    assert (
        train.fingerprint() == data.load("folder", data_dir=tmp_path).splits["train"].fingerprint()
    )


def test_a_split_tree_is_divided_without_its_bad_images(tmp_path):
    write_tree(tmp_path, count=10, splits=("",))
    for i in range(5):
        (tmp_path / "red" / f"{i}.png").write_bytes(b"text")
    dataset = data.load("folder", data_dir=tmp_path, bad_images="skip", val_fraction=0.25)
    counts = {k: np.bincount(s.labels).tolist() for k, s in dataset.splits.items()}
    assert counts == {"train": [6, 3], "val": [2, 1], "test": [2, 1]}
    assert len(dataset.skipped) == 5


def test_a_class_with_bad_images_only_is_refused(tmp_path):
    write_tree(tmp_path)
    for path in (tmp_path / "test" / "red").iterdir():
        path.write_bytes(b"text")
    with pytest.raises(DataError, match="test/red has no image that can be decoded; add some"):
        data.load("folder", data_dir=tmp_path, bad_images="skip")
    for path in (tmp_path / "train" / "blue").iterdir():
        path.unlink()
        path.mkdir()
    with pytest.raises(DataError, match="train/blue has no image that can be decoded"):
        data.load("folder", data_dir=tmp_path, bad_images="skip")


# Through the pipeline.

WEIRD = (
    "two  spaces 'and' \"quotes\".png",
    "naïve 写真.png",
    "line\nbreak.png",
    os.fsdecode(b"not-utf-8-\xff.png"),
)


def batches(dataset, size=4, steps=2):
    return data.train_batches(
        dataset.splits["train"], global_batch_size=size, seed=0, start_step=0, stop_step=steps,
        augmentation=data.Augmentation(), mean=dataset.mean, std=dataset.std,
        num_classes=len(dataset.class_names),
    )  # fmt: skip


@pytest.mark.parametrize("name", WEIRD)
def test_names_of_all_kinds_are_one_line(tmp_path, name):
    write_tree(tmp_path)
    path = tmp_path / "train" / "blue" / name
    path.write_bytes(b"text")
    dataset = data.load("folder", data_dir=tmp_path)
    with pytest.raises(tf.errors.OpError) as caught:
        list(batches(dataset))
    message = str(data.data_error(caught.value))
    shown = str(path).replace("\n", "\\n").replace("\udcff", "\\udcff")
    assert message.startswith(f"{shown} cannot be decoded (its contents are no image); replace")
    assert message.endswith("--bad_images=skip")
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError) as refusal:
        data.load("folder", data_dir=tmp_path)
    assert str(refusal.value).startswith(f"{shown} is no image file but a directory")
    assert data.load("folder", data_dir=tmp_path, bad_images="skip").skipped == (path,)


# Few images.


def test_fewer_images_than_a_batch(tmp_path):
    """Epochs follow without a gap, so a batch of 8 has each of 3 images two or three times."""
    write(tmp_path / "test" / "a" / "0.png")
    for i in range(3):
        write(tmp_path / "train" / "a" / f"{i}.png", (100 * i, 0, 0))
    dataset = data.load("folder", data_dir=tmp_path, image_size=4)
    reds = [np.unique(np.round(images[:, 0, 0, 0], 4), return_counts=True)[1].tolist()
            for images, _ in batches(dataset, size=8, steps=3)]  # fmt: skip
    assert np.sum(reds, axis=0).tolist() == [8, 8, 8]
    assert all(set(counts) <= {2, 3} for counts in reds)


def test_one_image(tmp_path):
    write(tmp_path / "train" / "a" / "0.png")
    write(tmp_path / "test" / "a" / "0.png")
    dataset = data.load("folder", data_dir=tmp_path, image_size=4)
    for images, labels in batches(dataset, size=8):
        assert images.shape == (8, 4, 4, 3)
        assert labels.numpy().tolist() == [0] * 8
    ((images, _, mask),) = data.eval_batches(
        dataset.splits["test"], global_batch_size=8, mean=dataset.mean, std=dataset.std
    )
    assert mask.numpy().tolist() == [1] + [0] * 7
    with pytest.raises(DataError, match="the val split; use --val_fraction=0 or more images"):
        data.load("folder", data_dir=tmp_path, val_fraction=0.1)
    with pytest.raises(DataError, match="leaves no example for the test split; use more images"):
        data.load("folder", data_dir=tmp_path / "train")
