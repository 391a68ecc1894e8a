"""The training step: a global batch in, new weights out, and a loop of steps on the device.

step = TrainStep(strategy, state, StepSettings(global_batch_size=128))
step.run(iterator, tf.constant(50))   # 50 updates
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from loops.distributed.collectives import gradient_options
from loops.inputs import on_gpus
from loops.losses import example_weights, losses_per_example, soft_targets
from loops.metrics import values_per_example
from loops.rescale import rescale
from loops.schedule import LearningRate
from loops.settings import StepSettings
from loops.state import TrainState
from loops.update import StateUpdate, unscale
from loops.variables import tensor_variable, updated_statistics


def _has_clock() -> bool:
    """Whether there is the operation that tells the time; not if all must be deterministic."""
    try:
        tf.timestamp()
    except tf.errors.FailedPreconditionError:
        return False
    return True


class Inspection(NamedTuple):
    """What an update is made from. Of the whole batch, on any number of replicas.

    Attributes:
        gradients: tensors like `net.trainable_variables`, in that order, before they are clipped.
        norm: float32 scalar, their global norm.
        loss: float32 scalar, the mean of `losses`.
        losses: float32 [global_batch_size], the loss of each row, without auxiliary heads.
        logits: float32 [global_batch_size, classes].
    """

    gradients: tuple[tf.Tensor, ...]
    norm: tf.Tensor
    loss: tf.Tensor
    losses: tf.Tensor
    logits: tf.Tensor


class TrainStep:
    """Makes updates to a state.

    The loss is the sum over a replica's examples divided by the global batch size, and gradients
    are summed over replicas: one replica and several do the same arithmetic. Each replica's
    BatchNorm sees its own examples, and after every step the moving statistics are averaged.

    Args:
        strategy: whose replicas share each batch.
        state: made in the strategy's scope.
        settings: how an update is made.
        learning_rate: the schedule that the optimizer was made with.
        prepare: a pure function of tensors that makes images, float32 [n, height, width, channels],
            and labels of an element of the iterator, on the device of each replica; by default an
            element is just that.
        compile_update: whether XLA compiles what follows the gradients; None for GPUs only.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        state: TrainState,
        settings: StepSettings,
        learning_rate: LearningRate,
        prepare: Callable[..., tuple[tf.Tensor, tf.Tensor]] = lambda *element: element,
        compile_update: bool | None = None,
    ):
        self.strategy = strategy
        self.state = state
        self.settings = settings
        self.learning_rate = learning_rate
        self.prepare = prepare
        self._exchange = gradient_options(on_gpus(strategy))
        self._loss = functools.partial(losses_per_example, settings.loss)
        self._update = StateUpdate(strategy, state, settings, compiled=compile_update)
        self._has_clock = _has_clock()
        # Not in a checkpoint, since timings are no part of the state.
        self._waited = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        self._weights = [tensor_variable(v) for v in state.net.trainable_variables]
        self._statistics = [tensor_variable(v) for v in updated_statistics(state.net)]
        self._gradients, self._outputs = self._gradients_of, self._outputs_of
        if settings.jit:
            self._gradients = tf.function(self._gradients_of, jit_compile=True)
            self._outputs = tf.function(self._outputs_of, jit_compile=True)

    @tf.function(autograph=False)
    def run(self, iterator, num_steps: tf.Tensor) -> None:
        """Makes `num_steps` updates, an int32 scalar, without returning to the host.

        A call takes 0.8 ms on two CPU cores, where an update of `inception10` takes 60. It returns
        early, with `state.guard["stuck"]` set, if an update is not finite.
        """

        def goes_on(made):
            return (made < num_steps) & ~self.state.guard["stuck"].read_value()

        def make(made):
            self._step(self._next_batch(iterator))
            return made + 1

        tf.while_loop(goes_on, make, [tf.zeros_like(num_steps)])

    def _next_batch(self, iterator):
        """The next batch; the time that it takes is added up."""
        if not self._has_clock:
            return next(iterator)
        started = tf.timestamp()
        with tf.control_dependencies([started]):
            batch = next(iterator)
        with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
            self._waited.assign_add(tf.timestamp() - started)
        return batch

    def seconds_waited(self) -> float:
        """The time that `run` has waited for batches since the last call; NaN if unknown."""
        if not self._has_clock:
            return math.nan
        seconds = float(self._waited.numpy())
        self._waited.assign(0.0)
        return seconds

    @tf.function
    def inspect(self, batch) -> Inspection:
        """What the next update would be made from, with the same arithmetic; it is not made.

        Args:
            batch: an element of an iterator, as `run` takes it.
        """
        inspected = self.strategy.run(self._inspect_replica, args=batch)
        return tf.nest.map_structure(self._first, inspected)

    def _first(self, per_replica):
        """The value on the first replica, of what is equal on each of them."""
        return self.strategy.experimental_local_results(per_replica)[0]

    def _step(self, batch) -> None:
        """One update, in cross-replica context."""
        self._update(*self.strategy.run(self._replica_step, args=batch))

    def _replica_step(self, *element):
        """One replica's part of an update.

        Returns what `StateUpdate` takes, of the whole batch and equal on every replica.
        """
        images, labels = self.prepare(*element)
        before = [v.read_value() for v in self._statistics]
        gradients, sums, _ = self._sum_microbatches(self._gradients, images, labels)
        after = [v.read_value() for v in self._statistics]
        if self.strategy.num_replicas_in_sync > 1 and after:
            after = tf.distribute.get_replica_context().all_reduce("MEAN", after)
        return gradients, sums, before, after

    def _inspect_replica(self, *element) -> Inspection:
        """One replica's part of an inspection, which is equal on every replica."""
        images, labels = self.prepare(*element)
        statistics = [v.read_value() for v in self._statistics]
        gradients, sums, outputs = self._sum_microbatches(self._outputs, images, labels)
        for variable, value in zip(self._statistics, statistics, strict=True):
            variable.assign(value)
        losses, logits = (self._gather(parts) for parts in zip(*outputs, strict=True))
        loss = sums["loss"][0] / self.settings.global_batch_size
        gradients = unscale(gradients, self.state.loss_scale)
        norm = tf.linalg.global_norm(gradients)
        return Inspection(tuple(gradients), norm, loss, losses, logits)

    def _gather(self, microbatches) -> tf.Tensor:
        """The rows of the global batch in order, from this replica's of each microbatch."""
        rows = tf.stack(microbatches)  # [microbatches, rows, ...]
        everywhere = tf.distribute.get_replica_context().all_gather(rows, axis=1)
        return tf.reshape(everywhere, [-1, *rows.shape[2:]])

    def _sum_microbatches(self, compute, images, labels):
        """The gradients and sums of the whole batch, equal on every replica.

        Args:
            compute: `_gradients_of`, or a function that returns more than it does.
            images: this replica's part of the batch.
            labels: likewise.

        Returns:
            The gradients of the scaled loss; the sums of the loss and the metrics, by name; and for
            each microbatch a list of what else `compute` has returned.
        """
        settings, others = self.settings, []
        gradients, sums = None, None
        replicas = tf.distribute.get_replica_context()
        microbatches = zip(
            tf.split(images, settings.accumulation),
            tf.split(labels, settings.accumulation),
            strict=True,
        )
        for number, (some_images, some_labels) in enumerate(microbatches):
            if number:
                # The memory of a microbatch is free before the next one begins.
                with tf.control_dependencies(gradients):
                    some_images = tf.identity(some_images)
            # All replicas share a microbatch, so it is the same on any number of them.
            place = number * self.strategy.num_replicas_in_sync + replicas.replica_id_in_sync_group
            step = self.state.optimizer.iterations.value
            first_row = place * tf.shape(some_images)[0]
            call = functools.partial(compute, labels=some_labels, step=step, first_row=first_row)
            new_gradients, new_sums, *other = self.at_its_size(call, some_images, step)
            others.append(other)
            if gradients is None:
                gradients, sums = new_gradients, new_sums
            else:
                gradients = [a + b for a, b in zip(gradients, new_gradients, strict=True)]
                sums = {name: sums[name] + new_sums[name] for name in sums}
        gradients, sums = replicas.all_reduce("SUM", (gradients, sums), options=self._exchange)
        return gradients, sums, others

    def at_its_size(self, compute, images, step):
        """`compute(images)`, of images that are scaled to the size that a step has.

        Args:
            compute: a function of images that returns tensors.
            images: float32 [n, height, width, channels].
            step: the number of updates before it, an int64 scalar.
        """
        sizes = self.settings.sizes

        def at(size):
            return compute(images if size is None else rescale(images, size))

        if not sizes:
            return at(None)
        stops = tf.constant([stop for stop, _ in sizes], tf.int64)
        number = tf.reduce_sum(tf.cast(step >= stops, tf.int32))
        # Each size is a branch of its own, so that shapes are known in each.
        return tf.switch_case(
            number, [functools.partial(at, size) for _, size in (*sizes, (0, None))]
        )

    def _gradients_of(self, images, labels, step, first_row):
        """Gradients of the scaled loss of some examples, and the sums of their loss and metrics."""
        return self._outputs_of(images, labels, step, first_row)[:2]

    def _outputs_of(self, images, labels, step, first_row):
        """As `_gradients_of`, and the loss and the logits of each example."""
        settings = self.settings
        draws = {}
        if settings.seed is not None:
            # Not the stream of the data's draws, whose second number is 0.
            run_seed = tf.constant([settings.seed, 1], tf.int64)
            draws["seed"] = tf.random.experimental.stateless_fold_in(run_seed, step)
            draws["rows"] = (first_row, settings.global_batch_size)
        # Of no other variables, so that nothing is kept or computed for stages that are frozen.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self._weights)
            outputs = self.state.net(images, training=True, **draws)
            logits, *auxiliary = tf.nest.flatten(outputs)
            losses, total = self._losses_of(labels, logits, auxiliary)
            loss = tf.reduce_sum(total) / settings.global_batch_size
            if self.state.loss_scale is not None:
                loss *= self.state.loss_scale.scale
        values = {"loss": losses[:, None], **values_per_example(labels, logits)}
        sums = {name: tf.reduce_sum(value, axis=0) for name, value in values.items()}
        return tape.gradient(loss, self._weights), sums, losses, logits

    def _losses_of(self, labels, logits, auxiliary):
        """The loss of each example, float32 [n]: as it is logged, and as it is trained on.

        Args:
            labels: int32 [n], or float32 [n, classes].
            logits: float32 [n, classes].
            auxiliary: likewise, of each auxiliary head.
        """
        settings = self.settings
        targets = soft_targets(labels, logits.shape[-1], settings.label_smoothing)
        weights = 1.0
        if settings.class_weights is not None:
            weights = example_weights(labels, settings.class_weights)
        losses = total = weights * self._loss(targets, logits)
        for other in auxiliary:
            total += settings.auxiliary_weight * weights * self._loss(targets, other)
        return losses, total
