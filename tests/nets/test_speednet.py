"""SpeedNet as the paper describes it."""

import numpy as np
import tensorflow as tf

import nets
from nets.speednet import gelu
from nets.table import trace


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
