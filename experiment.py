"""From flags to a run: puts nets, data and loops together, which know nothing of each other.

`train` takes the flags of train.py as a dictionary (see cli/).
"""

import contextlib
import json
import os
import pathlib

import tensorflow as tf

import cli
import data
import nets
from configuration import check_batch, default_stem, make_config, make_plan, saved_config
from loops import run_dir as run_dirs
from loops.checkpoints import Checkpoints
from loops.cluster import Workers, find_cluster, lost_worker
from loops.devices import make_strategy
from loops.errors import RunError, reason
from loops.evaluate import Scores
from loops.interrupt import Interrupted
from loops.logs import MetricsLog, Terminal
from loops.optimizer import DECOUPLED_DECAY, make_optimizer
from loops.schedule import LearningRate, Plan
from loops.state import TrainState
from loops.step import StepSettings, TrainStep
from loops.train import Faults, Rhythm, Split, Trainer
from nets import pretrained
from nets.pretrained import PretrainedError
from nets.table import table


@contextlib.contextmanager
def plain_errors():
    """Turns what a user can mend into one line and an exit code, without a traceback."""
    try:
        yield
    except (nets.NetError, PretrainedError, data.DataError, RunError) as error:
        cli.fail(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        cli.fail(f"cannot use {error.filename}: {error.strerror}")
    except Interrupted as interrupted:
        saved = interrupted.step is not None
        Terminal().line(
            f"stopped; saved at step {interrupted.step:,}; the same command goes on"
            if saved
            else "stopped; nothing could be saved"
        )
        raise SystemExit(cli.EXIT_SIGNAL + interrupted.signal_number) from None
    except tf.errors.OpError as error:
        cause = data.data_error(error)
        if cause is not None:
            cli.fail(str(cause))
        lost = lost_worker(error)
        if lost is not None:
            cli.fail(lost)
        if "OOM" not in error.message:
            raise
        cli.fail(f"out of memory; lower --batch_size or raise --accumulation ({reason(error)})")


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
        sync_batch_norm=flags["sync_batch_norm"],
    )


def _share(workers: Workers, *, parts: int = 1) -> data.Share:
    """Which rows of a batch are read on this machine."""
    replicas = workers.strategy.num_replicas_in_sync
    here = replicas // workers.count
    return data.Share(replicas, workers.index * here, here, parts)


def eval_split(config: dict, name: str, source, workers: Workers) -> Split:
    """A split to score, normalized as the run was trained."""
    flags, replicas = config["flags"], workers.strategy.num_replicas_in_sync
    # As many examples at a time on each replica as in training, on any number of replicas.
    per_replica = flags["batch_size"] // (flags["num_gpus"] * config.get("machines", 1))
    dataset = data.eval_batches(
        source,
        global_batch_size=per_replica * replicas,
        mean=config["data"]["mean"],
        std=config["data"]["std"],
        share=_share(workers),
    )
    return Split(name, dataset, len(source.labels))


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


def _train_batches(config: dict, dataset: data.Dataset, workers: Workers):
    """A function from a global step, and batches left out before, to the batches from there on."""
    flags, names = config["flags"], ("crop_padding", "flip", "cutout", "mixup", "cutmix")
    plan, _ = make_plan(config)
    return lambda start_step, left_out: data.train_batches(
        dataset.splits["train"],
        global_batch_size=flags["batch_size"],
        seed=flags["seed"],
        start_step=start_step + left_out,
        stop_step=plan.total_steps + left_out,
        augmentation=data.Augmentation(**{name: flags[name] for name in names}),
        mean=config["data"]["mean"],
        std=config["data"]["std"],
        num_classes=len(config["data"]["class_names"]),
        share=_share(workers, parts=flags["accumulation"]),
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
        on_nan=flags["on_nan"],
    )


def _print_table(flags: dict, terminal: Terminal) -> None:
    """What --describe prints."""
    shape = (flags["image_size"] or 32,) * 2 + (3,)
    net = nets.build(
        flags["net"],
        num_classes=flags["num_classes"] or 10,
        image_shape=shape,
        stem=flags["stem"] or default_stem(flags, shape),
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


def _start(command: dict, run_dir: pathlib.Path) -> tf.keras.Model | None:
    """The Keras model whose weights a run starts from; None if there is none, or a checkpoint."""
    flags = command["flags"]
    if not flags["init_from"] or any((run_dir / "checkpoints").glob("step-*.index")):
        return None
    channels = command["data"]["image_shape"][-1]
    return pretrained.load(flags["net"], flags["init_from"], channels=channels, stem=flags["stem"])


def train(raw_flags: dict) -> None:
    """Starts a run, or goes on with it, or says that it is finished."""
    nets.check_name(raw_flags["net"])
    if raw_flags["describe"]:
        _print_table(raw_flags, Terminal())
        return
    cluster = find_cluster(raw_flags["cluster"], os.environ)
    check_batch(raw_flags, len(cluster.addresses) if cluster else 1)
    terminal = Terminal(quiet=cluster is not None and cluster.index > 0)
    if cluster:
        terminal.line(f"waiting for {len(cluster.addresses)} workers to come up")
    if raw_flags["deterministic"]:
        tf.config.experimental.enable_op_determinism()
    strategy, note = make_strategy(raw_flags["num_gpus"], raw_flags["device"], cluster)
    if note:
        terminal.line(note)
    workers = Workers(strategy, cluster)
    dataset = _load_data(raw_flags)
    say_skipped(dataset, terminal)
    command = make_config(raw_flags, dataset)
    if cluster:
        command["machines"] = workers.count
    # So that a setting that does not suit the data is told before a run is made.
    _train_batches(command, dataset, workers)(0, 0)

    run_dir = _run_dir(raw_flags["run_dir"], command)
    start = _start(command, run_dir)
    alike = {k: v for k, v in command["flags"].items() if k != "data_dir"}
    if not workers.agree(json.dumps([alike, command["data"], str(run_dir.resolve())])):
        raise RunError("the workers differ in their flags, data or --run_dir; start all alike")
    run_dirs.check_run(run_dir, command, cli.FREE_FLAGS, read=saved_config)
    result = run_dirs.read_result(run_dir)
    if result is not None:
        terminal.line("This run is finished.")
        _say_finished(terminal, run_dir, result)
        terminal.line(f"To start over, remove {run_dir} or give another --run_dir or --seed.")
        return
    with _opened(run_dir, command, workers) as there:
        _run(command, there or command, run_dir, dataset, start, workers, terminal)


@contextlib.contextmanager
def _opened(run_dir: pathlib.Path, command: dict, workers: Workers):
    """The run directory, locked; gives its configuration, or None where it is new.

    The chief makes it, and the others find it.
    """
    with contextlib.ExitStack() as stack:
        if workers.is_chief:
            stack.enter_context(run_dirs.locked(run_dir))
            there = run_dirs.open_run(run_dir, command, cli.FREE_FLAGS, read=saved_config)
        workers.total([0])
        if not workers.is_chief:
            there = run_dirs.check_run(run_dir, command, cli.FREE_FLAGS, read=saved_config)
        yield there


def _run(command, there, run_dir, dataset, start, workers: Workers, terminal) -> None:
    """Trains, scores, and writes the result.

    Args:
        command: the configuration that the command asks for.
        there: that of the run. What differs in the command may not change how it is scored.
        run_dir: its directory.
        dataset: loaded.
        start: Keras model to start from, or None.
        workers: the machines.
        terminal: where a person reads.
    """
    flags, strategy = command["flags"], workers.strategy
    plan, learning_rate = make_plan(command)
    state = _make_state(command, learning_rate, strategy, start, terminal)
    checkpoints = Checkpoints(
        state, run_dir, flags["keep_checkpoints"], workers=workers, say=terminal.line
    )
    checkpoints.restore_last()
    log = MetricsLog(run_dir, writes=workers.is_chief, say=terminal.line)
    log.rewind(state.step, int(state.progress["evaluated_step"].numpy()))
    _say_start(terminal, log, run_dir, command, state, plan, strategy.num_replicas_in_sync)
    evals = {
        name: eval_split(there, name, dataset.splits[name], workers)
        for name in ("val", "test")
        if name in dataset.splits
    }
    outcome = Trainer(
        strategy=strategy,
        state=state,
        step=TrainStep(strategy, state, _step_settings(flags)),
        plan=plan,
        learning_rate=learning_rate,
        train_batches=_train_batches(command, dataset, workers),
        val=evals.get("val"),
        test=evals["test"],
        checkpoints=checkpoints,
        log=log,
        terminal=terminal,
        rhythm=Rhythm(flags["log_steps"], flags["eval_epochs"], flags["save_minutes"]),
        faults=Faults(flags["on_nan"], flags["on_save_error"]),
        workers=workers,
    ).run()
    checkpoint = run_dir / ("best" if outcome.is_best else "checkpoints") / f"step-{outcome.step}"
    result = {
        **result_of(command, outcome.scores, str(checkpoint), outcome.step, "test"),
        "selected_on": "val" if outcome.is_best else None,
    }
    if workers.is_chief:
        run_dirs.write_json(run_dir / run_dirs.RESULT, result)
    if not workers.part() and run_dirs.read_result(run_dir) is None:
        raise RunError("the chief is gone before it wrote the result; start all workers again")
    _say_finished(terminal, run_dir, result)


def _say_start(
    terminal, log: MetricsLog, run_dir, config: dict, state, plan: Plan, replicas: int
) -> None:
    """The net, the data and the run, and once the configuration in TensorBoard."""
    about = config["data"]
    terminal.line(table(state.net, tuple(about["image_shape"])))
    if not state.step:
        rows = "".join(f"\n| {k} | {v} |" for k, v in config["flags"].items())
        log.write_text("configuration", f"| flag | value |\n|---|---|{rows}")
    size, classes = "x".join(map(str, about["image_shape"])), len(about["class_names"])
    sizes = ", ".join(f"{n:,} {split}" for split, n in about["examples"].items())
    terminal.line(f"data   {about['name']}, {size}, {classes} classes: {sizes}")
    how = f"goes on from step {state.step:,}" if state.step else "new"
    terminal.line(f"run    {run_dir}, {how}, {plan.total_steps:,} steps on {replicas} replica(s)")


def result_of(config: dict, scores: Scores, checkpoint: str, step: int, split: str) -> dict:
    """Scores as they are written to JSON."""
    return {
        "split": split,
        **scores.as_dict(config["data"]["class_names"]),
        "checkpoint": checkpoint,
        "step": step,
    }
