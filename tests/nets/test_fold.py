"""Folded nets compute the same, and cannot train."""

import numpy as np
import pytest
import tensorflow as tf

import nets
from nets.batch_norm import BatchNorm
from nets.fold import fold
from nets.layers import ConvBatchNorm
from nets.resnet_v2 import PreActivationBlock
from tests.nets.helpers import images, layers

# A net of every class and of every kind of block and shortcut.
FAMILIES = (
    "inception10_residual", "inception_v1_bn", "inception_v2", "inception_v3",
    "inception_resnet_v1", "resnet18", "resnet50", "resnet50_v2", "resnet20", "plain20",
)  # fmt: skip


def randomize(net, variances=(0.5, 2)):
    """Gives every BatchNorm random statistics, scales and offsets."""
    generator = np.random.default_rng(2)
    for layer in layers(net, BatchNorm):
        shape = layer.gamma.shape
        layer.gamma.assign(generator.uniform(0.5, 1.5, shape))
        layer.beta.assign(generator.normal(0, 0.2, shape))
        layer.moving_mean.assign(generator.normal(0, 0.2, shape))
        layer.moving_variance.assign(generator.uniform(*variances, shape))


def test_values_by_hand():
    """A 1x1 convolution with weight 3, then (x - 1) / sqrt(3.99 + 0.01) * 4 + 0.5."""
    layer = ConvBatchNorm(1, 1, relu=False)
    layer.batch_norm.epsilon = 0.01
    x = tf.reshape(tf.constant([0.0, 1.0, -2.0]), (3, 1, 1, 1))
    layer(x, training=False)
    layer.conv.conv.kernel.assign([[[[3.0]]]])
    for name, value in {"gamma": 4, "beta": 0.5, "moving_mean": 1, "moving_variance": 3.99}.items():
        getattr(layer.batch_norm, name).assign([value])
    layer.fold()
    np.testing.assert_allclose(layer.folded_kernel, [[[[6.0]]]], rtol=1e-6)
    np.testing.assert_allclose(layer.folded_bias, [-1.5], rtol=1e-6)
    y = layer(x, training=False)
    np.testing.assert_allclose(tf.reshape(y, -1), [-1.5, 4.5, -13.5], rtol=1e-6)


@pytest.mark.parametrize("kernel_size", [1, 3, (1, 7)])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_every_kind_of_convolution(kernel_size, strides, padding):
    layer = ConvBatchNorm(4, kernel_size, strides=strides, padding=padding)
    x = images(2, 9, 3)
    layer(x, training=False)
    randomize(layer)
    before = layer(x, training=False)
    layer.fold()
    after = layer(x, training=False)
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert np.any(after != 0)


@pytest.mark.parametrize(
    "name",
    ["inception10", *(pytest.param(n, marks=pytest.mark.exhaustive) for n in FAMILIES)],
)
def test_folded_logits_are_those_of_the_net(name):
    size = max(nets.net_class(name).smallest_size.small, 8)
    tf.keras.utils.set_random_seed(1)
    net = nets.build(name, num_classes=5, image_shape=(size, size, 3), stem="small")
    # Without shortcuts, the differences between images would fade from layer to layer.
    randomize(net, (0.2, 0.6) if name.startswith("plain") else (0.5, 2))
    x = images(4, size, 3)
    evaluate = tf.function(lambda x: net(x, training=False))
    before = evaluate(x).numpy()
    count = fold(net)
    after = tf.function(lambda x: net(x, training=False))(x).numpy()
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())
    assert np.ptp(before, axis=0).max() > 1e-2 * np.abs(before).max()  # The images matter.
    assert count == len(layers(net, ConvBatchNorm))
    if count:
        assert np.any(after != before)


@pytest.fixture
def layer():
    """A layer with random statistics, for images of 3 channels."""
    layer = ConvBatchNorm(4, 3)
    layer(images(1, 5, 3), training=False)
    randomize(layer)
    return layer


def test_a_batch_norm_before_a_convolution_is_left():
    block = PreActivationBlock(2, project=True)
    x = images(2, 6, 3)
    block(x, training=False)
    randomize(block)
    before = block(x, training=False)
    assert fold(block) == 2 == len(layers(block, BatchNorm)) - 1
    np.testing.assert_allclose(block(x, training=False), before, atol=1e-5)
    block.activation.batch_norm.beta.assign_add([1.0, 1.0, 1.0])
    assert np.abs(block(x, training=False) - before).max() > 0.1


def test_a_folded_layer_cannot_train(layer):
    layer.fold()
    with pytest.raises(ValueError, match="folded cannot be trained"):
        layer(images(1, 5, 3), training=True)


def test_variables_are_kept_and_can_be_folded_again(layer):
    x, old = images(2, 5, 3), [v.numpy() for v in layer.variables]
    layer.fold()
    for variable, value in zip(layer.variables, old, strict=True):
        np.testing.assert_array_equal(variable, value)
    before = layer(x, training=False)
    layer.batch_norm.beta.assign_add([1.0] * 4)
    np.testing.assert_array_equal(layer(x, training=False), before)
    layer.fold()
    assert np.all(layer(x, training=False) >= before)
    assert np.any(layer(x, training=False) > before)


def test_bfloat16():
    tf.keras.config.set_dtype_policy("mixed_bfloat16")
    layer = ConvBatchNorm(4, 3)
    x = images(2, 5, 3)
    layer(x, training=False)
    randomize(layer)
    before = layer(x, training=False)
    layer.fold()
    after = layer(x, training=False)
    assert after.dtype == before.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(after, "float32"), tf.cast(before, "float32"), atol=0.05)


def test_a_net_without_variables_is_an_error():
    with pytest.raises(ValueError, match="call the net on images first"):
        fold(ConvBatchNorm(4, 3))
