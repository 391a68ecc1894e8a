import numpy as np
import pytest
import tensorflow as tf

from nets.batch_norm import (
    BatchNorm,
    BatchNormDefaults,
    batch_norm_defaults,
    values_per_channel,
)


def images(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(1.5, 2.0, shape), tf.float32)


def test_training_normalizes_with_the_batch():
    x = images(4, 3, 3, 5)
    y = BatchNorm()(x, training=True)
    np.testing.assert_allclose(tf.reduce_mean(y, (0, 1, 2)), np.zeros(5), atol=1e-5)
    np.testing.assert_allclose(tf.math.reduce_variance(y, (0, 1, 2)), np.ones(5), atol=1e-3)


def test_moving_statistics_by_hand():
    x = images(4, 3, 3, 5)
    layer = BatchNorm(momentum=0.9)
    layer(x, training=True)
    flat = x.numpy().reshape(-1, 5)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * flat.mean(0), rtol=1e-5)
    expected = 0.9 + 0.1 * flat.var(0, ddof=1)
    np.testing.assert_allclose(layer.moving_variance, expected, rtol=1e-5)


def test_evaluation_uses_the_moving_statistics_and_keeps_them():
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


def test_outputs_and_statistics_are_those_of_keras():
    x, ours = images(8, 4, 4, 6), BatchNorm()
    theirs = tf.keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
    np.testing.assert_allclose(
        ours(x, training=True), theirs(x, training=True), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(ours.moving_mean, theirs.moving_mean, rtol=1e-5)


def test_the_gradient_goes_through_the_batch_statistics():
    x, layer = images(4, 2, 2, 1), BatchNorm()
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(layer(x, training=True))
    # The outputs sum to 0 for every x.
    np.testing.assert_allclose(tape.gradient(loss, x), np.zeros(x.shape), atol=1e-4)


@pytest.mark.parametrize(("mean", "deviation"), [(1.5, 2.0), (300.0, 0.1)])
def test_synchronized_replicas_normalize_as_one_with_the_whole_batch(two_replicas, mean, deviation):
    """Outputs, moving statistics and gradients, also with a variance far below the mean."""
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


def test_values_are_counted_beyond_int32():
    """As many replicas as have more than 2^31 values of all channels, then of each."""
    shape = tf.constant([256, 112, 112, 64], tf.int64)
    for replicas in (11, 700):
        found = values_per_channel(shape, replicas).numpy()
        assert found == np.float32(replicas * 256 * 112 * 112)


def test_other_replicas_normalize_with_their_own_examples(two_replicas):
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


def test_moving_statistics_are_the_mean_over_replicas(two_replicas):
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


def test_settings_of_the_layer_come_before_those_of_the_net():
    with batch_norm_defaults(BatchNormDefaults(0.5, 0.1, True)):
        own = BatchNorm(momentum=0.0, epsilon=0.0, synchronized=False)
        own.build((None, 2))
        other = BatchNorm()
        other.build((None, 2))
    assert (own.momentum, own.epsilon, own.synchronized) == (0.0, 0.0, False)
    assert (other.momentum, other.epsilon, other.synchronized) == (0.5, 0.1, True)


def test_settings_outside_a_net():
    layer = BatchNorm()
    layer.build((None, 2))
    assert (layer.momentum, layer.epsilon, layer.synchronized) == (0.9, 1e-5, False)
