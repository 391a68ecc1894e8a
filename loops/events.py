"""TensorBoard event files: points that are written once each, and that can be taken back."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable

import tensorflow as tf


class EventLog:
    """Points of one split, in event files of one directory.

    Args:
        directory: is made when the first point is written.
        say: is told, in a line, of a file that is damaged.
    """

    def __init__(self, directory: pathlib.Path, say: Callable[[str], None] = lambda text: None):
        self.directory = directory
        self._say = say
        self._writer = None
        # The file of this process, and its size when it was last whole.
        self._path, self._size = None, 0

    def write(self, write_points) -> None:
        """Calls a function that writes summaries, and brings them to the disk.

        Raises:
            OSError, tf.errors.OpError: it cannot be written; the files are as they were.
        """
        before = set(_files(self.directory))
        try:
            if self._writer is None:
                self._writer = tf.summary.create_file_writer(str(self.directory))
            with self._writer.as_default(step=0):
                write_points()
            self._writer.flush()
        except (OSError, tf.errors.OpError):
            self.close()
            # A torn record would hide whatever comes behind it.
            if self._path is not None:
                os.truncate(self._path, self._size)
            for path in set(_files(self.directory)) - before:
                path.unlink()
            self._path = None
            raise
        if self._path is None:
            (self._path,) = set(_files(self.directory)) - before
        self._size = self._path.stat().st_size

    def close(self) -> None:
        """Leaves the file alone; the next point begins another one."""
        if self._writer is not None:
            with contextlib.suppress(OSError, tf.errors.OpError):
                self._writer.close()
        self._writer = None

    def rewind(self, step: int) -> None:
        """Takes back every point behind a step, which will be made again."""
        self.close()
        self._path = None
        for path in _files(self.directory):
            damaged = _rewind(path, step)
            if damaged is not None:
                self._say(
                    f"{path} is damaged; what can be read of it is kept, {damaged} has it all"
                )


def write_scalars(step: int, figures: dict[str, float]) -> None:
    """Charts figures, with the accuracy also the error, which papers often plot."""
    for name, value in figures.items():
        tf.summary.scalar(name, value, step=step)
    if "top_1_accuracy" in figures:
        tf.summary.scalar("top_1_error", 1 - figures["top_1_accuracy"], step=step)


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(directory.glob("events.out.tfevents.*"))


def _rewind(path: pathlib.Path, step: int) -> pathlib.Path | None:
    """Drops the points behind a step, and what a process that died has half written.

    Returns:
        A copy of the file as it was, where it is damaged in another way than by a kill.
    """
    events, torn, damaged = [], False, None
    try:
        for record in tf.data.TFRecordDataset(str(path)):
            events.append(tf.compat.v1.Event.FromString(record.numpy()))
    except tf.errors.DataLossError as error:
        torn = True
        if "truncated" not in error.message:
            damaged = path.with_name("damaged-" + path.name.replace("tfevents", "events"))
            shutil.copyfile(path, damaged)
    kept = [e for e in events if e.HasField("file_version") or e.step <= step]
    if not any(event.HasField("summary") for event in kept):
        path.unlink()
    elif torn or len(kept) < len(events):
        # A name that TensorBoard does not read.
        temporary = path.with_name("rewound.new")
        with tf.io.TFRecordWriter(str(temporary)) as writer:
            for event in kept:
                writer.write(event.SerializeToString())
        temporary.replace(path)
    return damaged
