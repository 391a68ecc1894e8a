"""Reads image files that are no examples of a dataset, as the dataset "folder" reads its own.

Synopsis:

reader = ImageReader((64, 64, 3))
for batch in reader.batches(paths, 32):
    for item in batch:
        if not isinstance(item, DataError):
            path, image = item
"""

import itertools
import os
import pathlib
import stat
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from data.boxes import middle
from data.convert import decode_with_pillow
from data.decode import decode, upright
from data.fault import why_unreadable
from data.headers import CONVERT, read_header, reason
from data.resampling import fit, scale_box
from data.source import DataError, UndecodableError

# More than there are CPUs would decode no faster, and need more memory.
_THREADS = min(16, os.cpu_count() or 1)


class ImageReader:
    """Reads image files at one size. The pixels are those of the dataset "folder".

    Nothing is written: what that dataset converts to a file of its own is converted in memory.

    Args:
        image_shape: (size, size, channels); 3 channels for RGB, 1 for gray.
        eval_crop: fraction of the shorter side that is read: the middle.

    Raises:
        DataError: images of that shape cannot be read.
    """

    def __init__(self, image_shape: tuple[int, int, int], eval_crop: float = 1.0):
        height, width, channels = image_shape
        if height != width:
            raise DataError(f"image files are cut to squares, and the net takes {height}x{width}")
        if channels not in (1, 3):
            raise DataError(f"image files are RGB or gray, and the net takes {channels} channels")
        self.image_shape = tuple(image_shape)
        self.eval_crop = eval_crop
        self._one_by_one = threading.Lock()
        integer = tf.TensorSpec([], tf.int32)
        self._decode = tf.function(
            lambda path, decoder, orientation, size: decode(
                path, decoder, orientation, self.image_shape, self._box(size)
            ),
            input_signature=[
                *(tf.TensorSpec([], tf.string), integer, integer),
                tf.TensorSpec([2], tf.float32),
            ],
        )

    def _box(self, size: tf.Tensor) -> tf.Tensor | None:
        """The part of an upright image of some height and width, float32 [2]; None for `fit`."""
        if self.eval_crop == 1:
            return None
        return middle(size[None], self.image_shape[:2], self.eval_crop)[0]

    def read(self, path: str) -> np.ndarray:
        """The image in a file, uint8 of `image_shape`.

        Raises:
            DataError: it cannot be read or decoded; the message names the file and the reason.
        """
        try:
            # Opening a pipe would block forever.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise DataError(f"{path} cannot be read: it is not a regular file")
            header = read_header(pathlib.Path(path))
            decoder = header.decoder(self.image_shape[0])
            with tf.device("CPU:0"):
                if decoder == CONVERT:
                    return self._convert(path, header.orientation)
                directory, name = os.path.split(path)
                # TensorFlow resolves ".." by text alone, and takes "name://" for a file system.
                absolute = os.fsencode(os.path.join(os.path.realpath(directory), name))
                size = (header.height, header.width)
                size = size[::-1] if header.orientation > 4 else size
                return self._decode(absolute, decoder, header.orientation, size).numpy()
        except UndecodableError as error:
            why = reason(error.__cause__)
        except tf.errors.ResourceExhaustedError:
            raise
        except tf.errors.OpError as error:
            why = why_unreadable(error)
        except OSError as error:
            why = error.strerror
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            why = str(error)  # The path contains NUL.
        raise DataError(f"{path} cannot be read: {why}")

    def _convert(self, path: str, orientation: int) -> np.ndarray:
        with self._one_by_one:  # To bound the memory.
            image = decode_with_pillow(pathlib.Path(path), self.image_shape)
        size, channels = self.image_shape[:2], self.image_shape[2]
        pixels = tf.reshape(np.asarray(image), (image.height, image.width, channels))
        box = self._box(tf.constant(pixels.shape[:2], tf.float32))
        # As of a file that has been converted for a dataset.
        pixels = fit(pixels, size[0]) if box is None else scale_box(pixels, box, size)
        return upright(pixels, tf.constant(orientation)).numpy()

    def batches(
        self, paths: Iterable[str | DataError], batch_size: int
    ) -> Iterator[list[tuple[str, np.ndarray] | DataError]]:
        """Reads many files, each once and in their order, the next batch while one is used.

        Args:
            paths: of image files. A `DataError` among them takes part as a file that cannot be
                read.
            batch_size: how many are read at a time; the last batch may be smaller. Two batches are
                in memory.

        Yields:
            For each path of a batch the path and its image, uint8 of `image_shape`, or the error.
        """
        paths = iter(paths)
        with ThreadPoolExecutor(_THREADS) as pool:
            running = None
            while batch := list(itertools.islice(paths, batch_size)):
                following = pool.map(self._try, batch)
                if running is not None:
                    yield list(running)
                running = following
            if running is not None:
                yield list(running)

    def _try(self, path: str | DataError) -> tuple[str, np.ndarray] | DataError:
        if isinstance(path, DataError):
            return path
        try:
            return path, self.read(path)
        except DataError as error:
            return error
