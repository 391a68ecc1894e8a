"""A contestant's process: it measures a window whenever it is told to, and waits in between.

    python benchmarks/speed/worker.py '{"framework": "torch", "task": "train", ...}'

Commands come on standard input and answers leave on standard output, a line of JSON each. The first
answer comes after the first step. What else the process prints goes to standard error. It ends when
standard input does.
"""

import contextlib
import importlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.speed.job import Job  # noqa: E402

# Not counted at the beginning of a window. The batches that were prefetched while others were
# measured are used up, and the caches are warm again.
WARM_UP_SECONDS = 0.5
MODULES = {"ours": "ours", "keras": "keras_fit", "torch": "pytorch"}


class Ended(Exception):
    """The command wants no more windows."""


class Channel:
    """The lines between the command and this process.

    Args:
        source: file of commands.
        target: file for answers.
    """

    def __init__(self, source, target):
        self._source, self._target = source, target

    def send(self, **answer) -> None:
        """Sends an answer."""
        self._target.write(json.dumps(answer) + "\n")
        self._target.flush()

    def receive(self) -> dict:
        """Waits for a command; raises Ended behind the last one."""
        line = self._source.readline()
        if not line:
            raise Ended
        return json.loads(line)


class Meter:
    """Cuts what goes on and on into windows.

    Args:
        channel: to the command.
        started: `time.monotonic()` at the start of the process.
        per_step: images of a step.
        finish: waits until the device has done what it was told to.
    """

    def __init__(
        self,
        channel: Channel,
        started: float,
        per_step: float,
        finish: Callable[[], None] = lambda: None,
    ):
        self._channel, self._started, self._per_step = channel, started, per_step
        self._finish = finish
        self._is_warm, self._seconds = False, math.nan  # NaN before the first command.
        self._paused: tuple[float, float] | None = None
        self._restart(0)
        self.facts: dict = {}  # To send with each answer.

    def at(self, steps: int, waiting: float = math.nan) -> None:
        """Called whenever some steps were made; returns when the next are to be made.

        Args:
            steps: since the start of the process.
            waiting: share of the recent time that the step waited for data; NaN if unknown.
        """
        if steps <= self._first_step or self._paused is not None:
            return
        if math.isnan(self._seconds):
            self._finish()
            first = time.monotonic() - self._started
            self._wait(steps, {"first_step_seconds": first, "cpu": time.process_time()})
            return
        needed = self._seconds if self._is_warm else min(WARM_UP_SECONDS, self._seconds)
        if time.monotonic() - self._begun < needed:
            return
        self._finish()
        if not self._is_warm:
            self._is_warm = True
            self._restart(steps)
            return
        images = (steps - self._first_step) * self._per_step
        seconds = time.monotonic() - self._begun
        cpu = time.process_time() - self._cpu
        answer = {"images": images, "seconds": seconds, "cpu": cpu}
        if not math.isnan(waiting):
            answer["waiting"] = waiting
        self._wait(steps, answer)

    def pause(self) -> None:
        """What follows, until `resume`, is no part of a window."""
        self._paused = time.monotonic(), time.process_time()

    def resume(self) -> None:
        """The next steps count again; nothing happens without a `pause`."""
        if self._paused is not None:
            self._begun += time.monotonic() - self._paused[0]
            self._cpu += time.process_time() - self._paused[1]
            self._paused = None

    def _restart(self, steps: int) -> None:
        self._first_step = steps
        self._begun, self._cpu = time.monotonic(), time.process_time()

    def _wait(self, steps: int, answer: dict) -> None:
        """Answers, and waits for the next command."""
        self._channel.send(peak_bytes=peak_bytes(), **self.facts, **answer)
        began, cpu = time.monotonic(), time.process_time()
        self._seconds = self._channel.receive()["seconds"]
        waited = time.monotonic() - began
        if waited > 1:  # Threads may look for work a little longer.
            self.facts["idle_cpu"] = (time.process_time() - cpu) / waited
        self._is_warm = False
        self._restart(steps)


def peak_bytes() -> int:
    """The most memory that this process has had so far, in bytes."""
    try:
        status = pathlib.Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def main() -> None:
    """Does the job of the command line."""
    job = Job(**json.loads(sys.argv[1]))
    channel = Channel(sys.stdin, os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    tasks = importlib.import_module(f"benchmarks.speed.{MODULES[job.framework]}").TASKS
    with contextlib.suppress(Ended):
        tasks[job.task](job, channel)
    # Without the frameworks' ends, which may wait for threads.
    os._exit(0)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Keras at its best has the operations that the project chooses.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    main()
