"""Scores of a net on a split."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from loops.inputs import EvalInput, iterate
from loops.losses import losses_per_example, soft_targets
from loops.metrics import summarize, top_k_correct, values_per_example


@dataclasses.dataclass(frozen=True)
class Scores:
    """The figures of an evaluation.

    Attributes:
        examples: number of examples.
        figures: the loss (without label smoothing) and every metric, by name.
        class_accuracy: top-1 accuracy by class, float64 [classes]; NaN where there is no example.
    """

    examples: int
    figures: dict[str, float]
    class_accuracy: np.ndarray

    def as_dict(self, class_names: Sequence[str]) -> dict:
        """For JSON: the figures, `examples`, and `per_class`, the accuracy by class name."""
        accuracies = [None if np.isnan(a) else float(a) for a in self.class_accuracy]
        per_class = dict(zip(class_names, accuracies, strict=True))
        return {**self.figures, "examples": self.examples, "per_class": per_class}


class Evaluator:
    """Scores a net, as often as needed, on batches of one shape.

    Args:
        strategy: whose replicas share each batch.
        net: the net, built in the strategy's scope.
        loss: a key of `loops.losses.LOSSES`.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        net: tf.keras.layers.Layer,
        loss: str = "cross_entropy",
    ):
        self._strategy = strategy
        self._net = net
        self._loss = functools.partial(losses_per_example, loss)

    def scores(self, split: EvalInput, *, after_batch: Callable[[], None] = lambda: None) -> Scores:
        """Scores the net on a split.

        Args:
            split: the examples.
            after_batch: called after each batch; it may raise, to leave.

        Raises:
            RuntimeError: another number of examples was seen.
            Exception: whatever `split.find_fault` gives, where a batch cannot be made.
        """
        dataset = split.batches()
        batches = iterate(self._strategy, dataset)
        sums, number = None, 0
        while True:
            try:
                batch = next(batches, None)
                new = None if batch is None else self._sums(*batch)
            except tf.errors.OpError as error:
                fault = split.find_fault(number)
                if fault is None:
                    raise
                raise fault from error
            if new is None:
                break
            sums = new if sums is None else {name: sums[name] + new[name] for name in sums}
            number += 1
            after_batch()
        return self._summary({name: value.numpy() for name, value in sums.items()}, split.size)

    def _summary(self, sums: dict[str, np.ndarray], size: int) -> Scores:
        correct, examples = sums.pop("class_correct"), sums.pop("class_examples")
        seen = round(examples.sum())
        if seen != size:
            raise RuntimeError(f"evaluated {seen} examples of a split of {size}")
        loss = sums.pop("loss")
        figures = {
            "loss": float(loss[0] / seen),
            **summarize({name: value / seen for name, value in sums.items()}),
        }
        with np.errstate(invalid="ignore"):
            return Scores(seen, figures, correct / examples)

    @tf.function(reduce_retracing=True)
    def _sums(self, images, labels, mask):
        per_replica = self._strategy.run(self._replica_sums, args=(images, labels, mask))
        return {
            name: self._strategy.reduce("SUM", value, axis=None)
            for name, value in per_replica.items()
        }

    def _replica_sums(self, images, labels, mask):
        """Sums over the examples that count, float64, by name."""
        logits = self._net(images, training=False)
        classes = logits.shape[-1]
        losses = self._loss(soft_targets(labels, classes), logits)
        values = {"loss": losses[:, None], **values_per_example(labels, logits)}
        # A padding row can hold anything: it is left out, not multiplied by 0.
        sums = {
            name: tf.reduce_sum(tf.where(mask[:, None] > 0, value, 0.0), axis=0)
            for name, value in values.items()
        }
        correct = top_k_correct(labels, logits, k=1) * mask
        sums["class_correct"] = tf.math.unsorted_segment_sum(correct, labels, classes)
        sums["class_examples"] = tf.math.unsorted_segment_sum(mask, labels, classes)
        return {name: tf.cast(value, tf.float64) for name, value in sums.items()}
