import numpy as np
import pytest
import tensorflow as tf

from nets.layers import (
    AvgPool,
    BatchNorm,
    Branches,
    CenteredMaxPool,
    Chain,
    ConvBatchNorm,
    Convolution,
    Dropout,
    Head,
    MaxPool,
    draws,
    pad_to,
)


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


@pytest.mark.parametrize(("mean", "deviation"), [(1.5, 2.0), (300.0, 0.1)])
def test_synchronized_batch_norm_is_that_of_the_whole_batch(two_replicas, mean, deviation):
    """Outputs, moving statistics and gradients; also where a variance is small beside its mean."""
    generator = np.random.default_rng(0)
    x = tf.constant(generator.normal(mean, deviation, (8, 3, 3, 5)), tf.float32)
    weights = tf.constant(generator.normal(size=x.shape), tf.float32)
    exact = x.numpy().astype(np.float64)
    whole = BatchNorm()
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = whole(x, training=True)
        loss = tf.reduce_sum(outputs * weights)
    expected = tape.gradient(loss, [x, whole.gamma.value, whole.beta.value])

    with two_replicas.scope():
        layer = BatchNorm(synchronized=True)
        layer.build(x.shape)

    @tf.function
    def step():
        def replica():
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            mine, its_weights = x[4 * number : 4 * number + 4], weights[4 * number : 4 * number + 4]
            with tf.GradientTape() as tape:
                tape.watch(mine)
                outputs = layer(mine, training=True)
                loss = tf.reduce_sum(outputs * its_weights)
            return outputs, tape.gradient(loss, [mine, layer.gamma.value, layer.beta.value])

        return two_replicas.run(replica)

    found, (of_x, of_gamma, of_beta) = step()
    local = two_replicas.experimental_local_results
    flat = exact.reshape(-1, 5)
    normal = (exact - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    np.testing.assert_allclose(np.concatenate(local(found)), normal, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * flat.mean(0), rtol=1e-5)
    variance = 0.9 + 0.1 * flat.var(0, ddof=1)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-4)
    scale = np.abs(expected[0]).max()
    np.testing.assert_allclose(np.concatenate(local(of_x)), expected[0], atol=2e-3 * scale)
    np.testing.assert_allclose(sum(local(of_gamma)), expected[1], rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(sum(local(of_beta)), expected[2], rtol=1e-4, atol=1e-4)


def test_unsynchronized_replicas_normalize_apart(two_replicas):
    with two_replicas.scope():
        layer = BatchNorm()
        layer.build((None, 2))

    @tf.function
    def step():
        def replica():
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            x = tf.cast(number, tf.float32) * 10 + images(4, 1, 1, 2)
            return tf.reduce_mean(layer(x, training=True))

        return two_replicas.run(replica)

    for mean in two_replicas.experimental_local_results(step()):
        assert abs(mean) < 1e-5


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


@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 7, (1, 7)])
def test_convolution_pads_alike_on_both_sides(kernel, strides):
    """A mirrored image and a mirrored kernel give the mirrored output, at odd sizes."""
    layer, x = Convolution(2, kernel, strides=strides), images(1, 13, 13, 3)
    y = layer(x, training=False)
    assert y.shape[1:3] == (-(-13 // strides),) * 2
    layer.conv.kernel.assign(layer.conv.kernel.numpy()[::-1, ::-1])
    mirrored = layer(x[:, ::-1, ::-1], training=False)
    np.testing.assert_allclose(mirrored[:, ::-1, ::-1], y, rtol=1e-4, atol=1e-4)


def test_convolutions_start_from_he_et_al_2015():
    layer = Convolution(512, 3, use_bias=True)
    layer(images(1, 4, 4, 64), training=False)
    kernel = layer.conv.kernel.numpy()
    assert kernel.std() == pytest.approx(np.sqrt(2 / (3 * 3 * 64)), rel=0.02)
    assert abs(kernel.mean()) < 1e-3
    np.testing.assert_array_equal(layer.conv.bias, np.zeros(512))


def test_convolutions_of_one_shape_start_apart():
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
    np.testing.assert_allclose(y[..., 6:], layer.branch_2(x, training=False))


def test_pools_by_hand():
    x = tf.reshape(tf.range(16, dtype=tf.float32), (1, 4, 4, 1))
    same = MaxPool(3, strides=2)(x, training=False)
    np.testing.assert_array_equal(same[0, :, :, 0], [[10, 11], [14, 15]])
    centred = CenteredMaxPool()(x, training=False)
    np.testing.assert_array_equal(centred[0, :, :, 0], [[5, 7], [13, 15]])
    valid = MaxPool(3, strides=1, padding="valid")(x, training=False)
    np.testing.assert_array_equal(valid[0, :, :, 0], [[10, 11], [14, 15]])
    # At the border the mean is over the pixels that are there.
    mean = AvgPool(3)(x, training=False)
    assert mean[0, 0, 0, 0] == np.mean([0, 1, 4, 5])


def test_dropout_keeps_the_mean_and_drops_its_share():
    x = tf.ones((64, 1000))
    with draws((0, 1)):
        y = Dropout(0.3)(x, training=True).numpy()
    assert np.mean(y == 0) == pytest.approx(0.3, abs=0.01)
    np.testing.assert_allclose(y[y > 0], 1 / 0.7, rtol=1e-6)


def test_dropout_does_nothing_in_evaluation():
    x = images(2, 1, 1, 3)
    np.testing.assert_array_equal(Dropout(0.9)(x, training=False), x)


def test_dropout_is_a_function_of_the_seed():
    x, layer = tf.ones((4, 100)), Dropout(0.5)

    def drop(seed, rows=(0, None)):
        with draws(seed, rows):
            return layer(x, training=True).numpy(), layer(x, training=True).numpy()

    first, second = drop((3, 7))
    assert np.any(first != second)  # Each use draws anew.
    np.testing.assert_array_equal(drop((3, 7)), (first, second))
    assert np.any(drop((3, 8))[0] != first)
    assert np.any(drop((4, 7))[0] != first)


def test_what_is_dropped_does_not_depend_on_who_has_the_example():
    x, layer = tf.ones((8, 50)), Dropout(0.5)

    def drop(part, first):
        with draws((1, 2), (first, 8)):
            return layer(part, training=True).numpy()

    whole = drop(x, 0)
    np.testing.assert_array_equal(np.concatenate([drop(x[:3], 0), drop(x[3:], 3)]), whole)


def test_dropout_without_a_seed_is_an_error():
    with pytest.raises(ValueError, match="seed=\\(0, step\\)"):
        Dropout(0.5)(tf.ones((2, 3)), training=True)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5])
def test_dropout_rate_is_checked(rate):
    with pytest.raises(ValueError, match=f"rate={rate}"):
        Dropout(rate)


def test_pad_to_centres():
    x = images(1, 2, 4, 1)
    y = pad_to(x, 5)
    assert y.shape == (1, 5, 5, 1)
    np.testing.assert_array_equal(y[:, 1:3, 0:4], x)
    assert np.abs(y).sum() == pytest.approx(np.abs(x).sum())
    assert pad_to(x, 2).shape == x.shape
