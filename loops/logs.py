"""What a run tells: rows in metrics.jsonl, scalars in TensorBoard, lines in the terminal."""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable

import tensorflow as tf

from loops.errors import SaveError, reason
from loops.events import EventLog, write_scalars
from loops.run_dir import METRICS, without_nan

_SPLITS = ("train", "val", "test")


class MetricsLog:
    """Rows of figures, to `metrics.jsonl` and to TensorBoard.

    Figures are what seed and configuration decide; `metrics.jsonl` holds nothing else, so that runs
    can be compared byte by byte. Timings go to TensorBoard alone.

    What cannot be written, for want of room, is kept, and written with the next row.

    Args:
        run_dir: directory of the run.
        writes: False for a worker that is not the chief, which keeps the rows to itself.
        say: is told, in a line, of a file that is damaged.
    """

    def __init__(
        self,
        run_dir: pathlib.Path,
        *,
        writes: bool = True,
        say: Callable[[str], None] = lambda text: None,
    ):
        self._path = run_dir / METRICS
        self._writes = writes
        self._say = say
        self._events = {split: EventLog(run_dir / split, say) for split in _SPLITS}
        # What is not written yet: lines; points as (split, step, function that writes them); and
        # the last steps up to which the files hold good.
        self._lines, self._points, self._behind = [], [], None
        self._texts = []
        self._rows = None

    @property
    def rows(self) -> list[dict]:
        """What was logged, in order."""
        if self._rows is None:
            with _guard(self._path):
                self._rows = self._read()
        return self._rows

    def rewind(self, step: int, evaluated_step: int) -> None:
        """Takes back what was logged behind a state that the run goes on from, at the next `flush`.

        Args:
            step: of the state. Rows of later steps will be made again, and so will those of the
                test split.
            evaluated_step: the last of which the state knows the validation scores.

        Raises:
            SaveError: the rows cannot be read.
        """
        if step and not self._path.exists():
            self._say(f"{self._path} is gone, and with it the rows up to step {step:,}")
        last = {"train": step, "val": evaluated_step, "test": -1}
        self._rows = [row for row in self.rows if row["step"] <= last[row["split"]]]
        kept = [point for point in self._points if 0 < point[1] <= last[point[0]]]
        self._points = [*([] if step else self._texts), *kept]
        self._behind = last

    def _read(self) -> list[dict]:
        """The rows that are there; a file with a spoilt line is also set aside as it is."""
        if not self._path.exists():
            return []
        lines = self._path.read_text(errors="replace").splitlines()
        rows = [_row(line) for line in lines]
        # A killed run can leave half a line at the end.
        spoilt = rows[:-1].count(None)
        if self._writes and spoilt:
            damaged = self._path.with_name("damaged-" + METRICS)
            shutil.copyfile(self._path, damaged)
            self._say(f"{self._path} has {spoilt} spoilt line(s), left out; {damaged} has them")
        return [row for row in rows if row is not None]

    def write(
        self, split: str, step: int, epoch: float, timings: dict | None = None, **figures: float
    ) -> None:
        """Logs a row.

        Args:
            split: "train", "val" or "test".
            step: the global step.
            epoch: epochs seen.
            timings: figures for TensorBoard alone.
            figures: for both.

        Raises:
            SaveError: it cannot be written now.
        """
        row = {"split": split, "step": step, "epoch": round(epoch, 4), **figures}
        self.rows.append(row)
        if self._writes:
            self._lines.append(_line(row))
            points = functools.partial(write_scalars, step, {**figures, **(timings or {})})
            self._points.append((split, step, points))
            self.flush()

    def flush(self) -> None:
        """Writes what could not be written before.

        Raises:
            SaveError: it cannot be written now.
        """
        if not self._writes:
            return
        if self._behind is not None:
            self._rewind_files()
        while self._lines:
            with _guard(self._path):
                _append(self._path, self._lines[0])
            self._lines.pop(0)
        while self._points:
            split, _, write_points = self._points[0]
            events = self._events[split]
            with _guard(events.directory):
                events.write(write_points)
            self._points.pop(0)

    def _rewind_files(self) -> None:
        text = "".join(map(_line, self.rows))
        with _guard(self._path):
            if not self._path.exists() or self._path.read_text(errors="replace") != text:
                temporary = self._path.with_name(METRICS + ".new")
                temporary.write_text(text)
                temporary.replace(self._path)
        self._lines = []  # They are among the rows.
        for split, events in self._events.items():
            with _guard(events.directory):
                # Texts, which are of step 0, are written again.
                events.rewind(self._behind[split] or -1)
        self._behind = None

    def write_text(self, title: str, text: str) -> None:
        """Shows a text, in Markdown, in TensorBoard, from the next `flush` on."""
        text = _encodable(text)
        self._texts.append(("train", 0, lambda: tf.summary.text(title, text, step=0)))
        self._points.append(self._texts[-1])


@contextlib.contextmanager
def _guard(path: pathlib.Path):
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        raise SaveError(f"cannot write {path}: {reason(error)}") from error


def _append(path: pathlib.Path, text: str) -> None:
    """Adds a line whole or not at all."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a") as file:
            file.write(text)
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise


def _row(line: str) -> dict | None:
    """The row in a line, or None if it is spoilt."""
    with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError, RecursionError):
        row = json.loads(line)
        figures = [value for name, value in row.items() if name != "split"]
        if (
            row["split"] in _SPLITS
            and type(row["step"]) is int
            and all(value is None or type(value) in (int, float) for value in figures)
        ):
            return row
    return None


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
        quiet: print nothing, as a worker that is not the chief.
    """

    def __init__(self, stream=None, *, quiet: bool = False):
        self._stream = open(os.devnull, "w") if quiet else stream or sys.stdout  # noqa: SIM115
        self._live = self._stream.isatty()
        self._last = time.monotonic()

    def line(self, text: str) -> None:
        """A line that stays."""
        self._print(("\r\x1b[K" if self._live else "") + text + "\n")

    def _print(self, text: str) -> None:
        try:
            print(
                _encodable(text, self._stream.encoding or "utf-8"),
                end="",
                file=self._stream,
                flush=True,
            )
        except OSError:  # A full disk or a reader that left: nobody is told, and the run goes on.
            null = os.open(os.devnull, os.O_WRONLY)
            with contextlib.suppress(OSError, ValueError):
                os.dup2(null, self._stream.fileno())
            os.close(null)

    def status(self, text: str) -> None:
        """What is going on, until the next line or status."""
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._print(f"\r\x1b[K{text[:width]}")
        elif time.monotonic() - self._last > 30:
            self._last = time.monotonic()
            self._print(text + "\n")


def bar(fraction: float, width: int = 20) -> str:
    """A progress bar, as `[=====>    ]`."""
    full = round(min(max(fraction, 0), 1) * width)
    return "[" + "=" * full + " " * (width - full) + "]"
