"""Finds image files: named ones, those in directories, and those that a pattern matches."""

import glob
import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from data.listing import SUFFIXES
from data.source import DataError

STANDARD_INPUT = "-"


def find_images(
    arguments: Iterable[str], standard_input: BinaryIO | None = None
) -> Iterator[str | DataError]:
    r"""Paths of image files, in the order of the arguments, each as often as it is meant.

    Directories are listed only when they are reached, so that the first files can be read before
    the last are known.

    Args:
        arguments: each is one of

            - the path of a file, whatever its name, or of a file that is missing;
            - the path of a directory: the files below it whose names end as those of images in the
              dataset "folder", in the order of their names, without hidden ones. Links are
              followed, and no directory is listed twice;
            - a pattern, if there is no file of that name: the files that it matches, sorted,
              whatever their names. `*`, `?` and `[...]` match within a name, `**` any number of
              directories;
            - "-": paths of files and directories, one per line of `standard_input`.
        standard_input: the stream for "-". A line ends with `\n` and is as the file system has it,
            in UTF-8 or not.

    Yields:
        A path, or an error in place of a directory, a pattern or a stream that yields none.
    """
    for argument in arguments:
        if argument == STANDARD_INPUT and standard_input is not None:
            yield from _listed(standard_input)
        elif not os.path.lexists(argument) and any(c in argument for c in "*?["):
            yield from _matching(argument)
        else:
            yield from _at(argument)


def _listed(lines: Iterable[bytes]) -> Iterator[str | DataError]:
    found = False
    for line in lines:
        path = os.fsdecode(line.removesuffix(b"\n"))
        if path:
            found = True
            yield from _at(path)
    if not found:
        yield DataError("standard input has no paths; write one per line")


def _matching(pattern: str) -> Iterator[str | DataError]:
    matches = {path for path in glob.iglob(pattern, recursive=True) if not os.path.isdir(path)}
    if not matches:
        yield DataError(f"{pattern} matches no file")
    yield from sorted(matches, key=os.fsencode)


def _at(path: str) -> Iterator[str | DataError]:
    if not os.path.isdir(path):
        yield path
        return
    found = False
    for image in _below(path):
        found = True
        yield image
    if not found:
        yield DataError(f"{path} has no images ({', '.join(SUFFIXES)})")


def _below(root: str) -> Iterator[str | DataError]:
    """The image files below a directory, in the order of their names at each level."""
    waiting, seen = [root], set()
    while waiting:
        path = waiting.pop()
        if not os.path.isdir(path):
            if path.lower().endswith(SUFFIXES):
                yield path
            continue
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:  # As by a link to a directory above.
                continue
            seen.add((status.st_dev, status.st_ino))
            names = [name for name in os.listdir(path) if not name.startswith(".")]
        except OSError as error:
            yield DataError(f"{path} cannot be read: {error.strerror}")
            continue
        names.sort(key=os.fsencode, reverse=True)
        waiting += [os.path.join(path, name) for name in names]
