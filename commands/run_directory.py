"""The run directory of a command: its name, and whether the run in it can be resumed."""

import contextlib
import dataclasses
import os
import pathlib

from commands.config import Config, differences, digest
from commands.run import Run
from commands.saved_config import DataInfo, SavedConfig
from commands.setting import text
from loops.distributed.workers import Workers
from loops.errors import RunError
from loops.records.run import CONFIG, check_is_free, locked


def run_directory(run_dir: str | None, requested: Config, info: DataInfo) -> pathlib.Path:
    """The directory that was asked for, or one named after the configuration."""
    if run_dir is not None:
        return pathlib.Path(run_dir).expanduser()
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in info.name)[:40]
    return pathlib.Path("runs") / (f"{requested.net}-{name}-{digest(requested, info.fingerprints)}")


@contextlib.contextmanager
def opened(run_dir: pathlib.Path, wanted: SavedConfig, workers: Workers):
    """Locks the run directory, and gives the configuration of the run in it; None if it is new."""
    with contextlib.ExitStack() as stack:
        if workers.is_chief:
            _check_run(run_dir, wanted)  # Before the directory is made.
            stack.enter_context(locked(run_dir))
        workers.total([0])
        saved = _check_run(run_dir, wanted)
        workers.total([0])
        yield saved


def _check_run(run_dir: pathlib.Path, wanted: SavedConfig) -> SavedConfig | None:
    """The configuration of the run in a directory, if a command can resume it; None if it is new.

    Raises:
        RunError: the directory is not free, or the run in it has another configuration.
    """
    if not (run_dir / CONFIG).exists():
        check_is_free(run_dir)
        return None
    saved = Run.open(run_dir).saved
    found = differences(saved.settings, wanted.settings)
    for field in dataclasses.fields(wanted.data):
        before, now = getattr(saved.data, field.name), getattr(wanted.data, field.name)
        # A folder may have been renamed; its contents are compared.
        if field.name != "name" and before != now:
            found.append(f"the data's {field.name}: {_difference(now, before)}")
    init = (saved.init_fingerprint, wanted.init_fingerprint)
    if None not in init and init[0] != init[1]:
        is_run = os.path.isdir(wanted.settings.init_from)
        what = ("run", "weights") if is_run else ("file", "contents")
        found.append(f"the {what[0]} of --init_from has other {what[1]} than it had for the run")
    if found:
        raise RunError(
            f"{run_dir} holds a run with another configuration: {'; '.join(found)}. "
            "Use its values, or another --run_dir"
        )
    return saved


def _difference(now, before) -> str:
    """Two values of a field; of dictionaries, the entries that differ."""
    if not isinstance(now, dict):
        return f"{text(now)} here and {text(before)} in the run"
    names = [name for name in now | before if now.get(name) != before.get(name)]
    return ", ".join(f"{n} {_difference(now.get(n), before.get(n))}" for n in names)
