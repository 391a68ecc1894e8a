"""What a run has cost: its seconds by kind of work, and where it was run."""

import time
from collections.abc import Mapping

from loops.hook import Hook
from loops.records.run import TIMES, read_json, write_json


class Times(Hook):
    """Writes `times.json`: seconds of starting, training and evaluating, over all processes.

    Starting is everything up to the first step of a process, in which the step is traced. Training
    is all that is left, saves and pictures too. What a killed process has done since it last saved
    is not counted.

    Args:
        run_dir: of the run.
        started: `time.monotonic()` at the start of this process, or of its work on this run.
        facts: what else to write, about the machine.
        writes: whether this process writes.
    """

    def __init__(self, run_dir, *, started: float, facts: Mapping, writes: bool = True):
        self._path = run_dir / TIMES
        self._started, self._facts, self._writes = started, facts, writes
        self._seconds = dict.fromkeys(("start", "evaluation"), 0.0)
        self._before: dict = {}
        self._first_step_made, self._evaluation_began = False, None

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
        self._write()

    def _write(self) -> None:
        if not self._writes:
            return
        all_of_it = time.monotonic() - self._started
        now = {**self._seconds, "training": all_of_it - sum(self._seconds.values())}
        if not self._first_step_made:
            now = {"start": all_of_it - now["evaluation"], "evaluation": now["evaluation"]}
        before = self._before.get("seconds", {})
        seconds = {
            name: round(before.get(name, 0.0) + now.get(name, 0.0), 1)
            for name in ("start", "training", "evaluation")
        }
        processes = self._before.get("processes", 0) + 1
        write_json(self._path, {"seconds": seconds, "processes": processes, **self._facts})
