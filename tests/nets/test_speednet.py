"""SpeedNet as the paper describes it."""

import numpy as np
import pytest
import tensorflow as tf

import nets
from nets.batch_norm import BatchNorm, BatchNormDefaults, batch_norm_defaults
from nets.speednet import gelu
from nets.table import trace
from tests.nets.helpers import layers


def test_shapes_and_parameters():
    net = nets.build("speednet", num_classes=10, image_shape=(32, 32, 3))
    rows = {row.name: row for row in trace(net, (32, 32, 3)).rows}
    assert [tuple(rows[f"stage_{i}"].output_shape) for i in (1, 2, 3)] == [
        (15, 15, 64), (7, 7, 256), (3, 3, 256),
    ]  # fmt: skip
    assert tuple(rows["stem"].output_shape) == (31, 31, 24)
    weights = sum(v.numpy().size for v in net.trainable_variables)
    convolutions = 24 * 12 + 24 + 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    assert weights == convolutions + 2 * 2 * (64 + 256 + 256) + 2560


def test_a_block_is_that_of_the_paper():
    """Convolution, pooling, BatchNorm and GELU; convolution, BatchNorm and GELU. Listing 1."""
    net = nets.build("speednet", num_classes=10, image_shape=(32, 32, 3))
    x = tf.random.stateless_normal((4, 7, 7, 24), (0, 0))
    first, second = (v for v in net.stage_1.trainable_variables if len(v.shape) == 4)
    norm, _ = layers(net.stage_1, BatchNorm)
    pooled = tf.nn.max_pool2d(tf.nn.conv2d(x, first, 1, "SAME"), 2, 2, "VALID")
    y = pooled
    for last in (False, True):
        if last:
            y = tf.nn.conv2d(y, second, 1, "SAME")
        mean, variance = tf.nn.moments(y, (0, 1, 2))
        y = tf.nn.gelu((y - mean) / tf.sqrt(variance + 1e-12))
    # Called as a part of its net, whose settings its BatchNorm has.
    with batch_norm_defaults(BatchNormDefaults(net.batch_norm_momentum, net.batch_norm_epsilon)):
        np.testing.assert_allclose(net.stage_1(x, training=True), y, atol=1e-4)
    mean = tf.reduce_mean(pooled, (0, 1, 2))
    np.testing.assert_allclose(norm.moving_mean, 0.4 * mean, atol=1e-5)


@pytest.mark.parametrize(("stem", "size", "stride"), [("small", 9, 1), ("large", 30, 4)])
def test_the_stem_is_a_convolution_of_two_pixels_and_gelu(stem, size, stride):
    net = nets.build("speednet", num_classes=10, image_shape=(size, size, 3), stem=stem)
    x = tf.random.stateless_normal((2, size, size, 3), (0, 0))
    kernel, bias = net.stem.trainable_variables
    bias.assign(tf.linspace(-1.0, 1.0, 24))
    expected = tf.nn.gelu(tf.nn.conv2d(x, kernel, stride, "VALID") + bias)
    np.testing.assert_allclose(net.stem(x, training=False), expected, atol=1e-5)


def test_logits_are_float32():
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        net = nets.build("speednet", num_classes=10, image_shape=(9, 9, 3))
        assert net(tf.zeros((1, 9, 9, 3)), training=False).dtype == tf.float32
        assert net.head.dense.compute_dtype == "float32"
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")


def test_logits_are_scaled():
    net = nets.build("speednet", num_classes=10, image_shape=(32, 32, 3))
    x = tf.random.stateless_normal((2, 3, 3, 256), (0, 0))
    expected = np.max(x, axis=(1, 2)) @ net.head.dense.kernel.numpy() / 9
    np.testing.assert_allclose(net.head(x, training=False), expected, atol=1e-5)


def test_gelu_and_its_gradient_are_those_of_tensorflow():
    x = tf.constant(np.linspace(-6, 6, 241, dtype=np.float32))
    upstream = tf.cos(x)
    values = []
    for function in (gelu, tf.nn.gelu):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        values.append((y.numpy(), tape.gradient(y, x, upstream).numpy()))
    np.testing.assert_allclose(*values, atol=1e-6)
