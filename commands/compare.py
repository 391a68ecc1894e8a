"""Compares saved runs: what compare.py does.

In Python:

comparison = compare_runs(["runs/baseline", "runs/wider"])
print(as_text(comparison), comparison.differences[0].estimate)
"""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

import pictures
from commands.checks import png_file
from commands.comparison import gather
from commands.comparison_report import Comparison, as_csv, as_json, as_markdown, as_text
from commands.differences import compare_groups, is_share, predictions_of
from commands.options import CompareOptions
from commands.output import write
from commands.results import as_results
from commands.setting import ConfigError, convert
from loops.errors import RunError, SaveError, reason
from loops.metrics import figures, higher_is_better
from loops.records.terminal import Terminal
from pictures.figure import BLUE, ORANGE, Figure

_FORMATS = {
    "text": as_text,
    "markdown": as_markdown,
    "csv": as_csv,
    "json": as_json,
}
_MOST_IMAGES = 60


def compare(options: CompareOptions) -> Comparison:
    """Compares runs, prints the comparison, and draws what is asked for.

    Raises:
        ConfigError, data.DataError, RunError: something is missing, damaged or does not fit.
    """
    options = convert(dataclasses.asdict(options), CompareOptions)
    options.check()
    chart = png_file("chart", options.chart)
    examples = png_file("examples", options.examples)
    comparison = compare_runs(options.runs, options.metric, confidence=options.confidence)
    is_accuracy = is_share(options.metric) and higher_is_better(options.metric)
    if options.chart_error and not is_accuracy:
        raise ConfigError(
            f"--chart_error draws 100% minus an accuracy, not --metric={options.metric}"
        )
    if examples:
        _draw_examples(comparison, examples, options.data_dir)
    if chart:
        _draw_curves(comparison, chart, as_error=options.chart_error)
    if options.format == "results":  # Of the records, each of which must be whole.
        write(f"{as_results(options.runs)}\n")
    else:
        write(f"{_FORMATS[options.format](comparison)}\n")
    if options.format == "csv":  # Which has no place for remarks.
        for remark in [*comparison.notes, *comparison.sentences]:
            Terminal(sys.stderr).line(remark)
    return comparison


def compare_runs(
    runs: Sequence[str | os.PathLike],
    metric: str = "top_1_accuracy",
    *,
    confidence: float = 0.95,
) -> Comparison:
    """Compares runs. Those that differ in their seed alone are summarized together, unless they
    were trained by different code.

    Args:
        runs: directories of runs, or directories that contain them. The first run, with the others
            of its group, is what the other groups are compared with.
        metric: "loss" or a key of `loops.metrics.METRICS`.
        confidence: level of the intervals, and of the tests.

    Raises:
        ConfigError, RunError: there are no such runs, one is damaged, or there is no such metric.
    """
    if metric not in figures():
        raise ConfigError(f"--metric={metric} is unknown; known: {', '.join(figures())}")
    groups, notes = gather(runs, metric)
    return Comparison(
        metric=metric,
        confidence=confidence,
        groups=tuple(groups),
        differences=tuple(compare_groups(groups, metric, confidence)),
        notes=tuple(notes),
    )


def _save(figure: Figure, path: pathlib.Path) -> None:
    try:
        pictures.save(figure, path)
    except OSError as error:
        raise SaveError(f"cannot write {path}: {reason(error)}") from error


def _draw_curves(comparison: Comparison, path: pathlib.Path, *, as_error: bool) -> None:
    """Draws the curves of each group in training and validation, seeds as a band.

    As an error, they are 1 minus the figure.
    """
    metric = comparison.metric
    label, _ = figures()[metric]
    figure = pictures.compare_curves(
        {
            title: {
                group.name: [
                    _as_error(entry.curves[split]) if as_error else entry.curves[split]
                    for entry in group.entries
                    if len(entry.curves[split]["epoch"])
                ]
                for group in comparison.groups
            }
            for split, title in (("train", "training, mean of an epoch"), ("val", "validation"))
        },
        metric_label=f"{label} error" if as_error else label,
        is_share=is_share(metric),
        higher_is_better=higher_is_better(metric) and not as_error,
    )
    _save(figure, path)


def _as_error(curve: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return curve | {"value": 1 - curve["value"]}


def _draw_examples(comparison: Comparison, path: pathlib.Path, data_dir: str | None) -> None:
    """Draws test images that only one of two runs classifies correctly."""
    entries = [entry for group in comparison.groups for entry in group.finished]
    if len(entries) != 2:
        raise ConfigError(
            f"--examples={path}: it shows what tells two finished runs apart, not {len(entries)}; "
            "name two"
        )
    first, second = entries
    if len({entry.run.data.fingerprints["test"] for entry in entries}) > 1:
        raise RunError("--examples: the two runs were scored on different test splits")
    one, other = predictions_of(first), predictions_of(second)
    only_first = np.flatnonzero(one.correct & ~other.correct)
    only_second = np.flatnonzero(other.correct & ~one.correct)
    half = _MOST_IMAGES // 2
    numbers = np.concatenate(
        [
            only_first[: max(half, _MOST_IMAGES - len(only_second))],
            only_second[: max(half, _MOST_IMAGES - len(only_first))],
        ]
    )
    classes = first.run.data.class_names
    captions = [
        f"is {classes[one.labels[i]]}\nA: {classes[one.predicted[i]]}\n"
        f"B: {classes[other.predicted[i]]}"
        for i in numbers
    ]
    source = first.run.dataset(data_dir, split="test").evaluated("test")
    figure = pictures.image_grid(
        source.fetch(tf.constant(numbers)).numpy(),
        captions,
        title=f"A is {first.name}, B is {second.name}. Of {len(one.labels):,} test images only A "
        f"is right on {len(only_first):,} (blue), only B on {len(only_second):,} (orange)",
        colors=[BLUE if one.correct[i] else ORANGE for i in numbers],
    )
    _save(figure, path)
