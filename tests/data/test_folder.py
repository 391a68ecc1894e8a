import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

import data
from tests.data.helpers import ROOT, fetch, refused, write, write_tree


def load(data_dir, **options):
    return data.load("folder", data_dir=data_dir, **options)


def test_train_and_test(tmp_path):
    write_tree(tmp_path, count=3, suffixes=(".jpg", ".PNG", ".jpeg"))
    (tmp_path / "train" / "red" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "red" / ".hidden.png").write_text("no image")
    (tmp_path / "train" / ".hidden").mkdir()
    dataset = load(tmp_path, image_size=16)
    assert dataset.class_names == ["blue", "red"]
    assert {k: len(s.labels) for k, s in dataset.splits.items()} == {"train": 6, "test": 6}
    images = fetch(dataset.splits["train"], range(6))
    assert images.shape == (6, 16, 16, 3)
    np.testing.assert_allclose(images[0], np.full((16, 16, 3), (0, 0, 200)), atol=3)
    np.testing.assert_allclose(images[5], np.full((16, 16, 3), (200, 0, 0)), atol=3)
    assert dataset.name == tmp_path.name
    assert dataset.augment == "crop:2,flip"


def test_one_tree_is_split(tmp_path):
    write_tree(tmp_path, splits=("",), count=10)
    dataset = load(tmp_path)
    assert {k: len(s.labels) for k, s in dataset.splits.items()} == {"train": 16, "test": 4}
    assert dataset.image_shape == (64, 64, 3)
    assert dataset.augment == "crop:8,flip"


def write_splits(root, *names):
    """A tree whose images of a split are all of one size, by which they can be told apart."""
    for number, name in enumerate(names, start=1):
        write_tree(root, splits=(name,), count=10 * number)
    return root


def counts(dataset):
    return {split: len(source.labels) for split, source in dataset.splits.items()}


def test_train_val_and_test(tmp_path):
    """Nothing is held out of train, whatever the fraction is, but for 0, which is without val."""
    write_splits(tmp_path, "train", "val", "test")
    for fraction in (0.1, 0.5):
        dataset = load(tmp_path, val_fraction=fraction)
        assert counts(dataset) == {"train": 20, "val": 40, "test": 60}
        assert dataset.own_val
    assert f"{tmp_path}/val is the validation split; nothing is held out" in dataset.note
    assert "/val/" in dataset.splits["val"].describe(0)
    dataset = load(tmp_path, val_fraction=0)
    assert counts(dataset) == {"train": 20, "test": 60}
    assert "is not used (--val_fraction=0)" in dataset.note
    assert not dataset.own_val


def test_train_and_val_as_in_imagenet(tmp_path):
    """Results are reported on val, so no checkpoint may be chosen on it."""
    write_splits(tmp_path, "train", "val")
    dataset = load(tmp_path, val_fraction=0.1)
    assert counts(dataset) == {"train": 18, "test": 40, "val": 2}
    assert "/val/" in dataset.splits["test"].describe(0)
    assert "/train/" in dataset.splits["val"].describe(0)
    assert f"{tmp_path}/val is the test split, to be scored once" in dataset.note
    assert not dataset.own_val
    for place in ("train", "val", "test"):
        write_tree(tmp_path / "one", splits=(place,))
    assert load(tmp_path / "one" / "train").note == ""


def test_layouts_that_are_incomplete_are_refused(tmp_path):
    write_tree(tmp_path / "a", splits=("train",))
    refused(r"a has train/ but no test/ or val/; add one", load, tmp_path / "a")
    write_tree(tmp_path / "b", splits=("test", "val"))
    refused("b has val/ and test/ but no train/; add it", load, tmp_path / "b")
    # Classes of such names.
    (tmp_path / "c").mkdir()
    for name in ("val", "test", "other"):
        write_tree(tmp_path / "c" / name, splits=("",), count=5)
        (tmp_path / "c" / name / "blue").rename(tmp_path / "c" / f"{name}-blue")
        for path in (tmp_path / "c" / name / "red").iterdir():
            path.rename(tmp_path / "c" / name / path.name)
        (tmp_path / "c" / name / "red").rmdir()
    assert load(tmp_path / "c").class_names[-2:] == ["val", "val-blue"]
    write_splits(tmp_path / "d", "train", "val", "test")
    write(tmp_path / "d" / "val" / "green" / "1.png")
    refused("train/ and val/ in .*d differ in their classes: green", load, tmp_path / "d")


def test_shorter_side_fits_and_the_middle_is_kept(tmp_path):
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = 255
    for name in ("a/1", "a/2", "b/1", "b/2"):
        write(tmp_path / f"{name}.png")
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    assert np.all(fetch(load(tmp_path, image_size=20).splits["train"], [0]) == 255)


def test_a_directory_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.scandir", refuse)
    refused(r"folder cannot be read from .*Permission denied", load, tmp_path)


def test_what_is_wrong_with_a_tree_is_named(tmp_path):
    refused("needs --data_dir", data.load, "folder")
    refused("no class directories", load, tmp_path)
    write_tree(tmp_path, splits=("train",))
    refused("no test/", load, tmp_path)
    write_tree(tmp_path)
    (tmp_path / "test" / "green").mkdir()
    refused("green has no images", load, tmp_path)
    write(tmp_path / "test" / "green" / "1.png")
    refused("differ in their classes: green", load, tmp_path)


def test_a_class_without_images_in_one_split_gets_one_advice(tmp_path):
    """It is that of any class without images, and it can be followed."""
    write_tree(tmp_path, splits=("train", "val", "test"))
    for path in (tmp_path / "val" / "red").iterdir():
        path.rename(path.with_suffix(".webp"))
    refused(r"val/red has no images \(.*\); add some, or remove the class, from every split if",
            load, tmp_path)  # fmt: skip
    shutil.rmtree(tmp_path / "val" / "red")
    refused("train/ and val/ in .* differ in their classes: red; each needs images of all of them",
            load, tmp_path)  # fmt: skip
    # Removed from every split; at least two are left.
    for split in ("train", "val", "test"):
        write(tmp_path / split / "green" / "0.png")
        shutil.rmtree(tmp_path / split / "red", ignore_errors=True)
    assert load(tmp_path, val_fraction=0.1).class_names == ["blue", "green"]


def left_out(call, *args, **options):
    """The texts of the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*args, **options)
    assert all(issubclass(one.category, data.DataWarning) for one in caught)
    return [str(one.message) for one in caught]


def test_what_is_not_named_like_an_image_is_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr("data.files.MIN_FILES", 1)  # So that there is an index at the second start.
    root = write_tree(tmp_path / "tree")
    expected = ("notes.txt", "Thumbs.db", ".DS_Store", ".hidden.webp", "boxes.XML")
    for split in ("train", "test"):
        for name in expected:
            (root / split / "red" / name).write_text("no image")
        (root / split / "red" / ".hidden").mkdir()
    assert left_out(load, root) == []
    (root / "train" / "blue" / "more").mkdir()
    others = ("train/blue/1.webp", "train/red/2.WEBP", "test/blue/3.tiff", "test/red/4")
    for name in others:
        (root / name).write_bytes(b"content")
    for _ in range(2):
        (said,) = left_out(load, root)
        assert said.startswith(
            f"{root}: left out 4 files (2 .webp, 1 without a suffix, 1 .tiff) and 1 directory in "
            f"class directories, such as {root}/train/blue/"
        )
        assert said.endswith("directly in a class directory that end in .jpg, .jpeg, .png")
    # Data of others to score.
    (said,) = left_out(data.load_split, "folder", "test", data_dir=root,
                       class_names=("blue", "red"), image_shape=(8, 8, 3))  # fmt: skip
    assert said.startswith(f"{root}/test: left out 2 files (")
    for name in others:
        (root / name).unlink()
    (said,) = left_out(load, root)
    assert f"left out 1 directory in class directories, such as {root}/train/blue/more; " in said


def test_an_empty_split_is_refused(tmp_path):
    write_tree(tmp_path, splits=("",), count=1)
    refused("leaves no example for the test split; use more images", load, tmp_path)
    write_tree(tmp_path / "both", count=1)
    refused("the val split; use --val_fraction=0 or more images",
            load, tmp_path / "both", val_fraction=0.1)  # fmt: skip


# Paths that are not files, and links.


def spoil_as_directory(path):
    path.mkdir()


def spoil_as_pipe(path):
    os.mkfifo(path)


def spoil_as_broken_link(path):
    path.symlink_to("no-such-file")


def spoil_as_loop(path):
    path.symlink_to(path.name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (spoil_as_directory, "a directory"),
        (spoil_as_pipe, "a pipe or a device"),
        (spoil_as_broken_link, "a broken link"),
        (spoil_as_loop, "a broken link"),
    ],
)
def test_what_is_no_file_is_refused_or_skipped(tmp_path, spoil, what):
    write_tree(tmp_path)
    path = tmp_path / "train" / "blue" / "odd.jpg"
    spoil(path)
    refused(rf"blue/odd\.jpg is {what}, not an image file; remove it", load, tmp_path)
    dataset = load(tmp_path, bad_images="skip")
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
        dataset = load(tmp_path / "some", bad_images=bad_images)
        train = dataset.splits["train"]
        assert train.labels.tolist() == [0] * 4 + [1] * 2
        assert fetch(train, [0, 5])[:, 0, 0].tolist() == [[0, 0, 200], [200, 0, 0]]
        assert dataset.skipped == ()


def test_parents_of_links_are_those_of_the_file_system(tmp_path):
    """`link/..` is the parent of what the link leads to, not the directory of the link."""
    write_tree(tmp_path / "far" / "away", splits=("train", "test"))
    (tmp_path / "far" / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "elsewhere")
    train = load(tmp_path / "link" / ".." / "away").splits["train"]
    assert fetch(train, [0])[0, 0, 0].tolist() == [0, 0, 200]


@pytest.mark.parametrize("bad_images", ["error", "skip"])
def test_class_directories_that_are_links_in_a_loop_are_refused(tmp_path, bad_images):
    write_tree(tmp_path, splits=("",))
    write(tmp_path / "stray.png")
    (tmp_path / "root").symlink_to(tmp_path)
    for target in ("..", tmp_path):  # To a parent, and by a link that leads back here.
        link = tmp_path / "green"
        link.symlink_to(target)
        refused(r"green is a link to .*, which contains it; remove it",
                load, tmp_path, bad_images=bad_images)  # fmt: skip
        link.unlink()
    (tmp_path / "root").unlink()
    for target in ("green", "nowhere"):
        (tmp_path / "green").symlink_to(target)
        refused("green is a broken link; remove it", load, tmp_path, bad_images=bad_images)
        (tmp_path / "green").unlink()


# --bad_images=skip.


def test_bad_images_are_left_out_before_examples_are_numbered(tmp_path):
    write_tree(tmp_path, count=4)
    (tmp_path / "train" / "blue" / "0.png").write_bytes(b"text")
    (tmp_path / "train" / "red" / "2.png").write_bytes(b"")
    cut = tmp_path / "test" / "red" / "3.png"
    cut.write_bytes(cut.read_bytes()[:50])
    dataset = load(tmp_path, bad_images="skip")
    names = ("train/blue/0.png", "train/red/2.png", "test/red/3.png")
    assert dataset.skipped == tuple(tmp_path / name for name in names)
    train, test = dataset.splits["train"], dataset.splits["test"]
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert test.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    colors = fetch(train, range(6))[:, 0, 0]
    assert colors.tolist() == [[0, 0, 200]] * 3 + [[200, 0, 0]] * 3
    for name in names:
        (tmp_path / name).unlink()
    assert train.fingerprint() == load(tmp_path).splits["train"].fingerprint()


def test_a_split_tree_is_divided_without_its_bad_images(tmp_path):
    write_tree(tmp_path, count=10, splits=("",))
    for i in range(5):
        (tmp_path / "red" / f"{i}.png").write_bytes(b"text")
    dataset = load(tmp_path, bad_images="skip", val_fraction=0.25)
    counts = {k: np.bincount(s.labels).tolist() for k, s in dataset.splits.items()}
    assert counts == {"train": [6, 3], "val": [2, 1], "test": [2, 1]}
    assert len(dataset.skipped) == 5


def test_a_class_with_bad_images_only_is_refused(tmp_path):
    write_tree(tmp_path)
    for path in (tmp_path / "test" / "red").iterdir():
        path.write_bytes(b"text")
    refused("test/red has no image that can be decoded; add some",
            load, tmp_path, bad_images="skip")  # fmt: skip
    for path in (tmp_path / "train" / "blue").iterdir():
        path.unlink()
        path.mkdir()
    refused("train/blue has no image that can be decoded", load, tmp_path, bad_images="skip")


# Names.

NAMES = (
    "two  spaces 'and' \"quotes\".png",
    "naïve 写真.png",
    "line\nbreak.png",
    "[a]*?{b}\\ $HOME %s.png",
    "file:x.png",
    os.fsdecode(b"not-utf-8-\xff.png"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[:4]), *NAMES[4:]]
)
def test_names_of_all_kinds(tmp_path, name):
    root = tmp_path / name
    write_tree(root)
    path = write(root / "train" / "blue" / name, (9, 9, 9))
    (number,) = [i for i in range(5) if load(root).splits["train"].describe(i) == str(path)]
    for bad_images in ("error", "skip"):
        train = load(root, bad_images=bad_images).splits["train"]
        assert fetch(train, [number])[0, 0, 0].tolist() == [9, 9, 9]
    path.write_bytes(b"text")
    shown = str(path).replace("\n", "\\n").replace("\udcff", "\\udcff")
    assert refused("it is not an image", load, root).startswith(f"{shown} cannot be decoded (")
    path.unlink()
    path.mkdir()
    assert refused("a directory", load, root).startswith(f"{shown} is a directory, not an image")
    dataset = load(root, bad_images="skip")
    assert dataset.skipped == (path,)
    assert dataset.name.isprintable()


@pytest.mark.slow
def test_class_names_do_not_depend_on_the_locale(tmp_path):
    names = [b"plain", b"r\xffd", "grün".encode()]
    for split in ("train", "test"):
        for name in names:
            write(tmp_path / split / os.fsdecode(name) / "0.png")
    here = load(tmp_path)
    assert here.class_names == ["gr\xfcn", "plain", "r\\xffd"]
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import locale, data\n"
        "assert locale.getpreferredencoding(False) == 'ANSI_X3.4-1968'\n"
        "dataset = data.load('folder', data_dir=sys.argv[2])\n"
        "print(ascii(dataset.class_names), dataset.splits['train'].fingerprint())"
    )
    environment = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code, ROOT, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    expected = f"{here.class_names!a} {here.splits['train'].fingerprint()}"
    assert done.stdout.strip() == expected
