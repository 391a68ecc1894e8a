"""Keras' part of the comparison: `compile`, `fit` and `evaluate` of plain layers."""

import itertools
import pathlib

import numpy as np
import tensorflow as tf

from benchmarks.speed import examples
from benchmarks.speed.job import LEARNING_RATE, MEAN, MOMENTUM, PADDING, STD, WEIGHT_DECAY, Job
from benchmarks.speed.keras_nets import Builder, multiply_adds, set_weights
from benchmarks.speed.nets import NETS
from benchmarks.speed.worker import Channel, Meter

STEPS_PER_EXECUTION = 4
# How a model is compiled, and whether images are augmented by the batch, by variant. By default,
# Keras compiles a model with XLA.
VARIANTS = {
    "default": ({}, False),
    "no XLA": ({"jit_compile": False}, True),
    f"no XLA, {STEPS_PER_EXECUTION} steps a call": (
        {"jit_compile": False, "steps_per_execution": STEPS_PER_EXECUTION},
        True,
    ),
}


def _normalize(images, labels):
    return (tf.cast(images, tf.float32) / 255 - MEAN) / STD, labels


def _augment_one(image, label):
    """Crop and flip of an image, as in many tutorials."""
    shape = image.shape
    image = tf.pad(image, [[PADDING] * 2, [PADDING] * 2, [0, 0]], "REFLECT")
    image = tf.image.random_flip_left_right(tf.image.random_crop(image, shape))
    return _normalize(image, label)


def _augment_batch(images, labels):
    """The same for a batch, by gathering rows and columns."""
    count, size = tf.shape(images)[0], images.shape[1]

    def places():
        offsets = tf.random.uniform([count, 1], -PADDING, PADDING + 1, tf.int32)
        found = tf.abs(tf.range(size) + offsets)
        return tf.minimum(found, 2 * (size - 1) - found)

    columns = places()
    flips = tf.random.uniform([count, 1]) < 0.5
    columns = tf.where(flips, columns[:, ::-1], columns)
    images = tf.gather(images, places(), axis=1, batch_dims=1)
    return _normalize(tf.gather(images, columns, axis=2, batch_dims=1), labels)


def _batches(job: Job, batch_wise: bool) -> tf.data.Dataset:
    """An epoch of training batches."""
    images, labels = examples.read(job.directory)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(10_000)
    if batch_wise:
        dataset = dataset.batch(job.batch_size, drop_remainder=True)
        dataset = dataset.map(_augment_batch, tf.data.AUTOTUNE)
    else:
        dataset = dataset.map(_augment_one, tf.data.AUTOTUNE).batch(job.batch_size)
    return dataset.prefetch(tf.data.AUTOTUNE)


def _model(job: Job, **arguments) -> tf.keras.Model:
    """A compiled model."""
    tf.keras.config.set_dtype_policy(job.precision)
    description = NETS[job.net](job.image_size)
    strategy = tf.distribute.get_strategy()
    if job.replicas > 1:
        kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
        if kind == "CPU":
            (cpu,) = tf.config.list_physical_devices("CPU")
            devices = [tf.config.LogicalDeviceConfiguration()] * job.replicas
            tf.config.set_logical_device_configuration(cpu, devices)
        strategy = tf.distribute.MirroredStrategy([f"{kind}:{i}" for i in range(job.replicas)])
    with strategy.scope():
        model = Builder(description).model(job.image_size)
        # Its decay multiplies the weights, which costs less than one that is part of the loss.
        optimizer = tf.keras.optimizers.SGD(
            tf.keras.optimizers.schedules.CosineDecay(LEARNING_RATE, 1_000_000),
            momentum=MOMENTUM,
            nesterov=True,
            weight_decay=WEIGHT_DECAY,
        )
        optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
        model.compile(optimizer, _loss(description), metrics=["accuracy"], **arguments)
    return model


def _loss(description):
    """Cross-entropy of integer labels."""
    if not description.label_smoothing:
        return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    smooth = tf.keras.losses.CategoricalCrossentropy(True, description.label_smoothing)
    return lambda labels, logits: smooth(
        tf.one_hot(tf.cast(tf.reshape(labels, [-1]), tf.int32), logits.shape[-1]), logits
    )


class Turns(tf.keras.callbacks.Callback):
    """Divides training into windows, without what happens between epochs."""

    def __init__(self, meter: Meter):
        super().__init__()
        self._meter, self._before, self._batches = meter, 0, 0

    def on_train_batch_end(self, batch, logs=None):
        self._batches = batch + 1
        self._meter.at(self._before + self._batches)

    def on_epoch_begin(self, epoch, logs=None):
        self._before += self._batches
        self._meter.resume()

    def on_epoch_end(self, epoch, logs=None):
        self._meter.pause()


def train(job: Job, channel: Channel) -> None:
    """`fit`, at its default or in another way."""
    arguments, batch_wise = VARIANTS[job.variant]
    model = _model(job, **arguments)
    turns = Turns(Meter(channel, job.started, job.batch_size))
    verbose = "auto" if job.variant == "default" else 0
    model.fit(_batches(job, batch_wise), epochs=1_000_000, verbose=verbose, callbacks=[turns])


def evaluate(job: Job, channel: Channel) -> None:
    """`evaluate`, at its default or in another way."""
    model = _model(job, **VARIANTS[job.variant][0])
    images, labels = (x[: examples.TEST_EXAMPLES] for x in examples.read(job.directory))
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(job.batch_size)
    dataset = dataset.map(_normalize, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    batches = -(-len(labels) // job.batch_size)
    meter = Meter(channel, job.started, len(labels) / batches)
    for epoch in itertools.count():

        def at(batch, logs, epoch=epoch):
            meter.at(epoch * batches + batch + 1)

        turns = tf.keras.callbacks.LambdaCallback()
        turns.on_test_batch_end = at
        verbose = "auto" if job.variant == "default" else 0
        model.evaluate(dataset, verbose=verbose, callbacks=[turns])


def pipeline(job: Job, channel: Channel) -> None:
    """Training batches that nobody uses, augmented one by one or "by the batch"."""
    meter = Meter(channel, job.started, job.batch_size)
    for steps, _ in enumerate(_batches(job, job.variant != "default").repeat(), start=1):
        meter.at(steps)


def check(job: Job, channel: Channel) -> None:
    """What the net makes of the weights and the batch of `ours.check`."""
    directory = pathlib.Path(job.directory)
    weights, batch = np.load(directory / "weights.npz"), np.load(directory / "batch.npz")
    description = NETS[job.net](job.image_size)._replace(dropout=0.0)
    builder = Builder(description)
    model = builder.model(job.image_size)
    set_weights(builder.named, weights)
    evaluated = model(batch["images"], training=False)
    with tf.GradientTape() as tape:
        trained = model(batch["images"], training=True)
        loss = tf.reduce_mean(_loss(description)(batch["labels"], trained))
    gradients = tape.gradient(loss, model.trainable_variables)
    np.savez(
        directory / "keras.npz",
        evaluated=evaluated.numpy(),
        folded=evaluated.numpy(),  # Keras has no such thing.
        trained=trained.numpy(),
        loss=loss.numpy(),
        gradient_norm=tf.linalg.global_norm(gradients).numpy(),
        parameters=sum(v.numpy().size for v in model.trainable_variables),
        multiply_adds=multiply_adds(builder.named),
    )
    channel.send(done=True)


TASKS = {"train": train, "evaluate": evaluate, "pipeline": pipeline, "check": check}
