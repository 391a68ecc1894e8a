"""The examples of a comparison, made up or a dataset's, as two files that every worker reads."""

import pathlib

import numpy as np

from benchmarks.speed.job import CLASSES

TEST_EXAMPLES = 10_000  # The first ones also serve as the test split.


def count(image_size: int) -> int:
    """As many as CIFAR-10 has, or fewer of large images: 100 to 150 MB."""
    return min(50_000, 100_000_000 // (3 * image_size**2) if image_size > 32 else 50_000)


def write(directory: pathlib.Path, image_size: int, number: int) -> None:
    """Makes up examples: uint8 [number, image_size, image_size, 3] and their labels."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (number, image_size, image_size, 3), np.uint8)
    save(directory, images, np.arange(number) % CLASSES)


def save(directory: pathlib.Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes the files."""
    np.save(directory / "images.npy", images)
    np.save(directory / "labels.npy", labels.astype(np.int32))


def read(directory: str) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 [n, height, width, channels], and labels, int32 [n]."""
    return tuple(np.load(pathlib.Path(directory) / f"{x}.npy") for x in ("images", "labels"))
