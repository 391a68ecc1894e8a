"""Workers that take turns, and what they have found."""

import contextlib
import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from benchmarks.speed.job import Job
from benchmarks.speed.process import Worker, WorkerError

TRIALS = 3  # Windows in which the fastest of several ways is found.
TRIAL_SECONDS = 1.5
# Share of the machine's cores that others may use during a window. It is measured again otherwise,
# and the least disturbed counts: threads that wait for each other at the end of every operation, as
# PyTorch's, are ten times as slow if one of their cores is taken.
DISTURBED = 0.05
TRIES = 2


@dataclasses.dataclass(frozen=True)
class Settings:
    """How it is measured.

    Attributes:
        pythons: interpreters by framework.
        windows: number of windows of each contestant.
        seconds: that a window lasts, at least.
        say: prints a line.
    """

    pythons: Mapping[str, str]
    windows: int
    seconds: float
    say: Callable[[str], None] = print


@dataclasses.dataclass
class Measured:
    """What a contestant has done.

    Attributes:
        job: what it was.
        start: after the first step: `first_step_seconds` since the start of the process, and `cpu`.
        windows: for each, `images`, `seconds`, `cpu`, `disturbed` and perhaps `waiting`.
        tried: images per second of each variant that was tried for it, or why it has failed.
        failed: why it has no figures; empty if it has.
    """

    job: Job
    start: dict = dataclasses.field(default_factory=dict)
    windows: list[dict] = dataclasses.field(default_factory=list)
    tried: dict[str, float | str] = dataclasses.field(default_factory=dict)
    failed: str = ""

    def rates(self, per: str = "seconds") -> list[float]:
        """Images per second, or per CPU second ("cpu"), of each window."""
        return [window["images"] / max(window[per], 1e-6) for window in self.windows]

    @property
    def rate(self) -> float:
        """Median of the images per second."""
        return statistics.median(self.rates())

    @property
    def peak_bytes(self) -> int:
        return max(x["peak_bytes"] for x in (self.start, *self.windows))

    @property
    def idle_cpu(self) -> float:
        """CPU seconds per second while others were measured, at most."""
        return max((x["idle_cpu"] for x in self.windows[1:] if "idle_cpu" in x), default=0.0)

    @property
    def disturbed(self) -> float:
        """Median of the share of the cores that others used; NaN if it is unknown."""
        return statistics.median(x["disturbed"] for x in self.windows)


def contest(
    families: Sequence[Sequence[Job]],
    settings: Settings,
    environment: Mapping[str, str] | None = None,
) -> list[Measured]:
    """Measures one contestant of each family; their windows alternate.

    Args:
        families: alternatives, of which the fastest in a short trial takes part.
        settings: how it is measured.
        environment: variables of all workers to add.
    """
    with contextlib.ExitStack() as stack:
        pairs = [_fastest(family, settings, stack, environment) for family in families]
        running = [pair for pair in pairs if pair[1] is not None]
        settings.say(f"  measuring {len(running)} in turns, {settings.windows} windows each")
        for number in range(settings.windows):
            # None is always behind the same one.
            shift = number % max(len(running), 1)
            for measured, worker in running[shift:] + running[:shift]:
                _measure(measured, worker, settings.seconds)
            running = [pair for pair in running if not pair[0].failed]
        return [measured for measured, _ in pairs]


def _fastest(family, settings, stack, environment) -> tuple[Measured, Worker | None]:
    """The fastest of a family in a trial, and its process; None if all have failed."""
    found = [(Measured(job), _start(job, settings, environment)) for job in family]
    tried = {}
    alive = []
    for measured, worker in found:
        if isinstance(worker, str):
            measured.failed = tried[measured.job.variant] = worker
            continue
        stack.callback(worker.end)
        measured.start = worker.start
        alive.append((measured, worker))
    for _ in range(TRIALS if len(alive) > 1 else 0):
        for measured, worker in alive:
            _measure(measured, worker, min(settings.seconds, TRIAL_SECONDS))
            if measured.failed:
                tried[measured.job.variant] = measured.failed
        alive = [pair for pair in alive if not pair[0].failed]
    for measured, _ in alive:
        if measured.windows:
            tried[measured.job.variant] = max(measured.rates())
    best = max(
        alive, key=lambda pair: tried.get(pair[0].job.variant, 0), default=(found[0][0], None)
    )
    for pair in alive:
        if pair is not best:
            pair[1].end()
    best[0].windows.clear()
    if len(family) > 1:
        best[0].tried = tried
    return best


def _start(job: Job, settings: Settings, environment) -> Worker | str:
    """A process, or why there is none."""
    try:
        worker = Worker(job, settings.pythons[job.framework], environment)
    except WorkerError as error:
        settings.say(f"  {job.name}, {job.precision}: {error}")
        return str(error)
    seconds = worker.start["first_step_seconds"]
    settings.say(f"  {job.name}, {job.precision}: first step after {seconds:.1f} s")
    return worker


def _measure(measured: Measured, worker: Worker, seconds: float) -> None:
    """Adds a window."""
    tries = []
    try:
        while len(tries) < TRIES and not any(x["disturbed"] <= DISTURBED for x in tries):
            tries.append(worker.measure(seconds))
            if math.isnan(tries[-1]["disturbed"]):
                break
    except WorkerError as error:
        measured.failed = str(error)
        return
    measured.windows.append(min(tries, key=lambda x: x["disturbed"]))
