"""The curves of one run: accuracy and loss, of training and validation."""

import numpy as np

from pictures.figure import (
    BLUE,
    GRAY,
    ORANGE,
    Figure,
    epoch_axis,
    new_figure,
    note,
    percent,
    styled,
)

_PANELS = (("top_1_accuracy", "Accuracy"), ("loss", "Loss"))
_MANY = 150  # Points of a curve, from which on it is drawn smoothed.
_FEW = 40  # Points of a curve, up to which each is marked.


@styled
def curves(
    train: dict[str, np.ndarray],
    val: dict[str, np.ndarray],
    *,
    best_epoch: float | None = None,
) -> Figure:
    """Accuracy (left) and loss (right) against the epoch, each of training and validation.

    A curve of many points is drawn pale, with its moving average on it. NaN leaves a gap.

    Args:
        train: arrays "epoch", "loss" and "top_1_accuracy" (in [0, 1]), float [points]. They may be
            empty, or the dictionary may be.
        val: the same for validation.
        best_epoch: where the best checkpoint is, to mark it; None for no mark.
    """
    figure = new_figure(12, 5.2, layout="constrained")
    legend = {}
    for ax, (key, title) in zip(figure.subplots(1, 2), _PANELS, strict=True):
        ax.set_title(title)
        epoch_axis(ax)
        shown = [
            _draw(ax, rows, key, label, color)
            for rows, label, color in ((train, "training", BLUE), (val, "validation", ORANGE))
        ]
        if key == "top_1_accuracy":
            ax.yaxis.set_major_formatter(percent)
        if not any(shown):
            note(ax, "no data")
            continue
        if best_epoch is not None and np.isfinite(best_epoch):
            label = f"best checkpoint, epoch {best_epoch:.3g}"
            ax.axvline(best_epoch, color=GRAY, linestyle="--", linewidth=1.5, label=label)
        legend |= {handle.get_label(): handle for handle in ax.get_legend_handles_labels()[0]}
    if legend:
        figure.legend(handles=legend.values(), loc="outside lower center", ncols=len(legend))
    return figure


def _draw(ax, rows: dict[str, np.ndarray], key: str, label: str, color: str) -> bool:
    """Draws one curve; returns whether it has a point."""
    epochs, values = (np.asarray(rows.get(name, ()), float) for name in ("epoch", key))
    values = np.where(np.isfinite(values), values, np.nan)
    shown = int(np.isfinite(values).sum())
    if shown > _MANY:
        ax.plot(epochs, values, color=color, alpha=0.25, linewidth=1)
        values = moving_average(values, len(values) // (_MANY // 2))
    if shown:
        marker = "o" if shown <= _FEW else None
        ax.plot(epochs, values, color=color, label=label, marker=marker, markersize=4)
    return shown > 0


def moving_average(values: np.ndarray, width: int) -> np.ndarray:
    """The mean over `width` points around each, fewer at the ends, ignoring NaN; float [points]."""
    weights = np.ones(width)
    finite = np.isfinite(values)
    sums = np.convolve(np.where(finite, values, 0.0), weights, mode="same")
    counts = np.convolve(finite.astype(float), weights, mode="same")
    return np.where(finite, sums / np.maximum(counts, 1), np.nan)
