import math

import numpy as np
import pytest
import tensorflow as tf

from loops.schedule import LearningRate, Plan


def rates(kind, steps=10, **kwargs):
    rate = LearningRate(kind, peak=0.4, total_steps=steps, **kwargs)
    return [float(rate(tf.constant(step, tf.int64))) for step in range(steps)]


def test_constant():
    np.testing.assert_allclose(rates("constant"), [0.4] * 10)


def test_warm_up_rises_to_the_peak():
    np.testing.assert_allclose(rates("constant", warmup_steps=4)[:5], [0.1, 0.2, 0.3, 0.4, 0.4])


def test_step_falls_at_its_boundaries():
    expected = [0.4] * 3 + [0.2] * 4 + [0.1] * 3
    np.testing.assert_allclose(rates("step", boundaries=(3, 7), factor=0.5), expected)


def test_cosine():
    expected = [0.2 * (1 + math.cos(math.pi * s / 10)) for s in range(10)]
    np.testing.assert_allclose(rates("cosine"), expected, rtol=1e-5)


def test_cosine_after_warm_up_starts_from_the_peak():
    found = rates("cosine", warmup_steps=2)
    np.testing.assert_allclose(found[1:3], [0.4, 0.4])
    assert found[6] == pytest.approx(0.2)  # In the middle of the eight steps that are left.


def test_one_cycle_is_a_triangle():
    found = rates("one_cycle", warmup_steps=5)
    expected = [0.08, 0.16, 0.24, 0.32, 0.4, 0.4, 0.32, 0.24, 0.16, 0.08]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_rate_is_zero_behind_the_end():
    rate = LearningRate("cosine", peak=1.0, total_steps=10)
    assert float(rate(tf.constant(12))) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("warmup", [10, 11, -1])
def test_warm_up_must_be_shorter_than_the_run(warmup):
    with pytest.raises(ValueError, match=f"warmup_steps={warmup}"):
        rates("cosine", warmup_steps=warmup)


def test_unknown_schedule_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'linear'.*constant, step, cosine, one_cycle"):
        rates("linear")


def test_plan_covers_whole_epochs():
    plan = Plan(epochs=3, train_examples=100, global_batch_size=32)
    assert plan.total_steps == 10  # 300 examples in batches of 32.
    assert plan.epoch_ends() == [4, 7, 10]
    assert plan.epoch(10) == 3.2


def test_plan_of_a_fraction():
    plan = Plan(epochs=1.5, train_examples=100, global_batch_size=10)
    assert plan.epoch_ends() == [10, 15]
    assert Plan(0.001, 100, 10).total_steps == 1


def test_plan_is_not_a_step_too_long():
    # 0.1 * 3 * 10 is 3.0000000000000004.
    assert Plan(epochs=0.1 * 3, train_examples=10, global_batch_size=1).total_steps == 3


def test_plan_of_less_data_than_a_batch():
    assert Plan(epochs=4, train_examples=3, global_batch_size=8).epoch_ends() == [1, 2]


def test_epochs_that_end_inside_large_batches():
    plan = Plan(epochs=4, train_examples=100, global_batch_size=128)
    assert plan.epoch_ends() == [1, 2, 3, 4]
    assert [plan.whole_epochs(step) for step in plan.epoch_ends()] == [1, 2, 3, 4]
    assert plan.epoch_ends(every=2) == [2, 4]
    assert Plan(epochs=5, train_examples=100, global_batch_size=10).epoch_ends(2) == [20, 40, 50]
    # Several epochs in a batch, and an end that is not a whole epoch.
    assert Plan(epochs=30, train_examples=10, global_batch_size=128).whole_epochs(3) == 30
    assert Plan(epochs=1.5, train_examples=10, global_batch_size=1).whole_epochs(15) == 1.5
