"""The rows of a run in `metrics.jsonl`, one JSON object a line.

The file has only what seed and configuration decide, so that runs can be compared byte by byte.
"""

import contextlib
import json
import math
import pathlib
import shutil
from collections.abc import Callable

from loops.errors import RunError, SaveError, reason
from loops.hook import Hook
from loops.records.run import METRICS, without_nan

SPLITS = ("train", "val", "test")


class MetricsLog(Hook):
    """Appends each row to `metrics.jsonl`; what cannot be written is kept for the next occasion.

    Args:
        run_dir: directory of the run.
        writes: False on a worker that is not the chief, which only keeps the rows.
        say: prints a message about a damaged file.
    """

    def __init__(self, run_dir: pathlib.Path, *, writes: bool = True, say: Callable = print):
        self._path = run_dir / METRICS
        self._writes = writes
        self._say = say
        self._rows, self._num_damaged = None, 0
        # How many rows the file has, and no more; None if it must be written anew.
        self._num_written = None

    @property
    def rows(self) -> list[dict]:
        """The rows so far, in order; raises RunError if the file cannot be read."""
        if self._rows is None:
            self._rows, self._num_damaged = _parse(_read(self._path))
        return self._rows

    def on_start(self, trainer) -> None:
        # Where the sums of the window cover all steps, no row was due yet.
        logged = trainer.step > int(trainer.state.window["steps"].numpy())
        if self._writes and self._rows is None and logged and not self._path.exists():
            self._say(f"{self._path} is missing, and with it the rows up to step {trainer.step:,}")
        last = {"train": trainer.step, "val": trainer.evaluated_step, "test": -1}
        self._rows = [row for row in self.rows if row["step"] <= last[row["split"]]]
        self._num_written = None
        self._flush()

    def on_log(self, trainer, row: dict) -> None:
        self.rows.append(row)
        self._flush()

    def on_evaluate(self, trainer, row: dict, scores) -> None:
        self.on_log(trainer, row)

    def on_save(self, trainer) -> None:
        self._flush()

    def _flush(self) -> None:
        if not self._writes or self._num_written == len(self.rows):
            return
        try:
            if self._num_written is None:
                self._write_anew()
            else:
                with self._path.open("a", encoding="utf-8") as file:
                    file.writelines(map(_line, self.rows[self._num_written :]))
        except OSError as error:
            self._num_written = None
            raise SaveError(f"cannot write {self._path}: {reason(error)}") from error
        self._num_written = len(self.rows)

    def _write_anew(self) -> None:
        if self._num_damaged:
            copy = self._path.with_name("damaged-" + METRICS)
            shutil.copyfile(self._path, copy)
            self._say(f"{self._path} had {self._num_damaged} damaged line(s); {copy} has them")
            self._num_damaged = 0
        text = "".join(map(_line, self.rows))
        if text != _read(self._path):
            temporary = self._path.with_name(METRICS + ".new")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(self._path)


def read_rows(path: pathlib.Path) -> list[dict]:
    """The rows in a `metrics.jsonl`, in order, without damaged lines; none if there is no file.

    Figures that are not finite are NaN. Raises RunError if the file cannot be read.
    """
    return _parse(_read(path))[0]


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise RunError(f"cannot read {path}: {reason(error)}") from error


def _parse(text: str) -> tuple[list[dict], int]:
    """The rows in a text, and the number of damaged lines."""
    # A process that was killed can leave half a line at the end.
    *lines, rest = text.split("\n")
    rows = [_row(line) for line in lines]
    return [row for row in [*rows, _row(rest)] if row is not None], rows.count(None)


def _row(line: str) -> dict | None:
    """The row in a line, or None if it is damaged."""
    with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError, RecursionError):
        row = json.loads(line)
        figures = [value for name, value in row.items() if name != "split"]
        valid = all(value is None or type(value) in (int, float) for value in figures)
        if valid and row["split"] in SPLITS and type(row["step"]) is int:
            return {name: math.nan if value is None else value for name, value in row.items()}
    return None


def _line(row: dict) -> str:
    return json.dumps(without_nan(row)) + "\n"
