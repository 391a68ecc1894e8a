"""The pictures of a run: its curves, mistakes and data, drawn from what it leaves on disk."""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

import data
import pictures
from commands import build
from commands.run import Run
from commands.saved_config import DataInfo
from loops.best import best_row
from loops.distributed.workers import Workers
from loops.errors import SaveError, reason
from loops.records.predictions import Predictions

COUNT = 32  # Images in a grid.
_CURVES = ("epoch", "loss", "top_1_accuracy")


def draw_all(
    directory: str | os.PathLike,
    run: Run,
    *,
    net,
    splits: Mapping[str, data.Source],
    predictions: Predictions,
    split: str = "test",
) -> list[pathlib.Path]:
    """Draws the pictures of a run, as PNG files.

    `curves.png`, `confusion_matrix.png`, `mistakes.png` and `calibration.png`; `augmentations.png`
    if the train split is given, and `first_layer.png` if the net has a convolution.

    Args:
        directory: to write to; it is created.
        run: the run.
        net: its net, with the weights that made the predictions.
        splits: the examples by split.
        predictions: on a split.
        split: which one.

    Returns:
        The paths of the files.

    Raises:
        SaveError: a file cannot be written.
        data.DataError: an image cannot be read.
    """
    directory = pathlib.Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(f"cannot write {directory}: {reason(error)}") from error
    names, kernel, train = run.data.class_names, first_kernel(net), splits.get("train")
    # One after the other, to hold one at a time.
    draw = {
        "curves": lambda: draw_curves(run.metrics, run.config.best_metric),
        "confusion_matrix": lambda: draw_confusion(predictions, names),
        "mistakes": lambda: draw_mistakes(
            predictions, data.center_cropped(splits[split], run.config.eval_crop), names
        ),
        "calibration": lambda: pictures.calibration(predictions.confidences, predictions.correct),
        "augmentations": train is not None and (lambda: draw_augmentations(run, train)),
        "first_layer": kernel is not None and (lambda: pictures.filters(kernel.numpy())),
    }
    paths = []
    for name, make in draw.items():
        if not make:
            continue
        path = directory / f"{name}.png"
        try:
            pictures.save(make(), path)
        except OSError as error:
            raise SaveError(f"cannot write {path}: {reason(error)}") from error
        paths.append(path)
    return paths


def draw_curves(rows: Sequence[dict], best_metric: str):
    """The curves of training and validation, with the best epoch marked."""
    shown = {
        "train": _merged([row for row in rows if row["split"] == "train"]),
        "val": [row for row in rows if row["split"] == "val"],
    }
    curves = {
        split: {name: np.array([row.get(name, math.nan) for row in some]) for name in _CURVES}
        for split, some in shown.items()
    }
    return pictures.curves(curves["train"], curves["val"], best_epoch=best_epoch(rows, best_metric))


def _merged(rows: Sequence[dict]) -> list[dict]:
    """Rows of training metrics, those of few steps joined to the one before.

    At the end of an epoch, a row of a single batch would stand out beside those of fifty.
    """
    steps = [0, *(row["step"] for row in rows)]
    lengths = np.diff(steps)
    merged, weights = [], []
    for row, length in zip(rows, lengths, strict=True):
        if merged and length < max(lengths) / 2:
            last, weight = merged[-1], weights[-1]
            means = {
                name: (weight * last[name] + length * row[name]) / (weight + length)
                for name in _CURVES[1:]
                if name in last and name in row
            }
            merged[-1], weights[-1] = {**row, **means}, weight + length
        else:
            merged.append(row)
            weights.append(length)
    return merged


def best_epoch(rows: Sequence[dict], metric: str) -> float | None:
    """The epoch of the best row on the validation split, if any."""
    best = best_row(metric, rows)
    return None if best is None else best["epoch"]


def draw_confusion(predictions: Predictions, class_names: Sequence[str]):
    """The confusion matrix of some predictions."""
    return pictures.confusion_matrix(predictions.confusion(len(class_names)), class_names)


def draw_mistakes(predictions: Predictions, source: data.Source, class_names: Sequence[str]):
    """The mistakes that are the most confident, as images.

    Args:
        predictions: for each example of the source.
        source: the split.
        class_names: in the order of the labels.

    Raises:
        data.DataError: an image cannot be read.
    """
    numbers = predictions.worst(COUNT)
    images = np.zeros((0, *source.image_shape), np.uint8)
    if len(numbers):
        try:
            images = source.fetch(tf.constant(numbers, tf.int64)).numpy()
        except tf.errors.OpError as error:
            raise data.DataError(
                f"a misclassified image cannot be read: {reason(error)}"
            ) from error
    captions = [
        f"is {class_names[predictions.labels[n]]}\n"
        f"predicted {class_names[predictions.predicted[n]]}\n{predictions.confidences[n]:.0%}"
        for n in numbers
    ]
    wrong, size = int((~predictions.correct).sum()), len(predictions.labels)
    title = f"The most confident of {wrong:,} mistakes in {size:,} examples"
    if wrong <= COUNT:
        title = f"{wrong} mistake{'' if wrong == 1 else 's'} in {size:,} examples"
    return pictures.image_grid(shown(images), captions, title=title)


def draw_augmentations(run: Run, source: data.Source):
    """The first images that a run trains on, as the net sees them."""
    workers = Workers(tf.distribute.get_strategy())
    batches = build.train_pipeline(run.config, run.data, source, workers)
    return draw_batch(batches, run.data)


def draw_batch(batches: data.TrainPipeline, info: DataInfo):
    """The first images of the first batch, after augmentation, with their labels.

    Raises:
        data.DataError: an image cannot be read.
    """
    try:
        element, *_ = batches.batches(0, 1)  # That of the first replica.
        images, labels = batches.prepare(*element)
    except tf.errors.OpError:
        fault = batches.find_fault(0)
        if fault is None:
            raise
        raise fault from None
    images, labels = images[:COUNT].numpy(), labels[:COUNT].numpy()
    pixels = np.round(255 * (images * np.array(info.std) + np.array(info.mean)))
    captions = [caption(label, info.class_names) for label in labels]
    title = f"The first training images, --augment={data.format_augment(batches.augmentations)}"
    return pictures.image_grid(shown(np.clip(pixels, 0, 255)), captions, title=title)


def caption(label: np.ndarray, class_names: Sequence[str]) -> str:
    """The name of a class, or of the two with the largest weights, float [classes]."""
    if label.ndim == 0:
        return class_names[label]
    largest = [i for i in np.argsort(-label, kind="stable")[:2] if label[i] > 0]
    if len(largest) == 1:
        return class_names[largest[0]]
    return "\n".join(f"{class_names[i]} {label[i]:.0%}" for i in largest)


def shown(images: np.ndarray) -> np.ndarray:
    """Images in [0, 255] as uint8 with 1 or 3 channels; others are shown as their mean."""
    if images.shape[-1] not in (1, 3):
        images = images.mean(axis=-1, keepdims=True)
    return images.astype(np.uint8)


def first_kernel(net) -> tf.Variable | None:
    """The kernel of the first convolution of a net, [height, width, inputs, filters], if any."""
    return next((v for v in net.variables if len(v.shape) == 4), None)
