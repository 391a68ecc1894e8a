"""Changes of color that replace each value by another: tables, made for each image.

A table is float32 [batch, channels or 1, 256] with the whole numbers that replace 0 to 255. The
formulas are those of Pillow's ImageOps and ImageEnhance. Images are uint8 [batch, height, width,
channels].

On GPUs, TensorFlow has no tf.gather of uint8, does arithmetic with int32 on the host, and has no
deterministic tf.math.bincount; there are float32, int64 and tf.math.unsorted_segment_sum.
"""

import numpy as np
import tensorflow as tf

LEVELS = 256
_VALUES = np.arange(LEVELS, dtype=np.float32)


def places(images: tf.Tensor) -> tf.Tensor:
    """Where the values of images are in tables [batch, channels, 256], int64, counted through."""
    batch, channels = tf.shape(images, tf.int64)[0], images.shape[-1]
    first = LEVELS * tf.reshape(tf.range(batch * channels), (-1, 1, 1, channels))
    return tf.cast(images, tf.int64) + first


def histograms(images: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """How often each value is in each channel, float32 [batch, channels, 256]."""
    batch, channels = tf.shape(images, tf.int64)[0], images.shape[-1]
    ones = tf.ones(tf.shape(images))
    counts = tf.math.unsorted_segment_sum(ones, places, batch * channels * LEVELS)
    return tf.reshape(counts, (-1, channels, LEVELS))


def look_up(tables: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """The values in tables, float32 [batch, channels, 256], at `places`."""
    return tf.gather(tf.reshape(tables, (-1,)), places)


def blended(others: tf.Tensor | float, factors: tf.Tensor) -> tf.Tensor:
    """As `data.color.blend`, rounded down. `others` and `factors` are float32 [batch]."""
    others = tf.zeros_like(factors) + others
    mixed = others[:, None] + factors[:, None] * (_VALUES - others[:, None])
    return tf.floor(tf.clip_by_value(mixed, 0.0, LEVELS - 1.0))[:, None]


def posterized(bits: tf.Tensor) -> tf.Tensor:
    """All but the highest bits of each value set to 0; `bits` are float32 [batch], from 1 to 8."""
    step = (2.0 ** (8 - bits))[:, None]
    return (tf.floor(_VALUES / step) * step)[:, None]


def solarized(thresholds: tf.Tensor) -> tf.Tensor:
    """Values from a threshold on, float32 [batch], inverted."""
    inverted = LEVELS - 1 - _VALUES
    return tf.where(thresholds[:, None] <= _VALUES, inverted, _VALUES)[:, None]


def autocontrasted(counts: tf.Tensor) -> tf.Tensor:
    """The values of each channel stretched from 0 to 255.

    Args:
        counts: the histograms.
    """
    there = counts > 0
    lowest = tf.reduce_min(tf.where(there, _VALUES, LEVELS - 1.0), axis=-1, keepdims=True)
    highest = tf.reduce_max(tf.where(there, _VALUES, 0.0), axis=-1, keepdims=True)
    span = highest - lowest
    # Half a unit makes up for rounding: a quotient is never as close below a whole number.
    scaled = tf.floor(((LEVELS - 1) * (_VALUES - lowest) + 0.5) / tf.maximum(span, 1.0))
    return tf.where(span > 0, tf.clip_by_value(scaled, 0.0, LEVELS - 1.0), _VALUES)


def equalized(counts: tf.Tensor) -> tf.Tensor:
    """The values of each channel replaced so that all are about equally frequent.

    Args:
        counts: the histograms.
    """
    below = tf.cumsum(counts, axis=-1, exclusive=True)
    highest = tf.reduce_max(tf.where(counts > 0, _VALUES, 0.0), axis=-1, keepdims=True)
    # The pixels below the highest value are shared out among 255 steps.
    all_below = tf.reduce_sum(tf.where(highest == _VALUES, below, 0.0), axis=-1, keepdims=True)
    step = tf.floor(all_below / (LEVELS - 1))
    shared = tf.floor((tf.floor(step / 2) + below + 0.5) / tf.maximum(step, 1.0))
    return tf.where(step > 0, tf.minimum(shared, LEVELS - 1.0), _VALUES)
