"""Small nets and data for the tests of the loops."""

import contextlib
import resource

import numpy as np
import tensorflow as tf

from loops.optimizer import make_optimizer
from loops.schedule import LearningRate
from loops.state import TrainState
from loops.step import StepSettings, TrainStep


class Linear(tf.keras.layers.Layer):
    """One dense layer: every figure can be worked out by hand."""

    def __init__(self, classes=3):
        super().__init__()
        self.dense = tf.keras.layers.Dense(classes, dtype="float32")

    def call(self, images, *, training):
        del training
        return self.dense(tf.reshape(images, (tf.shape(images)[0], images.shape[1])))


class Statistics(tf.keras.layers.Layer):
    """As `Linear`, with a BatchNorm as the nets have it, written anew so that rooms stay apart."""

    def __init__(self, classes=3):
        super().__init__()
        self.dense = tf.keras.layers.Dense(classes, dtype="float32")

    def build(self, input_shape):
        self.moving_mean = tf.keras.Variable(
            "zeros",
            shape=(input_shape[-1],),
            trainable=False,
            aggregation="mean",
            synchronization="on_read",
            name="moving_mean",
        )

    def call(self, images, *, training):
        mean = tf.reduce_mean(images, axis=0)
        if training:
            self.moving_mean.assign(0.5 * self.moving_mean.value + 0.5 * mean)
        else:
            mean = self.moving_mean.value
        return self.dense(images - mean)


class TwoHeads(Linear):
    """As `Linear`, with an auxiliary head on the same images."""

    def __init__(self, classes=3):
        super().__init__(classes)
        self.other = tf.keras.layers.Dense(classes, dtype="float32")

    def call(self, images, *, training):
        logits, others = super().call(images, training=training), self.other(images)
        return (logits, others) if training else logits


class Drawing(Linear):
    """As `Linear`, on images that are multiplied with random numbers in training."""

    def __call__(self, images, *, training, seed=None, rows=None):
        if training:
            first, total = rows
            numbers = tf.random.stateless_uniform((total, 4), seed)
            images *= numbers[first : first + tf.shape(images)[0]]
        return super().__call__(images, training=training)


def make_state(strategy, net=Linear, optimizer="sgd", rate=0.1, ema=False, loss_scale=False, **kw):
    """A state with fixed weights for images [n, 4] and three classes."""
    tf.keras.utils.set_random_seed(1)
    schedule = rate if callable(rate) else LearningRate("constant", peak=rate, total_steps=100)

    def build():
        built = net()
        built(tf.zeros((1, 4)), training=False)
        return built

    with strategy.scope():
        first = build()
        second = build() if ema else None
        return TrainState(
            first,
            make_optimizer(optimizer, first, schedule, **kw),
            ema_net=second,
            loss_scale=loss_scale,
        )


def examples(size=8, seed=0):
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(size, 4)).astype(np.float32)
    return images, generator.integers(0, 3, size).astype(np.int32)


def take_steps(strategy, state, batches, **settings):
    """Makes an update for each global batch."""
    size = len(batches[0][0])
    step = TrainStep(strategy, state, StepSettings(global_batch_size=size, **settings))
    replicas = strategy.num_replicas_in_sync
    rows = shares(size, settings.get("accumulation", 1), replicas)
    images, labels = (
        np.concatenate([x[rows] for x in part]) for part in zip(*batches, strict=True)
    )
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    dataset = dataset.batch(size // replicas, drop_remainder=True)
    iterator = iter(strategy.distribute_datasets_from_function(lambda _: dataset))
    step.run(iterator, tf.constant(len(batches)))
    return step


def shares(size, parts, replicas):
    """Rows of a batch, replica by replica: each has its share of every part."""
    rows = np.arange(size).reshape(parts, replicas, -1)
    return np.concatenate([rows[:, replica].reshape(-1) for replica in range(replicas)])


def draws_by_hand(seed, step, total):
    """What a `Drawing` multiplies the images of a step with."""
    key = tf.random.experimental.stateless_fold_in(
        tf.constant([seed, 1], tf.int64), tf.constant(step, tf.int64)
    )
    return tf.random.stateless_uniform((total, 4), key).numpy()


def weights(layer):
    return [v.numpy().copy() for v in layer.variables]


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gradients_by_hand(net, images, labels, smoothing=0.0):
    """Gradients of the mean cross-entropy of a `Linear` net: kernel, bias."""
    kernel, bias = net.dense.get_weights()
    target = np.eye(3)[labels] * (1 - smoothing) + smoothing / 3
    error = (softmax(images @ kernel + bias) - target) / len(images)
    return [images.T @ error, error.sum(0)]


@contextlib.contextmanager
def full_disk(size=100):
    """Makes every write beyond a file's first bytes fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
