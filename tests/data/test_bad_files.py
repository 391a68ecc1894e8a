"""Damaged files of the published datasets, where nothing has checked their hashes."""

import gzip
import pickle
import sys
import tarfile

import numpy as np
import pytest

import data
from data import cifar
from data.source import DataError


def refused(name, data_dir, file, message):
    with pytest.raises(DataError) as caught:
        data.load(name, data_dir=data_dir)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(f"{data_dir / file} {message}")


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """Files are taken as they are."""

    def fetch(dataset, folder, file, **kwargs):
        return folder / file

    monkeypatch.setattr(sys.modules["data.mnist"], "fetch", fetch)
    monkeypatch.setattr(cifar, "fetch", fetch)


def mnist_arrays(size=10):
    images, labels = np.zeros((size, 28, 28), np.uint8), np.arange(size) % 10
    return {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": np.arange(10) - 1}, "does not hold a label from 0 to 9 for each of 10 images"),
        ({"y_test": np.arange(10) + 1}, "does not hold a label from 0 to 9 for each of 10 images"),
        ({"y_train": np.arange(9)}, "does not hold a label"),
        ({"y_train": np.zeros(10)}, "does not hold a label"),
        ({"y_train": np.uint8(3)}, "does not hold a label"),
        ({"x_test": np.zeros((10, 28, 28))}, "does not hold uint8 images of 28x28"),
        ({"x_test": np.zeros((10, 28, 27), np.uint8)}, "does not hold uint8 images of 28x28"),
        ({"x_test": np.zeros((0, 28, 28), np.uint8)}, "does not hold uint8 images of 28x28"),
        ({"x_test": np.uint8(3)}, "does not hold uint8 images of 28x28"),
        ({"x_test": np.array([{}])}, "cannot be read: Object arrays"),
        ({"x_test": None}, "cannot be read: "),
    ],
)
def test_mnist_with_contents_that_do_not_fit(tmp_path, changes, message):
    arrays = {k: v for k, v in (mnist_arrays() | changes).items() if v is not None}
    np.savez(tmp_path / "mnist.npz", **arrays)
    refused("mnist", tmp_path, "mnist.npz", message)


def test_mnist_that_is_damaged(tmp_path):
    path = tmp_path / "mnist.npz"
    np.savez_compressed(path, **mnist_arrays())
    whole = path.read_bytes()
    np.save(tmp_path / "array.npy", np.zeros(3))
    one_array = (tmp_path / "array.npy").read_bytes()
    for contents in (b"", b"text", whole[: len(whole) // 2], pickle.dumps({"x": 1}), one_array):
        path.write_bytes(contents)
        refused("mnist", tmp_path, "mnist.npz", "cannot be read: ")


def write_fashion(folder, size=10):
    folder.mkdir(exist_ok=True)
    for name in ("train", "t10k"):
        for kind, body in (
            ("images-idx3", bytes(16 + size * 784)),
            ("labels-idx1", bytes(8 + size)),
        ):
            (folder / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(body))


@pytest.mark.parametrize(
    ("file", "contents", "message"),
    [
        ("train-images-idx3-ubyte.gz", b"", "cannot be read: "),
        ("train-images-idx3-ubyte.gz", b"text", "cannot be read: Not a gzipped file"),
        ("train-images-idx3-ubyte.gz", gzip.compress(bytes(7856))[:-9], "cannot be read: "),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(bytes(7855)), "cannot be read: "),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(bytes(5)), "cannot be read: "),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(bytes(16)), "does not hold uint8 images"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(bytes(17)), "does not hold a label"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(bytes(17) + b"\x0a"), "does not hold a label"),
    ],
)
def test_fashion_mnist_that_is_damaged(tmp_path, file, contents, message):
    write_fashion(tmp_path / "fashion-mnist")
    data.load("fashion_mnist", data_dir=tmp_path)
    (tmp_path / "fashion-mnist" / file).write_bytes(contents)
    refused("fashion_mnist", tmp_path, f"fashion-mnist/{file}", message)


def write_cifar10(folder):
    folder.mkdir()
    batch = {b"data": np.zeros((10, 3072), np.uint8), b"labels": list(range(10))}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps(batch))
    names = {b"label_names": [f"class {i}".encode() for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names))


@pytest.mark.parametrize(
    ("file", "contents", "message"),
    [
        ("test_batch", {b"data": np.zeros((2, 3072), np.uint8), b"labels": [[1], [1, 2]]}, "does"),
        ("test_batch", ["no", "dictionary"], "cannot be read as a CIFAR batch"),
        ("batches.meta", {b"label_names": 10}, "does not name 10 classes"),
        ("batches.meta", {b"label_names": [b"\xff"] * 10}, "does not name 10 classes"),
        ("batches.meta", {}, "does not name 10 classes"),
    ],
)
def test_cifar_with_contents_that_do_not_fit(tmp_path, file, contents, message):
    write_cifar10(tmp_path / "cifar-10-batches-py")
    data.load("cifar10", data_dir=tmp_path)
    (tmp_path / "cifar-10-batches-py" / file).write_bytes(pickle.dumps(contents))
    refused("cifar10", tmp_path, f"cifar-10-batches-py/{file}", message)


def test_an_archive_that_is_cut_is_named(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-py")
    archive = tmp_path / "made" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    whole = archive.read_bytes()
    for contents in (b"", b"text", whole[: len(whole) // 2]):
        archive.write_bytes(contents)
        refused("cifar10", archive.parent, archive.name, "cannot be unpacked: ")
        for path in (archive.parent / "cifar-10-batches-py").glob("*"):
            path.unlink()
