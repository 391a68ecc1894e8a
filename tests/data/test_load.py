"""`data.load`, `data.load_split` and `data.relabel`."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import data
from tests.data.helpers import fetch, pixels, refused, write, write_tree
from tests.data.test_cifar import write_cifar10

CLASSES = ("red", "green", "blue")
SHAPE = (8, 8, 3)


def test_unknown_dataset_lists_the_known_ones():
    refused(r"'cifar11'.*cifar10, cifar100, digits", data.load, "cifar11")
    refused("'cifar11'", data.load_split, "cifar11", "test", class_names=CLASSES, image_shape=SHAPE)


def test_data_dir_must_exist(tmp_path):
    refused("is not a directory", data.load, "cifar10", data_dir=tmp_path / "typo")


def test_no_val_fraction_is_no_val_split():
    assert "val" not in data.load("digits").splits


def test_images_are_resized(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-py")
    dataset = data.load("cifar10", data_dir=tmp_path, image_size=48, val_fraction=0.1)
    assert dataset.image_shape == (48, 48, 3)
    assert fetch(dataset.splits["val"], [0]).shape == (1, 48, 48, 3)


def test_relabel_goes_by_name():
    dataset = data.load("digits")
    turned = data.relabel(dataset, [str(9 - i) for i in range(10)])
    np.testing.assert_array_equal(turned.splits["test"].labels, 9 - dataset.splits["test"].labels)
    names = [*(str(i) for i in range(9)), "ten"]
    refused("digits has other classes than the net: it lacks ten and adds 9",
            data.relabel, dataset, names)  # fmt: skip


def load_split(data_dir, split="test", **options):
    return data.load_split(
        "folder",
        split,
        data_dir=data_dir,
        **{"class_names": CLASSES, "image_shape": SHAPE, **options},
    )


def test_a_folder_of_classes_is_scored_whole(tmp_path):
    """With one image a class, some of the classes, and no train/."""
    write_tree(tmp_path, splits=("",), count=1)
    for split in ("test", "val", "train"):
        source, skipped = load_split(tmp_path, split)
        assert source.labels.tolist() == [2, 0]
        assert fetch(source, [0, 1])[:, 0, 0].tolist() == [[0, 0, 200], [200, 0, 0]]
        assert skipped == ()
        assert source.describe(1) == str(tmp_path / "red" / "0.png")


def test_a_directory_of_the_split_is_used(tmp_path):
    """Without train/, and with one image a class."""
    write_tree(tmp_path, splits=("test",), count=1)
    write(tmp_path / "test" / "green" / "1.png", (0, 200, 0))
    source, _ = load_split(tmp_path)
    assert source.labels.tolist() == [2, 1, 0]
    assert fetch(source, [1])[0, 0, 0].tolist() == [0, 200, 0]


def test_other_splits_are_not_read(tmp_path):
    write_tree(tmp_path, count=3)
    (tmp_path / "train" / "blue" / "0.png").write_bytes(b"text")
    source, _ = load_split(tmp_path, "test")
    assert [source.describe(i) for i in range(6)] == [
        str(tmp_path / "test" / name / f"{i}.png") for name in ("blue", "red") for i in range(3)
    ]


def test_gray_and_sizes_are_those_of_the_net(tmp_path):
    write_tree(tmp_path, splits=("",))
    source, _ = load_split(tmp_path, image_shape=(12, 12, 1))
    assert fetch(source, [0]).shape == (1, 12, 12, 1)
    refused("takes 8x9", load_split, tmp_path, image_shape=(8, 9, 1))


def test_unknown_classes_are_refused(tmp_path):
    write_tree(tmp_path, splits=("",))
    message = refused(
        "has classes that the net does not know: red", load_split, tmp_path,
        class_names=("blue", "green"),
    )  # fmt: skip
    assert message.endswith("it knows blue, green")
    write_tree(tmp_path / "tree", splits=("train",))
    refused("has train/ but no test/ or val/; add one", load_split, tmp_path / "tree", "test")


def test_splits_of_another_folder(tmp_path):
    """As when a run is started on it: without test/, val/ is the test split."""
    write_tree(tmp_path, splits=("train",), count=3)
    write_tree(tmp_path, splits=("val",), count=1)
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        assert len(load_split(tmp_path, split)[0].labels) == count
    write_tree(tmp_path, splits=("test",), count=2)
    assert len(load_split(tmp_path)[0].labels) == 4
    write_tree(tmp_path / "two", splits=("train", "test"))
    refused("two has train/ but no val/; add it", load_split, tmp_path / "two", "val")
    # A tree of which "train" is a class.
    write(tmp_path / "tree" / "train" / "0.png"), write(tmp_path / "tree" / "car" / "0.png")
    source, _ = load_split(tmp_path / "tree", class_names=("train", "bus", "car"))
    assert source.labels.tolist() == [2, 0]


def test_bad_images_of_another_folder(tmp_path):
    bad = write_tree(tmp_path, splits=("test",)) / "test" / "red" / "1.png"
    bad.write_bytes(b"text")
    refused(r"red/1\.png cannot be decoded", load_split, tmp_path)
    source, skipped = load_split(tmp_path, bad_images="skip")
    assert source.labels.tolist() == [2, 2, 0]
    assert skipped == (bad,)


def test_folders_that_are_none(tmp_path):
    refused("needs --data_dir", load_split, None)
    refused("is not a directory", load_split, tmp_path / "typo")
    refused("no class directories", load_split, tmp_path)


def test_a_split_of_a_published_dataset():
    whole = data.load("digits")
    names = whole.class_names[::-1]
    source, skipped = data.load_split("digits", "test", class_names=names, image_shape=(8, 8, 1))
    np.testing.assert_array_equal(source.labels, 9 - whole.splits["test"].labels)
    assert skipped == ()
    source, _ = data.load_split("digits", "train", class_names=names, image_shape=(6, 10, 1))
    assert fetch(source, [0]).shape == (1, 6, 10, 1)
    options = {"class_names": names, "image_shape": (8, 8, 1)}
    refused("digits has no split 'val'; it has test, train",
            data.load_split, "digits", "val", **options)  # fmt: skip
    refused(r"digits has 1 channel\(s\), the net takes 3",
            data.load_split, "digits", "test", **options | {"image_shape": (8, 8, 3)})  # fmt: skip
    refused("lacks ten and adds 9", data.load_split, "digits", "test",
            **options | {"class_names": [*names[1:], "ten"]})  # fmt: skip


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_channels_of_a_folder(tmp_path, channels):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.fromarray(pixels(9, 9, 3)).save(tmp_path / name / f"{i}.png")
    dataset = data.load("folder", data_dir=str(tmp_path), channels=channels, image_size=8)
    assert dataset.image_shape == (8, 8, channels or 3)
    assert len(dataset.mean) == len(dataset.std) == (channels or 3)


def inconsistent(monkeypatch, **changes):
    good = data.load("digits")
    monkeypatch.setitem(
        data.DATASETS, "mine", lambda data_dir: dataclasses.replace(good, **changes)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["0", "1"]}, "labels of train are from 0 to 9, and must be from 0 to 1"),
        ({"class_names": ["0"]}, "has 1 class; at least two are needed"),
        ({"mean": (0.1, 0.2, 0.3)}, "mean and std need 1 number"),
        ({"std": ()}, "mean and std need 1 number"),
        ({"mean": 0.5}, "mean and std need 1 number"),
        ({"std": (0.0,)}, "std must be positive"),
        ({"class_names": ["0"] * 10}, "two classes have the same name"),
    ],
)
def test_an_inconsistent_dataset_is_refused(monkeypatch, changes, message):
    inconsistent(monkeypatch, **changes)
    refused(message, data.load, "mine")


def test_a_dataset_without_a_split_is_refused(monkeypatch):
    splits = data.load("digits").splits
    for missing, other in (("test", "train"), ("train", "test")):
        inconsistent(monkeypatch, splits={other: splits[other]})
        refused(f"digits has no split {missing}", data.load, "mine", val_fraction=0.1)


def test_splits_of_other_sizes_are_refused(monkeypatch):
    splits = data.load("digits").splits
    inconsistent(monkeypatch, splits={**splits, "test": data.Resized(splits["test"], (12, 12))})
    refused(r"images of test have shape \(12, 12, 1\), and those of train \(8, 8, 1\)",
            data.load, "mine")  # fmt: skip
