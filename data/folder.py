"""Anyone's own images: a directory of classes, decoded as they are needed.

    flowers/train/daisy/1.jpg         or one tree,          flowers/daisy/1.jpg
    flowers/train/rose/2.png          which is split:       flowers/rose/2.png
    flowers/test/daisy/3.jpeg

The names of the class directories, sorted, are the classes. Symbolic links to files and to class
directories are followed wherever they lead, so a subset can be made of links.
"""

import dataclasses
import os
import pathlib
import zlib
from multiprocessing.pool import ThreadPool

import numpy as np

from data.decode import decode
from data.source import DataError, Dataset, Part, printable, split_by_class

SUFFIXES = (".jpg", ".jpeg", ".png")
DEFAULT_IMAGE_SIZE = 64
TEST_FRACTION = 0.2


class FileSource:
    """Examples in image files.

    Args:
        paths: an image file for each example.
        labels: int32 [len(paths)].
        image_size: height and width of what `fetch` gives, in pixels. The image is scaled until
            its shorter side fits and its middle is cut out.
        channels: 3 for RGB, 1 for grey.
    """

    def __init__(self, paths, labels, *, image_size: int, channels: int):
        self.paths = tuple(paths)
        self.labels = np.asarray(labels, np.int32)
        self.image_shape = (image_size, image_size, channels)

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        """See `Source`, and `decode` for what is done to images of all kinds.

        Raises:
            DataError: a file is not an image that can be decoded; it is named.
        """
        return np.stack([decode(self.paths[i], self.image_shape) for i in indices])

    def fingerprint(self) -> int:
        """By names and sizes: reading every file would take too long.

        Raises:
            DataError: a file is gone, or cannot be looked at; it is named.
        """
        try:
            names = [f"{p.parent.name}/{p.name} {p.stat().st_size}\n" for p in self.paths]
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
        return zlib.crc32("".join(names).encode("utf-8", "surrogateescape"))


@dataclasses.dataclass(frozen=True)
class _Tree:
    """The files under a directory of classes."""

    class_dirs: list[pathlib.Path]
    paths: list[pathlib.Path]
    labels: np.ndarray
    skipped: list[pathlib.Path]

    @property
    def class_names(self) -> list[str]:
        return [p.name for p in self.class_dirs]


def _class_dirs(root: pathlib.Path) -> list[pathlib.Path]:
    """The directories of the classes.

    Raises:
        DataError: there is none, or a link among them leads to what it lies in, or nowhere.
    """
    entries = sorted(p for p in root.iterdir() if not p.name.startswith("."))
    above = os.path.realpath(root)
    for entry in entries:
        if not entry.is_symlink():
            continue
        target = os.path.realpath(entry)
        if not os.path.exists(entry):
            raise DataError(f"{entry} is a link that cannot be followed; remove it")
        if os.path.isdir(target) and os.path.commonpath((target, above)) == target:
            raise DataError(f"{entry} is a link to {target}, which it lies in; remove it")
    class_dirs = [p for p in entries if os.path.isdir(p)]
    if not class_dirs:
        raise DataError(f"{root} has no class directories; put images into {root}/<class>/")
    return class_dirs


def _what_it_is(path: pathlib.Path) -> str:
    """What a path is that is no regular file."""
    if os.path.isdir(path):
        return "a directory"
    if os.path.exists(path):
        return "a pipe or a device"
    return "a link that cannot be followed" if os.path.islink(path) else "not to be found"


def _scan(root: pathlib.Path, *, skip: bool) -> _Tree:
    """What is under `root`/<class>/; other than regular files are refused, or skipped."""
    class_dirs = _class_dirs(root)
    paths, labels, skipped = [], [], []
    for label, class_dir in enumerate(class_dirs):
        files = sorted(
            p
            for p in class_dir.iterdir()
            if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
        )
        if not files:
            raise DataError(
                f"{class_dir} has no images ({', '.join(SUFFIXES)}); add some or remove it"
            )
        # To open a pipe would wait for ever.
        regular = [p for p in files if os.path.isfile(p)]
        odd = sorted(set(files) - set(regular))
        if odd and not skip:
            raise DataError(
                f"{odd[0]} is no image file but {_what_it_is(odd[0])}; remove it, or use "
                "--bad_images=skip"
            )
        skipped += odd
        paths += regular
        labels += [label] * len(regular)
    return _Tree(class_dirs, paths, np.asarray(labels, np.int32), skipped)


def _without_bad(tree: _Tree, image_shape: tuple[int, int, int]) -> _Tree:
    """The files that can be decoded, each being tried.

    Raises:
        DataError: a class has none left.
    """

    def is_good(path):
        # As `fetch` will decode it, so that what passes here cannot fail there.
        try:
            decode(path, image_shape)
        except DataError:
            return False
        return True

    with ThreadPool(os.cpu_count()) as pool:  # Decoders let other threads run.
        good = np.fromiter(pool.imap(is_good, tree.paths, chunksize=16), bool, len(tree.paths))
    labels = tree.labels[good]
    counts = np.bincount(labels, minlength=len(tree.class_dirs))
    for class_dir, count in zip(tree.class_dirs, counts, strict=True):
        if not count:
            raise DataError(f"{class_dir} has no image that can be decoded; add some or remove it")
    paths = [p for p, kept in zip(tree.paths, good, strict=True) if kept]
    bad = [p for p, kept in zip(tree.paths, good, strict=True) if not kept]
    return _Tree(tree.class_dirs, paths, labels, sorted(tree.skipped + bad))


def folder(
    data_dir: pathlib.Path,
    *,
    image_size: int | None = None,
    channels: int = 3,
    bad_images: str = "error",
) -> Dataset:
    """The images under `data_dir`, as train/<class>/* and test/<class>/* or as <class>/*.

    One tree is split: a fifth of every class, the same at every run, is the test split.

    Args:
        data_dir: the directory.
        image_size: height and width in pixels that images are brought to; by default 64.
        channels: 3 for RGB, 1 for grey.
        bad_images: "error" leaves it to `fetch` to refuse a file that cannot be decoded; "skip"
            decodes every file here, and those are no examples.

    Raises:
        DataError: a directory is missing or empty, train and test have different classes, a link
            cannot be followed or leads in a loop, what is named like an image is no file, or with
            "skip" a class has no image that can be decoded.
    """
    size = image_size or DEFAULT_IMAGE_SIZE
    skip = bad_images == "skip"

    def source(tree):
        return FileSource(tree.paths, tree.labels, image_size=size, channels=channels)

    parts = ("train", "test") if (data_dir / "train").is_dir() else ("",)
    if "test" in parts and not (data_dir / "test").is_dir():
        raise DataError(f"{data_dir} has train/ but no test/; add it, or move the classes up")
    trees = [_scan(data_dir / part, skip=skip) for part in parts]
    names = trees[0].class_names
    differing = ", ".join(sorted(set(names) ^ set(trees[-1].class_names)))
    if differing:
        raise DataError(f"train/ and test/ in {data_dir} differ in their classes: {differing}")
    if skip:
        trees = [_without_bad(tree, (size, size, channels)) for tree in trees]
    if "test" in parts:
        splits = {part: source(tree) for part, tree in zip(parts, trees, strict=True)}
    else:
        whole = source(trees[0])
        train, test = split_by_class(whole.labels, TEST_FRACTION)
        splits = {"train": Part(whole, train), "test": Part(whole, test)}
    return Dataset(
        name=printable(data_dir.resolve().name),
        class_names=names,
        splits=splits,
        # Those of ImageNet, which photographs come close to.
        mean=(0.485, 0.456, 0.406) if channels == 3 else (0.449,),
        std=(0.229, 0.224, 0.225) if channels == 3 else (0.226,),
        crop_padding=size // 8,
        flip=True,
        skipped=tuple(path for tree in trees for path in tree.skipped),
    )
