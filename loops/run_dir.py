"""A run's directory: what is where, and whether a command fits the run that is there.

In it are:

    config.json     every flag as it was resolved, and what the data is
    checkpoints/    the last states          best/    the best one
    train/ val/ test/    TensorBoard's event files
    metrics.jsonl   one line for each row that was logged
    result.json     the test split's scores; only a finished run has it
"""

import contextlib
import hashlib
import json
import math
import pathlib

from loops.errors import RunError

CONFIG, RESULT, METRICS = "config.json", "result.json", "metrics.jsonl"


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
        raise RunError(f"cannot write {path}: {error.strerror}") from error


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
        "loss": lambda value: value is None or _is_number(value),
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


def open_run(
    run_dir: pathlib.Path, config: dict, free: tuple[str, ...], *, read=read_config
) -> dict | None:
    """Makes a run directory, or checks that the one that is there fits.

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
    if run_dir.is_dir() and any(p.name != CONFIG + ".new" for p in run_dir.iterdir()):
        raise RunError(f"{run_dir} is not a run directory, and not empty; use another --run_dir")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {run_dir}: {error.strerror}") from error
    write_json(run_dir / CONFIG, config)
    return None
