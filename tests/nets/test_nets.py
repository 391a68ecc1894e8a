import functools
import math

import numpy as np
import pytest
import tensorflow as tf

import nets
from nets.resnet import BasicBlock, ResNet
from nets.table import stage_rows, table

SHAPE = (32, 32, 3)


@functools.cache
def build(name):
    return nets.build(name, num_classes=10, image_shape=SHAPE)


def count(variables):
    return sum(math.prod(v.shape) for v in variables)


def random_images(batch=4, shape=SHAPE):
    return tf.constant(np.random.default_rng(0).normal(size=(batch, *shape)), tf.float32)


# Trainable and other parameters, multiply-adds, and the output of each stage.
PINNED = {
    # 592 fewer than with the biases that a convolution before BatchNorm does not need.
    "inception10": (119_642, 1_184, 12_240_128,
                    [(32, 32, 16), (16, 16, 64), (8, 8, 128), (10,)]),
    "resnet18": (11_173_962, 9_600, 555_422_720,
                 [(32, 32, 64), (32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512), (10,)]),
    "resnet34": (21_282_122, 17_024, 1_159_402_496,
                 [(32, 32, 64), (32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512), (10,)]),
}  # fmt: skip


def test_every_net_is_pinned():
    assert PINNED.keys() == nets.NETS.keys()


@pytest.mark.parametrize("name", PINNED)
def test_parameters_flops_and_shapes(name):
    trainable, others, flops, shapes = PINNED[name]
    net = build(name)
    assert count(net.trainable_variables) == trainable
    assert count(net.non_trainable_variables) == others
    rows = stage_rows(net, SHAPE)
    assert [row.name for row in rows] == list(net.stages)
    assert [row.output_shape for row in rows] == shapes
    assert sum(row.flops for row in rows) == flops
    # The stages hold all there is.
    assert sum(row.trainable for row in rows) == trainable
    assert sum(row.not_trainable for row in rows) == others


def test_flops_by_hand():
    # Pixels x kernel height x kernel width x channels in x channels out.
    stem, *_, head = stage_rows(build("inception10"), SHAPE)
    assert stem.flops == 32 * 32 * 3 * 3 * 3 * 16
    assert head.flops == 128 * 10


def test_table_ends_with_the_sums():
    lines = table(build("resnet18"), SHAPE).splitlines()
    assert lines[-1] == "parameters: 11,173,962 trainable, 9,600 not"
    assert "stage_2  16 x 16 x 128" in lines[3]


@pytest.mark.parametrize("name", PINNED)
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_one_training_pass(name, precision):
    """Gradients are all there and finite, and all moving statistics move."""
    tf.keras.config.set_dtype_policy(precision)
    net = nets.build(name, num_classes=10, image_shape=SHAPE)
    before = [v.numpy() for v in net.non_trainable_variables]

    @tf.function
    def gradients(images):
        with tf.GradientTape() as tape:
            logits = net(images, training=True)
            loss = tf.reduce_sum(tf.nn.log_softmax(logits)[:, 0])
        return logits, tape.gradient(loss, [v.value for v in net.trainable_variables])

    logits, found = gradients(random_images())
    assert logits.dtype == tf.float32
    assert logits.shape == (4, 10)
    for variable, gradient in zip(net.trainable_variables, found, strict=True):
        assert gradient is not None, variable.path
        assert np.all(np.isfinite(gradient)), variable.path
        assert np.any(gradient != 0), variable.path
    for variable, old in zip(net.non_trainable_variables, before, strict=True):
        assert np.any(variable.numpy() != old), variable.path


@pytest.mark.parametrize("name", PINNED)
def test_evaluation_changes_nothing_and_graph_equals_eager(name):
    net, images = build(name), random_images()
    before = [v.numpy() for v in net.variables]
    eager = net(images, training=False)
    graph = tf.function(lambda x: net(x, training=False))(images)
    np.testing.assert_allclose(graph, eager, rtol=1e-4, atol=1e-4)
    for variable, old in zip(net.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), old)


@pytest.mark.parametrize("name", PINNED)
def test_training_has_no_default(name):
    with pytest.raises(TypeError, match="training"):
        build(name)(random_images())


def test_an_example_does_not_depend_on_its_neighbours_in_evaluation():
    net, images = build("inception10"), random_images(3)
    whole = net(images, training=False)
    np.testing.assert_allclose(whole[1:2], net(images[1:2], training=False), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "classes"), [((8, 8, 1), 3), ((28, 28, 1), 10), ((48, 64, 4), 7)]
)
def test_any_channels_classes_and_sizes(shape, classes):
    net = nets.build("inception10", num_classes=classes, image_shape=shape)
    assert net(random_images(2, shape), training=False).shape == (2, classes)


def test_unknown_net_lists_the_known_ones():
    with pytest.raises(nets.UnknownNetError, match=r"'resnet19'.*inception10, resnet18, resnet34"):
        build("resnet19")


def test_block_adds_its_input():
    """With a residual of 0, a basic block is ReLU of its input."""
    block, x = BasicBlock(3), random_images()
    block(x, training=False)
    block.conv_1.batch_norm.gamma.assign([0.0, 0.0, 0.0])
    np.testing.assert_allclose(block(x, training=False), tf.nn.relu(x))


def test_lengths_of_blocks_and_filters_must_agree():
    with pytest.raises(ValueError, match=r"blocks=\(2, 2\)"):
        ResNet(10, blocks=(2, 2))
