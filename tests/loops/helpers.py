"""Small nets and data for the tests of the loops."""

import contextlib
import resource

import numpy as np
import tensorflow as tf

from loops.inputs import iterate
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
    """As `Linear`, with a BatchNorm as the nets have it, written again so that rooms stay apart."""

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
    """As `Linear`, on images that are multiplied by random numbers in training.

    They are drawn as the nets' dropout draws them: for the global batch, of which a replica then
    takes its rows.
    """

    def __call__(self, images, *, training, seed=None, rows=None):
        if training:
            first, total = rows
            numbers = tf.random.stateless_uniform((total, 4), seed, alg="philox")
            images *= numbers[first : first + tf.shape(images)[0]]
        return super().__call__(images, training=training)


def make_state(
    strategy,
    net=Linear,
    optimizer="sgd",
    rate=0.1,
    ema=False,
    loss_scale=False,
    lookahead=False,
    **kw,
):
    """A state with fixed weights for images [n, 4] and three classes."""
    tf.keras.utils.set_random_seed(1)

    def build():
        built = net()
        built(tf.zeros((1, 4)), training=False)
        return built

    with strategy.scope():
        first = build()
        second = build() if ema else None
        return TrainState(
            first,
            make_optimizer(optimizer, first, schedule(rate), **kw),
            ema_net=second,
            loss_scale=loss_scale,
            lookahead=lookahead,
        )


def schedule(rate):
    """A constant learning rate, unless it is a schedule already."""
    return rate if callable(rate) else LearningRate("constant", peak=rate, total_steps=100)


def examples(size=8, seed=0):
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(size, 4)).astype(np.float32)
    return images, generator.integers(0, 3, size).astype(np.int32)


def take_steps(strategy, state, batches, step=None, *, compile_update=None, **settings):
    """Makes an update for each global batch, and returns the TrainStep, which is traced by then."""
    size = len(batches[0][0])
    if step is None:
        settings = StepSettings(global_batch_size=size, **settings)
        step = TrainStep(strategy, state, settings, schedule(0.1), compile_update=compile_update)
    replicas = strategy.num_replicas_in_sync
    rows = rows_by_replica(size, step.settings.accumulation, replicas)
    images, labels = (
        np.concatenate([x[rows] for x in part]) for part in zip(*batches, strict=True)
    )
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    dataset = dataset.batch(size // replicas, drop_remainder=True)
    iterator = iterate(strategy, dataset)
    step.run(iterator, tf.constant(len(batches)))
    return step


def rows_by_replica(size, microbatches, replicas):
    """Rows of a batch, replica by replica: each has its share of every microbatch."""
    rows = np.arange(size).reshape(microbatches, replicas, -1)
    return np.concatenate([rows[:, replica].reshape(-1) for replica in range(replicas)])


class Fault(ValueError):
    """What a pipeline finds wrong with a batch."""


class Batches:
    """Training batches that are a function of their number, on `replicas` replicas.

    Args:
        replicas: number of replicas.
        size: examples in a global batch.
        spoil: numbers of batches with an image that is NaN.
        fail: numbers of batches that cannot be made.
        faults: numbers of batches in which `find_fault` finds one; `fail` by default.

    Attributes:
        calls: the arguments of `batches`.
        asked: the arguments of `find_fault`.
    """

    def __init__(self, replicas=1, *, size=8, spoil=(), fail=(), faults=None):
        self.replicas, self.size = replicas, size
        self.spoil, self.fail = set(spoil), set(fail)
        self.faults = self.fail if faults is None else set(faults)
        self.calls, self.asked = [], []

    def batches(self, start_step, stop_step=None):
        self.calls.append((start_step, stop_step))
        # As good as without an end.
        numbers = range(start_step, start_step + 64 if stop_step is None else stop_step)
        images, labels = map(np.stack, zip(*map(self._batch, numbers), strict=True))
        fails = np.repeat([number in self.fail for number in numbers], self.size)
        images, labels = images.reshape(-1, 4), labels.reshape(-1)
        dataset = tf.data.Dataset.from_tensor_slices((images, labels, fails))
        return _failing(dataset.batch(self.size // self.replicas))

    def _batch(self, number):
        images, labels = examples(self.size, seed=100 + number)
        if number in self.spoil:
            images[0] = np.nan
        return images, labels

    def find_fault(self, step):
        self.asked.append(step)
        return Fault(f"batch {step}") if step in self.faults else None


class Split:
    """A split to evaluate on, the last batch filled up and masked, as the pipeline does it.

    Args:
        images, labels: the examples.
        replicas: number of replicas.
        batch: examples in a global batch.
        fail: numbers of batches that cannot be made.
        size: the number of examples that it claims.
    """

    def __init__(self, images, labels, replicas=1, *, batch=8, fail=(), size=None):
        self.size = len(images) if size is None else size
        self.num_batches = -(-len(images) // batch)
        self.asked = []
        filled = (self.num_batches + 1) * batch  # One is left over.
        order = np.minimum(np.arange(filled), len(images) - 1)
        mask = (np.arange(filled) < len(images)).astype(np.float32)
        # Nobody needs the one behind the last.
        fails = np.isin(np.arange(filled) // batch, [*fail, self.num_batches])
        self._fail = set(fail)
        dataset = tf.data.Dataset.from_tensor_slices((images[order], labels[order], mask, fails))
        self._dataset = _failing(dataset.batch(batch // replicas))

    def batches(self):
        return self._dataset

    def prepare(self, images):
        return images

    def find_fault(self, batch):
        self.asked.append(batch)
        return Fault(f"batch {batch}") if batch in self._fail else None


def _failing(dataset):
    """Without the last component, where the dataset fails if it is True."""

    def check(*element):
        *element, fails = element
        with tf.control_dependencies([tf.debugging.Assert(~tf.reduce_any(fails), ["bad bytes"])]):
            return tuple(map(tf.identity, element))

    # As the pipelines of `data` do: an iterator that is deleted can wait for the thread.
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = dataset.map(check, num_parallel_calls=2, deterministic=True)
    return dataset.prefetch(2).with_options(options)


def draws_by_hand(seed, step, total, jit=False):
    """What a `Drawing` multiplies the images of a step by; XLA has a generator of its own."""

    @tf.function(jit_compile=jit)
    def draw():
        run_seed = tf.constant([seed, 1], tf.int64)
        key = tf.random.experimental.stateless_fold_in(run_seed, tf.constant(step, tf.int64))
        return tf.random.stateless_uniform((total, 4), key, alg="philox")

    return draw().numpy()


def weights(layer):
    return [v.numpy().copy() for v in layer.variables]


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def gradients_by_hand(net, images, labels, smoothing=0.0):
    """Gradients of the mean cross-entropy of a `Linear` net: kernel, bias."""
    kernel, bias = net.dense.get_weights()
    target = np.eye(3)[labels] * (1 - smoothing) + smoothing / 3
    error = (softmax(images @ kernel + bias) - target) / len(images)
    return [images.T @ error, error.sum(0)]


def calibration_by_hand(probabilities, labels, bins=15):
    """The expected calibration error as Guo et al. 2017 write it, bin by bin."""
    confidence, predicted = probabilities.max(-1), probabilities.argmax(-1)
    error = 0.0
    for b in range(bins):
        inside = (confidence >= b / bins) & (confidence < (b + 1) / bins)
        if b == bins - 1:
            inside |= confidence == 1
        if inside.any():
            accuracy = np.mean(predicted[inside] == labels[inside])
            gap = abs(accuracy - confidence[inside].mean())
            error += inside.mean() * gap
    return error


def assert_close(found, expected, **kwargs):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 1e-5, "atol": 1e-6, **kwargs})


@contextlib.contextmanager
def full_disk(size=100):
    """Makes every write beyond a file's first bytes fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
