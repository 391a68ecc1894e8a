"""Statistics of a comparison: differences with intervals and tests, from arrays.

    welch([0.971, 0.974, 0.969], [0.981, 0.979, 0.983])  # Groups of seeds.
    paired_accuracies(first_correct, second_correct)     # Two nets on the same examples.

Every difference is that of the second from the first, `second - first`.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
from scipy import stats

POWER = 0.8  # Customary, Cohen 1988, section 2.4.
MOST_SEEDS = 1000


class Estimate(NamedTuple):
    """A difference, a confidence interval for it, and the p value of "there is none"."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_accuracies(
    first: np.ndarray, second: np.ndarray, confidence: float = 0.95
) -> tuple[Estimate, tuple[int, int]]:
    """The difference of two nets' accuracies on the same examples.

    The test is McNemar's (McNemar 1947): given the examples that only one of the two classifies
    correctly, each net has half of them if the accuracies are equal. Of the exact distribution, the
    result itself counts half (mid-p); Fagerland, Lydersen and Laake (2013) recommend it, since it
    keeps its level and is not as conservative as the exact test. The interval is Wald's with one
    more example for each net (Bonett and Price 2012), which the same authors (2014) recommend;
    unlike Wald's, it keeps its level with few such examples, or none. At the edge, the two may
    disagree.

    Args:
        first: bool [n], whether one net classifies each example correctly.
        second: the same of the other.
        confidence: level of the interval.

    Returns:
        The estimate, and the numbers of examples that only the first and only the second classifies
        correctly.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    different, examples = only_first + only_second, len(first)
    fewer, halves = min(only_first, only_second), stats.binom(different, 0.5)
    p_value = 2 * halves.cdf(fewer) - halves.pmf(fewer)
    share_first, share_second = (
        (only_first + 1) / (examples + 2),
        (only_second + 1) / (examples + 2),
    )
    center = share_second - share_first
    variance = (share_first + share_second - center**2) / (examples + 2)
    half = float(stats.norm.ppf((1 + confidence) / 2)) * math.sqrt(variance)
    difference = (only_second - only_first) / examples
    estimate = Estimate(difference, center - half, center + half, float(p_value))
    return estimate, (only_first, only_second)


def paired_means(first: np.ndarray, second: np.ndarray, confidence: float = 0.95) -> Estimate:
    """The difference of two nets' means of a value per example, such as the loss (paired t test).

    Args:
        first: float [n], the values with one net.
        second: float [n], those of the same examples with the other.
        confidence: level of the interval.
    """
    changes = np.subtract(second, first, dtype=float)
    if np.ptp(changes) == 0:
        return _without_spread(changes[0])
    return _t_estimate(stats.ttest_1samp(changes, 0), changes.mean(), confidence)


def welch(first: np.ndarray, second: np.ndarray, confidence: float = 0.95) -> Estimate:
    """The difference of the means of two groups (Welch 1947), which may differ in spread.

    The interval and the p value are NaN if neither group has any spread.

    Args:
        first: float [at least 2], such as a figure of each seed.
        second: likewise.
        confidence: level of the interval.
    """
    if np.ptp(first) == np.ptp(second) == 0:
        return _without_spread(second[0] - first[0])
    result = _quietly(stats.ttest_ind, second, first, equal_var=False)
    return _t_estimate(result, np.mean(second) - np.mean(first), confidence)


def one_against_several(first: float, second: np.ndarray, confidence: float = 0.95) -> Estimate:
    """The difference of the mean of a group from a single value.

    It assumes that the value is from a population with the same spread as the group's, which is all
    that a single value allows (Crawford and Howell 1998).

    Args:
        first: a figure of one run.
        second: float [at least 2], that of each seed of a group.
        confidence: level of the interval.
    """
    if np.ptp(second) == 0:
        return _without_spread(second[0] - first)
    result = _quietly(stats.ttest_ind, second, [first], equal_var=True)
    return _t_estimate(result, np.mean(second) - first, confidence)


def _quietly(function, *args, **kwargs):
    """Calls a function of SciPy without its warnings, such as of a group without spread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return function(*args, **kwargs)


def _t_estimate(result, difference: float, confidence: float) -> Estimate:
    low, high = result.confidence_interval(confidence)
    return Estimate(float(difference), float(low), float(high), float(result.pvalue))


def _without_spread(difference: float) -> Estimate:
    """Where all values are equal. Their computed spread would be a rounding error."""
    return Estimate(float(difference), math.nan, math.nan, math.nan)


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """The confidence interval of a mean, by Student's t.

    Args:
        values: float [at least 2].
        confidence: level of the interval.
    """
    low, high = stats.t.interval(
        confidence, len(values) - 1, loc=np.mean(values), scale=stats.sem(values)
    )
    return float(low), float(high)


def seeds_needed(
    difference: float, first_std: float, second_std: float, confidence: float = 0.95
) -> int | None:
    """Seeds in each of two groups with which Welch's test would show a difference, 4 times in 5.

    Its power is that of the noncentral t distribution (Cohen 1988, section 2.4), with Welch's
    degrees of freedom.

    Args:
        difference: to be shown; its sign does not matter.
        first_std: standard deviation over the seeds of one group.
        second_std: that of the other.
        confidence: 1 minus the level of the test.

    Returns:
        At least 2; None if it is more than `MOST_SEEDS`.
    """
    variances = np.square([first_std, second_std])
    if not variances.any() or difference == 0:
        return 2 if difference else None
    seeds = np.arange(2, MOST_SEEDS + 1)
    degrees = (seeds - 1) * variances.sum() ** 2 / np.square(variances).sum()
    shift = abs(difference) / np.sqrt(variances.sum() / seeds)
    enough = _power(degrees, shift, confidence) >= POWER
    return int(seeds[enough.argmax()]) if enough.any() else None


def _power(degrees: np.ndarray, shift: np.ndarray, confidence: float) -> np.ndarray:
    """How often a two-sided t test rejects, with the right sign, if its statistic is shifted."""
    limit = stats.t.ppf((1 + confidence) / 2, degrees)
    power = _quietly(stats.nct.sf, limit, degrees, shift)
    # Far out, where the power is 1, SciPy may give NaN.
    return np.where(shift > limit + 10, 1.0, np.nan_to_num(power))
