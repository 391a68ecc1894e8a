"""TensorBoard's event files: a curve for every figure, and texts.

Event files are never changed. When training goes back to an earlier step, a new file begins with a
START event of that step, and readers drop what earlier files have from there on.
"""

import contextlib
import os
import pathlib
import re
import socket
import time
from collections.abc import Mapping

import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb

from loops.errors import SaveError, reason
from loops.hook import Hook
from loops.records.checkpoint_files import literal_path
from loops.records.metrics_log import SPLITS


class EventWriter:
    """Points in the event files of a directory, which is created with the first one.

    Points are buffered until `flush`. What cannot be written is kept for the next one.
    """

    def __init__(self, directory: pathlib.Path):
        self._directory = directory
        self._file = None
        # What is not known to be on disk: events, and the step from which older ones are obsolete.
        self._pending, self._restart = [], None

    def restart(self, step: int) -> None:
        """Makes readers drop the points of `step` and later ones, which will be written again."""
        self._pending = [event for event in self._pending if event.step < step]
        self._restart = step
        self._close()

    def add_scalars(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds a point to the curve of each figure; with top-1 accuracy also its error."""
        figures = dict(figures)
        if "top_1_accuracy" in figures:
            figures["top_1_error"] = 1 - figures["top_1_accuracy"]
        values = [scalar_pb(name, value).value[0] for name, value in figures.items()]
        self._add(step, summary=Summary(value=values))

    def add_text(self, title: str, markdown: str) -> None:
        """Adds a text, at step 0."""
        self._add(0, summary=text_pb(title, markdown.encode("utf-8", "backslashreplace")))

    def _add(self, step: int, **content) -> None:
        self._pending.append(Event(wall_time=time.time(), step=step, **content))

    def flush(self) -> None:
        """Writes what is pending; raises SaveError if it cannot be written now."""
        if not self._pending and (self._restart is None or not self._directory.exists()):
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
        self._pending, self._restart = [], None

    def _open(self) -> pathlib.Path:
        self._directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{self._stamp()}.{socket.gethostname()}.{os.getpid()}"
        self._file = tf.io.TFRecordWriter(f"{literal_path(self._directory)}/{name}")
        first = self._pending[0].step if self._restart is None else self._restart
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


class TensorBoard(Hook):
    """Writes every row to TensorBoard: `train/`, `val/` and `test/`, with the same tags.

    Args:
        run_dir: directory of the run.
        writes: False on a worker that is not the chief.
        texts: texts in Markdown by title, shown at step 0.
    """

    def __init__(self, run_dir: pathlib.Path, *, writes: bool = True, texts: Mapping | None = None):
        self._writers = {split: EventWriter(run_dir / split) for split in SPLITS if writes}
        self._texts = texts or {}

    def on_start(self, trainer) -> None:
        is_new = trainer.step == 0
        first = {"train": trainer.step + 1, "val": trainer.evaluated_step + 1, "test": 0}
        for split, writer in self._writers.items():
            writer.restart(0 if is_new else first[split])
        if is_new and self._writers:
            for title, text in self._texts.items():
                self._writers["train"].add_text(title, text)
        self.on_save(trainer)

    def on_log(self, trainer, row: dict) -> None:
        self._add(trainer, row | trainer.timings)

    def on_evaluate(self, trainer, row: dict, scores) -> None:
        self._add(trainer, row)

    def _add(self, trainer, row: dict) -> None:
        if self._writers:
            figures = {k: v for k, v in row.items() if k not in ("split", "step", "epoch")}
            self._writers[row["split"]].add_scalars(row["step"], figures)
            self.on_save(trainer)

    def on_save(self, trainer) -> None:
        for writer in self._writers.values():
            writer.flush()
