import numpy as np
import pytest
import tensorflow as tf

from nets.few_pixels import convolve_few_pixels
from nets.inception_v2 import DepthwiseConvolution
from nets.layers import (
    AvgPool,
    BatchNorm,
    Branches,
    CenteredMaxPool,
    Chain,
    ConvBatchNorm,
    Convolution,
    Head,
    MaxPool,
    layer_by_layer,
    pad_to,
)
from tests.nets.helpers import layers as of_class


def images(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(1.5, 2.0, shape), tf.float32)


@pytest.mark.parametrize(
    "layer", [BatchNorm(), ConvBatchNorm(4, 3), Chain([BatchNorm()]), Head(3)], ids=type
)
def test_training_has_no_default(layer):
    with pytest.raises(TypeError, match="training"):
        layer(images(1, 4, 4, 2))


def test_conv_batch_norm_has_no_bias_and_an_optional_relu():
    x = images(2, 5, 5, 3)
    with_relu, without = ConvBatchNorm(4, 3), ConvBatchNorm(4, 3, relu=False)
    assert tf.reduce_min(with_relu(x, training=True)) == 0
    assert [v.shape for v in with_relu.trainable_variables] == [(3, 3, 3, 4), (4,), (4,)]
    assert tf.reduce_min(without(x, training=True)) < -0.5


def test_conv_batch_norm_strides():
    assert ConvBatchNorm(4, 3, strides=2)(images(1, 8, 8, 3), training=False).shape == (1, 4, 4, 4)


def test_head_averages_over_the_image():
    head = Head(2)
    x = images(3, 4, 4, 5)
    logits = head(x, training=False)
    kernel, bias = head.dense.get_weights()
    np.testing.assert_allclose(logits, x.numpy().mean((1, 2)) @ kernel + bias, rtol=1e-4, atol=1e-5)
    assert logits.shape == (3, 2)


def test_chain_runs_its_blocks_in_order():
    chain = Chain([ConvBatchNorm(4, 3), ConvBatchNorm(6, 1, strides=2)])
    assert chain(images(1, 8, 8, 3), training=False).shape == (1, 4, 4, 6)
    assert chain.blocks == (chain.block_0, chain.block_1)


@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 7, (1, 7)])
def test_padding_is_symmetric(kernel, strides):
    """A mirrored image and a mirrored kernel give the mirrored output, at odd sizes."""
    layer, x = Convolution(2, kernel, strides=strides), images(1, 13, 13, 3)
    y = layer(x, training=False)
    assert y.shape[1:3] == (-(-13 // strides),) * 2
    layer.conv.kernel.assign(layer.conv.kernel.numpy()[::-1, ::-1])
    mirrored = layer(x[:, ::-1, ::-1], training=False)
    np.testing.assert_allclose(mirrored[:, ::-1, ::-1], y, rtol=1e-4, atol=1e-4)


def test_convolutions_are_initialized_after_he_et_al_2015():
    layer = Convolution(512, 3, use_bias=True)
    layer(images(1, 4, 4, 64), training=False)
    kernel = layer.conv.kernel.numpy()
    assert kernel.std() == pytest.approx(np.sqrt(2 / (3 * 3 * 64)), rel=0.02)
    assert abs(kernel.mean()) < 1e-3
    np.testing.assert_array_equal(layer.conv.bias, np.zeros(512))


def test_convolutions_of_one_shape_have_different_initial_values():
    chain = Chain([Convolution(4, 3), Convolution(4, 3)])
    chain(images(1, 4, 4, 4), training=False)
    kernels = [block.conv.kernel.numpy() for block in chain.blocks]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1


def test_branches_are_concatenated_in_order():
    x = images(2, 6, 6, 3)
    layer = Branches([[], [MaxPool(3)], [ConvBatchNorm(4, 1), ConvBatchNorm(5, 3)]])
    y = layer(x, training=False)
    assert y.shape == (2, 6, 6, 11)
    np.testing.assert_array_equal(y[..., :3], x)
    np.testing.assert_array_equal(y[..., 3:6], tf.nn.max_pool2d(x, 3, 1, "SAME"))
    np.testing.assert_allclose(y[..., 6:], layer.branch_2(x, training=False), atol=1e-5)


def branches_with_siblings():
    """Two pairs of first layers that can be called jointly, and others that cannot."""
    layer = Branches(
        [
            [ConvBatchNorm(4, 1), ConvBatchNorm(5, 3)],
            [ConvBatchNorm(2, 3, strides=1)],
            [],
            [ConvBatchNorm(3, 1)],
            [ConvBatchNorm(3, 1, relu=False)],
            [MaxPool(3), ConvBatchNorm(2, 1)],
            [ConvBatchNorm(6, 3), MaxPool(3)],
            [ConvBatchNorm(2, 1)],
            [ConvBatchNorm(2, 1)],
        ]
    )
    layer(images(1, 6, 6, 3), training=False)
    generator = np.random.default_rng(0)
    for variable in layer.variables:
        variable.assign(generator.uniform(0.5, 1.5, variable.shape))
    for norm in of_class(layer, BatchNorm):
        norm.epsilon = 1e-3
    # Of their own.
    layer.branch_7.block_0.batch_norm.epsilon = 1.0
    layer.branch_8.block_0.batch_norm.momentum = 0.5
    return layer


def call_and_differentiate(layer, strategy, x, weights, training):
    """Outputs, the gradients of the input and all variables, and the moving statistics."""

    @tf.function
    def call(x, weights):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=training)
            loss = tf.reduce_sum(weights * y)
        sources = [x, *(v.value for v in layer.trainable_variables)]
        return y, tape.gradient(loss, sources, unconnected_gradients="zero")

    with strategy.scope():
        y, gradients = strategy.run(call, args=(x, weights))
    first = strategy.experimental_local_results
    graph = call.get_concrete_function(x, weights).graph if training else None
    operations = [op.type for op in graph.get_operations()] if graph else []
    statistics = [v.numpy() for v in layer.non_trainable_variables]
    return [first(y)[0], *(first(g)[0] for g in gradients)], statistics, operations


@pytest.mark.parametrize(
    ("strategy", "training", "synchronized"),
    [
        ("one_replica", True, False),
        pytest.param("two_replicas", True, False, marks=pytest.mark.slow),
        pytest.param("two_replicas", True, True, marks=pytest.mark.slow),
        pytest.param("one_replica", False, False, marks=pytest.mark.slow),
        pytest.param("two_replicas", False, True, marks=pytest.mark.slow),
    ],
    indirect=["strategy"],
)
def test_first_layers_are_called_jointly(strategy, training, synchronized):
    """With the outputs, gradients and moving statistics of calls one by one, from fewer calls."""
    x, weights = images(2, 6, 6, 3), images(2, 6, 6, 28, seed=1)
    with strategy.scope():
        layer = branches_with_siblings()
    for norm in of_class(layer, BatchNorm):
        norm.synchronized = synchronized
    variables = layer.non_trainable_variables
    before = [v.numpy() for v in variables]
    joint, joint_statistics, operations = call_and_differentiate(
        layer, strategy, x, weights, training
    )
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    with layer_by_layer():
        single, statistics, others = call_and_differentiate(layer, strategy, x, weights, training)
    for a, b in zip(joint + joint_statistics, single + statistics, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    if training:
        assert (operations.count("Conv2D"), others.count("Conv2D")) == (7, 9)
    moved = [not np.array_equal(a, b) for a, b in zip(statistics, before, strict=True)]
    assert all(moved) if training else not any(moved)


def test_pools_by_hand():
    x = tf.reshape(tf.range(16, dtype=tf.float32), (1, 4, 4, 1))
    same = MaxPool(3, strides=2)(x, training=False)
    np.testing.assert_array_equal(same[0, :, :, 0], [[10, 11], [14, 15]])
    centered = CenteredMaxPool()(x, training=False)
    np.testing.assert_array_equal(centered[0, :, :, 0], [[5, 7], [13, 15]])
    valid = MaxPool(3, strides=1, padding="valid")(x, training=False)
    np.testing.assert_array_equal(valid[0, :, :, 0], [[10, 11], [14, 15]])
    # The mean at the border does not include padding.
    mean = AvgPool(3)(x, training=False)
    assert mean[0, 0, 0, 0] == np.mean([0, 1, 4, 5])


def test_pad_to_centers():
    x = images(1, 2, 4, 1)
    y = pad_to(x, 5)
    assert y.shape == (1, 5, 5, 1)
    np.testing.assert_array_equal(y[:, 1:3, 0:4], x)
    assert np.abs(y).sum() == pytest.approx(np.abs(x).sum())
    assert pad_to(x, 2).shape == x.shape


@pytest.mark.parametrize("make", [lambda: Convolution(3, 3), lambda: DepthwiseConvolution(3)])
def test_the_data_layout_does_not_depend_on_the_settings_of_keras(make):
    x, layers = images(1, 6, 6, 4), []
    for layout in ("channels_last", "channels_first"):
        tf.keras.config.set_image_data_format(layout)
        try:
            layers.append(make())
            layers[-1](x, training=False)
        finally:
            tf.keras.config.set_image_data_format("channels_last")
    for layer in layers:
        layer.conv.kernel.assign(tf.ones_like(layer.conv.kernel))
    first, second = (layer(x, training=False) for layer in layers)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "padding"),
    [
        ((4, 6), (3, 3), 1, "SAME"),
        ((4, 6), (1, 5), 1, "SAME"),
        ((5, 4), (3, 3), 1, "VALID"),
        ((6, 8), (3, 3), 2, "VALID"),
        ((7, 9), (3, 3), 2, "VALID"),
        ((7, 9), (1, 1), 2, "VALID"),
        ((9, 10), (5, 3), 3, "VALID"),
    ],
)
def test_the_kernel_gradient_of_few_pixels_is_tensorflows(size, kernel_size, stride, padding):
    x, kernel = images(2, *size, 3), tf.random.stateless_normal((*kernel_size, 3, 4), (1, 2))
    found = []
    for convolve in (convolve_few_pixels, tf.nn.conv2d):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            y = convolve(x, kernel, stride, padding)
            loss = tf.reduce_sum(tf.cos(y))
        found.append([y, *tape.gradient(loss, [x, kernel])])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "filters", "kernel_size", "stride", "dtype", "is_used"),
    [
        (8, 128, 3, 1, "bfloat16", True),
        (16, 128, 3, 2, "bfloat16", True),
        (16, 128, 3, 1, "bfloat16", False),
        (8, 64, 3, 1, "bfloat16", False),
        (8, 128, 1, 1, "bfloat16", False),
        (8, 128, 3, 1, "float32", False),
    ],
)
def test_products_stand_for_the_kernel_gradient_where_they_are_faster(
    size, filters, kernel_size, stride, dtype, is_used
):
    policy = {"bfloat16": "mixed_bfloat16"}.get(dtype, dtype)
    before = tf.keras.config.dtype_policy()
    tf.keras.config.set_dtype_policy(policy)
    layer = Convolution(filters, kernel_size, strides=stride, use_bias=False)
    tf.keras.config.set_dtype_policy(before)
    x = images(1, size, size, 128)
    layer(x, training=True)

    def operations():
        @tf.function
        def differentiate(x):
            with tf.GradientTape() as tape:
                y = layer(x, training=True)
            return tape.gradient(y, layer.conv.kernel.value)

        graph = differentiate.get_concrete_function(x).graph
        return [op.type for op in graph.get_operations()]

    assert ("Conv2DBackpropFilter" not in operations()) == is_used
    with layer_by_layer():
        assert "Conv2DBackpropFilter" in operations()
