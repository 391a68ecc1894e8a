"""All variables of a run at a step: what a checkpoint holds and a resume restores.

- `net`: weights and BatchNorm statistics
- `ema_net`: their moving averages, if there are any
- `slow`: where the weights were when they were last moved back, with Lookahead
- `optimizer`: the global step and the slots
- `window`: sums of the training metrics since they were last logged
- `progress`: the best validation figures, their step, and the step that was last evaluated
- `guard`: counts and figures of updates that were not finite
- `loss_scale`: for float16, if it is in use
"""

import math

import tensorflow as tf

from loops.metrics import METRICS, summarize
from loops.optimizer import optimizer_variables
from loops.variables import named_variables, nest

# What else is in rows and results, and names of sums.
_TAKEN = {
    *("split", "step", "epoch", "loss", "gradient_norm", "highest_loss", "highest_loss_step"),
    *("examples", "steps", "learning_rate", "weight_norm", "skipped_updates"),
    *("per_class", "checkpoint", "selected_on"),
}


def _variable(value, dtype, name: str) -> tf.Variable:
    return tf.Variable(
        value,
        dtype=dtype,
        trainable=False,
        name=name,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


class LossScale:
    """A power of two that keeps float16 gradients from vanishing.

    The scale is halved when a gradient overflows, and that update is dropped on all replicas; it is
    doubled after `growth_steps` updates without an overflow (Micikevicius et al. 2017, section 3.2,
    with the constants of Keras' LossScaleOptimizer).
    """

    def __init__(self, growth_steps: int = 2000):
        self.growth_steps = growth_steps
        self.scale = _variable(2.0**15, tf.float32, "scale")
        self.good_steps = _variable(0, tf.int64, "good_steps")

    def update(self, finite: tf.Tensor) -> None:
        """Adapts the scale to whether a step's gradients were finite. Cross-replica."""
        zero = tf.zeros_like(self.good_steps)
        good = tf.where(finite, self.good_steps + 1, zero)
        grow = good >= self.growth_steps
        grown = tf.where(grow, self.scale * 2, self.scale)
        self.scale.assign(tf.where(finite, grown, tf.maximum(self.scale / 2, 1.0)))
        self.good_steps.assign(tf.where(grow, zero, good))


def _slow_weights(net) -> dict[str, tf.Variable]:
    """Copies of the trainable weights, by their paths, in the order of the weights."""
    trainable = {id(v) for v in net.trainable_variables}
    named = named_variables(net).items()
    return {path: _variable(v.value, v.dtype, "slow") for path, v in named if id(v) in trainable}


class TrainState:
    """The variables of a run. Make it in the strategy's scope, after the net and the optimizer.

    Args:
        net: the net, built.
        optimizer: from `loops.optimizer.make_optimizer`, for that net.
        ema_net: a second net like the first, which holds the averages; None for no averages.
        loss_scale: whether gradients are scaled, for float16.
        lookahead: whether the weights are moved back now and then (see `StepSettings`).
    """

    def __init__(
        self, net, optimizer, *, ema_net=None, loss_scale: bool = False, lookahead: bool = False
    ):
        self.net = net
        self.ema_net = ema_net
        self.optimizer = optimizer
        self.loss_scale = LossScale() if loss_scale else None
        self.slow = _slow_weights(net) if lookahead else {}
        if taken := sorted(_TAKEN & METRICS.keys()):
            raise ValueError(f"a metric cannot be called {taken[0]!r}, which rows have already")
        self.window = {
            "loss": _variable([0], tf.float64, "loss"),
            "gradient_norm": _variable(0, tf.float64, "gradient_norm"),
            # Of a single update, and the step that it led to.
            "highest_loss": _variable(0, tf.float64, "highest_loss"),
            "highest_loss_step": _variable(0, tf.float64, "highest_loss_step"),
            "examples": _variable(0, tf.int64, "examples"),
            "steps": _variable(0, tf.int64, "steps"),
            **{name: _variable([0] * m.size, tf.float64, name) for name, m in METRICS.items()},
        }
        self.progress = {
            "best_metric_value": _variable(math.nan, tf.float64, "best_metric_value"),
            "best_loss": _variable(math.inf, tf.float64, "best_loss"),
            "best_step": _variable(-1, tf.int64, "best_step"),
            "evaluated_step": _variable(-1, tf.int64, "evaluated_step"),
        }
        self.guard = {
            # Updates that were dropped: in all, and since the last one that was not.
            "skipped": _variable(0, tf.int64, "skipped"),
            "in_a_row": _variable(0, tf.int64, "in_a_row"),
            # How often training went back to a checkpoint, and the batches it left out in all.
            "restores": _variable(0, tf.int64, "restores"),
            "batches_left_out": _variable(0, tf.int64, "batches_left_out"),
            # Set when training cannot continue: loss and gradient norm of the next update.
            "stuck": _variable(False, tf.bool, "stuck"),
            "loss": _variable(0, tf.float32, "bad_loss"),
            "gradient_norm": _variable(0, tf.float32, "bad_gradient_norm"),
        }
        if ema_net is not None:
            for average, variable in zip(ema_net.variables, net.variables, strict=True):
                average.assign(variable)

    @property
    def step(self) -> int:
        """The global step: updates made so far."""
        return int(self.optimizer.iterations.numpy())

    @property
    def eval_net(self):
        """The net that is evaluated: the averages if there are any."""
        return self.net if self.ema_net is None else self.ema_net

    def is_finite(self) -> bool:
        """Whether every weight, statistic, average and slot is finite."""
        return bool(self._is_finite())

    def _is_finite(self):
        nets = [self.net] + ([] if self.ema_net is None else [self.ema_net])
        variables = [v for net in nets for v in net.variables] + self.optimizer.variables
        floats = [v.value for v in variables if v.dtype.startswith(("float", "bfloat"))]
        return tf.reduce_all([tf.reduce_all(tf.math.is_finite(v)) for v in floats])

    def weight_norm(self) -> float:
        """The Euclidean norm of all trainable weights."""
        return float(self._weight_norm())

    @tf.function
    def _weight_norm(self):
        return tf.linalg.global_norm([v.value for v in self.net.trainable_variables])

    def window_figures(self) -> dict[str, float]:
        """The training figures since `reset_window`; NaN if no update was made.

        The loss and every metric are means over the examples, `gradient_norm` over the updates;
        `highest_loss` is that of the update with the highest.
        """
        window = {name: variable.numpy() for name, variable in self.window.items()}
        # Updates that were dropped are in no sum.
        examples, steps = window["examples"] or math.nan, window["steps"] or math.nan
        return {
            "loss": float(window["loss"][0] / examples),
            **summarize({name: window[name] / examples for name in METRICS}),
            "gradient_norm": float(window["gradient_norm"] / steps),
            "highest_loss": float(window["highest_loss"]) if window["steps"] else math.nan,
        }

    def reset_window(self) -> None:
        """Sets the sums of the training metrics to 0."""
        for variable in self.window.values():
            variable.assign(tf.zeros_like(variable))

    def parts(self) -> dict[str, object]:
        """What a checkpoint holds, by name."""
        parts = {
            "net": self.net,
            "optimizer": optimizer_variables(self.optimizer, self.net),
            "window": self.window,
            "progress": self.progress,
            "guard": self.guard,
        }
        if self.ema_net is not None:
            parts["ema_net"] = self.ema_net
        if self.slow:
            parts["slow"] = nest(self.slow)
        if self.loss_scale is not None:
            scale = self.loss_scale
            parts["loss_scale"] = {"scale": scale.scale, "good_steps": scale.good_steps}
        return parts

    def num_variables(self) -> int:
        """The number of variables a checkpoint must hold, counted without looking at one."""
        return (
            len(self.net.variables)
            + (len(self.ema_net.variables) if self.ema_net is not None else 0)
            + len(self.optimizer.variables)
            + len(self.slow)
            + len(self.window)
            + len(self.progress)
            + len(self.guard)
            + (2 if self.loss_scale is not None else 0)
        )
