"""From flags to a run: puts nets, data and loops together, which know nothing of each other.

`train` takes the flags of train.py as a dictionary (see cli.py).
"""

import contextlib
import pathlib

import tensorflow as tf

import cli
import data
import nets
from loops import run_dir as run_dirs
from loops.checkpoints import Checkpoints, find_checkpoint
from loops.devices import make_strategy
from loops.errors import RunError, reason
from loops.evaluate import Scores
from loops.interrupt import Interrupted
from loops.logs import MetricsLog, Terminal
from loops.optimizer import DECOUPLED_DECAY, make_optimizer
from loops.schedule import LearningRate, Plan
from loops.state import TrainState
from loops.step import StepSettings, TrainStep
from loops.train import Rhythm, Split, Trainer
from nets import pretrained
from nets.pretrained import PretrainedError
from nets.table import table

# By optimizer: learning rate and weight decay where the flags leave them open.
_DEFAULTS = {"sgd": (0.2, 5e-4), "adam": (1e-3, 0.0), "adamw": (1e-3, 0.05)}


@contextlib.contextmanager
def plain_errors():
    """Turns what a user can mend into one line and an exit code, without a traceback."""
    try:
        yield
    except (nets.NetError, PretrainedError, data.DataError, RunError) as error:
        cli.fail(str(error))
    except Interrupted as interrupted:
        Terminal().line(f"stopped and saved at step {interrupted.step:,}; the same command goes on")
        raise SystemExit(cli.EXIT_SIGNAL + interrupted.signal_number) from None
    except tf.errors.OpError as error:
        cause = data.data_error(error)
        if cause is not None:
            cli.fail(str(cause))
        if "OOM" not in error.message:
            raise
        cli.fail(f"out of memory; lower --batch_size or raise --accumulation ({reason(error)})")


def resolve(flags: dict, dataset: data.Dataset) -> dict:
    """The flags that make a run what it is, with the defaults that depend on others filled in."""
    flags = {name: value for name, value in flags.items() if name not in cli.COMMAND_FLAGS}
    learning_rate, weight_decay = _DEFAULTS[flags["optimizer"]]
    net = nets.net_class(flags["net"])
    defaults = {
        "stem": _default_stem(flags, dataset.image_shape),
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


def _default_stem(flags: dict, image_shape: tuple[int, int, int]) -> str:
    """What suits the images, or the weights that the run starts from."""
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


def _check_batch(flags: dict) -> None:
    parts = flags["num_gpus"] * flags["accumulation"]
    if flags["batch_size"] % parts:
        raise RunError(
            f"--batch_size={flags['batch_size']} does not divide by --num_gpus={flags['num_gpus']} "
            f"times --accumulation={flags['accumulation']}; use a multiple of {parts}"
        )


def build_net(config: dict):
    """A net for a configuration. Call it in the strategy's scope."""
    flags = config["flags"]
    tf.keras.config.set_dtype_policy(flags["precision"])
    return nets.build(
        flags["net"],
        num_classes=len(config["data"]["class_names"]),
        image_shape=tuple(config["data"]["image_shape"]),
        stem=flags["stem"],
        auxiliary=flags["auxiliary"],
        batch_norm_momentum=flags["batch_norm_momentum"],
    )


def eval_split(config: dict, name: str, source, strategy) -> Split:
    """A split to score, normalized as the run was trained."""
    flags, replicas = config["flags"], strategy.num_replicas_in_sync
    # As many examples at a time on each replica as in training, on any number of replicas.
    per_replica = flags["batch_size"] // flags["num_gpus"]
    dataset = data.eval_batches(
        source,
        global_batch_size=per_replica * replicas,
        mean=config["data"]["mean"],
        std=config["data"]["std"],
        replicas=replicas,
    )
    return Split(name, dataset, len(source.labels))


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


def _make_state(
    config: dict, learning_rate: LearningRate, strategy, start: tf.keras.Model | None, terminal
) -> TrainState:
    """Every variable of a run, made eagerly in the strategy's scope, before anything is traced."""
    flags = config["flags"]
    tf.keras.utils.set_random_seed(flags["seed"])
    with strategy.scope():
        net = build_net(config)
        if start is not None:
            head = pretrained.copy_weights(flags["net"], start, net)
            terminal.line(f"start  {flags['init_from']}; the head is {'its' if head else 'new'}")
        ema_net = build_net(config) if flags["ema_decay"] else None
        optimizer = make_optimizer(
            flags["optimizer"], net, learning_rate, momentum=flags["momentum"]
        )
        return TrainState(
            net, optimizer, ema_net=ema_net, loss_scale=flags["precision"] == "mixed_float16"
        )


def _train_batches(config: dict, source, stop_step: int, replicas: int):
    """A function from a global step to the dataset of batches from there on."""
    flags, names = config["flags"], ("crop_padding", "flip", "cutout", "mixup", "cutmix")
    return lambda start_step: data.train_batches(
        source,
        global_batch_size=flags["batch_size"],
        seed=flags["seed"],
        start_step=start_step,
        stop_step=stop_step,
        augmentation=data.Augmentation(**{name: flags[name] for name in names}),
        mean=config["data"]["mean"],
        std=config["data"]["std"],
        num_classes=len(config["data"]["class_names"]),
        replicas=replicas,
    )


def _say_finished(terminal: Terminal, run_dir: pathlib.Path, result: dict) -> None:
    terminal.line(
        f"test   top-1 {result['top_1_accuracy']:.2%}  top-5 {result['top_5_accuracy']:.2%}  "
        f"loss {result['loss']:.4f}  ({result['examples']:,} examples, step {result['step']:,}, "
        f"{'best on val' if result['selected_on'] == 'val' else 'last'})"
    )
    terminal.line(f"run    {run_dir}")
    terminal.line(f"watch  tensorboard --logdir={run_dir.parent}")
    terminal.line(f"score  python eval.py --run_dir={run_dir}")


def _run_dir(run_dir: str | None, command: dict) -> pathlib.Path:
    """The directory that was asked for, or the one that the configuration names."""
    if run_dir is not None:
        return pathlib.Path(run_dir).expanduser()
    named = {k: v for k, v in command["flags"].items() if k not in cli.UNNAMED_FLAGS}
    return pathlib.Path("runs") / run_dirs.default_name({**command, "flags": named})


def _step_settings(flags: dict) -> StepSettings:
    return StepSettings(
        global_batch_size=flags["batch_size"],
        accumulation=flags["accumulation"],
        label_smoothing=flags["label_smoothing"],
        weight_decay=flags["weight_decay"],
        decoupled_decay=flags["optimizer"] in DECOUPLED_DECAY,
        clip_norm=flags["clip_norm"],
        ema_decay=flags["ema_decay"],
        auxiliary_weight=nets.net_class(flags["net"]).auxiliary_weight,
        seed=flags["seed"],
        jit=flags["jit"],
    )


def _print_table(flags: dict, terminal: Terminal) -> None:
    """What --describe prints."""
    shape = (flags["image_size"] or 32,) * 2 + (3,)
    net = nets.build(
        flags["net"],
        num_classes=flags["num_classes"] or 10,
        image_shape=shape,
        stem=flags["stem"] or _default_stem(flags, shape),
        auxiliary=flags["auxiliary"],
    )
    terminal.line(table(net, shape))


def say_skipped(dataset: data.Dataset, terminal: Terminal) -> None:
    """One line about files that were left out, if some were; it names the first two."""
    files, named = dataset.skipped, 2
    if not files:
        return
    more = f" and {len(files) - named:,} more" if len(files) > named else ""
    images = "1 bad image" if len(files) == 1 else f"{len(files):,} bad images"
    terminal.line(data.printable(f"skipped {images}: {', '.join(map(str, files[:named]))}{more}"))


def _load_data(flags: dict) -> data.Dataset:
    """The dataset, if the net can take it."""
    names = ("data_dir", "val_fraction", "image_size", "bad_images")
    dataset = data.load(flags["dataset"], **{name: flags[name] for name in names})
    classes = len(dataset.class_names)
    if flags["num_classes"] not in (None, classes):
        raise RunError(
            f"--num_classes={flags['num_classes']}: {dataset.name} has {classes} classes; the flag "
            "is for --describe, leave it out"
        )
    return dataset


def _command(raw_flags: dict, dataset: data.Dataset) -> dict:
    """The configuration that a command asks for."""
    command = {"flags": resolve(raw_flags, dataset), "data": describe(dataset)}
    flags = command["flags"]
    if flags["init_from"]:
        mean, std = pretrained.normalization(flags["net"])
        command["data"].update(mean=list(mean), std=list(std))
    nets.check_size(flags["net"], dataset.image_shape, flags["stem"])
    return command


def _start(command: dict, run_dir: pathlib.Path) -> tf.keras.Model | None:
    """The Keras model whose weights a run starts from; None if there is none, or a checkpoint."""
    flags = command["flags"]
    if not flags["init_from"] or any((run_dir / "checkpoints").glob("step-*.index")):
        return None
    channels = command["data"]["image_shape"][-1]
    return pretrained.load(flags["net"], flags["init_from"], channels=channels, stem=flags["stem"])


def train(raw_flags: dict) -> None:
    """Starts a run, or goes on with it, or says that it is finished."""
    terminal = Terminal()
    nets.check_name(raw_flags["net"])
    if raw_flags["describe"]:
        _print_table(raw_flags, terminal)
        return
    _check_batch(raw_flags)
    strategy, note = make_strategy(raw_flags["num_gpus"], raw_flags["device"])
    if note:
        terminal.line(note)
    dataset = _load_data(raw_flags)
    say_skipped(dataset, terminal)
    command = _command(raw_flags, dataset)
    plan, learning_rate = make_plan(command)
    train_batches = _train_batches(
        command, dataset.splits["train"], plan.total_steps, strategy.num_replicas_in_sync
    )
    train_batches(0)  # So that a setting that does not suit the data is told before a run is made.

    run_dir = _run_dir(raw_flags["run_dir"], command)
    start = _start(command, run_dir)
    there = run_dirs.open_run(run_dir, command, cli.FREE_FLAGS)
    result = run_dirs.read_result(run_dir)
    if result is not None:
        terminal.line("This run is finished.")
        _say_finished(terminal, run_dir, result)
        terminal.line(f"To start over, remove {run_dir} or give another --run_dir or --seed.")
        return

    state = _make_state(command, learning_rate, strategy, start, terminal)
    checkpoints = Checkpoints(state, run_dir, raw_flags["keep_checkpoints"])
    checkpoints.restore_last()
    log = MetricsLog(run_dir, state.step)
    _say_start(terminal, log, run_dir, command, state, plan, new=there is None)
    # What differs in the command may not change how the run is scored.
    evals = {
        name: eval_split(there or command, name, dataset.splits[name], strategy)
        for name in ("val", "test")
        if name in dataset.splits
    }
    flags = command["flags"]
    scores, scored_step = Trainer(
        strategy=strategy,
        state=state,
        step=TrainStep(strategy, state, _step_settings(flags)),
        plan=plan,
        learning_rate=learning_rate,
        train_batches=train_batches,
        val=evals.get("val"),
        test=evals["test"],
        checkpoints=checkpoints,
        log=log,
        terminal=terminal,
        rhythm=Rhythm(flags["log_steps"], flags["eval_epochs"], flags["save_minutes"]),
    ).run()
    checkpoint = find_checkpoint(run_dir, "best" if "val" in evals else "last")
    result = {
        **result_of(command, scores, checkpoint, scored_step, "test"),
        "selected_on": "val" if "val" in evals else None,
    }
    run_dirs.write_json(run_dir / run_dirs.RESULT, result)
    _say_finished(terminal, run_dir, result)


def _say_start(terminal, log: MetricsLog, run_dir, config: dict, state, plan, *, new: bool) -> None:
    """The net, the data and the run, and once the configuration in TensorBoard."""
    about = config["data"]
    terminal.line(table(state.net, tuple(about["image_shape"])))
    if new:
        rows = "".join(f"\n| {k} | {v} |" for k, v in config["flags"].items())
        log.write_text("configuration", f"| flag | value |\n|---|---|{rows}")
    size, classes = "x".join(map(str, about["image_shape"])), len(about["class_names"])
    sizes = ", ".join(f"{n:,} {split}" for split, n in about["examples"].items())
    terminal.line(f"data   {about['name']}, {size}, {classes} classes: {sizes}")
    how = f"goes on from step {state.step:,}" if state.step else "new"
    replicas = config["flags"]["num_gpus"]
    terminal.line(f"run    {run_dir}, {how}, {plan.total_steps:,} steps on {replicas} replica(s)")


def result_of(config: dict, scores: Scores, checkpoint: str, step: int, split: str) -> dict:
    """Scores as they are written to JSON."""
    return {
        "split": split,
        **scores.as_dict(config["data"]["class_names"]),
        "checkpoint": checkpoint,
        "step": step,
    }
