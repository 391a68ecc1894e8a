"""Metrics: functions of labels and logits that return a value per example.

To add a metric, write such a function and add a `Metric` to `METRICS`. It then appears in training
rows, evaluations, `result.json`, TensorBoard and the terminal, and `--best_metric=NAME` can choose
the best checkpoint by it. The loss is a figure beside them, and is always there.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from loops.tracing import with_autograph


@dataclasses.dataclass(frozen=True)
class Metric:
    """A figure of a split: a function of the mean, over the examples, of a value per example.

    Attributes:
        values: function of labels, int32 [n], and logits, float32 [n, classes], to float32 [n], or
            [n, size] if `size` is not 1.
        label: short name, for the terminal.
        format: format specification, for the terminal.
        higher_is_better: whether a higher figure is better.
        size: number of values per example.
        summary: function of the mean, float64 [size], to the figure. Default: the mean itself,
            which needs a size of 1.
    """

    values: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    label: str
    format: str = ".2%"
    higher_is_better: bool = True
    size: int = 1
    summary: Callable[[np.ndarray], float] | None = None

    def __post_init__(self):
        if self.summary is None and self.size > 1:
            raise ValueError(f"a metric of size {self.size} needs a summary")


def top_k_correct(labels: tf.Tensor, logits: tf.Tensor, k: int) -> tf.Tensor:
    """Whether the label is among the k highest logits, float32 [n], 0 or 1.

    Of equal logits the first class counts as higher, as for argmax; NaN is never correct.
    (`tf.math.in_top_k` accepts every class if all logits are equal.)

    Args:
        labels: int32 [n].
        logits: float32 [n, classes].
        k: at least 1; with k or fewer classes every finite prediction is correct.
    """
    classes = logits.shape[-1]
    own = tf.gather(logits, labels[:, None], batch_dims=1)
    later = tf.range(classes) > labels[:, None]
    lower = (logits < own) | ((logits == own) & later)
    rank = classes - 1 - tf.reduce_sum(tf.cast(lower, tf.int32), axis=-1)
    return tf.cast((rank < k) & tf.math.is_finite(own[:, 0]), tf.float32)


def calibration_gaps(labels: tf.Tensor, logits: tf.Tensor, bins: int) -> tf.Tensor:
    """Correctness minus confidence, in the confidence's bin, float32 [n, bins].

    The mean over the examples is the gap of each bin weighted by its share of the examples, so the
    sum of its absolute values is the expected calibration error (Guo et al. 2017, equation 3).

    Args:
        labels: int32 [n].
        logits: float32 [n, classes].
        bins: number of equal bins of confidence, the highest softmax probability.
    """
    confidence = tf.reduce_max(tf.nn.softmax(logits), axis=-1)
    place = tf.minimum(tf.cast(confidence * bins, tf.int32), bins - 1)
    gap = top_k_correct(labels, logits, k=1) - confidence
    return tf.one_hot(place, bins) * gap[:, None]


_CALIBRATION_BINS = 15  # Guo et al. 2017, section 5.

METRICS: dict[str, Metric] = {
    "top_1_accuracy": Metric(functools.partial(top_k_correct, k=1), "top-1"),
    "top_5_accuracy": Metric(functools.partial(top_k_correct, k=5), "top-5"),
    "expected_calibration_error": Metric(
        functools.partial(calibration_gaps, bins=_CALIBRATION_BINS),
        "ECE",
        format=".4f",
        higher_is_better=False,
        size=_CALIBRATION_BINS,
        summary=lambda mean: float(np.abs(mean).sum()),
    ),
}


def metric_labels() -> dict[str, tuple[str, str]]:
    """Label and format of every metric, by name."""
    return {name: (metric.label, metric.format) for name, metric in METRICS.items()}


def figures() -> dict[str, tuple[str, str]]:
    """Label and format of every figure of a split, the loss first, by name."""
    return {"loss": ("loss", ".4f"), **metric_labels()}


def higher_is_better(name: str) -> bool:
    """Whether a higher value of a figure is better.

    Raises:
        ValueError: there is no such figure.
    """
    if name == "loss":
        return False
    if name not in METRICS:
        known = ", ".join(["loss", *METRICS])
        raise ValueError(f"unknown metric {name!r}; known metrics: {known}")
    return METRICS[name].higher_is_better


def values_per_example(labels: tf.Tensor, logits: tf.Tensor) -> dict[str, tf.Tensor]:
    """The values of every metric, float32 [n, size], by name.

    Args:
        labels: int32 [n], or float32 [n, classes], of which the largest counts.
        logits: float32 [n, classes].
    """
    if labels.shape.rank == 2:
        labels = tf.argmax(labels, axis=-1, output_type=tf.int32)
    return {name: _columns(name, metric, labels, logits) for name, metric in METRICS.items()}


def _columns(name: str, metric: Metric, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The values of a metric, float32 [n, size].

    Raises:
        ValueError: they are of another shape.
    """
    values = tf.cast(with_autograph(metric.values)(labels, logits), tf.float32)
    shape = values.shape
    columns = values[:, None] if shape.rank == 1 else values
    if columns.shape.rank != 2 or not columns.shape.is_compatible_with(
        (labels.shape[0], metric.size)
    ):
        wanted = "[n]" if metric.size == 1 else f"[n, {metric.size}]"
        raise ValueError(f"metric {name} must return a value per example, {wanted}, not {shape}")
    return columns


def summarize(means: dict[str, np.ndarray]) -> dict[str, float]:
    """The figures, from the means over the examples, [size] each."""
    figures = {}
    for name, mean in means.items():
        summary = METRICS[name].summary
        figures[name] = float(np.asarray(mean)[0] if summary is None else summary(np.asarray(mean)))
    return figures
