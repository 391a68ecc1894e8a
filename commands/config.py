"""The typed configuration. Every setting is declared once, here.

A field's type holds its bounds, its default is the flag's, and `setting` adds the help text and the
part the setting plays in a run's name and on resume. Flags, `--help`, the check of `config.json`,
the name of a run, the comparison on resume and TensorBoard's text are all derived from it.
"""

import dataclasses
import hashlib
import json
import os
import reprlib
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec

LARGEST = 10**9  # Bounds numbers that need no other bound, so that no computation overflows.
_MAX_PIXELS = 4096
_MAX_EPOCHS = 1e6

Text = Annotated[str, msgspec.Meta(min_length=1)]
Count = Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]
Pixels = Annotated[int, msgspec.Meta(ge=1, le=_MAX_PIXELS)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=LARGEST)]
NonNegative = Annotated[float, msgspec.Meta(ge=0, le=LARGEST)]
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Epochs = Annotated[float, msgspec.Meta(gt=0, le=_MAX_EPOCHS)]


class ConfigError(ValueError):
    """A setting is wrong. The message, of one line, names it and says what is accepted."""


def setting(
    default,
    help: str,
    *,
    names_run: bool = True,
    may_change: bool = False,
    derived: bool = False,
    path: bool = False,
) -> Any:
    """Declares a field of a configuration.

    Args:
        default: value if the flag is not given.
        help: for `--help`: what it is, with its unit.
        names_run: whether a value other than the default is part of a default run directory's name.
        may_change: whether a resumed run may have another value.
        derived: whether None means that the value depends on the net, the data or other settings;
            a saved run always has a value.
        path: whether it is the path of a file or directory.
    """
    metadata = {
        "help": help,
        "names_run": names_run,
        "may_change": may_change,
        "derived": derived,
        "path": path,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetSettings:
    """What is trained."""

    net: Text = setting("inception10", "Net to train, a name from the table in nets/__init__.py.")
    stem: Literal["small", "large"] | None = setting(
        None,
        "First layers of the net: large, the paper's, or small, for images of about 32x32. "
        "Default: small for images below 96 pixels.",
        derived=True,
    )
    auxiliary: bool = setting(True, "Train with the auxiliary heads of a net that has them.")
    batch_norm_momentum: Share | None = setting(
        None,
        "BatchNorm momentum, the decay of the moving statistics per update. Default: the net's, "
        "but in a run that is short for it 1 - 50 / (steps of the run), and at least 0.9.",
        derived=True,
    )
    sync_batch_norm: bool = setting(
        False,
        "Normalize with the statistics of the whole batch, so that any number of replicas makes "
        "the same updates. Costs an all-reduce per BatchNorm.",
    )
    init_from: Text | None = setting(
        None,
        "Initial weights: keras downloads those of tf.keras.applications (inception_v3, "
        "inception_resnet_v2, resnet50 to resnet152 and their _v2), a path reads them from a .h5 "
        "or .weights.h5 file. Images are normalized as the weights require.",
        path=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What the net is trained on."""

    dataset: Text = setting(
        "cifar10",
        "Dataset, a name from the table in data/__init__.py: cifar10, cifar100, mnist, "
        "fashion_mnist, digits (needs no download) or folder (images in --data_dir).",
    )
    data_dir: Text | None = setting(
        None,
        "Directory of the dataset's files. Default: ~/.keras/datasets.",
        names_run=False,
        may_change=True,
        path=True,
    )
    image_size: Pixels | None = setting(
        None,
        "Height and width of the images in pixels. Default: the dataset's; 64 for folder.",
    )
    val_fraction: Share = setting(
        0.1,
        "Fraction of train held out for validation, by which the best checkpoint is chosen. With 0 "
        "there is no validation, and the last checkpoint is scored.",
    )
    augment: Text | None = setting(
        None,
        "Augmentations in order, such as crop:4,flip,cutout:8,mixup:0.2, with names from the table "
        "in data/augment.py; mixup:0.2|cutmix:1 chooses one per image; none disables all. Default: "
        "the dataset's.",
        derived=True,
    )
    bad_images: Literal["error", "skip"] = setting(
        "error",
        "Image files of a folder that cannot be decoded: error stops at the first one; skip "
        "decodes all files at the start, leaves out the bad ones and names them.",
    )
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = setting(
        0, "Seed of the initial weights, the order of the examples, augmentation and dropout."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthSettings:
    """How long the run is, and how its examples are grouped."""

    epochs: Epochs = setting(30.0, "Length of the run in epochs; may be fractional.")
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=10**6)] = setting(
        128, "Examples per update, over all replicas."
    )
    accumulation: Count = setting(
        1, "Microbatches per update. More of them need less memory; BatchNorm sees each alone."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizationSettings:
    """How the weights are updated."""

    loss: Text = setting(
        "cross_entropy",
        "Training loss, a name from the table in loops/losses.py: cross_entropy, "
        "binary_cross_entropy or focal.",
    )
    label_smoothing: Share | None = setting(
        None, "Label smoothing. Default: 0; 0.1 for inception_v3.", derived=True
    )
    optimizer: Text = setting(
        "sgd",
        "Optimizer, a name from the table in loops/optimizer.py: sgd (with Nesterov momentum), "
        "adam, adamw, rmsprop, lion, lamb and others of Keras.",
    )
    learning_rate: Positive | None = setting(
        None, "Peak learning rate. Default: the optimizer's; 0.2 for sgd.", derived=True
    )
    momentum: Share = setting(0.9, "Momentum of sgd; 0 for none.")
    weight_decay: NonNegative | None = setting(
        None,
        "Weight decay of kernels; BatchNorm and biases have none. Default: the optimizer's; 0.0005 "
        "for sgd, 0.05 for adamw.",
        derived=True,
    )
    schedule: Text = setting(
        "cosine",
        "Learning rate after the warm-up, a name from the table in loops/schedule.py: constant; "
        "step (times --step_factor after each of --step_epochs); cosine (to 0); one_cycle "
        "(linearly to 0).",
    )
    warmup_epochs: Annotated[float, msgspec.Meta(ge=0, le=_MAX_EPOCHS)] | None = setting(
        None,
        "Epochs in which the learning rate rises linearly to its peak; the first of n updates uses "
        "1/n of it. Default: 1, but at most a fifth of the run.",
        derived=True,
    )
    step_epochs: tuple[Epochs, ...] = setting(
        (15.0, 25.0), "Epochs after which --schedule=step lowers the learning rate."
    )
    step_factor: Annotated[float, msgspec.Meta(ge=0, le=1)] = setting(
        0.1, "Factor by which --schedule=step multiplies the learning rate."
    )
    clip_norm: NonNegative = setting(
        0.0, "Maximum global norm of the gradients; 0 disables clipping."
    )
    ema_decay: Share = setting(
        0.0,
        "Decay per update of a moving average of weights and BatchNorm statistics, which is then "
        "evaluated in their place; 0 disables it, 0.999 is common.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutionSettings:
    """Devices and numerical precision."""

    num_gpus: Annotated[int, msgspec.Meta(ge=1, le=64)] = setting(
        1,
        "GPUs per machine, one replica each. Without a visible GPU, as many logical CPU devices "
        "take their place.",
        may_change=True,
    )
    device: Literal["auto", "cpu", "gpu"] = setting(
        "auto",
        "gpu requires GPUs, cpu ignores them, auto uses them if any are visible.",
        may_change=True,
    )
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = setting(
        "float32", "Precision of the net's arithmetic; weights are float32."
    )
    jit: bool = setting(
        False,
        "Compile the forward and backward pass with XLA; changes the random numbers of dropout.",
    )
    deterministic: bool = setting(
        False,
        "Use only operations that give the same bits every time, so that equal commands on equal "
        "machines end with equal weights. May be slower, especially on GPUs.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordSettings:
    """What is logged, evaluated and kept, and how often."""

    log_steps: Count = setting(50, "Steps between rows of training metrics.")
    eval_epochs: Count = setting(1, "Epochs between evaluations on the validation split.")
    best_metric: Text = setting(
        "top_1_accuracy",
        "Metric on the validation split by which the best checkpoint is chosen: loss or a name "
        "from the table in loops/metrics.py.",
    )
    save_minutes: Positive = setting(
        10.0,
        "Minutes between checkpoints within an epoch; the end of an epoch always saves.",
        names_run=False,
        may_change=True,
    )
    keep_checkpoints: Annotated[int, msgspec.Meta(ge=2, le=LARGEST)] = setting(
        3,
        "Number of most recent checkpoints to keep, at least 2, so that one is left if the newest "
        "is damaged.",
        names_run=False,
        may_change=True,
    )
    hooks: tuple[Text, ...] = setting(
        (),
        "Hooks to run, names from the table in loops/hooks.py, separated by commas.",
        names_run=False,
        may_change=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailureSettings:
    """What to do on a failure."""

    on_nan: Literal["stop", "skip", "restore"] = setting(
        "stop",
        "On a loss or gradient that is not finite: stop; skip the update and count it; or restore "
        "the last checkpoint and leave out the batches from there on, at most three times.",
        names_run=False,
        may_change=True,
    )
    on_save_error: Literal["stop", "continue"] = setting(
        "stop",
        "On a checkpoint or row that cannot be written: stop, or continue and try again at the "
        "next occasion.",
        names_run=False,
        may_change=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(  # A dataclass has the fields of its last base first.
    FailureSettings,
    RecordSettings,
    ExecutionSettings,
    OptimizationSettings,
    LengthSettings,
    DataSettings,
    NetSettings,
):
    """The settings of a run, as they are saved in its `config.json`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(Config):
    """The flags of train.py: the settings of a run, and options of the command."""

    run_dir: Text | None = setting(
        None,
        "Directory of the run. Default: runs/ and a name derived from the configuration, so that "
        "rerunning a command resumes its run.",
        path=True,
    )
    allow_changes: bool = setting(
        False,
        "Resume although the net's operations or the versions of TensorFlow, Keras, NumPy or "
        "Python differ from those the run was started with.",
    )
    cluster: Literal["auto", "none", "tf_config", "slurm"] = setting(
        "auto",
        "Where the machines that train together are listed: tf_config, in TF_CONFIG; slurm, in the "
        "variables of srun. auto uses either if it is there; none trains alone.",
    )
    describe: bool = setting(
        False,
        "Print the net's stages with shapes, parameters and FLOPs, for --image_size (default 32) "
        "and --num_classes (default 10), and exit.",
    )
    num_classes: Annotated[int, msgspec.Meta(ge=1, le=10**6)] | None = setting(
        None, "Number of classes for --describe. A run uses those of its dataset."
    )

    @property
    def config(self) -> Config:
        """The settings alone."""
        return Config(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Config)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The flags of eval.py."""

    run_dir: Text | None = setting(None, "Directory of the run to score. Required.", path=True)
    checkpoint: Text | None = setting(
        None,
        "best, last, or the path of a checkpoint or of a directory of checkpoints. Default: best, "
        "or last if the run has no validation split.",
        path=True,
    )
    split: Literal["train", "val", "test"] = setting("test", "Split to score.")
    dataset: Text | None = setting(
        None, "Another dataset with the same classes. Default: the run's."
    )
    data_dir: Text | None = setting(
        None,
        "Directory of the dataset's files. Default: the run's; for another dataset "
        "~/.keras/datasets.",
        path=True,
    )
    json: Text | None = setting(None, "File to write the scores to, as JSON.", path=True)
    follow: bool = setting(
        False,
        "Score each new checkpoint of a run while it trains, and chart the scores in TensorBoard.",
    )
    allow_changes: bool = setting(
        False, "Score although the net's operations have changed since training."
    )
    num_gpus: Annotated[int, msgspec.Meta(ge=1, le=64)] = setting(
        1, "GPUs to use. Without a visible GPU, as many logical CPU devices take their place."
    )
    device: Literal["auto", "cpu", "gpu"] = setting(
        "auto", "gpu requires GPUs, cpu ignores them, auto uses them if any are visible."
    )


Options = TypeVar("Options")


def convert(values: Mapping[str, Any], cls: type[Options], where: str = "") -> Options:
    """Checks values by name, and makes them a configuration.

    Args:
        values: from a command line or a file. A missing one has its default.
        cls: the class of the configuration.
        where: the file they are from, for messages.

    Raises:
        ConfigError: a name is unknown, or a value is not what its field's type accepts.
    """
    prefix = f"{where}: " if where else ""
    values = {name: os.fspath(x) if isinstance(x, os.PathLike) else x for name, x in values.items()}
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name, value in values.items():
        if name not in fields:
            raise ConfigError(f"{prefix}there is no setting {name!r}")
        _check_text(name, value, is_path=fields[name].metadata["path"], prefix=prefix)
    try:
        return msgspec.convert(values, cls)
    except msgspec.ValidationError as error:
        # The message ends with the place, such as "at `$.step_epochs[0]`".
        name = str(error).rpartition("`$.")[2].rstrip("`").partition("[")[0]
        value = reprlib.repr(values[name])
        raise ConfigError(f"{prefix}--{name}={value}: expected {accepted(fields[name])}") from error


def kind_of(field: dataclasses.Field) -> Any:
    """The type of a field, without None."""
    is_union = get_origin(field.type) in (Union, types.UnionType)
    return get_args(field.type)[0] if is_union else field.type


_SYMBOLS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def bounds(field: dataclasses.Field) -> list[str]:
    """The bounds of a number, or of the numbers in a list, such as [">= 0", "< 1"]."""
    kind = kind_of(field)
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    found = [
        (symbol, getattr(meta, name))
        for meta in getattr(kind, "__metadata__", ())
        for name, symbol in _SYMBOLS.items()
    ]
    return [f"{symbol} {bound:.0f}" for symbol, bound in found if bound is not None]


_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "text, not empty"}


def accepted(field: dataclasses.Field) -> str:
    """What a field accepts, such as "a number (> 0, <= 1000000)"."""
    kind, limits = kind_of(field), bounds(field)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        what = "a list of numbers" if limits else "a list of names"
    else:
        what = _NAMES[getattr(kind, "__origin__", kind)]
    return f"{what} ({', '.join(limits)})" if limits else what


def _check_text(name: str, value, *, is_path: bool, prefix: str) -> None:
    for text in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(text, str):
            continue
        try:
            text.encode()
        except UnicodeEncodeError:
            text = "\0"
        if "\0" in text:
            raise ConfigError(f"{prefix}--{name}: expected text in UTF-8 without NUL")
        if is_path and os.path.expanduser(text).startswith("~"):
            raise ConfigError(f"{prefix}--{name}={text}: there is no such home directory")


def differences(saved: Config, requested: Config) -> list[str]:
    """The settings in which a command differs from the run it would resume, a phrase each."""
    return [
        f"--{field.name} is {getattr(requested, field.name)} here and "
        f"{getattr(saved, field.name)} in the run"
        for field in dataclasses.fields(Config)
        if not field.metadata["may_change"]
        and getattr(saved, field.name) != getattr(requested, field.name)
    ]


def digest(config: Config, data: Mapping[str, str]) -> str:
    """Six hexadecimal digits that depend on what a configuration changes from the defaults.

    A setting that is added later, with a default that changes nothing, leaves them as they are.

    Args:
        config: as requested, before defaults that depend on others are filled in.
        data: fingerprints of the splits.
    """
    config = convert(dataclasses.asdict(config), Config)  # 30 epochs are 30.0 epochs.
    changed = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(Config)
        if field.metadata["names_run"] and getattr(config, field.name) != field.default
    }
    content = json.dumps([changed, dict(data)], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:6]
