"""The settings of a run. Every setting is declared once, here (see `commands/setting.py`).

The options of each command, which are not saved with a run, are in `commands/options.py`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from commands.setting import (
    LARGEST,
    MAX_EPOCHS,
    Count,
    Epochs,
    NonNegative,
    Pixels,
    Positive,
    Seed,
    Share,
    Text,
    convert,
    setting,
    text,
)

Tta = tuple[Literal["flip", "shifts"], ...]
TTA = (
    "Test-time augmentation: score the mean probabilities of variants of each image. flip adds its "
    "mirror image; shifts adds shifts by 1/32 of its size, at least a pixel, in four directions; "
    "flip,shifts is all ten combinations."
)


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
        "inception_resnet_v2, resnet50 to resnet152 and their _v2); the path of a .h5 or "
        ".weights.h5 file of such a model; or the directory of a finished run of this net, whose "
        "best weights are used. For other classes, the head is new. Images are normalized as the "
        "weights require.",
        path=True,
    )
    whiten: bool = setting(
        False,
        "Initialize the first convolution from training images, so that its channels are "
        "uncorrelated and of equal variance; filters beyond twice the values of a patch stay "
        "random. --freeze=stem keeps it so, for nets with one convolution in the stem. Not for "
        "inception_v2, which begins with a depthwise convolution.",
    )
    identity: bool = setting(
        False,
        "Initialize the other convolutions to pass their input on: filter i takes channel i alone, "
        "at the center of the kernel.",
    )
    freeze: tuple[Text, ...] = setting(
        (),
        "Stages to keep as they are, separated by commas, such as stem,stage_1: their weights are "
        "not trained, and they run in evaluation mode, so that BatchNorm's statistics stay too. "
        "--describe prints the names.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What the net is trained on."""

    dataset: Text = setting(
        "cifar10",
        "Dataset, a name from the table in data/__init__.py: cifar10, cifar100, mnist, "
        "fashion_mnist, digits (needs no download) or folder (images in --data_dir); or tfds:NAME, "
        "which TensorFlow Datasets has prepared.",
    )
    data_dir: Text | None = setting(
        None,
        "Directory of the dataset's files. Default: ~/.keras/datasets; for tfds:NAME "
        "~/tensorflow_datasets.",
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
        "Fraction of train held out for validation, by which the best checkpoint is chosen; data "
        "with a validation split of its own use that. With 0 there is no validation, and the last "
        "checkpoint is scored.",
    )
    augment: Text | None = setting(
        None,
        "Augmentations in order, such as crop:4,flip,cutout:8,mixup:0.2, with names and values "
        "from the table in data/augment.py: random_resized_crop, crop, flip, alternating_flip, "
        "color_jitter, trivial_augment, rand_augment, cutout, random_erasing, mixup, cutmix. "
        "mixup:0.2|cutmix:1 chooses one per image; none disables all. Default: the dataset's; for "
        "folder crop and flip, from 128 pixels on random_resized_crop,flip.",
        derived=True,
    )
    eval_crop: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = setting(
        None,
        "Fraction of the shorter side that is seen in evaluation, prediction and export: the "
        "middle, scaled to the size of the images. Default: 0.875 with random_resized_crop, "
        "otherwise 1.",
        derived=True,
        earlier=1.0,
    )
    bad_images: Literal["error", "skip"] = setting(
        "error",
        "Image files of a folder that cannot be decoded: error stops at the first one; skip "
        "decodes all files at the start, leaves out the bad ones and names them. Of a large folder "
        "it remembers which it has decoded.",
    )
    sampling: Literal["uniform", "balanced"] = setting(
        "uniform",
        "Examples of an epoch: uniform takes each once; balanced takes equally many of every "
        "class, those of rare classes several times.",
    )
    seed: Seed = setting(
        0, "Seed of the initial weights, the order of the examples, augmentation and dropout."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthSettings:
    """How long the run is, and how its examples are grouped."""

    epochs: Epochs = setting(30.0, "Length of the run in epochs; may be fractional.")
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=10**6)] = setting(
        128, "Examples per update, over all replicas."
    )
    train_sizes: tuple[Text, ...] = setting(
        (),
        "Sizes of the training images in the first parts of the run, as SIZE:FRACTION,...: "
        "20:0.4,26:0.7 scales the shorter side to 20 pixels until 40% of the updates are made, to "
        "26 until 70%, and then trains on images of full size. Evaluation is at full size.",
    )
    accumulation: Count = setting(
        1, "Microbatches per update. More of them need less memory; BatchNorm sees each alone."
    )
    patience: Annotated[float, msgspec.Meta(ge=0, le=MAX_EPOCHS)] = setting(
        0.0,
        "Stop early if --best_metric has not improved on the validation split for this many "
        "epochs; 0 never stops early. The learning rate follows its schedule for --epochs.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizationSettings:
    """How the weights are updated."""

    loss: Text = setting(
        "cross_entropy",
        "Training loss, a name from the table in loops/losses.py: cross_entropy, "
        "binary_cross_entropy or focal.",
    )
    class_weights: Literal["none", "balanced"] = setting(
        "none",
        "Weights of the examples in the training loss: balanced weights a class by examples / "
        "(classes * examples of the class), so that all classes count equally.",
    )
    label_smoothing: Share | None = setting(
        None, "Label smoothing. Default: 0; 0.1 for inception_v3.", derived=True
    )
    optimizer: Text = setting(
        "sgd",
        "Optimizer, a name from the table in loops/optimizer.py: sgd (with Nesterov momentum), "
        "adam, adamw, rmsprop, lion, lamb, muon and others of Keras.",
    )
    learning_rate: Positive | None = setting(
        None, "Peak learning rate. Default: the optimizer's; 0.2 for sgd.", derived=True
    )
    head_learning_rate: Positive | None = setting(
        None,
        "Peak learning rate of the head and of auxiliary heads, on the same schedule; muon uses a "
        "tenth of it there. Default: --learning_rate.",
    )
    bias_learning_rate: Positive | None = setting(
        None,
        "Peak learning rate of biases and of BatchNorm's offsets, on the same schedule; 64 times "
        "--learning_rate is known to speed up short runs with sgd; muon uses a tenth of it there. "
        "Default: --learning_rate.",
    )
    momentum: Share = setting(0.9, "Momentum of sgd and muon; 0 for none.")
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
    warmup_epochs: Annotated[float, msgspec.Meta(ge=0, le=MAX_EPOCHS)] | None = setting(
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
    lookahead_steps: Annotated[int, msgspec.Meta(ge=0, le=LARGEST)] = setting(
        0,
        "Every this many updates, and after the last, go back half of the way to where the weights "
        "were after the last time (Lookahead, Zhang et al. 2019); 5 is common, 0 disables it. "
        "Evaluations in between, and the best checkpoint, are of the weights as they are then.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutionSettings:
    """Devices and numerical precision."""

    num_gpus: Annotated[int, msgspec.Meta(ge=1, le=64)] = setting(
        1,
        "GPUs per worker, one replica each; without several workers, those of this machine. "
        "Without a visible GPU, as many logical CPU devices take their place.",
        may_change=True,
    )
    device: Literal["auto", "cpu", "gpu"] = setting(
        "auto",
        "gpu requires GPUs, cpu ignores them, auto uses them if any are visible.",
        may_change=True,
    )
    precision: Literal["float32", "tf32", "mixed_bfloat16", "mixed_float16"] = setting(
        "float32",
        "Precision of the net's arithmetic; weights are float32. tf32 rounds what an NVIDIA GPU of "
        "2020 (Ampere) or later multiplies in convolutions and matrix products to 10 bits, which "
        "is several times faster; elsewhere it is float32.",
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
    histogram_steps: Annotated[int, msgspec.Meta(ge=0, le=LARGEST)] = setting(
        0,
        "Steps between histograms of the weights, gradients and activations of each stage, in "
        "TensorBoard. Each takes as long as one to three steps, and the first a few seconds more. "
        "0 for none.",
        names_run=False,
        may_change=True,
    )
    picture_epochs: Annotated[int, msgspec.Meta(ge=0, le=LARGEST)] = setting(
        0,
        "Epochs between pictures of the confusion matrix and the worst mistakes on the validation "
        "split, in TensorBoard. Each takes about half a second. 0 for those at the end only.",
        names_run=False,
        may_change=True,
    )
    tta: Tta = setting((), TTA)
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


def differences(saved: Config, requested: Config) -> list[str]:
    """The settings in which a command differs from the run it would resume, a phrase each."""
    return [
        f"--{field.name} is {text(getattr(requested, field.name))} here and "
        f"{text(getattr(saved, field.name))} in the run"
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
