"""What a run has cost: its seconds by kind of work, and where it was run."""

import time
from collections.abc import Mapping

from loops.hook import Hook
from loops.records.run import TIMES, read_json, write_json


class Times(Hook):
    """Writes `times.json`: seconds by kind of work over all processes, and where they were spent.

    "start" is everything up to the first step of a process, in which the step is traced;
    "evaluation" is scoring; "pictures" is what follows the last evaluation: predictions, pictures
    and the result; "training" is all that is left, with saves and pictures on the way. They add up
    to the run's time. What a killed process has done since it last saved is not counted.

    Args:
        run_dir: of the run.
        started: `time.monotonic()` at the start of this process, or of its work on this run.
        facts: what else to write, texts by name; of processes that differ, all.
        writes: whether this process writes.
    """

    def __init__(self, run_dir, *, started: float, facts: Mapping[str, str], writes: bool = True):
        self._path = run_dir / TIMES
        self._started, self._facts, self._writes = started, facts, writes
        self._seconds = dict.fromkeys(("start", "training", "evaluation"), 0.0)
        self._before: dict = {}
        self._first_step_made, self._evaluation_began = False, None
        self._ended = started

    def on_start(self, trainer) -> None:
        if not self._before and self._path.exists():
            self._before = read_json(self._path)

    def on_progress(self, trainer) -> None:
        if trainer.activity == "training":
            self._end_start()
        if trainer.activity.startswith("evaluating"):
            self._evaluation_began = time.monotonic()

    def on_log(self, trainer, row) -> None:
        self._end_start()  # If the first step ends an epoch.

    def _end_start(self) -> None:
        if not self._first_step_made:
            self._first_step_made = True
            self._seconds["start"] = time.monotonic() - self._started

    def on_evaluate(self, trainer, row, scores) -> None:
        if self._evaluation_began is not None:
            self._seconds["evaluation"] += time.monotonic() - self._evaluation_began
            self._evaluation_began = None

    def on_save(self, trainer) -> None:
        self._write()

    def on_end(self, trainer, outcome) -> None:
        self._ended = time.monotonic()
        self._write()

    def finish(self) -> None:
        """Counts what has been done since `on_end`: the result and the pictures are written."""
        self._seconds["pictures"] = time.monotonic() - self._ended
        self._write()

    def _write(self) -> None:
        if not self._writes:
            return
        now = dict(self._seconds)
        rest = time.monotonic() - self._started - sum(now.values())
        now["training" if self._first_step_made else "start"] += rest
        before = self._before.get("seconds", {})
        seconds = {name: round(before.get(name, 0.0) + now[name], 1) for name in now}
        facts = {
            name: _joined(self._before.get(name, ""), fact) for name, fact in self._facts.items()
        }
        processes = self._before.get("processes", 0) + 1
        write_json(self._path, {"seconds": {**before, **seconds}, "processes": processes, **facts})


def _joined(before: str, fact: str) -> str:
    """The facts of all processes, each once."""
    return "; ".join(filter(None, dict.fromkeys([*before.split("; "), fact])))
