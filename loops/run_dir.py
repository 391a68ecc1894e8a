"""A run's directory: what is where, and whether a command fits the run that is there.

In it are:

    config.json     every flag as it was resolved, and what the data is
    checkpoints/    the last states          best/    the best one
    train/ val/ test/    TensorBoard's event files
    metrics.jsonl   one line for each row that was logged
    lock            held by the process that trains
    result.json     the test split's scores; only a finished run has it
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import pathlib
import socket

from loops.errors import RunError, SaveError

CONFIG, RESULT, METRICS, LOCK = "config.json", "result.json", "metrics.jsonl", "lock"


def without_nan(content):
    """The same content with None for floats that are not finite, which JSON does not have."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: pathlib.Path, content: dict) -> None:
    """Writes a JSON file whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    text = json.dumps(without_nan(content), indent=2) + "\n"
    temporary = path.parent / (path.name + ".new")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise SaveError(f"cannot write {path}: {error.strerror}") from error


@contextlib.contextmanager
def locked(run_dir: pathlib.Path):
    """Within `with`, no other process trains in this directory, which is made if need be.

    The lock goes with the process, however it ends. Where the file system has no locks there is
    none.

    Raises:
        RunError: another process has the lock, or there can be no directory.
    """
    path = run_dir / LOCK
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                file.seek(0)
                who = file.read(200).strip() or "another process"
                raise RunError(
                    f"{run_dir} is in use: {who} trains in it. Wait for it or stop it, or give "
                    "another --run_dir"
                ) from None
            # ENOLCK, ENOTSUP, ...: some network file systems have no locks.
        with contextlib.suppress(OSError):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield


def read_json(path: pathlib.Path) -> dict:
    """Reads a JSON object.

    Raises:
        RunError: it is not one.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise RunError(f"cannot read {path}: it does not hold a JSON object")
    return content


def _is_count(value, lowest: int = 1) -> bool:
    return type(value) is int and lowest <= value < 2**63


def _is_number(value) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e9


def _is_share(value) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_text(value) -> bool:
    with contextlib.suppress(UnicodeEncodeError):  # JSON can hold halves of characters.
        return isinstance(value, str) and value.encode("utf-8", "surrogateescape") != b""
    return False


def _is_list(value, good, length: int | None = None) -> bool:
    return isinstance(value, list) and length in (None, len(value)) and all(map(good, value))


def _check_data(about: dict, where: str) -> None:
    """Raises RunError, which names the field, unless `about` is what describes a run's data."""

    def check(field, good, what):
        if not good(about.get(field)):
            raise RunError(f"{where}: data.{field} is not {what}; mend the file, or use another")

    def named(value, good):
        return isinstance(value, dict) and {"train", "test"} <= value.keys() <= {
            "train", "val", "test"
        } and all(map(good, value.values()))  # fmt: skip

    check("name", _is_text, "a name")
    check(
        "class_names",
        lambda x: _is_list(x, _is_text) and 0 < len(x) == len(set(x)),
        "a list of different names",
    )
    check("image_shape", lambda x: _is_list(x, _is_count, 3), "height, width and channels")
    channels = about["image_shape"][-1]
    per_channel = f"a list of {channels} number(s), one for each channel"
    check("mean", lambda x: _is_list(x, _is_number, channels), per_channel)
    check(
        "std",
        lambda x: _is_list(x, lambda y: _is_number(y) and y > 1e-9, channels),
        f"{per_channel}, above 0",
    )
    check("examples", lambda x: named(x, _is_count), "the number of examples by split")
    check("fingerprints", lambda x: named(x, _is_text), "a text by split")


def read_config(run_dir: pathlib.Path) -> dict:
    """The configuration of the run in a directory, its data checked, its flags any dictionary.

    Raises:
        RunError: the directory is not a run's, or a field of the data is not what it should be.
    """
    if not (run_dir / CONFIG).is_file():
        what = "has no config.json" if run_dir.is_dir() else "is not a directory"
        raise RunError(f"{run_dir} is not a run directory: it {what}")
    config = read_json(run_dir / CONFIG)
    if not all(isinstance(config.get(part), dict) for part in ("flags", "data")):
        raise RunError(f"{run_dir} is not a run directory: its {CONFIG} has no flags and data")
    _check_data(config["data"], str(run_dir / CONFIG))
    if not _is_count(config.get("machines", 1)):
        raise RunError(f"{run_dir / CONFIG}: machines is not a number of machines")
    return config


def read_result(run_dir: pathlib.Path) -> dict | None:
    """The result of the run in a directory, or None if it is not finished.

    Raises:
        RunError: what is there is not a result.
    """
    path = run_dir / RESULT
    if not path.exists():
        return None
    result = read_json(path)
    good = {
        "top_1_accuracy": _is_share,
        "top_5_accuracy": _is_share,
        # A run that went astray can have any loss.
        "loss": lambda value: (
            value is None or (type(value) in (int, float) and math.isfinite(value))
        ),
        "examples": _is_count,
        "step": lambda value: _is_count(value, lowest=0),
        "selected_on": lambda value: value in (None, "val"),
    }
    for field, is_good in good.items():
        if field not in result or not is_good(result[field]):
            raise RunError(
                f"{path} is not a result: {field} is wrong; remove it to have the run scored again"
            )
    if result["loss"] is None:  # JSON has no NaN.
        result["loss"] = math.nan
    return result


def default_name(config: dict) -> str:
    """A name that the configuration alone decides, as `inception10-cifar10-3f9a1c`."""
    text = json.dumps(config, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    return f"{config['flags']['net']}-{config['data']['name']}-{digest}"


def differences(old: dict, new: dict, free: tuple[str, ...]) -> list[str]:
    """What keeps a command from going on with a run, a phrase each.

    Args:
        old: configuration of the run, {"flags": ..., "data": ...}.
        new: that of the command.
        free: names of flags that may differ.
    """

    def pairs(part):
        before, after = old.get(part, {}), new.get(part, {})
        keys = sorted(before.keys() | after.keys())
        return [(k, before.get(k), after.get(k)) for k in keys if before.get(k) != after.get(k)]

    flags = [f"--{k} is {a} here and {b} in the run" for k, b, a in pairs("flags") if k not in free]
    data = [f"the data's {k} is {a} here and {b} in the run" for k, b, a in pairs("data")]
    return flags + data


def check_run(
    run_dir: pathlib.Path, config: dict, free: tuple[str, ...], *, read=read_config
) -> dict | None:
    """Checks that a command can have a directory, and leaves it as it is.

    Args:
        run_dir: the directory.
        config: {"flags": ..., "data": ...} of the command.
        free: names of flags that may differ from the run's.
        read: gives the configuration in a run's directory.

    Returns:
        The configuration of the run that is there, or None if it is new.

    Raises:
        RunError: the directory is something else's, or the configuration does not fit.
    """
    if (run_dir / CONFIG).exists():
        there = read(run_dir)
        found = differences(there, config, free)
        if found:
            raise RunError(
                f"{run_dir} holds a run of another configuration: {'; '.join(found)}. "
                "Use its values, or another --run_dir"
            )
        return there
    # A start that failed may have left half a configuration.
    ours = (LOCK, CONFIG + ".new")
    if run_dir.is_dir() and any(p.name not in ours for p in run_dir.iterdir()):
        raise RunError(f"{run_dir} is not a run directory, and not empty; use another --run_dir")
    return None


def open_run(
    run_dir: pathlib.Path, config: dict, free: tuple[str, ...], *, read=read_config
) -> dict | None:
    """As `check_run`, and makes the directory and its configuration if they are new."""
    there = check_run(run_dir, config, free, read=read)
    if there is None:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot make {run_dir}: {error.strerror}") from error
        write_json(run_dir / CONFIG, config)
    return there
