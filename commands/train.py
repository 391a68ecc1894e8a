"""Trains a net, or resumes a run: what train.py does."""

import dataclasses
import json
import os
import pathlib
import shlex
import time

import tensorflow as tf

import data
import nets
from commands import build, dashboards, session
from commands import pictures as drawing
from commands.checks import parse_train_sizes
from commands.compare import compare_runs
from commands.comparison_report import as_text
from commands.config import Config
from commands.find_learning_rate import find_learning_rate
from commands.initial_weights import Start, find_origin, load_start
from commands.options import TrainOptions
from commands.output import write
from commands.provenance import (
    SOURCES,
    code_changes,
    commit,
    machine,
    sources,
    sources_changed,
    versions,
)
from commands.run import Run
from commands.run_directory import opened, run_directory
from commands.saved_config import Code, SavedConfig, read_config, read_result, write_config
from commands.setting import ConfigError, convert
from commands.summary import next_steps, result_line, summary
from data.variants import VARIANTS
from loops.distributed.cluster import Cluster, find_cluster
from loops.distributed.devices import make_strategy
from loops.distributed.workers import Workers
from loops.errors import RunError, SaveError
from loops.hooks import make_hooks
from loops.interrupt import Interrupted
from loops.metrics import METRICS, metric_labels
from loops.records.checkpoint_files import saved_steps
from loops.records.checkpoints import Checkpoints
from loops.records.metrics_log import MetricsLog
from loops.records.predictions import write_predictions
from loops.records.run import CHECKPOINTS, CONFIG, PICTURES, RESULT, write_json
from loops.records.terminal import Terminal
from loops.records.times import Times
from loops.schedule import Plan
from loops.spikes import Spikes
from loops.state import TrainState
from loops.trainer import FailurePolicy, Intervals, Outcome, Trainer
from nets.table import NetSummary, table, trace


def train(options: TrainOptions, *, started: float | None = None) -> Run | list[Run] | None:
    """Starts a run, resumes it, or reports that it is finished.

    Args:
        options: the flags.
        started: `time.monotonic()` at the start of the process, for `times.json`; None for now.

    Returns:
        The run, or with `options.seeds` a list of them; None with `options.describe` and
        `options.find_learning_rate`, which make no run.

    Raises:
        ConfigError, data.DataError, nets.NetError, pretrained.PretrainedError, RunError: it cannot
            start or continue.
        Interrupted: a signal stopped the run; its state is saved.
    """
    options = convert(dataclasses.asdict(options), TrainOptions)  # They may be made in a notebook.
    options.check()
    if options.describe:
        write(f"{_describe(options)}\n")
        return None
    cluster = find_cluster(options.cluster, os.environ)
    build.check(options.config, len(cluster.addresses) if cluster else 1)
    quiet = cluster is not None and cluster.index > 0
    with Terminal(
        quiet=quiet,
        metrics=metric_labels(),
        best_metric=options.best_metric,
        verbosity=options.verbosity,
    ) as terminal:
        try:
            return _train(options, cluster, terminal, started or time.monotonic())
        except Interrupted as interrupted:
            terminal.line(
                "stopped; nothing could be saved"
                if interrupted.step is None
                else f"stopped; saved at step {interrupted.step:,}; rerun the command to resume"
            )
            raise


def _train(
    options: TrainOptions, cluster: Cluster | None, terminal: Terminal, started: float
) -> Run | list[Run] | None:
    if cluster:
        terminal.line(f"waiting for {len(cluster.addresses)} workers")
    if options.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy, devices = make_strategy(
        options.num_gpus,
        options.device,
        cluster,
        precision=options.precision,
        deterministic=options.deterministic,
    )
    terminal.line(f"device {devices}")
    workers = Workers(strategy, cluster)
    sources()  # Of what has been loaded; data may take long.
    dataset = build.load_data(options.config)
    build.check_validation(options.config, dataset)
    report_skipped(dataset.skipped, terminal)
    if dataset.note:
        terminal.line(f"note   {dataset.note}")
    _check_num_classes(options, dataset)
    if options.find_learning_rate:
        find_learning_rate(options, dataset, workers, terminal)
        return None
    if not options.seeds:
        return _train_run(options, dataset, workers, terminal, started)
    runs = []
    for number, seed in enumerate(options.seeds, start=1):
        terminal.line(f"seed   {seed}, run {number} of {len(options.seeds)}")
        runs.append(_train_run(_with_seed(options, seed), dataset, workers, terminal, started))
        started = time.monotonic()
    if workers.is_chief:
        terminal.line(as_text(compare_runs([run.path for run in runs])), always=True)
    return runs


def _with_seed(options: TrainOptions, seed: int) -> TrainOptions:
    """The options of one of several runs."""
    run_dir = options.run_dir and os.path.join(options.run_dir, f"seed_{seed}")
    return dataclasses.replace(options, seed=seed, run_dir=run_dir)


def _train_run(
    options: TrainOptions,
    dataset: data.Dataset,
    workers: Workers,
    terminal: Terminal,
    started: float,
) -> Run:
    """Trains, resumes or reports one run."""
    requested = build.with_absolute_paths(options.config)
    requested = _in_one_form(requested)
    info = build.data_info(dataset)
    run_dir = run_directory(options.run_dir, requested, info)
    origin = find_origin(requested, run_dir)
    if requested.augment is None and _saved_augment(run_dir) == dataset.earlier_augment:
        requested = dataclasses.replace(requested, augment=dataset.earlier_augment)
    config = build.resolve(requested, dataset, origin)
    dataset = dataclasses.replace(dataset, eval_crop=config.eval_crop)
    wanted = SavedConfig(
        settings=config,
        data=build.normalized_for(origin, config, info),
        workers=workers.count,
        init_fingerprint=origin and origin.fingerprint,
    )
    batches = build.train_pipeline(config, wanted.data, dataset.splits["train"], workers)
    if not workers.agree(_identity(wanted, run_dir)):
        raise RunError(
            "the workers differ in their flags, data, code or --run_dir; start all workers with "
            "identical flags and code"
        )
    # Before the directory is created.
    start = _initial_weights(wanted, run_dir, options.allow_changes)
    with opened(run_dir, wanted, workers) as saved:
        result = None if saved is None else read_result(run_dir, tuple(METRICS))
        if result is None:
            job = _Job(wanted, saved, run_dir, dataset, workers, terminal, start, started)
            job.train(batches, options)
        else:
            terminal.line("This run is finished.")
            print_result(terminal, Run.open(run_dir), run_dir)
            if saved.code and sources_changed(saved.code[-1]):
                terminal.line(f"note   {SOURCES} has changed since this run was trained")
            if {*config.hooks} - {*saved.settings.hooks}:
                terminal.line("note   --hooks are called in training, which is over")
            quoted = shlex.quote(str(run_dir))
            terminal.line(f"To start over, remove {quoted} or give another --run_dir or --seed.")
    return Run.open(run_dir)


def _in_one_form(config: Config) -> Config:
    """Settings in one of the forms that mean the same, so that another makes no other run."""
    if config.augment is not None:
        augment = data.format_augment(data.parse_augment(config.augment))
        config = dataclasses.replace(config, augment=augment)
    return dataclasses.replace(
        config,
        freeze=tuple(sorted(set(config.freeze))),
        train_sizes=tuple(f"{size}:{at}" for size, at in parse_train_sizes(config.train_sizes)),
        tta=tuple(name for name in VARIANTS if name in config.tta),
    )


def _saved_augment(run_dir: pathlib.Path) -> str | None:
    """The augmentations of the run in a directory, if there is one."""
    return read_config(run_dir).settings.augment if (run_dir / CONFIG).exists() else None


def _initial_weights(
    wanted: SavedConfig, run_dir: pathlib.Path, allow_changes: bool
) -> Start | None:
    """What copies the weights of `--init_from`; None if there are none, or checkpoints."""
    if saved_steps(run_dir / CHECKPOINTS):
        return None
    return load_start(wanted.settings, wanted.data, allow_changes=allow_changes)


def _describe(options: TrainOptions) -> str:
    """The net's table, for images of a size."""
    nets.check_name(options.net)
    size = options.image_size or 32
    origin = find_origin(build.with_absolute_paths(options.config))
    stem = options.stem or build.default_stem((size, size, 3), origin)
    build.check_stages(dataclasses.replace(options.config, stem=stem))
    net = nets.build(
        options.net,
        num_classes=options.num_classes or 10,
        image_shape=(size, size, 3),
        stem=stem,
        auxiliary=options.auxiliary,
    )
    return table(trace(net, (size, size, 3)))


def _check_num_classes(options: TrainOptions, dataset: data.Dataset) -> None:
    classes = len(dataset.class_names)
    if options.num_classes not in (None, classes):
        raise ConfigError(
            f"--num_classes={options.num_classes}: {dataset.name} has {classes} classes; "
            "--num_classes is for --describe only"
        )


def report_skipped(files: tuple[pathlib.Path, ...], terminal: Terminal) -> None:
    """Prints one line about files that were left out, if there are any; it names the first two."""
    if files:
        more = f" and {len(files) - 2:,} more" if len(files) > 2 else ""
        images = "1 bad image" if len(files) == 1 else f"{len(files):,} bad images"
        named = data.printable(", ".join(map(str, files[:2])))
        terminal.line(f"skipped {images}: {named}{more}")


def _identity(wanted: SavedConfig, run_dir: pathlib.Path) -> str:
    """What all workers must have in common, as text."""
    settings = dataclasses.replace(wanted.settings, data_dir=None)
    content = dataclasses.asdict(dataclasses.replace(wanted, settings=settings))
    return json.dumps([content, sources(), os.path.realpath(run_dir)], sort_keys=True)


class _Job:
    """One process's part in training a run, from the data to the result.

    Args:
        wanted: the configuration that the command asks for.
        saved: that of the run; None for a new one.
        run_dir: its directory, locked.
        dataset: loaded.
        workers: the processes that train together.
        terminal: for messages.
        start: copies the initial weights, if there are any.
        started: `time.monotonic()` when the work on this run began.
    """

    def __init__(
        self,
        wanted: SavedConfig,
        saved: SavedConfig | None,
        run_dir: pathlib.Path,
        dataset: data.Dataset,
        workers: Workers,
        terminal: Terminal,
        start: Start | None,
        started: float,
    ):
        self.start, self.started = start, started
        self.config, self.info = wanted.settings, wanted.data
        self.saved = saved or wanted
        self.is_new = saved is None
        self.run_dir, self.dataset = run_dir, dataset
        self.workers, self.terminal = workers, terminal

    def train(self, batches: data.TrainPipeline, options: TrainOptions) -> None:
        """Trains, scores, and writes the result."""
        config, workers, terminal = self.config, self.workers, self.terminal
        plan, learning_rate = build.make_plan(config, self.info.examples["train"])
        strategy, say = workers.strategy, terminal.line
        is_saved = saved_steps(self.run_dir / CHECKPOINTS)  # And will be restored.
        examples = None if is_saved else session.some_examples(self.dataset)
        state = session.make_state(
            config,
            self.info,
            strategy,
            learning_rate,
            start=self.start,
            examples=examples,
            say=say,
        )
        summary = trace(state.net, self.info.image_shape)
        if summary.problem:
            raise nets.NetError(f"{config.net}: {summary.problem}")
        code = Code(from_step=0, net=summary.fingerprint, versions=versions(), sources=sources())
        if not self.is_new:  # Before anything in the run directory changes.
            self._check_code(code, options.allow_changes)
        checkpoints = Checkpoints(
            state, self.run_dir, config.keep_checkpoints, workers=workers, say=terminal.line
        )
        checkpoints.restore_last()
        self._record_code(dataclasses.replace(code, from_step=state.step))
        self._print_start(summary, state, plan)
        log = MetricsLog(self.run_dir, writes=workers.is_chief, say=terminal.line)
        terminal.log = log
        boards = dashboards.make(
            self.run_dir,
            config,
            self.info,
            self.dataset,
            summary,
            workers,
            options,
            say=terminal.line,
        )
        times = Times(
            self.run_dir,
            started=self.started,
            facts={"machine": machine(), "commit": commit()},
            writes=workers.is_chief,
        )
        labels = self.dataset.splits["train"].labels
        outcome = Trainer(
            session.make_step(
                config, self.info, labels, strategy, state, learning_rate, batches.prepare
            ),
            plan=plan,
            batches=batches,
            splits=self._eval_splits(),
            checkpoints=checkpoints,
            # Those that write come last, so that the others can add to the rows.
            hooks=[*make_hooks(config.hooks), log, Spikes(log, say), *boards, terminal, times],
            intervals=Intervals(config.log_steps, config.eval_epochs, config.save_minutes),
            policy=FailurePolicy(config.on_nan, config.on_save_error),
            best_metric=config.best_metric,
            patience=config.patience,
            workers=workers,
            variants=build.variants(config.tta),
            say=terminal.line,
        ).run()
        self._write_result(outcome, state, times)

    def _eval_splits(self) -> dict[str, data.EvalPipeline]:
        # With the batch size of the run, which a command may not change.
        return {
            name: build.eval_pipeline(
                self.saved.settings,
                self.info,
                self.dataset.splits[name],
                self.workers,
                self.saved.workers,
            )
            for name in ("val", "test")
            if name in self.dataset.splits
        }

    def _check_code(self, code: Code, allowed: bool) -> None:
        """Compares the net's operations and the versions with those of the run.

        Raises:
            RunError: they differ, and no flag allows it.
        """
        changes = (
            code_changes(self.config.net, self.saved.code[-1], code) if self.saved.code else []
        )
        if changes and not allowed:
            raise RunError(
                f"since {self.run_dir} was trained, {'; '.join(changes)}. Undo the change, start "
                "another run, or continue this one with --allow_changes"
            )
        if changes:
            self.terminal.line(f"continuing although {'; '.join(changes)}")
        elif self.saved.code and sources_changed(self.saved.code[-1]):
            self.terminal.line(
                f"note   {SOURCES} has changed since this run was last started; it "
                "continues with the code as it is now"
            )

    def _record_code(self, code: Code) -> None:
        """Writes the configuration of a new run, or a change of its code.

        Code that made no step, as that of a start that failed, is left out.
        """
        made = tuple(entry for entry in self.saved.code if entry.from_step < code.from_step)
        is_same = made and dataclasses.replace(code, from_step=made[-1].from_step) == made[-1]
        now = made if is_same else (*made, code)
        if now != self.saved.code:
            self.saved = dataclasses.replace(self.saved, code=now)
            if self.workers.is_chief:
                write_config(self.run_dir, self.saved)

    def _print_start(self, summary: NetSummary, state: TrainState, plan: Plan) -> None:
        """Prints the net, the data and the run."""
        info, replicas = self.info, self.workers.strategy.num_replicas_in_sync
        self.terminal.line(table(summary))
        size = "x".join(map(str, info.image_shape))
        sizes = ", ".join(f"{count:,} {split}" for split, count in info.examples.items())
        self.terminal.line(f"data   {info.name}, {size}, {len(info.class_names)} classes: {sizes}")
        how = f"resumes at step {state.step:,}" if state.step else "new"
        steps = "1 step" if plan.total_steps == 1 else f"{plan.total_steps:,} steps"
        on = "1 replica" if replicas == 1 else f"{replicas} replicas"
        self.terminal.line(f"run    {self.run_dir}, {how}, {steps} on {on}")

    def _write_result(self, outcome: Outcome, state: TrainState, times: Times) -> None:
        result = {
            "split": "test",
            **outcome.scores.as_dict(self.info.class_names),
            "checkpoint": outcome.checkpoint,
            "step": outcome.step,
            "selected_on": "val" if outcome.is_best else None,
        }
        if self.workers.is_chief:
            write_predictions(self.run_dir, outcome.scores.predictions)
            self._draw(state, outcome)  # Before the run is finished.
            write_json(self.run_dir / RESULT, result)
            times.finish()
        if not self.workers.barrier() and not (self.run_dir / RESULT).exists():
            raise RunError("the chief stopped before it wrote the result; start all workers again")
        if self.workers.is_chief:
            print_result(self.terminal, Run.open(self.run_dir), self.run_dir)

    def _draw(self, state: TrainState, outcome: Outcome) -> None:
        """Draws the pictures of the run; one that cannot be drawn does not end it."""
        try:
            drawing.draw_all(
                self.run_dir / PICTURES,
                Run.open(self.run_dir),
                net=state.eval_net,  # The state that was scored.
                splits=self.dataset.splits,
                predictions=outcome.scores.predictions,
            )
        except (SaveError, data.DataError) as error:
            self.terminal.line(f"{error}; the pictures are incomplete")


def print_result(terminal: Terminal, run: Run, run_dir: pathlib.Path) -> None:
    """Prints the figures of a finished run, and the commands for its directory as it was given."""
    if not terminal.verbosity:
        terminal.line(result_line(run.result), always=True)
        return
    for line in (summary(run), *next_steps(run_dir)):
        terminal.line(line)
