"""Scores of a net on a split."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from loops.errors import RunError
from loops.metrics import cross_entropy, top_k_correct


@dataclasses.dataclass(frozen=True)
class Scores:
    """What an evaluation found, each figure a mean over the examples of the split.

    Attributes:
        examples: number of examples.
        loss: cross-entropy in nats, without label smoothing.
        top_1_accuracy, top_5_accuracy: in [0, 1].
        class_accuracy: top-1 accuracy by class, [classes]; NaN where there is no example.
    """

    examples: int
    loss: float
    top_1_accuracy: float
    top_5_accuracy: float
    class_accuracy: np.ndarray

    def as_dict(self, class_names: Sequence[str]) -> dict:
        """For JSON: the figures, and `per_class` with the accuracy by name of class."""
        accuracies = [None if np.isnan(a) else float(a) for a in self.class_accuracy]
        return {
            "top_1_accuracy": self.top_1_accuracy,
            "top_5_accuracy": self.top_5_accuracy,
            "loss": self.loss,
            "examples": self.examples,
            "per_class": dict(zip(class_names, accuracies, strict=True)),
        }


class Evaluator:
    """Scores a net, as often as needed, on batches of one shape.

    Args:
        strategy: whose replicas share each batch.
        net: the net, built in the strategy's scope.
    """

    def __init__(self, strategy: tf.distribute.Strategy, net: tf.keras.layers.Layer):
        self._strategy = strategy
        self._net = net

    def scores(
        self,
        dataset: tf.data.Dataset,
        examples: int,
        *,
        after_batch: Callable[[], None] = lambda: None,
    ) -> Scores:
        """Scores on a dataset of (images, labels, mask), one element for each replica in turn.

        Args:
            dataset: images float32 [n, height, width, channels], labels int32 [n], and mask
                float32 [n], 1 where the example counts.
            examples: how many must count.
            after_batch: called after each batch; it may raise, to leave.

        Raises:
            RunError: another number of examples was seen.
        """
        batches = self._strategy.distribute_datasets_from_function(lambda _: dataset)
        sums = None
        for batch in batches:
            new = self._sums(*batch)
            sums = new if sums is None else [a + b for a, b in zip(sums, new, strict=True)]
            after_batch()
        loss, correct_5, class_correct, class_examples = (x.numpy() for x in sums)
        seen = round(class_examples.sum())
        if seen != examples:
            raise RunError(f"evaluated {seen} examples of a split of {examples}")
        with np.errstate(invalid="ignore"):
            class_accuracy = class_correct / class_examples
        return Scores(
            examples=seen,
            loss=float(loss / seen),
            top_1_accuracy=float(class_correct.sum() / seen),
            top_5_accuracy=float(correct_5 / seen),
            class_accuracy=class_accuracy,
        )

    @tf.function(reduce_retracing=True)
    def _sums(self, images, labels, mask):
        per_replica = self._strategy.run(self._replica_sums, args=(images, labels, mask))
        return [self._strategy.reduce("SUM", x, axis=None) for x in per_replica]

    def _replica_sums(self, images, labels, mask):
        logits = self._net(images, training=False)
        classes = logits.shape[-1]
        correct = top_k_correct(labels, logits, k=1) * mask
        sums = (
            # A row that fills up may be anything: it is left out, not multiplied by 0.
            tf.reduce_sum(tf.where(mask > 0, cross_entropy(labels, logits), 0.0)),
            tf.reduce_sum(top_k_correct(labels, logits, k=5) * mask),
            tf.math.unsorted_segment_sum(correct, labels, classes),
            tf.math.unsorted_segment_sum(mask, labels, classes),
        )
        return tuple(tf.cast(x, tf.float64) for x in sums)
