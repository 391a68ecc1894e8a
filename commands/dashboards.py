"""What TensorBoard shows of a run that train.py trains, as hooks."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable

import data
import pictures
from commands import pictures as drawing
from commands.checks import profiled_steps
from commands.config import Config
from commands.options import TrainOptions
from commands.saved_config import DataInfo
from loops.distributed.workers import Workers
from loops.histograms import Histograms
from loops.hook import Hook
from loops.metrics import figures
from loops.profiling import Profile
from loops.records.event_writer import EventWriter
from loops.records.predictions import Predictions
from loops.records.tensorboard import TensorBoard
from nets.table import NetSummary, table

# Settings that are often varied.
_USUAL = ("learning_rate", "batch_size", "seed", "net", "dataset")


def make(
    run_dir: pathlib.Path,
    config: Config,
    info: DataInfo,
    dataset: data.Dataset,
    summary: NetSummary,
    workers: Workers,
    options: TrainOptions,
    *,
    say: Callable[[str], None] = print,
) -> list[Hook]:
    """The hooks that write for TensorBoard, in the order in which they must be called.

    Args:
        run_dir: directory of the run.
        config: of the run.
        info: of the run.
        dataset: its data.
        summary: of its net.
        workers: the processes that train together; only the chief writes.
        options: of the command.
        say: prints a message.

    Raises:
        ConfigError: `--profile_steps` is not accepted.
    """
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}
    board = TensorBoard(
        run_dir,
        writes=workers.is_chief,
        figures=tuple(figures()),
        texts={"configuration": _settings_table(settings), "net": f"```\n{table(summary)}\n```"},
        settings=settings,
        shown=shown_settings(options),
    )
    hooks = [board]
    if config.histogram_steps:
        hooks.append(Histograms(board.writers.get("train"), config.histogram_steps))
    if workers.is_chief:
        hooks.append(Pictures(board.writers, info, dataset, config.picture_epochs))
    if options.profile_steps is not None:
        first, last = profiled_steps(options.profile_steps)
        hooks.append(Profile(first, last, writes=workers.is_chief, say=say))
    return hooks


def shown_settings(options: TrainOptions) -> list[str]:
    """The settings to show first of a run: those that are not at their defaults, and at least five.

    Those that have no effect on the result are left out.
    """
    shown = [
        field.name
        for field in dataclasses.fields(Config)
        if field.metadata["names_run"] and getattr(options, field.name) != field.default
    ]
    others = [name for name in _USUAL if name not in shown]
    return shown + others[: max(0, len(_USUAL) - len(shown))]


def _settings_table(settings: dict[str, object]) -> str:
    """A table in Markdown, in which `|` separates the columns."""
    rows = "".join(
        f"\n| {name} | {str(value).replace('|', '&#124;')} |" for name, value in settings.items()
    )
    return f"| setting | value |\n|---|---|{rows}"


class Pictures(Hook):
    """Shows augmented images at the start, and confusion matrix and mistakes of evaluations.

    Args:
        writers: of the splits, by name; the hook that owns them has been called before this one.
        info: of the run.
        dataset: its data.
        every: epochs between pictures on the validation split; 0 for those at the end only.
    """

    def __init__(
        self, writers: dict[str, EventWriter], info: DataInfo, dataset: data.Dataset, every: int
    ):
        self._writers = writers
        self._info, self._dataset, self._every = info, dataset, every

    def on_start(self, trainer) -> None:
        if trainer.step == 0:
            with contextlib.suppress(data.DataError):  # Training will raise it.
                figure = drawing.draw_batch(trainer.batches, self._info)
                self._add("train", "augmentations", figure, 0)
            self.on_save(trainer)

    def on_evaluate(self, trainer, row: dict, scores) -> None:
        split, step, plan = row["split"], row["step"], trainer.plan
        is_due = self._every and plan.is_epoch_end(step, self._every)
        if split == "test" or is_due or trainer.is_last(row):
            self._draw(split, step, scores.predictions)
            self.on_save(trainer)

    def on_save(self, trainer) -> None:
        for writer in self._writers.values():
            writer.flush()

    def _draw(self, split: str, step: int, predictions: Predictions) -> None:
        names = self._info.class_names
        figure = drawing.draw_confusion(predictions, names)
        self._add(split, "confusion_matrix", figure, step)
        with contextlib.suppress(data.DataError):  # An image that has been damaged meanwhile.
            figure = drawing.draw_mistakes(predictions, self._dataset.evaluated(split), names)
            self._add(split, "mistakes", figure, step)

    def _add(self, split: str, name: str, figure, step: int) -> None:
        self._writers[split].add_image(f"pictures/{name}", pictures.to_png(figure), step)
