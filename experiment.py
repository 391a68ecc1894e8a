"""From flags to a run: puts nets, data and loops together, which know nothing of each other.

`train` and `evaluate` take the flags of train.py and eval.py as dictionaries (see cli.py).
"""

import contextlib
import pathlib
import time

import tensorflow as tf

import cli
import data
import nets
from loops import run_dir as run_dirs
from loops.checkpoints import Checkpoints, find_checkpoint, restore_net
from loops.devices import make_strategy
from loops.errors import RunError, reason
from loops.evaluate import Evaluator, Scores
from loops.interrupt import Interrupted
from loops.logs import MetricsLog, Terminal
from loops.optimizer import DECOUPLED_DECAY, make_optimizer
from loops.schedule import LearningRate, Plan
from loops.state import TrainState
from loops.step import StepSettings, TrainStep
from loops.train import Rhythm, Split, Trainer
from nets.table import table

# By optimizer: learning rate and weight decay where the flags leave them open.
_DEFAULTS = {"sgd": (0.2, 5e-4), "adam": (1e-3, 0.0), "adamw": (1e-3, 0.05)}


@contextlib.contextmanager
def plain_errors():
    """Turns what a user can mend into one line and an exit code, without a traceback."""
    try:
        yield
    except (nets.UnknownNetError, data.DataError, RunError) as error:
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
    flags = {name: value for name, value in flags.items() if name != "run_dir"}
    learning_rate, weight_decay = _DEFAULTS[flags["optimizer"]]
    defaults = {
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
    flags["step_epochs"] = [float(epoch) for epoch in flags["step_epochs"]]
    return flags


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


def _build_net(config: dict):
    """A net for a configuration. Call it in the strategy's scope."""
    tf.keras.config.set_dtype_policy(config["flags"]["precision"])
    return nets.build(
        config["flags"]["net"],
        num_classes=len(config["data"]["class_names"]),
        image_shape=tuple(config["data"]["image_shape"]),
    )


def _eval_split(config: dict, name: str, source, strategy) -> Split:
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


def _plan(config: dict) -> tuple[Plan, LearningRate]:
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


def _make_state(config: dict, learning_rate: LearningRate, strategy) -> TrainState:
    """Every variable of a run, made eagerly in the strategy's scope, before anything is traced."""
    flags = config["flags"]
    tf.keras.utils.set_random_seed(flags["seed"])
    with strategy.scope():
        net = _build_net(config)
        ema_net = _build_net(config) if flags["ema_decay"] else None
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
        jit=flags["jit"],
    )


def train(raw_flags: dict) -> None:
    """Starts a run, or goes on with it, or says that it is finished."""
    terminal = Terminal()
    nets.check_name(raw_flags["net"])
    _check_batch(raw_flags)
    strategy, note = make_strategy(raw_flags["num_gpus"], raw_flags["device"])
    if note:
        terminal.line(note)
    loading = {name: raw_flags[name] for name in ("data_dir", "val_fraction", "image_size")}
    dataset = data.load(raw_flags["dataset"], **loading)
    command = {"flags": resolve(raw_flags, dataset), "data": describe(dataset)}
    plan, learning_rate = _plan(command)
    train_batches = _train_batches(
        command, dataset.splits["train"], plan.total_steps, strategy.num_replicas_in_sync
    )
    train_batches(0)  # So that a setting that does not suit the data is told before a run is made.

    run_dir = _run_dir(raw_flags["run_dir"], command)
    there = run_dirs.open_run(run_dir, command, cli.FREE_FLAGS)
    result = run_dirs.read_result(run_dir)
    if result is not None:
        terminal.line("This run is finished.")
        _say_finished(terminal, run_dir, result)
        terminal.line(f"To start over, remove {run_dir} or give another --run_dir or --seed.")
        return

    state = _make_state(command, learning_rate, strategy)
    checkpoints = Checkpoints(state, run_dir, raw_flags["keep_checkpoints"])
    checkpoints.restore_last()
    log = MetricsLog(run_dir, state.step)
    _say_start(terminal, log, run_dir, command, state, plan, new=there is None)
    # What differs in the command may not change how the run is scored.
    evals = {
        name: _eval_split(there or command, name, dataset.splits[name], strategy)
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
        **_result(command, scores, checkpoint, scored_step, "test"),
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


def _result(config: dict, scores: Scores, checkpoint: str, step: int, split: str) -> dict:
    """Scores as they are written to JSON."""
    return {
        "split": split,
        **scores.as_dict(config["data"]["class_names"]),
        "checkpoint": checkpoint,
        "step": step,
    }


def _load_like(config: dict, flags: dict) -> data.Dataset:
    """The run's dataset, or another with the same classes, as the run's net takes it."""
    own, height, _, channels = config["flags"], *config["data"]["image_shape"]
    name = flags["dataset"] or own["dataset"]
    data_dir = flags["data_dir"]
    if data_dir is None and name == own["dataset"]:
        data_dir = own["data_dir"]
    dataset = data.load(
        name,
        data_dir=data_dir,
        val_fraction=own["val_fraction"],
        image_size=height,
        channels=channels if name == "folder" else None,
    )
    if dataset.image_shape[-1] != channels:
        raise RunError(
            f"{name} has {dataset.image_shape[-1]} channel(s), the run's net takes {channels}"
        )
    dataset = data.relabel(dataset, config["data"]["class_names"])
    if flags["split"] not in dataset.splits:
        raise RunError(
            f"--split={flags['split']}: the run holds out no validation split, and {name} has "
            f"{', '.join(sorted(dataset.splits))}"
        )
    return dataset


def evaluate(flags: dict) -> None:
    """Scores one checkpoint of a run, or each new one."""
    if flags["run_dir"] is None:
        raise RunError("--run_dir is required: the directory of the run to score")
    if flags["follow"] and flags["checkpoint"]:
        raise RunError("--follow scores each new checkpoint; leave out --checkpoint")
    run_dir = pathlib.Path(flags["run_dir"]).expanduser()
    config = run_dirs.read_config(run_dir)
    report = None if flags["json"] is None else pathlib.Path(flags["json"]).expanduser()
    if report is not None and (report.is_dir() or not report.parent.is_dir()):
        raise RunError(f"cannot write --json={flags['json']}: no file can be there")
    strategy, note = make_strategy(flags["num_gpus"], flags["device"])
    terminal = Terminal()
    if note:
        terminal.line(note)
    source = _load_like(config, flags).splits[flags["split"]]
    with strategy.scope():
        net = _build_net(config)
    split = _eval_split(config, flags["split"], source, strategy)
    evaluator = Evaluator(strategy, net)
    average = config["flags"]["ema_decay"] > 0

    def score(path: str) -> dict:
        step = restore_net(net, path, average=average)
        scores = evaluator.scores(split.dataset, split.examples)
        return _result(config, scores, path, step, split.name)

    if flags["follow"]:
        _follow(run_dir, config, score, report, terminal)
        return
    default = "best" if "val" in config["data"]["examples"] else "last"
    result = score(find_checkpoint(run_dir, flags["checkpoint"] or default))
    terminal.line(f"checkpoint {result['checkpoint']}, step {result['step']:,}")
    width = max(map(len, result["per_class"]))
    for name, accuracy in result["per_class"].items():
        terminal.line(f"  {name:<{width}}  {'-' if accuracy is None else f'{accuracy:7.2%}'}")
    terminal.line(_score_line(result))
    if report is not None:
        run_dirs.write_json(report, result)


def _score_line(result: dict) -> str:
    return (
        f"{result['split']}  top-1 {result['top_1_accuracy']:.2%}  "
        f"top-5 {result['top_5_accuracy']:.2%}  loss {result['loss']:.4f}  "
        f"({result['examples']:,} examples)"
    )


def _follow(run_dir: pathlib.Path, config: dict, score, report, terminal: Terminal) -> None:
    """Scores each checkpoint that is there or comes, until the run has its result."""
    plan, _ = _plan(config)
    writer, done = None, set()
    while True:
        finished = (run_dir / run_dirs.RESULT).exists()
        state = tf.train.get_checkpoint_state(str(run_dir / "checkpoints"))
        paths = [] if state is None else state.all_model_checkpoint_paths
        for path in (p for p in paths if p not in done):
            done.add(path)
            try:
                result = score(path)
            except RunError:
                if pathlib.Path(path + ".index").exists():
                    raise
                continue  # The training has deleted it in favour of a newer one.
            step = result["step"]
            terminal.line(f"epoch {plan.epoch(step):.4g}  step {step:,}  {_score_line(result)}")
            try:
                writer = writer or tf.summary.create_file_writer(
                    str(run_dir / f"follow-{result['split']}")
                )
                with writer.as_default(step=step):
                    for name in ("loss", "top_1_accuracy", "top_5_accuracy"):
                        tf.summary.scalar(name, result[name])
                writer.flush()
            except tf.errors.OpError as error:
                raise RunError(f"cannot write to {run_dir}: {reason(error)}") from error
            if report is not None:
                run_dirs.write_json(report, result)
        if finished:
            return
        time.sleep(1)
