"""The curves of several groups of runs in one chart."""

import numpy as np

from pictures.figure import COLORS, Figure, epoch_axis, new_figure, note, percent, printable, styled

_DASHES = ("-", "--", ":", "-.")
_FEW = 40  # Points of a curve, up to which each is marked.
_NAME_WIDTH = 40  # Characters.


@styled
def compare_curves(
    groups: dict[str, list[dict[str, np.ndarray]]],
    *,
    metric_label: str,
    higher_is_better: bool,
) -> Figure:
    """The validation curves of groups of runs, as lines with bands.

    The line of a group of several runs is their mean, and the band one standard deviation above and
    below (of the sample, n - 1). The legend gives the best group first, by the best value of its
    line, and the number of runs of each; of a group with a band it says "mean ± std".

    Args:
        groups: the runs of each group, by its name. A run has the arrays "epoch" and "value", float
            [points]. Values that are not finite are left out.
        metric_label: what the values are, for the axis. If all are in [0, 1] and higher is better,
            they are shown as percentages.
        higher_is_better: whether a higher value is better.
    """
    figure = new_figure(12, 6, layout="constrained")
    ax = figure.subplots()
    ax.set_ylabel(printable(metric_label, _NAME_WIDTH))
    epoch_axis(ax)
    curves = {name: mean_curve(runs) for name, runs in groups.items()}
    longest = max((len(epochs) for epochs, _, _ in curves.values()), default=0)
    marker = "o" if longest <= _FEW else None
    lines = {}
    for number, (name, (epochs, mean, deviation)) in enumerate(curves.items()):
        if not len(epochs):
            continue
        color = COLORS[number % len(COLORS)]
        dashes = _DASHES[number // len(COLORS) % len(_DASHES)]
        has_band = np.isfinite(deviation).any()
        count = f"n={len(groups[name])}{', mean ± std' if has_band else ''}"
        label = f"{printable(name, _NAME_WIDTH)} ({count})"
        (lines[name],) = ax.plot(
            epochs, mean, color=color, linestyle=dashes, marker=marker, markersize=4, label=label
        )
        if has_band:
            band = (mean - deviation, mean + deviation)
            ax.fill_between(epochs, *band, color=color, alpha=0.18, linewidth=0)
    if not lines:
        note(ax, "no data")
        return figure
    values = np.concatenate([mean for _, mean, _ in curves.values()])
    if higher_is_better and values.min() >= 0 and values.max() <= 1:
        ax.yaxis.set_major_formatter(percent)
    best = {name: (max if higher_is_better else min)(curves[name][1]) for name in lines}
    order = sorted(lines, key=best.get, reverse=higher_is_better)
    figure.legend(handles=[lines[name] for name in order], loc="outside right upper")
    return figure


def mean_curve(runs: list[dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean over runs at all epochs at which one of them has a value.

    A run is interpolated between its points, and counts from its first to its last.

    Returns:
        The epochs, the mean, and the standard deviation of the sample, NaN where only one run
        counts; float64 [epochs] each.
    """
    points = []
    for run in runs:
        epochs, values = (np.asarray(run[key], float) for key in ("epoch", "value"))
        finite = np.isfinite(epochs) & np.isfinite(values)
        points.append((epochs[finite], values[finite]))
    points = [(epochs, values) for epochs, values in points if len(epochs)]
    if not points:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    common = np.unique(np.concatenate([epochs for epochs, _ in points]))
    table = np.stack([np.interp(common, *run, left=np.nan, right=np.nan) for run in points])
    counted = np.isfinite(table)
    count = counted.sum(axis=0)
    mean = np.where(counted, table, 0).sum(axis=0) / count
    squares = np.where(counted, (table - mean) ** 2, 0).sum(axis=0)
    deviation = np.where(count > 1, np.sqrt(squares / np.maximum(count - 1, 1)), np.nan)
    return common, mean, deviation
