"""The learning-rate range test: what train.py --find_learning_rate does."""

import csv
import dataclasses
import io
import pathlib

import data
import pictures
from commands import build, session
from commands.checks import normal_path
from commands.initial_weights import find_origin, load_start
from commands.options import TrainOptions
from commands.run_directory import run_directory
from loops.distributed.workers import Workers
from loops.errors import SaveError, reason
from loops.inputs import iterate
from loops.optimizer import find_optimizer
from loops.rate_range import ExponentialRate, RateRange, range_test
from loops.records.terminal import Terminal

# The range, relative to the optimizer's default rate.
_LOW, _HIGH = 1e-4, 1e2
_STEPS = (100, 300)


def find_learning_rate(
    options: TrainOptions, dataset: data.Dataset, workers: Workers, terminal: Terminal
) -> RateRange:
    """Trains for some hundred steps while the learning rate rises, and suggests a rate.

    The curve is drawn, and written as CSV, beside the directory that the run would have.

    Raises:
        SaveError: a file cannot be written.
        NonFiniteError: the loss is not finite from the start.
    """
    run_dir = run_directory(options.run_dir, options.config, build.data_info(dataset))
    requested = dataclasses.replace(
        build.with_absolute_paths(options.config), ema_decay=0.0, train_sizes=(), on_nan="stop"
    )
    origin = find_origin(requested)
    config = build.resolve(requested, dataset, origin)
    info = build.normalized_for(origin, config, build.data_info(dataset))
    source = dataset.splits["train"]
    batches = build.train_pipeline(config, info, source, workers)
    default = find_optimizer(config.optimizer).learning_rate
    steps = min(max(_STEPS[0], len(source.labels) // config.batch_size), _STEPS[1])
    schedule = ExponentialRate(_LOW * default, _HIGH * default, steps)
    start = load_start(config, info, allow_changes=options.allow_changes)
    state = session.make_state(
        config,
        info,
        workers.strategy,
        schedule,
        start=start,
        examples=session.some_examples(dataset),
        say=terminal.line,
    )
    terminal.line(f"rates  {schedule.low:.3g} to {schedule.high:.3g} in {steps} steps")
    terminal.status("training with rising learning rates")
    step = session.make_step(
        config, info, source.labels, workers.strategy, state, schedule, batches.prepare
    )
    found = range_test(step, iterate(workers.strategy, batches.batches(0)), schedule)
    terminal.close()
    if workers.is_chief:
        picture = _write(run_dir, found)
        terminal.line(f"curve  {picture}")
    if found.suggested is None:
        terminal.line("rate   none can be suggested: the loss did not fall", always=True)
    else:
        terminal.line(f"rate   --learning_rate={found.suggested:.2g}", always=True)
    return found


def _write(run_dir: pathlib.Path, found: RateRange) -> pathlib.Path:
    """Writes the curve as a picture and as CSV; returns the path of the picture."""
    run_dir = normal_path(run_dir)  # Which has a name.
    picture, table = (
        run_dir.with_name(f"{run_dir.name}.learning_rate.{kind}") for kind in ("png", "csv")
    )
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("learning_rate", "loss", "smoothed_loss"))
    writer.writerows(zip(found.rates, found.losses, found.smoothed, strict=True))
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(text.getvalue(), encoding="utf-8")
        pictures.save(
            pictures.learning_rate_range(
                found.rates, found.losses, found.smoothed, found.suggested
            ),
            picture,
        )
    except OSError as error:
        raise SaveError(f"cannot write {picture}: {reason(error)}") from error
    return picture
