"""From summed gradients to new weights: optimizers and weight decay.

The update rules are Keras' (LAMB's and Muon's were made to fit convolutional nets). What Keras'
optimizers do around a rule is done here instead: clipping must follow the sum over replicas, and
weight decay must leave BatchNorm and biases out.

To add an optimizer, add a line to `OPTIMIZERS`.
"""

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from loops.lamb import Lamb
from loops.muon import Muon
from loops.tracing import with_autograph
from loops.variables import named_variables, nest

_keras = tf.keras.optimizers


@dataclasses.dataclass(frozen=True)
class OptimizerChoice:
    """An optimizer and its defaults.

    Attributes:
        make: returns the Keras optimizer, from a learning rate and, if it takes one, `momentum`.
        learning_rate: default peak learning rate.
        weight_decay: default weight decay.
        decoupled: whether weight decay multiplies the weights and bypasses the update rule
            (Loshchilov & Hutter 2017, algorithm 2), or is part of the gradient, as the derivative
            of 0.5 * decay * |w|^2 (Krizhevsky et al. 2012).
        takes_momentum: whether `--momentum` applies.
    """

    make: Callable[..., tf.keras.optimizers.Optimizer]
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    decoupled: bool = True
    takes_momentum: bool = False


def _sgd(learning_rate, momentum: float) -> tf.keras.optimizers.Optimizer:
    """SGD with Nesterov momentum, unless the momentum is 0."""
    return _keras.SGD(learning_rate, momentum=momentum, nesterov=momentum > 0)


OPTIMIZERS: dict[str, OptimizerChoice] = {
    "sgd": OptimizerChoice(_sgd, 0.2, 5e-4, decoupled=False, takes_momentum=True),
    "adam": OptimizerChoice(_keras.Adam, decoupled=False),
    # AdamW's rule is Adam's; its decay is applied here.
    "adamw": OptimizerChoice(_keras.Adam, weight_decay=0.05),
    "adadelta": OptimizerChoice(_keras.Adadelta, 1.0),
    "adagrad": OptimizerChoice(_keras.Adagrad, 0.01),
    "adamax": OptimizerChoice(_keras.Adamax),
    "lamb": OptimizerChoice(Lamb),
    "lion": OptimizerChoice(_keras.Lion, 1e-4),
    "muon": OptimizerChoice(Muon, 0.05, takes_momentum=True),
    "rmsprop": OptimizerChoice(_keras.RMSprop),
}

# Keras optimizers that do not work with an update rule applied variable by variable, and why.
REFUSED = {
    "adafactor": "Keras does not name its slots after the variables, as checkpoints need it",
    "ftrl": "it computes weights from its accumulators alone, and so discards the initial ones",
    "nadam": "it keeps a product of momenta that its update rule alone does not advance",
    "schedulefreeadamw": "it evaluates at other weights than it trains; use --ema_decay",
    "lossscaleoptimizer": "--precision=mixed_float16 scales the loss already",
    "multioptimizer": "it needs other optimizers to divide the weights among",
}


# Settings of Keras optimizers that act outside the update rule, and what is here in their place.
_IGNORED = {
    "weight_decay": "--weight_decay",
    "clipnorm": "--clip_norm",
    "clipvalue": "--clip_norm",
    "global_clipnorm": "--clip_norm",
    "use_ema": "--ema_decay",
    "gradient_accumulation_steps": "--accumulation",
    "loss_scale_factor": "--precision=mixed_float16",
}


def find_optimizer(name: str) -> OptimizerChoice:
    """The entry of an optimizer.

    Raises:
        ValueError: there is none of that name.
    """
    if name.lower() in REFUSED:
        raise ValueError(f"optimizer {name!r} is not supported: {REFUSED[name.lower()]}")
    if name not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        raise ValueError(f"unknown optimizer {name!r}; known optimizers: {known}")
    return OPTIMIZERS[name]


def make_optimizer(
    name: str, net: tf.keras.layers.Layer, learning_rate, *, momentum: float = 0.9
) -> tf.keras.optimizers.Optimizer:
    """Makes a Keras optimizer and its slots for the trainable variables of a built net.

    Args:
        name: a key of `OPTIMIZERS`.
        net: the net.
        learning_rate: a LearningRateSchedule.
        momentum: for optimizers that take one.

    Raises:
        ValueError: the name is unknown, or the optimizer has settings that would be ignored.
    """
    choice = find_optimizer(name)
    arguments = {"momentum": momentum} if choice.takes_momentum else {}
    optimizer = choice.make(learning_rate, **arguments)
    for setting, flag in _IGNORED.items():
        if value := getattr(optimizer, setting, None):
            raise ValueError(
                f"optimizer {name!r}: its {setting}={value} would be ignored; make it without, and "
                f"use {flag}"
            )
    optimizer.build(net.trainable_variables)
    return optimizer


def optimizer_variables(optimizer, net: tf.keras.layers.Layer) -> dict:
    """The global step and the slots as nested dictionaries, by the names of the net's variables.

    Keras keys slots by position, which could restore a checkpoint of a changed net into the wrong
    variables.

    Raises:
        ValueError: a slot belongs to no variable of the net.
    """
    flat = {}
    slots = [v for v in optimizer.variables if v is not optimizer.iterations]
    for path, variable in named_variables(net).items():
        prefix = variable.path.replace("/", "_") + "_"
        for slot in slots:
            if slot.name.startswith(prefix):
                flat[f"{slot.name.removeprefix(prefix)}/{path}"] = slot
    if len(flat) != len(slots):
        raise ValueError(f"{len(flat)} of {len(slots)} optimizer slots belong to the net")
    return {"iterations": optimizer.iterations, **nest(flat)}


def is_decayed(variable) -> bool:
    """Whether weight decay applies: to kernels, not to biases or BatchNorm's scale and offset."""
    return len(variable.shape) > 1


def apply_update(
    optimizer: tf.keras.optimizers.Optimizer,
    variables,
    gradients,
    *,
    weight_decay: float,
    decoupled: bool,
    multipliers: Sequence[float] | None = None,
) -> None:
    """Updates the weights and slots on one device once.

    Call it on each device, inside `tf.distribute.StrategyExtended.update`.

    Args:
        optimizer: from `make_optimizer`.
        variables: trainable variables of the net.
        gradients: one for each variable, summed over the replicas.
        weight_decay: for the variables of `is_decayed`.
        decoupled: see `OptimizerChoice`.
        multipliers: of the learning rate, one for each variable; None for 1. Decoupled decay uses
            the multiplied rate too.
    """
    if multipliers is None:
        multipliers = [1.0] * len(variables)
    rate = optimizer.learning_rate
    update_step = with_autograph(type(optimizer).update_step)
    for variable, gradient, multiplier in zip(variables, gradients, multipliers, strict=True):
        learning_rate = rate if multiplier == 1 else rate * multiplier
        decay = weight_decay if is_decayed(variable) else 0.0
        if decay and decoupled:
            variable.assign_sub(variable * (decay * learning_rate))
        elif decay:
            gradient += decay * variable
        update_step(optimizer, gradient, variable, learning_rate)
