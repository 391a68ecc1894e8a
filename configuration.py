"""From flags to the configuration of a run: defaults that depend on others, and what must fit.

A configuration is a dictionary: "flags", every flag as it was resolved; "data", what the data is;
and, where there are several, "machines", their number.
"""

import pathlib

import cli
import data
import nets
from loops import run_dir as run_dirs
from loops.errors import RunError
from loops.schedule import LearningRate, Plan
from nets import pretrained

# By optimizer: learning rate and weight decay where the flags leave them open.
_DEFAULTS = {"sgd": (0.2, 5e-4), "adam": (1e-3, 0.0), "adamw": (1e-3, 0.05)}
# Flags that a saved run has a value for: what `resolve` fills in.
_RESOLVED = (
    "stem", "label_smoothing", "batch_norm_momentum", "learning_rate", "weight_decay",
    "warmup_epochs", "image_size", "crop_padding", "flip",
)  # fmt: skip


def resolve(flags: dict, dataset: data.Dataset) -> dict:
    """The flags that make a run what it is, with the defaults that depend on others filled in."""
    flags = {name: value for name, value in flags.items() if name not in cli.COMMAND_FLAGS}
    learning_rate, weight_decay = _DEFAULTS[flags["optimizer"]]
    net = nets.net_class(flags["net"])
    defaults = {
        "stem": default_stem(flags, dataset.image_shape),
        "label_smoothing": net.label_smoothing,
        "batch_norm_momentum": _batch_norm_momentum(net, flags, dataset),
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "warmup_epochs": min(1.0, flags["epochs"] / 5),
        "image_size": dataset.image_shape[0],
        "crop_padding": dataset.crop_padding,
        "flip": dataset.flip,
    }
    for name, default in defaults.items():
        if flags[name] is None:
            flags[name] = default
    if flags["data_dir"] is not None:  # So that eval.py finds it from anywhere.
        flags["data_dir"] = str(pathlib.Path(flags["data_dir"]).expanduser().resolve())
    if flags["init_from"] not in (None, "keras"):
        flags["init_from"] = str(pathlib.Path(flags["init_from"]).expanduser().resolve())
    flags["step_epochs"] = [float(epoch) for epoch in flags["step_epochs"]]
    return flags


def _batch_norm_momentum(net: type[nets.Net], flags: dict, dataset: data.Dataset) -> float:
    """The net's, or in a short run what forgets the initial statistics early in it."""
    examples = len(dataset.splits["train"].labels)
    steps = Plan(flags["epochs"], examples, flags["batch_size"]).total_steps
    return min(net.batch_norm_momentum, max(0.9, round(1 - 50 / steps, 4)))


def default_stem(flags: dict, image_shape: tuple[int, int, int]) -> str:
    """The stem that suits the images, or the weights that the run starts from."""
    return "large" if flags["init_from"] else nets.default_stem(image_shape)


def describe(dataset: data.Dataset) -> dict:
    """What a run must remember of its data, to be scored without it and to refuse another."""
    return {
        "name": dataset.name,
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "examples": {split: len(source.labels) for split, source in dataset.splits.items()},
        "fingerprints": {s: f"{source.fingerprint():08x}" for s, source in dataset.splits.items()},
    }


def check_batch(flags: dict, machines: int) -> None:
    """Raises RunError if a batch does not divide among replicas, or they cannot do as told."""
    parts = flags["num_gpus"] * flags["accumulation"] * machines
    if flags["batch_size"] % parts:
        times = f" times {machines} machines" if machines > 1 else ""
        raise RunError(
            f"--batch_size={flags['batch_size']} does not divide by --num_gpus={flags['num_gpus']} "
            f"times --accumulation={flags['accumulation']}{times}; use a multiple of {parts}"
        )
    if flags["jit"] and flags["sync_batch_norm"] and flags["num_gpus"] * machines > 1:
        raise RunError("--sync_batch_norm exchanges within the pass that --jit compiles; drop one")


def saved_config(run_dir: pathlib.Path) -> dict:
    """The configuration of a saved run, checked as that of a command is.

    Raises:
        RunError: it is no configuration; the message names the file and what is wrong in it.
    """
    config = run_dirs.read_config(run_dir)
    where = run_dir / run_dirs.CONFIG
    flags = cli.check(config["flags"], cli.define_train_flags, str(where), needed=_RESOLVED)
    flags["step_epochs"] = [float(epoch) for epoch in flags["step_epochs"]]
    size, shape = flags["image_size"], config["data"]["image_shape"]
    try:
        nets.check_name(flags["net"])
        check_batch(flags, config.get("machines", 1))
        if flags["dataset"] not in data.DATASETS:
            raise RunError(f"--dataset={flags['dataset']} is none of {', '.join(data.DATASETS)}")
        if shape[:2] != [size, size]:
            raise RunError(f"--image_size={size}, but data.image_shape is {shape}")
    except (nets.NetError, RunError) as error:
        raise RunError(f"{where}: {error}") from error
    return {**config, "flags": flags}


def make_plan(config: dict) -> tuple[Plan, LearningRate]:
    """How long, and the learning rate on the way."""
    flags = config["flags"]
    plan = Plan(flags["epochs"], config["data"]["examples"]["train"], flags["batch_size"])
    warmup_steps = plan.steps(flags["warmup_epochs"])
    if warmup_steps >= plan.total_steps > 1:
        raise RunError(
            f"--warmup_epochs={flags['warmup_epochs']:g} must be less than "
            f"--epochs={flags['epochs']:g}"
        )
    learning_rate = LearningRate(
        flags["schedule"],
        peak=flags["learning_rate"],
        total_steps=plan.total_steps,
        warmup_steps=min(warmup_steps, plan.total_steps - 1),
        boundaries=tuple(plan.steps(epoch) for epoch in flags["step_epochs"]),
        factor=flags["step_factor"],
    )
    return plan, learning_rate


def make_config(raw_flags: dict, dataset: data.Dataset) -> dict:
    """The configuration that a command asks for."""
    command = {"flags": resolve(raw_flags, dataset), "data": describe(dataset)}
    flags = command["flags"]
    if flags["init_from"]:
        mean, std = pretrained.normalization(flags["net"])
        command["data"].update(mean=list(mean), std=list(std))
    nets.check_size(flags["net"], dataset.image_shape, flags["stem"])
    return command
