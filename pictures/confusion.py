"""The confusion matrix."""

from collections.abc import Sequence

import numpy as np

from pictures.figure import (
    FONT_SIZE,
    Figure,
    PowerNorm,
    colormaps,
    new_figure,
    percent,
    printable,
    styled,
)

_NUMBERED = 20  # Classes, up to which the cells have numbers.
_NAMED = 100  # Classes, up to which the axes have names.
_CELLS = 250  # Cells in a row, at most; more would be too small to see.
_NAME_WIDTH = 18  # Characters.


@styled
def confusion_matrix(counts: np.ndarray, class_names: Sequence[str]) -> Figure:
    """How often each class is predicted for the examples of each.

    The color of a cell is the share of its row, on a scale of square roots, so that rare confusions
    are visible. Rows without examples are gray. With up to 20 classes the cells have numbers, and
    with up to 100 the axes have names; beyond, the axes have the numbers of the classes. With more
    than 250, a cell stands for a block of classes and has the color of its largest share.

    Args:
        counts: int [classes, classes], by true and by predicted class.
        class_names: the name of each class.

    Raises:
        ValueError: there is no class, or counts is not of the classes that have names.
    """
    counts = np.asarray(counts)
    classes = len(class_names)
    if counts.shape != (classes, classes) or not classes:
        raise ValueError(
            f"counts must be [classes, classes] with a name for each class, not {counts.shape} "
            f"with {classes} names"
        )
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, counts / np.maximum(totals, 1), np.nan)
    side = float(np.clip(3 + 0.45 * classes, 4.5, 9 if classes <= _NUMBERED else 11))
    figure = new_figure(side + 2.4, side + 1, layout="compressed")
    ax = figure.subplots()
    colors = colormaps["Blues"].with_extremes(bad="#DDDDDD")
    block = -(-classes // _CELLS)
    end = -(-classes // block) * block - 0.5
    image = ax.imshow(
        _largest(shares, block),
        cmap=colors,
        norm=PowerNorm(0.5, vmin=0, vmax=1),
        interpolation="nearest",
        extent=(-0.5, end, end, -0.5),
    )
    ax.grid(visible=False)
    correct, total = int(np.trace(counts)), int(counts.sum())
    ax.set_title(f"Accuracy {correct / max(total, 1):.2%} ({correct:,} of {total:,})")
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class")
    _name(ax, class_names, side)
    if classes <= _NUMBERED:
        _number(ax, counts, shares, side)
    bar = figure.colorbar(image, ax=ax, shrink=0.7, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.yaxis.set_major_formatter(percent)
    of_block = f", largest of {block} x {block} cells" if block > 1 else ""
    bar.set_label(f"share of the true class{of_block}")
    return figure


def _largest(shares: np.ndarray, block: int) -> np.ndarray:
    """The largest of each square block, ignoring NaN; the last ones may be smaller."""
    starts = range(0, len(shares), block)
    return np.fmax.reduceat(np.fmax.reduceat(shares, starts, axis=0), starts, axis=1)


def _name(ax, class_names: Sequence[str], side: float) -> None:
    """Writes the names of the classes at both axes of `side` inches, if there is room."""
    classes = len(class_names)
    if classes > _NAMED:
        return
    names = [printable(name, _NAME_WIDTH) for name in class_names]
    size = min(FONT_SIZE - 1, 0.8 * 72 * side / classes)
    ax.set_yticks(range(classes), names, fontsize=size)
    ax.set_xticks(range(classes), names, fontsize=size)
    ax.tick_params(length=0)
    if classes > _NUMBERED:
        ax.tick_params(axis="x", labelrotation=90)
    elif max(map(len, names)) * 0.6 * size * classes > 72 * side:
        for label in ax.get_xticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")


def _number(ax, counts: np.ndarray, shares: np.ndarray, side: float) -> None:
    """Writes the counts that are not zero into their cells, in axes of `side` inches."""
    cell = 72 * side / len(counts)
    digits = len(str(counts.max(initial=0)))
    size = min(FONT_SIZE, 0.8 * cell / (0.64 * digits))
    for row, column in np.argwhere(counts):
        ax.text(
            column,
            row,
            str(counts[row, column]),
            ha="center",
            va="center",
            fontsize=size,
            color="white" if shares[row, column] > 0.35 else "black",
        )
