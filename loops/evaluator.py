"""Scores of a net on a split."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from loops.inputs import EvalInput, iterate
from loops.losses import losses_per_example, soft_targets
from loops.metrics import summarize, top_k_correct, values_per_example
from loops.records.predictions import Predictions


@dataclasses.dataclass(frozen=True)
class Scores:
    """The figures of an evaluation.

    Attributes:
        examples: number of examples.
        figures: the loss (without label smoothing) and every metric, by name.
        class_accuracy: top-1 accuracy by class, float64 [classes]; NaN where there is no example.
        predictions: for each example.
    """

    examples: int
    figures: dict[str, float]
    class_accuracy: np.ndarray
    predictions: Predictions | None = None

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
        prepare: makes what the net takes from the images of a batch (see `loops.inputs`).
        variants: gives variants of a batch of such images, whose mean probabilities are scored.
            Then logits are their logarithms, plus the mean logarithm of the denominators of the
            variants' softmaxes, so that equal variants have the logits of one.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        net: tf.keras.layers.Layer,
        loss: str = "cross_entropy",
        *,
        prepare: Callable[[tf.Tensor], tf.Tensor] = lambda images: images,
        variants: Callable[[tf.Tensor], Sequence[tf.Tensor]] = lambda images: [images],
    ):
        self._strategy = strategy
        self._net = net
        self._loss = functools.partial(losses_per_example, loss)
        self._prepare = prepare
        self._variants = variants

    def scores(self, split: EvalInput, *, after_batch: Callable[[], None] = lambda: None) -> Scores:
        """Scores the net on a split.

        Args:
            split: the examples.
            after_batch: called after each batch; it may raise, to leave.

        Raises:
            RuntimeError: another number of examples was seen.
            Exception: whatever `split.find_fault` gives, where a batch cannot be made.
        """
        batches = iterate(self._strategy, split.batches())
        sums, parts = None, []
        for number in range(split.num_batches):
            try:
                new, predictions = self._score(*next(batches))
            except tf.errors.OpError as error:
                fault = split.find_fault(number)
                if fault is None:
                    raise
                raise fault from error
            sums = new if sums is None else {name: sums[name] + new[name] for name in sums}
            parts.append(predictions)
            after_batch()
        predictions = Predictions(
            **{
                # What fills up the last batch is behind the last example.
                name: np.concatenate([part[name].numpy() for part in parts])[: split.size]
                for name in parts[0]
            }
        )
        sums = {name: value.numpy() for name, value in sums.items()}
        return self._summary(sums, split.size, predictions)

    def _summary(self, sums: dict[str, np.ndarray], size: int, predictions: Predictions) -> Scores:
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
            return Scores(seen, figures, correct / examples, predictions)

    @tf.function(reduce_retracing=True)
    def _score(self, images, labels, mask):
        """Sums over the examples of a batch, and its predictions, both by name."""
        sums, predictions = self._strategy.run(self._replica_score, args=(images, labels, mask))
        return (
            {name: self._strategy.reduce("SUM", x, axis=None) for name, x in sums.items()},
            # The replicas hold consecutive parts of the batch.
            {name: self._strategy.gather(x, axis=0) for name, x in predictions.items()},
        )

    def _logits(self, images):
        logits = [self._net(variant, training=False) for variant in self._variants(images)]
        if len(logits) == 1:
            return logits[0]
        stacked = tf.stack(logits)
        denominators = tf.reduce_logsumexp(stacked, axis=-1, keepdims=True)
        summed = tf.reduce_logsumexp(stacked - denominators, axis=0)
        # A softmax does not depend on the last term, but the loss binary_cross_entropy does.
        return summed - math.log(len(logits)) + tf.reduce_mean(denominators, axis=0)

    def _replica_score(self, images, labels, mask):
        """Sums over the examples that count, float64, and the predictions for all of them."""
        logits = self._logits(self._prepare(images))
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
        probabilities = tf.nn.softmax(logits)
        predictions = {
            "labels": labels,
            "predicted": tf.argmax(logits, axis=-1, output_type=tf.int32),
            "confidences": tf.reduce_max(probabilities, axis=-1),
            "label_probabilities": tf.gather(probabilities, labels, batch_dims=1),
            "losses": losses,
        }
        return {name: tf.cast(value, tf.float64) for name, value in sums.items()}, predictions
