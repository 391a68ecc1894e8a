"""The checks of `gpu.py`: whether GPUs compute what a CPU does, and the same every time.

Each training is 20 updates of `inception10` on the digits dataset, with train.py in a process of
its own. Two of them are compared, by figures within limits (`gpu_compare.py`) or, where the same
bits are promised, by everything that they have left on disk.
"""

import dataclasses
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from benchmarks import kill_runs
from benchmarks.gpu_compare import PRECISION, ROUNDING, STEPS, Limits, figures, judge

ROOT = pathlib.Path(__file__).resolve().parent.parent
SECONDS = 900  # After which a training has failed.
NET = "inception10"  # Without dropout, for which XLA draws other numbers.
EXAMPLES = 1295  # In the train split.


class TrainingError(Exception):
    """A training has failed. The message is a line."""


@dataclasses.dataclass(frozen=True)
class Training:
    """A training with train.py.

    Attributes:
        flags: for train.py, besides those that all trainings have.
        workers: number of processes.
        stopped: stop it by SIGTERM on the way, and resume it.
        number: tells trainings with the same flags apart.
    """

    flags: tuple[str, ...]
    workers: int = 1
    stopped: bool = False
    number: int = 0


@dataclasses.dataclass(frozen=True)
class Check:
    """Two trainings that should end alike.

    Attributes:
        name: what is compared.
        one, other: the trainings.
        limits: None if every bit should be the same.
    """

    name: str
    one: Training
    other: Training
    limits: Limits | None


def checks(num_gpus: int, precisions: Sequence[str], *, on_gpus: bool) -> Iterator[Check]:
    """All checks, those that tell most first.

    Args:
        num_gpus: number of replicas; some checks need two.
        precisions: values of --precision, float32 first.
        on_gpus: False for a rehearsal on CPUs.
    """
    cpu, gpu = "--device=cpu", "--device=gpu" if on_gpus else "--device=cpu"
    kind = "GPU" if on_gpus else "CPU device"
    single = Training((gpu,), number=1)  # In a rehearsal, not the same as on the CPU.
    every = (gpu, f"--num_gpus={num_gpus}", "--sync_batch_norm")
    yield Check(f"float32, 1 {kind} and the CPU", single, Training((cpu,)), ROUNDING)
    if num_gpus > 1:
        name = f"float32, {num_gpus} {kind}s and 1"
        yield Check(name, Training(every), single, ROUNDING)
    exact = (*(every if num_gpus > 1 else (gpu,)), "--deterministic", "--save_minutes=0.0001")
    again, resumed = Training(exact, number=1), Training(exact, stopped=True)
    yield Check("--deterministic, twice", again, Training(exact), None)
    yield Check("--deterministic, stopped and resumed", resumed, Training(exact), None)
    for precision in precisions[1:]:
        flag, limits = f"--precision={precision}", PRECISION[precision]
        low = Training((gpu, flag))
        yield Check(f"{precision} and float32, 1 {kind}", low, single, limits)
        if num_gpus > 1:
            name = f"{precision}, {num_gpus} {kind}s and 1"
            yield Check(name, Training((*every, flag)), low, limits)
    yield Check(f"--jit, 1 {kind}", Training((gpu, "--jit")), single, ROUNDING)
    if num_gpus > 1:
        # Not with --sync_batch_norm, which --jit excludes.
        alone = (gpu, f"--num_gpus={num_gpus}")
        jit = Training((*alone, "--jit"))
        yield Check(f"--jit, {num_gpus} {kind}s", jit, Training(alone), ROUNDING)
        half = num_gpus // 2 if on_gpus else 1
        flags = (gpu, f"--num_gpus={half}", "--sync_batch_norm")
        name = f"2 workers with {half} {kind}{'s' if half > 1 else ''} each, and 1 {kind}"
        yield Check(name, Training(flags, workers=2), single, ROUNDING)


class Trainings:
    """Runs, each made when it is first asked for.

    Args:
        home: directory for them.
        num_gpus: the batch is divisible by this and by 2.
        start: starts train.py with arguments and environment variables.
    """

    def __init__(self, home: pathlib.Path, num_gpus: int, start: Callable | None = None):
        self._home, self._start = home, start or start_train
        unit = math.lcm(2, num_gpus)
        batch_size = unit * max(1, 64 // unit)
        epochs = round((STEPS - 0.5) * batch_size / EXAMPLES, 5)  # Steps are rounded up.
        self._common = (
            f"--net={NET}", "--dataset=digits", f"--batch_size={batch_size}",
            f"--epochs={epochs}", "--learning_rate=0.002", "--log_steps=1",
        )  # fmt: skip
        self._outcomes: dict[Training, pathlib.Path | TrainingError] = {}

    def run_dir(self, training: Training) -> pathlib.Path:
        """The directory of a finished training.

        Raises:
            TrainingError: it has failed.
        """
        if training not in self._outcomes:
            try:
                self._outcomes[training] = self._train(training)
            except TrainingError as error:
                self._outcomes[training] = error
        outcome = self._outcomes[training]
        if isinstance(outcome, TrainingError):
            raise outcome
        return outcome

    def _train(self, training: Training) -> pathlib.Path:
        run_dir = self._home / str(len(self._outcomes))
        args = (*self._common, *training.flags, f"--run_dir={run_dir}")
        if training.workers > 1:
            environments = worker_environments(training.workers)
            processes = [self._start(args, environment) for environment in environments]
        else:  # Also in a job of Slurm's.
            args = (*args, "--cluster=none")
            if training.stopped:
                _stop(self._start(args, {}), run_dir)
            processes = [self._start(args, {})]
        for process in processes:
            _finish(process, expected=0)
        return run_dir


def start_train(args: Sequence[str], environment: dict[str, str]) -> subprocess.Popen:
    """Starts train.py."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *args],
        env=os.environ | environment,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def worker_environments(count: int) -> list[dict[str, str]]:
    """The variables of each of some workers on this machine."""
    workers = [f"127.0.0.1:{port}" for port in kill_runs.free_ports(count)]
    tasks = [{"type": "worker", "index": index} for index in range(count)]
    configs = [{"cluster": {"worker": workers}, "task": task} for task in tasks]
    return [{"TF_CONFIG": json.dumps(config)} for config in configs]


def _stop(process, run_dir: pathlib.Path) -> None:
    """Stops a training by SIGTERM when it has made some updates."""
    deadline = time.monotonic() + SECONDS
    while process.poll() is None and kill_runs.saved_step(run_dir) < 3:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _finish(process, expected=143)


def _finish(process, *, expected: int) -> None:
    """Waits for the end of a process; raises TrainingError for another exit code."""
    try:
        _, error = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired as late:
        process.kill()
        process.communicate()
        raise TrainingError(f"train.py has not ended after {SECONDS} s") from late
    if process.returncode != expected:
        lines = error.strip().splitlines() or ["no message"]
        raise TrainingError(
            f"train.py ended with exit code {process.returncode}, not {expected}: {lines[-1]}"
        )


def run_check(check: Check, trainings: Trainings) -> dict:
    """Makes the two trainings and compares them.

    Returns:
        "check", its name; "ok"; "found", a phrase; and "differences", the figures if there are any.
    """
    row = {"check": check.name, "ok": False}
    try:
        one, other = (trainings.run_dir(each) for each in (check.one, check.other))
    except TrainingError as error:
        return {**row, "found": str(error)}
    if check.limits is None:
        different = kill_runs.differences(one, other)
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        found = f"differ in {'; '.join(different[:3])}{more}" if different else "equal bit for bit"
        return {**row, "ok": not different, "found": found}
    found = figures(one, other)
    ok, phrase = judge(found, check.limits)
    return {**row, "ok": ok, "found": phrase, "differences": found}
