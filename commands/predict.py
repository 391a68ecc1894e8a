"""Classifies images with a saved run: what predict.py does."""

import contextlib
import dataclasses
import os
import pathlib
import sys
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from commands.command_line import report
from commands.options import PredictOptions
from commands.output import write
from commands.prediction_format import FORMATS
from commands.run import Run
from commands.saved_config import DataInfo
from commands.setting import ConfigError, convert
from data import DataError
from data.dataset import normalize
from data.paths import find_images
from data.reader import ImageReader
from data.variants import variants
from loops.distributed.devices import make_strategy
from loops.errors import RunError, SaveError
from nets.grad_cam import GradCAM

_BATCH_PIXELS = 2**22  # Height times width, over the images of a batch.
_LARGEST_BATCH = 256
_OVERLAY_SIZE = 512  # Height and width in pixels.


def predict(options: PredictOptions) -> None:
    """Prints the most probable classes of images, batch by batch.

    An image that cannot be read is reported on standard error, and the others follow.

    Raises:
        ConfigError, RunError, nets.NetError: an option is wrong, or the run cannot be used.
        DataError: at the end, if an image could not be read.
        SaveError: standard output or an overlay cannot be written.
    """
    options = convert(dataclasses.asdict(options), PredictOptions)
    options.check()
    run = Run.open(options.run_dir)
    reader = ImageReader(run.data.image_shape, run.config.eval_crop)
    strategy, _ = make_strategy(1, options.device)
    with strategy.scope():
        net = run.net(options.checkpoint, allow_changes=options.allow_changes)
        tta = run.config.tta if options.tta is None else options.tta
        classifier = Classifier(net, run.data, tta)
        overlays = None
        if options.grad_cam:
            overlays = Overlays(options.grad_cam, classifier, run.config.eval_crop)
    lines = FORMATS[options.format](run.data.class_names, options.top)
    write(lines.header)
    failed = total = 0
    paths = find_images(options.images, _standard_input())
    for batch in reader.batches(paths, classifier.batch_size):
        good = [item for item in batch if not isinstance(item, DataError)]
        errors = [item for item in batch if isinstance(item, DataError)]
        if good:
            images = np.stack([image for _, image in good])
            probabilities = classifier.probabilities(images)
            write(lines.rows([path for path, _ in good], probabilities))
            if overlays:
                errors += overlays.write([path for path, _ in good], images, probabilities)
        failed += len(errors)
        total += len(batch)
        if total == len(errors) == 1 and len(options.images) == 1:
            raise errors[0]
        for error in errors:
            report(str(error))
    if failed:
        raise DataError(f"{failed:,} of {total:,} images could not be found or read")


def _standard_input():
    """Standard input as bytes; nothing where it has none, as in a notebook."""
    return getattr(sys.stdin, "buffer", ())


class Classifier:
    """The probabilities that a net gives.

    Args:
        net: of the run.
        info: what the run remembers of its data.
        tta: names of the variants of each image that are averaged (see `data.variants`).

    Attributes:
        batch_size: number of images to classify at a time.
    """

    def __init__(self, net, info: DataInfo, tta: tuple[str, ...] = ()):
        self.net = net
        self.info = info
        self.tta = tta
        height, width, _ = info.image_shape
        self.batch_size = min(max(1, _BATCH_PIXELS // (height * width)), _LARGEST_BATCH)
        # Any number of images, so that it is traced once.
        self.images = tf.TensorSpec((None, *info.image_shape), tf.uint8)
        self._softmax = tf.function(
            lambda images: tf.nn.softmax(net(self.normalize(images), training=False)),
            input_signature=[self.images],
        )

    def normalize(self, images: tf.Tensor) -> tf.Tensor:
        """The images as the net was trained on them."""
        return normalize(images, self.info.mean, self.info.std)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """The mean over the variants of each image.

        Args:
            images: uint8 [n, height, width, channels].

        Returns:
            float32 [n, classes].

        Raises:
            RunError: one is not a number.
        """
        groups = variants(tf.constant(images), self.tta)
        mean = np.mean([self._softmax(group).numpy() for group in groups], axis=0)
        if not np.isfinite(mean).all():
            raise RunError("the net gives probabilities that are not finite; its weights are bad")
        return mean


class Overlays:
    """Writes the images on which the regions that speak for the predicted class are marked.

    They are cut as the net sees them, at 512x512 pixels. The name of a file is made of the path of
    the image: that of photos/cat/1.jpg is photos-cat-1.jpg.png.

    Args:
        directory: where to write them; created if it is missing.
        classifier: whose predictions they explain.
        eval_crop: of the run.

    Raises:
        ConfigError: the directory cannot be created.
        nets.NetError: the net is not a sequence of stages.
    """

    def __init__(self, directory: str, classifier: Classifier, eval_crop: float = 1.0):
        self.directory = pathlib.Path(directory).expanduser()
        self._reader = ImageReader((_OVERLAY_SIZE, _OVERLAY_SIZE, 3), eval_crop)
        self._names = set()
        grad_cam = GradCAM(classifier.net)
        self._heat = tf.function(
            lambda images, classes: grad_cam(classifier.normalize(images), classes, training=False),
            input_signature=[classifier.images, tf.TensorSpec([None], tf.int64)],
        )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--grad_cam={directory}: the directory cannot be created: {error.strerror}"
            ) from error

    def write(
        self, paths: list[str], images: np.ndarray, probabilities: np.ndarray
    ) -> Iterator[DataError]:
        """Writes an overlay for each image; yields an error for each that cannot be read again.

        Raises:
            SaveError: a file cannot be written.
        """
        # Imported here, since matplotlib takes a while to load.
        from pictures.overlay import overlay

        heat = self._heat(images, probabilities.argmax(axis=-1)).numpy()
        large = self._reader.batches(paths, batch_size=8)
        for item, warmth in zip((item for batch in large for item in batch), heat, strict=True):
            if isinstance(item, DataError):
                yield item
                continue
            path, image = item
            content = tf.io.encode_png(overlay(image, warmth)).numpy()
            self._write(self.directory / self._name(path), content)

    def _name(self, path: str) -> str:
        """A name that no other overlay has, also where upper and lower case are the same."""
        parts = [part for part in path.split(os.sep) if part not in ("", os.curdir, os.pardir)]
        stem = "-".join(parts)[-60:]  # At most 255 bytes with the rest.
        name, number = f"{stem}.png", 1
        while name.casefold() in self._names:
            number += 1
            name = f"{stem}-{number}.png"
        self._names.add(name.casefold())
        return name

    def _write(self, path: pathlib.Path, content: bytes) -> None:
        temporary = path.with_name(path.name + ".new")
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise SaveError(f"cannot write {path}: {error.strerror}") from error
