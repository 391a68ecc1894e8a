"""Your own images: a directory of classes.

    flowers/train/daisy/1.jpg         or one tree,          flowers/daisy/1.jpg
    flowers/train/rose/2.png          which is split:       flowers/rose/2.png
    flowers/test/daisy/3.jpeg

The names of the class directories, sorted, are the classes. Symbolic links to files and to class
directories are followed, so a subset can be made of links. There may be a val/ beside train/: with
test/, it is the validation split; without, as in ImageNet, it is the test split.
"""

import dataclasses
import os
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from data.dataset import Dataset, split_by_class
from data.files import FileSource, open_files
from data.listing import (
    AGAINST_EMPTY_CLASSES,
    LeftOut,
    Listing,
    class_directories,
    list_images,
    warn_of_left_out,
)
from data.source import DataError, Source, Subset, printable

DEFAULT_IMAGE_SIZE = 64
TEST_FRACTION = 0.2
LARGE = 128  # Pixels from which on photographs are augmented as those of ImageNet are.
VAL_IS_TEST = (
    "is the test split, to be scored once; --val_fraction holds the validation split out of train"
)
VAL_IS_VAL = "is the validation split; nothing is held out of train"


def split_names(there: Collection[str]) -> dict[str, str]:
    """What each split of a dataset is called there, of those that are called train, val and test.

    Without test, val is the test split: it is what results are reported on, so the best checkpoint
    must not be chosen on it.
    """
    names = {name: name for name in ("train", "test", "val") if name in there}
    if "val" in names and "test" not in names:
        names["test"] = names.pop("val")
    return names


def _name(name: bytes) -> str:
    r"""The name of a file as UTF-8 whatever the locale is, with escapes such as `\xff`."""
    return name.decode("utf-8", "backslashreplace")


@dataclasses.dataclass(frozen=True)
class _Tree:
    """The files under a directory of classes.

    Attributes:
        root: the directory.
        class_names: sorted.
        files: the image files.
        labels: number of the class of each, int32.
        skipped: what is named like an image file and is none.
        left_out: what else there is in the directory of each class.
    """

    root: pathlib.Path
    class_names: list[str]
    files: Listing
    labels: np.ndarray
    skipped: list[str]
    left_out: list[LeftOut]


def _class_dirs(root: pathlib.Path) -> list[bytes]:
    """The names of the directories of the classes; raises DataError if there is none."""
    class_dirs = class_directories(root)
    if not class_dirs:
        raise DataError(
            f"{root} has no class directories; put images into {root}/<class>/, or move it away if "
            "its images have no labels"
        )
    return class_dirs


def _scan(root: pathlib.Path, *, skip: bool) -> _Tree:
    """What is under `root`/<class>/; anything but regular files is refused, or skipped."""
    class_dirs = _class_dirs(root)
    return _Tree(root, [_name(x) for x in class_dirs], *list_images(root, class_dirs, skip=skip))


def _open(
    tree: _Tree, image_shape: tuple[int, int, int], *, numbers: Sequence[int], skip: bool
) -> tuple[FileSource, tuple[pathlib.Path, ...]]:
    """The source of a tree whose classes have some numbers, and the files that were left out.

    Raises:
        DataError: a class has no file that can be decoded.
    """
    labels = np.asarray(numbers, np.int32)[tree.labels]
    source, bad = open_files(tree.files, labels, image_shape, skip=skip)
    for name, empty in zip(tree.class_names, ~np.isin(numbers, source.labels), strict=True):
        if empty:
            raise DataError(
                f"{tree.root / name} has no image that can be decoded; {AGAINST_EMPTY_CLASSES}"
            )
    return source, tuple(sorted(map(pathlib.Path, (*tree.skipped, *bad))))


def _layout(data_dir: pathlib.Path) -> dict[str, str]:
    """The directory of each split, by name; none if `data_dir` is one tree.

    Raises:
        DataError: some directories of splits are there and others are not.
    """
    there = [name for name in ("train", "val", "test") if (data_dir / name).is_dir()]
    names = split_names(there)
    found = " and ".join(f"{name}/" for name in there)
    if "train" in there and "test" not in names:
        raise DataError(
            f"{data_dir} has {found} but no test/ or val/; add one, or move the classes up"
        )
    if there and "train" not in there:
        if set(map(os.fsencode, there)) == set(_class_dirs(data_dir)):
            raise DataError(f"{data_dir} has {found} but no train/; add it, or move the classes up")
        return {}  # Classes of such names.
    return names


def folder(
    data_dir: pathlib.Path,
    *,
    image_size: int | None = None,
    channels: int = 3,
    bad_images: str = "error",
) -> Dataset:
    """The images under `data_dir`, as train/<class>/*, test/<class>/* and so on, or as <class>/*.

    One tree is split: a fifth of every class, always the same, is the test split.

    Args:
        data_dir: the directory.
        image_size: height and width in pixels that images are scaled to; by default 64.
        channels: 3 for RGB, 1 for gray.
        bad_images: "error" refuses files whose headers cannot be read; "skip" decodes every file
            and leaves out those that cannot be decoded.

    Raises:
        DataError: a directory is missing or empty, splits have different classes, a link is broken
            or a loop, what is named like an image is no file, a file cannot be decoded, or with
            "skip" a class has no image that can be.

    Warns:
        DataWarning: there are files of other names or directories in the directories of classes.
    """
    size, skip = image_size or DEFAULT_IMAGE_SIZE, bad_images == "skip"
    names = _layout(data_dir)
    trees = {
        split: _scan(data_dir / name, skip=skip) for split, name in (names or {"": ""}).items()
    }
    class_names = next(iter(trees.values())).class_names
    for split, tree in trees.items():
        differing = ", ".join(sorted(set(class_names) ^ set(tree.class_names)))
        if differing:
            raise DataError(
                f"train/ and {names[split]}/ in {data_dir} differ in their classes: {differing}; "
                "each needs images of all of them"
            )
    warn_of_left_out(data_dir, (part for tree in trees.values() for part in tree.left_out))
    numbers = range(len(class_names))
    opened = {
        split: _open(tree, (size, size, channels), numbers=numbers, skip=skip)
        for split, tree in trees.items()
    }
    splits = {split: source for split, (source, _) in opened.items()}
    note = ""
    if not names:
        splits = split_off_test(splits[""])
    elif "val" in names.values():
        note = f"{printable(str(data_dir / 'val'))} {VAL_IS_VAL if 'val' in names else VAL_IS_TEST}"
    return Dataset(
        name=printable(_name(os.fsencode(data_dir.resolve().name))),
        class_names=class_names,
        splits=splits,
        **photographs(size, channels),
        skipped=tuple(path for _, skipped in opened.values() for path in skipped),
        note=note,
    )


def split_off_test(whole: Source) -> dict[str, Subset]:
    """A train and a test split; a fifth of every class, always the same, is the test split."""
    parts = split_by_class(whole.labels, TEST_FRACTION)
    return dict(zip(("train", "test"), (Subset(whole, part) for part in parts), strict=True))


def photographs(size: int, channels: int) -> dict[str, Any]:
    """How photographs of some size are normalized and augmented: fields of a `Dataset`."""
    return {
        # Those of ImageNet, which photographs come close to.
        "mean": (0.485, 0.456, 0.406) if channels == 3 else (0.449,),
        "std": (0.229, 0.224, 0.225) if channels == 3 else (0.226,),
        "augment": f"crop:{size // 8},flip" if size < LARGE else "random_resized_crop,flip",
        "earlier_augment": f"crop:{size // 8},flip",
    }


def folder_split(
    data_dir: pathlib.Path,
    split: str,
    *,
    class_names: Sequence[str],
    image_shape: tuple[int, int, int],
    bad_images: str = "error",
) -> tuple[FileSource, tuple[pathlib.Path, ...]]:
    """Images to score a net with: data_dir/<split>/<class>/* if there is such a directory,
    otherwise data_dir/<class>/*.

    Args:
        data_dir: the directory.
        split: "train", "val" or "test", which is val/ if there are train/ and val/ only.
        class_names: what the net knows, in the order of its outputs. The directory may have some.
        image_shape: what the net takes.
        bad_images: as for `folder`.

    Returns:
        The source, with labels that are indices into `class_names`, and the files left out.

    Raises:
        DataError: as for `folder`, or a class is none of `class_names`.
    """
    height, width, _ = image_shape
    if height != width:
        raise DataError(f"images of a folder are square, and the net takes {height}x{width}")
    root = data_dir / split
    if not root.is_dir():
        is_tree = "train" in class_names or not (data_dir / "train").is_dir()
        root = data_dir / ("" if is_tree else _layout(data_dir).get(split, ""))
        if not is_tree and root == data_dir:
            raise DataError(
                f"{data_dir} has train/ but no {split}/; add it, or move the classes up"
            )
    skip = bad_images == "skip"
    unknown = [name for name in map(_name, _class_dirs(root)) if name not in class_names]
    if unknown:
        raise DataError(
            f"{root} has classes that the net does not know: {', '.join(unknown)}; it knows "
            f"{', '.join(class_names)}"
        )
    tree = _scan(root, skip=skip)
    warn_of_left_out(root, tree.left_out)
    numbers = [list(class_names).index(name) for name in tree.class_names]
    return _open(tree, image_shape, numbers=numbers, skip=skip)
