"""Loss and accuracy of a batch, example by example."""

import tensorflow as tf


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor, smoothing: float = 0.0) -> tf.Tensor:
    """Cross-entropy of each example, float32 [n], in nats.

    Args:
        labels: int32 [n], or float32 [n, classes] that sum to 1.
        logits: float32 [n, classes].
        smoothing: share of the label that is spread over all classes (Szegedy et al. 2015,
            section 7).
    """
    classes = logits.shape[-1]
    if labels.shape.rank == 1:
        labels = tf.one_hot(labels, classes)
    labels = labels * (1 - smoothing) + smoothing / classes
    return tf.nn.softmax_cross_entropy_with_logits(labels, logits)


def top_k_correct(labels: tf.Tensor, logits: tf.Tensor, k: int) -> tf.Tensor:
    """Whether the label is among the k highest logits of each example, float32 [n], 0 or 1.

    Of equal logits the first class is the higher, as for argmax; a NaN is never right.
    (TensorFlow's in_top_k calls a net right at every class if its logits are all equal.)

    Args:
        labels: int32 [n], or float32 [n, classes], where the largest counts.
        logits: float32 [n, classes].
        k: at least 1; with k or fewer classes every finite answer is right.
    """
    if labels.shape.rank == 2:
        labels = tf.argmax(labels, axis=-1, output_type=tf.int32)
    classes = logits.shape[-1]
    own = tf.gather(logits, labels[:, None], batch_dims=1)
    later = tf.range(classes) > labels[:, None]
    behind = (logits < own) | ((logits == own) & later)
    rank = classes - 1 - tf.reduce_sum(tf.cast(behind, tf.int32), axis=-1)
    right = (rank < k) & tf.math.is_finite(own[:, 0])
    return tf.cast(right, tf.float32)
