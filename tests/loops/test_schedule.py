import math
import time

import numpy as np
import pytest
import tensorflow as tf

from loops.schedule import SCHEDULES, LearningRate, Moment, Plan


def rates(name, steps=10, **kwargs):
    rate = LearningRate(name, peak=0.4, total_steps=steps, **kwargs)
    return [float(rate(tf.constant(step, tf.int64))) for step in range(steps)]


def test_constant():
    np.testing.assert_allclose(rates("constant"), [0.4] * 10)


def test_warm_up_rises_to_the_peak_from_its_first_update():
    np.testing.assert_allclose(rates("constant", warmup_steps=4)[:5], [0.1, 0.2, 0.3, 0.4, 0.4])
    np.testing.assert_allclose(rates("constant", warmup_steps=1)[:2], [0.4, 0.4])


def test_step_falls_at_its_boundaries():
    expected = [0.4] * 3 + [0.2] * 4 + [0.1] * 3
    np.testing.assert_allclose(rates("step", boundaries=(3, 7), factor=0.5), expected)
    np.testing.assert_allclose(rates("step"), [0.4] * 10)


def test_step_with_a_warm_up_falls_at_global_steps():
    found = rates("step", boundaries=(3, 7), factor=0.5, warmup_steps=2)
    np.testing.assert_allclose(found, [0.2, 0.4, 0.4] + [0.2] * 4 + [0.1] * 3)


def test_cosine():
    expected = [0.2 * (1 + math.cos(math.pi * s / 10)) for s in range(10)]
    np.testing.assert_allclose(rates("cosine"), expected, rtol=1e-5)


def test_cosine_after_a_warm_up_starts_from_the_peak():
    found = rates("cosine", warmup_steps=2)
    expected = [0.2, 0.4] + [0.2 * (1 + math.cos(math.pi * s / 8)) for s in range(8)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_one_cycle_is_a_triangle():
    found = rates("one_cycle", warmup_steps=5)
    expected = [0.08, 0.16, 0.24, 0.32, 0.4, 0.4, 0.32, 0.24, 0.16, 0.08]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["cosine", "one_cycle"])
def test_the_rate_is_0_after_the_end(name):
    rate = LearningRate(name, peak=1.0, total_steps=10)
    assert float(rate(tf.constant(12))) == pytest.approx(0, abs=1e-7)


def test_a_schedule_is_a_function_of_a_moment(monkeypatch):
    """What the documentation tells people to write."""
    monkeypatch.setitem(SCHEDULES, "sqrt", lambda moment: tf.sqrt(1 - moment.fraction))
    assert Moment._fields == ("step", "fraction", "boundaries", "factor", "warmup_steps")
    found = rates("sqrt", warmup_steps=2)
    expected = [0.2, 0.4] + [0.4 * math.sqrt(1 - s / 8) for s in range(8)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_schedule_may_depend_on_the_warm_up(monkeypatch):
    """That of Vaswani et al. 2017, section 5.3, with the peak of 0.4 after 3 updates."""

    def inverse_sqrt(moment):
        warmup = max(moment.warmup_steps, 1)
        return tf.math.rsqrt(tf.maximum(moment.step + 1, warmup) / warmup)

    monkeypatch.setitem(SCHEDULES, "inverse_sqrt", inverse_sqrt)
    found = rates("inverse_sqrt", warmup_steps=3)
    expected = [0.4 * min((step + 1) / 3, math.sqrt(3 / (step + 1))) for step in range(10)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("warmup", [10, 11, -1])
def test_a_warm_up_must_be_shorter_than_the_run(warmup):
    with pytest.raises(ValueError, match=f"warmup_steps={warmup} must be in"):
        rates("cosine", warmup_steps=warmup)


def test_an_unknown_schedule_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'linear'.*constant, step, cosine, one_cycle"):
        rates("linear")


def epoch_ends(plan, every=1):
    """The steps after which an epoch, each `every`-th one, or the run, ends: all of them."""
    whole = {plan.steps(e) for e in range(every, math.floor(plan.epochs) + 1, every)}
    return sorted(whole | {plan.total_steps})


@pytest.mark.parametrize("epochs", [0.001, 0.3, 1, 1.5, 2, 7, 7.25, 0.1 * 30, 23])
@pytest.mark.parametrize(
    ("examples", "batch"),
    [(100, 10), (100, 32), (23, 8), (3, 8), (1, 128), (10, 128), (7, 7), (101, 100), (50, 1)],
)
def test_the_ends_of_epochs_are_those_of_a_list(epochs, examples, batch):
    plan = Plan(epochs, examples, batch)
    ends = epoch_ends(plan)
    steps = range(1, plan.total_steps + 1)
    assert plan.total_steps == max(math.ceil(round(epochs * examples / batch, 6)), 1)
    assert [step for step in steps if plan.is_epoch_end(step)] == ends
    for every in (2, 3, 5):
        wanted = epoch_ends(plan, every)
        assert [step for step in steps if plan.is_epoch_end(step, every)] == wanted
    assert not plan.is_epoch_end(0)
    for step in range(plan.total_steps):
        assert plan.next_epoch_end(step) == min(end for end in ends if end > step)
    for step in steps:
        assert plan.epoch_start(step) == max((end for end in ends if end < step), default=0)
        completed = sum(e * examples <= step * batch for e in range(1, math.floor(epochs) + 1))
        assert plan.whole_epochs(step) == (epochs if step == ends[-1] else completed)


def test_a_plan_by_hand():
    plan = Plan(epochs=3, train_examples=100, global_batch_size=32)
    assert plan.total_steps == 10  # 300 examples in batches of 32.
    assert epoch_ends(plan) == [4, 7, 10]
    assert plan.epoch(10) == 3.2
    assert [plan.steps(epochs) for epochs in (0, 0.5, 1)] == [0, 2, 4]
    assert plan.whole_epochs(6) == 1


def test_a_plan_is_not_a_step_too_long():
    # 0.1 * 3 * 10 is 3.0000000000000004.
    assert Plan(epochs=0.1 * 3, train_examples=10, global_batch_size=1).total_steps == 3


def test_a_long_epoch_ends_at_its_last_step():
    """Of epochs so long that a step is a tiny part of one."""
    plan = Plan(epochs=3, train_examples=10**9, global_batch_size=1)
    for step in (10**9, 2 * 10**9):
        assert plan.next_epoch_end(step - 1) == step
        assert plan.is_epoch_end(step)
        assert not plan.is_epoch_end(step - 1)
        assert not plan.is_epoch_end(step + 1)


def test_planning_takes_the_same_time_for_any_number_of_epochs():
    plan = Plan(epochs=1e6, train_examples=45_000, global_batch_size=128)
    started = time.process_time()
    for step in range(plan.total_steps - 1000, plan.total_steps):
        plan.is_epoch_end(step, 3)
        plan.next_epoch_end(step)
        plan.epoch_start(step)
        plan.whole_epochs(step)
    # A list of the epochs would take some 0.2 s for each.
    assert time.process_time() - started < 0.5
    assert plan.next_epoch_end(plan.total_steps - 1) == plan.total_steps == 351_562_500
