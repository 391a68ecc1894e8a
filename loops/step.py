"""The training step: a global batch in, new weights out, and a loop of steps on the device.

step = TrainStep(strategy, state, StepSettings(global_batch_size=128))
step.run(iterator, tf.constant(50))   # 50 updates
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import tensorflow as tf

from loops.losses import example_weights, losses_per_example, soft_targets
from loops.metrics import values_per_example
from loops.optimizer import apply_update
from loops.schedule import LearningRate
from loops.state import TrainState
from loops.variables import tensor_variable


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """How an update is made.

    Attributes:
        global_batch_size: examples in an update, over all replicas.
        loss: a key of `loops.losses.LOSSES`.
        accumulation: number of microbatches a batch is cut into, which run one after the other to
            hold fewer activations; BatchNorm sees each alone. Each replica's examples are its share
            of the first microbatch, then of the second, and so on.
        class_weights: weight of each class in the loss; None for equal weights.
        label_smoothing: see `loops.losses.soft_targets`.
        weight_decay: see `loops.optimizer`.
        decoupled_decay: see `loops.optimizer.OptimizerChoice`.
        clip_norm: highest global norm of the gradients of the whole batch; 0 disables clipping.
        ema_decay: decay of the moving averages per update.
        auxiliary_weight: weight of each auxiliary head's loss, if the net returns more than its
            logits in training. The metrics are those of the net's own logits.
        seed: of what the net draws (dropout); None for a net that draws nothing and takes no seed.
        jit: compile the forward and backward pass with XLA.
        on_nan: what happens to an update whose loss or gradient is not finite. It is never made.
            "skip" counts it and continues; "stop" and "restore" leave the state as it was before,
            for the host to decide.
    """

    global_batch_size: int
    loss: str = "cross_entropy"
    accumulation: int = 1
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    weight_decay: float = 0.0
    decoupled_decay: bool = False
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    auxiliary_weight: float = 0.0
    seed: int | None = None
    jit: bool = False
    on_nan: str = "stop"


# After this many consecutive updates that are not finite, training aborts.
MAX_CONSECUTIVE_SKIPS = 100


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
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        state: TrainState,
        settings: StepSettings,
        learning_rate: LearningRate,
    ):
        self.strategy = strategy
        self.state = state
        self.settings = settings
        self.learning_rate = learning_rate
        self._loss = functools.partial(losses_per_example, settings.loss)
        self._has_clock = _has_clock()
        # Not in a checkpoint, since timings are no part of the state.
        self._waited = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        self._weights = [tensor_variable(v) for v in state.net.trainable_variables]
        self._statistics = [tensor_variable(v) for v in state.net.non_trainable_variables]
        self._gradients, self._outputs = self._gradients_of, self._outputs_of
        if settings.jit:
            self._gradients = tf.function(self._gradients_of, jit_compile=True)
            self._outputs = tf.function(self._outputs_of, jit_compile=True)

    @tf.function
    def run(self, iterator, num_steps: tf.Tensor) -> None:
        """Makes `num_steps` updates, an int32 scalar, without returning to the host.

        It returns early, with `state.guard["stuck"]` set, if an update is not finite.
        """
        made = tf.zeros_like(num_steps)
        while made < num_steps and not self.state.guard["stuck"]:
            self._step(self._next_batch(iterator))
            made += 1

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
        gradients, norm, sums = self.strategy.run(self._replica_step, args=batch)

        # These are sums over the replicas, equal on each of them.
        norm, sums = self._first(norm), {name: self._first(x) for name, x in sums.items()}
        loss = sums["loss"][0]
        finite = tf.math.is_finite(norm) & tf.math.is_finite(loss)
        overflow = self._rescale(norm, loss)
        counts = self._record_nonfinite(finite, overflow, norm, loss)
        tf.cond(finite, lambda: self._apply(gradients), lambda: None)
        self.state.optimizer.iterations.assign_add(tf.cast(counts, tf.int64))
        tf.cond(finite, self._average, lambda: None)

        # An update that is not finite is left out, not multiplied by 0.
        window, examples = self.state.window, self.settings.global_batch_size
        for name, value in {**sums, "gradient_norm": norm}.items():
            value = tf.cast(value, tf.float64)
            window[name].assign_add(tf.where(finite, value, tf.zeros_like(value)))
        mean = tf.cast(loss / examples, tf.float64)
        is_highest = finite & ((window["steps"] == 0) | (mean > window["highest_loss"]))
        step = tf.cast(self.state.optimizer.iterations.value, tf.float64)
        for name, value in (("highest_loss", mean), ("highest_loss_step", step)):
            window[name].assign(tf.where(is_highest, value, window[name]))
        window["examples"].assign_add(tf.where(finite, tf.constant(examples, tf.int64), 0))
        window["steps"].assign_add(tf.cast(finite, tf.int64))

    def _rescale(self, norm, loss) -> tf.Tensor:
        """Adapts the loss scale; returns whether the gradients overflowed because of it, bool.

        Overflows are expected in float16, and do not mean that training diverges.
        """
        scale = self.state.loss_scale
        if scale is None:
            return tf.constant(False)
        fits = tf.math.is_finite(norm)
        overflow = ~fits & tf.math.is_finite(loss) & (scale.scale > 1)
        tf.cond(fits | overflow, lambda: scale.update(fits), lambda: None)
        return overflow

    def _record_nonfinite(self, finite, overflow, norm, loss) -> tf.Tensor:
        """Records an update that is not finite; returns whether the step counts, a scalar bool.

        A step whose update is dropped counts, since its batch has been seen.
        """
        guard, skips = self.state.guard, self.settings.on_nan == "skip"
        wrong = ~finite & ~overflow
        one = tf.cast(wrong, tf.int64)
        if skips:
            guard["skipped"].assign_add(one)
        guard["in_a_row"].assign(tf.where(finite, 0 * one, guard["in_a_row"] + one))
        guard["stuck"].assign(guard["in_a_row"] >= (MAX_CONSECUTIVE_SKIPS if skips else 1))
        loss /= self.settings.global_batch_size
        for name, value in (("loss", loss), ("gradient_norm", norm)):
            guard[name].assign(tf.where(wrong, value, guard[name]))
        return ~wrong if not skips else tf.constant(True)

    def _replica_step(self, images, labels):
        """One replica's part of an update.

        Returns, of the whole batch and equal on every replica: the gradients, their norm, and the
        sums over the examples of the loss and the metrics, by name.
        """
        statistics = [v.read_value() for v in self._statistics]
        gradients, sums, _ = self._sum_microbatches(self._gradients, images, labels)
        norm, clip_norm = tf.linalg.global_norm(gradients), self.settings.clip_norm
        if clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, clip_norm, use_norm=norm)
        finite = tf.math.is_finite(norm) & tf.math.is_finite(sums["loss"][0])
        self._sync_batch_stats(statistics, finite)
        return gradients, norm, sums

    def _inspect_replica(self, images, labels) -> Inspection:
        """One replica's part of an inspection, which is equal on every replica."""
        statistics = [v.read_value() for v in self._statistics]
        gradients, sums, outputs = self._sum_microbatches(self._outputs, images, labels)
        for variable, value in zip(self._statistics, statistics, strict=True):
            variable.assign(value)
        losses, logits = (self._gather(parts) for parts in zip(*outputs, strict=True))
        loss = sums["loss"][0] / self.settings.global_batch_size
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
            The gradients, unscaled; the sums of the loss and the metrics, by name; and for each
            microbatch a list of what else `compute` has returned.
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
            # All replicas share a microbatch, so it is the same on any number of them.
            place = number * self.strategy.num_replicas_in_sync + replicas.replica_id_in_sync_group
            new_gradients, new_sums, *other = compute(
                some_images,
                some_labels,
                self.state.optimizer.iterations.value,
                place * tf.shape(some_images)[0],
            )
            others.append(other)
            if gradients is None:
                gradients, sums = new_gradients, new_sums
            else:
                gradients = [a + b for a, b in zip(gradients, new_gradients, strict=True)]
                sums = {name: sums[name] + new_sums[name] for name in sums}
        gradients, sums = replicas.all_reduce("SUM", (gradients, sums))
        if self.state.loss_scale is not None:
            gradients = [gradient / self.state.loss_scale.scale for gradient in gradients]
        return gradients, sums, others

    def _sync_batch_stats(self, before, finite) -> None:
        """Averages the moving statistics over the replicas, or restores those before the step."""
        after = [v.read_value() for v in self._statistics]
        if self.strategy.num_replicas_in_sync > 1 and after:
            after = tf.distribute.get_replica_context().all_reduce("MEAN", after)
        for variable, old, new in zip(self._statistics, before, after, strict=True):
            variable.assign(tf.where(finite, new, old))

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
        with tf.GradientTape() as tape:
            outputs = self.state.net(images, training=True, **draws)
            logits, *auxiliary = tf.nest.flatten(outputs)
            targets = soft_targets(labels, logits.shape[-1], settings.label_smoothing)
            weights = 1.0
            if settings.class_weights is not None:
                weights = example_weights(labels, settings.class_weights)
            losses = weights * self._loss(targets, logits)
            total = losses
            for other in auxiliary:
                total += settings.auxiliary_weight * weights * self._loss(targets, other)
            loss = tf.reduce_sum(total) / settings.global_batch_size
            if self.state.loss_scale is not None:
                loss *= self.state.loss_scale.scale
        values = {"loss": losses[:, None], **values_per_example(labels, logits)}
        sums = {name: tf.reduce_sum(value, axis=0) for name, value in values.items()}
        return tape.gradient(loss, self._weights), sums, losses, logits

    def _apply(self, gradients) -> None:
        apply_update(
            self.strategy,
            self.state.optimizer,
            self._weights,
            gradients,
            weight_decay=self.settings.weight_decay,
            decoupled=self.settings.decoupled_decay,
        )

    def _average(self) -> None:
        """Updates the moving averages of weights and BatchNorm statistics.

        The decay is lower at first, min(decay, (1 + step) / (10 + step)), so that the random
        initial weights are soon forgotten.
        """
        if self.state.ema_net is None:
            return
        step = tf.cast(self.state.optimizer.iterations.value, tf.float32)
        decay = tf.minimum(self.settings.ema_decay, (1 + step) / (10 + step))

        def move(average, variable):
            average.assign_sub((1 - decay) * (average - tf.cast(variable, average.dtype)))

        pairs = zip(self.state.ema_net.variables, self.state.net.variables, strict=True)
        for average, variable in pairs:
            self.strategy.extended.update(
                tensor_variable(average), move, args=(tensor_variable(variable),), group=False
            )
