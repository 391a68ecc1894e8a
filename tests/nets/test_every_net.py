"""Properties of every net in the table, those that a user adds included."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf

import nets
from nets.batch_norm import BatchNorm
from nets.table import trace
from tests.nets.helpers import count, gradients, images, layers
from tests.nets.pinned import (
    DEEPER,
    PINNED,
    PUBLISHED_FLOPS,
    PUBLISHED_PARAMETERS,
    image_size,
    shapes,
)


def exhaustive_if(is_long, names=tuple(nets.NETS)):
    """Nets as parameters, some of them marked as exhaustive."""
    return [pytest.param(n, marks=pytest.mark.exhaustive) if is_long(n) else n for n in names]


# Large nets, and those that are made of the same blocks as another.
LONG = (
    *(*DEEPER, "inception_v4", "inception_resnet_v2", "inception_v1_bn", "inception_v3"),
    *("inception_resnet_v1", "inception_v1", "inception_v2", "resnet50", "resnet50_v2", "plain18"),
    *("resnet20_projection", "plain20"),
)
# Nets whose BatchNorm keeps its statistics in training.
FROZEN = ("inception10_frozen_norm",)
# What these are made of is tried in the others.
NOT_DEEPER = tuple(name for name in nets.NETS if name not in DEEPER)


def classes(name):
    return 10 if image_size(name) == 32 else 1000


def smallest_size(name, stem):
    """The size of images to run a net with, in pixels."""
    return getattr(nets.net_class(name).smallest_size, stem) if name in PINNED else 32


@pytest.fixture(scope="module")
def paper_form(request):
    """A net with the classes and the stem of its paper, built on the smallest images; its name.

    Of a deeper net only figures are asked for: its weights are zeros, which take less time.
    """
    name = request.param
    with pytest.MonkeyPatch.context() as patch:
        if name in DEEPER:
            patch.setattr(tf.keras.initializers, "HeNormal", tf.keras.initializers.Zeros)
        return _paper_form(name)


def _paper_form(name):
    stem = nets.default_stem((image_size(name),) * 2 + (3,))
    size = smallest_size(name, stem)
    tf.keras.utils.set_random_seed(1)
    shape = (size, size, 3)
    return name, nets.build(name, num_classes=classes(name), image_shape=shape, stem=stem), size


def test_the_projects_own_nets_are_there():
    assert set(PINNED) <= set(nets.NETS)


@pytest.mark.parametrize("paper_form", exhaustive_if(LONG.__contains__), indirect=True)
def test_parameters_flops_and_shapes(paper_form):
    name, net, _ = paper_form
    size = image_size(name)
    rows = trace(net, (size, size, 3)).rows
    trainable, others = count(net.trainable_variables), count(net.non_trainable_variables)
    # The stages have all variables.
    assert sum(row.trainable for row in rows) == trainable
    assert sum(row.not_trainable for row in rows) == others
    if name not in PINNED:
        return
    flops = sum(row.flops for row in rows if not row.auxiliary)
    assert (trainable, others, flops) == PINNED[name]
    stages = [*shapes(name), ("head", (classes(name),))]
    assert [(row.name, row.output_shape) for row in rows] == stages
    without_heads = sum(row.trainable for row in rows if not row.auxiliary)
    if name in PUBLISHED_PARAMETERS:
        millions, digits = PUBLISHED_PARAMETERS[name]
        scales = 17_216 if name == "inception_v3" else 0
        assert round((without_heads - scales) / 1e6, digits) == millions
    if name in PUBLISHED_FLOPS:
        assert flops / 1e6 == pytest.approx(PUBLISHED_FLOPS[name], rel=0.02)


@pytest.mark.parametrize("paper_form", exhaustive_if(LONG.__contains__, NOT_DEEPER), indirect=True)
def test_evaluation_changes_nothing(paper_form):
    name, net, size = paper_form
    before = [v.numpy() for v in net.variables]
    logits = net(images(4, size, 3), training=False)
    assert logits.shape == (4, classes(name))
    assert logits.dtype == tf.float32
    assert np.all(np.isfinite(logits))
    for variable, old in zip(net.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), old)


@pytest.mark.parametrize("paper_form", exhaustive_if(LONG.__contains__, NOT_DEEPER), indirect=True)
def test_every_variable_has_a_gradient_and_every_statistic_moves(paper_form):
    name, net, size = paper_form
    check_training_pass(net, images(4, size, 3), classes(name), moves=name not in FROZEN)


def check_training_pass(net, x, num_classes, *, moves=True):
    before = [v.numpy() for v in net.non_trainable_variables]
    outputs, found = gradients(net, x)
    assert len(outputs) == 1 + len(net.auxiliary)
    for logits in outputs:
        assert logits.dtype == tf.float32
        assert logits.shape == (len(x), num_classes)
    for variable, gradient in zip(net.trainable_variables, found, strict=True):
        assert gradient is not None, variable.path
        assert np.all(np.isfinite(gradient)), variable.path
        assert np.any(gradient != 0), variable.path
    for variable, old in zip(net.non_trainable_variables, before, strict=True):
        assert np.any(variable.numpy() != old) == moves, variable.path


@pytest.mark.parametrize("name", nets.NETS)
def test_training_has_no_default(name):
    net = nets.net_class(name)
    with pytest.raises(TypeError, match="training"):
        net.__call__(object(), images(1, 4, 3))


@pytest.mark.parametrize("name", PINNED)
@pytest.mark.parametrize("stem", ["small", "large"])
def test_too_small_an_image_is_an_error(name, stem):
    smallest = getattr(nets.net_class(name).smallest_size, stem)
    nets.check_size(name, (smallest, smallest, 3), stem)
    with pytest.raises(nets.NetError, match=f"must be at least {smallest}x{smallest}"):
        nets.build(name, num_classes=2, image_shape=(99, smallest - 1, 3), stem=stem)


@pytest.mark.parametrize(
    "name",
    [
        "inception_v3",
        pytest.param("inception_v4", marks=pytest.mark.exhaustive),
        pytest.param("inception_resnet_v1", marks=pytest.mark.exhaustive),
        pytest.param("inception_resnet_v2", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize("stem", ["small", "large"])
def test_the_smallest_size_is_the_smallest(name, stem, monkeypatch):
    """Without padding, one pixel less leaves nothing."""
    monkeypatch.setattr(tf.keras.initializers, "HeNormal", tf.keras.initializers.Zeros)
    smallest = getattr(nets.net_class(name).smallest_size, stem)
    net = nets.NETS[name](2, stem=stem)

    def trunk(size):
        x = tf.zeros((1, size, size, 3))
        for stage in ("stem", "reduction_a", "reduction_b"):
            x = getattr(net, stage)(x, training=False)
        return x.shape

    assert trunk(smallest)[1:3] == (1, 1)
    # On some processors, operations accept images without pixels.
    with contextlib.suppress(ValueError, tf.errors.OpError):
        assert 0 in trunk(smallest - 1)


def settings_of_batch_norms(net):
    return {(x.momentum, x.epsilon, x.synchronized) for x in layers(net, BatchNorm)}


@pytest.mark.parametrize(
    ("name", "flags", "settings"),
    [
        ("inception10", {}, (0.9, 1e-5, False)),
        ("inception_v1_bn", {}, (0.9997, 1e-3, False)),
        ("inception10", {"batch_norm_momentum": 0.5, "sync_batch_norm": True}, (0.5, 1e-5, True)),
    ],
)
def test_batch_norm_has_the_settings_of_the_net(name, flags, settings):
    net = nets.build(name, num_classes=2, image_shape=(8, 8, 3), **flags)
    assert settings_of_batch_norms(net) == {settings}


def test_settings_of_slim_are_those_of_the_inception_nets():
    for name in PINNED:
        net = nets.net_class(name)
        slim = name.startswith("inception") and not name.startswith("inception10")
        expected = (0.9997, 1e-3) if slim else (0.9, 1e-5)
        assert (net.batch_norm_momentum, net.batch_norm_epsilon) == expected
