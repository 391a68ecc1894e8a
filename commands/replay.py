"""Shows a step of a run again: what replay.py does."""

import dataclasses
import math
import pathlib
import sys
from collections.abc import Callable

import numpy as np
import tensorflow as tf

import data
import pictures
from commands import build, session
from commands.checks import output_file
from commands.config import Config
from commands.earlier_state import Saved, restore_before
from commands.initial_weights import Start
from commands.options import ReplayOptions
from commands.output import Output
from commands.pictures import shown
from commands.provenance import SOURCES, sources_changed
from commands.replay_report import Report, Row, examples_by_loss
from commands.run import Run
from commands.saved_config import DataInfo
from commands.setting import ConfigError, convert
from commands.train import report_skipped
from loops.distributed.devices import make_strategy
from loops.distributed.workers import Workers
from loops.errors import SaveError, reason
from loops.records import run as run_files
from loops.records.terminal import Terminal
from loops.replay import Replay, window_end

_IMAGES = 128  # In a picture, at most.
_WRONG = "#D55E00"  # Color of the caption of a wrong prediction.


def replay(options: ReplayOptions) -> dict:
    """Makes an update of a run again, shows it, and compares the row that contains it.

    Returns:
        The figures, as they are written to JSON.

    Raises:
        ConfigError, data.DataError, nets.NetError, RunError: something is missing or does not fit,
            or the step cannot be made again.
        SaveError: a file cannot be written.
    """
    options = convert(dataclasses.asdict(options), ReplayOptions)
    options.check()
    run = Run.open(options.run_dir)
    config = _config(run, options)
    _check_step(run, config, options.step)
    picture, json = _picture_path(run, options), output_file("json", options.json)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy, devices = make_strategy(
        config.num_gpus,
        config.device,
        precision=config.precision,
        deterministic=config.deterministic,
    )
    output = Output()
    with Terminal(sys.stderr) as terminal:  # For the progress.
        output.line(f"device   {devices}")
        dataset = run.dataset(options.data_dir, split="train")
        report_skipped(dataset.skipped, output)
        report, images = _replay(
            run, config, dataset, strategy, options.step, options.allow_changes, terminal
        )
    _draw(picture, report, images)
    if json is not None:
        run_files.write_json(json, report.as_dict())
    for line in report.lines():
        output.line(line)
    output.line(f"picture  {picture}")
    return report.as_dict()


def _config(run: Run, options: ReplayOptions) -> Config:
    """The settings of the run, on the devices of this command.

    Raises:
        ConfigError, data.DataError: they are not accepted (any more).
    """
    replicas = options.num_gpus or run.config.num_gpus * run.saved.workers
    device = options.device or run.config.device
    config = dataclasses.replace(run.config, num_gpus=replicas, device=device, hooks=())
    build.check(config)
    return config


def _check_step(run: Run, config: Config, step: int) -> None:
    """Raises ConfigError if the run has no such step."""
    plan, _ = build.make_plan(config, run.data.examples["train"])
    steps = plan.total_steps
    if run.result is not None:  # It may have stopped early.
        steps = max((r["step"] for r in run.metrics if r["split"] == "train"), default=steps)
    if step > steps:
        raise ConfigError(f"--step={step}: {run.path} has {steps:,} steps")


def _picture_path(run: Run, options: ReplayOptions) -> pathlib.Path:
    """Where to draw the batch; a directory of the run is made.

    Raises:
        ConfigError, SaveError: no file can be there.
    """
    if options.picture is not None:
        return output_file("picture", options.picture)
    path = run.path / run_files.PICTURES / f"step-{options.step}.png"
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise _cannot_draw(path, error) from error
    return path


def _cannot_draw(path: pathlib.Path, error: OSError) -> SaveError:
    return SaveError(f"cannot write {path}: {reason(error)}; draw elsewhere with --picture")


def _replay(
    run: Run,
    config: Config,
    dataset: data.Dataset,
    strategy: tf.distribute.Strategy,
    step: int,
    allow_changes: bool,
    terminal: Terminal,
) -> tuple[Report, np.ndarray]:
    """Makes a step again; returns what there is to tell, and the images of its batch by row."""
    info, say, source = run.data, Output().line, dataset.splits["train"]
    examples = session.some_examples(dataset)
    plan, learning_rate = build.make_plan(config, info.examples["train"])
    batches = build.train_pipeline(config, info, source, Workers(strategy))

    def make_state(start: Start | None, is_initial: bool):
        given = examples if is_initial else None
        return session.make_state(
            config, info, strategy, learning_rate, start=start, examples=given, say=say
        )

    say(f"run      {run.path}, step {step:,} of {plan.total_steps:,}")
    state, saved = restore_before(run, step, make_state, say=say, allow_changes=allow_changes)
    if not allow_changes:
        run.check_operations(run.fingerprint(state.net), step)
    say(f"from     {_describe_start(saved, step)}")
    row_step = window_end(plan, config.log_steps, step - 1)
    again = Replay(
        session.make_step(
            config, info, source.labels, strategy, state, learning_rate, batches.prepare
        ),
        plan=plan,
        batches=batches,
        log_steps=config.log_steps,
        on_progress=_progress(terminal, state.step, row_step),
    )
    again.advance(step - 1)
    number = step - 1 + int(state.guard["batches_left_out"].numpy())
    update = again.update()
    images, labels = _batch(config, info, source, number)
    examples = examples_by_loss(update, labels, batches, number, info.class_names)
    row = Row.of(run, row_step, again.finish_window())
    start = 0 if saved is None else saved.step
    return Report(run, saved, update, examples, row, _hint(run, config, start, row_step)), images


def _describe_start(saved: Saved | None, step: int) -> str:
    place, start = ("the initial state", 0) if saved is None else (saved.path, saved.step)
    count = step - 1 - start
    return f"{place}, {count:,} {'step' if count == 1 else 'steps'} before it"


def _progress(terminal: Terminal, first: int, last: int) -> Callable[[int], None]:
    return lambda step: terminal.status(
        f"training again, step {step - first:,} of {last - first:,}"
    )


def _hint(run: Run, config: Config, start: int, step: int) -> str:
    """What may explain that a row is not the same to the last bit, made again from a step on."""
    ends = [*(code.from_step for code in run.saved.code[1:]), math.inf]
    if any(
        sources_changed(code) and code.from_step < step and end > start
        for code, end in zip(run.saved.code, ends, strict=True)
    ):
        return f"; {SOURCES} has changed since"
    if not config.deterministic:
        return "; small differences are expected without --deterministic"
    if (config.num_gpus, 1) != (run.config.num_gpus, run.saved.workers):
        return "; small differences are expected on other devices than the run's"
    return "; has the code, the machine or a version of a library changed?"


def _batch(
    config: Config, info: DataInfo, source: data.Source, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """The whole batch of a number: images, uint8 [n, height, width, channels], and labels."""
    one = dataclasses.replace(config, num_gpus=1, accumulation=1)  # So that rows are in order.
    workers = Workers(tf.distribute.get_strategy())
    ((images, labels),) = build.train_pipeline(one, info, source, workers).batches(
        number, number + 1
    )
    pixels = np.nan_to_num(images.numpy() * np.array(info.std) + np.array(info.mean))
    return shown(np.clip(np.round(255 * pixels), 0, 255)), labels.numpy()


def _draw(path: pathlib.Path, report: Report, images: np.ndarray) -> None:
    """Draws the examples with the highest losses; raises SaveError."""
    total, chosen = len(report.examples), report.examples[:_IMAGES]
    which = f"{total}" if len(chosen) == total else f"the {len(chosen)} highest of {total}"
    figure = pictures.image_grid(
        images[[example.row for example in chosen]],
        [example.caption for example in chosen],
        title=f"{report.run.path.name}, step {report.update.step:,}: {which} examples by loss",
        colors=[None if example.is_correct else _WRONG for example in chosen],
    )
    try:
        pictures.save(figure, path)
    except OSError as error:
        raise _cannot_draw(path, error) from error
