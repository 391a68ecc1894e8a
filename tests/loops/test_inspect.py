"""An inspected update against the update itself and figures worked out by hand."""

import numpy as np
import pytest
import tensorflow as tf

from loops.inputs import iterate
from loops.step import StepSettings, TrainStep
from tests.loops.helpers import (
    Drawing,
    Linear,
    Statistics,
    TwoHeads,
    assert_close,
    examples,
    gradients_by_hand,
    log_softmax,
    make_state,
    rows_by_replica,
    schedule,
)


def inspect(strategy, state, images, labels, **settings):
    """What an update of a global batch would be made from, and the TrainStep and its iterator."""
    size, replicas = len(images), strategy.num_replicas_in_sync
    step = TrainStep(strategy, state, StepSettings(size, **settings), schedule(0.1))
    order = rows_by_replica(size, step.settings.accumulation, replicas)
    dataset = tf.data.Dataset.from_tensor_slices((images[order], labels[order]))
    iterator = iterate(strategy, dataset.batch(size // replicas, drop_remainder=True).repeat())
    return step.inspect(next(iterator)), step, iterator


def values(state):
    """Every variable of a state, on every replica."""
    parts = [state.net, state.ema_net, state.optimizer]
    variables = [v.value for part in parts if part for v in part.variables]
    variables += [*state.window.values(), *state.progress.values(), *state.guard.values()]
    if state.loss_scale is not None:
        variables += [state.loss_scale.scale, state.loss_scale.good_steps]
    return [copy.numpy() for v in variables for copy in getattr(v, "values", [v])]


def test_gradients_losses_and_logits_by_hand(strategy):
    """In the order of the rows of the batch; the norm is that before clipping."""
    state, (images, labels) = make_state(strategy), examples()
    kernel, bias = state.net.dense.get_weights()
    gradients = gradients_by_hand(state.net, images, labels)
    found, _, _ = inspect(strategy, state, images, labels, accumulation=2, clip_norm=1e-3)
    logits = images @ kernel + bias
    losses = -log_softmax(logits)[np.arange(8), labels]
    assert_close(found.gradients, gradients)
    np.testing.assert_allclose(found.logits, logits, rtol=1e-5)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)
    np.testing.assert_allclose(found.loss, losses.mean(), rtol=1e-5)
    norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
    np.testing.assert_allclose(found.norm, norm, rtol=1e-5)


@pytest.mark.parametrize(
    ("strategy", "net", "accumulation", "loss_scale"),
    [
        pytest.param("one_replica", Statistics, 2, False, marks=pytest.mark.slow),
        pytest.param("two_replicas", Statistics, 2, False, marks=pytest.mark.slow),
        ("one_replica", TwoHeads, 1, True),
        pytest.param("two_replicas", Drawing, 2, False, marks=pytest.mark.slow),
    ],
    indirect=["strategy"],
)
def test_the_update_has_the_same_figures(strategy, net, accumulation, loss_scale):
    """To the last bit; and the inspection itself changes no variable on any replica."""
    state = make_state(strategy, net, "adam", ema=True, loss_scale=loss_scale)
    settings = {"accumulation": accumulation, "clip_norm": 0.1, "label_smoothing": 0.1}
    settings |= {"ema_decay": 0.9, "auxiliary_weight": 0.3, "seed": 5 if net is Drawing else None}
    before = values(state)
    found, step, iterator = inspect(strategy, state, *examples(), **settings)
    assert all(np.array_equal(a, b, True) for a, b in zip(values(state), before, strict=True))
    for _ in range(2):
        total, norm = (state.window[name].numpy() for name in ("loss", "gradient_norm"))
        found = step.inspect(next(iterator))
        step.run(iterator, tf.constant(1))
        assert state.window["gradient_norm"].numpy() - norm == pytest.approx(found.norm.numpy())
        assert state.window["loss"].numpy() - total == pytest.approx(8 * found.loss.numpy())
        if not norm:
            assert state.window["gradient_norm"].numpy() == found.norm.numpy()
            assert state.window["loss"].numpy() == 8 * found.loss.numpy()
    assert len(found.gradients) == len(state.net.trainable_variables)


def test_an_update_that_is_not_finite_is_inspected(strategy):
    """The rows with a finite loss keep it, and nothing changes."""
    state, (images, labels) = make_state(strategy, Statistics), examples()
    images[5, 0] = np.nan
    before = values(state)
    found, _, _ = inspect(strategy, state, images, labels, accumulation=2)
    assert all(np.array_equal(a, b, True) for a, b in zip(values(state), before, strict=True))
    assert np.isnan(found.loss.numpy())
    assert np.isnan(found.norm.numpy())
    # BatchNorm carries it to the rows that are normalized together.
    replicas = strategy.num_replicas_in_sync
    together = range(4, 8) if replicas == 1 else (4, 5)
    assert set(np.flatnonzero(np.isnan(found.losses.numpy()))) == set(together)


@pytest.mark.slow
def test_it_is_the_same_with_xla(one_replica):
    state, batch = make_state(one_replica, Linear), examples()
    plain, _, _ = inspect(one_replica, state, *batch)
    compiled, _, _ = inspect(one_replica, state, *batch, jit=True)
    assert_close(plain.gradients, compiled.gradients)
    assert_close([plain.losses, plain.logits], [compiled.losses, compiled.logits])
