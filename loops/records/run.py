"""The directory of a run: what it contains, and who may use it.

config.json     the configuration, and a description of the data; without it, there is no run
checkpoints/    the last checkpoints          best/    the best one
train/ val/ test/    TensorBoard's event files
metrics.jsonl   one line for each logged row
lock            held by the process that trains
times.json      seconds by kind of work, the machine and the commit
result.json     scores on the test split; only a finished run has it
predictions.npz    predictions on the test split; see `loops.records.predictions`
pictures/       pictures of a finished run, as PNG files
"""

import contextlib
import errno
import json
import math
import os
import pathlib
import socket

import filelock

from loops.errors import RunError, SaveError

CONFIG, RESULT, METRICS, LOCK = "config.json", "result.json", "metrics.jsonl", "lock"
PREDICTIONS, PICTURES = "predictions.npz", "pictures"
CHECKPOINTS, BEST, TIMES = "checkpoints", "best", "times.json"
OWN = (
    *(CONFIG, RESULT, METRICS, LOCK, PREDICTIONS, PICTURES, CHECKPOINTS, BEST, TIMES),
    *("train", "val", "test", "follow"),
)
# Another process may hold the lock for a moment, to see whether it is free.
_LOCK_SECONDS = 2
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def without_nan(content):
    """The same content with None for floats that are not finite, which JSON lacks."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: pathlib.Path, content: dict) -> None:
    """Writes a JSON file completely or not at all; raises SaveError if it cannot be written."""
    text = json.dumps(without_nan(content), indent=2) + "\n"
    temporary = path.parent / (path.name + ".new")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise SaveError(f"cannot write {path}: {error.strerror}") from error


def read_json(path: pathlib.Path) -> dict:
    """Reads a JSON object; raises RunError if the file does not contain one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
    if not isinstance(content, dict):
        raise RunError(f"cannot read {path}: it does not contain a JSON object")
    return content


@contextlib.contextmanager
def locked(run_dir: pathlib.Path):
    """Holds the lock of a run directory, which is created if necessary.

    The lock ends with the process. On a file system without locks there is none.

    Raises:
        RunError: another process holds the lock, or the directory cannot be created.
    """
    path = run_dir / LOCK

    def write_owner(file: int) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    lock = filelock.FileLock(path, _LOCK_SECONDS, fallback_to_soft=False, on_acquired=write_owner)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        owner = path.read_text(encoding="utf-8", errors="replace")[:200] or "another process"
        raise RunError(
            f"{run_dir} is in use: {owner} trains in it. Wait for it or stop it, or use another "
            "--run_dir"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise RunError(f"cannot write {path}: {error.strerror}") from error
    with lock if lock.is_locked else contextlib.nullcontext():
        yield


def is_locked(run_dir: pathlib.Path) -> bool | None:
    """Whether a process trains in a run directory; None if that cannot be known."""
    path = run_dir / LOCK
    try:
        if path.exists():
            with filelock.FileLock(path, timeout=0, fallback_to_soft=False):
                pass
    except filelock.Timeout:
        return True
    except OSError:  # No permission, or no locks.
        return None
    return False


def _is_empty(path: pathlib.Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def check_is_free(run_dir: pathlib.Path) -> None:
    """Checks that a new run may use a directory, and leaves it as it is.

    Raises:
        RunError: it contains something other than what a failed start leaves, is not a directory,
            or is inside the directory of another run.
    """
    try:
        names = os.listdir(run_dir) if os.path.lexists(run_dir) else []
        empty = [name for name in (CHECKPOINTS, BEST) if _is_empty(run_dir / name)]
    except OSError as error:
        raise RunError(f"cannot use {run_dir}: {error.strerror}") from error
    if not {LOCK, CONFIG + ".new", *empty}.issuperset(names):
        raise RunError(f"{run_dir} is not a run directory, and not empty; use another --run_dir")
    for parent in pathlib.Path(os.path.realpath(run_dir)).parents:
        if os.path.isfile(parent / CONFIG) and os.path.isdir(parent / CHECKPOINTS):
            raise RunError(f"{run_dir} is inside the run {parent}; use another --run_dir")
