"""Examples in image files, decoded as they are needed."""

import dataclasses
import os
import pathlib
import zlib
from multiprocessing.pool import ThreadPool

import numpy as np
import tensorflow as tf

from data.convert import cache_directory, convert, converted_sizes
from data.decode import PNG, decode
from data.headers import CONVERT, Header, decoders, read_header
from data.index import MIN_FILES, Index
from data.listing import THREADS, Listing
from data.source import UndecodableError, on_host, without_tuning

_BLOCK = 4096  # Files, of which there are objects at a time.


class FileSource:
    """Examples in image files; `open_files` makes one.

    Args:
        files: the files, of which the headers are known.
        labels: integers [len(files)].
        image_shape: (size, size, channels); 3 channels for RGB, 1 for gray.
        converted: bytes [len(files)], the name of the conversion that is decoded in place of a
            file, or b"".
    """

    def __init__(
        self,
        files: Listing,
        labels: np.ndarray,
        image_shape: tuple[int, int, int],
        converted: np.ndarray,
    ):
        self.files = files
        self.labels = np.asarray(labels, np.int32)
        self.image_shape = image_shape
        facts, instead = files.facts, converted != b""
        turned = facts["orientation"] > 4
        sizes = np.stack((facts["height"], facts["width"]), axis=1)
        sizes[instead] = converted_sizes(*sizes[instead].T, image_shape[0])
        sizes[turned] = sizes[turned, ::-1]
        # TensorFlow resolves ".." by text alone, and takes "name://" for a file system.
        directories = [os.path.realpath(files.root)]
        if instead.any():
            directories.append(os.path.realpath(cache_directory()))
        self._directories = on_host([os.fsencode(path) for path in directories])
        self._directory = on_host(instead.astype(np.int32))
        self._names = on_host(np.where(instead, converted, files.names))
        self._decoders = on_host(np.where(instead, PNG, _decoders(files, image_shape)))
        self._orientations = on_host(facts["orientation"].astype(np.int32))
        self._sizes = on_host(sizes)
        self._fingerprint = None

    def fetch(self, numbers: tf.Tensor, boxes: tf.Tensor | None = None) -> tf.Tensor:
        """See `Source`. Images are decoded one after the other, which bounds the memory."""
        numbers = tf.convert_to_tensor(numbers)
        with tf.device("CPU:0"):
            return tf.map_fn(
                lambda elements: self._decode(*elements),
                (numbers,) if boxes is None else (numbers, boxes),
                fn_output_signature=tf.TensorSpec(self.image_shape, tf.uint8),
                parallel_iterations=1,
            )

    def _decode(self, number: tf.Tensor, box: tf.Tensor | None = None) -> tf.Tensor:
        directory = tf.gather(self._directories, tf.gather(self._directory, number))
        return decode(
            tf.strings.join((directory, tf.gather(self._names, number)), "/"),
            tf.gather(self._decoders, number),
            tf.gather(self._orientations, number),
            self.image_shape,
            box,
        )

    def decodable(self) -> np.ndarray:
        """Sorted numbers of the examples that can be decoded, each being tried."""
        tried = tf.data.Dataset.range(len(self.files)).map(
            lambda number: (number, self._decode(number)[0, 0, 0]),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        tried = tried.ignore_errors().with_options(without_tuning())
        numbers = [number for number, _ in tried.as_numpy_iterator()]
        return np.array(numbers, np.int64)

    def fingerprint(self) -> int:
        """By names and sizes as they were listed, since reading all files would take too long."""
        if self._fingerprint is None:
            checksum, names, sizes = 0, self.files.names, self.files.facts["size"]
            for start in range(0, len(names), _BLOCK):
                some = slice(start, start + _BLOCK)
                for line in zip(names[some].tolist(), sizes[some].tolist(), strict=True):
                    checksum = zlib.crc32(b"%b %d\n" % line, checksum)
            self._fingerprint = checksum
        return self._fingerprint

    def sizes(self, numbers: tf.Tensor) -> tf.Tensor:
        """Height and width in pixels of what is decoded for the numbers, upright, int32 [n, 2]."""
        with tf.device("CPU:0"):
            return tf.gather(self._sizes, numbers)

    def describe(self, number: int) -> str:
        return self.files.path(number)


def open_files(
    files: Listing, labels: np.ndarray, image_shape: tuple[int, int, int], *, skip: bool
) -> tuple[FileSource, list[str]]:
    """Reads the header of every file, and converts those that TensorFlow cannot decode as needed.

    JPEG, PNG, GIF, WebP and BMP are recognized by their contents. Of an animation the first frame
    is used, transparent images are composited onto white, 16 bits become 8, and the EXIF
    orientation is followed. An image is scaled until its shorter side fits, and its middle is cut
    out.

    What has been found out of a large tree is remembered (`data/index.py`): headers, and which
    files have been decoded without an error. It is found out again for a file whose size or
    modification time has changed.

    Args:
        files: an image file for each example.
        labels: integers [len(files)].
        image_shape: (size, size, channels); 3 channels for RGB, 1 for gray.
        skip: leave out files that cannot be decoded. Every file is decoded to find them. Otherwise
            only headers are read, and a damaged body raises an error where the file is fetched.

    Returns:
        The source, and the paths that were left out.

    Raises:
        UndecodableError: a header cannot be read or a file cannot be converted; not with `skip`.
        DataError: the cache for conversions cannot be written.
    """
    labels = np.asarray(labels)
    known = Index(files.root) if len(files) >= MIN_FILES else None
    if known:
        known.recall(files)
    try:
        _read_headers(files, skip=skip)
        converted, bad = _convert(files, image_shape, skip=skip)

        def source(numbers: np.ndarray) -> FileSource:
            some = files.take(numbers)
            return FileSource(some, labels[numbers], image_shape, converted[numbers])

        if skip:
            how = _decoded(files, converted, image_shape)
            tried = np.flatnonzero(~bad & ((files.facts["decoded"] != how) | (how == 0)))
            good = tried[source(tried).decodable()]
            bad[np.setdiff1d(tried, good)] = True
            files.facts["decoded"][good] = how[good]
    finally:
        if known:
            known.remember(files)
    return source(np.flatnonzero(~bad)), [files.path(i) for i in np.flatnonzero(bad)]


def _read_headers(files: Listing, *, skip: bool) -> None:
    """Completes the facts of files whose headers have not been read."""

    def read(number: int) -> Header | UndecodableError:
        try:
            return read_header(files.path(number))
        except UndecodableError as error:
            return error

    unknown = np.flatnonzero(files.facts["kind"] == 0)
    with ThreadPool(THREADS) as pool:
        for start in range(0, len(unknown), _BLOCK):
            block = unknown[start : start + _BLOCK]
            for number, header in zip(block, pool.map(read, block, chunksize=32), strict=True):
                if isinstance(header, Header):
                    for field, value in dataclasses.asdict(header).items():
                        files.facts[field][number] = value
                elif not skip:
                    raise header


def _convert(
    files: Listing, image_shape: tuple[int, int, int], *, skip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Converts files, one at a time, to bound the memory.

    Returns:
        bytes [n], the name of the conversion or b""; bool [n], whether a file cannot be decoded,
        as far as is known.
    """
    bad = files.facts["kind"] == 0
    names = {}
    for number in np.flatnonzero((_decoders(files, image_shape) == CONVERT) & ~bad):
        try:
            names[number] = convert(pathlib.Path(files.path(number)), image_shape).name.encode()
        except UndecodableError:
            if not skip:
                raise
            bad[number] = True
    converted = np.zeros(len(files), f"S{max(map(len, names.values()), default=1)}")
    if names:
        converted[list(names)] = list(names.values())
    return converted, bad


def _decoders(files: Listing, image_shape: tuple[int, int, int]) -> np.ndarray:
    facts = files.facts
    return decoders(facts["kind"], facts["width"], facts["height"], image_shape[0])


def _decoded(
    files: Listing, converted: np.ndarray, image_shape: tuple[int, int, int]
) -> np.ndarray:
    """How each file is decoded, as it is remembered in its facts: a number from 1, uint8 [n].

    It is 0 for conversions, which are tried every time.
    """
    how = 1 + _decoders(files, image_shape) + 16 * (image_shape[-1] == 1)
    return np.where(converted == b"", how, 0).astype(np.uint8)
