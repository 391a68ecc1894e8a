"""Training losses: functions of targets and logits that return a value per example.

To add a loss, write such a function and add it to `LOSSES`; `--loss=NAME` selects it.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from loops.tracing import with_autograph


def soft_targets(labels: tf.Tensor, num_classes: int, smoothing: float = 0.0) -> tf.Tensor:
    """Labels as target distributions, float32 [n, num_classes].

    Args:
        labels: int32 [n], or float32 [n, num_classes] that sum to 1.
        num_classes: number of classes.
        smoothing: label smoothing in [0, 1), the share that is spread evenly over all classes
            (Szegedy et al. 2015, section 7).
    """
    if labels.shape.rank == 1:
        labels = tf.one_hot(labels, num_classes)
    return labels * (1 - smoothing) + smoothing / num_classes


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> tuple[float, ...]:
    """A weight for each class, n / (classes * n_class), 0 for a class without examples.

    n and `classes` count the examples and the classes that have any, so that the mean weight of an
    example is 1 and all classes have the same weight in total (King & Zeng 2001, section 4.2).

    Args:
        labels: integers [n].
        num_classes: number of classes.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return tuple(np.where(counts > 0, weights, 0.0).tolist())


def example_weights(labels: tf.Tensor, class_weights: Sequence[float]) -> tf.Tensor:
    """The weights of examples, float32 [n]; those of mixed examples are mixed likewise.

    Args:
        labels: int32 [n], or float32 [n, num_classes] that sum to 1.
        class_weights: a weight for each class.
    """
    weights = tf.constant(class_weights, tf.float32)
    return tf.linalg.matvec(soft_targets(labels, len(class_weights)), weights)


def cross_entropy(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Softmax cross-entropy in nats, float32 [n].

    Args:
        targets: float32 [n, classes] that sum to 1.
        logits: float32 [n, classes].
    """
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)


def binary_cross_entropy(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Sigmoid cross-entropy of each class on its own, summed over the classes, in nats.

    Wightman et al. 2021, "ResNet strikes back", section 3.2. The sum (Beyer et al. 2020, section
    3.1) gives each logit a gradient on the scale of the softmax loss; implementations that take the
    mean over the classes need a learning rate that is higher by the number of classes.

    Args:
        targets: float32 [n, classes] in [0, 1].
        logits: float32 [n, classes].
    """
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(targets, logits), axis=-1)


def focal(targets: tf.Tensor, logits: tf.Tensor, gamma: float) -> tf.Tensor:
    """Softmax cross-entropy whose terms are weighted by (1 - p) ** gamma, in nats.

    Lin et al. 2017, equation 4, with softmax probabilities and without class weights.

    Args:
        targets: float32 [n, classes] that sum to 1.
        logits: float32 [n, classes].
        gamma: focusing parameter, at least 0; 0 gives `cross_entropy`, 2 is the paper's.
    """
    log_p = tf.nn.log_softmax(logits)
    # Not 0, where the gradient of a power below 1 is not finite.
    rest = tf.maximum(1 - tf.exp(log_p), 1e-7)
    return -tf.reduce_sum(targets * rest**gamma * log_p, axis=-1)


LOSSES: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "focal": functools.partial(focal, gamma=2.0),
}


def losses_per_example(name: str, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The loss of each example, float32 [n].

    Args:
        name: a key of `LOSSES`.
        targets: float32 [n, classes].
        logits: float32 [n, classes].

    Raises:
        ValueError: the function of that name returns another shape.
    """
    losses = with_autograph(LOSSES[name])(targets, logits)
    if losses.shape.rank != 1 or not losses.shape.is_compatible_with(targets.shape[:1]):
        raise ValueError(f"loss {name} must return a value per example, [n], not {losses.shape}")
    return losses
