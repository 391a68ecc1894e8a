"""TensorBoard's event files: scalars, texts, images and histograms.

Event files are never changed. When training goes back to an earlier step, a new file begins with a
START event of that step, and readers drop what earlier files have from there on. A reader that has
seen a newer file of a directory does not return to an older one, so a directory has one writer.
"""

import contextlib
import os
import pathlib
import re
import socket
import struct
import time
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.image.metadata import create_summary_metadata
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.util.tensor_util import make_tensor_proto

from loops.errors import SaveError, reason
from loops.records.checkpoint_files import literal_path


class EventWriter:
    """Points in the event files of a directory, which is created with the first one.

    Points are buffered until `flush`. What cannot be written is kept for the next one.
    """

    def __init__(self, directory: pathlib.Path):
        self._directory = directory
        self._file = None
        # What is not known to be on disk: events, and the step from which older ones are obsolete.
        self._pending, self._restart = [], None
        # The events of the last step that is on disk.
        self._newest = []

    def restart(self, step: int) -> None:
        """Makes readers drop the points of `step` and later ones, which will be written again."""
        self._pending = [event for event in self._pending if event.step < step]
        self._restart, self._newest = step, []
        self._close()

    def add_scalars(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds a point to the curve of each figure, by tag."""
        values = [scalar_pb(tag, value).value[0] for tag, value in figures.items()]
        self.add(step, Summary(value=values))

    def add_text(self, tag: str, markdown: str, step: int = 0) -> None:
        """Adds a text."""
        self.add(step, text_pb(tag, markdown.encode("utf-8", "backslashreplace")))

    def add_image(self, tag: str, png: bytes, step: int) -> None:
        """Adds an image, the content of a PNG file."""
        width, height = struct.unpack(">II", png[16:24])  # Of the header.
        content = [str(width).encode(), str(height).encode(), png]
        self.add_tensor(step, tag, content, create_summary_metadata(None, ""))

    def add_histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        """Adds a histogram of an array's finite values, in 30 bins; nothing if there are none."""
        values = np.asarray(values, np.float64)
        values = values[np.isfinite(values)]
        if values.size:
            self.add(step, histogram_pb(tag, values))

    def add_tensor(self, step: int, tag: str, content, metadata: SummaryMetadata) -> None:
        """Adds strings in the form of a plugin, which the metadata name."""
        tensor = make_tensor_proto(content, dtype=tf.string)
        self.add(step, Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)]))

    def add(self, step: int, summary: Summary) -> None:
        """Adds a point of any kind."""
        self._pending.append(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Writes what is pending; raises SaveError if it cannot be written now."""
        if not self._pending and (self._restart is None or not self.has_files()):
            return
        created = None
        try:
            if self._file is None:
                created = self._open()
            for event in self._pending:
                self._file.write(event.SerializeToString())
            self._file.flush()
        except (OSError, tf.errors.OpError) as error:
            # The file may end in half an event, behind which nothing would be read.
            self._close()
            if created is not None:
                created.unlink(missing_ok=True)
            raise SaveError(f"cannot write {self._directory}: {reason(error)}") from error
        events = [*self._newest, *self._pending]
        self._newest = [event for event in events if event.step == events[-1].step]
        self._pending, self._restart = [], None

    def has_files(self) -> bool:
        """Whether there are event files in the directory."""
        return any("tfevents" in path.name for path in self._directory.glob("*"))

    def _open(self) -> pathlib.Path:
        self._directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{self._stamp()}.{socket.gethostname()}.{os.getpid()}"
        self._file = tf.io.TFRecordWriter(f"{literal_path(self._directory)}/{name}")
        first = self._restart
        if first is None:
            first = self._pending[0].step
            # Readers drop what earlier files have of this step.
            self._pending = [e for e in self._newest if e.step >= first] + self._pending
            self._newest = []
        start = Event(step=first, session_log=SessionLog(status=SessionLog.START))
        for event in (Event(file_version="brain.Event:2"), start):
            event.wall_time = time.time()
            self._file.write(event.SerializeToString())
        return self._directory / name

    def _stamp(self) -> str:
        """The time, but later than that of existing files, since names are read in order."""
        names = re.findall(r"tfevents\.(\d{10})\.(\d{9})\.", "\n".join(os.listdir(self._directory)))
        times = [time.time_ns(), *(int(seconds + rest) + 1 for seconds, rest in names)]
        seconds, rest = divmod(max(times), 10**9)
        return f"{seconds:010}.{rest:09}"

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError, tf.errors.OpError):
                self._file.close()
        self._file = None
