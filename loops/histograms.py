"""Histograms of weights, gradients and activations, by stage, in TensorBoard."""

from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from loops.hook import Hook
from loops.inputs import iterate
from loops.records.event_writer import EventWriter

# A histogram is of at most about so many values of each stage, evenly spaced.
MAX_VALUES = 2**16


class Histograms(Hook):
    """Adds histograms at every `every`-th step.

    `stage_weights/<stage>` are the kernels, without biases and the scales of BatchNorm;
    `stage_gradients/<stage>` the gradients of the loss with respect to them; and
    `stage_activations/<stage>` the outputs of the stage in evaluation. Gradients and activations
    are those of the batch of the update that led to the step, with the weights and at the size of
    images after it. A net that is not a sequence of stages has one entry, "net", and no
    activations.

    Args:
        writer: of the training points; None on a worker that is not the chief.
        every: steps between histograms, at least 1.
    """

    def __init__(self, writer: EventWriter | None, every: int):
        self._writer = writer
        self._every = every

    @tf.function
    def _activations(self, step, net, batch) -> dict[str, tf.Tensor]:
        """Outputs of each stage for the images of one replica."""
        strategy = step.strategy

        def outputs(*element):
            if not getattr(net, "stage_names", ()):
                return {}
            images, _ = step.prepare(*element)
            return step.at_its_size(stages, images, step.state.optimizer.iterations.value)

        def stages(images):
            images = tf.cast(images, net.compute_dtype)  # As Keras does when a net is called.
            return dict(net.run_stages(images, training=False))

        # In a replica's context, so that BatchNorm's statistics are read without all replicas.
        found = strategy.run(outputs, args=batch)
        return {stage: strategy.experimental_local_results(x)[0] for stage, x in found.items()}

    def next_step(self, step: int) -> int:
        return (step // self._every + 1) * self._every

    def on_step(self, trainer) -> None:
        step, net = trainer.step, trainer.state.net
        left_out = int(trainer.state.guard["batches_left_out"].numpy())
        # This batch can be decoded, as the next one may not be.
        dataset = trainer.batches.batches(step - 1 + left_out, step + left_out)
        (batch,) = iterate(trainer.train_step.strategy, dataset)
        # With all workers.
        gradients = trainer.train_step.inspect(batch).gradients
        activations = self._activations(trainer.train_step, net, batch)
        if self._writer is None:
            return
        found = {
            "weights": by_stage(net, [v.value for v in net.trainable_variables]),
            "gradients": by_stage(net, gradients),
            "activations": {stage: _thinned([x]) for stage, x in activations.items()},
        }
        for kind, stages in found.items():
            for stage, values in stages.items():
                self._writer.add_histogram(f"stage_{kind}/{stage}", values, step)
        self._writer.flush()


def by_stage(net, values: Iterable[tf.Tensor]) -> dict[str, np.ndarray]:
    """Values of the kernels of each stage and auxiliary head, float [n], thinned out.

    Args:
        net: a net; its stages are optional.
        values: for each of `net.trainable_variables`, a tensor of its shape.
    """
    parts = {**getattr(net, "stages", {}), **getattr(net, "auxiliary_heads", {})} or {"net": net}
    by_variable = {
        id(variable): value
        for variable, value in zip(net.trainable_variables, values, strict=True)
        if len(variable.shape) > 1
    }
    found = {}
    for name, layer in parts.items():
        kernels = [by_variable[id(v)] for v in layer.trainable_variables if id(v) in by_variable]
        if kernels:
            found[name] = _thinned(kernels)
    return found


def _thinned(tensors: list[tf.Tensor]) -> np.ndarray:
    """At most about `MAX_VALUES` evenly spaced values of all tensors together."""
    size = sum(int(tf.size(x)) for x in tensors)
    stride = -(-size // MAX_VALUES)
    values = [tf.cast(tf.reshape(x, [-1])[::stride], tf.float32).numpy() for x in tensors]
    return np.concatenate(values)
