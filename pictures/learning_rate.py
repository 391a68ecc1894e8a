"""The result of a learning-rate range test."""

import numpy as np

from pictures.figure import BLUE, ORANGE, Figure, new_figure, note, styled


@styled
def learning_rate_range(
    rates: np.ndarray,
    losses: np.ndarray,
    smoothed: np.ndarray,
    suggested: float | None,
) -> Figure:
    """The loss against the learning rate, on a logarithmic axis (Smith 2017, section 3.3).

    Where the loss diverges, it leaves the axes at the top.

    Args:
        rates: float [steps], the learning rates, rising.
        losses: float [steps], the training loss at each.
        smoothed: float [steps], the same, smoothed.
        suggested: the rate to mark; None for no mark.
    """
    figure = new_figure(9, 5, layout="constrained")
    ax = figure.subplots()
    ax.set(title="Learning-rate range test", xlabel="learning rate", ylabel="training loss")
    rates = np.asarray(rates, float)
    losses, smoothed = (
        np.where(np.isfinite(values), values, np.nan)
        for values in (np.asarray(losses, float), np.asarray(smoothed, float))
    )
    if not np.isfinite(losses).any():
        note(ax, "no data")
        return figure
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.plot(rates, losses, color=BLUE, alpha=0.3, linewidth=1, label="loss of a batch")
    ax.plot(rates, smoothed, color=BLUE, linewidth=2.5, label="smoothed")
    if suggested is not None:
        label = f"suggested, {suggested:.3g}"
        ax.axvline(suggested, color=ORANGE, linestyle="--", linewidth=2, label=label)
    ax.set_ylim(*limits(losses, smoothed))
    ax.legend(loc="lower left")
    return figure


def limits(losses: np.ndarray, smoothed: np.ndarray) -> tuple[float, float]:
    """Limits of the loss that leave the descent most of the axes, however far it rises later."""
    finite = smoothed[np.isfinite(smoothed)]
    lowest, highest = float(np.nanmin(losses)), float(np.nanmax(losses))
    if len(finite):
        start, bottom = finite[0], min(finite)
        highest = min(highest, float(start + 0.6 * (start - bottom or abs(start))))
    margin = 0.05 * (highest - lowest) or 0.5
    return lowest - margin, highest + margin
