"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017): 28x28 gray images.

60,000 train and 10,000 test each, in the files that Keras downloads.
"""

import contextlib
import gzip
import pathlib

import numpy as np

from data.dataset import Dataset
from data.download import default_data_dir, fetch
from data.source import ArraySource, DataError

_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
_MNIST_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
# File and published MD5, by split: images, labels.
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


def mnist(data_dir: pathlib.Path | None) -> Dataset:
    """Handwritten digits. `data_dir` has, or gets, `mnist.npz`."""
    data_dir = data_dir or default_data_dir()
    path = fetch("mnist", data_dir, "mnist.npz", url=_URL + "mnist.npz", file_hash=_MNIST_SHA256)
    with _reading(path), np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    splits = {
        split: _source(arrays[f"x_{split}"], arrays[f"y_{split}"], path, path)
        for split in ("train", "test")
    }
    return Dataset(
        name="mnist",
        class_names=[str(digit) for digit in range(10)],
        splits=splits,
        mean=(0.1307,),
        std=(0.3081,),
        augment="crop:2",  # No flip: a mirrored 2 is not a 2.
    )


def _idx(path: pathlib.Path, header: int, shape: tuple[int, ...]) -> np.ndarray:
    """The bytes of an IDX file behind its header, in rows of a shape."""
    with _reading(path), gzip.open(path, "rb") as file:
        return np.frombuffer(file.read(), np.uint8, offset=header).reshape(-1, *shape)


def fashion_mnist(data_dir: pathlib.Path | None) -> Dataset:
    """Pictures of clothes. `data_dir` has, or gets, `fashion-mnist/` with the four IDX files."""
    folder = (data_dir or default_data_dir()) / "fashion-mnist"
    splits = {}
    for split, files in _FASHION_FILES.items():
        images, labels = (
            fetch("fashion_mnist", folder, file, url=_URL + file, file_hash=md5)
            for file, md5 in files
        )
        pixels, classes = _idx(images, 16, (28, 28)), _idx(labels, 8, ())
        splits[split] = _source(pixels, classes, images, labels)
    return Dataset(
        name="fashion_mnist",
        class_names=_FASHION_CLASSES,
        splits=splits,
        mean=(0.2860,),
        std=(0.3530,),
        augment="crop:2,flip",
    )
