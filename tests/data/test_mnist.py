import gzip
import hashlib
import pickle
import sys

import numpy as np
import pytest

import data
from data.source import DataError
from tests.data.helpers import fetch, pixels


@pytest.fixture
def unchecked(monkeypatch):
    """Files are taken as they are."""

    def fetch(dataset, folder, file, **kwargs):
        return folder / file

    monkeypatch.setattr(sys.modules["data.mnist"], "fetch", fetch)


def refused(name, data_dir, file, message):
    with pytest.raises(DataError) as caught:
        data.load(name, data_dir=data_dir)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(f"{data_dir / file} {message}")


def test_mnist(tmp_path, monkeypatch):
    path = tmp_path / "mnist.npz"
    arrays = {
        f"{a}_{s}": pixels(30, 28, 28) if a == "x" else np.arange(30) % 10
        for a in "xy"
        for s in ("train", "test")
    }
    np.savez(path, **arrays)
    monkeypatch.setattr(sys.modules["data.mnist"], "fetch", lambda *args, **kwargs: path)
    dataset = data.load("mnist", data_dir=tmp_path)
    assert dataset.image_shape == (28, 28, 1)
    np.testing.assert_array_equal(
        fetch(dataset.splits["train"], [4])[0, ..., 0], arrays["x_train"][4]
    )
    assert dataset.augment == "crop:2"


def test_fashion_mnist(tmp_path, monkeypatch):
    def make(dataset, folder, file, **kwargs):
        size = 12 if file.startswith("train") else 6
        body = pixels(size, 28, 28) if "images" in file else np.arange(size, dtype=np.uint8) % 10
        header = bytes(16 if "images" in file else 8)
        (tmp_path / file).write_bytes(gzip.compress(header + body.tobytes()))
        return tmp_path / file

    monkeypatch.setattr(sys.modules["data.mnist"], "fetch", make)
    dataset = data.load("fashion_mnist", data_dir=tmp_path)
    assert {k: len(s.labels) for k, s in dataset.splits.items()} == {"train": 12, "test": 6}
    images = fetch(dataset.splits["test"], range(6))
    np.testing.assert_array_equal(images[..., 0], pixels(6, 28, 28))
    assert dataset.augment == "crop:2,flip"


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
def test_mnist_with_contents_that_do_not_fit(tmp_path, unchecked, changes, message):
    arrays = {k: v for k, v in (mnist_arrays() | changes).items() if v is not None}
    np.savez(tmp_path / "mnist.npz", **arrays)
    refused("mnist", tmp_path, "mnist.npz", message)


def test_mnist_that_is_damaged(tmp_path, unchecked):
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
    ids=range(8),
)
def test_fashion_mnist_that_is_damaged(tmp_path, unchecked, file, contents, message):
    write_fashion(tmp_path / "fashion-mnist")
    data.load("fashion_mnist", data_dir=tmp_path)
    (tmp_path / "fashion-mnist" / file).write_bytes(contents)
    refused("fashion_mnist", tmp_path, f"fashion-mnist/{file}", message)


def idx(body, header):
    return bytes(header) + np.asarray(body, np.uint8).tobytes()


@pytest.fixture
def torchvision(tmp_path, monkeypatch):
    """A directory as torchvision leaves it: the IDX files of both, each as published."""
    for folder, table in (("MNIST", "_MNIST_FILES"), ("FashionMNIST", "_FASHION_FILES")):
        raw = tmp_path / folder / "raw"
        raw.mkdir(parents=True)
        files = {"train": [], "test": []}
        for split, prefix, size in (("train", "train", 20), ("test", "t10k", 10)):
            for kind, body in (
                ("images-idx3", idx(pixels(size, 28, 28), 16)),
                ("labels-idx1", idx(np.arange(size) % 10, 8)),
            ):
                name = f"{prefix}-{kind}-ubyte" + (".gz" if folder == "FashionMNIST" else "")
                contents = gzip.compress(body) if name.endswith(".gz") else body
                (raw / name).write_bytes(contents)
                files[split].append((name, hashlib.md5(contents).hexdigest()))
        monkeypatch.setattr(sys.modules["data.mnist"], table, files)
    return tmp_path


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_files_of_torchvision(torchvision, name):
    dataset = data.load(name, data_dir=torchvision)
    assert {k: len(s.labels) for k, s in dataset.splits.items()} == {"train": 20, "test": 10}
    images = fetch(dataset.splits["train"], range(20))
    np.testing.assert_array_equal(images[..., 0], pixels(20, 28, 28))
    np.testing.assert_array_equal(dataset.splits["test"].labels, range(10))


def test_mnist_npz_is_preferred(torchvision, unchecked):
    np.savez(torchvision / "mnist.npz", **mnist_arrays(30))
    assert len(data.load("mnist", data_dir=torchvision).splits["train"].labels) == 30


def test_files_of_torchvision_that_are_not_as_published(torchvision):
    path = torchvision / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"1")
    file = "MNIST/raw/t10k-images-idx3-ubyte"
    message = f"is not the published file; restore it, or remove {path.parent}"
    refused("mnist", torchvision, file, message)
    path.unlink()
    refused("mnist", torchvision, file, "cannot be read: No such file or directory")
