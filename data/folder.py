"""Anyone's own images: a directory of classes, decoded as they are needed.

    flowers/train/daisy/1.jpg         or one tree,          flowers/daisy/1.jpg
    flowers/train/rose/2.png          which is split:       flowers/rose/2.png
    flowers/test/daisy/3.jpeg

The names of the class directories, sorted, are the classes.
"""

import pathlib
import zlib

import numpy as np
from PIL import Image, ImageOps

from data.source import DataError, Dataset, Part, split_by_class

SUFFIXES = (".jpg", ".jpeg", ".png")
DEFAULT_IMAGE_SIZE = 64
TEST_FRACTION = 0.2


class FileSource:
    """Examples in image files.

    Args:
        paths: a JPEG or PNG file for each example.
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
        """See `Source`.

        Raises:
            DataError: a file is not an image that can be decoded; it is named.
        """
        return np.stack([self._decode(self.paths[i]) for i in indices])

    def fingerprint(self) -> int:
        """By names and sizes: reading every file would take too long."""
        names = (f"{p.parent.name}/{p.name} {p.stat().st_size}\n" for p in self.paths)
        return zlib.crc32("".join(names).encode("utf-8", "surrogateescape"))

    def _decode(self, path: pathlib.Path) -> np.ndarray:
        height, width, channels = self.image_shape
        mode = "RGB" if channels == 3 else "L"
        try:
            with Image.open(path) as image:
                # A JPEG decoder can leave out detail that is scaled away anyhow.
                image.draft(mode, (2 * width, 2 * height))
                upright = ImageOps.exif_transpose(image)
                fitted = ImageOps.fit(upright.convert(mode), (width, height))
        except Exception as error:  # Damaged files make decoders raise nearly anything.
            reason = "its contents are no image" if "cannot identify" in str(error) else error
            raise DataError(f"{path} cannot be decoded ({reason}); replace or remove it") from error
        return np.asarray(fitted, np.uint8).reshape(self.image_shape)


def _class_dirs(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _scan(root: pathlib.Path) -> tuple[list[str], list[pathlib.Path], np.ndarray]:
    """Class names, paths and labels under `root`/<class>/."""
    class_dirs = _class_dirs(root)
    if not class_dirs:
        raise DataError(f"{root} has no class directories; put images into {root}/<class>/")
    paths, labels = [], []
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
        paths += files
        labels += [label] * len(files)
    return [p.name for p in class_dirs], paths, np.asarray(labels, np.int32)


def folder(data_dir: pathlib.Path, *, image_size: int | None = None, channels: int = 3) -> Dataset:
    """The images under `data_dir`, as train/<class>/* and test/<class>/* or as <class>/*.

    One tree is split: a fifth of every class, the same at every run, is the test split.

    Args:
        data_dir: the directory.
        image_size: height and width in pixels that images are brought to; by default 64.
        channels: 3 for RGB, 1 for grey.

    Raises:
        DataError: a directory is missing or empty, or train and test have different classes.
    """
    size = image_size or DEFAULT_IMAGE_SIZE

    def source(paths, labels):
        return FileSource(paths, labels, image_size=size, channels=channels)

    if (data_dir / "train").is_dir():
        if not (data_dir / "test").is_dir():
            raise DataError(f"{data_dir} has train/ but no test/; add it, or move the classes up")
        names, paths, labels = _scan(data_dir / "train")
        test_names, test_paths, test_labels = _scan(data_dir / "test")
        if names != test_names:
            differing = ", ".join(sorted(set(names) ^ set(test_names)))
            raise DataError(f"train/ and test/ in {data_dir} differ in their classes: {differing}")
        splits = {"train": source(paths, labels), "test": source(test_paths, test_labels)}
    else:
        names, paths, labels = _scan(data_dir)
        whole = source(paths, labels)
        train, test = split_by_class(labels, TEST_FRACTION)
        splits = {"train": Part(whole, train), "test": Part(whole, test)}
    return Dataset(
        name=data_dir.resolve().name,
        class_names=names,
        splits=splits,
        # Those of ImageNet, which photographs come close to.
        mean=(0.485, 0.456, 0.406) if channels == 3 else (0.449,),
        std=(0.229, 0.224, 0.225) if channels == 3 else (0.226,),
        crop_padding=size // 8,
        flip=True,
    )
