"""The training step: a global batch in, new weights out, and a loop of steps on the device.

Synopsis:

    step = TrainStep(strategy, state, global_batch_size=128, ...)
    step.run(iterator, tf.constant(50))   # 50 updates
"""

import dataclasses

import tensorflow as tf

from loops.metrics import cross_entropy, top_k_correct
from loops.optimizer import apply_update, clip_by_global_norm
from loops.state import TrainState
from loops.variables import tensor_variable


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """How an update is made.

    Attributes:
        global_batch_size: examples in an update, over all replicas.
        accumulation: parts that a batch is cut into, one after the other, to hold fewer
            activations; BatchNorm sees each part alone. Each replica's examples are its share of
            the first part, then of the second, and so on.
        label_smoothing: see `loops.metrics.cross_entropy`.
        weight_decay: see `loops.optimizer`.
        decoupled_decay: whether the decay bypasses the update rule.
        clip_norm: highest global norm of the gradients, which are those of the whole batch; 0 is
            off.
        ema_decay: share of the old average that is kept at each update.
        auxiliary_weight: share of the loss of each auxiliary head, if the net gives more than its
            logits in training. The metrics are those of the net's own logits.
        seed: of what the net draws (dropout); None for a net that draws nothing, and is called
            without.
        jit: compile forward and backward pass with XLA.
        on_nan: what becomes of an update whose loss or gradient is not finite. It is never made.
            "skip" counts it and goes on; "stop" and "restore" leave the state as it was before,
            for the host to decide.
    """

    global_batch_size: int
    accumulation: int = 1
    label_smoothing: float = 0.0
    weight_decay: float = 0.0
    decoupled_decay: bool = False
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    auxiliary_weight: float = 0.0
    seed: int | None = None
    jit: bool = False
    on_nan: str = "stop"


# Where so many updates in a row are not finite, going on is of no use.
MOST_SKIPS_IN_A_ROW = 100


class TrainStep:
    """Makes updates to a state.

    The loss is the sum over a replica's examples divided by the global batch size, and gradients
    are summed over replicas: one replica and several do the same arithmetic. Each sees its own
    examples in BatchNorm, and after every step the moving statistics are the mean of theirs.

    Args:
        strategy: whose replicas share each batch.
        state: made in the strategy's scope.
        settings: how an update is made.
    """

    def __init__(self, strategy: tf.distribute.Strategy, state: TrainState, settings: StepSettings):
        self.strategy = strategy
        self.state = state
        self.settings = settings
        self._weights = [tensor_variable(v) for v in state.net.trainable_variables]
        self._statistics = [tensor_variable(v) for v in state.net.non_trainable_variables]
        self._gradients = self._gradients_of
        if settings.jit:
            self._gradients = tf.function(self._gradients_of, jit_compile=True)

    @tf.function
    def run(self, iterator, num_steps: tf.Tensor) -> None:
        """Makes `num_steps` updates, an int32 scalar, without leaving the device.

        It leaves early where numbers go wrong, with `state.guard["stuck"]` set.
        """
        made = tf.zeros_like(num_steps)
        while made < num_steps and not self.state.guard["stuck"]:
            self._step(next(iterator))
            made += 1

    def _step(self, batch) -> None:
        """One update, in cross-replica context."""
        gradients, *sums = self.strategy.run(self._replica_step, args=batch)
        # Summed over the replicas, so that each of them has the same.
        norm, loss, correct = (self.strategy.experimental_local_results(x)[0] for x in sums)
        finite = tf.math.is_finite(norm) & tf.math.is_finite(loss)
        overflow = self._rescale(norm, loss)
        counted = self._guard(finite, overflow, norm, loss)
        tf.cond(finite, lambda: self._apply(gradients), lambda: None)
        self.state.optimizer.iterations.assign_add(tf.cast(counted, tf.int64))
        tf.cond(finite, self._average, lambda: None)

        # What is not finite is left out, not multiplied by 0.
        window, examples = self.state.window, self.settings.global_batch_size
        for name, value in (("loss", loss), ("correct", correct), ("gradient_norm", norm)):
            window[name].assign_add(tf.where(finite, tf.cast(value, tf.float64), 0.0))
        window["examples"].assign_add(tf.where(finite, tf.constant(examples, tf.int64), 0))
        window["steps"].assign_add(tf.cast(finite, tf.int64))

    def _rescale(self, norm, loss) -> tf.Tensor:
        """Moves the loss scale; whether it was so high that the gradients overflowed, scalar bool.

        That is a matter of course in float16, and no sign of wrong numbers.
        """
        scale = self.state.loss_scale
        if scale is None:
            return tf.constant(False)
        fits = tf.math.is_finite(norm)
        overflow = ~fits & tf.math.is_finite(loss) & (scale.scale > 1)
        tf.cond(fits | overflow, lambda: scale.update(fits), lambda: None)
        return overflow

    def _guard(self, finite, overflow, norm, loss) -> tf.Tensor:
        """Takes note of an update with wrong numbers; whether the step counts, scalar bool.

        A step whose update is dropped counts: its batch has been seen.
        """
        guard, skips = self.state.guard, self.settings.on_nan == "skip"
        wrong = ~finite & ~overflow
        one = tf.cast(wrong, tf.int64)
        if skips:
            guard["skipped"].assign_add(one)
        guard["in_a_row"].assign(tf.where(finite, 0 * one, guard["in_a_row"] + one))
        most = MOST_SKIPS_IN_A_ROW if skips else 1
        guard["stuck"].assign(guard["in_a_row"] >= most)
        loss /= self.settings.global_batch_size
        for name, value in (("loss", loss), ("gradient_norm", norm)):
            guard[name].assign(tf.where(wrong, value, guard[name]))
        return ~wrong if not skips else tf.constant(True)

    def _replica_step(self, images, labels):
        """One replica's part.

        Returns, of the whole batch and the same on every replica: gradients, their norm, and the
        sums over the examples of the loss and of the correct answers.
        """
        settings = self.settings
        gradients, sums = None, None
        statistics = [v.read_value() for v in self._statistics]
        parts = settings.accumulation
        replicas = tf.distribute.get_replica_context()
        for part, (image_part, label_part) in enumerate(
            zip(tf.split(images, parts), tf.split(labels, parts), strict=True)
        ):
            # All replicas together have a part, so that it is the same on any number of them.
            place = part * self.strategy.num_replicas_in_sync + replicas.replica_id_in_sync_group
            new_gradients, new_sums = self._gradients(
                image_part,
                label_part,
                self.state.optimizer.iterations.value,
                place * tf.shape(image_part)[0],
            )
            if gradients is None:
                gradients, sums = new_gradients, new_sums
            else:
                gradients = [a + b for a, b in zip(gradients, new_gradients, strict=True)]
                sums = [a + b for a, b in zip(sums, new_sums, strict=True)]
        gradients, sums = replicas.all_reduce("SUM", (gradients, sums))
        if self.state.loss_scale is not None:
            gradients = [gradient / self.state.loss_scale.scale for gradient in gradients]
        norm = tf.linalg.global_norm(gradients)
        if settings.clip_norm:
            gradients = clip_by_global_norm(gradients, norm, settings.clip_norm)
        finite = tf.math.is_finite(norm) & tf.math.is_finite(sums[0])
        self._settle(statistics, finite)
        return gradients, norm, *sums

    def _settle(self, before, finite) -> None:
        """Moving statistics become their mean over replicas, or go back to before the step."""
        after = [v.read_value() for v in self._statistics]
        if self.strategy.num_replicas_in_sync > 1 and after:
            after = tf.distribute.get_replica_context().all_reduce("MEAN", after)
        for variable, old, new in zip(self._statistics, before, after, strict=True):
            variable.assign(tf.where(finite, new, old))

    def _gradients_of(self, images, labels, step, first_row):
        """Gradients of the scaled loss of some examples; their sums of loss and correct answers."""
        settings = self.settings
        draws = {}
        if settings.seed is not None:
            # Not the stream of the data's draws (data/pipeline.py), whose second number is 0.
            run_seed = tf.constant([settings.seed, 1], tf.int64)
            draws["seed"] = tf.random.experimental.stateless_fold_in(run_seed, step)
            draws["rows"] = (first_row, settings.global_batch_size)
        with tf.GradientTape() as tape:
            outputs = self.state.net(images, training=True, **draws)
            logits, *auxiliary = tf.nest.flatten(outputs)
            losses = cross_entropy(labels, logits, settings.label_smoothing)
            total = losses
            for other in auxiliary:
                other_losses = cross_entropy(labels, other, settings.label_smoothing)
                total += settings.auxiliary_weight * other_losses
            loss = tf.reduce_sum(total) / settings.global_batch_size
            if self.state.loss_scale is not None:
                loss *= self.state.loss_scale.scale
        sums = [tf.reduce_sum(losses), tf.reduce_sum(top_k_correct(labels, logits, k=1))]
        return tape.gradient(loss, self._weights), sums

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
        """Moves the averages of weights and BatchNorm statistics.

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
