"""What is trained, made from a run's configuration: for train.py, and for what replays a step."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

import data
import nets
from commands import build
from commands.config import Config
from commands.initial_weights import Start
from commands.saved_config import DataInfo
from commands.setting import ConfigError
from loops.losses import balanced_class_weights
from loops.optimizer import find_optimizer, make_optimizer
from loops.schedule import LearningRate, Plan
from loops.state import TrainState
from loops.step import StepSettings, TrainStep
from nets.initialize import make_identity, whiten

_WHITENING_IMAGES, _WHITENING_VALUES = 5000, 2**24
_BIASES = ("bias", "beta")


def make_state(
    config: Config,
    info: DataInfo,
    strategy: tf.distribute.Strategy,
    learning_rate: LearningRate,
    *,
    start: Start | None = None,
    examples: Callable[[int], np.ndarray] | None = None,
    say: Callable[[str], None] = print,
) -> TrainState:
    """Creates every variable of a run, eagerly, in the strategy's scope.

    Args:
        config: of the run.
        info: of the run.
        strategy: whose replicas hold the variables.
        learning_rate: the schedule.
        start: copies the initial weights, if there are any.
        examples: gives so many training images, or all, normalized; needed if `config.whiten` is
            set, and None where a checkpoint will be restored.
        say: prints a message.

    Raises:
        ConfigError: the optimizer has settings that would be ignored.
    """
    # Keras numbers the layers of a process in their names, and rounding can depend on the names.
    tf.keras.backend.clear_session()
    tf.keras.utils.set_random_seed(config.seed)
    with strategy.scope():
        net = build.build_net(config, info)
        if start is not None:
            head = "included" if start(net) else "new"
            say(f"start  {config.init_from}; the head is {head}")
        if config.identity:
            make_identity(net)
        if config.whiten and examples is not None:
            height, width, channels = info.image_shape
            count = min(_WHITENING_IMAGES, _WHITENING_VALUES // (height * width * channels) + 1)
            whiten(net, examples(count))
        if config.freeze:
            say(f"frozen {', '.join(name for name in net.stage_names if name in config.freeze)}")
        ema_net = build.build_net(config, info) if config.ema_decay else None
        try:
            optimizer = make_optimizer(
                config.optimizer, net, learning_rate, momentum=config.momentum
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return TrainState(
            net,
            optimizer,
            ema_net=ema_net,
            loss_scale=config.precision == "mixed_float16",
            lookahead=config.lookahead_steps > 0,
        )


def some_examples(dataset: data.Dataset) -> Callable[[int], np.ndarray]:
    """The function that `make_state` takes as `examples`: evenly from all of the train split.

    The files of a folder are in the order of their classes.
    """

    def examples(count: int) -> np.ndarray:
        size = len(dataset.splits["train"].labels)
        numbers = np.linspace(0, size - 1, min(count, size)).astype(np.int64)
        return dataset.examples("train", numbers)[0]

    return examples


def make_step(
    config: Config,
    info: DataInfo,
    labels: np.ndarray,
    strategy: tf.distribute.Strategy,
    state: TrainState,
    learning_rate: LearningRate,
    prepare: Callable[..., tuple[tf.Tensor, tf.Tensor]],
) -> TrainStep:
    """Makes the update of a run, for training, the learning rate range test and replay.

    To train with another kind of update, return a subclass of `TrainStep` here.

    Args:
        config: of the run.
        info: of the run.
        labels: of the train split.
        strategy: whose replicas compute it.
        state: what it changes.
        learning_rate: the schedule.
        prepare: turns what the pipeline yields into images and targets, `TrainPipeline.prepare`.
    """
    settings = step_settings(config, info, labels, state.net)
    return TrainStep(strategy, state, settings, learning_rate, prepare)


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
        sizes=build.train_sizes(config, info),
        image_size=min(info.image_shape[:2]),
        loss=config.loss,
        class_weights=class_weights,
        accumulation=config.accumulation,
        label_smoothing=config.label_smoothing,
        weight_decay=config.weight_decay,
        decoupled_decay=find_optimizer(config.optimizer).decoupled,
        rate_multipliers=_rate_multipliers(config, net),
        clip_norm=config.clip_norm,
        ema_decay=config.ema_decay,
        lookahead_steps=config.lookahead_steps,
        total_steps=Plan(config.epochs, info.examples["train"], config.batch_size).total_steps,
        auxiliary_weight=net.auxiliary_weight,
        seed=config.seed,
        jit=config.jit,
        on_nan=config.on_nan,
    )


def _rate_multipliers(config: Config, net: nets.Net) -> tuple[float, ...] | None:
    """What multiplies the learning rate of each trainable variable; None for 1 everywhere."""
    rates = (config.head_learning_rate, config.bias_learning_rate)
    if all(rate in (None, config.learning_rate) for rate in rates):
        return None
    of_heads = {id(v) for head in net.heads.values() for v in head.variables}

    def rate(variable):
        if len(variable.shape) == 1 and variable.name in _BIASES and config.bias_learning_rate:
            return config.bias_learning_rate
        if id(variable) in of_heads and config.head_learning_rate:
            return config.head_learning_rate
        return config.learning_rate

    return tuple(rate(v) / config.learning_rate for v in net.trainable_variables)
