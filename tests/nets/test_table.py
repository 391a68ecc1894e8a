"""The table of a net, and the fingerprint of its operations."""

import re

import numpy as np
import pytest
import tensorflow as tf

import nets
from nets.batch_norm import BatchNorm
from nets.dropout import Dropout, uniform
from nets.layers import Branches, Chain, ConvBatchNorm, Head, MaxPool, SmallStem
from nets.net import Net
from nets.table import table, trace
from tests.nets.helpers import count, images

SHAPE = (8, 8, 3)


class Pool(tf.keras.layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x, *, training):
        del training
        return self.function(x, 2, 2, "SAME")


class Small(Net):
    """Stem, branches, dropout and an auxiliary head. Its arguments are hyperparameters."""

    auxiliary_weight = 0.3

    def __init__(
        self,
        kernel_size=3,
        strides=1,
        relu=True,
        momentum=0.9,
        epsilon=1e-5,
        rate=0.5,
        auxiliary_pool=tf.nn.avg_pool2d,
        pool_first=False,
        shift=0.0,
    ):
        super().__init__()
        convolution = ConvBatchNorm(4, kernel_size, strides=strides, relu=relu)
        layers = [convolution, MaxPool(3), BatchNorm(momentum, epsilon)]
        if pool_first:
            layers = [layers[1], layers[0], layers[2]]
        self.stem = Chain(layers)
        self.stage_1 = Branches([[ConvBatchNorm(3, 1)], [ConvBatchNorm(2, 1), Dropout(rate)]])
        self.side = Chain([Pool(auxiliary_pool), Head(2)])
        self.stage_2 = Shift(shift)
        self.head = Head(2, dropout=rate)
        self.stage_names = ("stem", "stage_1", "stage_2", "head")
        self.auxiliary = (("stage_1", "side"),)


class Shift(tf.keras.layers.Layer):
    """Adds a tensor that is created eagerly."""

    def __init__(self, value):
        super().__init__()
        self.values = tf.constant(np.arange(5, dtype=np.float32) + value)

    def call(self, x, *, training):
        del training
        return x + tf.cast(self.values, x.dtype)


class Renamed(Net):
    """Computes what `Small` does, with other names, in another order."""

    auxiliary_weight = 0.3

    def __init__(self):
        super().__init__()
        self.classifier = Head(2, dropout=0.5)
        self.left, self.right = ConvBatchNorm(3, 1), ConvBatchNorm(2, 1)
        self.others = Chain([Head(2)])
        self.last = BatchNorm()
        self.first = ConvBatchNorm(4, (3, 3))
        self.drop = Dropout(0.5)
        self.added = Shift(0.0)

    def call(self, images, *, training):
        x = self.last(
            tf.nn.max_pool2d(self.first(images, training=training), 3, 1, "SAME"),
            training=training,
        )
        unused = tf.nn.relu(x) + 1
        del unused
        right = self.drop(self.right(x, training=training), training=training)
        x = tf.concat([self.left(x, training=training), right], axis=-1)
        shifted = self.added(x, training=training)
        logits = self.classifier(shifted, training=training)
        side = self.others(tf.nn.avg_pool2d(x, 2, 2, "SAME"), training=training)
        return (logits, side) if training else logits


def built(net, shape=SHAPE):
    net(tf.zeros((1, *shape)), training=False)
    return net


def fingerprint(net, shape=SHAPE):
    return trace(built(net, shape), shape).fingerprint


# The table.


def test_multiply_adds_by_hand():
    net = nets.build("inception10", num_classes=10, image_shape=(32, 32, 3))
    stem, *_, head = trace(net, (32, 32, 3)).rows
    # Pixels x kernel height x kernel width x input channels x output channels.
    assert stem.flops == 32 * 32 * 3 * 3 * 3 * 16
    assert head.flops == 128 * 10


def test_table_ends_with_the_sums():
    net = nets.build("resnet20", num_classes=10, image_shape=(8, 8, 3))
    lines = table(trace(net, (32, 32, 3))).splitlines()
    assert lines[0].split() == ["stage", "output", "parameters", "FLOPs"]
    assert "stage_2  16 x 16 x 32" in lines[3]
    assert lines[-3].split() == ["total", "269,722", "40,551,040"]
    assert lines[-2] == "FLOPs are multiply-adds for one image."
    assert lines[-1] == "parameters: 269,722 trainable, 1,376 not"


def test_auxiliary_heads_are_rows_after_their_stages():
    net = built(Small())
    summary = trace(net, SHAPE)
    assert [row.name for row in summary.rows] == ["stem", "stage_1", "side", "stage_2", "head"]
    side = summary.rows[2]
    assert (side.auxiliary, side.output_shape, side.flops) == (True, (2,), 5 * 2)
    lines = table(summary).splitlines()
    assert lines[-2].endswith("; the total excludes side, used in training only.")
    # Parameters with the heads, FLOPs without.
    flops = 64 * (9 * 3 * 4 + 4 * 3 + 4 * 2) + 5 * 2
    assert lines[-3].split() == ["total", str(count(net.trainable_variables)), f"{flops:,}"]


def test_a_net_that_overrides_call_is_one_row():
    net = built(Renamed())
    summary = trace(net, SHAPE)
    (row,) = summary.rows
    assert (row.name, row.output_shape, row.auxiliary) == ("net", (2,), False)
    assert row.trainable == count(net.trainable_variables)
    assert row.flops == sum(row.flops for row in trace(built(Small()), SHAPE).rows)
    assert re.search(r"^net +2 +", table(summary), re.MULTILINE)


def test_shared_layers_count_once():
    class Shared(Net):
        def __init__(self):
            super().__init__()
            self.block = ConvBatchNorm(3, 3)
            self.head = Head(2)
            self.stage_names = ("block", "block", "head")

    net = built(Shared())
    rows = trace(net, SHAPE).rows
    assert [row.name for row in rows] == ["block", "block", "head"]
    assert sum(row.trainable for row in rows) == count(net.trainable_variables)
    assert rows[0].flops == rows[1].flops > 0


class KerasLayers(Net):
    """Layers of Keras, a loop and a function, with their multiply-adds in `by_hand`."""

    by_hand = (
        64 * 3 * 8  # Dense.
        + 64 * 9 * 2 * 8  # Convolution in 4 groups.
        + 64 * (9 * 8 + 8 * 8)  # Separable convolution.
        + 64 * 4 * 8 * 8  # Transposed convolution.
        + 4 * 16 * 8 * 8  # Attention: projections of query, key, value and output.
        + 2 * 2 * 16 * 16 * 4  # Attention: two heads, queries with keys, weights with values.
        + 16 * 8 * 8  # Matrix product in a loop.
        + 8 * 2  # Dense.
    )

    def __init__(self):
        super().__init__()
        layers = tf.keras.layers
        self.dense = layers.Dense(8)
        self.grouped = layers.Conv2D(8, 3, groups=4, padding="same")
        self.separable = layers.SeparableConv2D(8, 3, padding="same")
        self.transposed = layers.Conv2DTranspose(8, 2, strides=2)
        self.norm = layers.BatchNormalization()
        self.drop = layers.Dropout(0.5)
        self.attention = layers.MultiHeadAttention(2, 4)
        self.inner = layers.Dense(8)
        self.head = layers.Dense(2, dtype="float32")

    @tf.function
    def mix(self, x):
        return self.inner(x)

    def call(self, images, *, training):
        x = self.transposed(self.separable(self.grouped(self.dense(images))))
        x = self.drop(self.norm(x, training=training), training=training)
        x = tf.reshape(tf.nn.avg_pool2d(x, 4, 4, "SAME"), (-1, 16, 8))
        x = self.attention(x, x)
        _, x = tf.while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, self.mix(x)), (0, x))
        return self.head(tf.reduce_mean(x, axis=1))


def test_multiply_adds_and_fingerprint_of_keras_layers():
    net = built(KerasLayers())
    summary = trace(net, SHAPE)
    assert summary.rows[0].flops == net.by_hand
    assert summary.fingerprint == fingerprint(KerasLayers())


# The fingerprint.


@pytest.fixture(scope="module")
def small_fingerprint():
    return fingerprint(Small())


def test_names_order_and_unused_operations_do_not_matter(small_fingerprint):
    assert re.fullmatch("[0-9a-f]{12}", small_fingerprint)
    assert fingerprint(Renamed()) == fingerprint(Small()) == small_fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"kernel_size": 1},
        {"kernel_size": (1, 9)},
        {"strides": 2},
        {"relu": False},
        {"momentum": 0.99},
        {"epsilon": 1e-3},
        {"rate": 0.4},
        {"auxiliary_pool": tf.nn.max_pool2d},
        {"pool_first": True},
        {"shift": 1.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_change_of_what_is_computed_changes_the_fingerprint(change, small_fingerprint):
    assert fingerprint(Small(**change)) != small_fingerprint


@pytest.mark.parametrize("shape", [(8, 10, 3), (8, 8, 1)])
def test_another_shape_changes_the_fingerprint(shape, small_fingerprint):
    assert fingerprint(Small(), shape) != small_fingerprint


def test_other_connections_change_the_fingerprint():
    class Difference(Net):
        def __init__(self, sign):
            super().__init__()
            self.sign = sign
            self.head = Head(2)

        def call(self, images, *, training):
            other = tf.nn.relu(images)
            x = images - other if self.sign > 0 else other - images
            return self.head(x, training=training)

    assert fingerprint(Difference(1)) != fingerprint(Difference(-1))


def test_shared_weights_change_the_fingerprint():
    class Twice(Net):
        def __init__(self, shared):
            super().__init__()
            self.first = tf.keras.layers.Dense(3)
            self.second = tf.keras.layers.Dense(3)
            self.head = Head(2)
            self.stage_names = ("first", "first" if shared else "second", "head")

    assert fingerprint(Twice(shared=True)) != fingerprint(Twice(shared=False))


def test_a_change_inside_a_function_changes_the_fingerprint():
    class Inside(Net):
        def __init__(self, factor):
            super().__init__()
            self.scale = tf.function(lambda x: x * factor)
            self.head = Head(2)

        def call(self, images, *, training):
            return self.head(self.scale(images), training=training)

    assert fingerprint(Inside(2.0)) == fingerprint(Inside(2.0))
    assert fingerprint(Inside(3.0)) != fingerprint(Inside(2.0))


@pytest.mark.parametrize(
    ("policy", "synchronized"),
    [
        ("float32", False),
        pytest.param("float32", True, marks=pytest.mark.slow),
        pytest.param("mixed_bfloat16", True, marks=pytest.mark.slow),
        pytest.param("mixed_float16", False, marks=pytest.mark.slow),
    ],
)
def test_replicas_do_not_matter(policy, synchronized, one_replica, two_replicas):
    """Also with assigned moving statistics, and inside and outside a strategy's scope."""
    tf.keras.config.set_dtype_policy(policy)

    def make():
        net = Small()
        net.sync_batch_norm = synchronized
        return built(net)

    expected = trace(make(), SHAPE)
    for strategy in (one_replica, two_replicas):
        with strategy.scope():
            net = make()
            before = [v.numpy() for v in net.variables]
            assert trace(net, SHAPE) == expected
        assert trace(net, SHAPE) == expected
        for variable, old in zip(net.variables, before, strict=True):
            np.testing.assert_array_equal(variable.numpy(), old)
    assert net(images(2, 8, 3), training=False).shape == (2, 2)


def test_a_layer_may_ask_for_its_replica(two_replicas):
    class Mean(Net):
        def __init__(self):
            super().__init__()
            self.head = Head(2)

        def call(self, images, *, training):
            x = self.head(images, training=training)
            if training:
                x = tf.distribute.get_replica_context().all_reduce("MEAN", x)
            return x

    with two_replicas.scope():
        net = built(Mean())
        assert trace(net, SHAPE).rows[0].output_shape == (2,)


class Custom(Net):
    """A net that overrides `call`, with what it returns in training."""

    def __init__(self, returned):
        super().__init__()
        self.head, self.returned = Head(2), returned

    def call(self, images, *, training):
        logits = self.head(images, training=training)
        return self.returned(logits) if training else logits


def problem(net):
    return trace(net, SHAPE).problem


def test_outputs_without_a_weight_are_a_problem():
    net = built(Custom(lambda logits: (logits, 2 * logits)))
    assert re.search("returns 2 outputs in training, .* auxiliary_weight", problem(net))
    net.auxiliary_weight = 0.3
    assert problem(net) == ""


@tf.function
def noise(shape):
    return tf.random.normal(shape)


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw",
    [
        tf.random.uniform,
        tf.random.normal,
        tf.random.truncated_normal,
        noise,
        tf.keras.random.normal,
        lambda shape: tf.random.shuffle(tf.ones(shape)),
        lambda shape: tf.random.get_global_generator().uniform(shape),
    ],
    ids=["uniform", "normal", "truncated", "in a function", "Keras", "shuffle", "generator"],
)
def test_random_numbers_that_a_resume_would_not_repeat_are_a_problem(draw):
    tf.keras.backend.clear_session()  # As of a new process, in which Keras has drawn nothing yet.
    net = built(Custom(lambda logits: logits + draw(tf.shape(logits))))
    assert re.search("draws random numbers .* nets.dropout.uniform", problem(net))


def test_random_numbers_of_the_pass_are_accepted():
    assert problem(built(Custom(lambda x: x + uniform(tf.shape(x))))) == ""


class Hidden(Custom):
    """A net with a variable that it does not hold."""

    variable = None

    def call(self, images, *, training):
        return super().call(images, training=training) + self.variable


def test_variables_that_the_net_does_not_hold_are_a_problem():
    Hidden.variable = tf.Variable(1.0)
    assert "variables that no checkpoint would hold" in problem(built(Hidden(lambda x: x)))


class Dense(tf.keras.layers.Dense):
    def call(self, x, *, training):
        return super().call(tf.reduce_mean(x, axis=(1, 2)))


class Adds(Dense):
    def call(self, x, *, training):
        if training:
            self.add_loss(tf.reduce_mean(x))
        return super().call(x, training=training)


class OneStage(Net):
    def __init__(self, head):
        super().__init__()
        self.head, self.stage_names = head, ("head",)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (lambda: Dense(2, kernel_regularizer="l2"), "has regularizers or calls add_loss"),
        (lambda: Dense(2, activity_regularizer="l2"), "has regularizers or calls add_loss"),
        (lambda: Adds(2), "would be ignored; use --weight_decay, or compute the term"),
        (lambda: Dense(2, kernel_constraint="max_norm"), "has constraints of weights"),
    ],
)
def test_what_training_would_ignore_is_a_problem(head, message):
    assert message in problem(built(OneStage(head())))


def test_layers_of_keras_are_no_problem():
    assert problem(built(OneStage(Dense(2)))) == ""
    assert problem(built(Small())) == ""


def test_a_net_without_variables_is_an_error():
    with pytest.raises(ValueError, match="call the net on images first"):
        trace(Small(), SHAPE)


def test_one_stage_net():
    class One(Net):
        def __init__(self):
            super().__init__()
            self.head = Chain([SmallStem(2), Head(2)])
            self.stage_names = ("head",)

    (row,) = trace(built(One()), SHAPE).rows
    assert (row.name, row.trainable) == ("head", 9 * 3 * 2 + 4 + 6)
