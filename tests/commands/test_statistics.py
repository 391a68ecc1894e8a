"""Statistics against published examples and values worked out by hand."""

import math

import numpy as np
import pytest

from commands.statistics import (
    mean_interval,
    one_against_several,
    paired_accuracies,
    paired_means,
    seeds_needed,
    welch,
)

# Hours of sleep gained with two drugs by ten patients (Student 1908), the example of R's t.test.
SLEEP_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SLEEP_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def correct(both, only_first, only_second, neither):
    """Which examples two nets classify correctly, from the counts of a table of 2 x 2."""
    counts = [both, only_first, only_second, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False] * 2, counts)


def test_paired_accuracies_of_a_published_table():
    """Bentur et al. 2009, the example of Fagerland, Lydersen and Laake (2014)."""
    estimate, only = paired_accuracies(*correct(1, 1, 7, 12))
    assert only == (1, 7)
    # Of 8: none or one, twice; less one.
    assert estimate.p_value == pytest.approx((2 * (1 + 8) - 8) / 2**8)
    assert estimate.difference == pytest.approx(6 / 21)
    # (8 - 2) / 23 -+ 1.959964 * sqrt((10 / 23 - (6 / 23)**2) / 23)
    assert (estimate.low, estimate.high) == pytest.approx((0.01338, 0.50836), abs=1e-5)


def test_a_difference_is_of_the_second_from_the_first():
    first, second = correct(50, 12, 2, 6)
    forth, back = paired_accuracies(first, second)[0], paired_accuracies(second, first)[0]
    assert forth.difference == pytest.approx(-10 / 70)
    assert back == pytest.approx((-forth.difference, -forth.high, -forth.low, forth.p_value))
    assert forth.high < 0
    assert welch(SLEEP_1, SLEEP_2).difference == pytest.approx(1.58)
    assert one_against_several(3.0, [1.0, 2.0, 3.0]).difference == -1


def test_test_and_interval_agree_where_the_exact_test_would_not():
    """Of 14: 0 to 2 have 1 + 14 + 91 = 106 cases, and 3 has 364. The exact p is 0.0574."""
    estimate, _ = paired_accuracies(*correct(180, 3, 11, 6))
    assert estimate.p_value == pytest.approx((2 * 106 + 364) / 2**14)
    assert 0 < estimate.low < 0.002
    assert paired_accuracies(*correct(180, 7, 7, 6))[0].p_value == pytest.approx(1)


def test_nets_that_are_right_on_the_same_examples():
    """The interval is not empty: other examples might tell them apart."""
    estimate, only = paired_accuracies(*correct(98, 0, 0, 0))
    assert only == (0, 0)
    assert (estimate.difference, estimate.p_value) == (0, 1)
    assert (estimate.low, estimate.high) == pytest.approx((-0.027718, 0.027718), abs=1e-6)


def test_confidence_widens_the_interval():
    tables = correct(80, 5, 10, 5)
    (wide, _), (narrow, _) = (paired_accuracies(*tables, confidence=c) for c in (0.99, 0.9))
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(2.575829 / 1.644854)
    assert wide.p_value == narrow.p_value


def test_welch_of_a_published_example():
    estimate = welch(SLEEP_2, SLEEP_1)
    assert estimate == pytest.approx((-1.58, -3.3654832, 0.2054832, 0.07939414), abs=1e-7)


def test_paired_means_of_a_published_example():
    """R: t = -4.0621, df = 9, p-value = 0.002833, interval -2.4598858 to -0.7001142."""
    estimate = paired_means(SLEEP_2, SLEEP_1)
    assert estimate == pytest.approx((-1.58, -2.4598858, -0.7001142, 0.00283289), abs=1e-7)


def test_one_run_against_several():
    """2 - 3 -+ t(0.975, 2) * s * sqrt(1 + 1/3) with s = 1 and t = 4.302653."""
    estimate = one_against_several(3.0, [1.0, 2.0, 3.0])
    half = 4.302653 * math.sqrt(4 / 3)
    assert (estimate.low, estimate.high) == pytest.approx((-1 - half, -1 + half), abs=1e-5)
    # The t distribution with 2 degrees of freedom is 1/2 + t / (2 sqrt(2 + t^2)).
    t = math.sqrt(3 / 4)
    assert estimate.p_value == pytest.approx(1 - t / math.sqrt(2 + t**2))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.1, 0.9693593314763231, 1.0])
def test_equal_values_have_no_spread(value):
    """Not one of rounding errors, in which every difference would be significant."""
    for estimate in (
        welch([value] * 3, [value + 0.1] * 3),
        paired_means([value] * 3, [value + 0.1] * 3),
        one_against_several(value, [value + 0.1] * 3),
    ):
        assert estimate.difference == pytest.approx(0.1)
        assert all(map(math.isnan, estimate[1:]))
    assert welch([1.0] * 3, [1.0, 0.9, 1.0]).p_value == pytest.approx(0.42264973)


def test_mean_interval():
    """2 -+ 4.302653 / sqrt(3)."""
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((-0.484138, 4.484138), abs=1e-6)


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 394), (0.5, 64), (0.8, 26), (1.0, 17)])
def test_seeds_needed_are_those_of_cohens_table(effect, seeds):
    """Cohen 1988, table 2.4.1, power 0.80 and a2 = 0.05 (for 0.2: R, 393.4057)."""
    assert seeds_needed(effect, 1, 1) == seeds_needed(-effect / 100, 0.01, 0.01) == seeds


def test_seeds_needed_at_the_edges():
    assert seeds_needed(100.0, 1, 1) == 2
    assert seeds_needed(1e6, 1, 0.5) == 2
    assert seeds_needed(0.01, 1, 1) is None
    assert seeds_needed(0.0, 1, 1) is None
    needed = [seeds_needed(effect, 1, 1) for effect in np.geomspace(0.13, 1e6, 60)]
    assert needed == sorted(needed, reverse=True)
    assert seeds_needed(0.5, 1, 0) == 34  # As for one sample, for which R gives 33.367.
    assert seeds_needed(1.0, 1, 1, confidence=0.99) > seeds_needed(1.0, 1, 1)


@pytest.mark.slow
def test_no_test_rejects_too_often():
    """1,000 pairs of equal nets on 359 examples, and of equal groups of three seeds."""
    generator = np.random.default_rng(0)
    kinds = generator.choice(4, (1000, 359), p=[0.92, 0.02, 0.02, 0.04])
    paired = [paired_accuracies(k < 2, (k == 0) | (k == 2))[0] for k in kinds]
    groups = [welch(*generator.normal(size=(2, 3))) for _ in range(1000)]
    for estimates in (paired, groups):
        rejected = np.mean([e.p_value < 0.05 for e in estimates])
        covered = np.mean([e.low <= 0 <= e.high for e in estimates])
        assert 0.01 < rejected < 0.065  # Three standard errors above 5% are 7%.
        assert covered > 0.935
