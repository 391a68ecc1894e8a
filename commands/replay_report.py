"""What is told about a step that was made again: on the terminal and as JSON."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from commands.earlier_state import Saved
from commands.run import Run
from data import TrainPipeline, printable
from loops.replay import Norms, Update

_WORST = 10  # Examples that are printed.


@dataclasses.dataclass(frozen=True)
class Example:
    """An example of a batch.

    Attributes:
        row: of the batch.
        number: of the example in the train split.
        name: path of its file, or "example 17".
        mixed_with: name of the example that it may be mixed with, by mixup or cutmix.
        labels: names of its class, or of the two with the largest weights, and the weights.
        predicted: name of the class with the highest logit; None if that is not a number.
        loss: as it enters the loss of the batch.
    """

    row: int
    number: int
    name: str
    mixed_with: str | None
    labels: tuple[tuple[str, float], ...]
    predicted: str | None
    loss: float

    @property
    def is_correct(self) -> bool:
        return self.predicted in [name for name, _ in self.labels]

    @property
    def label(self) -> str:
        """The label as text, such as "cat" or "cat 70% dog 30%"."""
        largest = [(name, weight) for name, weight in self.labels if weight >= 0.005]
        if len(largest) == 1:
            return largest[0][0]
        return " ".join(f"{name} {weight:.0%}" for name, weight in largest)

    @property
    def caption(self) -> str:
        """The label, the prediction if it is another, and below them the loss."""
        arrow = "" if self.is_correct else f" \N{RIGHTWARDS ARROW} {self.predicted}"
        return f"{self.label}{arrow}\n{self.loss:#.3g}"


def examples_by_loss(
    update: Update, labels: np.ndarray, batches: TrainPipeline, number: int, names: Sequence[str]
) -> list[Example]:
    """The examples of a batch, the highest loss first; those that are not finite before all.

    Args:
        update: made with the batch.
        labels: of the batch, int32 [n], or float32 [n, classes].
        batches: where it is from.
        number: of the batch.
        names: of the classes.
    """
    mixes = any(augmentation.pairs for augmentation in batches.augmentations)
    numbers = batches.numbers(number)
    files = [batches.source.describe(int(n)) for n in numbers]
    order = np.argsort(-np.nan_to_num(update.losses, nan=np.inf), kind="stable")
    return [
        Example(
            row=int(row),
            number=int(numbers[row]),
            name=files[row],
            mixed_with=files[row ^ 1] if mixes else None,  # Rows 0 and 1, 2 and 3, ...
            labels=_largest(labels[row], names),
            predicted=names[update.predicted[row]] if update.predicted[row] >= 0 else None,
            loss=float(update.losses[row]),
        )
        for row in order
    ]


def _largest(label: np.ndarray, names: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """The class of a label, or the two with the largest weights above 0, and the weights."""
    if label.ndim == 0:
        return ((names[label], 1.0),)
    largest = np.argsort(-label, kind="stable")[:2]
    return tuple((names[i], float(label[i])) for i in largest if label[i] > 0)


@dataclasses.dataclass(frozen=True)
class Row:
    """The row of training metrics that contains a step, as it was logged and as it is now.

    Attributes:
        step: of the row.
        logged: its figures; None if the run has no such row.
        again: the figures of the same steps, made again; None if they cannot be.
    """

    step: int
    logged: dict | None
    again: dict | None

    @classmethod
    def of(cls, run: Run, step: int, again: dict | None) -> "Row":
        rows = (r for r in run.metrics if (r["split"], r["step"]) == ("train", step))
        return cls(step, next(rows, None), again)

    @property
    def differing(self) -> dict[str, float]:
        """How the figures that are in both differ, to the last bit, by name."""
        logged, again = self.logged or {}, self.again or {}
        return {
            name: again[name] - logged[name]
            for name in again.keys() & logged.keys()
            if again[name] != logged[name]
            and not (math.isnan(again[name]) and math.isnan(logged[name]))
        }

    @property
    def is_equal(self) -> bool | None:
        """Whether all figures are equal; None if they cannot be compared."""
        return None if self.logged is None or self.again is None else not self.differing

    def text(self, hint: str) -> str:
        """One line about the comparison; `hint` explains a difference."""
        if self.again is None:
            return f"row      none of step {self.step:,}: training stops at this update"
        if self.logged is None:
            return (
                f"row      none of step {self.step:,} was logged: the run was stopped before it; "
                f"its loss would be {self.again['loss']:.4f}"
            )
        losses = f"loss {self.logged['loss']:.4f} logged, {self.again['loss']:.4f} recomputed"
        if self.is_equal:
            return f"row      of step {self.step:,}: {losses}: equal"
        changes = ", ".join(f"{k} by {v:.2g}" for k, v in sorted(self.differing.items()))
        return f"row      of step {self.step:,}: {losses}; they differ ({changes}){hint}"


@dataclasses.dataclass(frozen=True)
class Report:
    """All that is told about a step.

    Attributes:
        run: the run.
        saved: the checkpoint that it was made again from; None for the initial state.
        update: the step.
        examples: of its batch, the highest loss first.
        row: the row that contains it.
        hint: what may explain that the row differs.
    """

    run: Run
    saved: Saved | None
    update: Update
    examples: list[Example]
    row: Row
    hint: str

    def lines(self) -> list[str]:
        """For the terminal."""
        update, worst = self.update, self.examples[:_WORST]
        made = "" if update.made else ", not made: the loss or the gradient is not finite"
        which = f"the {len(worst)} highest of " if len(worst) < len(self.examples) else ""
        return [
            f"update   loss {update.loss:.6g}, gradient norm {update.total.gradient:.6g}, learning "
            f"rate {update.learning_rate:.4g}{made}",
            self.row.text(self.hint),
            "",
            *_table(update),
            "",
            f"examples by loss, {which}{len(self.examples):,}",
            *map(_line, worst),
            "",
        ]

    def as_dict(self) -> dict:
        """For JSON."""
        update, row = self.update, self.row
        return {
            "run_dir": str(self.run.path),
            "step": update.step,
            "checkpoint": None if self.saved is None else self.saved.path,
            "learning_rate": update.learning_rate,
            "update_is_made": update.made,
            "loss": update.loss,
            **_figures(update.total),
            "stages": {name: _figures(norms) for name, norms in update.stages.items()},
            "row": {
                "step": row.step,
                "logged": row.logged,
                "recomputed": row.again,
                "is_equal": row.is_equal,
            },
            "examples": [dataclasses.asdict(example) for example in self.examples],
        }


def _figures(norms: Norms) -> dict:
    return {
        "gradient_norm": norms.gradient,
        "weight_norm": norms.weights,
        "update_norm": norms.update,
        "update_ratio": norms.ratio,
        "nonfinite_gradients": norms.nonfinite,
    }


def _table(update: Update) -> list[str]:
    """Aligned lines with the norms of each stage."""
    columns = {
        "gradient": lambda norms: f"{norms.gradient:.4g}",
        "weights": lambda norms: f"{norms.weights:.4g}",
        "update": lambda norms: f"{norms.update:.4g}" if update.made else "-",
        "update/weights": lambda norms: f"{norms.ratio:.4g}" if update.made else "-",
    }
    if update.total.nonfinite:
        columns["gradients not finite"] = lambda norms: f"{norms.nonfinite:,}"
    rows = [("stage", *columns)]
    for name, norms in {**update.stages, "all": update.total}.items():
        rows.append((name, *(text(norms) for text in columns.values())))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([name.ljust(widths[0]), *map(str.rjust, texts, widths[1:])])
        for name, *texts in rows
    ]


def _line(example: Example) -> str:
    name = example.name if example.mixed_with is None else (
        f"{example.name} with {example.mixed_with}"
    )  # fmt: skip
    wrong = "" if example.is_correct else f" -> {example.predicted}"
    loss = f"{example.loss:.4f}" if example.loss < 1e4 else f"{example.loss:.4g}"
    return printable(f"{loss:>9}  {example.label}{wrong}  {name}")
