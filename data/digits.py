"""Real handwritten digits that scikit-learn ships, so that everything runs without a network."""

import pathlib

import numpy as np
from sklearn.datasets import load_digits

from data.dataset import Dataset, split_by_class
from data.source import ArraySource, Subset


def digits(data_dir: pathlib.Path | None = None) -> Dataset:
    """1,797 8x8 gray images in ten classes; a fifth of each class is the test split.

    They are the test part of the "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak
    1998) of the UCI repository; its train part is not shipped. The published 17 gray levels are
    spread over 0 to 255. Writers are in train and test alike, which makes the test split easy.

    Args:
        data_dir: ignored, since scikit-learn has the data.
    """
    del data_dir
    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    whole = ArraySource(pixels, labels)
    train, test = split_by_class(whole.labels, fraction=0.2)
    return Dataset(
        name="digits",
        class_names=[str(digit) for digit in range(10)],
        splits={"train": Subset(whole, train), "test": Subset(whole, test)},
        mean=(0.306,),
        std=(0.375,),
        augment="crop:1",
    )
