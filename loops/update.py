"""From the summed gradients of a batch to the next state, on each device by itself.

update = StateUpdate(strategy, state, settings)
update(gradients, sums, before, after)
"""

from collections.abc import Callable

import tensorflow as tf

from loops.optimizer import apply_update
from loops.settings import StepSettings
from loops.state import LossScale, TrainState
from loops.variables import tensor_variable, updated_statistics

# After this many consecutive updates that are not finite, training aborts.
MAX_CONSECUTIVE_SKIPS = 100


def xla_compiles(device: str) -> bool:
    """Whether XLA can compile for a device; for GPUs it needs parts of CUDA that may be missing."""

    @tf.function(jit_compile=True)
    def power(x):
        return x**x  # Calls CUDA's library of device functions.

    try:
        with tf.device(device):
            power(tf.constant(2.0))
    except tf.errors.OpError:
        return False
    return True


def _compiles_by_default(strategy: tf.distribute.Strategy) -> bool:
    """On GPUs, where an update is some thousand kernels too small to be worth their launch."""
    devices = strategy.extended.worker_devices
    return all("GPU" in device and xla_compiles(device) for device in devices)


def unscale(gradients, loss_scale: LossScale | None) -> list[tf.Tensor]:
    """The gradients of the loss itself."""
    if loss_scale is None:
        return gradients
    return [gradient / loss_scale.scale for gradient in gradients]


class StateUpdate:
    """Updates a state by what is equal on all replicas, so that each device does so by itself.

    It is a single operation on each device if XLA compiles it, to the same values but for rounding.

    Args:
        strategy: whose replicas hold the state.
        state: made in the strategy's scope.
        settings: how an update is made.
        compiled: whether XLA compiles it; None for GPUs only.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        state: TrainState,
        settings: StepSettings,
        *,
        compiled: bool | None = None,
    ):
        self._strategy = strategy
        self._state = state
        self._settings = settings
        self.compiled = _compiles_by_default(strategy) if compiled is None else compiled
        self._update = self._on_device
        if self.compiled:
            self._update = tf.function(self._on_device, jit_compile=True)
        net, averages = state.net, state.ema_net.variables if state.ema_net is not None else []
        self._weights = [tensor_variable(v) for v in net.trainable_variables]
        self._statistics = [tensor_variable(v) for v in updated_statistics(net)]
        self._averages = [tensor_variable(v) for v in averages]
        self._iterations = tensor_variable(state.optimizer.iterations)
        slots = [tensor_variable(v) for v in state.optimizer.variables]
        slots = [slot for slot in slots if slot is not self._iterations]
        self._slow = list(state.slow.values())  # In the order of the weights.
        self._updated = [*self._weights, *slots, *self._averages, *self._slow]

    def __call__(self, gradients, sums, before, after) -> None:
        """Makes an update. Call it in cross-replica context.

        Args:
            gradients: of the scaled loss, one for each trainable variable, summed over the batch.
            sums: over the examples of the batch, of the loss and the metrics, by name.
            before: BatchNorm's moving statistics before the step.
            after: their means over the replicas after it.
        """
        # The variable only names the devices.
        self._strategy.extended.update(
            self._iterations,
            lambda _, *args: self._update(*args),
            args=(gradients, sums, before, after),
            group=False,
        )

    def _on_device(self, gradients, sums, before, after) -> None:
        """The update of the copies of all variables on one device."""
        clip_norm = self._settings.clip_norm
        gradients = unscale(gradients, self._state.loss_scale)
        norm, loss = tf.linalg.global_norm(gradients), sums["loss"][0]
        if clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, clip_norm, use_norm=norm)
        finite = tf.math.is_finite(norm) & tf.math.is_finite(loss)
        overflow = self._rescale(norm, loss)
        counts = self._record_nonfinite(finite, overflow, norm, loss)
        for variable, old, new in zip(self._statistics, before, after, strict=True):
            variable.assign(tf.where(finite, new, old))
        self._if(finite, lambda: self._change(gradients), self._updated)
        if self._slow:  # They go back after a step that counts, with or without an update.
            self._if(counts & ~finite, self._look_ahead, [*self._slow, *self._weights])
        self._iterations.assign_add(tf.cast(counts, tf.int64))
        self._add_to_window(finite, norm, sums)

    def _if(self, condition, change: Callable[[], None], variables) -> None:
        """Calls a function that changes some variables, if a condition holds."""
        if not self.compiled:
            tf.cond(condition, change, lambda: None)
            return
        # A branch would wait for the host. Once compiled, nothing is written twice.
        before = [variable.read_value() for variable in variables]
        change()
        for variable, old in zip(variables, before, strict=True):
            variable.assign(tf.where(condition, variable.read_value(), old))

    def _change(self, gradients) -> None:
        settings = self._settings
        apply_update(
            self._state.optimizer,
            self._weights,
            gradients,
            weight_decay=settings.weight_decay,
            decoupled=settings.decoupled_decay,
            multipliers=settings.rate_multipliers,
        )
        self._look_ahead()
        self._average()

    def _look_ahead(self) -> None:
        """Moves the weights back now and then, as `StepSettings.lookahead_steps` says."""
        if not self._slow:
            return

        def go_back():
            for slow, weight in zip(self._slow, self._weights, strict=True):
                slow.assign_add(0.5 * (weight - slow))
                weight.assign(slow)

        done = self._iterations + 1
        is_due = done % self._settings.lookahead_steps == 0
        if self._settings.total_steps is not None:
            is_due |= done == self._settings.total_steps
        self._if(is_due, go_back, [*self._slow, *self._weights])

    def _average(self) -> None:
        """Updates the moving averages of weights and BatchNorm statistics.

        The decay is lower at first, min(decay, (1 + step) / (10 + step)), so that the random
        initial weights are soon forgotten.
        """
        if not self._averages:
            return
        step = tf.cast(self._iterations + 1, tf.float32)
        decay = tf.minimum(self._settings.ema_decay, (1 + step) / (10 + step))
        variables = [tensor_variable(v) for v in self._state.net.variables]
        for average, variable in zip(self._averages, variables, strict=True):
            average.assign_sub((1 - decay) * (average - tf.cast(variable, average.dtype)))

    def _rescale(self, norm, loss) -> tf.Tensor:
        """Adapts the loss scale; returns whether the gradients overflowed because of it, bool.

        Overflows are expected in float16, and do not mean that training diverges.
        """
        scale = self._state.loss_scale
        if scale is None:
            return tf.constant(False)
        fits = tf.math.is_finite(norm)
        overflow = ~fits & tf.math.is_finite(loss) & (scale.scale > 1)
        variables = [scale.scale, scale.good_steps]
        self._if(fits | overflow, lambda: scale.update(fits), variables)
        return overflow

    def _record_nonfinite(self, finite, overflow, norm, loss) -> tf.Tensor:
        """Records an update that is not finite; returns whether the step counts, a scalar bool.

        A step whose update is dropped counts, since its batch has been seen.
        """
        guard, skips = self._state.guard, self._settings.on_nan == "skip"
        wrong = ~finite & ~overflow
        one = tf.cast(wrong, tf.int64)
        if skips:
            guard["skipped"].assign_add(one)
        guard["in_a_row"].assign(tf.where(finite, 0 * one, guard["in_a_row"] + one))
        guard["stuck"].assign(guard["in_a_row"] >= (MAX_CONSECUTIVE_SKIPS if skips else 1))
        loss /= self._settings.global_batch_size
        for name, value in (("loss", loss), ("gradient_norm", norm)):
            guard[name].assign(tf.where(wrong, value, guard[name]))
        return ~wrong if not skips else tf.constant(True)

    def _add_to_window(self, finite, norm, sums) -> None:
        """Adds to the training metrics; an update that is not finite is left out."""
        window, examples = self._state.window, self._settings.global_batch_size
        for name, value in {**sums, "gradient_norm": norm}.items():
            # Not multiplied by 0.
            value = tf.cast(value, tf.float64)
            window[name].assign_add(tf.where(finite, value, tf.zeros_like(value)))
        mean = tf.cast(sums["loss"][0] / examples, tf.float64)
        is_highest = finite & ((window["steps"] == 0) | (mean > window["highest_loss"]))
        step = tf.cast(self._iterations, tf.float64)
        for name, value in (("highest_loss", mean), ("highest_loss_step", step)):
            window[name].assign(tf.where(is_highest, value, window[name]))
        window["examples"].assign_add(tf.where(finite, tf.constant(examples, tf.int64), 0))
        window["steps"].assign_add(tf.cast(finite, tf.int64))
