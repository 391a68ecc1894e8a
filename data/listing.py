"""The image files of a tree: which there are, found in one pass over its directories."""

import dataclasses
import os
import pathlib
import stat
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from multiprocessing.pool import ThreadPool

import numpy as np

from data.source import DataError, DataWarning, printable

SUFFIXES = (".jpg", ".jpeg", ".png")
AGAINST_EMPTY_CLASSES = "add some, or remove the class, from every split if there are several"
THREADS = 16  # To list a directory or read a header is mostly to wait for the file system.
_SUFFIXES = tuple(suffix.encode() for suffix in SUFFIXES)
_SHOWN = 5  # Suffixes, of many.
# What is expected beside images, and is left out without a word.
_OTHERS = (
    *(b".csv", b".db", b".html", b".ini", b".json", b".jsonl", b".log", b".md", b".toml", b".tsv"),
    *(b".txt", b".xml", b".yaml", b".yml"),
)

# What is known of a file: size in bytes and modification time in nanoseconds; from its header (see
# `data/headers.py`), kind, width, height and orientation, of which kind is 0 as long as it is not
# known; and how it has been decoded without an error (see `data/files.py`), or 0.
FACTS = np.dtype(
    {
        "names": ["size", "time", "width", "height", "kind", "orientation", "decoded"],
        "formats": ["<i8", "<i8", "<i4", "<i4", "u1", "u1", "u1"],
    }
)


@dataclasses.dataclass(frozen=True)
class Listing:
    """Files of a tree. They are columns, since a million objects would take a gigabyte.

    Attributes:
        root: the directory that they are under.
        names: their paths from there, as bytes [n].
        facts: what is known of each, `FACTS` [n].
    """

    root: pathlib.Path
    names: np.ndarray
    facts: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def path(self, number: int) -> str:
        """The path of a file."""
        return str(self.root / os.fsdecode(self.names[number]))

    def take(self, numbers: np.ndarray) -> "Listing":
        """Some of the files, which have a copy of the facts."""
        return Listing(self.root, self.names[numbers], self.facts[numbers])


@dataclasses.dataclass
class LeftOut:
    """What is beside the images in the directories of classes, and is not used.

    Attributes:
        suffixes: numbers of the files that may be images, by suffix in lower case.
        directories: number of the directories.
        example: the path of one of them.
    """

    suffixes: Counter[bytes] = dataclasses.field(default_factory=Counter)
    directories: int = 0
    example: bytes = b""

    def add(self, entry: os.DirEntry[bytes]) -> None:
        """Counts an entry that is not named like an image, unless it is hidden or expected."""
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith(b".") or suffix in _OTHERS:
            return
        if entry.is_dir():
            self.directories += 1
        else:
            self.suffixes[suffix] += 1
        self.example = self.example or entry.path


def warn_of_left_out(root: pathlib.Path, parts: Iterable[LeftOut]) -> None:
    """Warns of what is left out of a tree, in one line, if there is anything.

    Warns:
        DataWarning: how many files of which suffixes, and how many directories.
    """
    parts = [part for part in parts if part.example]
    suffixes = sum((part.suffixes for part in parts), Counter())
    directories = sum(part.directories for part in parts)
    kinds = [
        f"{count:,} {os.fsdecode(suffix) or 'without a suffix'}"
        for suffix, count in sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))
    ]
    kinds = [*kinds[:_SHOWN], "others"] if len(kinds) > _SHOWN else kinds
    number = suffixes.total()
    files = f"{number:,} file{'s' * (number != 1)} ({', '.join(kinds)})" if number else ""
    nested = f"{directories:,} director{'y' if directories == 1 else 'ies'}" if directories else ""
    if parts:
        warnings.warn(
            printable(
                f"{root}: left out {' and '.join(filter(None, (files, nested)))} in class "
                f"directories, such as {os.fsdecode(parts[0].example)}; images are files "
                f"directly in a class directory that end in {', '.join(SUFFIXES)}"
            ),
            DataWarning,
            stacklevel=2,
        )


def class_directories(root: pathlib.Path) -> list[bytes]:
    """The names of the directories and of links to directories under a root, sorted as bytes.

    Hidden ones are left out.

    Raises:
        DataError: an entry is a broken link or a link to a directory above it.
        OSError: the root cannot be read.
    """
    above = os.path.realpath(root)
    found = []
    with os.scandir(os.fsencode(root)) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            if entry.is_symlink():
                _check_link(root / os.fsdecode(entry.name), above)
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                found.append(entry.name)
    return sorted(found)


def _check_link(link: pathlib.Path, above: str) -> None:
    target = os.path.realpath(link)
    if not os.path.exists(link):
        raise DataError(f"{link} is a broken link; remove it")
    if os.path.isdir(target) and os.path.commonpath((target, above)) == target:
        raise DataError(f"{link} is a link to {target}, which contains it; remove it")


def list_images(
    root: pathlib.Path, directories: Sequence[bytes], *, skip: bool
) -> tuple[Listing, np.ndarray, list[str], list[LeftOut]]:
    """The files in some directories that are named like images, without hidden ones.

    Args:
        root: the directory that they are in.
        directories: their names.
        skip: leave out what is named like an image and is no regular file.

    Returns:
        The files, sorted by directory and name as bytes; the number of the directory of each, int32
        [n]; the paths that were skipped; and what else there is in each directory.

    Raises:
        DataError: a directory has nothing that is named like an image, or something that is no
            regular file.
        OSError: a directory cannot be read.
    """
    names, facts, labels, skipped, left_out = [], [], [], [], []
    with ThreadPool(min(THREADS, len(directories) or 1)) as pool:
        scan = pool.imap(_scan, (os.path.join(os.fsencode(root), name) for name in directories))
        for label, (directory, (found, known, others, beside)) in enumerate(
            zip(directories, scan, strict=True)
        ):
            path = root / os.fsdecode(directory)
            if not len(found) + len(others):
                raise DataError(
                    f"{path} has no images ({', '.join(SUFFIXES)}); {AGAINST_EMPTY_CLASSES}"
                )
            if others and not skip:
                file = path / os.fsdecode(others[0])
                raise DataError(
                    f"{file} is {_kind(file)}, not an image file; remove it, or start a new run "
                    "with --bad_images=skip"
                )
            names.append(np.strings.add(directory + b"/", found))
            facts.append(known)
            labels.append(np.full(len(found), label, np.int32))
            skipped += [str(path / os.fsdecode(name)) for name in others]
            left_out.append(beside)
    listing = Listing(root, np.concatenate(names), np.concatenate(facts))
    return listing, np.concatenate(labels), skipped, left_out


def _scan(directory: bytes) -> tuple[np.ndarray, np.ndarray, list[bytes], LeftOut]:
    """Names and facts of the files in a directory, names of what is no regular file, and the rest.

    Only what is named like an image is in the first three.
    """
    files, others, left_out = [], [], LeftOut()
    with os.scandir(directory) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(b".") or not name.lower().endswith(_SUFFIXES):
                left_out.add(entry)
                continue
            try:
                status = entry.stat()
            except OSError:  # A broken link, or one in a loop.
                others.append(name)
                continue
            if stat.S_ISREG(status.st_mode):  # Opening a pipe would block forever.
                files.append((name, status.st_size, status.st_mtime_ns))
            else:
                others.append(name)
    files.sort()
    facts = np.zeros(len(files), FACTS)
    if files:
        _, facts["size"], facts["time"] = zip(*files, strict=True)
    return np.array([name for name, *_ in files], np.bytes_), facts, sorted(others), left_out


def _kind(path: pathlib.Path) -> str:
    """What a path is that is not a regular file."""
    if os.path.isdir(path):
        return "a directory"
    if os.path.exists(path):
        return "a pipe or a device"
    return "a broken link" if os.path.islink(path) else "missing"
