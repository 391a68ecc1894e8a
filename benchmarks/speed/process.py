"""The command's side of a worker: starts it, and has it measure windows."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import selectors
import subprocess
import tempfile
import time
from collections.abc import Mapping

from benchmarks.gpu_timing import reason
from benchmarks.speed.job import Job

WORKER = pathlib.Path(__file__).with_name("worker.py")
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}
TIMEOUT = 900.0  # Seconds without an answer after which a worker has failed.


class WorkerError(RuntimeError):
    """A worker has failed; the message is the reason in a phrase."""


def _busy_seconds() -> float:
    """CPU seconds of all processes since the start of the machine; NaN if it does not say.

    They include what other virtual machines have taken ("steal").
    """
    try:
        line = pathlib.Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    except OSError:
        return math.nan
    user, nice, system, _, _, *others = map(int, line.split()[1:9])
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")


class Worker:
    """A process that measures a contestant in windows, and waits in between.

    Args:
        job: what it does.
        python: interpreter that has the framework.
        environment: variables to add.

    Attributes:
        start: its first answer, after the first step.

    Raises:
        WorkerError: it has failed.
    """

    def __init__(self, job: Job, python: str, environment: Mapping[str, str] | None = None):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as the worker.
        request = dataclasses.asdict(dataclasses.replace(job, started=time.monotonic()))
        self._process = subprocess.Popen(
            [python, str(WORKER), json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **QUIET, **(environment or {})},
            text=True,
            bufsize=1,
        )
        self.start = self._answer()

    def measure(self, seconds: float) -> dict:
        """Has it measure a window of at least so many seconds.

        Returns:
            What it found, and `disturbed`, the share of the machine's cores that others have used
            in the meantime; NaN if the system does not say.
        """
        began, busy, own = time.monotonic(), _busy_seconds(), self._cpu_seconds()
        with contextlib.suppress(BrokenPipeError):  # The missing answer says why.
            self._process.stdin.write(json.dumps({"seconds": seconds}) + "\n")
            self._process.stdin.flush()
        answer = self._answer()
        others = _busy_seconds() - busy - (self._cpu_seconds() - own)
        share = others / (os.cpu_count() * (time.monotonic() - began))
        return {**answer, "disturbed": max(share, 0.0)}

    def _cpu_seconds(self) -> float:
        """CPU seconds of the process and of those it has ended; NaN if the system does not say."""
        try:
            text = pathlib.Path(f"/proc/{self._process.pid}/stat").read_text(encoding="utf-8")
        except OSError:
            return math.nan
        ticks = text.rpartition(")")[2].split()[11:15]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def _answer(self) -> dict:
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if selector.select(TIMEOUT) else None
        if line:
            return json.loads(line)
        if line is None:
            self.end()
            raise WorkerError(f"no answer after {TIMEOUT:.0f} s")
        code = self._process.wait()
        self._errors.seek(0)
        raise WorkerError(reason(self._errors.read().decode("utf-8", "replace"), code))

    def end(self) -> None:
        """Ends the process; may be called again."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()
