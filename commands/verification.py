"""Compares the answers of an exported model with those of the net that it was made from."""

import dataclasses
import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

import data
from commands import verify_export
from commands.options import ExportOptions
from data.dataset import normalize
from data.source import without_tuning
from loops.errors import RunError

TOLERANCE = 1e-4  # Of probabilities, for models in float32.
LARGEST_LOSS = 0.01  # Of accuracy, for models in 8 bits.
_BATCH_SIZE = 128


@dataclasses.dataclass(frozen=True)
class Expected:
    """What the net answers on the test split.

    Attributes:
        images: file with the images, not cut, uint8 [n, height, width, channels].
        probabilities: float32 [n, classes], of these images if they are cut as the model does it.
        labels: int32 [n].
        accuracy: top-1 accuracy of the run in [0, 1], of images that are cut as `data` does it.
    """

    images: pathlib.Path
    probabilities: np.ndarray
    labels: np.ndarray
    accuracy: float


@dataclasses.dataclass(frozen=True)
class Answers:
    """How an exported model answered.

    Attributes:
        examples: number of images.
        difference: largest difference of a probability.
        accuracy, expected_accuracy: top-1 accuracy of the model and of the run, in [0, 1].
    """

    examples: int
    difference: float
    accuracy: float
    expected_accuracy: float

    def __str__(self):
        return (
            f"{self.examples:,} test images in a new process: largest difference "
            f"{self.difference:.1g}, top-1 {self.accuracy:.2%} "
            f"(the run {self.expected_accuracy:.2%})"
        )


def image_batches(source: data.Source, batch_size: int) -> Iterator[np.ndarray]:
    """The images of a source in order, uint8 [n, height, width, channels] with n <= batch_size.

    Raises:
        data.DataError: an image cannot be read.
    """
    size, channels = len(source.labels), source.image_shape[-1]

    def fetch(start):
        return source.fetch(tf.range(start, tf.minimum(start + batch_size, size)))

    batches = tf.data.Dataset.range(0, size, batch_size).map(
        fetch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    iterator = iter(batches.prefetch(2).with_options(without_tuning()))
    for number in range(math.ceil(size / batch_size)):
        try:
            images = next(iterator)
        except tf.errors.OpError as error:
            normalization = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
            pipeline = data.EvalPipeline(source, global_batch_size=batch_size, **normalization)
            raise pipeline.find_fault(number) or error from error
        yield images.numpy()


def run_answers(
    net: tf.keras.layers.Layer, dataset: data.Dataset, path: pathlib.Path, fit: Callable
) -> Expected:
    """The probabilities of a net for the test split, whose images are written to a file.

    Args:
        net: not folded.
        dataset: of the run.
        path: of the file.
        fit: what the model does to images first, from `commands.exported`.

    Raises:
        data.DataError: an image cannot be read.
        OSError: the file cannot be written.
    """
    source, crop = dataset.splits["test"], dataset.eval_crop

    @tf.function(reduce_retracing=True)
    def answer(images):
        return tf.nn.softmax(net(normalize(images, dataset.mean, dataset.std), training=False))

    shape = (len(source.labels), *source.image_shape)
    parts = []
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        for images in image_batches(source, _BATCH_SIZE):
            file.write(images.tobytes())
            parts.append(answer(fit(images, source.image_shape, crop)).numpy())
    probabilities = np.concatenate(parts)
    if crop == 1:
        accuracy = _accuracy(probabilities, source.labels)
    else:
        batches = image_batches(dataset.evaluated("test"), _BATCH_SIZE)
        cut = np.concatenate([answer(tf.cast(images, tf.float32)).numpy() for images in batches])
        accuracy = _accuracy(cut, source.labels)
    return Expected(path, probabilities, source.labels, accuracy)


def _accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(probabilities.argmax(axis=-1) == labels))


def check(options: ExportOptions, model: pathlib.Path, expected: Expected) -> Answers:
    """Compares the answers of an exported model, in a process of its own, with those of the net.

    Raises:
        RunError: it cannot be loaded, or its answers are not the same.
    """
    found = fresh_answers(options.format, model, expected.images)
    labels = expected.labels
    if found.shape != expected.probabilities.shape:
        raise RunError(f"the exported model answers {found.shape}; nothing was written")
    answers = Answers(
        examples=len(labels),
        difference=float(np.abs(found - expected.probabilities).max()),
        accuracy=_accuracy(found, labels),
        expected_accuracy=expected.accuracy,
    )
    if options.int8:
        # One example may be more than that in a small split.
        allowed = max(LARGEST_LOSS, 1 / len(labels))
        same = _accuracy(expected.probabilities, labels) - answers.accuracy <= allowed + 1e-9
        limit = f"a loss of {allowed:.2%} of top-1"
    else:
        same, limit = answers.difference <= TOLERANCE, f"a difference of {TOLERANCE:g}"
    if not same:  # NaN is not.
        raise RunError(
            f"the exported model does not answer as the run: {answers}; {limit} is accepted. "
            "Nothing was written; --noverify writes it nevertheless"
        )
    return answers


def fresh_answers(format: str, model: pathlib.Path, images: pathlib.Path) -> np.ndarray:
    """The probabilities of an exported model from a process that cannot import this project."""
    answers = images.with_name(f"{images.name}.answers.npy")
    script = pathlib.Path(verify_export.__file__).resolve()
    # -I: neither the working directory nor PYTHONPATH nor the script's directory is searched.
    command = [sys.executable, "-I", script, format, model, images, answers]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(
        command,
        cwd=images.parent,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        cause = lines[-1] if lines else f"exit code {done.returncode}"
        raise RunError(f"the exported model cannot be used in a new process: {cause}")
    return np.load(answers, allow_pickle=False)
