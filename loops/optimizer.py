"""From summed gradients to new weights: optimizers, weight decay, clipping.

The update rules are Keras'. What Keras' optimizers do around them is done here instead, because
there clipping comes before the replicas' gradients are summed, and weight decay takes BatchNorm
and biases along.
"""

import tensorflow as tf

from loops.variables import named_variables, nest, tensor_variable

OPTIMIZERS = ("sgd", "adam", "adamw")
# Decay as a gradient of the loss, 0.5 * decay * |w|^2 (Krizhevsky et al. 2012), except AdamW's,
# which multiplies the weights and bypasses the moments (Loshchilov & Hutter 2017, algorithm 2).
DECOUPLED_DECAY = ("adamw",)


def make_optimizer(
    name: str, net: tf.keras.layers.Layer, learning_rate, *, momentum: float = 0.9
) -> tf.keras.optimizers.Optimizer:
    """A Keras optimizer with its slots made, for the trainable variables of a built net.

    Args:
        name: one of `OPTIMIZERS`.
        net: the net.
        learning_rate: a LearningRateSchedule.
        momentum: of "sgd", which is Nesterov's unless it is 0; beta_1 of the others stays 0.9.

    Raises:
        ValueError: the name is unknown.
    """
    if name == "sgd":
        optimizer = tf.keras.optimizers.SGD(learning_rate, momentum=momentum, nesterov=momentum > 0)
    elif name in ("adam", "adamw"):
        # AdamW's rule but for its decay, which `apply_update` does.
        optimizer = tf.keras.optimizers.Adam(learning_rate)
    else:
        raise ValueError(f"unknown optimizer {name!r}; known: {', '.join(OPTIMIZERS)}")
    optimizer.build(net.trainable_variables)
    return optimizer


def optimizer_variables(optimizer, net: tf.keras.layers.Layer) -> dict:
    """The global step and the slots as nested dictionaries, by the names of the net's variables.

    Keras would key them by position, and a checkpoint of a changed net could then restore into the
    wrong variables.
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


def clip_by_global_norm(gradients, norm: tf.Tensor, clip_norm: float):
    """Scales all gradients down so that their norm, which is given, is at most `clip_norm`."""
    scale = clip_norm / tf.maximum(norm, clip_norm)
    return [gradient * scale for gradient in gradients]


def apply_update(
    strategy: tf.distribute.Strategy,
    optimizer: tf.keras.optimizers.Optimizer,
    variables,
    gradients,
    *,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """One update of the weights and slots. Call it in cross-replica context.

    Args:
        strategy: whose replicas hold the variables.
        optimizer: from `make_optimizer`.
        variables: trainable variables of the net.
        gradients: one for each variable, summed over the replicas, on every replica.
        weight_decay: for the variables of `is_decayed`.
        decoupled: whether the decay bypasses the update rule.
    """
    learning_rate = optimizer.learning_rate

    def update(variable, gradient, decay):
        if decay and decoupled:
            variable.assign_sub(variable * (decay * learning_rate))
        elif decay:
            gradient += decay * variable
        optimizer.update_step(gradient, variable, learning_rate)

    for variable, gradient in zip(variables, gradients, strict=True):
        decay = weight_decay if is_decayed(variable) else 0.0
        strategy.extended.update(
            tensor_variable(variable), update, args=(gradient, decay), group=False
        )
