"""Examples in image files, decoded as they are needed."""

import dataclasses
import functools
import os
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from multiprocessing.pool import ThreadPool

import numpy as np
import tensorflow as tf

from data.convert import convert
from data.decode import PNG, decode
from data.headers import Header, read_header
from data.source import DataError, UndecodableError, on_host, without_tuning

_THREADS = 16  # To read a header is mostly to wait for the file system.


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file, ready to be decoded.

    Attributes:
        path: the file.
        decodable: absolute path of the file to decode, as bytes: the file itself, or a conversion.
        decoder: number of the decoder for it (see `data/decode.py`).
        orientation: from 1 to 8, as in EXIF.
    """

    path: pathlib.Path
    decodable: bytes
    decoder: int
    orientation: int


class FileSource:
    """Examples in image files; `open_files` makes one.

    Args:
        files: the file of each example.
        labels: integers [len(files)].
        image_shape: (size, size, channels); 3 channels for RGB, 1 for gray.
    """

    def __init__(
        self,
        files: Sequence[ImageFile],
        labels: Sequence[int],
        image_shape: tuple[int, int, int],
    ):
        self.files = tuple(files)
        self.labels = np.asarray(labels, np.int32)
        self.image_shape = image_shape
        self._paths = on_host(np.array([x.decodable for x in files], object))
        self._decoders = on_host(np.array([x.decoder for x in files], np.int32))
        self._orientations = on_host(np.array([x.orientation for x in files], np.int32))

    def fetch(self, numbers: tf.Tensor) -> tf.Tensor:
        """See `Source`. Images are decoded one after the other, which bounds the memory."""
        with tf.device("CPU:0"):
            return tf.map_fn(
                self._decode,
                tf.convert_to_tensor(numbers),
                fn_output_signature=tf.TensorSpec(self.image_shape, tf.uint8),
                parallel_iterations=1,
            )

    def _decode(self, number: tf.Tensor) -> tf.Tensor:
        return decode(
            tf.gather(self._paths, number),
            tf.gather(self._decoders, number),
            tf.gather(self._orientations, number),
            self.image_shape,
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
        """By names and sizes, since reading every file would take too long.

        Raises:
            DataError: a file is missing or inaccessible; it is named.
        """
        checksum = 0
        for path in (file.path for file in self.files):
            try:
                size = path.stat().st_size
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}") from error
            line = b"%b/%b %d\n" % (os.fsencode(path.parent.name), os.fsencode(path.name), size)
            checksum = zlib.crc32(line, checksum)
        return checksum

    def describe(self, number: int) -> str:
        return str(self.files[number].path)


def open_files(
    paths: Sequence[pathlib.Path],
    labels: Sequence[int],
    image_shape: tuple[int, int, int],
    *,
    skip: bool,
) -> tuple[FileSource, list[pathlib.Path]]:
    """Reads the header of every file, and converts those that TensorFlow cannot decode as needed.

    JPEG, PNG, GIF, WebP and BMP are recognized by their contents. Of an animation the first frame
    is used, transparent images are composited onto white, 16 bits become 8, and the EXIF
    orientation is followed. An image is scaled until its shorter side fits, and its middle is cut
    out.

    Args:
        paths: an image file for each example.
        labels: integers [len(paths)].
        image_shape: (size, size, channels); 3 channels for RGB, 1 for gray.
        skip: leave out files that cannot be decoded. Every file is decoded to find them. Otherwise
            only headers are read, and a damaged body raises an error where the file is fetched.

    Returns:
        The source, and the files that were left out.

    Raises:
        UndecodableError: a header cannot be read or a file cannot be converted; not with `skip`.
        DataError: the cache for conversions cannot be written.
    """
    files = list(_open(paths, image_shape, skip=skip))
    kept = np.flatnonzero([file is not None for file in files])
    source = FileSource([files[i] for i in kept], np.asarray(labels)[kept], image_shape)
    if skip:
        good = source.decodable()
        kept = kept[good]
        source = FileSource([source.files[i] for i in good], source.labels[good], image_shape)
    return source, [paths[i] for i in np.setdiff1d(np.arange(len(paths)), kept)]


def _open(paths, image_shape, *, skip: bool) -> Iterator[ImageFile | None]:
    """Each of the files, or None where it is skipped."""

    def read(path) -> Header | UndecodableError:
        try:
            return read_header(path, image_shape[0])
        except UndecodableError as error:
            return error

    @functools.lru_cache
    def real(directory) -> str:
        # TensorFlow resolves ".." by text alone, and takes "name://" for a file system.
        return os.path.realpath(directory)

    with ThreadPool(_THREADS) as pool:
        for path, header in zip(paths, pool.imap(read, paths, chunksize=32), strict=True):
            try:
                if isinstance(header, UndecodableError):
                    raise header
                if header.decoder is None:  # One at a time, to bound the memory.
                    decodable, decoder = convert(path, image_shape), PNG
                else:
                    decodable, decoder = path, header.decoder
            except UndecodableError:
                if not skip:
                    raise
                yield None
                continue
            absolute = os.path.join(real(decodable.parent), decodable.name)
            yield ImageFile(path, os.fsencode(absolute), decoder, header.orientation)
