"""What is known of the image files of a tree from an earlier start, so that they need not be read.

It is in `indexes/` beside Keras' datasets, and is only ever a shortcut: one that is missing,
damaged or of another version is made anew, and one that cannot be written is done without.
"""

import contextlib
import hashlib
import os
import pathlib
import tempfile
import time

import numpy as np
import PIL
import tensorflow as tf

from data.download import default_data_dir
from data.listing import FACTS, Listing
from data.source import DataError

# Smaller trees are read in a second.
MIN_FILES = 1000
# Files that have just been written are not remembered: they may be written again without a change
# of size or time, as file systems count time in steps of up to two seconds.
_SETTLED = 2 * 10**9
# Of the format, and of what reads headers and decodes.
_VERSION = f"1 {tf.__version__} {PIL.__version__}"


def forget(path: str | os.PathLike) -> None:
    """Forgets a file that turned out to be damaged, so that the next start reads it again.

    Nothing happens if its tree has no index.

    Args:
        path: of the file, in a directory of the root of its tree.
    """
    directory, name = os.path.split(path)
    root, directory = os.path.split(directory)
    Index(pathlib.Path(root)).forget(os.fsencode(os.path.join(directory, name)))


class Index:
    """The index of a tree. Make it before the files are read.

    Args:
        root: the directory of the tree. Its real path names the index.
    """

    def __init__(self, root: pathlib.Path):
        self._made = time.time_ns()
        name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:40]
        try:
            self.path = default_data_dir() / "indexes" / f"{name}.npz"
        except DataError:  # There is no home directory.
            self.path = None
        self._names, self._facts = self._load()

    def recall(self, files: Listing) -> None:
        """Completes the facts of files whose name, size and modification time are as they were."""
        if not len(self._names):
            return
        places = np.searchsorted(self._names, files.names)
        places = np.minimum(places, len(self._names) - 1)
        known = self._facts[places]
        same = self._names[places] == files.names
        for field in ("size", "time"):
            same &= known[field] == files.facts[field]
        files.facts[same] = known[same]

    def remember(self, files: Listing) -> None:
        """Writes what is known of the files, unless it is what has been read."""
        keep = (files.facts["kind"] > 0) & (files.facts["time"] < self._made - _SETTLED)
        names, facts = files.names[keep], files.facts[keep]
        order = np.argsort(names)
        names, facts = names[order], facts[order]
        if np.array_equal(names, self._names) and np.array_equal(facts, self._facts):
            return
        self._write(names, facts)

    def forget(self, name: bytes) -> None:
        """Removes a file, whose path from the root is given."""
        keep = self._names != name
        if not keep.all():
            self._write(self._names[keep], self._facts[keep])

    def _write(self, names: np.ndarray, facts: np.ndarray) -> None:
        with contextlib.suppress(OSError):
            if self.path is not None:
                _write(self.path, version=np.array(_VERSION), names=names, facts=facts)

    def _load(self) -> tuple[np.ndarray, np.ndarray]:
        if self.path is None or not self.path.is_file():  # Opening a pipe would block forever.
            return np.zeros(0, np.bytes_), np.zeros(0, FACTS)
        try:
            # Without pickle, which could run code.
            with np.load(self.path, allow_pickle=False) as file:
                version, names, facts = file["version"], file["names"], file["facts"]
            sound = names.dtype.kind == "S" and facts.dtype == FACTS
            if version == _VERSION and sound and names.shape == facts.shape == (len(names),):
                return names, facts
        except Exception:  # Damaged files make NumPy raise nearly anything.
            pass
        return np.zeros(0, np.bytes_), np.zeros(0, FACTS)


def _write(path: pathlib.Path, **arrays: np.ndarray) -> None:
    """Writes arrays, whole or not at all, while other processes may do so, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with open(handle, "wb") as file:
            np.savez(file, **arrays)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
