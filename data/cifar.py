"""CIFAR-10 and CIFAR-100: 32x32 colour images (Krizhevsky 2009), 50,000 train and 10,000 test.

Read from the published "python version". Its batches are pickles, so they go through an unpickler
that can make arrays and nothing else.
"""

import dataclasses
import pathlib
import pickle
import tarfile
from collections.abc import Sequence

import numpy as np

from data.dataset import Dataset
from data.download import default_data_dir, fetch
from data.source import ArraySource, DataError


@dataclasses.dataclass(frozen=True)
class _Published:
    """What is published, and how it is laid out."""

    folder: str
    archive: str
    sha256: str
    train: tuple[str, ...]
    test: str
    meta: str
    names_key: str
    labels_key: str
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def url(self) -> str:
        return f"https://www.cs.toronto.edu/~kriz/{self.archive}"


# The means and standard deviations are those of the train split's pixels.
_CIFAR10 = _Published(
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    train=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test="test_batch",
    meta="batches.meta",
    names_key="label_names",
    labels_key="labels",
    classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
_CIFAR100 = _Published(
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    train=("train",),
    test="test",
    meta="meta",
    names_key="fine_label_names",
    labels_key="fine_labels",
    classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


class _ArrayUnpickler(pickle.Unpickler):
    """Makes numpy arrays, strings, numbers, lists and dictionaries; refuses all else."""

    _ALLOWED = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )

    def find_class(self, module, name):
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _unpickle(path: pathlib.Path) -> dict:
    """The dictionary in a batch file, its keys as strings."""
    try:
        with path.open("rb") as file:
            batch = _ArrayUnpickler(file, encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: batch[key] for key in batch}
    except FileNotFoundError:
        raise DataError(f"{path} is missing; unpack the published archive again") from None
    except Exception as error:  # A damaged pickle can raise nearly anything.
        raise DataError(f"{path} cannot be read as a CIFAR batch: {error}") from error


def _read(path: pathlib.Path, published: _Published) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, uint8 [n, 3072], red before green before blue, and labels, integers [n]."""
    batch = _unpickle(path)
    pixels, labels = batch.get("data"), batch.get(published.labels_key, ())
    try:
        labels = np.asarray(labels)
    except ValueError:  # Lists of unequal lengths.
        labels = np.zeros(0)
    good = (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and labels.ndim == 1
        and len(labels) > 0
        and pixels.shape == (len(labels), 3 * 32 * 32)
        and labels.dtype.kind in "iu"
        and labels.min() >= 0
        and labels.max() < published.classes
    )
    if not good:
        raise DataError(
            f"{path} does not hold rows of 3,072 uint8 pixels with labels "
            f"from 0 to {published.classes - 1}"
        )
    return pixels, labels


def _source(batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> ArraySource:
    """The examples of batches as `_read` returns them."""
    rows, labels = zip(*batches, strict=True)
    images = np.empty((sum(map(len, rows)), 32 * 32, 3), np.uint8)
    start = 0
    for pixels in rows:
        # Each value is written once, to its place: 0.1 s of CPU time for CIFAR-10, and 0.5 s to
        # transpose the batches and to join them.
        stop = start + len(pixels)
        np.stack(np.split(pixels, 3, axis=1), axis=-1, out=images[start:stop])
        start = stop
    return ArraySource(images.reshape(-1, 32, 32, 3), np.concatenate(labels))


def _class_names(path: pathlib.Path, published: _Published) -> list[str]:
    names = _unpickle(path).get(published.names_key)
    names = names if isinstance(names, list) else []
    names = [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]
    if len(set(map(str, names))) != published.classes or len(names) != published.classes:
        raise DataError(f"{path} does not name {published.classes} classes")
    return [str(name) for name in names]


def _find(dataset: str, published: _Published, data_dir: pathlib.Path) -> pathlib.Path:
    """The directory that holds the batches: found, or unpacked from the archive."""
    # The last is where Keras itself unpacks.
    kept_by_keras = data_dir / f"{published.folder}-target" / published.folder
    for folder in (data_dir, data_dir / published.folder, kept_by_keras):
        if (folder / published.meta).exists() or (folder / published.train[0]).exists():
            return folder
    archive = fetch(
        dataset,
        data_dir,
        published.archive,
        url=published.url,
        file_hash=published.sha256,
        instead=f", or its unpacked {published.folder},",
    )
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(data_dir, filter="data")
    except Exception as error:  # Damaged compression raises errors of several modules.
        raise DataError(f"{archive} cannot be unpacked: {error}") from error
    return data_dir / published.folder


def _load(dataset: str, published: _Published, data_dir: pathlib.Path | None) -> Dataset:
    folder = _find(dataset, published, data_dir or default_data_dir())
    names = _class_names(folder / published.meta, published)
    train = [_read(folder / file, published) for file in published.train]
    return Dataset(
        name=dataset,
        class_names=names,
        splits={
            "train": _source(train),
            "test": _source([_read(folder / published.test, published)]),
        },
        mean=published.mean,
        std=published.std,
        augment="crop:4,flip",  # He et al. 2015, section 4.2.
    )


def cifar10(data_dir: pathlib.Path | None) -> Dataset:
    """Ten classes. `data_dir` has, or gets, the archive or the unpacked `cifar-10-batches-py`."""
    return _load("cifar10", _CIFAR10, data_dir)


def cifar100(data_dir: pathlib.Path | None) -> Dataset:
    """A hundred fine classes. `data_dir` has, or gets, the archive or `cifar-100-python`."""
    return _load("cifar100", _CIFAR100, data_dir)
