"""What TensorBoard shows of a run.

    train/ val/ test/    curves, with the same tags; histograms; pictures
    the run directory    texts, the layout of the charts, the settings, and the best scores

Tags are grouped so that loss and accuracy come first in the alphabetical order of TensorBoard's
pages, which show the first two groups unfolded: `curves/loss`, `curves/top_1_accuracy`,
`curves/top_1_error`; `metrics/` the other metrics; `optimization/learning_rate`, ...; `pictures/`;
`result/best_val_loss`, ...; `speed/images_per_second`, ...; and `user/` what hooks add to rows.
"""

import pathlib
from collections.abc import Collection, Mapping, Sequence

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalar
from tensorboard.plugins.hparams import api_pb2, summary

from loops.hook import Hook
from loops.records.event_writer import EventWriter
from loops.records.metrics_log import SPLITS

_GROUPS = {
    "loss": "curves",
    "top_1_accuracy": "curves",
    "top_1_error": "curves",
    "learning_rate": "optimization",
    "gradient_norm": "optimization",
    "weight_norm": "optimization",
    "highest_loss": "optimization",
    "skipped_updates": "optimization",
    "images_per_second": "speed",
    "waiting_for_data": "speed",
}
_FIGURES = ("loss", "top_1_accuracy")


class TensorBoard(Hook):
    """Writes every row to TensorBoard, and what belongs to the whole run.

    Args:
        run_dir: directory of the run.
        writes: False on a worker that is not the chief.
        figures: names of the figures of an evaluation: the loss and the metrics.
        texts: texts in Markdown by title.
        settings: of the run, by name, for the page "HParams"; None for rows that are not of a run.
        shown: names of the settings that that page shows first.

    Attributes:
        writers: of the event files: "run", "train", "val" and "test"; empty if it does not write.
    """

    def __init__(
        self,
        run_dir: pathlib.Path,
        *,
        writes: bool = True,
        figures: Sequence[str] = _FIGURES,
        texts: Mapping[str, str] | None = None,
        settings: Mapping[str, object] | None = None,
        shown: Collection[str] = (),
    ):
        directories = {"run": run_dir, **{split: run_dir / split for split in SPLITS}}
        self.writers = {name: EventWriter(path) for name, path in directories.items() if writes}
        self._figures = tuple(figures)
        self._texts = texts or {}
        self._settings, self._shown = settings, frozenset(shown)

    def on_start(self, trainer) -> None:
        is_new = trainer.step == 0
        first = {
            "run": _after_evaluation(trainer),
            "train": trainer.step + 1,
            "val": trainer.evaluated_step + 1,
            "test": 0,
        }
        for name, writer in self.writers.items():
            writer.restart(0 if is_new else first[name])
        if self.writers and (is_new or not self.writers["run"].has_files()):
            self._describe(self.writers["run"])
        self.on_save(trainer)

    def _describe(self, run: EventWriter) -> None:
        """Adds what is known when a run starts, at step 0."""
        for title, text in self._texts.items():
            run.add_text(title, text)
        if self._settings is not None:
            charts = layout(self._figures).SerializeToString()
            metadata = custom_scalar.create_summary_metadata()
            run.add_tensor(0, custom_scalar.CONFIG_SUMMARY_TAG, charts, metadata)
            run.add(0, experiment(self._settings, self._shown, self._figures))
            run.add(0, _converted(summary.session_start_pb(hyperparameters(self._settings))))

    def on_log(self, trainer, row: dict) -> None:
        self._add(row | trainer.timings)

    def on_evaluate(self, trainer, row: dict, scores) -> None:
        is_best = (
            bool(self.writers)
            and self._settings is not None
            and row["split"] == "val"
            and trainer.best.is_beaten_by(row)
        )
        if is_best:
            figures = {f"result/best_val_{name}": row[name] for name in self._figures}
            self.writers["run"].add_scalars(row["step"], figures)
        self._add(row)

    def _add(self, row: dict) -> None:
        if self.writers:
            figures = {k: v for k, v in row.items() if k not in ("split", "step", "epoch")}
            if "top_1_accuracy" in figures:
                figures["top_1_error"] = 1 - figures["top_1_accuracy"]
            tagged = {tag_of(name, self._figures): value for name, value in figures.items()}
            self.writers[row["split"]].add_scalars(row["step"], tagged)
            self.on_save(None)

    def on_save(self, trainer) -> None:
        for writer in self.writers.values():
            writer.flush()

    def on_end(self, trainer, outcome) -> None:
        if self.writers and self._settings is not None:
            end = summary.session_end_pb(api_pb2.STATUS_SUCCESS)
            self.writers["run"].add(_after_evaluation(trainer), _converted(end))
            self.on_save(trainer)


def tag_of(name: str, figures: Sequence[str]) -> str:
    """The tag of a figure of a row.

    Args:
        name: of the figure.
        figures: names of the loss and the metrics. Others that are not known come from a hook.
    """
    group = _GROUPS.get(name, "metrics" if name in figures else "user")
    return f"{group}/{name}"


def _after_evaluation(trainer) -> int:
    """The step after the last evaluation, from which on the points of the run are obsolete."""
    return max(trainer.evaluated_step, 0) + 1


def layout(figures: Sequence[str]) -> layout_pb2.Layout:
    """The charts of the page "Custom Scalars".

    Args:
        figures: names of the loss and the metrics.
    """
    rates = ("learning_rate", "gradient_norm", "weight_norm")
    categories = {
        "Loss and accuracy": figures,
        "Optimization": rates,
        "Speed": ("images_per_second", "waiting_for_data"),
    }
    return layout_pb2.Layout(
        category=[
            layout_pb2.Category(title=title, chart=[_chart(n, tag_of(n, figures)) for n in names])
            for title, names in categories.items()
        ]
    )


def _chart(name: str, tag: str) -> layout_pb2.Chart:
    title = _words(name)
    content = layout_pb2.MultilineChartContent(tag=[f"^{tag}$"])
    return layout_pb2.Chart(title=title[0].upper() + title[1:], multiline=content)


def _words(name: str) -> str:
    return name.replace("top_1", "top-1").replace("top_5", "top-5").replace("_", " ")


def hyperparameters(settings: Mapping[str, object]) -> dict[str, bool | float | str]:
    """The settings as "HParams" takes them: what is no number, boolean or string is text."""

    def convert(value):
        if isinstance(value, bool | int | float):
            return value
        if isinstance(value, list | tuple):
            value = ", ".join(map(str, value))
        return str(value).encode("utf-8", "backslashreplace").decode("utf-8")

    return {name: convert(value) for name, value in settings.items()}


def experiment(
    settings: Mapping[str, object], shown: Collection[str], figures: Sequence[str]
) -> Summary:
    """The columns of the page "HParams": settings, and scores of a run.

    Args:
        settings: by name.
        shown: names of those that are shown first.
        figures: names of the loss and the metrics. Shown are the best and the last on the
            validation split, and those on the test split.
    """
    types = {bool: api_pb2.DATA_TYPE_BOOL, str: api_pb2.DATA_TYPE_STRING}
    infos = [
        api_pb2.HParamInfo(
            name=name,
            type=types.get(type(value), api_pb2.DATA_TYPE_FLOAT64),
            differs=name in shown,  # The page shows five of these.
        )
        for name, value in hyperparameters(settings).items()
    ]
    metrics = []
    for name in sorted(figures, key=lambda name: name != "top_1_accuracy"):
        # The group of a metric is what the name of its TensorBoard run has behind that of the run.
        for group, tag, title in (
            ("", f"result/best_val_{name}", "best val"),
            ("val", tag_of(name, figures), "last val"),
            ("test", tag_of(name, figures), "test"),
        ):
            where = api_pb2.MetricName(group=group, tag=tag)
            title = f"{title} {_words(name)}"
            metrics.append(api_pb2.MetricInfo(name=where, display_name=title))
    return _converted(summary.experiment_pb(infos, metrics))


def _converted(message) -> Summary:
    """A summary of TensorFlow's class, which the plugin "HParams" makes, in TensorBoard's."""
    return Summary.FromString(message.SerializeToString())
