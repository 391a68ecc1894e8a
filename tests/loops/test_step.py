"""Updates against figures worked out by hand, and one replica against two."""

import itertools
import time

import numpy as np
import pytest
import tensorflow as tf

from loops.inputs import iterate
from loops.losses import LOSSES, soft_targets
from loops.metrics import METRICS, Metric
from loops.optimizer import OPTIMIZERS, OptimizerChoice, make_optimizer
from loops.schedule import SCHEDULES, LearningRate
from loops.state import TrainState
from loops.step import StepSettings, TrainStep
from tests.loops.helpers import (
    Drawing,
    Linear,
    Statistics,
    TwoHeads,
    assert_close,
    calibration_by_hand,
    draws_by_hand,
    examples,
    gradients_by_hand,
    log_softmax,
    make_state,
    schedule,
    softmax,
    take_steps,
    weights,
)

BINS = "expected_calibration_error"


def updated(before, gradients, rate=0.1):
    """Weights after an update of plain gradient descent."""
    return [w - rate * g for w, g in zip(before, gradients, strict=True)]


def test_sgd_by_hand(strategy):
    state, (images, labels) = make_state(strategy, momentum=0.0), examples()
    before, gradients = weights(state.net), gradients_by_hand(state.net, images, labels)
    take_steps(strategy, state, [(images, labels)])
    assert_close(weights(state.net), updated(before, gradients))
    assert state.step == 1


def test_class_weights_by_hand(strategy):
    """The gradient of each example is multiplied by the weight of its class, and so is the loss."""
    state, (images, labels) = make_state(strategy, momentum=0.0), examples()
    class_weights = (0.5, 2.0, 4.0)
    before, (kernel, bias) = weights(state.net), weights(state.net)
    weight = np.array(class_weights)[labels]
    probabilities = softmax(images @ kernel + bias)
    error = weight[:, None] * (probabilities - np.eye(3)[labels]) / len(images)
    take_steps(strategy, state, [(images, labels)], class_weights=class_weights)
    assert_close(weights(state.net), updated(before, [images.T @ error, error.sum(0)]))
    loss = -weight * np.log(probabilities[np.arange(8), labels])
    np.testing.assert_allclose(state.window["loss"].numpy(), [loss.sum()], rtol=1e-5)


class Branching(tf.keras.optimizers.SGD):
    def update_step(self, gradient, variable, learning_rate):
        if tf.reduce_max(gradient) > 1e6:
            gradient = tf.zeros_like(gradient)
        super().update_step(gradient, variable, learning_rate)


def test_what_extends_the_step_may_branch_on_tensors(strategy, monkeypatch):
    def halved(moment):
        if moment.fraction >= 0.5:
            return tf.constant(0.5)
        return tf.constant(1.0)

    def never_negative(targets, logits):
        losses = LOSSES["cross_entropy"](targets, logits)
        if tf.reduce_min(losses) < 0:
            losses = tf.zeros_like(losses)
        return losses

    def largest_logit(labels, logits):
        largest = logits[:, 0]
        for column in tf.range(1, tf.shape(logits)[1]):
            largest = tf.maximum(largest, logits[:, column])
        return largest

    monkeypatch.setitem(SCHEDULES, "halved", halved)
    monkeypatch.setitem(LOSSES, "never_negative", never_negative)
    monkeypatch.setitem(METRICS, "largest_logit", Metric(largest_logit, "largest"))
    monkeypatch.setitem(OPTIMIZERS, "branching", OptimizerChoice(Branching))
    rate = LearningRate("halved", peak=0.1, total_steps=2)
    state, (images, labels) = make_state(strategy, optimizer="branching", rate=rate), examples()
    settings = StepSettings(global_batch_size=len(images), loss="never_negative")
    step = TrainStep(strategy, state, settings, rate)
    largest = 0.0
    for factor in (0.1, 0.05):  # The second update is made at half the rate.
        kernel, bias = weights(state.net)
        largest += (images @ kernel + bias).max(1).sum()
        expected = updated([kernel, bias], gradients_by_hand(state.net, images, labels), factor)
        take_steps(strategy, state, [(images, labels)], step)
        assert_close(weights(state.net), expected)
    np.testing.assert_allclose(state.window["largest_logit"].numpy(), [largest], rtol=1e-5)


@pytest.mark.parametrize(
    ("strategy", "compile_update"),
    [("one_replica", False), pytest.param("two_replicas", True, marks=pytest.mark.slow)],
    indirect=["strategy"],
)
def test_lookahead_by_hand(strategy, compile_update):
    """After every other update and the last, half of the way back to where the weights were."""
    state, (images, labels) = make_state(strategy, momentum=0.0, lookahead=True), examples()
    slow = expected = weights(state.net)
    step = None
    for number in range(1, 6):
        gradients = gradients_by_hand(state.net, images, labels)
        expected = updated(expected, gradients)
        if number in (2, 4, 5):
            slow = expected = [(s + w) / 2 for s, w in zip(slow, expected, strict=True)]
        settings = {"lookahead_steps": 2, "total_steps": 5, "compile_update": compile_update}
        settings = {} if step else settings
        step = take_steps(strategy, state, [(images, labels)], step, **settings)
        assert_close(weights(state.net), expected)
    assert sorted(state.parts()["slow"]["dense"]) == ["bias", "kernel"]


@pytest.mark.parametrize(
    ("loss_scale", "compile_update"),
    [
        (False, False),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
        (True, True),
    ],
)
def test_lookahead_when_an_update_is_dropped(one_replica, loss_scale, compile_update):
    """Its step counts: half of the way back from where the update before has left the weights."""
    state = make_state(one_replica, momentum=0.0, lookahead=True, loss_scale=loss_scale)
    images, labels = examples()
    # With a loss scale, the gradients overflow and the loss does not.
    bad = np.full_like(images, 1e36 if loss_scale else np.nan)
    start = weights(state.net)
    after = updated(start, gradients_by_hand(state.net, images, labels))
    settings = {"lookahead_steps": 2, "on_nan": "skip", "compile_update": compile_update}
    step = take_steps(one_replica, state, [(images, labels)], **settings)
    assert_close(weights(state.net), after)
    take_steps(one_replica, state, [(bad, labels)], step)
    assert state.step == 2
    expected = [(s + w) / 2 for s, w in zip(start, after, strict=True)]
    assert_close(weights(state.net), expected)
    slow = state.parts()["slow"]["dense"]
    assert_close([slow["kernel"].numpy(), slow["bias"].numpy()], expected)


class Pooled(tf.keras.layers.Layer):
    """Images of any height and width to three logits, by the first of their rows alone."""

    def __init__(self):
        super().__init__()
        self.dense = tf.keras.layers.Dense(3, dtype="float32")

    def call(self, images, *, training):
        del training
        return self.dense(tf.reduce_mean(tf.reshape(images, (-1, *images.shape[1:]))[:, 0], axis=1))


@pytest.mark.parametrize(
    ("strategy", "accumulation"),
    [("one_replica", 1), pytest.param("two_replicas", 2, marks=pytest.mark.slow)],
    indirect=["strategy"],
)
def test_sizes_by_hand(strategy, accumulation):
    """Three updates: of images of 2x2 pixels, of 3x3, and as they are."""
    labels = examples()[1]
    images = np.random.default_rng(0).normal(size=(8, 6, 6, 4)).astype(np.float32)
    tf.keras.utils.set_random_seed(1)
    with strategy.scope():
        net = Pooled()
        net(images, training=False)
        state = TrainState(net, make_optimizer("sgd", net, schedule(0.1), momentum=0.0))
    settings = StepSettings(global_batch_size=8, sizes=((1, 2), (2, 3)), accumulation=accumulation)
    step = TrainStep(strategy, state, settings, schedule(0.1))
    for size in (2, 3, 6):
        scaled = tf.image.resize(images, (size, size), antialias=True).numpy()
        seen = scaled[:, 0].mean(axis=1)
        expected = updated(weights(net), gradients_by_hand(net, seen, labels))
        take_steps(strategy, state, [(images, labels)], step)
        assert_close(weights(net), expected)


@pytest.mark.slow
def test_the_time_spent_waiting_for_batches_is_measured(strategy):
    def waited(slow):
        def batch(i):
            images = tf.constant(examples()[0][: 8 // replicas])
            if slow:
                x = tf.random.stateless_uniform((600, 600), [i, i])
                for _ in range(4):
                    x = tf.matmul(x, x) / 600
                images += 0 * tf.reduce_sum(x)
            return images, tf.constant(examples()[1][: 8 // replicas])

        batches = tf.data.Dataset.range(200).map(batch)
        iterator = iterate(strategy, batches if slow else batches.cache().prefetch(50))
        step.run(iterator, tf.constant(2))
        step.seconds_waited()
        started = time.perf_counter()
        step.run(iterator, tf.constant(20))
        return step.seconds_waited(), time.perf_counter() - started

    replicas = strategy.num_replicas_in_sync
    step = take_steps(strategy, make_state(strategy), [examples()])
    (fast, _), (slow, total) = waited(slow=False), waited(slow=True)
    assert 5 * fast < slow <= total
    assert slow > 0.5 * total
    assert step.seconds_waited() == 0.0


def test_nesterov_by_hand(one_replica):
    state, batch = make_state(one_replica, momentum=0.9), examples()
    moments, make = [0.0, 0.0], None
    for _ in range(3):
        before, gradients = weights(state.net), gradients_by_hand(state.net, *batch)
        moments = [0.9 * m - 0.1 * g for m, g in zip(moments, gradients, strict=True)]
        steps = [0.9 * m - 0.1 * g for m, g in zip(moments, gradients, strict=True)]
        make = take_steps(one_replica, state, [batch], make)
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
    assert_close(weights(state.net), updated(before, gradients))
    np.testing.assert_allclose(state.window["loss"].numpy(), [loss], rtol=1e-5)


@pytest.mark.parametrize(
    ("strategy", "accumulation", "jit"),
    [
        ("two_replicas", 2, False),
        pytest.param("one_replica", 2, False, marks=pytest.mark.slow),
        pytest.param("one_replica", 1, True, marks=pytest.mark.slow),
        pytest.param("two_replicas", 1, True, marks=pytest.mark.slow),
    ],
    indirect=["strategy"],
)
def test_draws_belong_to_step_and_example(strategy, accumulation, jit):
    """The same on any number of replicas and microbatches, with XLA and without: by hand, twice."""
    state, (images, labels) = make_state(strategy, net=Drawing, momentum=0.0), examples()
    make = None
    for step in range(2):
        drawn = images * draws_by_hand(5, step, len(images), jit)
        gradients = gradients_by_hand(state.net, drawn, labels)
        expected = updated(weights(state.net), gradients)
        settings = {"seed": 5, "accumulation": accumulation, "jit": jit}
        make = take_steps(strategy, state, [(images, labels)], make, **settings)
        assert_close(weights(state.net), expected)


@pytest.mark.parametrize(
    ("strategy", "loss"),
    [("one_replica", "focal"), ("two_replicas", "binary_cross_entropy")],
    indirect=["strategy"],
)
def test_every_loss_reaches_the_update(strategy, loss):
    """By the gradient of its mean, and the window has its sum."""
    state, (images, labels) = make_state(strategy, net=TwoHeads, momentum=0.0), examples()
    before = [tf.constant(w) for w in weights(state.net)]
    targets = soft_targets(tf.constant(labels), 3, smoothing=0.1)
    with tf.GradientTape() as tape:
        tape.watch(before)
        kernel, bias, other_kernel, other_bias = before
        own = LOSSES[loss](targets, images @ kernel + bias)
        other = LOSSES[loss](targets, images @ other_kernel + other_bias)
        total = tf.reduce_mean(own + 0.3 * other)
    gradients = tape.gradient(total, before)
    settings = {"loss": loss, "auxiliary_weight": 0.3, "label_smoothing": 0.1}
    take_steps(strategy, state, [(images, labels)], **settings)
    assert_close(weights(state.net), updated(before, gradients))
    np.testing.assert_allclose(state.window["loss"].numpy(), [np.sum(own)], rtol=1e-5)


@pytest.mark.parametrize("strategy", ["two_replicas"], indirect=True)
def test_clipping_by_the_norm_of_the_whole_batch(strategy):
    state, batch = make_state(strategy, momentum=0.0), examples()
    before, gradients = weights(state.net), gradients_by_hand(state.net, *batch)
    norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
    take_steps(strategy, state, [batch], clip_norm=float(norm / 4))
    assert_close(weights(state.net), updated(before, gradients, rate=0.1 / 4))
    # As it was before clipping.
    assert state.window["gradient_norm"].numpy() == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("clip_norm", [0.0, 1000.0])
def test_clipping_leaves_small_gradients_alone(one_replica, clip_norm):
    state, batch = make_state(one_replica, momentum=0.0), examples()
    before, gradients = weights(state.net), gradients_by_hand(state.net, *batch)
    take_steps(one_replica, state, [batch], clip_norm=clip_norm)
    assert_close(weights(state.net), updated(before, gradients))


def test_label_smoothing_reaches_the_update(one_replica):
    state, batch = make_state(one_replica, momentum=0.0), examples()
    before, gradients = weights(state.net), gradients_by_hand(state.net, *batch, smoothing=0.3)
    take_steps(one_replica, state, [batch], label_smoothing=0.3)
    assert_close(weights(state.net), updated(before, gradients))


def test_microbatches_are_those_of_one_replica(one_replica, two_replicas):
    """BatchNorm's statistics of each part come from the same examples, so they end alike."""
    found = []
    for strategy in (one_replica, two_replicas):
        state = make_state(strategy, net=Statistics)
        take_steps(strategy, state, [examples(16, seed=s) for s in range(2)], accumulation=2)
        found.append(state.net.moving_mean.numpy())
    # By hand: each half of the batch in turn moves the statistics by half.
    expected = np.zeros(4)
    for seed in range(2):
        for half in np.split(examples(16, seed)[0], 2):
            expected = 0.5 * expected + 0.5 * half.mean(0)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    np.testing.assert_allclose(found[1], expected, rtol=1e-5)


def test_accumulation_is_the_same_update(one_replica):
    cut, whole = make_state(one_replica), make_state(one_replica)
    batches = [examples(seed=s) for s in range(3)]
    take_steps(one_replica, cut, batches, accumulation=4, clip_norm=0.2)
    take_steps(one_replica, whole, batches, clip_norm=0.2)
    assert_close(weights(cut.net), weights(whole.net))
    assert cut.step == whole.step == 3
    for name, value in whole.window.items():
        np.testing.assert_allclose(cut.window[name].numpy(), value.numpy(), rtol=1e-5, atol=1e-6)


def needs(tensor, other):
    """Whether an operation must wait for another in the graph."""
    queue, seen = [tensor.op], set()
    while queue:
        op = queue.pop()
        if op is other.op:
            return True
        if op not in seen:
            seen.add(op)
            queue += [*(x.op for x in op.inputs), *op.control_inputs]
    return False


@pytest.mark.parametrize(
    "strategy",
    ["one_replica", pytest.param("two_replicas", marks=pytest.mark.slow)],
    indirect=True,
)
def test_a_microbatch_begins_when_the_gradients_of_the_one_before_are_there(strategy):
    """So that the activations of one are held at a time."""
    images, gradients = [], []

    @tf.custom_gradient
    def record(x):
        def backward(gradient):
            gradients.append(tf.identity(gradient))
            return gradients[-1]

        return tf.identity(x), backward

    class Recording(Linear):
        def call(self, x, *, training):
            if training:
                images.append(x)
                return x @ record(self.dense.kernel.value) + self.dense.bias.value
            return super().call(x, training=training)

    state = make_state(strategy, net=Recording)
    take_steps(strategy, state, [examples(12)], accumulation=3)
    parts = list(zip(images, gradients, strict=True))
    assert len(parts) == 3 * strategy.num_replicas_in_sync
    while parts:
        # A replica is traced after the other.
        of_replica, parts = parts[:3], parts[3:]
        for (_, before), (after, _) in itertools.pairwise(of_replica):
            assert needs(after, before)
            assert not needs(before, after)


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
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
    assert_close(window_2.values(), window_1.values())


@pytest.mark.parametrize("strategy", ["two_replicas"], indirect=True)
def test_training_figures_by_hand(strategy):
    state, (images, labels) = make_state(strategy, rate=1e-9), examples()
    kernel, bias = state.net.dense.get_weights()
    logits = images @ kernel + bias
    take_steps(strategy, state, [(images, labels)] * 2, accumulation=2)
    window = {k: v.numpy() for k, v in state.window.items()}
    losses = -log_softmax(logits)[np.arange(8), labels]
    correct = logits.argmax(1) == labels
    # Twice the sum over the examples, whatever the number of replicas.
    np.testing.assert_allclose(window["loss"], [2 * losses.sum()], rtol=1e-5)
    assert window["top_1_accuracy"] == 2 * correct.sum()
    assert window["top_5_accuracy"] == 16
    assert window["examples"] == 16
    assert window["steps"] == 2
    figures = state.window_figures()
    assert figures.keys() == {"loss", *METRICS, "gradient_norm", "highest_loss"}
    assert figures["highest_loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert figures["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert figures["top_1_accuracy"] == correct.mean()
    assert figures[BINS] == pytest.approx(calibration_by_hand(softmax(logits), labels), rel=1e-4)
    gradients = gradients_by_hand(state.net, images, labels)
    norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
    assert figures["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    state.reset_window()
    assert all(np.all(variable.numpy() == 0) for variable in state.window.values())
    assert np.isnan(state.window_figures()["loss"])


@pytest.mark.parametrize("strategy", ["two_replicas"], indirect=True)
def test_the_highest_loss_of_the_updates_and_its_step(strategy):
    """Of those that were made, since the window began."""
    state, batches = make_state(strategy, rate=1e-9), [examples(seed=s) for s in range(5)]
    kernel, bias = state.net.dense.get_weights()
    losses = [-log_softmax(x @ kernel + bias)[np.arange(8), y].mean() for x, y in batches]
    batches[3][0][0] = 1e30  # The loss is finite, but not the norm of the gradient.
    losses[3] = -1
    make = take_steps(strategy, state, batches[:2], on_nan="skip")
    state.reset_window()
    take_steps(strategy, state, batches[2:], make)
    step = 3 + np.argmax(losses[2:])
    assert state.window["highest_loss_step"].numpy() == step
    assert state.window_figures()["highest_loss"] == pytest.approx(losses[step - 1], rel=1e-5)
    state.reset_window()
    take_steps(strategy, state, batches[3:4], make)
    assert np.isnan(state.window_figures()["highest_loss"])


def test_a_metric_in_the_table_is_summed(strategy, monkeypatch):
    """Also one of several values per example."""

    def powers(labels, logits):
        del labels
        highest = tf.reduce_max(logits, axis=-1)
        return tf.stack([highest, highest**2], axis=-1)

    def spread(mean):
        return np.sqrt(mean[1] - mean[0] ** 2)

    metric = Metric(powers, "spread", size=2, summary=spread)
    monkeypatch.setitem(METRICS, "spread", metric)
    state, (images, labels) = make_state(strategy, rate=1e-9), examples()
    kernel, bias = state.net.dense.get_weights()
    take_steps(strategy, state, [(images, labels)])
    expected = np.std((images @ kernel + bias).max(-1))
    assert state.window_figures()["spread"] == pytest.approx(expected, rel=1e-4)


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
    averages, make = weights(state.ema_net), None
    assert_close(averages, weights(state.net))
    for step in range(1, 4):
        make = take_steps(strategy, state, [examples(seed=step)], make, ema_decay=0.5)
        decay = min(0.5, (1 + step) / (10 + step))
        averages = [
            decay * a + (1 - decay) * w for a, w in zip(averages, weights(state.net), strict=True)
        ]
        # Weights and statistics both.
        assert_close(weights(state.ema_net), averages)


def test_float16_scales_and_unscales(strategy):
    """Before the norm is taken, by which the gradients are clipped."""
    state, batch = make_state(strategy, loss_scale=True, momentum=0.0), examples()
    before, gradients = weights(state.net), gradients_by_hand(state.net, *batch)
    norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
    take_steps(strategy, state, [batch], clip_norm=0.2)
    assert_close(weights(state.net), updated(before, gradients, rate=0.1 * 0.2 / norm))
    assert state.window["gradient_norm"].numpy() == pytest.approx(norm, rel=1e-5)
    assert state.loss_scale.good_steps.numpy() == 1


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


@pytest.mark.parametrize(
    ("strategy", "on_nan", "bad", "loss_scale"),
    [
        ("one_replica", "stop", np.inf, False),
        pytest.param("one_replica", "skip", np.nan, True, marks=pytest.mark.slow),
        pytest.param("two_replicas", "restore", np.nan, True, marks=pytest.mark.slow),
        pytest.param("two_replicas", "skip", np.inf, False, marks=pytest.mark.slow),
    ],
    indirect=["strategy"],
)
def test_an_update_that_is_not_finite_changes_nothing(strategy, on_nan, bad, loss_scale):
    """Neither weights, slots, averages nor BatchNorm's statistics, on any of the replicas.

    Only "skip" counts the step.
    """
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
        # The good step after it was made.
        assert np.any(weights(state.net)[0] != before[0][0])
        return
    assert (state.step, guard["skipped"]) == (1, 0)
    for part, values in zip(parts, before, strict=True):
        assert_close(weights(part), values, rtol=0, atol=0)
    assert_close(slots(), slots_before, rtol=0, atol=0)
    for name, value in window.items():
        np.testing.assert_array_equal(state.window[name].numpy(), value)
    for variable in (
        state.net.moving_mean.value.values if hasattr(state.net.moving_mean.value, "values") else ()
    ):
        assert np.all(np.isfinite(variable.numpy()))


def test_skips_without_an_end_abort(one_replica, monkeypatch):
    monkeypatch.setattr("loops.update.MAX_CONSECUTIVE_SKIPS", 3)
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


@pytest.mark.slow
def test_jit_makes_the_same_update(one_replica):
    """And the same figures, of every metric."""
    found = []
    for jit in (False, True):
        state = make_state(one_replica, net=Statistics, loss_scale=True)
        batches = [examples(seed=s) for s in range(3)]
        settings = {"accumulation": 2, "clip_norm": 0.3, "label_smoothing": 0.1}
        take_steps(one_replica, state, batches, jit=jit, **settings)
        window = [variable.numpy() for variable in state.window.values()]
        found.append([*weights(state.net), *window])
    assert_close(*found)


def test_many_steps_in_a_call_are_many_calls(one_replica):
    together, apart = make_state(one_replica), make_state(one_replica)
    batches = [examples(seed=s) for s in range(4)]
    take_steps(one_replica, together, batches)
    for batch in batches:
        take_steps(one_replica, apart, [batch])
    assert_close(weights(together.net), weights(apart.net), rtol=0, atol=0)
    assert isinstance(together.net, Linear)
