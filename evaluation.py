"""From a saved run to its scores: what eval.py does."""

import functools
import pathlib
import time

import tensorflow as tf

import data
from configuration import make_plan, saved_config
from experiment import build_net, eval_split, result_of, say_skipped
from loops import run_dir as run_dirs
from loops.checkpoints import find_checkpoint, restore_net
from loops.cluster import Workers
from loops.devices import make_strategy
from loops.errors import RunError, reason
from loops.evaluate import Evaluator
from loops.events import EventLog, write_scalars
from loops.logs import Terminal


def _load_like(config: dict, flags: dict) -> data.Dataset:
    """The run's dataset, or another with the same classes, as the run's net takes it."""
    own, height, _, channels = config["flags"], *config["data"]["image_shape"]
    name = own["dataset"] if flags["dataset"] is None else flags["dataset"]
    data_dir = flags["data_dir"]
    if data_dir is None and name == own["dataset"]:
        data_dir = own["data_dir"]
    dataset = data.load(
        name,
        data_dir=data_dir,
        val_fraction=own["val_fraction"],
        image_size=height,
        channels=channels if name == "folder" else None,
        bad_images=own.get("bad_images", "error"),
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
    config = saved_config(run_dir)
    report = None if flags["json"] is None else pathlib.Path(flags["json"]).expanduser()
    if report is not None and (report.is_dir() or not report.parent.is_dir()):
        raise RunError(f"cannot write --json={flags['json']}: no file can be there")
    strategy, note = make_strategy(flags["num_gpus"], flags["device"])
    terminal = Terminal()
    if note:
        terminal.line(note)
    dataset = _load_like(config, flags)
    say_skipped(dataset, terminal)
    with strategy.scope():
        net = build_net(config)
    source = dataset.splits[flags["split"]]
    split = eval_split(config, flags["split"], source, Workers(strategy))
    evaluator = Evaluator(strategy, net)
    average = config["flags"]["ema_decay"] > 0

    def score(path: str) -> dict:
        step = restore_net(net, path, average=average)
        scores = evaluator.scores(split.dataset, split.examples)
        return result_of(config, scores, path, step, split.name)

    if flags["follow"]:
        _follow(run_dir, config, split.name, score, report, terminal)
        return
    default = "best" if "val" in config["data"]["examples"] else "last"
    result = score(find_checkpoint(run_dir, flags["checkpoint"] or default))
    terminal.line(f"checkpoint {result['checkpoint']}, step {result['step']:,}")
    per_class = {data.printable(name): x for name, x in result["per_class"].items()}
    width = max(map(len, per_class))
    for name, accuracy in per_class.items():
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


def _follow(run_dir, config: dict, split: str, score, report, terminal: Terminal) -> None:
    """Scores each checkpoint that is there or comes, until the run has its result."""
    plan, _ = make_plan(config)
    events = EventLog(run_dir / f"follow-{split}")
    done = set()
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
                names = ("loss", "top_1_accuracy", "top_5_accuracy")
                figures = {name: result[name] for name in names}
                events.write(functools.partial(write_scalars, step, figures))
            except (OSError, tf.errors.OpError) as error:
                raise RunError(f"cannot write to {run_dir}: {reason(error)}") from error
            if report is not None:
                run_dirs.write_json(report, result)
        if finished:
            return
        time.sleep(1)
