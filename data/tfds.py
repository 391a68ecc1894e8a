"""Image-classification datasets of TensorFlow Datasets, as they have been prepared on disk.

    pip install tensorflow-datasets array_record importlib_resources
    python -c 'import tensorflow_datasets as tfds
    tfds.builder("oxford_flowers102").download_and_prepare(file_format="array_record")'
    python train.py --dataset=tfds:oxford_flowers102

Its sources are Python sequences, which an input pipeline must not call. So a dataset is read in
order when it is loaded: small images of one shape into memory, each time; others, as they are
encoded, into files, once, which are then read like those of the dataset "folder".
"""

import hashlib
import importlib.util
import itertools
import math
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from data.dataset import Dataset
from data.download import default_data_dir
from data.files import open_files
from data.folder import (
    DEFAULT_IMAGE_SIZE,
    VAL_IS_TEST,
    VAL_IS_VAL,
    photographs,
    split_names,
    split_off_test,
)
from data.listing import class_directories, list_images
from data.source import ArraySource, DataError, Source, without_tuning
from data.tfds_directory import find_prepared

_NEEDED = {"tensorflow_datasets": "tensorflow-datasets", "array_record": "array_record",
           "importlib_resources": "importlib_resources"}  # fmt: skip
_SPLITS = {"train": "train", "validation": "val", "val": "val", "test": "test"}
_UNLABELLED = -1
_MAX_BYTES = 2**31  # In memory.
_BLOCK = 256  # Examples.


def tfds(
    name: str,
    data_dir: pathlib.Path | None,
    *,
    split: str | None = None,
    image_size: int | None = None,
    bad_images: str = "error",
) -> Dataset:
    """A dataset that `tfds.core.DatasetBuilder.download_and_prepare` has written.

    The split "validation" is val. Without a labelled test split, it is the test split, and without
    either, a fifth of every class of train is.

    Args:
        name: "tfds:NAME", "tfds:NAME/CONFIG", or either followed by ":VERSION".
        data_dir: where datasets are prepared; by default that of tfds.
        split: the only split that is needed; by default all.
        image_size: height and width in pixels that images in files are scaled to; by default 64.
        bad_images: as for `folder`, for images in files.

    Raises:
        DataError: tfds is not installed, the dataset is not prepared, is not one of images with one
            class each, or cannot be read.
    """
    prepared = _Prepared(name, data_dir)
    names = split_names(prepared.splits)
    if split is None and "train" not in names:
        raise DataError(
            f"{name} has no split train with labels; it has {', '.join(names) or 'none of use'}"
        )
    wanted = [x for x in names if split in (None, x)]
    theirs = {x: prepared.splits[names[x]] for x in wanted}
    size, note, fields = image_size or DEFAULT_IMAGE_SIZE, "", {}
    sources, skipped = prepared.sources(theirs, size, skip=bad_images == "skip")
    if "train" in sources:
        fields = _fields(sources["train"])
    if split is None and "test" not in sources:
        sources = split_off_test(sources["train"])
    elif "val" in prepared.splits:
        note = f"validation of {name} {VAL_IS_VAL if 'val' in names else VAL_IS_TEST}"
    return Dataset(
        name=prepared.title,
        class_names=prepared.class_names,
        splits=sources,
        **(fields or photographs(size, prepared.channels)),
        skipped=skipped,
        note=note,
    )


def _fields(train: Source) -> dict[str, Any]:
    """How images are normalized and augmented: by their own statistics if they are in memory."""
    height, width, channels = train.image_shape
    fields = photographs(max(8, min(height, width)), channels)
    if isinstance(train, ArraySource):
        counts = np.zeros((channels, 256), np.int64)
        for start in range(0, len(train.labels), _BLOCK):  # numpy() copies.
            block = train.images[start : start + _BLOCK].numpy()
            for channel in range(channels):
                counts[channel] += np.bincount(block[..., channel].reshape(-1), minlength=256)
        values, shares = np.arange(256) / 255, counts / counts.sum(axis=1, keepdims=True)
        mean = shares @ values
        std = np.sqrt(np.sum(shares * (values - mean[:, None]) ** 2, axis=1))
        fields["mean"] = tuple(np.round(mean, 3).tolist())
        fields["std"] = tuple(np.round(np.maximum(std, 0.01), 3).tolist())
    return fields


class _Prepared:
    """A prepared dataset.

    Attributes:
        title: its name, for directories.
        class_names: in the order of the labels.
        channels: of its images.
        splits: what tfds calls the labelled splits train, val and test, of those that are there.
    """

    def __init__(self, name: str, data_dir: pathlib.Path | None):
        missing = [x for module, x in _NEEDED.items() if importlib.util.find_spec(module) is None]
        if missing:
            raise DataError(
                f"--dataset={name} needs more packages: pip install {' '.join(missing)}"
            )
        import tensorflow_datasets

        self._tfds, self._name = tensorflow_datasets, name
        self._directory = find_prepared(name, data_dir)
        self._builder = self._try(
            lambda: tensorflow_datasets.builder_from_directory(self._directory)
        )
        info = self._builder.info
        self.title = info.full_name.rpartition("/")[0].replace("/", "-")
        self._image, self._label = self._keys(info)
        self._shape = tuple(info.features[self._image].shape)
        self.class_names = info.features[self._label].names
        self.channels = 1 if self._shape[-1] == 1 else 3
        self.splits = {}
        for split in filter(_SPLITS.get, info.splits):
            # Not all, since a test split may be large and have no labels.
            first = itertools.islice(self._examples(split), _BLOCK)
            if any(label != _UNLABELLED for _, label in first):
                self.splits[_SPLITS[split]] = split

    def _try(self, call):
        """The result of a call of tfds, whose errors may be of any kind."""
        try:
            return call()
        except DataError:
            raise
        except Exception as error:
            # Without TensorFlow's decoration.
            text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(error)).strip()
            reason = text.splitlines()[0].strip() if text else type(error).__name__
            raise DataError(
                f"{self._name} in {self._directory} cannot be read: {reason}"
            ) from error

    def _keys(self, info) -> tuple[str, str]:
        """The names of the image and the label."""
        features, kinds = info.features, self._tfds.features
        images = [x for x, feature in features.items() if type(feature) is kinds.Image]
        labels = [x for x, feature in features.items() if type(feature) is kinds.ClassLabel]
        keys = info.supervised_keys or (*images, *labels)
        if len(keys) != 2 or keys[0] not in images or keys[1] not in labels:
            raise DataError(
                f"{self._name} is not for image classification: it needs an image and a class "
                f"label, and has {', '.join(sorted(features))}"
            )
        image, label = features[keys[0]], features[keys[1]]
        dtype = np.dtype(image.np_dtype)
        if dtype != np.uint8 or image.shape[-1] not in (1, 3, 4) or not label.num_classes:
            raise DataError(
                f"{self._name}: images must be uint8 with 1, 3 or 4 channels, not {dtype} of "
                f"shape {image.shape}, and the number of classes must be known"
            )
        return keys

    def _examples(self, split: str) -> Iterator[tuple[bytes, int]]:
        """Encoded images and labels, in the order on disk."""
        decoders = {self._image: self._tfds.decode.SkipDecoding()}
        builder = self._builder
        if builder.info.file_format in self._tfds.core.FileFormat.with_random_access():
            source = self._try(lambda: builder.as_data_source(split, decoders=decoders))
            starts = range(0, len(source), _BLOCK)
            numbers = (range(len(source))[start : start + _BLOCK] for start in starts)
            examples = (example for some in numbers for example in source.__getitems__(some))
        else:
            reading = self._tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
            examples = self._try(
                lambda: builder.as_dataset(split, decoders=decoders, read_config=reading)
            ).as_numpy_iterator()
        while (example := self._try(lambda: next(examples, None))) is not None:
            yield example[self._image], int(example[self._label])

    def _labelled(self, split: str) -> Iterator[tuple[bytes, int]]:
        """As `_examples`; raises DataError for one without a label."""
        for number, (contents, label) in enumerate(self._examples(split)):
            if label == _UNLABELLED:
                raise DataError(
                    f"{self._name}: example {number} of {split} has no label (-1), and others "
                    "have; every example of a split needs one"
                )
            yield contents, label

    def sources(
        self, splits: Mapping[str, str], size: int, *, skip: bool
    ) -> tuple[dict[str, Source], tuple[pathlib.Path, ...]]:
        """Some splits, and the files that were left out.

        Args:
            splits: what tfds calls each of them.
            size: height and width in pixels, of images that are in files.
            skip: leave out files that cannot be decoded.
        """
        count = sum(self._builder.info.splits[split].num_examples for split in splits.values())
        is_small = None not in self._shape and math.prod((count, *self._shape)) <= _MAX_BYTES
        if is_small and self._shape[-1] == self.channels:
            return {split: self._in_memory(theirs) for split, theirs in splits.items()}, ()
        opened = {split: self._in_files(x, size, skip=skip) for split, x in splits.items()}
        skipped = tuple(pathlib.Path(path) for _, paths in opened.values() for path in paths)
        return {split: source for split, (source, _) in opened.items()}, skipped

    def _in_memory(self, split: str) -> ArraySource:
        contents, labels = zip(*self._labelled(split), strict=True)
        images = np.empty((len(labels), *self._shape), np.uint8)
        # Not by tfds, which decodes with other libraries where they are installed.
        decoded = tf.data.Dataset.from_tensor_slices(list(contents)).map(
            lambda x: tf.ensure_shape(tf.io.decode_image(x, self._shape[-1]), self._shape),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        batches = decoded.batch(_BLOCK).with_options(without_tuning()).as_numpy_iterator()
        for start in range(0, len(images), _BLOCK):
            images[start : start + _BLOCK] = self._try(lambda: next(batches))
        return ArraySource(images, np.array(labels))

    def _in_files(self, split: str, size: int, *, skip: bool):
        """The source of a split in files, and the paths that were left out."""
        root = self._extract(split)
        directories = class_directories(root)
        files, labels, *_ = list_images(root, directories, skip=skip)
        numbers = np.array([int(name) for name in directories], np.int32)
        return open_files(files, numbers[labels], (size, size, self.channels), skip=skip)

    def _check_complete(self, root: pathlib.Path, split: str) -> None:
        """Raises DataError if images of a split have been removed since it was extracted."""
        names = (name for path in root.iterdir() if path.is_dir() for name in os.listdir(path))
        found = sum(name.endswith((".jpg", ".png")) for name in names)
        expected = self._builder.info.splits[split].num_examples
        if found != expected:
            raise DataError(
                f"{root} has {found:,} images, and {split} of {self._name} {expected:,}; remove "
                "the directory, and they are extracted again"
            )

    def _extract(self, split: str) -> pathlib.Path:
        """The directory that has the images of a split, as <label>/<number>.jpg or .png.

        It is beside Keras' datasets, and is written whole or not at all.
        """
        key = [os.path.realpath(self._directory).encode("utf-8", "surrogateescape")]
        key += [(self._directory / x).read_bytes() for x in ("dataset_info.json", "features.json")]
        digest = hashlib.sha256(b"\0".join(key)).hexdigest()[:16]
        parent = default_data_dir(otherwise="set KERAS_HOME") / "tfds" / f"{self.title}-{digest}"
        root = parent / split
        if root.is_dir():
            self._check_complete(root, split)
            return root
        temporary = None
        try:
            parent.mkdir(parents=True, exist_ok=True)
            temporary = pathlib.Path(tempfile.mkdtemp(dir=parent, prefix=f".{split}-"))
            for number, (contents, label) in enumerate(self._labelled(split)):
                suffix = ".png" if contents.startswith(b"\x89PNG") else ".jpg"
                path = temporary / f"{label:05}" / f"{number:08}{suffix}"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(contents)
            temporary.chmod(0o755)
            temporary.rename(root)
        except OSError as error:
            if not root.is_dir():  # As another process may have made it.
                raise DataError(
                    f"{parent} cannot be written ({error.strerror or error}), where the images of "
                    f"{self._name} are to be; make room or set KERAS_HOME to another directory"
                ) from error
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
        return root
