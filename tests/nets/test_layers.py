import numpy as np
import pytest
import tensorflow as tf

from nets.layers import BatchNorm, Chain, ConvBatchNorm, Head


def images(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(1.5, 2.0, shape), tf.float32)


def test_batch_norm_normalizes_with_the_batch_when_training():
    x = images(4, 3, 3, 5)
    y = BatchNorm()(x, training=True)
    np.testing.assert_allclose(tf.reduce_mean(y, (0, 1, 2)), np.zeros(5), atol=1e-5)
    np.testing.assert_allclose(tf.math.reduce_variance(y, (0, 1, 2)), np.ones(5), atol=1e-3)


def test_batch_norm_moves_its_statistics_by_hand():
    x = images(4, 3, 3, 5)
    layer = BatchNorm(momentum=0.9)
    layer(x, training=True)
    flat = x.numpy().reshape(-1, 5)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * flat.mean(0), rtol=1e-5)
    expected = 0.9 + 0.1 * flat.var(0, ddof=1)
    np.testing.assert_allclose(layer.moving_variance, expected, rtol=1e-5)


def test_batch_norm_uses_and_keeps_its_statistics_when_not_training():
    layer = BatchNorm(epsilon=0.001)
    layer.build((None, 2, 2, 3))
    layer.moving_mean.assign([1.0, 2.0, 3.0])
    layer.moving_variance.assign([4.0, 9.0, 16.0])
    layer.gamma.assign([1.0, 2.0, 3.0])
    layer.beta.assign([0.5, 0.0, -0.5])
    x = images(2, 2, 2, 3)
    y = layer(x, training=False)
    deviation = np.sqrt(np.array([4.0, 9.0, 16.0]) + 0.001)
    expected = (x - [1.0, 2.0, 3.0]) / deviation * [1.0, 2.0, 3.0] + [0.5, 0.0, -0.5]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(layer.moving_mean, [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(layer.moving_variance, [4.0, 9.0, 16.0])


def test_batch_norm_agrees_with_keras():
    x, ours = images(8, 4, 4, 6), BatchNorm()
    theirs = tf.keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
    np.testing.assert_allclose(
        ours(x, training=True), theirs(x, training=True), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(ours.moving_mean, theirs.moving_mean, rtol=1e-5)


def test_batch_norm_has_a_gradient_through_the_batch_statistics():
    x, layer = images(4, 2, 2, 1), BatchNorm()
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(layer(x, training=True))
    # The outputs sum to 0 whatever x is.
    np.testing.assert_allclose(tape.gradient(loss, x), np.zeros(x.shape), atol=1e-4)


def test_batch_norm_statistics_are_the_mean_of_the_replicas(two_replicas):
    with two_replicas.scope():
        layer = BatchNorm(momentum=0.5)
        layer.build((None, 1, 1, 1))
    values = iter([1.0, 3.0])
    batches = two_replicas.experimental_distribute_values_from_function(
        lambda _: tf.fill((4, 1, 1, 1), next(values))
    )

    @tf.function
    def step(x):
        return two_replicas.run(lambda x: layer(x, training=True), args=(x,))

    step(batches)
    # The replicas' moving means are 0.5 and 1.5.
    assert layer.moving_mean.numpy() == pytest.approx(1.0)


@pytest.mark.parametrize(
    "layer", [BatchNorm(), ConvBatchNorm(4, 3), Chain([BatchNorm()]), Head(3)], ids=type
)
def test_training_cannot_be_left_out(layer):
    with pytest.raises(TypeError, match="training"):
        layer(images(1, 4, 4, 2))


def test_conv_batch_norm_has_no_bias_and_can_leave_out_relu():
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
