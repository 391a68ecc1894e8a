"""A comparison of runs as text, Markdown, CSV and JSON."""

import csv
import dataclasses
import io
import json
import math
from typing import Any

import numpy as np

from commands import statistics
from commands.comparison import Entry, Group, identity, text
from commands.differences import Difference, bare, is_share
from loops.metrics import figures
from loops.records.run import without_nan

_WIDTH = 100
_NOT_NEGATIVE = ("loss", "expected_calibration_error")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs that were compared.

    Attributes:
        metric: the figure that is compared.
        confidence: level of the intervals and of the tests, for all of them together.
        groups: the runs, grouped by everything but their seed.
        differences: of each group from the first; of two runs, if there are no others.
        notes: about runs that were left out or special, a sentence each.
    """

    metric: str
    confidence: float
    groups: tuple[Group, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    @property
    def sentences(self) -> list[str]:
        """What the comparison says, a sentence each."""
        found = [difference.sentence for difference in self.differences]
        if len(self.groups) == 1:
            found = [*filter(None, [self._mean_sentence(self.groups[0])]), *found]
        tests = sum(d.test is not None for d in self.differences)
        if tests > 1:
            found.append(
                f"The p values and intervals are corrected for {tests} comparisons with "
                f"{self.groups[0].name}, the first (Bonferroni), so that all intervals together "
                f"have a level of {self.confidence * 100:g}%."
            )
        return found

    def _mean_sentence(self, group: Group) -> str:
        """The mean of a group with an interval; empty for a single seed."""
        values = group.figure(self.metric)
        if len(values) < 2 or np.ptp(values) == 0:
            return ""
        label, spec = figures()[self.metric]
        low, high = statistics.mean_interval(values, self.confidence)
        if is_share(self.metric) or self.metric in _NOT_NEGATIVE:
            low, high = np.clip((low, high), 0, 1 if is_share(self.metric) else None)
        return (
            f"{label}: {_mean(self.metric, values)} for {group.name} ({self.confidence * 100:g}% "
            f"interval of the mean {low:{spec}} to {high:{spec}}, n = {len(values)} seeds)."
        )


def as_text(comparison: Comparison) -> str:
    """A table of the groups, up to 100 columns wide if possible, and the sentences."""
    header, rows, optional = _table(comparison)
    while True:
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        if sum(widths) + 2 * (len(widths) - 1) <= _WIDTH or not optional:
            break
        leave = header.index(optional.pop())
        header, *rows = [row[:leave] + row[leave + 1 :] for row in (header, *rows)]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join([*lines, *_remarks(comparison, "")])


def as_markdown(comparison: Comparison) -> str:
    """The same for a paper or an issue, with all columns."""
    header, rows, _ = _table(comparison)
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (header, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    lines.insert(1, "|" + "---|" * len(header))
    return "\n".join([*lines, *_remarks(comparison, "- ")])


def _remarks(comparison: Comparison, bullet: str) -> list[str]:
    """The notes and the sentences, each part after an empty line."""
    parts = [part for part in (comparison.notes, comparison.sentences) if part]
    return [line for part in parts for line in ["", *(bullet + remark for remark in part)]]


def _table(comparison: Comparison) -> tuple[list[str], list[list[str]], list[str]]:
    """A row for each group; also names the columns to leave out if need be, the last one first."""
    metric, groups = comparison.metric, comparison.groups
    settings = list(groups[0].settings)
    others = {f"test {label}": name for name, (label, _) in figures().items() if name != metric}
    label = figures()[metric][0]
    header = [
        *(settings or ["runs"]),
        "n",
        f"test {label}",
        f"best val {label}",
        "trained",
        *others,
    ]
    rows = [
        [
            *([text(group.settings[name]) for name in settings] or [group.name]),
            str(len(group.figure(metric))),
            _mean(metric, group.figure(metric)),
            _mean(metric, group.best_val),
            _epochs(group),
            *(_mean(name, group.figure(name), spread=False) for name in others.values()),
        ]
        for group in groups
    ]
    first, *rest = others
    return header, rows, [first, "trained", *reversed(rest)]


def _epochs(group: Group) -> str:
    """The epochs that the runs were trained for."""
    epochs = sorted({entry.epoch for entry in group.finished or group.entries})
    first, last = f"{epochs[0]:.4g}", f"{epochs[-1]:.4g}"
    if first == last:
        return f"{first} epoch" if first == "1" else f"{first} epochs"
    return f"{first} to {last} epochs"


def _mean(metric: str, values: np.ndarray, *, spread: bool = True) -> str:
    """The mean over the seeds, with the standard deviation, such as "97.21% ± 0.42"."""
    if not len(values):
        return "-"
    digits = 2 if is_share(metric) else 4
    mean = format(values.mean(), figures()[metric][1])
    if not spread or len(values) == 1:
        return mean
    return f"{mean} ± {bare(metric, values.std(ddof=1), digits)}"


def as_csv(comparison: Comparison) -> str:
    """A row for each run: its directory, group, state, seed, differing settings and figures."""
    stream = io.StringIO()
    settings = list(comparison.groups[0].settings)
    test = [f"test_{name}" for name in figures()]
    val = f"best_val_{comparison.metric}"
    names = ["run", "group", "finished", "seed", *settings, *test, val, "step", "total_steps"]
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    for group in comparison.groups:
        for entry in group.entries:
            row = {
                "run": entry.run.path,
                "group": group.name,
                "finished": text(entry.result is not None),
                **{name: text(value) for name, value in group.settings.items()},
                **{f"test_{name}": x for name, x in _figures(entry).items()},
                val: entry.best_val,
                **{name: getattr(entry, name) for name in ("seed", "step", "total_steps")},
            }
            writer.writerow({name: _blank(row.get(name)) for name in names})
    return stream.getvalue().rstrip("\n")


def _blank(value) -> Any:
    """The value, or nothing if it is none or not finite."""
    is_number = isinstance(value, float) and math.isfinite(value)
    return value if is_number or not isinstance(value, float | None) else ""


def _figures(entry: Entry) -> dict[str, float]:
    return {name: entry.result[name] for name in figures() if name in (entry.result or {})}


def as_json(comparison: Comparison) -> str:
    """Everything that was compared and found."""
    content = {
        "metric": comparison.metric,
        "confidence": comparison.confidence,
        "groups": [_group(group) for group in comparison.groups],
        "comparisons": [
            {**dataclasses.asdict(d), "estimate": d.estimate._asdict()}
            for d in comparison.differences
        ],
        "sentences": comparison.sentences,
        "notes": list(comparison.notes),
    }
    return json.dumps(without_nan(content), indent=2)


def _group(group: Group) -> dict:
    test = {name: group.figure(name) for name in figures()}
    return {
        "name": group.name,
        "differs_in": group.settings,
        "identity": identity(group.saved),
        "test": {
            name: {
                "seeds": len(values),
                "mean": float(values.mean()) if len(values) else None,
                "std": float(values.std(ddof=1)) if len(values) > 1 else None,
            }
            for name, values in test.items()
        },
        "runs": [
            {
                "path": str(entry.run.path),
                "finished": entry.result is not None,
                "seed": entry.seed,
                "step": entry.step,
                "total_steps": entry.total_steps,
                "epoch": entry.epoch,
                "best_val": entry.best_val,
                "test": _figures(entry),
            }
            for entry in group.entries
        ],
    }
