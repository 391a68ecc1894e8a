"""The learning-rate range test, by hand."""

import numpy as np
import pytest
import tensorflow as tf

from loops.inputs import iterate
from loops.rate_range import ExponentialRate, range_test, smooth, suggest
from loops.step import StepSettings, TrainStep
from tests.loops.helpers import examples, make_state


def test_the_rate_rises_by_the_same_factor():
    schedule = ExponentialRate(1e-3, 10.0, steps=5)
    rates = [float(schedule(tf.constant(step))) for step in range(5)]
    np.testing.assert_allclose(rates, [1e-3, 1e-2, 1e-1, 1.0, 10.0], rtol=1e-5)


@pytest.mark.parametrize(("low", "high", "steps"), [(0, 1, 5), (1, 1, 5), (1, 2, 1)])
def test_a_range_without_an_extent_is_refused(low, high, steps):
    with pytest.raises(ValueError, match="must hold"):
        ExponentialRate(low, high, steps)


def test_smoothing_by_hand():
    """Weighted means with weights 1, 0.9, 0.9 ** 2 from the newest back."""
    losses = [4.0, 2.0, 1.0]
    second = (2 + 0.9 * 4) / (1 + 0.9)
    third = (1 + 0.9 * 2 + 0.9**2 * 4) / (1 + 0.9 + 0.9**2)
    np.testing.assert_allclose(smooth(losses), [4.0, second, third])


def test_losses_of_updates_that_were_not_made_are_left_out():
    found = smooth([np.nan, 4.0, np.inf, 2.0])
    np.testing.assert_allclose(found, [np.nan, 4.0, 4.0, (2 + 0.9 * 4) / (1 + 0.9)])


def test_a_tenth_of_the_rate_of_the_lowest_loss_is_suggested():
    rates = np.array([0.01, 0.1, 1.0, 10.0, 100.0])
    assert suggest(rates, [2.0, 1.5, 1.0, 1.2, 5.0]) == pytest.approx(0.1)
    assert suggest(rates, [2.0, 1.5, 1.4, 1.2, np.nan]) == pytest.approx(1.0)
    assert suggest(rates, [2.0, 2.1, 2.5, 3.0, 9.0]) is None
    assert suggest(rates, [2.0, 1.99, 2.5, 3.0, 9.0]) is None
    assert suggest(rates, [np.nan, 2.0, 1.0, 1.2, 5.0]) == pytest.approx(0.1)
    assert suggest(rates, [np.nan, 2.0, 1.99, 2.2, 5.0]) is None
    assert suggest(rates, [np.nan] * 5) is None
    assert suggest(rates, [-1.0, -0.9, -0.5, 1.0, 2.0]) is None
    assert suggest([], []) is None


def run_test(strategy, low, high, steps, spoil=None):
    images, labels = examples(8)
    schedule = ExponentialRate(low, high, steps)
    state = make_state(strategy, rate=schedule, momentum=0.0)
    step = TrainStep(strategy, state, StepSettings(global_batch_size=8), schedule)
    batches = np.stack([images] * steps)
    if spoil is not None:
        batches[spoil] = np.nan
    dataset = tf.data.Dataset.from_tensor_slices((batches, np.stack([labels] * steps)))
    return range_test(step, iterate(strategy, dataset), schedule)


def test_updates_are_made_at_each_rate(one_replica):
    """The loss on one batch again and again: it falls, and ever faster."""
    found = run_test(one_replica, 1e-3, 1.0, 31)
    np.testing.assert_allclose(found.rates, np.geomspace(1e-3, 1.0, 31), rtol=1e-4)
    assert np.all(np.diff(found.losses) < 0)
    np.testing.assert_allclose(found.smoothed, smooth(found.losses))
    assert found.suggested == pytest.approx(0.1, rel=1e-4)


def test_it_ends_when_the_loss_diverges(one_replica):
    found = run_test(one_replica, 0.1, 1e6, 60)
    assert 10 < len(found.losses) < 60
    assert found.smoothed[-1] > 4 * found.smoothed.min()
    assert np.all(found.smoothed[10:-1] <= 4 * found.smoothed[:-1].min())


def test_it_ends_at_a_loss_that_is_not_finite(one_replica):
    found = run_test(one_replica, 1e-3, 1.0, 31, spoil=20)
    assert len(found.rates) == len(found.losses) == 20
    assert np.all(np.isfinite(found.losses))
