"""The update rules against Keras' own optimizers, and weight decay by hand."""

import functools
import inspect

import numpy as np
import pytest
import tensorflow as tf

from loops import optimizer as module
from loops.optimizer import (
    OPTIMIZERS,
    REFUSED,
    OptimizerChoice,
    apply_update,
    find_optimizer,
    is_decayed,
    make_optimizer,
    optimizer_variables,
)
from loops.schedule import LearningRate
from tests.loops.helpers import assert_close, make_state, take_steps, weights

RATE = LearningRate("one_cycle", peak=0.05, total_steps=8, warmup_steps=2)


class Shapes(tf.keras.layers.Layer):
    """Variables of every shape that a net has: kernels, wide and tall matrices, vectors."""

    def build(self, input_shape):
        del input_shape
        self.conv = tf.keras.layers.Conv2D(3, 3)
        self.conv.build((None, 5, 5, 2))
        self.wide, self.tall = tf.keras.layers.Dense(5), tf.keras.layers.Dense(2)
        self.wide.build((None, 3))
        self.tall.build((None, 7))


def make_net():
    tf.keras.utils.set_random_seed(3)
    net = Shapes()
    net.build(None)
    return net


def gradients(net, step):
    generator = np.random.default_rng(step)
    return [
        tf.constant(generator.normal(size=v.shape), tf.float32) for v in net.trainable_variables
    ]


def keras_class(name):
    (found,) = (c for n, c in vars(tf.keras.optimizers).items() if n.lower() == name)
    return found


def keras_weights(name, steps):
    """After some updates by Keras, without the weight decay that some of its defaults have."""
    arguments = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {}
    net, optimizer = make_net(), keras_class(name)(RATE, **arguments)
    optimizer.weight_decay = optimizer.adam_weight_decay = None
    for step in range(steps):
        optimizer.apply(gradients(net, step), net.trainable_variables)
    return [variable.numpy() for variable in net.trainable_variables]


def own_weights(name, strategy, steps, rate=RATE, **settings):
    """After as many updates by `apply_update`."""
    settings = {"weight_decay": 0.0, "decoupled": True, **settings}
    with strategy.scope():
        net = make_net()
        optimizer = make_optimizer(name, net, rate)
    variables = [variable.value for variable in net.trainable_variables]

    @tf.function
    def update(values):
        def on_device(_, *gradients):
            apply_update(optimizer, variables, gradients, **settings)

        on_replicas = strategy.run(lambda: [tf.identity(value) for value in values])
        strategy.extended.update(variables[0], on_device, args=on_replicas, group=False)
        optimizer.iterations.assign_add(1)

    for step in range(steps):
        update(gradients(net, step))
    return [variable.numpy() for variable in net.trainable_variables]


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in ("lamb", "muon")])
def test_updates_are_those_of_keras(name, one_replica):
    assert_close(own_weights(name, one_replica, 5), keras_weights(name, 5))


def test_lamb_is_that_of_keras_for_kernels_and_adam_for_the_others(strategy):
    """Biases begin at 0, and an update in proportion to their norm would leave them near it."""
    found = own_weights("lamb", strategy, 5)
    kernels, others = keras_weights("lamb", 5), keras_weights("adam", 5)
    expected = [k if k.ndim > 1 else o for k, o in zip(kernels, others, strict=True)]
    assert {x.ndim for x in found} == {1, 2, 4}
    assert_close(found, expected)


def test_muon_makes_updates_of_convolutions_orthogonal(one_replica):
    """And follows Adam with a tenth of the rate in everything else, dense kernels included."""
    start, slow = make_net(), LearningRate("constant", peak=0.005, total_steps=8)
    rate = LearningRate("constant", peak=0.05, total_steps=8)
    after = own_weights("muon", one_replica, 1, rate)
    kernel = start.trainable_variables[0].numpy().reshape(-1, 3)
    (gradient, *_) = gradients(start, 0)
    left, _, right = np.linalg.svd(gradient.numpy().reshape(-1, 3), full_matrices=False)
    factors = left.T @ (kernel - after[0].reshape(-1, 3)) @ right.T
    # Five steps of Newton and Schulz leave singular values between about 0.7 and 1.2.
    scaled = factors / (0.05 * 0.2 * np.sqrt(18))
    np.testing.assert_allclose(np.diag(scaled), 1, atol=0.35)
    np.testing.assert_allclose(scaled - np.diag(np.diag(scaled)), 0, atol=1e-3)
    assert_close(after[1:], own_weights("adam", one_replica, 1, slow)[1:])


def test_muon_scales_updates_by_the_longer_side_of_the_matrix():
    """Liu et al. 2025, section 2.2: 0.2 times its square root."""
    layer = tf.keras.layers.Conv2D(4, 3, use_bias=False)
    layer.build((None, 8, 8, 32))
    (kernel,) = layer.trainable_variables
    start = kernel.numpy()
    gradient = tf.constant(np.random.default_rng(0).normal(size=kernel.shape), tf.float32)
    make_optimizer("muon", layer, 0.0).update_step(gradient, kernel, 0.1)
    values = np.linalg.svd((start - kernel.numpy()).reshape(-1, 4), compute_uv=False)
    np.testing.assert_allclose(values / (0.1 * 0.2 * np.sqrt(9 * 32)), 1, atol=0.35)


def test_muon_has_the_momentum_of_nesterov(one_replica):
    net = make_net()
    optimizer = make_optimizer("muon", net, 0.0, momentum=0.5)
    kernel, first, second = net.trainable_variables[0], *(gradients(net, i)[0] for i in (0, 1))
    optimizer.update_step(first, kernel, 0.1)
    before = kernel.numpy()
    optimizer.update_step(second, kernel, 0.1)
    # m = 0.5 * first + second, and what is made orthogonal is second + 0.5 * m.
    wanted = (0.25 * first + 1.5 * second).numpy().reshape(-1, 3)
    left, _, right = np.linalg.svd(wanted, full_matrices=False)
    factors = left.T @ (before - kernel.numpy()).reshape(-1, 3) @ right.T
    assert np.all(np.diag(factors) > 0)
    np.testing.assert_allclose(factors - np.diag(np.diag(factors)), 0, atol=1e-4)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_updates_are_those_of_keras_on_two_replicas(name, two_replicas):
    assert_close(own_weights(name, two_replicas, 5), keras_weights(name, 5))


def test_muon_leaves_depthwise_kernels_to_adam():
    layer = tf.keras.layers.DepthwiseConv2D(3, depth_multiplier=8, use_bias=False)
    layer.build((None, 8, 8, 3))
    kernel, start = layer.trainable_variables[0], layer.trainable_variables[0].numpy()
    assert kernel.shape == (3, 3, 3, 8)
    gradient = tf.constant(np.random.default_rng(0).normal(size=kernel.shape), tf.float32)
    make_optimizer("muon", layer, 0.0).update_step(gradient, kernel, 0.5)
    # Adam's first update is of the rate, in the direction of the gradient.
    np.testing.assert_allclose(start - kernel.numpy(), 0.05 * np.sign(gradient), rtol=1e-3)


def test_muon_is_the_same_on_two_replicas(one_replica, two_replicas):
    assert_close(own_weights("muon", two_replicas, 3), own_weights("muon", one_replica, 3))


def test_every_optimizer_of_keras_is_supported_or_refused():
    found = {
        name.lower()
        for name, value in vars(tf.keras.optimizers).items()
        if inspect.isclass(value)
        and issubclass(value, tf.keras.optimizers.Optimizer)
        and value is not tf.keras.optimizers.Optimizer
    }
    assert found == OPTIMIZERS.keys() | REFUSED.keys()
    assert not OPTIMIZERS.keys() & REFUSED.keys()


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_optimizer_is_refused_with_the_reason(name, one_replica):
    with pytest.raises(ValueError, match=f"'{name}' is not supported: ") as error:
        make_state(one_replica, optimizer=name)
    assert REFUSED[name] in str(error.value)


@pytest.mark.parametrize("name", ["adafactor", "nadam"])
def test_state_that_has_no_variable_to_belong_to_is_an_error(name, monkeypatch):
    """Why these are refused. If this fails, Keras has changed, and they may work."""
    monkeypatch.delitem(REFUSED, name)
    monkeypatch.setitem(OPTIMIZERS, name, OptimizerChoice(keras_class(name)))
    net = make_net()
    with pytest.raises(ValueError, match="optimizer slots belong to the net"):
        optimizer_variables(make_optimizer(name, net, RATE), net)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_slot_has_the_name_of_its_variable(name):
    net = make_net()
    optimizer = make_optimizer(name, net, RATE)
    parts = optimizer_variables(optimizer, net)
    assert parts.pop("iterations") is optimizer.iterations
    slots = {}
    for kind, layers in parts.items():
        for layer, variables in layers.items():
            for variable, slot in variables.items():
                slots[kind, layer, variable] = slot
                assert slot.shape == getattr(getattr(net, layer), variable).shape
    assert len({id(slot) for slot in slots.values()}) == len(optimizer.variables) - 1


def test_an_unknown_optimizer_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'sdg'; known optimizers: sgd, adam, adamw, .*rmsprop"):
        find_optimizer("sdg")


def test_defaults():
    """Of those whose results the documentation reports; momentum is for SGD and Muon alone."""
    sgd, adamw = find_optimizer("sgd"), find_optimizer("adamw")
    assert (sgd.learning_rate, sgd.weight_decay, sgd.decoupled) == (0.2, 5e-4, False)
    assert (adamw.learning_rate, adamw.weight_decay, adamw.decoupled) == (1e-3, 0.05, True)
    assert [name for name, choice in OPTIMIZERS.items() if choice.takes_momentum] == [
        *("sgd", "muon")
    ]
    net = make_net()
    assert make_optimizer("sgd", net, RATE, momentum=0.5).momentum == 0.5
    assert not make_optimizer("sgd", net, RATE, momentum=0.0).nesterov
    assert make_optimizer("adam", net, RATE, momentum=0.5).beta_1 == 0.9


def test_an_optimizer_is_an_entry_in_the_table(monkeypatch, one_replica):
    """What the documentation tells people to write."""

    class SignSGD(tf.keras.optimizers.Optimizer):
        def update_step(self, gradient, variable, learning_rate):
            self.assign_sub(variable, learning_rate * tf.sign(gradient))

    monkeypatch.setitem(module.OPTIMIZERS, "sign_sgd", OptimizerChoice(SignSGD, 0.01))
    expected = [variable.numpy() for variable in make_net().trainable_variables]
    for step in range(3):
        rate = float(RATE(step))
        new = [rate * np.sign(gradient) for gradient in gradients(make_net(), step)]
        expected = [w - u for w, u in zip(expected, new, strict=True)]
    assert_close(own_weights("sign_sgd", one_replica, 3), expected)


@pytest.mark.parametrize(
    ("setting", "flag"),
    [
        ({"clipnorm": 1.0}, "--clip_norm"),
        ({"weight_decay": 0.1}, "--weight_decay"),
        ({"use_ema": True}, "--ema_decay"),
        ({"gradient_accumulation_steps": 4}, "--accumulation"),
    ],
)
def test_settings_of_keras_that_would_be_ignored_are_refused(monkeypatch, setting, flag):
    make = functools.partial(tf.keras.optimizers.SGD, **setting)
    monkeypatch.setitem(module.OPTIMIZERS, "mine", OptimizerChoice(make))
    with pytest.raises(ValueError, match=f"its {next(iter(setting))}=.* would be .* {flag}"):
        make_optimizer("mine", make_net(), RATE)


@pytest.mark.parametrize(("name", "decoupled"), [("sgd", False), ("adamw", True)])
def test_weight_decay_leaves_biases_alone(strategy, name, decoupled):
    """With a loss that is constant, only the decay moves the weights, and only the kernel."""
    state = make_state(strategy, optimizer=name, rate=0.1)
    kernel, bias = weights(state.net)
    bias += 1.0
    state.net.dense.bias.assign(bias)
    batch = np.zeros((8, 4), np.float32), np.full((8, 3), 1 / 3, np.float32)
    # Logits are the bias: the gradient of the kernel is 0 for images of 0.
    take_steps(strategy, state, [batch], weight_decay=0.01, decoupled_decay=decoupled)
    change = weights(state.net)[0] / kernel
    # Nesterov's first step is 1.9 times the rate.
    expected = 1 - 0.1 * 0.01 * (1 if decoupled else 1.9)
    np.testing.assert_allclose(change, np.full((4, 3), expected), rtol=1e-5)
    np.testing.assert_allclose(weights(state.net)[1], bias, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "decoupled"),
    [pytest.param("sgd", False, marks=pytest.mark.slow), ("adamw", True)],
)
def test_a_multiplied_rate_is_that_rate(one_replica, name, decoupled):
    """For the variables that it is for, and for decoupled decay too."""

    def trained(rate, multipliers):
        rate, decay = LearningRate("constant", peak=rate, total_steps=8), {"weight_decay": 0.3}
        settings = {**decay, "decoupled": decoupled, "multipliers": multipliers}
        return own_weights(name, one_replica, 2, rate, **settings)

    full, half = trained(0.05, None), trained(0.025, None)
    # Kernels and biases of each.
    multipliers = [0.5] * 3 + [1] * (len(full) - 3)
    assert_close(trained(0.05, multipliers), [*half[:3], *full[3:]], rtol=0, atol=0)


def test_decay_goes_by_shape():
    assert is_decayed(tf.zeros((3, 3, 8, 8)))
    assert is_decayed(tf.zeros((8, 10)))
    assert not is_decayed(tf.zeros((8,)))
