"""What nets are trained on: datasets by name.

    dataset = data.load("cifar10", data_dir=None, val_fraction=0.1)
    dataset.splits["train"], dataset.class_names

A new dataset is a file beside this one and a line in the table.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

from data.augment import Augmentation
from data.cifar import cifar10, cifar100
from data.digits import digits
from data.download import default_data_dir
from data.folder import folder
from data.mnist import fashion_mnist, mnist
from data.pipeline import Share, data_error, eval_batches, train_batches
from data.source import (
    DataError,
    Dataset,
    Part,
    Relabelled,
    Resized,
    printable,
    split_by_class,
)

__all__ = [
    "DATASETS",
    "Augmentation",
    "DataError",
    "Dataset",
    "Share",
    "data_error",
    "eval_batches",
    "load",
    "printable",
    "relabel",
    "train_batches",
]

DATASETS = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "digits": digits,
    "folder": folder,
}


def load(
    name: str,
    *,
    data_dir: str | None = None,
    val_fraction: float = 0.0,
    image_size: int | None = None,
    channels: int | None = None,
    bad_images: str = "error",
) -> Dataset:
    """Loads a dataset, downloading it if need be, and holds a validation split out of train.

    Args:
        name: a key of `DATASETS`.
        data_dir: where its files are, or are put; by default where Keras keeps datasets. The
            dataset "folder" needs it.
        val_fraction: share of every class of train that becomes the split "val", in [0, 1). With
            0 there is none.
        image_size: height and width in pixels that images are brought to; by default their own.
        channels: 3 for RGB or 1 for grey, for the dataset "folder" alone; by default 3.
        bad_images: for the dataset "folder" alone: "error" refuses image files that cannot be
            decoded when they are met, "skip" decodes every file now and leaves those out.

    Raises:
        DataError: the name is unknown or the data cannot be used.
    """
    if name not in DATASETS:
        raise DataError(f"unknown dataset {name!r}; known datasets: {', '.join(sorted(DATASETS))}")
    directory = default_data_dir() if data_dir is None else pathlib.Path(data_dir).expanduser()
    if data_dir is not None and not directory.is_dir():
        raise DataError(f"--data_dir={data_dir} is not a directory")
    make = DATASETS[name]
    if name == "folder":
        if data_dir is None:
            raise DataError("--dataset=folder needs --data_dir, a directory of train/<class>/*")
        make = functools.partial(
            folder, image_size=image_size, channels=channels or 3, bad_images=bad_images
        )
    try:
        dataset = make(directory)
    except OSError as error:
        raise DataError(f"{name} cannot be read from {directory}: {error}") from error
    splits = dict(dataset.splits)
    if image_size is not None and dataset.image_shape[:2] != (image_size, image_size):
        splits = {split: Resized(source, image_size) for split, source in splits.items()}
    if val_fraction > 0:
        train, val = split_by_class(splits["train"].labels, val_fraction)
        splits["train"], splits["val"] = Part(splits["train"], train), Part(splits["train"], val)
    for split, source in splits.items():
        if not len(source.labels):
            what = "--val_fraction=0 or " if split == "val" else ""
            raise DataError(
                f"{dataset.name} leaves no example for the {split} split; use {what}more images"
            )
    return dataclasses.replace(dataset, splits=splits)


def relabel(dataset: Dataset, class_names: Sequence[str]) -> Dataset:
    """The same examples, with labels that are numbers in another list of the same classes.

    Raises:
        DataError: the classes are not the same.
    """
    if sorted(dataset.class_names) != sorted(class_names):
        ours, theirs = set(dataset.class_names), set(class_names)
        raise DataError(
            f"{dataset.name} has other classes than the net: it lacks "
            f"{', '.join(sorted(theirs - ours)) or 'none'} and has besides "
            f"{', '.join(sorted(ours - theirs)) or 'none'}"
        )
    numbers = [list(class_names).index(name) for name in dataset.class_names]
    splits = {split: Relabelled(source, numbers) for split, source in dataset.splits.items()}
    return dataclasses.replace(dataset, class_names=tuple(class_names), splits=splits)
