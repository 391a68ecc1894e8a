"""What nets are trained on: datasets by name.

    dataset = data.load("cifar10", val_fraction=0.1)
    dataset.splits["train"], dataset.class_names

A new dataset is a file beside this one and a line in `DATASETS`.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from data.augment import (
    AUGMENTATIONS,
    Augmentation,
    default_eval_crop,
    format_augment,
    parse_augment,
)
from data.cifar import cifar10, cifar100
from data.dataset import Dataset, split_by_class
from data.digits import digits
from data.folder import folder, folder_split
from data.mnist import fashion_mnist, mnist
from data.pipeline import EvalPipeline, InputShard, TrainPipeline
from data.source import (
    DataError,
    DataWarning,
    Relabelled,
    Resized,
    Source,
    Subset,
    center_cropped,
    printable,
)
from data.tfds import tfds
from data.tfds_directory import PREFIX

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Augmentation",
    "DataError",
    "DataWarning",
    "Dataset",
    "EvalPipeline",
    "InputShard",
    "Source",
    "TrainPipeline",
    "center_cropped",
    "default_eval_crop",
    "format_augment",
    "is_dataset",
    "load",
    "load_split",
    "parse_augment",
    "printable",
    "relabel",
]

# Functions from a directory, or None for that of Keras, to a Dataset.
DATASETS = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "digits": digits,
    "folder": folder,
}


def is_dataset(name: str) -> bool:
    """Whether there is a dataset of a name: a key of `DATASETS`, or tfds:NAME."""
    return name in DATASETS or name.startswith(PREFIX)


def _directory(name: str, data_dir: str | pathlib.Path | None) -> pathlib.Path | None:
    """The directory of a dataset, checked; None for that of Keras."""
    if not is_dataset(name):
        known = ", ".join(sorted(DATASETS))
        raise DataError(f"unknown dataset {name!r}; known datasets: {known}, {PREFIX}NAME")
    if data_dir is None:
        if name == "folder":
            raise DataError("--dataset=folder needs --data_dir, a directory of train/<class>/*")
        return None
    try:
        directory = pathlib.Path(data_dir).expanduser()
    except RuntimeError as error:
        raise DataError(f"--data_dir={data_dir}: the home directory is unknown") from error
    if not directory.is_dir():
        raise DataError(f"--data_dir={data_dir} is not a directory")
    return directory


def load(
    name: str,
    *,
    data_dir: str | None = None,
    val_fraction: float = 0.0,
    image_size: int | None = None,
    channels: int | None = None,
    bad_images: str = "error",
) -> Dataset:
    """Loads a dataset, downloading it if necessary, and holds a validation split out of train.

    Args:
        name: a key of `DATASETS`, or "tfds:" and the name of a prepared dataset (`data/tfds.py`).
        data_dir: where its files are, or are put; by default where Keras, or tfds, keeps datasets.
            The dataset "folder" needs it.
        val_fraction: of every class of train that becomes the split "val", in [0, 1), unless the
            dataset has a validation split of its own. With 0 there is none.
        image_size: height and width in pixels that images are scaled to; by default their own.
        channels: 3 for RGB or 1 for gray, for the dataset "folder" only; by default 3.
        bad_images: for image files only: "error" refuses image files whose headers cannot
            be read, "skip" decodes every file and leaves out those that cannot be decoded.

    Raises:
        DataError: the name is unknown or the data cannot be used.
    """
    dataset = _make(name, data_dir, image_size=image_size, channels=channels, bad_images=bad_images)
    splits = dict(dataset.splits)
    if image_size is not None and dataset.image_shape[:2] != (image_size, image_size):
        splits = {split: Resized(source, (image_size,) * 2) for split, source in splits.items()}
    note = dataset.note
    if "val" in splits and not val_fraction:
        del splits["val"]
        note = f"the validation split of {dataset.name} is not used (--val_fraction=0)"
    own_val = "val" in splits
    if val_fraction > 0 and not own_val:
        train, val = split_by_class(splits["train"].labels, val_fraction)
        splits["train"], splits["val"] = (
            Subset(splits["train"], train),
            Subset(splits["train"], val),
        )
    for split, source in splits.items():
        if not len(source.labels):
            what = "--val_fraction=0 or " if split == "val" else ""
            raise DataError(
                f"{dataset.name} leaves no example for the {split} split; use {what}more images"
            )
    return dataclasses.replace(dataset, splits=splits, note=note, own_val=own_val)


def _make(name: str, data_dir: str | None, **options) -> Dataset:
    """A dataset as it is published; raises as `load`."""
    directory = _directory(name, data_dir)
    make = DATASETS.get(name)
    if name.startswith(PREFIX):
        del options["channels"]
        make = functools.partial(tfds, name, **options)
    elif name == "folder":
        options["channels"] = options["channels"] or 3
        make = functools.partial(folder, **options)
    try:
        dataset = make(directory)
    except OSError as error:
        where = f" from {directory}" if directory else ""
        raise DataError(f"{name} cannot be read{where}: {error}") from error
    _check(dataset)
    return dataset


def _check(dataset: Dataset) -> None:
    """Raises DataError if a dataset is not consistent, as a new one may be."""
    missing = {"train", "test"} - dataset.splits.keys()
    if missing:
        raise DataError(f"{dataset.name} has no split {', '.join(sorted(missing))}")
    channels, classes = dataset.image_shape[-1], len(dataset.class_names)
    if not np.shape(dataset.mean) == np.shape(dataset.std) == (channels,):
        raise DataError(f"{dataset.name}: mean and std need {channels} number(s), one per channel")
    if not min(dataset.std) > 0:
        raise DataError(f"{dataset.name}: std must be positive, not {dataset.std}")
    if classes < 2:
        count = "1 class" if classes == 1 else f"{classes} classes"
        raise DataError(f"{dataset.name} has {count}; at least two are needed")
    if len(set(dataset.class_names)) < classes:
        raise DataError(f"{dataset.name}: two classes have the same name")
    for split, source in dataset.splits.items():
        if source.image_shape != dataset.image_shape:
            raise DataError(
                f"{dataset.name}: images of {split} have shape {source.image_shape}, and those of "
                f"train {dataset.image_shape}"
            )
        labels = source.labels
        if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
            raise DataError(
                f"{dataset.name}: labels of {split} are from {labels.min()} to {labels.max()}, "
                f"and must be from 0 to {classes - 1}"
            )


def load_split(
    name: str,
    split: str,
    *,
    class_names: Sequence[str],
    image_shape: tuple[int, int, int],
    data_dir: str | None = None,
    bad_images: str = "error",
) -> tuple[Source, tuple[pathlib.Path, ...]]:
    """Loads one split of a dataset, to score a net that was trained on another.

    The split of the dataset "folder" is data_dir/<split>/<class>/* if data_dir/<split> exists, and
    otherwise the whole of data_dir/<class>/*. It may have some of the classes only. Other datasets
    must have the same classes as the net.

    Args:
        name: as for `load`.
        split: its name.
        class_names: the classes that the net knows, in the order of its outputs.
        image_shape: (height, width, channels) that the net takes.
        data_dir: as for `load`.
        bad_images: as for `load`.

    Returns:
        The examples, with labels that are indices into `class_names`, and the files that were left
        out.

    Raises:
        DataError: the net cannot take the data, or the data cannot be used.
    """
    height, width, channels = image_shape
    if name == "folder":
        directory = _directory(name, data_dir)
        try:
            return folder_split(
                directory,
                split,
                class_names=class_names,
                image_shape=tuple(image_shape),
                bad_images=bad_images,
            )
        except OSError as error:
            raise DataError(f"{name} cannot be read from {directory}: {error}") from error
    if name.startswith(PREFIX):
        options = {"split": split, "image_size": height, "bad_images": bad_images}
        dataset = tfds(name, _directory(name, data_dir), **options)
    else:
        dataset = load(name, data_dir=data_dir)
    dataset = relabel(dataset, class_names)
    if split not in dataset.splits:
        raise DataError(
            f"{name} has no split {split!r}; it has {', '.join(sorted(dataset.splits))}"
        )
    source = dataset.splits[split]
    if source.image_shape[-1] != channels:
        raise DataError(f"{name} has {source.image_shape[-1]} channel(s), the net takes {channels}")
    if source.image_shape[:2] != (height, width):
        source = Resized(source, (height, width))
    return source, dataset.skipped


def relabel(dataset: Dataset, class_names: Sequence[str]) -> Dataset:
    """The same examples, with labels that are indices into another list of the same classes.

    Raises:
        DataError: the classes are not the same.
    """
    if sorted(dataset.class_names) != sorted(class_names):
        ours, theirs = set(dataset.class_names), set(class_names)
        raise DataError(
            f"{dataset.name} has other classes than the net: it lacks "
            f"{', '.join(sorted(theirs - ours)) or 'none'} and adds "
            f"{', '.join(sorted(ours - theirs)) or 'none'}"
        )
    numbers = [list(class_names).index(name) for name in dataset.class_names]
    splits = {split: Relabelled(source, numbers) for split, source in dataset.splits.items()}
    return dataclasses.replace(dataset, class_names=tuple(class_names), splits=splits)
