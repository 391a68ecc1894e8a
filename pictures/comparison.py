"""The curves of several groups of runs in one chart."""

import numpy as np

from pictures.figure import COLORS, Figure, epoch_axis, new_figure, note, percent, printable, styled

_DASHES = ("-", "--", ":", "-.")
_FEW = 40  # Points of a curve, up to which each is marked.
_NAME_WIDTH = 40  # Characters.


@styled
def compare_curves(
    panels: dict[str, dict[str, list[dict[str, np.ndarray]]]],
    *,
    metric_label: str,
    is_share: bool,
    higher_is_better: bool,
) -> Figure:
    """The curves of groups of runs, as lines with bands, in a panel for each split.

    The line of a group of several runs is their mean, and the band one standard deviation above and
    below (of the sample, n - 1). The legend gives the best group first, by the best value of its
    line in the last panel that has lines, and the number of runs of each; of a group with a band it
    says "mean ± std".

    Args:
        panels: by the title of a panel, the runs of each group, by its name. The groups of all
            panels are the same. A run has the arrays "epoch" and "value", float [points]. Values
            that are not finite are left out.
        metric_label: what the values are, for the axis.
        is_share: whether they are shares, in [0, 1], which are shown as percentages.
        higher_is_better: whether a higher value is better.
    """
    figure = new_figure(12, 6, layout="constrained")
    shown = {
        title: {name: mean_curve(runs) for name, runs in groups.items()}
        for title, groups in panels.items()
    }
    shown = {title: curves for title, curves in shown.items() if _has_points(curves)}
    if not shown:
        note(figure.subplots(), "no data")
        return figure
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    pick = max if higher_is_better else min
    lines, best = {}, {}  # By group; the best of the last panel in which it has points.
    for ax, (title, curves) in zip(axes, shown.items(), strict=True):
        ax.set_title(title)
        epoch_axis(ax)
        drawn = _draw(ax, curves, {name: len(runs) for name, runs in panels[title].items()})
        lines |= drawn
        best |= {name: pick(curves[name][1]) for name in drawn}
    axes[0].set_ylabel(printable(metric_label, _NAME_WIDTH))
    if is_share:
        axes[0].yaxis.set_major_formatter(percent)
    order = sorted(lines, key=best.get, reverse=higher_is_better)
    figure.legend(handles=[lines[name] for name in order], loc="outside lower center", ncols=2)
    return figure


def _has_points(curves: dict[str, tuple]) -> bool:
    return any(len(epochs) for epochs, _, _ in curves.values())


def _draw(ax, curves: dict[str, tuple], numbers: dict[str, int]) -> dict:
    """Draws the curves of groups with so many runs; returns their lines by name."""
    marker = "o" if max(len(epochs) for epochs, _, _ in curves.values()) <= _FEW else None
    lines = {}
    for number, (name, (epochs, mean, deviation)) in enumerate(curves.items()):
        if not len(epochs):
            continue
        color = COLORS[number % len(COLORS)]
        dashes = _DASHES[number // len(COLORS) % len(_DASHES)]
        has_band = np.isfinite(deviation).any()
        count = f"n={numbers[name]}{', mean ± std' if has_band else ''}"
        label = f"{printable(name, _NAME_WIDTH)} ({count})"
        (lines[name],) = ax.plot(
            epochs, mean, color=color, linestyle=dashes, marker=marker, markersize=4, label=label
        )
        if has_band:
            band = (mean - deviation, mean + deviation)
            ax.fill_between(epochs, *band, color=color, alpha=0.18, linewidth=0)
    return lines


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
