"""Saved runs side by side: what differs in their settings, and the figures of each.

Runs that differ in nothing but their seed form a group. Only the configuration, the rows and the
result of a run are read, which takes a few milliseconds.
"""

import dataclasses
import itertools
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from commands import setting
from commands.checks import check_runs
from commands.config import Config
from commands.provenance import SOURCES
from commands.run import Run
from commands.saved_config import SavedConfig, read_config
from commands.setting import ConfigError
from loops.errors import RunError, printable
from loops.metrics import figures, higher_is_better
from loops.records.run import CONFIG
from loops.schedule import Plan

# What a seed's result does not depend on, beyond rounding, besides what names no run.
_WITHOUT_EFFECT = ("seed", "device", "deterministic", "log_steps")
# What a value follows from unless a flag gave another. If it does in all runs that are compared,
# the groups are not named by it, and it has no column.
_FOLLOWS_FROM = {
    "stem": ("dataset", "image_size", "init_from"),
    "image_size": ("dataset", "data"),
    "augment": ("dataset", "image_size"),
    "eval_crop": ("augment",),
    "label_smoothing": ("net",),
    "batch_norm_momentum": ("net", "epochs", "batch_size", "train_data"),
    "learning_rate": ("optimizer",),
    "weight_decay": ("optimizer",),
    "warmup_epochs": ("epochs",),
    "data": ("dataset",),
    "train_data": ("data", "val_fraction", "bad_images"),
    "test_data": ("data", "bad_images"),
    "init_weights": ("init_from", "net"),
    "operations": (
        *("net", "stem", "auxiliary", "batch_norm_momentum", "sync_batch_norm"),
        *("data", "image_size", "precision", "freeze"),
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A run among those that are compared.

    Attributes:
        run: the run.
        name: its directory, relative to what all runs have in common.
        result: the figures on the test split by name; None if the run is not finished.
        step: the last one with a row.
        epoch: whole epochs completed at `step`; the run's, at its end.
        total_steps: the length of the run.
        curves: arrays "epoch" and "value" of the figure that is compared, on "val" and, as the mean
            over each epoch, on "train".
        best_val: the best of these values; NaN if there is none.
    """

    run: Run
    name: str
    result: Mapping[str, float] | None
    step: int
    epoch: float
    total_steps: int
    curves: dict[str, dict[str, np.ndarray]]
    best_val: float

    @property
    def seed(self) -> int:
        return self.run.config.seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in nothing but their seed, and were trained by the same code.

    Attributes:
        name: the settings that tell it from other groups, such as "net=resnet18, epochs=5".
        settings: the settings in which groups differ, and their values, by name, without those
            that follow from others.
        entries: its runs, by seed.
    """

    name: str
    settings: dict[str, Any]
    entries: tuple[Entry, ...]

    @property
    def finished(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.result is not None)

    @property
    def saved(self) -> SavedConfig:
        return self.entries[0].run.saved

    def figure(self, name: str) -> np.ndarray:
        """A figure on the test split for each seed, float64 [seeds], where it is finite.

        Runs of the same seed count as one, with their mean.
        """
        return self._by_seed((e.seed, e.result.get(name)) for e in self.finished)

    @property
    def best_val(self) -> np.ndarray:
        """The best value on the validation split for each seed, float64 [seeds].

        Of finished runs, if there are any.
        """
        return self._by_seed((e.seed, e.best_val) for e in self.finished or self.entries)

    def _by_seed(self, values: Iterable[tuple[int, float | None]]) -> np.ndarray:
        found: dict[int, list[float]] = {}
        for seed, value in values:
            if value is not None and math.isfinite(value):
                found.setdefault(seed, []).append(value)
        return np.array([np.mean(found[seed]) for seed in sorted(found)], np.float64)


def gather(paths: Sequence[str | os.PathLike], metric: str) -> tuple[list[Group], list[str]]:
    """The groups of the runs in some directories.

    Args:
        paths: directories of runs, or directories to search for them.
        metric: the figure that is compared: "loss" or a key of `loops.metrics.METRICS`.

    Returns:
        The groups: first that of the first run, then the others, the best first. And what is to be
        said about runs that are left out or special, a sentence each.

    Raises:
        ConfigError, RunError: a path is not a run and has none below it, or a run that is named is
            damaged.
    """
    found, notes = _find(paths)
    common = os.path.commonpath([path.parent for path in found])
    entries = []
    for path, is_named in found.items():
        try:
            name = printable(os.path.relpath(path, common))
            entries.append(_read(path, name, metric, is_named=is_named))
        except (ConfigError, RunError) as error:
            if is_named:
                raise
            notes.append(f"left out: {error}")
    if not entries:
        raise RunError(notes[0].removeprefix("left out: "))
    groups = _group(entries)
    first, *others = groups
    sign = -1 if higher_is_better(metric) else 1
    others.sort(key=lambda g: np.mean(sign * g.figure(metric)) if len(g.figure(metric)) else np.inf)
    notes += [note for group in groups for note in _notes(group, metric)]
    notes += _note_on_code(groups)
    return [first, *others], notes


def _find(paths: Sequence[str | os.PathLike]) -> tuple[dict[pathlib.Path, bool], list[str]]:
    """The directories of the runs, in order, and whether each was named itself; and notes."""
    check_runs(paths)
    found: dict[pathlib.Path, bool] = {}
    notes = {}
    for path in map(pathlib.Path, paths):
        path = path.expanduser()
        if (path / CONFIG).is_file():
            run = path.resolve()
            if found.get(run):
                notes[run] = f"given more than once, but counted once: {printable(str(path))}"
            found[run] = True
            continue
        below = _search(path)
        if not below:
            raise RunError(f"{path} is not a run directory, and there is none below it")
        for run in below:
            found.setdefault(run, False)
    return found, list(notes.values())


def _search(directory: pathlib.Path) -> list[pathlib.Path]:
    """The runs below a directory, without looking inside of them, sorted."""
    found, seen = {}, set()
    for parent, names, files in os.walk(directory, followlinks=True):
        path = pathlib.Path(parent).resolve()
        if CONFIG in files:
            found[path] = None
        if CONFIG in files or path in seen:
            names.clear()
        names.sort()
        seen.add(path)
    return list(found)


def _read(path: pathlib.Path, name: str, metric: str, *, is_named: bool) -> Entry:
    # Not by Run.open: the net may be gone from the table.
    run = Run(path, read_config(path))
    rows, result = run.metrics, _result(run, is_named)
    plan = run.plan
    step = max((row["step"] for row in rows if row["split"] != "test"), default=0)
    curves = {split: _curve(rows, split, metric, plan) for split in ("train", "val")}
    values = curves["val"]["value"]
    finite = values[np.isfinite(values)]
    choose = np.max if higher_is_better(metric) else np.min
    return Entry(
        run=run,
        name=name,
        result=result,
        step=step,
        epoch=plan.whole_epochs(step),
        total_steps=plan.total_steps,
        curves=curves,
        best_val=float(choose(finite)) if len(finite) else math.nan,
    )


def _curve(rows: Sequence[dict], split: str, metric: str, plan: Plan) -> dict[str, np.ndarray]:
    """The values of a metric on a split by epoch; on train, the means over the epochs.

    A row of train has the mean over the steps since the row before. A value that is not finite
    makes that of its epoch NaN.
    """
    sums: dict[int, np.ndarray] = {}
    before = 0
    for row in rows:
        if row["split"] != split:
            continue
        step = row["step"]
        end = plan.next_epoch_end(step - 1) if split == "train" else step
        steps = max(step - before, 1) if split == "train" else 1
        value = np.array([row.get(metric, math.nan), 1.0])
        sums[end] = sums.get(end, 0.0) + steps * value
        before = step
    return {
        "epoch": np.array([plan.epoch(end) for end in sums], np.float64),
        "value": np.array([total / steps for total, steps in sums.values()], np.float64),
    }


def _result(run: Run, is_named: bool) -> Mapping[str, float] | None:
    """The result of a run; raises RunError, which says what to do, if it is damaged."""
    try:
        return run.result
    except RunError as error:
        what = str(error).partition("; remove it")[0]
        leave = "remove the run from the arguments, or " if is_named else ""
        raise RunError(
            f"{what}; {leave}remove the file and have the run scored again with train.py"
        ) from error


def identity(saved: SavedConfig) -> dict[str, Any]:
    """Everything that the result of a run depends on besides the seed, by name."""
    settings = {
        field.name: getattr(saved.settings, field.name)
        for field in dataclasses.fields(Config)
        if field.metadata["names_run"] and field.name not in _WITHOUT_EFFECT
    }
    prints = saved.data.fingerprints
    return settings | {
        "workers": saved.workers,
        "data": saved.data.name,
        "train_data": prints["train"] + (f"+{prints['val']}" if "val" in prints else ""),
        "test_data": prints["test"],
        "init_weights": saved.init_fingerprint,
        "operations": saved.code[-1].net if saved.code else None,
        "code": _sources(saved),
    }


_UNKNOWN = "unknown"  # Of runs of earlier versions.


def _sources(saved: SavedConfig) -> str:
    """The code that a run was trained with, from first to last."""
    found = [code.sources or _UNKNOWN for code in saved.code] or [_UNKNOWN]
    return ", then ".join(name for name, _ in itertools.groupby(found))


def _group(entries: list[Entry]) -> list[Group]:
    """Groups the runs, in the order of their first ones."""
    members: dict[tuple, list[Entry]] = {}
    identities: dict[tuple, dict] = {}
    for entry in entries:
        what = identity(entry.run.saved)
        key = tuple(what.values())
        identities[key] = what
        members.setdefault(key, []).append(entry)
    differing = [n for n, values in _columns(identities.values()).items() if len(set(values)) > 1]
    named = [n for n in differing if not _is_explained(n, identities.values())]
    groups = []
    for key, group in members.items():
        what = identities[key]
        name = ", ".join(f"{n}={text(what[n])}" for n in named)
        config, data = group[0].run.config, group[0].run.data
        groups.append(
            Group(
                name=name or f"{config.net} on {printable(data.name)}",
                settings={n: what[n] for n in named},
                entries=tuple(sorted(group, key=lambda e: (e.seed, e.name))),
            )
        )
    return groups


def _columns(identities: Iterable[dict]) -> dict[str, list]:
    identities = list(identities)
    return {name: [what[name] for what in identities] for name in identities[0]}


def _is_explained(name: str, identities: Iterable[dict]) -> bool:
    """Whether a value is always the same where those that it follows from are."""
    identities = list(identities)
    origins = _FOLLOWS_FROM.get(name, ())
    if name == "code":  # Which any change of the project changes.
        origins = [n for n in identities[0] if n != name]
    if not origins:
        return False
    found: dict[tuple, set] = {}
    for what in identities:
        found.setdefault(tuple(what[n] for n in origins), set()).add(what[name])
    return all(len(values) == 1 for values in found.values())


def text(value) -> str:
    """A value of a setting as in a flag, on one line."""
    return printable(setting.text(value))


def _note_on_code(groups: list[Group]) -> list[str]:
    """Says which runs are of which code, or that it differs where settings do."""
    first, *others = groups
    if "code" in first.settings:
        return [f"{group.name}: {_names(group)}" for group in groups]
    known = _sources(first.saved)
    for group in others:
        found = _sources(group.saved)
        if _UNKNOWN not in (known, found) and found != known:
            pair = [f"{g.name} ({_sources(g.saved)})" for g in (first, group)]
            return [f"{SOURCES} differs too: {' and '.join(pair)}"]
    return []


def _names(group: Group) -> str:
    """The directories of the runs of a group, three at most."""
    names = [entry.name for entry in group.entries]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def _notes(group: Group, metric: str) -> list[str]:
    """What is to be said about the runs of a group."""
    notes = []
    label, spec = figures()[metric]
    for entry in group.entries:
        best = f"{label} on val {entry.best_val:{spec}}" if math.isfinite(entry.best_val) else ""
        if entry.result is None:
            step = f"step {entry.step:,} of {entry.total_steps:,}"
            notes.append(
                f"not finished: {entry.name}, {', best '.join(filter(None, [step, best]))}"
            )
        elif not math.isfinite(entry.result.get(metric, math.nan)):
            notes.append(f"left out: {entry.name} has no finite {label} on test")
    seeds = [entry.seed for entry in group.finished]
    for seed in sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        notes.append(
            f"{seeds.count(seed)} runs of {group.name} have seed {seed}; they count as one"
        )
    return notes
