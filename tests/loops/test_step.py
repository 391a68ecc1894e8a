"""Updates against figures worked out by hand, and one replica against two."""

import numpy as np
import pytest
import tensorflow as tf

from loops.optimizer import is_decayed
from loops.schedule import LearningRate
from tests.loops.helpers import (
    Drawing,
    Linear,
    Statistics,
    TwoHeads,
    draws_by_hand,
    examples,
    gradients_by_hand,
    make_state,
    softmax,
    take_steps,
    weights,
)


def assert_close(found, expected, **kwargs):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 1e-5, "atol": 1e-6, **kwargs})


def test_sgd_by_hand(strategy):
    state, (images, labels) = make_state(strategy, momentum=0.0), examples()
    before, gradients = weights(state.net), gradients_by_hand(state.net, images, labels)
    take_steps(strategy, state, [(images, labels)])
    assert_close(weights(state.net), [w - 0.1 * g for w, g in zip(before, gradients, strict=True)])
    assert state.step == 1


def test_nesterov_by_hand(one_replica):
    state, batch = make_state(one_replica, momentum=0.9), examples()
    moments = [0.0, 0.0]
    for _ in range(3):
        before, gradients = weights(state.net), gradients_by_hand(state.net, *batch)
        moments = [0.9 * m - 0.1 * g for m, g in zip(moments, gradients, strict=True)]
        steps = [0.9 * m - 0.1 * g for m, g in zip(moments, gradients, strict=True)]
        take_steps(one_replica, state, [batch])
        assert_close(weights(state.net), [w + s for w, s in zip(before, steps, strict=True)])


def test_an_auxiliary_head_counts_by_its_weight(strategy):
    """Each head gets the gradient of its own loss, and the metrics are the net's own."""
    state, (images, labels) = make_state(strategy, net=TwoHeads, momentum=0.0), examples()
    before = weights(state.net)
    own = gradients_by_hand(state.net, images, labels, smoothing=0.1)
    alike = Linear()
    alike.dense = state.net.other
    other = gradients_by_hand(alike, images, labels, smoothing=0.1)
    kernel, bias = before[:2]
    logits = images @ kernel + bias
    target = np.eye(3)[labels] * 0.9 + 0.1 / 3
    loss = -np.sum(target * np.log(softmax(logits)))
    take_steps(strategy, state, [(images, labels)], auxiliary_weight=0.3, label_smoothing=0.1)
    gradients = [*own, *(0.3 * g for g in other)]
    assert_close(weights(state.net), [w - 0.1 * g for w, g in zip(before, gradients, strict=True)])
    assert state.window["loss"].numpy() == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_draws_belong_to_step_and_example(strategy, accumulation):
    """The same on any number of replicas and parts: an update by hand, twice."""
    state, (images, labels) = make_state(strategy, net=Drawing, momentum=0.0), examples()
    for step in range(2):
        before = weights(state.net)
        drawn = images * draws_by_hand(5, step, len(images))
        gradients = gradients_by_hand(state.net, drawn, labels)
        take_steps(strategy, state, [(images, labels)], seed=5, accumulation=accumulation)
        expected = [w - 0.1 * g for w, g in zip(before, gradients, strict=True)]
        assert_close(weights(state.net), expected)


@pytest.mark.parametrize(("name", "decoupled"), [("sgd", False), ("adamw", True)])
def test_weight_decay_leaves_biases_alone(strategy, name, decoupled):
    """With a loss that is constant, only the decay moves the weights, and only the kernel."""
    state = make_state(strategy, optimizer=name, rate=0.1)
    state.net.dense.bias.assign([1.0, 2.0, 3.0])
    kernel, bias = weights(state.net)
    batch = np.zeros((8, 4), np.float32), np.full((8, 3), 1 / 3, np.float32)
    # Logits are the bias: the gradient of the kernel is 0 for images of 0.
    take_steps(strategy, state, [batch], weight_decay=0.01, decoupled_decay=decoupled)
    change = weights(state.net)[0] / kernel
    # Nesterov's first step is 1.9 times the rate.
    expected = 1 - 0.1 * 0.01 * (1 if decoupled else 1.9)
    np.testing.assert_allclose(change, np.full((4, 3), expected), rtol=1e-5)
    del bias


def test_decay_goes_by_shape():
    assert is_decayed(tf.zeros((3, 3, 8, 8)))
    assert is_decayed(tf.zeros((8, 10)))
    assert not is_decayed(tf.zeros((8,)))


def test_clipping_by_the_norm_of_the_whole_batch(strategy):
    state, batch = make_state(strategy, momentum=0.0), examples()
    before, gradients = weights(state.net), gradients_by_hand(state.net, *batch)
    norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
    take_steps(strategy, state, [batch], clip_norm=float(norm / 4))
    expected = [w - 0.1 * g / 4 for w, g in zip(before, gradients, strict=True)]
    assert_close(weights(state.net), expected)
    assert state.window["gradient_norm"].numpy() == pytest.approx(norm, rel=1e-5)


def test_clipping_leaves_small_gradients_alone(one_replica):
    clipped, free = make_state(one_replica), make_state(one_replica)
    take_steps(one_replica, clipped, [examples()], clip_norm=1000.0)
    take_steps(one_replica, free, [examples()])
    assert_close(weights(clipped.net), weights(free.net))


def test_label_smoothing_reaches_the_update(one_replica):
    state, batch = make_state(one_replica, momentum=0.0), examples()
    before, gradients = weights(state.net), gradients_by_hand(state.net, *batch, smoothing=0.3)
    take_steps(one_replica, state, [batch], label_smoothing=0.3)
    assert_close(weights(state.net), [w - 0.1 * g for w, g in zip(before, gradients, strict=True)])


def test_accumulated_parts_are_those_of_one_replica(one_replica, two_replicas):
    """BatchNorm's statistics of each part come from the same examples, so they end alike."""
    found = []
    for strategy in (one_replica, two_replicas):
        state = make_state(strategy, net=Statistics)
        take_steps(strategy, state, [examples(16, seed=s) for s in range(2)], accumulation=2)
        found.append(state.net.moving_mean.numpy())
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_is_the_same_update(strategy, accumulation):
    parts, whole = make_state(strategy), make_state(strategy)
    batches = [examples(seed=s) for s in range(3)]
    take_steps(strategy, parts, batches, accumulation=accumulation, clip_norm=0.2)
    take_steps(strategy, whole, batches, clip_norm=0.2)
    assert_close(weights(parts.net), weights(whole.net))
    assert parts.step == whole.step == 3


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_two_replicas_make_the_updates_of_one(one_replica, two_replicas, optimizer):
    batches = [examples(seed=s) for s in range(5)]
    settings = {
        "clip_norm": 0.3,
        "weight_decay": 0.01,
        "decoupled_decay": optimizer == "adamw",
        "label_smoothing": 0.1,
        "ema_decay": 0.9,
    }
    found = []
    for strategy in (one_replica, two_replicas):
        rate = LearningRate("cosine", peak=0.1, total_steps=5, warmup_steps=2)
        state = make_state(strategy, optimizer=optimizer, rate=rate, ema=True)
        take_steps(strategy, state, batches, **settings)
        window = {k: v.numpy() for k, v in state.window.items()}
        found.append((weights(state.net), weights(state.ema_net), window))
    (net_1, ema_1, window_1), (net_2, ema_2, window_2) = found
    assert_close(net_2, net_1)
    assert_close(ema_2, ema_1)
    for name, value in window_1.items():
        assert window_2[name] == pytest.approx(value, rel=1e-5)


def test_loss_and_accuracy_by_hand(strategy):
    state, (images, labels) = make_state(strategy, rate=1e-9), examples()
    kernel, bias = state.net.dense.get_weights()
    logits = images @ kernel + bias
    log_shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    take_steps(strategy, state, [(images, labels)] * 2)
    window = {k: v.numpy() for k, v in state.window.items()}
    # Twice the sum over the examples, whatever the number of replicas.
    assert window["loss"] == pytest.approx(-2 * log_shares[np.arange(8), labels].sum(), rel=1e-5)
    assert window["correct"] == 2 * (logits.argmax(1) == labels).sum()
    assert window["examples"] == 16
    assert window["steps"] == 2


def test_moving_statistics_are_the_mean_of_the_replicas_after_each_step(two_replicas):
    state, (images, labels) = make_state(two_replicas, net=Statistics), examples()
    take_steps(two_replicas, state, [(images, labels)])
    expected = 0.5 * images.mean(0)
    np.testing.assert_allclose(state.net.moving_mean.numpy(), expected, rtol=1e-5)
    # Each replica's own copy is the mean too, so that it does not matter which one evaluates.
    for copy in state.net.moving_mean.value.values:
        np.testing.assert_allclose(copy.numpy(), expected, rtol=1e-5)


def test_averages_by_hand(strategy):
    state = make_state(strategy, net=Statistics, ema=True)
    averages = weights(state.ema_net)
    assert_close(averages, weights(state.net))
    for step in range(1, 4):
        take_steps(strategy, state, [examples(seed=step)], ema_decay=0.5)
        decay = min(0.5, (1 + step) / (10 + step))
        averages = [
            decay * a + (1 - decay) * w for a, w in zip(averages, weights(state.net), strict=True)
        ]
        # Weights and statistics both.
        assert_close(weights(state.ema_net), averages)


def test_float16_scales_and_unscales(strategy):
    scaled, plain = make_state(strategy, loss_scale=True), make_state(strategy)
    take_steps(strategy, scaled, [examples()], clip_norm=0.2)
    take_steps(strategy, plain, [examples()], clip_norm=0.2)
    assert_close(weights(scaled.net), weights(plain.net))
    assert scaled.loss_scale.good_steps.numpy() == 1


def test_float16_overflow_on_one_replica_drops_the_update_on_all(two_replicas):
    state, (images, labels) = make_state(two_replicas, loss_scale=True, ema=True), examples()
    before = weights(state.net), weights(state.ema_net)
    images[-1] = 1e36  # Finite, and so is its loss, but not its gradient times 2^15.
    take_steps(two_replicas, state, [(images, labels)], ema_decay=0.9)
    for part, values in zip((state.net, state.ema_net), before, strict=True):
        assert_close(weights(part), values, rtol=0, atol=0)
    assert not state.guard["stuck"].numpy()
    assert state.guard["skipped"].numpy() == 0
    for slot in state.optimizer.variables:
        assert np.all(np.isfinite(slot.numpy()))
        assert slot is state.optimizer.iterations or np.all(slot.numpy() == 0)
    assert state.loss_scale.scale.numpy() == 2.0**14
    assert state.step == 1


@pytest.mark.parametrize(("bad", "loss_scale"), [(np.inf, False), (np.nan, True)])
@pytest.mark.parametrize("on_nan", ["stop", "restore", "skip"])
def test_wrong_numbers_on_one_replica_change_nothing_on_any(strategy, bad, loss_scale, on_nan):
    """Neither weights, slots, averages nor BatchNorm's statistics; only "skip" counts the step."""
    state = make_state(strategy, net=Statistics, optimizer="adam", ema=True, loss_scale=loss_scale)
    good, (images, labels) = examples(), examples(seed=1)
    images[-1, 0] = bad
    take_steps(strategy, state, [good], ema_decay=0.9)
    parts = state.net, state.ema_net

    def slots():
        return [v.numpy() for v in state.optimizer.variables if v is not state.optimizer.iterations]

    before, slots_before = [weights(part) for part in parts], slots()
    window = {name: v.numpy() for name, v in state.window.items()}
    take_steps(strategy, state, [(images, labels), good], ema_decay=0.9, on_nan=on_nan)
    guard = {name: v.numpy() for name, v in state.guard.items()}
    assert guard["stuck"] == (on_nan != "skip")
    assert not np.isfinite(guard["loss"])
    if on_nan == "skip":
        assert (state.step, guard["skipped"], guard["in_a_row"]) == (3, 1, 0)
        assert state.window["examples"].numpy() == 16
        assert np.isfinite(state.window["loss"].numpy())
        # The good step behind it was made.
        assert np.any(weights(state.net)[0] != before[0][0])
        return
    assert (state.step, guard["skipped"]) == (1, 0)
    for part, values in zip(parts, before, strict=True):
        assert_close(weights(part), values, rtol=0, atol=0)
    assert_close(slots(), slots_before, rtol=0, atol=0)
    for name, value in window.items():
        assert state.window[name].numpy() == value
    for variable in (
        state.net.moving_mean.value.values if hasattr(state.net.moving_mean.value, "values") else ()
    ):
        assert np.all(np.isfinite(variable.numpy()))


def test_skips_without_an_end_are_stopped(one_replica, monkeypatch):
    monkeypatch.setattr("loops.step.MOST_SKIPS_IN_A_ROW", 3)
    state, (images, labels) = make_state(one_replica), examples()
    images[0] = np.nan
    take_steps(one_replica, state, [(images, labels)] * 5, on_nan="skip")
    assert state.guard["stuck"].numpy()
    assert (state.step, state.guard["skipped"].numpy()) == (3, 3)


def test_float16_scale_grows_after_good_steps(one_replica):
    state = make_state(one_replica, loss_scale=True)
    state.loss_scale.growth_steps = 3
    take_steps(one_replica, state, [examples()] * 4)
    assert state.loss_scale.scale.numpy() == 2.0**16
    assert state.loss_scale.good_steps.numpy() == 1


def test_jit_makes_the_same_update(one_replica):
    states = [make_state(one_replica, net=Statistics) for _ in range(2)]
    for state, jit in zip(states, (False, True), strict=True):
        take_steps(one_replica, state, [examples(seed=s) for s in range(3)], jit=jit)
    assert_close(weights(states[0].net), weights(states[1].net))


def test_many_steps_in_a_call_are_many_calls(one_replica):
    together, apart = make_state(one_replica), make_state(one_replica)
    batches = [examples(seed=s) for s in range(4)]
    take_steps(one_replica, together, batches)
    for batch in batches:
        take_steps(one_replica, apart, [batch])
    assert_close(weights(together.net), weights(apart.net), rtol=0, atol=0)
    assert isinstance(together.net, Linear)
