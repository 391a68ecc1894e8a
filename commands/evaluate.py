"""Scores a saved run: what eval.py does."""

import dataclasses
import pathlib
import time
from collections.abc import Callable

import data
from commands import build
from commands import pictures as drawing
from commands.checks import output_directory, output_file
from commands.options import EvaluateOptions
from commands.output import Output
from commands.run import Run
from commands.setting import ConfigError, convert
from commands.train import report_skipped
from data import variants
from loops.distributed.devices import make_strategy
from loops.distributed.workers import Workers
from loops.errors import RunError, SaveError
from loops.evaluator import Evaluator, Scores
from loops.metrics import METRICS, figures
from loops.records import run as run_files
from loops.records.metrics_log import MetricsLog
from loops.records.tensorboard import TensorBoard

_SHOWN = 10  # Classes at either end, of many.


def evaluate(options: EvaluateOptions) -> dict | None:
    """Scores one checkpoint of a run, or each new one.

    Returns:
        The scores, as they are written to JSON; None with `options.follow`.

    Raises:
        ConfigError, data.DataError, RunError: something is missing or does not fit.
    """
    options = convert(dataclasses.asdict(options), EvaluateOptions)
    options.check()
    run = Run.open(options.run_dir)
    report = output_file("json", options.json)
    directory = output_directory("pictures", options.pictures)
    checkpoint = None if options.follow else run.checkpoint(options.checkpoint)
    strategy, devices = make_strategy(
        options.num_gpus, options.device, precision=run.config.precision
    )
    output = Output()
    output.line(f"device {devices}")
    splits, skipped = _find_splits(run, options)
    report_skipped(skipped, output)
    with strategy.scope():
        net = build.build_net(run.config, run.data)
    fingerprint = run.fingerprint(net)
    source = splits[options.split]
    split = build.eval_pipeline(run.config, run.data, source, Workers(strategy), run.saved.workers)
    tta = run.config.tta if options.tta is None else options.tta
    evaluator = Evaluator(
        strategy, net, run.config.loss, prepare=split.prepare, variants=build.variants(tta)
    )

    def score(checkpoint: str) -> tuple[dict, Scores]:
        step = run.restore(net, checkpoint)
        if not options.allow_changes:
            run.check_operations(fingerprint, step)
        scores = evaluator.scores(split)
        result = {
            "split": options.split,
            **scores.as_dict(run.data.class_names),
            "checkpoint": checkpoint,
            "step": step,
        }
        if report is not None:
            run_files.write_json(report, result)
        return result, scores

    if options.follow:
        _follow(run, options.split, lambda checkpoint: score(checkpoint)[0], output)
        return None
    result, scores = score(checkpoint)
    count = variants.count(tta)
    averaged = f", {count} variants of each image averaged" if count > 1 else ""
    output.line(f"checkpoint {result['checkpoint']}, step {result['step']:,}{averaged}")
    for line in _class_lines(result["per_class"], every=options.per_class):
        output.line(line)
    output.line(_score_line(result))
    if directory is not None:
        paths = drawing.draw_all(
            directory,
            run,
            net=net,
            splits=splits,
            predictions=scores.predictions,
            split=options.split,
        )
        output.line(f"{len(paths)} pictures in {directory}")
    return result


def _find_splits(
    run: Run, options: EvaluateOptions
) -> tuple[dict[str, data.Source], tuple[pathlib.Path, ...]]:
    """The split to score and others of the same data, and files that were left out."""
    if options.dataset is not None:
        source, skipped = data.load_split(
            options.dataset,
            options.split,
            class_names=run.data.class_names,
            image_shape=run.data.image_shape,
            data_dir=options.data_dir,
            bad_images=run.config.bad_images,
        )
        return {options.split: source}, skipped
    if options.split not in run.data.examples:
        splits = ", ".join(sorted(run.data.examples))
        raise ConfigError(f"--split={options.split}: the run has {splits}")
    dataset = run.dataset(options.data_dir, split=options.split)
    return dataset.splits, dataset.skipped


def _class_lines(per_class: dict[str, float | None], *, every: bool) -> list[str]:
    """The accuracy of each class, a line each; of many, the best and the worst.

    Args:
        per_class: accuracies by name, None for a class without examples.
        every: whether to show all of them, however many there are.
    """
    width = max(len(data.printable(name)) for name in per_class)
    lines = {
        name: f"  {data.printable(name):<{width}}  {'-' if x is None else f'{x:7.2%}'}"
        for name, x in per_class.items()
    }
    if every or len(lines) <= 2 * _SHOWN:
        return list(lines.values())
    there = {name: x for name, x in per_class.items() if x is not None}
    ranked = [lines[name] for name in sorted(there, key=lambda name: -there[name])]
    left_out = f"  {len(lines):,} classes, {len(there):,} with examples; --per_class shows all"
    if len(ranked) <= 2 * _SHOWN:
        return [*ranked, left_out]
    return [*ranked[:_SHOWN], left_out, *ranked[-_SHOWN:]]


def _score_line(result: dict) -> str:
    known = [item for item in figures().items() if item[0] in result]
    scores = "  ".join(f"{label} {result[name]:{spec}}" for name, (label, spec) in known)
    count = "1 example" if result["examples"] == 1 else f"{result['examples']:,} examples"
    return f"{result['split']}  {scores}  ({count})"


def _follow(run: Run, split: str, score: Callable[[str], dict], output: Output) -> None:
    """Scores each checkpoint that is there or appears, as long as the run is being trained.

    The rows go to `follow/<split>/metrics.jsonl` and to TensorBoard. Checkpoints that are in it
    already are not scored again.
    """
    directory = run.path / "follow"
    # One file per split, since two splits can be followed at the same time.
    (directory / split).mkdir(parents=True, exist_ok=True)
    log = MetricsLog(directory / split, say=output.line)
    tensorboard = TensorBoard(directory, figures=tuple(figures()))
    done = {row["step"] for row in log.rows}
    while True:
        finished = run.result is not None
        abandoned = run_files.is_locked(run.path) is False
        for step, path in run.checkpoints.items():
            if step in done:
                continue
            done.add(step)
            try:
                result = score(path)
            except SaveError:
                raise
            except RunError:
                if pathlib.Path(path + ".index").exists():
                    raise
                continue  # Training has deleted it in favour of a newer one.
            output.line(f"epoch {run.plan.epoch(step):.4g}  step {step:,}  {_score_line(result)}")
            values = {name: result[name] for name in ("loss", *METRICS)}
            row = {"split": split, "step": step, "epoch": round(run.plan.epoch(step), 4), **values}
            for hook in (log, tensorboard):
                hook.on_evaluate(None, row, None)
        if finished:
            output.line(f"{run.path} is finished; all of its checkpoints have been scored")
            return
        if abandoned:
            output.line(f"no process is training in {run.path}; its checkpoints have been scored")
            return
        time.sleep(1)
