"""Your own images: a directory of classes.

    flowers/train/daisy/1.jpg         or one tree,          flowers/daisy/1.jpg
    flowers/train/rose/2.png          which is split:       flowers/rose/2.png
    flowers/test/daisy/3.jpeg

The names of the class directories, sorted, are the classes. Symbolic links to files and to class
directories are followed, so a subset can be made of links.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from data.dataset import Dataset, split_by_class
from data.files import FileSource, open_files
from data.source import DataError, Subset, printable

SUFFIXES = (".jpg", ".jpeg", ".png")
DEFAULT_IMAGE_SIZE = 64
TEST_FRACTION = 0.2


def _name(path: pathlib.Path) -> str:
    r"""The name of a file as UTF-8 whatever the locale is, with escapes such as `\xff`."""
    return os.fsencode(path.name).decode("utf-8", "backslashreplace")


def _by_name(paths) -> list[pathlib.Path]:
    """The paths without hidden ones, in an order that does not depend on the locale."""
    visible = (path for path in paths if not path.name.startswith("."))
    return sorted(visible, key=lambda path: os.fsencode(path.name))


@dataclasses.dataclass(frozen=True)
class _Tree:
    """The files under a directory of classes.

    Attributes:
        root: the directory.
        class_names: sorted.
        paths: the image files.
        labels: number of the class of each.
        skipped: what is named like an image file and is none.
    """

    root: pathlib.Path
    class_names: list[str]
    paths: list[pathlib.Path]
    labels: list[int]
    skipped: list[pathlib.Path]


def _class_dirs(root: pathlib.Path) -> list[pathlib.Path]:
    """The directories of the classes.

    Raises:
        DataError: there is none, or one is a broken link or a link to a directory above it.
    """
    entries = _by_name(root.iterdir())
    above = os.path.realpath(root)
    for entry in entries:
        if not entry.is_symlink():
            continue
        target = os.path.realpath(entry)
        if not os.path.exists(entry):
            raise DataError(f"{entry} is a broken link; remove it")
        if os.path.isdir(target) and os.path.commonpath((target, above)) == target:
            raise DataError(f"{entry} is a link to {target}, which contains it; remove it")
    class_dirs = [path for path in entries if os.path.isdir(path)]
    if not class_dirs:
        raise DataError(f"{root} has no class directories; put images into {root}/<class>/")
    return class_dirs


def _kind(path: pathlib.Path) -> str:
    """What a path is that is not a regular file."""
    if os.path.isdir(path):
        return "a directory"
    if os.path.exists(path):
        return "a pipe or a device"
    return "a broken link" if os.path.islink(path) else "missing"


def _scan(root: pathlib.Path, *, skip: bool) -> _Tree:
    """What is under `root`/<class>/; anything but regular files is refused, or skipped."""
    class_dirs = _class_dirs(root)
    tree = _Tree(root, [_name(path) for path in class_dirs], [], [], [])
    for label, class_dir in enumerate(class_dirs):
        files = [x for x in _by_name(class_dir.iterdir()) if x.suffix.lower() in SUFFIXES]
        if not files:
            raise DataError(
                f"{class_dir} has no images ({', '.join(SUFFIXES)}); add some or remove it"
            )
        for file in files:
            if os.path.isfile(file):  # Opening a pipe would block forever.
                tree.paths.append(file)
                tree.labels.append(label)
            elif skip:
                tree.skipped.append(file)
            else:
                raise DataError(
                    f"{file} is {_kind(file)}, not an image file; remove it, or start a new run "
                    "with --bad_images=skip"
                )
    return tree


def _open(
    tree: _Tree, image_shape: tuple[int, int, int], *, skip: bool
) -> tuple[FileSource, list[pathlib.Path]]:
    """The source of a tree, and the files that were left out.

    Raises:
        DataError: a class has no file that can be decoded.
    """
    source, bad = open_files(tree.paths, tree.labels, image_shape, skip=skip)
    counts = np.bincount(source.labels, minlength=len(tree.class_names))
    for name, count in zip(tree.class_names, counts, strict=True):
        if not count:
            raise DataError(
                f"{tree.root / name} has no image that can be decoded; add some or remove it"
            )
    return source, sorted([*tree.skipped, *bad])


def folder(
    data_dir: pathlib.Path,
    *,
    image_size: int | None = None,
    channels: int = 3,
    bad_images: str = "error",
) -> Dataset:
    """The images under `data_dir`, as train/<class>/* and test/<class>/* or as <class>/*.

    One tree is split: a fifth of every class, always the same, is the test split.

    Args:
        data_dir: the directory.
        image_size: height and width in pixels that images are scaled to; by default 64.
        channels: 3 for RGB, 1 for gray.
        bad_images: "error" refuses files whose headers cannot be read; "skip" decodes every file
            and leaves out those that cannot be decoded.

    Raises:
        DataError: a directory is missing or empty, train and test have different classes, a link is
            broken or a loop, what is named like an image is no file, a file cannot be decoded, or
            with "skip" a class has no image that can be.
    """
    size, skip = image_size or DEFAULT_IMAGE_SIZE, bad_images == "skip"
    names = ("train", "test") if (data_dir / "train").is_dir() else ("",)
    if "test" in names and not (data_dir / "test").is_dir():
        raise DataError(f"{data_dir} has train/ but no test/; add it, or move the classes up")
    trees = [_scan(data_dir / name, skip=skip) for name in names]
    class_names = trees[0].class_names
    differing = ", ".join(sorted(set(class_names) ^ set(trees[-1].class_names)))
    if differing:
        raise DataError(f"train/ and test/ in {data_dir} differ in their classes: {differing}")
    opened = [_open(tree, (size, size, channels), skip=skip) for tree in trees]
    sources = [source for source, _ in opened]
    if len(sources) == 1:
        (whole,) = sources
        sources = [Subset(whole, part) for part in split_by_class(whole.labels, TEST_FRACTION)]
    return Dataset(
        name=printable(_name(data_dir.resolve())),
        class_names=class_names,
        splits=dict(zip(("train", "test"), sources, strict=True)),
        # Those of ImageNet, which photographs come close to.
        mean=(0.485, 0.456, 0.406) if channels == 3 else (0.449,),
        std=(0.229, 0.224, 0.225) if channels == 3 else (0.226,),
        augment=f"crop:{size // 8},flip",
        skipped=tuple(path for _, skipped in opened for path in skipped),
    )


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
        split: "train", "val" or "test".
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
    skip = bad_images == "skip"
    root = data_dir / split if (data_dir / split).is_dir() else data_dir
    unknown = [name for name in map(_name, _class_dirs(root)) if name not in class_names]
    if unknown:
        raise DataError(
            f"{root} has classes that the net does not know: {', '.join(unknown)}; it knows "
            f"{', '.join(class_names)}"
        )
    tree = _scan(root, skip=skip)
    numbers = [list(class_names).index(name) for name in tree.class_names]
    source, skipped = _open(tree, image_shape, skip=skip)
    labels = np.asarray(numbers, np.int32)[source.labels]
    return FileSource(source.files, labels, image_shape), tuple(skipped)
