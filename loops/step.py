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
        accumulation: parts that each replica cuts its examples into, one after the other, to hold
            fewer activations; BatchNorm sees each part alone.
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
        """Makes `num_steps` updates, an int32 scalar, without leaving the device."""
        for _ in tf.range(num_steps):
            self._step(next(iterator))

    def _step(self, batch) -> None:
        """One update, in cross-replica context."""
        state, settings = self.state, self.settings
        gradients, norm, sums = self.strategy.run(self._replica_step, args=batch)
        norm = self.strategy.experimental_local_results(norm)[0]
        sums = {k: self.strategy.reduce("SUM", v, axis=None) for k, v in sums.items()}
        if state.loss_scale is None:
            self._apply(gradients)
        else:
            finite = tf.math.is_finite(norm)
            tf.cond(finite, lambda: self._apply(gradients), lambda: None)
            state.loss_scale.update(finite)
        # The step is counted even where float16 drops an update: its batch has been seen.
        state.optimizer.iterations.assign_add(1)
        self._average()
        window = state.window
        for name in ("loss", "correct"):
            window[name].assign_add(tf.cast(sums[name], tf.float64))
        window["examples"].assign_add(settings.global_batch_size)
        if state.loss_scale is not None:
            norm = tf.where(tf.math.is_finite(norm), norm, 0.0)  # Overflow is a matter of course.
        window["gradient_norm"].assign_add(tf.cast(norm, tf.float64))
        window["steps"].assign_add(1)

    def _replica_step(self, images, labels):
        """One replica's part: gradients of the whole batch, their norm, and its own sums."""
        settings = self.settings
        gradients, sums = None, None
        parts = settings.accumulation
        replicas = tf.distribute.get_replica_context()
        # Which rows of the global batch these are.
        first = replicas.replica_id_in_sync_group * tf.shape(images)[0]
        for image_part, label_part in zip(
            tf.split(images, parts), tf.split(labels, parts), strict=True
        ):
            new_gradients, new_sums = self._gradients(
                image_part, label_part, self.state.optimizer.iterations.value, first
            )
            first += tf.shape(image_part)[0]
            if gradients is None:
                gradients, sums = new_gradients, new_sums
            else:
                gradients = [a + b for a, b in zip(gradients, new_gradients, strict=True)]
                sums = {name: sums[name] + new_sums[name] for name in sums}
        gradients = replicas.all_reduce("SUM", gradients)
        if self.state.loss_scale is not None:
            gradients = [gradient / self.state.loss_scale.scale for gradient in gradients]
        norm = tf.linalg.global_norm(gradients)
        if settings.clip_norm:
            gradients = clip_by_global_norm(gradients, norm, settings.clip_norm)
        if self.strategy.num_replicas_in_sync > 1 and self._statistics:
            means = replicas.all_reduce("MEAN", [v.read_value() for v in self._statistics])
            for variable, mean in zip(self._statistics, means, strict=True):
                variable.assign(mean)
        return gradients, norm, sums

    def _gradients_of(self, images, labels, step, first_row):
        """Gradients of the scaled loss of some examples, and the sums of their metrics."""
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
        sums = {
            "loss": tf.reduce_sum(losses),
            "correct": tf.reduce_sum(top_k_correct(labels, logits, k=1)),
        }
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
