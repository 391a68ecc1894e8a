"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017): 28x28 gray images.

60,000 train and 10,000 test each, in the files that Keras downloads, or those that torchvision has
downloaded to the same directory.
"""

import contextlib
import gzip
import pathlib

import numpy as np

from data.dataset import Dataset
from data.download import default_data_dir, fetch, published
from data.source import ArraySource, DataError

_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
_MNIST_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
# File and MD5, by split: images, labels. Those of MNIST are the published files after unpacking, as
# torchvision leaves them; those of Fashion-MNIST are as published.
_MNIST_FILES = {
    "train": (
        ("train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb"),
        ("train-labels-idx1-ubyte", "a25bea736e30d166cdddb491f175f624"),
    ),
    "test": (
        ("t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea"),
        ("t10k-labels-idx1-ubyte", "27ae3e4e09519cfbb04c329615203637"),
    ),
}
_FASHION_FILES = {
    "train": (
        ("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        ("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
    ),
    "test": (
        ("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
        ("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
    ),
}
_FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def _source(
    images: np.ndarray, labels: np.ndarray, images_path: pathlib.Path, labels_path: pathlib.Path
) -> ArraySource:
    shape = (len(images), 28, 28) if images.ndim else None
    if not images.size or images.dtype != np.uint8 or images.shape != shape:
        raise DataError(f"{images_path} does not hold uint8 images of 28x28; remove it")
    good = labels.shape == (len(images),) and labels.dtype.kind in "iu"
    if not good or labels.min() < 0 or labels.max() > 9:
        raise DataError(
            f"{labels_path} does not hold a label from 0 to 9 for each of {len(images):,} images; "
            "remove it"
        )
    return ArraySource(images[..., None], labels)


@contextlib.contextmanager
def _reading(path: pathlib.Path):
    """Turns whatever reading a damaged file raises into one line that names it."""
    try:
        yield
    except Exception as error:
        raise DataError(f"{path} cannot be read: {error}; remove it") from error


def _idx_source(images: pathlib.Path, labels: pathlib.Path) -> ArraySource:
    return _source(_idx(images, 16, (28, 28)), _idx(labels, 8, ()), images, labels)


def _idx(path: pathlib.Path, header: int, shape: tuple[int, ...]) -> np.ndarray:
    """The bytes of an IDX file behind its header, in rows of a shape."""
    with _reading(path), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        return np.frombuffer(file.read(), np.uint8, offset=header).reshape(-1, *shape)


def mnist(data_dir: pathlib.Path | None) -> Dataset:
    """Handwritten digits. `data_dir` has, or gets, `mnist.npz`, or has `MNIST/raw/`."""
    data_dir = data_dir or default_data_dir()
    raw = data_dir / "MNIST" / "raw"
    if raw.is_dir() and not (data_dir / "mnist.npz").exists():
        splits = {
            split: _idx_source(published(raw / images, md5), published(raw / labels, labels_md5))
            for split, ((images, md5), (labels, labels_md5)) in _MNIST_FILES.items()
        }
    else:
        splits = _npz(data_dir)
    return Dataset(
        name="mnist",
        class_names=[str(digit) for digit in range(10)],
        splits=splits,
        mean=(0.1307,),
        std=(0.3081,),
        augment="crop:2",  # No flip: a mirrored 2 is not a 2.
    )


def _npz(data_dir: pathlib.Path) -> dict[str, ArraySource]:
    path = fetch(
        *("mnist", data_dir, "mnist.npz"),
        url=_URL + "mnist.npz",
        file_hash=_MNIST_SHA256,
        instead=" or the MNIST/raw of torchvision",
    )
    with _reading(path), np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    return {
        split: _source(arrays[f"x_{split}"], arrays[f"y_{split}"], path, path)
        for split in ("train", "test")
    }


def fashion_mnist(data_dir: pathlib.Path | None) -> Dataset:
    """Pictures of clothes.

    `data_dir` has, or gets, `fashion-mnist/` with the four IDX files, or has `FashionMNIST/raw/`.
    """
    data_dir = data_dir or default_data_dir()
    folder, raw = data_dir / "fashion-mnist", data_dir / "FashionMNIST" / "raw"
    folder = raw if raw.is_dir() and not folder.exists() else folder
    splits = {}
    for split, files in _FASHION_FILES.items():
        images, labels = (
            fetch("fashion_mnist", folder, file, url=_URL + file, file_hash=md5)
            for file, md5 in files
        )
        splits[split] = _idx_source(images, labels)
    return Dataset(
        name="fashion_mnist",
        class_names=_FASHION_CLASSES,
        splits=splits,
        mean=(0.2860,),
        std=(0.3530,),
        augment="crop:2,flip",
    )
