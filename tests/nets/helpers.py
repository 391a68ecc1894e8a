"""Images, gradients and layers for the tests of nets."""

import math

import numpy as np
import tensorflow as tf


def images(batch, size, channels, seed=0):
    """Normally distributed images."""
    values = np.random.default_rng(seed).normal(size=(batch, size, size, channels))
    return tf.constant(values, tf.float32)


def count(variables):
    return sum(math.prod(v.shape) for v in variables)


def layers(root, kind):
    """The layers of a class inside a layer, itself included."""
    return [x for x in tf.train.TrackableView(root).descendants() if isinstance(x, kind)]


def gradients(net, x, seed=(0, 1)):
    """The outputs of a net in training, as a list, and the gradient of each trainable variable."""
    with tf.GradientTape() as tape:
        outputs = tf.nest.flatten(net(x, training=True, seed=seed))
        loss = sum(tf.reduce_sum(tf.nn.log_softmax(logits)[:, 0]) for logits in outputs)
    return outputs, tape.gradient(loss, [v.value for v in net.trainable_variables])
