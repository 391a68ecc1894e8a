"""Records: the small files of finished runs, `results/RECIPE/seed_SEED/`, checked when read.

A record that is incomplete, or is not of what its recipe says now, is an error, so that nothing is
said of fewer or of other runs than it seems.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags as absl_flags

from commands import build, flags
from commands.config import Config
from commands.options import TrainOptions
from commands.run import Run
from commands.saved_config import DataInfo, decode
from commands.setting import ConfigError, Count, NonNegative, Text, text
from data import Dataset
from loops.best import best_row
from loops.records.run import CONFIG, METRICS, RESULT, TIMES, read_json, without_nan

RECIPES = pathlib.Path(__file__).resolve().parent.parent / "recipes"
FILES = (CONFIG, METRICS, RESULT, TIMES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seconds:
    """Seconds of a run by kind of work; see `loops.records.times`."""

    start: NonNegative
    training: NonNegative
    evaluation: NonNegative
    pictures: NonNegative | None = None  # Earlier runs did not count them.

    @property
    def total(self) -> float:
        """Without pictures, which earlier runs did not count."""
        return self.start + self.training + self.evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Accuracies:
    """What `result.json` says of the test split; None for a class without images."""

    top_1_accuracy: float
    per_class: dict[str, float | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """The content of `times.json`."""

    seconds: Seconds
    processes: Count
    machine: Text
    commit: Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A finished run of a recipe.

    Attributes:
        run: the run.
        result: the content of its `result.json`.
        cost: that of its `times.json`.
    """

    run: Run
    result: Mapping[str, Any]
    cost: Cost

    @property
    def recipe(self) -> str:
        return self.run.path.parent.name

    @property
    def accuracy(self) -> float:
        """The share of test images that are classified correctly."""
        return self.result["top_1_accuracy"]


def recipe_names() -> list[str]:
    """The recipes that can be trained. A flag file without --net is there for others to include."""
    return sorted(
        path.stem
        for path in RECIPES.glob("*.txt")
        if re.search("^--net=", path.read_text(encoding="utf-8"), re.MULTILINE)
    )


def record_directories(paths: Iterable[str | os.PathLike]) -> list[pathlib.Path]:
    """The directories of runs, and those named as the ones of seeds, at or below some paths.

    Hidden directories below them are left out: `recipes/rerun.py` copies to one before it replaces
    records.
    """
    found, seen = set(), set()
    for path in paths:
        for parent, names, files in os.walk(pathlib.Path(path).expanduser(), followlinks=True):
            here = pathlib.Path(parent).resolve()
            names[:] = [name for name in names if not name.startswith(".")]
            if CONFIG in files or here.name.startswith("seed_"):
                found.add(here)
            if here in found or here in seen:
                names.clear()
            seen.add(here)
    return sorted(found)


def read_record(directory: pathlib.Path) -> Record:
    """The record in a directory, checked against the recipe that the directory above it names.

    Not checked, since it takes long: that the net is that of today (see `commands.results`).

    Raises:
        ConfigError, data.DataError, nets.NetError, RunError: it is incomplete, damaged, or not of
            that recipe.
    """
    for name in FILES:
        if not (directory / name).is_file():
            raise ConfigError(f"{directory / name} is missing; a record is {', '.join(FILES)}")
    run = Run.open(directory)
    _check_settings(run)
    _check_figures(run)
    return Record(run=run, result=run.result, cost=_read_cost(directory / TIMES))


def check_committed(record: Record) -> None:
    """Raises ConfigError if a run was trained, in part or whole, from code that is in no commit."""
    commit = record.cost.commit
    if "-dirty" in commit or "unknown" in commit:
        raise ConfigError(
            f"{record.run.path} was trained from code that is in no commit ({commit})"
        )


def _check_settings(run: Run) -> None:
    """Checks that the settings are those of the recipe, and the seed that of the directory."""
    recipe, seed, path = run.path.parent.name, run.config.seed, run.path / CONFIG
    if recipe not in recipe_names():
        raise ConfigError(f"{run.path}: there is no recipe {recipe} in {RECIPES}")
    if run.path.name != f"seed_{seed}":
        raise ConfigError(f"{path}: --seed is {seed}; the directory must be seed_{seed}")
    try:
        wanted = dataclasses.asdict(_settings(recipe, run.data, run.config.augment))
    except (ConfigError, absl_flags.Error) as error:
        raise ConfigError(f"{path}: in the recipe {recipe}: {error}") from error
    wanted |= {"seed": seed}
    found = dataclasses.asdict(run.config)
    # Where the data were does not matter, since fingerprints say which they are.
    found.pop("data_dir")
    if differing := [name for name in found if found[name] != wanted[name]]:
        phrases = (f"--{n} is {text(found[n])}, not {text(wanted[n])}" for n in differing)
        raise ConfigError(f"{path}: {'; '.join(phrases)} as in the recipe {recipe}")
    if not run.saved.code:
        raise ConfigError(f"{path}: there is no code; the net that was trained is not known")
    for code in run.saved.code:
        if not {"tensorflow", "keras"} <= code.versions.keys():
            raise ConfigError(f"{path}: the versions of TensorFlow and Keras are missing")


def _settings(recipe: str, info: DataInfo, augment: str) -> Config:
    """The settings of a recipe, for data of which there is a description alone.

    Args:
        recipe: its name.
        info: the description.
        augment: the dataset's augmentations, for a recipe that leaves them to it.
    """
    with contextlib.chdir(RECIPES.parent):  # Recipes include others by paths from there.
        argv = ["train.py", f"--flagfile={RECIPES / recipe}.txt"]
        config = flags.parse(argv, TrainOptions, absl_flags.FlagValues()).config
    config = dataclasses.replace(config, freeze=tuple(sorted(set(config.freeze))))
    splits = {
        name: types.SimpleNamespace(
            labels=range(size), image_shape=info.image_shape, fingerprint=lambda: 0
        )
        for name, size in info.examples.items()
    }
    dataset = Dataset(info.name, info.class_names, splits, info.mean, info.std, augment)
    return build.resolve(build.with_absolute_paths(config), dataset)


def _check_figures(run: Run) -> None:
    """Checks that the result is what was logged of the test split, once, of a finished run."""
    path = run.path / METRICS
    rows, result = run.metrics, without_nan(run.result)
    if path.read_bytes().count(b"\n") != len(rows):
        raise ConfigError(f"{path} has damaged lines")
    scored = [without_nan(row) for row in rows if row["split"] == "test"]
    if len(scored) != 1:
        raise ConfigError(f"{path} has {len(scored)} rows of the test split, not one")
    wanted = {name: value for name, value in scored[0].items() if name != "epoch"}
    wanted |= {"examples": run.data.examples["test"]}
    path = run.path / RESULT
    for name, value in wanted.items():
        if result.get(name) != value:
            raise ConfigError(f"{path}: {name} is {result.get(name)}, but {value} in {METRICS}")
    _check_steps(run, rows)
    _check_accuracies(run)


def _check_steps(run: Run, rows: Sequence[Mapping[str, Any]]) -> None:
    """Checks that all epochs were trained and evaluated, and which was scored at the end."""
    plan, path = run.plan, run.path / METRICS
    trained, evaluated = (
        [row["step"] for row in rows if row["split"] == split] for split in ("train", "val")
    )
    last = trained[-1] if trained else 0
    if last != plan.total_steps and not (last and run.config.patience):
        raise ConfigError(
            f"{path} has rows of training up to step {last:,}, not {plan.total_steps:,}"
        )
    selected = "val" if "val" in run.data.examples else None
    wanted = [("train", trained, 1)]
    if selected:
        wanted.append(("val", evaluated, run.config.eval_epochs))
    for split, steps, epochs in wanted:
        ends = {step for step in range(1, last + 1) if plan.is_epoch_end(step, epochs)}
        if missing := ends.difference(steps):
            raise ConfigError(f"{path} has no row of {split} for step {min(missing):,}")
    if rows[-1]["split"] != "test":
        raise ConfigError(f"{path}: the row of the test split is not the last")
    if run.result["selected_on"] != selected:
        raise ConfigError(f"{run.path / RESULT}: selected_on must be {json.dumps(selected)}")
    if selected:
        best = best_row(run.config.best_metric, rows) or {}
        step, kind = best.get("step"), "the step that is best on val"
    else:
        step, kind = last, "the last step"
    if run.result["step"] != step:
        raise ConfigError(f"{run.path / RESULT}: {run.result['step']:,} is not {kind}")


def _check_accuracies(run: Run) -> None:
    """Checks that the accuracies are possible on the test split, and agree with each other."""
    path, examples = run.path / RESULT, run.data.examples["test"]
    try:
        result = decode(run.result, _Accuracies)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    top_1 = result.top_1_accuracy
    by_class = [value for value in result.per_class.values() if value is not None]
    for value in (top_1, *by_class):
        if not 0 <= value <= 1:
            raise ConfigError(f"{path}: an accuracy is {value}, which is not in [0, 1]")
    if abs(top_1 * examples - round(top_1 * examples)) > 1e-3:
        raise ConfigError(f"{path}: top_1_accuracy is not that of {examples:,} images")
    if not by_class or not min(by_class) - 1e-9 <= top_1 <= max(by_class) + 1e-9:
        raise ConfigError(f"{path}: top_1_accuracy is not within those of the classes")


def _read_cost(path: pathlib.Path) -> Cost:
    try:
        return decode(read_json(path), Cost)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
