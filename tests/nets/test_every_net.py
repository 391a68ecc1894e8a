"""What holds for every net in the table."""

import numpy as np
import pytest
import tensorflow as tf

import nets
from loops.variables import named_variables
from nets.layers import BatchNorm
from nets.table import stage_rows
from tests.nets.helpers import count, gradients, images
from tests.nets.pinned import (
    PINNED,
    PUBLISHED_FLOPS,
    PUBLISHED_PARAMETERS,
    image_size,
    shapes,
)


def classes(name):
    return 10 if image_size(name) == 32 else 1000


@pytest.fixture(scope="module", params=nets.NETS)
def paper_form(request):
    """A net as in its paper, and its name."""
    name, size = request.param, image_size(request.param)
    tf.keras.utils.set_random_seed(1)
    return name, nets.build(name, num_classes=classes(name), image_shape=(size, size, 3))


def smallest_images(name, batch=4):
    """Images of the least size that the paper's form takes."""
    stem = nets.default_stem((image_size(name),) * 2 + (3,))
    return images(batch, getattr(nets.net_class(name).smallest_size, stem), 3)


def test_every_net_is_pinned():
    assert list(PINNED) == list(nets.NETS)


def test_parameters_flops_and_shapes(paper_form):
    name, net = paper_form
    trainable, others, flops = PINNED[name]
    assert count(net.trainable_variables) == trainable
    assert count(net.non_trainable_variables) == others
    size = image_size(name)
    rows = stage_rows(net, (size, size, 3))
    assert [(row.name, row.output_shape) for row in rows] == [
        *shapes(name),
        ("head", (classes(name),)),
    ]
    assert sum(row.flops for row in rows if not row.auxiliary) == flops
    # The stages hold all there is.
    assert sum(row.trainable for row in rows) == trainable
    assert sum(row.not_trainable for row in rows) == others
    # And it is what was published.
    without_heads = sum(row.trainable for row in rows if not row.auxiliary)
    if name in PUBLISHED_PARAMETERS:
        millions, digits = PUBLISHED_PARAMETERS[name]
        scales = 17_216 if name == "inception_v3" else 0
        assert round((without_heads - scales) / 1e6, digits) == millions
    if name in PUBLISHED_FLOPS:
        assert flops / 1e6 == pytest.approx(PUBLISHED_FLOPS[name], rel=0.02)


def test_evaluation_changes_nothing_and_graph_equals_eager(paper_form):
    name, net = paper_form
    x = smallest_images(name)
    before = [v.numpy() for v in net.variables]
    eager = net(x, training=False)
    graph = tf.function(lambda x: net(x, training=False))(x)
    assert eager.shape == (4, classes(name))
    assert eager.dtype == tf.float32
    assert np.all(np.isfinite(eager))
    np.testing.assert_allclose(graph, eager, rtol=1e-3, atol=1e-4 * np.abs(eager).max())
    for variable, old in zip(net.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), old)


def test_gradients_are_all_there_and_statistics_move(paper_form):
    name, net = paper_form
    check_training_pass(net, smallest_images(name), classes(name))


def check_training_pass(net, x, num_classes):
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
        assert np.any(variable.numpy() != old), variable.path


@pytest.mark.parametrize("name", nets.NETS)
def test_bfloat16_and_the_small_stem_and_a_rebuilt_net(name, tmp_path, monkeypatch):
    """Gradients in bfloat16; and what is saved is all there is, in a net that is made anew."""
    tf.keras.config.set_dtype_policy("mixed_bfloat16")
    tf.keras.utils.set_random_seed(1)
    size = nets.net_class(name).smallest_size.small
    shape = (size, size, 2)

    def build():
        return nets.build(name, num_classes=3, image_shape=shape, stem="small")

    net, x = build(), images(4, size, 2)
    check_training_pass(net, x, 3)
    path = tf.train.Checkpoint(net=net).write(str(tmp_path / "net"))
    saved = [n for n, _ in tf.train.list_variables(path) if n.startswith("net/")]
    assert len(saved) == len(net.variables) == len(named_variables(net))
    # Kernels that start as zeros save the time of drawing them.
    monkeypatch.setattr(tf.keras.initializers, "HeNormal", tf.keras.initializers.Zeros)
    again = build()
    tf.train.Checkpoint(net=again).read(path).assert_consumed()
    for old, new in zip(net.variables, again.variables, strict=True):
        np.testing.assert_array_equal(old.numpy(), new.numpy())
    np.testing.assert_array_equal(net(x, training=False), again(x, training=False))


@pytest.mark.parametrize("name", nets.NETS)
def test_training_has_no_default(name):
    net = nets.net_class(name)
    with pytest.raises(TypeError, match="training"):
        net.__call__(object(), images(1, 4, 3))


@pytest.mark.parametrize("name", nets.NETS)
@pytest.mark.parametrize("stem", ["small", "large"])
def test_too_small_an_image_is_an_error(name, stem):
    smallest = getattr(nets.net_class(name).smallest_size, stem)
    nets.check_size(name, (smallest, smallest, 3), stem)
    with pytest.raises(nets.NetError, match=f"takes them from {smallest}x{smallest}"):
        nets.build(name, num_classes=2, image_shape=(99, smallest - 1, 3), stem=stem)


@pytest.mark.parametrize(
    "name", ["inception_v3", "inception_v4", "inception_resnet_v1", "inception_resnet_v2"]
)
@pytest.mark.parametrize("stem", ["small", "large"])
def test_the_smallest_size_is_the_smallest(name, stem):
    """Where nothing pads, one pixel less leaves nothing."""
    smallest = getattr(nets.net_class(name).smallest_size, stem)

    def trunk(size):
        net = nets.NETS[name](2, stem=stem)
        x = tf.zeros((1, size, size, 3))
        for stage in ("stem", "reduction_a", "reduction_b"):
            x = getattr(net, stage)(x, training=False)
        return x.shape

    assert trunk(smallest)[1:3] == (1, 1)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        trunk(smallest - 1)


@pytest.mark.parametrize(
    ("name", "momentum", "epsilon"),
    [
        ("inception10", 0.9, 1e-5),
        ("resnet20", 0.9, 1e-5),
        ("inception_v1_bn", 0.9997, 1e-3),
        ("inception_v2", 0.9997, 1e-3),
    ],
)
def test_batch_norm_is_as_the_net_has_it(name, momentum, epsilon):
    def norms(**kwargs):
        net = nets.build(name, num_classes=2, image_shape=(8, 8, 3), **kwargs)
        return [x for x in net._flatten_layers() if isinstance(x, BatchNorm)]

    assert {(x.momentum, x.epsilon) for x in norms()} == {(momentum, epsilon)}
    assert {x.momentum for x in norms(batch_norm_momentum=0.5)} == {0.5}
