"""Checks of options that need no run, no data and no TensorFlow.

Each raises an error with a message of one line: ConfigError, or RunError for a directory.
"""

import importlib.util
import itertools
import os
import pathlib
import re
from collections.abc import Sequence

from commands.config import Config
from commands.setting import ConfigError
from loops.errors import RunError
from loops.records.run import CONFIG, LOCK, METRICS, OWN, PICTURES

_SUFFIXES = {".tflite": "tflite", ".onnx": "onnx"}


def absolute(path: str | os.PathLike) -> pathlib.Path:
    """The absolute path of a path that may begin with ~.

    Raises:
        RunError: the working directory does not exist.
    """
    try:
        return pathlib.Path(path).expanduser().absolute()
    except FileNotFoundError as error:
        raise RunError("the working directory does not exist; change to another") from error


def normal_path(path: str | os.PathLike) -> pathlib.Path:
    """As `absolute`, without `..`."""
    return pathlib.Path(os.path.normpath(absolute(path)))


def check_settings(config: Config, workers: int = 1) -> None:
    """Checks that settings of a run can be combined.

    Args:
        config: the settings.
        workers: number of processes that train together.
    """
    check_batch_size(config, workers)
    if config.schedule == "step" and not config.step_epochs:
        raise ConfigError("--schedule=step needs --step_epochs, such as --step_epochs=15,25")
    if config.sampling == config.class_weights == "balanced":
        raise ConfigError(
            "--sampling=balanced and --class_weights=balanced balance the classes twice; drop one"
        )
    if config.patience and not config.val_fraction:
        raise ConfigError("--patience needs a validation split; set --val_fraction above 0")
    if config.jit and config.sync_batch_norm and config.num_gpus * workers > 1:
        raise ConfigError("--jit cannot compile the all-reduce of --sync_batch_norm; drop one")
    if config.init_from is not None and (config.whiten or config.identity):
        raise ConfigError("--init_from replaces what --whiten and --identity initialize; drop one")
    sizes = parse_train_sizes(config.train_sizes)
    if sizes and config.sync_batch_norm and config.num_gpus * workers > 1:
        raise ConfigError("--train_sizes and --sync_batch_norm cannot be combined; drop one")
    if config.jit and config.deterministic:
        raise ConfigError("XLA has no deterministic form of some gradients; drop --jit or "
                          "--deterministic")  # fmt: skip


def parse_train_sizes(texts: Sequence[str]) -> list[tuple[int, float]]:
    """The sizes of --train_sizes, and the fraction of the run until which each counts.

    Raises:
        ConfigError: they are not written as they should be.
    """
    found = []
    for text in texts:
        size, _, fraction = text.partition(":")
        try:
            found.append((int(size), float(fraction)))
        except ValueError:
            found.append((0, 0.0))
    fractions = [0.0, *(fraction for _, fraction in found), 1.0]
    increase = all(a < b for a, b in itertools.pairwise(fractions))
    if not increase or any(size < 1 for size, _ in found):
        raise ConfigError(
            f"--train_sizes={','.join(texts)} is not SIZE:FRACTION,... with sizes in pixels and "
            "fractions that increase from 0 to 1, such as 20:0.4,26:0.7"
        )
    return found


def check_batch_size(config: Config, workers: int = 1) -> None:
    """Checks that the replicas can share a batch."""
    pieces = config.num_gpus * workers * config.accumulation
    if config.batch_size % pieces:
        machines = f" times {workers} workers" if workers > 1 else ""
        raise ConfigError(
            f"--batch_size={config.batch_size} is not divisible by --num_gpus={config.num_gpus} "
            f"times --accumulation={config.accumulation}{machines}; use a multiple of {pieces}"
        )


def check_run_dir(run_dir: str | None, what: str = "the directory of the run") -> None:
    """Checks that `--run_dir` is given, and is the directory of a run."""
    if run_dir is None:
        raise ConfigError(f"--run_dir is required: {what}")
    check_is_run(absolute(run_dir))


def check_is_run(path: pathlib.Path) -> None:
    """Raises RunError if a path is not the directory of a run."""
    if not (path / CONFIG).is_file():
        what = f"has no {CONFIG}" if path.is_dir() else "is not a directory"
        raise RunError(f"{path} is not a run directory: it {what}")


def check_runs(paths: Sequence[str | os.PathLike]) -> None:
    """Checks that there are paths, and that each is a directory."""
    if not paths:
        raise ConfigError("nothing to compare: give directories of runs, or one that has some")
    for path in paths:
        path = pathlib.Path(path).expanduser()
        if not path.is_dir():
            raise RunError(f"{path} is not a run directory, it is not a directory")


def output_file(flag: str, value: str | None) -> pathlib.Path | None:
    """The path of a file that a flag asks a command to write; None without it.

    Raises:
        ConfigError: no file can be there, or it is one of a run's own.
    """
    if value is None:
        return None
    path = pathlib.Path(value).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"--{flag}={value}: no file can be written there")
    _check_is_no_part(f"--{flag}={value}", path, allowed=(PICTURES,))
    return path


def output_directory(flag: str, value: str | None) -> pathlib.Path | None:
    """The path of a directory, which need not exist; raises ConfigError if it is something else."""
    if value is None:
        return None
    path = pathlib.Path(value).expanduser()
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--{flag}={value} is not a directory")
    _check_is_no_part(f"--{flag}={value}", path, allowed=(PICTURES,))
    return path


def png_file(flag: str, value: str | None) -> pathlib.Path | None:
    """The path of a picture; raises ConfigError if none can be there."""
    if value is None:
        return None
    path = pathlib.Path(value).expanduser()
    if path.is_dir() or not path.parent.is_dir() or path.suffix.lower() != ".png":
        raise ConfigError(f"--{flag}={value}: expected the name of a .png file in a directory that "
                          "exists")  # fmt: skip
    _check_is_no_part(f"--{flag}={value}", path, allowed=(PICTURES,))
    return path


def check_differ(**paths: str | None) -> None:
    """Checks that flags that name files to write name different ones."""
    given = {flag: normal_path(path) for flag, path in paths.items() if path is not None}
    for (one, first), (other, second) in itertools.combinations(given.items(), 2):
        if first == second:
            raise ConfigError(f"--{one} and --{other} are both {first}; use two names")


def check_overlays(grad_cam: str | None, images: Sequence[str]) -> None:
    """Checks that overlays are not written where images are read."""
    if grad_cam is None:
        return
    target = pathlib.Path(os.path.realpath(pathlib.Path(grad_cam).expanduser()))
    for argument in images:
        if os.path.isdir(argument) and target.is_relative_to(os.path.realpath(argument)):
            raise ConfigError(
                f"--grad_cam={grad_cam} is inside {argument}, whose images are read; use a "
                "directory elsewhere"
            )


def check_export(out: Sequence[str], weights_txt: str | None, format: str, int8: bool) -> None:
    """Checks what export.py is to write, and where."""
    if len(out) > 1:
        raise ConfigError(f"one OUT is expected, not {len(out)}: {' '.join(out)}")
    if not out and weights_txt is None:
        raise ConfigError("OUT is required: where to write the model; or --weights_txt=FILE")
    if int8 and format != "tflite":
        raise ConfigError(f"--int8 is for --format=tflite, not --format={format}")
    weights = weights_txt and _free_path(weights_txt, "--weights_txt")
    if out:
        path = _free_path(out[0], "OUT")
        if path == weights:
            raise ConfigError(f"OUT and --weights_txt are both {path}; use two names")
        expected = _SUFFIXES.get(path.suffix, format)
        if format != expected:
            raise ConfigError(f"{path.name} is a name for --format={expected}, not {format}")


def _free_path(text: str, what: str) -> pathlib.Path:
    """A path at which nothing is, and nothing of a run is expected."""
    path = normal_path(text)
    if os.path.lexists(path):
        raise ConfigError(f"{what}={text} exists already; use another name, or delete it")
    if not path.parent.is_dir():
        raise ConfigError(f"{what}={text}: there is no directory {path.parent}")
    _check_is_no_part(f"{what}={text}", path)
    return path


def _check_is_no_part(what: str, path: pathlib.Path, allowed: Sequence[str] = ()) -> None:
    """Raises ConfigError if a path is one that a run uses itself, besides those allowed."""
    real = pathlib.Path(os.path.realpath(normal_path(path).parent)) / path.name
    for parent in real.parents:
        own = real.relative_to(parent).parts[0]
        if own in OWN and own not in allowed and _is_run(parent):
            raise ConfigError(f"{what}: {own} belongs to the run {parent}; use another name")


def _is_run(path: pathlib.Path) -> bool:
    """Whether a directory is that of a run, rather than of something else with such a file."""
    return (path / CONFIG).is_file() and any((path / name).exists() for name in (METRICS, LOCK))


def check_onnx(verify: bool) -> None:
    """Checks that what an export to ONNX needs is installed."""
    needed = ("tf2onnx", "onnx", *(["onnxruntime"] if verify else []))
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"--format=onnx: pip install {' '.join(missing)}")


def profiled_steps(text: str) -> tuple[int, int]:
    """The first and the last step of "FIRST:LAST".

    Raises:
        ConfigError: it is not two numbers of steps, from 1, in order.
    """
    found = re.fullmatch(r"([0-9]{1,12}):([0-9]{1,12})", text)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last:
        raise ConfigError(
            f"--profile_steps: {text!r} is not FIRST:LAST, such as 100:110, with 1 <= FIRST <= LAST"
        )
    return first, last
