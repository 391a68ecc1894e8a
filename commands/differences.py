"""Whether two groups of runs differ in a figure: the test that their runs allow, and a sentence."""

import dataclasses
import math

import numpy as np

from commands import statistics
from commands.comparison import Entry, Group
from commands.statistics import Estimate
from loops.errors import RunError
from loops.metrics import figures, higher_is_better
from loops.records.predictions import Predictions
from loops.records.run import PREDICTIONS

_TOP_1 = "top_1_accuracy"
_UNKNOWN = Estimate(math.nan, math.nan, math.nan, math.nan)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """How one group, or run, differs from another on the test split.

    Attributes:
        first: name of the one.
        second: name of the other.
        metric: the figure that is tested.
        test: "Welch", for several seeds each; "McNemar" or "paired t", example by example, for one
            run each; "one against several"; None if no test is possible.
        reason: why no test is possible, or what the test does not say. May be empty.
        seeds: how many the one and the other have.
        estimate: of `second - first`, in the metric's unit (accuracies are in [0, 1]). NaN where it
            cannot be given.
        level: level of the interval, corrected for the number of comparisons.
        corrected_p: the p value, likewise.
        only: numbers of examples that only the one and only the other classifies correctly.
        examples: number of examples in the test split.
        seeds_needed: seeds with which a difference as large as this one would be seen, with a p
            value corrected likewise.
        is_seen: whether the corrected p value is below 1 - confidence.
        sentence: all of this in words.
    """

    first: str
    second: str
    metric: str
    test: str | None = None
    reason: str = ""
    seeds: tuple[int, int] = (1, 1)
    estimate: Estimate = _UNKNOWN
    level: float = math.nan
    corrected_p: float = math.nan
    only: tuple[int, int] | None = None
    examples: int
    seeds_needed: int | None = None
    is_seen: bool = False
    sentence: str = ""


def compare_groups(groups: list[Group], metric: str, confidence: float) -> list[Difference]:
    """Compares each group with the first; two runs of one group with each other.

    With several tests, p values, intervals and numbers of seeds are corrected for their number
    (Bonferroni; Dunn 1961), so that they agree. If no group differs from the first, the chance that
    any difference is seen is at most 1 - confidence.
    """
    found = _compare(groups, metric, confidence)
    tests = max(sum(d.test is not None for d in found), 1)
    level = 1 - (1 - confidence) / tests
    if tests > 1:
        found = _compare(groups, metric, level)
    for i, d in enumerate(found):
        p_value = float(np.minimum(d.estimate.p_value * tests, 1.0))
        is_seen = p_value < 1 - confidence
        d = dataclasses.replace(d, level=level, corrected_p=p_value, is_seen=is_seen)
        found[i] = dataclasses.replace(d, sentence=_sentence(d))
    return found


def _compare(groups: list[Group], metric: str, level: float) -> list[Difference]:
    if len(groups) == 1:
        runs = groups[0].finished
        return [_two_runs(*runs, metric, level)] if len(runs) == 2 else []
    return [_two_groups(groups[0], group, metric, level) for group in groups[1:]]


def _two_groups(first: Group, second: Group, metric: str, confidence: float) -> Difference:
    """Compares two groups by the figures of their seeds, or example by example."""
    result = Difference(
        first=first.name,
        second=second.name,
        metric=metric,
        seeds=(len(first.figure(metric)), len(second.figure(metric))),
        examples=first.saved.data.examples["test"],
    )
    reason = _not_comparable(first, second, metric)
    if 0 in result.seeds:
        empty = first if result.seeds[0] == 0 else second
        reason = reason or f"no run of {empty.name} is finished, with a finite figure"
    if reason:
        return dataclasses.replace(result, reason=reason)
    if result.seeds == (1, 1):
        runs = [[e for e in g.finished if _has(e, metric)] for g in (first, second)]
        paired = _two_runs(runs[0][0], runs[1][0], metric, confidence)
        reason = "; ".join(filter(None, [paired.reason, *map(_chosen, (first, second), runs)]))
        return dataclasses.replace(paired, first=first.name, second=second.name, reason=reason)
    a, b = first.figure(metric), second.figure(metric)
    if 1 in result.seeds:
        return dataclasses.replace(result, **_one_against_several(first, second, a, b, confidence))
    estimate = statistics.welch(a, b, confidence)
    if math.isnan(estimate.p_value):
        reason = "the seeds of each do not differ, so that nothing can be said about others"
        return dataclasses.replace(result, estimate=estimate, reason=reason)
    spreads = a.std(ddof=1), b.std(ddof=1)
    needed = statistics.seeds_needed(estimate.difference, *spreads, confidence)
    return dataclasses.replace(result, test="Welch", estimate=estimate, seeds_needed=needed)


def _chosen(group: Group, runs: list[Entry]) -> str:
    """Which run stands for a group of a single seed; empty if there is only one."""
    if len(runs) == 1:
        return ""
    return (
        f"of the {len(runs)} runs of {group.name}, which have one seed, this is {runs[0].name}; "
        "the table has their mean"
    )


def _has(entry: Entry, metric: str) -> bool:
    return math.isfinite(entry.result.get(metric, math.nan))


def _not_comparable(first: Group, second: Group, metric: str) -> str:
    """Why figures of two groups are not of the same thing; empty if they are."""
    one, other = first.saved, second.saved
    if one.data.fingerprints["test"] != other.data.fingerprints["test"]:
        return "their test splits differ"
    if metric == "loss" and one.settings.loss != other.settings.loss:
        return f"the one is the {one.settings.loss} and the other the {other.settings.loss}"
    return ""


def _one_against_several(
    first: Group, second: Group, a: np.ndarray, b: np.ndarray, confidence: float
) -> dict:
    """The fields of a comparison in which one of two groups has a single run."""
    single, several = (first, second) if len(a) == 1 else (second, first)
    if len(a) == 1:
        estimate = statistics.one_against_several(a[0], b, confidence)
    else:
        difference, low, high, p_value = statistics.one_against_several(b[0], a, confidence)
        estimate = Estimate(-difference, -high, -low, p_value)
    if math.isnan(estimate.p_value):
        reason = f"{single.name} has one run, and the seeds of {several.name} do not differ"
        return {"estimate": estimate, "reason": reason}
    return {
        "test": "one against several",
        "estimate": estimate,
        "reason": f"with one run of {single.name}, this assumes that its seeds would differ as "
        f"much as those of {several.name}",
    }


def _two_runs(first: Entry, second: Entry, metric: str, confidence: float) -> Difference:
    """Compares two runs example by example: losses by their means, else the top-1 accuracy."""
    tested = metric if metric == "loss" else _TOP_1
    values = [e.result.get(tested, math.nan) for e in (first, second)]
    result = Difference(
        first=first.name,
        second=second.name,
        metric=tested,
        estimate=Estimate(values[1] - values[0], math.nan, math.nan, math.nan),
        examples=first.run.data.examples["test"],
    )
    try:
        one, other = (predictions_of(entry) for entry in (first, second))
    except RunError as error:
        return dataclasses.replace(result, reason=str(error))
    if not np.array_equal(one.labels, other.labels):
        reason = "their predictions are of different examples"
        return dataclasses.replace(result, reason=reason)
    if tested == "loss":
        estimate = statistics.paired_means(one.losses, other.losses, confidence)
        if math.isnan(estimate.p_value):
            reason = "the losses of all examples differ equally"
            return dataclasses.replace(result, estimate=estimate, reason=reason)
        return dataclasses.replace(result, test="paired t", estimate=estimate)
    if metric != tested:
        reason = f"{figures()[metric][0]} cannot be compared example by example"
        result = dataclasses.replace(result, reason=reason)
    estimate, only = statistics.paired_accuracies(one.correct, other.correct, confidence)
    return dataclasses.replace(result, test="McNemar", estimate=estimate, only=only)


def predictions_of(entry: Entry) -> Predictions:
    """The predictions of a run for each example of its test split.

    Raises:
        RunError: there are none, or not for each, or the file is damaged.
    """
    predictions = entry.run.predictions
    if predictions is None:
        raise RunError(
            f"{entry.name} has no {PREDICTIONS}, which neither records nor runs of earlier "
            "versions have"
        )
    expected = entry.run.data.examples["test"], entry.result.get(_TOP_1, math.nan)
    found = len(predictions.labels), predictions.correct.mean()
    if found[0] != expected[0] or not abs(found[1] - expected[1]) < 0.5 / expected[0]:
        raise RunError(
            f"{entry.run.path / PREDICTIONS} does not belong to the run's result: {found[0]:,} "
            f"examples, {found[1]:.2%} correct, not {expected[0]:,} and {expected[1]:.2%}"
        )
    return predictions


def _sentence(d: Difference) -> str:
    label = figures()[d.metric][0]
    if d.test is None:
        known = ""
        if math.isfinite(d.estimate.difference):
            known = f"{amount(d.metric, d.estimate.difference, signed=True)}, but "
        return f"{label}: {d.second} against {d.first}: {known}no test: {d.reason}."
    digits = _digits(d)
    sign = 1 if higher_is_better(d.metric) else -1
    if d.estimate.difference * sign < 0:
        sign = -sign
        better, worse = d.first, d.second
    else:
        better, worse = d.second, d.first
    low, high = sorted((d.estimate.low * sign, d.estimate.high * sign))
    by = amount(d.metric, d.estimate.difference * sign, digits)
    interval = f"{bare(d.metric, low, digits)} to {bare(d.metric, high, digits)}"
    facts = f"({d.level * 100:.5g}% interval {interval}, {_basis(d)}, {p_text(d)})"
    if d.is_seen:
        said = f"{better} is better than {worse} by {by} {facts}."
    elif d.only == (0, 0):
        said = f"no difference can be seen between {worse} and {better} {facts}."
    else:
        said = f"no difference can be seen between {worse} and {better}: {by} for {better} {facts}"
        said += f"; {_needed(d, by)}." if d.test == "Welch" else "."
    return f"{label}: {said}{_disagreement(d)}{_caveat(d)}"


def _basis(d: Difference) -> str:
    """What a test is made on."""
    if d.only is not None:
        if d.only == (0, 0):
            return f"both are right on the same of {d.examples:,} examples"
        return (
            f"of {d.examples:,} examples only {d.first} is right on {d.only[0]:,}, "
            f"only {d.second} on {d.only[1]:,}"
        )
    if d.test == "paired t":
        return f"{d.examples:,} examples"
    one, other = d.seeds
    return f"n = {one} seeds each" if one == other else f"n = {one} and {other} seeds"


def _disagreement(d: Difference) -> str:
    """A remark where the interval and the test are not of one mind, as McNemar's may be."""
    excludes = d.estimate.low > 0 or d.estimate.high < 0
    if excludes == d.is_seen:
        return ""
    found = ("just includes", "rejects") if d.is_seen else ("just excludes", "does not reject")
    return f" The interval {found[0]} 0, the test {found[1]}; the test decides."


def _caveat(d: Difference) -> str:
    reason = f" {d.reason[0].upper()}{d.reason[1:]}." if d.reason else ""
    if d.test in ("McNemar", "paired t"):
        return f" This is about these two trained nets, not about other seeds.{reason}"
    return reason


def _needed(d: Difference, by: str) -> str:
    if d.estimate.difference == 0:
        return "more seeds would narrow the interval"
    if d.seeds_needed is None:
        return f"more than {statistics.MOST_SEEDS:,} seeds each would be needed to show one of {by}"
    return f"about {d.seeds_needed} seeds each would show one of {by}"


def p_text(d: Difference) -> str:
    """The corrected p value, such as "McNemar p = 0.03"."""
    value = f"p = {d.corrected_p:.2g}" if d.corrected_p >= 0.001 else "p < 0.001"
    return value if d.test == "one against several" else f"{d.test} {value}"


def _digits(d: Difference) -> int:
    """Decimals with which half the interval and the difference have a significant digit.

    One or two for points, two to four for others.
    """
    least, most, scale = (1, 2, 100) if is_share(d.metric) else (2, 4, 1)
    half = (d.estimate.high - d.estimate.low) / 2
    sizes = [size * scale for size in (half, abs(d.estimate.difference)) if size]
    return int(np.clip([-math.floor(math.log10(x)) for x in sizes], least, most).max(initial=least))


def is_share(metric: str) -> bool:
    """Whether a figure is shown as a percentage."""
    return figures()[metric][1].endswith("%")


def bare(metric: str, value: float, digits: int) -> str:
    """A difference as a number, in points if the figure is a percentage."""
    value = round(value * (100 if is_share(metric) else 1), digits)
    return f"{value + 0.0:.{digits}f}"  # Not -0.0.


def amount(metric: str, value: float, digits: int | None = None, *, signed: bool = False) -> str:
    """A difference with its unit, such as "0.8 points"."""
    if digits is None:
        digits = 2 if is_share(metric) else 4
    sign = "+" if signed and value > 0 else ""
    return sign + bare(metric, value, digits) + (" points" if is_share(metric) else "")
