"""Builds nets, plans and pipelines from a configuration, and checks that its settings fit."""

import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Collection, Sequence

import tensorflow as tf

import data
import nets
from commands.checks import check_batch_size, check_settings, parse_train_sizes
from commands.config import Config
from commands.saved_config import DataInfo, Origin
from commands.setting import ConfigError, convert
from data import variants as data_variants
from loops.distributed.workers import Workers
from loops.hooks import make_hooks
from loops.inputs import on_gpus
from loops.losses import LOSSES
from loops.metrics import higher_is_better
from loops.optimizer import find_optimizer
from loops.schedule import SCHEDULES, LearningRate, Plan


def check(config: Config, workers: int = 1) -> None:
    """Checks what can be checked before any data is read.

    Args:
        config: the settings.
        workers: number of processes that train together.

    Raises:
        ConfigError, data.DataError: a value is not accepted, a name is unknown, or settings cannot
            be combined.
    """
    convert(dataclasses.asdict(config), Config)  # A notebook makes a Config of any values.
    _check_name("net", config.net, nets.NETS)
    if not data.is_dataset(config.dataset):
        _check_name("dataset", config.dataset, [*data.DATASETS, "tfds:NAME"])
    _check_name("loss", config.loss, LOSSES)
    _check_name("schedule", config.schedule, SCHEDULES)
    _accept("optimizer", lambda: find_optimizer(config.optimizer))
    _accept("best_metric", lambda: higher_is_better(config.best_metric))
    _accept("hooks", lambda: make_hooks(config.hooks))
    if config.augment is not None:
        data.parse_augment(config.augment)
    check_settings(config, workers)


def check_net(config: Config, workers: int = 1) -> None:
    """Checks what is needed to build and score the net of a saved run; raises as `check`.

    The tables of augmentations, optimizers or hooks may have changed since it was trained.
    """
    _check_name("net", config.net, nets.NETS)
    _check_name("loss", config.loss, LOSSES)
    check_batch_size(config, workers)


def _check_name(setting: str, name: str, table: Collection[str]) -> None:
    if name not in table:
        raise ConfigError(f"--{setting}={name} is unknown; known: {', '.join(table)}")


def _accept(setting: str, make: Callable[[], object]) -> None:
    try:
        make()
    except ValueError as error:
        raise ConfigError(f"--{setting}: {error}") from error


def load_data(config: Config) -> data.Dataset:
    """Loads the dataset of a configuration.

    Raises:
        data.DataError: it cannot be used.
    """
    return data.load(
        config.dataset,
        data_dir=config.data_dir,
        val_fraction=config.val_fraction,
        image_size=config.image_size,
        bad_images=config.bad_images,
    )


def check_validation(config: Config, dataset: data.Dataset) -> None:
    """Raises ConfigError if a fraction is to be held out, and there is a validation split."""
    if dataset.own_val and config.val_fraction != Config.val_fraction:
        raise ConfigError(
            f"--val_fraction={config.val_fraction}: {dataset.name} has a validation split of its "
            "own; leave the flag out, or train without validation with --val_fraction=0"
        )


def with_absolute_paths(config: Config) -> Config:
    """The same settings with paths that hold in any working directory.

    Raises:
        ConfigError: the working directory is not text in UTF-8.
    """
    paths = {
        name: os.path.realpath(pathlib.Path(value).expanduser())
        for name in ("data_dir", "init_from")
        if (value := getattr(config, name)) not in (None, "keras")
    }
    return convert(dataclasses.asdict(config) | paths, Config)


def default_stem(image_shape: tuple[int, int, int], origin: Origin | None = None) -> str:
    """The stem that suits the images, or the weights that the run starts from."""
    return origin.stem if origin else nets.default_stem(image_shape)


def resolve(config: Config, dataset: data.Dataset, origin: Origin | None = None) -> Config:
    """Fills in the defaults that depend on the net, the data or other settings.

    Args:
        config: the settings.
        dataset: the data.
        origin: of the initial weights, if there are any.

    Raises:
        ConfigError, nets.NetError, data.DataError: settings do not suit the net or the data.
    """
    net, optimizer = nets.net_class(config.net), find_optimizer(config.optimizer)
    size = len(dataset.splits["train"].labels)
    height, width, _ = dataset.image_shape
    steps = Plan(config.epochs, size, config.batch_size).total_steps
    augment = dataset.augment if config.augment is None else config.augment
    defaults = {
        "stem": default_stem(dataset.image_shape, origin),
        "label_smoothing": net.label_smoothing,
        # The net's own, or in a short run one that forgets the initial statistics early in it.
        "batch_norm_momentum": min(net.batch_norm_momentum, max(0.9, round(1 - 50 / steps, 4))),
        "learning_rate": optimizer.learning_rate,
        "weight_decay": optimizer.weight_decay,
        "warmup_epochs": min(1.0, config.epochs / 5),
        "eval_crop": data.default_eval_crop(data.parse_augment(augment)),
        # Images that are not square keep the size they have.
        "image_size": height if height == width else None,
    }
    missing = {name: x for name, x in defaults.items() if getattr(config, name) is None}
    augment = data.format_augment(data.parse_augment(augment))
    config = dataclasses.replace(config, **missing, augment=augment)
    nets.check_size(config.net, dataset.image_shape, config.stem)
    check_stages(config)
    make_plan(config, size)
    if config.lookahead_steps > steps:
        raise ConfigError(
            f"--lookahead_steps={config.lookahead_steps} is more than the {steps:,} steps of "
            "the run"
        )
    info = data_info(dataset)
    if (sizes := train_sizes(config, info)) and config.auxiliary:
        channels = info.image_shape[-1]
        shapes = [info.image_shape, *((size, size, channels) for _, size in sizes)]
        _accept("train_sizes", lambda: nets.check_auxiliary_heads(config.net, shapes, config.stem))
    return config


def check_stages(config: Config) -> None:
    """Checks settings that depend on the stages of the net, once the stem is known.

    Raises:
        ConfigError: --freeze, --head_learning_rate or --whiten does not suit the net.
    """
    if config.whiten:
        _accept("whiten", lambda: nets.check_whitening(config.net, config.freeze, config.stem))
    _accept("freeze", lambda: nets.check_stages(config.net, config.freeze, stem=config.stem))
    if config.head_learning_rate is not None:
        _accept(
            "head_learning_rate", lambda: nets.check_head(config.net, config.freeze, config.stem)
        )


def data_info(dataset: data.Dataset) -> DataInfo:
    """What a run remembers of its data."""
    splits = dataset.splits
    return DataInfo(
        name=dataset.name,
        class_names=tuple(dataset.class_names),
        image_shape=tuple(dataset.image_shape),
        mean=tuple(dataset.mean),
        std=tuple(dataset.std),
        examples={split: len(source.labels) for split, source in splits.items()},
        fingerprints={split: f"{source.fingerprint():08x}" for split, source in splits.items()},
    )


def normalized_for(origin: Origin | None, config: Config, info: DataInfo) -> DataInfo:
    """The same data, normalized as the initial weights were trained on theirs.

    Raises:
        ConfigError: these are for images of another number of channels.
    """
    if origin is None:
        return info
    channels = info.image_shape[-1]
    if len(origin.mean) != channels:
        raise ConfigError(
            f"--init_from={config.init_from}: the weights are for images of {len(origin.mean)} "
            f"channels; those of {info.name} have {channels}"
        )
    return dataclasses.replace(info, mean=origin.mean, std=origin.std)


def build_net(config: Config, info: DataInfo) -> nets.Net:
    """Builds a net. Call it in the strategy's scope."""
    # Of the process. By default, TensorFlow computes in TF32 on an Ampere GPU or later.
    tf.config.experimental.enable_tensor_float_32_execution(config.precision != "float32")
    policy = "float32" if config.precision == "tf32" else config.precision
    tf.keras.config.set_dtype_policy(policy)
    return nets.build(
        config.net,
        num_classes=len(info.class_names),
        image_shape=info.image_shape,
        stem=config.stem,
        auxiliary=config.auxiliary,
        batch_norm_momentum=config.batch_norm_momentum,
        sync_batch_norm=config.sync_batch_norm,
        freeze=config.freeze,
    )


def make_plan(config: Config, train_examples: int) -> tuple[Plan, LearningRate]:
    """The length of a run, and its learning rate.

    Raises:
        ConfigError: the warm-up is not shorter than the run.
    """
    plan = Plan(config.epochs, train_examples, config.batch_size)
    warmup_steps = plan.steps(config.warmup_epochs)
    if warmup_steps >= plan.total_steps > 1:
        raise ConfigError(
            f"--warmup_epochs={config.warmup_epochs:g} must be less than --epochs={config.epochs:g}"
        )
    learning_rate = LearningRate(
        config.schedule,
        peak=config.learning_rate,
        total_steps=plan.total_steps,
        warmup_steps=min(warmup_steps, plan.total_steps - 1),
        boundaries=tuple(plan.steps(epoch) for epoch in config.step_epochs),
        factor=config.step_factor,
    )
    return plan, learning_rate


def train_sizes(config: Config, info: DataInfo) -> tuple[tuple[int, int], ...]:
    """Sizes of the training images, and the steps until which they count (see `StepSettings`).

    Raises:
        ConfigError: a size does not suit the images or the net.
    """
    plan = Plan(config.epochs, info.examples["train"], config.batch_size)
    sizes = parse_train_sizes(config.train_sizes)
    for size, _ in sizes:
        if size >= min(info.image_shape[:2]):
            raise ConfigError(
                f"--train_sizes: {size} must be less than the {min(info.image_shape[:2])} pixels "
                "of the images"
            )
        shape = (size, size, info.image_shape[-1])
        _accept("train_sizes", lambda s=shape: nets.check_size(config.net, s, config.stem))
    stops = tuple((round(fraction * plan.total_steps), size) for size, fraction in sizes)
    whole = plan.total_steps, min(info.image_shape[:2])
    for (start, _), (stop, size) in itertools.pairwise([(0, None), *stops, whole]):
        if start == stop:
            raise ConfigError(
                f"--train_sizes: of {plan.total_steps:,} steps, none are left for {size} pixels"
            )
    return stops


def variants(names: Sequence[str]) -> Callable[[tf.Tensor], Sequence[tf.Tensor]]:
    """The function from images to their variants that --tta names (see `data.variants`)."""
    return functools.partial(data_variants.variants, names=names)


def _shard(workers: Workers, microbatches: int = 1) -> data.InputShard:
    """The rows of a batch that this worker reads."""
    replicas = workers.strategy.num_replicas_in_sync
    here = replicas // workers.count
    return data.InputShard(replicas, workers.index * here, here, microbatches)


def train_pipeline(
    config: Config, info: DataInfo, source: data.Source, workers: Workers
) -> data.TrainPipeline:
    """The training batches.

    Raises:
        data.DataError: a setting does not suit the images or the batch.
    """
    return data.TrainPipeline(
        source,
        global_batch_size=config.batch_size,
        seed=config.seed,
        augmentations=data.parse_augment(config.augment),
        mean=info.mean,
        std=info.std,
        num_classes=len(info.class_names),
        balanced=config.sampling == "balanced",
        shard=_shard(workers, config.accumulation),
        on_device=on_gpus(workers.strategy),
    )


def eval_pipeline(
    config: Config, info: DataInfo, source: data.Source, workers: Workers, trained_by: int = 1
) -> data.EvalPipeline:
    """A split to score, normalized as the run was trained.

    Args:
        config: of the run.
        info: of the run.
        source: the split.
        workers: that score it.
        trained_by: number of workers that the run was trained by. Each replica gets as many
            examples at a time as in training, on any number of replicas.
    """
    per_replica_batch_size = config.batch_size // (config.num_gpus * trained_by)
    return data.EvalPipeline(
        data.center_cropped(source, config.eval_crop),
        global_batch_size=per_replica_batch_size * workers.strategy.num_replicas_in_sync,
        mean=info.mean,
        std=info.std,
        shard=_shard(workers),
        on_device=on_gpus(workers.strategy),
    )
