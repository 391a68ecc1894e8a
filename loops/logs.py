"""What a run tells: rows in metrics.jsonl, scalars in TensorBoard, lines in the terminal."""

import json
import pathlib
import shutil
import sys
import time

import tensorflow as tf

from loops.errors import RunError, reason
from loops.run_dir import METRICS, without_nan


class MetricsLog:
    """Rows of metrics, each written to metrics.jsonl and to TensorBoard.

    A row has "split" ("train", "val" or "test"), "step", "epoch" and figures. In TensorBoard each
    split is a run of its own, so that its curves share the charts of the others.

    Args:
        run_dir: directory of the run.
        step: where the run stands; later rows, of steps that are made again, are dropped.
    """

    def __init__(self, run_dir: pathlib.Path, step: int):
        self._run_dir = run_dir
        self._path = run_dir / METRICS
        self._writers = {}
        # A run that goes on has not been scored on the test split, or scores it again.
        self.rows = [r for r in self._read() if r["step"] <= step and r["split"] != "test"]
        self._guard(self._rewrite)

    def _rewrite(self) -> None:
        temporary = self._path.with_name(METRICS + ".new")
        temporary.write_text("".join(map(_line, self.rows)))
        temporary.replace(self._path)

    def _read(self) -> list[dict]:
        if not self._path.exists():
            return []
        rows = []
        for line in self._path.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break  # A killed run can leave half a line, and nothing behind it.
            if isinstance(row, dict) and {"split", "step"} <= row.keys():
                rows.append(row)
        return rows

    def _guard(self, write) -> None:
        try:
            write()
        except (OSError, tf.errors.OpError) as error:
            raise RunError(f"cannot write to {self._run_dir}: {reason(error)}") from error

    def _append(self, row: dict) -> None:
        with self._path.open("a") as file:
            file.write(_line(row))

    def _writer(self, split: str) -> tf.summary.SummaryWriter:
        if split not in self._writers:
            self._writers[split] = tf.summary.create_file_writer(str(self._run_dir / split))
        return self._writers[split]

    def write(self, split: str, step: int, epoch: float, **figures: float) -> None:
        """Logs a row.

        Raises:
            RunError: it cannot be written.
        """
        row = {"split": split, "step": step, "epoch": round(epoch, 4), **figures}
        self.rows.append(row)

        def write():
            self._append(row)
            write_scalars(self._writer(split), step, figures)

        self._guard(write)

    def write_text(self, title: str, text: str) -> None:
        """Shows a text, in Markdown, in TensorBoard."""

        def write():
            with self._writer("train").as_default(step=0):
                tf.summary.text(title, _encodable(text))
            self._writer("train").flush()

        self._guard(write)


def write_scalars(writer: tf.summary.SummaryWriter, step: int, figures: dict[str, float]) -> None:
    """Charts figures in TensorBoard, with the accuracy also the error, which papers often plot."""
    with writer.as_default(step=step):
        for name, value in figures.items():
            tf.summary.scalar(name, value)
        if "top_1_accuracy" in figures:
            tf.summary.scalar("top_1_error", 1 - figures["top_1_accuracy"])
    writer.flush()


def _line(row: dict) -> str:
    return json.dumps(without_nan(row)) + "\n"


def duration(seconds: float) -> str:
    """Seconds for a person: "48s", "12m 05s", "3h 20m"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60:02d}s"
    return f"{seconds // 3600}h {seconds // 60 % 60:02d}m"


def _encodable(text: str, encoding: str = "utf-8") -> str:
    """The text with escapes for what the encoding lacks, as in file names that are not UTF-8."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


class Terminal:
    """Lines for a person: a status that renews itself, and lines that stay.

    Where the output is not a terminal, a status is printed twice a minute at most.

    Args:
        stream: where to, by default standard output.
    """

    def __init__(self, stream=None):
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        self._last = time.monotonic()

    def line(self, text: str) -> None:
        """A line that stays."""
        clear = "\r\x1b[K" if self._live else ""
        text = _encodable(text, self._stream.encoding or "utf-8")
        print(clear + text, file=self._stream, flush=True)

    def status(self, text: str) -> None:
        """What is going on, until the next line or status."""
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{text[:width]}", end="", file=self._stream, flush=True)
        elif time.monotonic() - self._last > 30:
            self._last = time.monotonic()
            print(text, file=self._stream, flush=True)


def bar(fraction: float, width: int = 20) -> str:
    """A progress bar, as `[=====>    ]`."""
    full = round(min(max(fraction, 0), 1) * width)
    return "[" + "=" * full + " " * (width - full) + "]"
