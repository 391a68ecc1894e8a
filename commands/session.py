"""What is trained, made from a run's configuration: for train.py, and for what replays a step."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

import nets
from commands import build
from commands.config import Config
from commands.initial_weights import Start
from commands.saved_config import DataInfo
from loops.losses import balanced_class_weights
from loops.optimizer import find_optimizer, make_optimizer
from loops.schedule import LearningRate
from loops.state import TrainState
from loops.step import StepSettings


def make_state(
    config: Config,
    info: DataInfo,
    strategy: tf.distribute.Strategy,
    learning_rate: LearningRate,
    *,
    start: Start | None = None,
    say: Callable[[str], None] = print,
) -> TrainState:
    """Creates every variable of a run, eagerly, in the strategy's scope.

    Args:
        config: of the run.
        info: of the run.
        strategy: whose replicas hold the variables.
        learning_rate: the schedule.
        start: copies the initial weights, if there are any.
        say: prints a message.
    """
    # Keras numbers the layers of a process in their names, and rounding can depend on the names.
    tf.keras.backend.clear_session()
    tf.keras.utils.set_random_seed(config.seed)
    with strategy.scope():
        net = build.build_net(config, info)
        if start is not None:
            head = "included" if start(net) else "new"
            say(f"start  {config.init_from}; the head is {head}")
        if config.freeze:
            say(f"frozen {', '.join(name for name in net.stage_names if name in config.freeze)}")
        ema_net = build.build_net(config, info) if config.ema_decay else None
        optimizer = make_optimizer(config.optimizer, net, learning_rate, momentum=config.momentum)
        return TrainState(
            net, optimizer, ema_net=ema_net, loss_scale=config.precision == "mixed_float16"
        )


def step_settings(
    config: Config, info: DataInfo, labels: np.ndarray, net: nets.Net
) -> StepSettings:
    """How the updates of a run are made.

    Args:
        config: of the run.
        info: of the run.
        labels: of the train split.
        net: what is trained.
    """
    class_weights = None
    if config.class_weights == "balanced":
        class_weights = balanced_class_weights(labels, len(info.class_names))
    return StepSettings(
        global_batch_size=config.batch_size,
        loss=config.loss,
        class_weights=class_weights,
        accumulation=config.accumulation,
        label_smoothing=config.label_smoothing,
        weight_decay=config.weight_decay,
        decoupled_decay=find_optimizer(config.optimizer).decoupled,
        rate_multipliers=_rate_multipliers(config, net),
        clip_norm=config.clip_norm,
        ema_decay=config.ema_decay,
        auxiliary_weight=nets.net_class(config.net).auxiliary_weight,
        seed=config.seed,
        jit=config.jit,
        on_nan=config.on_nan,
    )


def _rate_multipliers(config: Config, net: nets.Net) -> tuple[float, ...] | None:
    """What multiplies the learning rate of each trainable variable; None for 1 everywhere."""
    if config.head_learning_rate in (None, config.learning_rate):
        return None
    multiplier = config.head_learning_rate / config.learning_rate
    of_heads = {id(v) for head in net.heads.values() for v in head.variables}
    return tuple(multiplier if id(v) in of_heads else 1.0 for v in net.trainable_variables)
