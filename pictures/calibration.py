"""The reliability diagram: whether the confidence of a net is its accuracy."""

import numpy as np

from pictures.figure import ORANGE, SKY, Figure, new_figure, note, percent, styled


@styled
def calibration(
    confidences: np.ndarray,
    correct: np.ndarray,
    *,
    bins: int = 15,
    error: float | None = None,
) -> Figure:
    """The reliability diagram below a histogram of the confidences (Guo et al. 2017, figure 1).

    Args:
        confidences: float [n] in [0, 1], the probability of the predicted class. NaN is left out.
        correct: bool [n], whether the prediction is correct.
        bins: number of equal bins of confidence.
        error: the expected calibration error, for the title; None to compute it from the bins.
    """
    counts, confidence, accuracy = reliability(confidences, correct, bins)
    if error is None and counts.sum():
        gaps = np.abs(accuracy - confidence)
        error = float(np.nansum(counts * gaps) / counts.sum())
    figure = new_figure(7, 7.4, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2.6])
    top.set_title("Calibration" if error is None else f"Expected calibration error {error:.4f}")
    centers, width = (np.arange(bins) + 0.5) / bins, 1 / bins
    share = counts / max(counts.sum(), 1)
    top.bar(centers, share, width, color=SKY, edgecolor="white")
    top.set_ylabel("examples")
    top.set_ylim(bottom=0)
    top.yaxis.set_major_formatter(percent)
    bottom.bar(centers, accuracy, width, color=SKY, edgecolor="white", label="accuracy")
    bottom.bar(
        centers,
        confidence - accuracy,
        width,
        bottom=accuracy,
        facecolor="none",
        edgecolor=ORANGE,
        hatch="//",
        label="gap to the confidence",
    )
    bottom.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1.2, label="calibrated")
    bottom.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    bottom.xaxis.set_major_formatter(percent)
    bottom.yaxis.set_major_formatter(percent)
    figure.legend(loc="outside lower center", ncols=3)
    if not counts.sum():
        note(top, "no data")
    return figure


def reliability(
    confidences: np.ndarray, correct: np.ndarray, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number of examples, mean confidence and accuracy of each bin of confidence.

    Returns:
        int64 [bins], and twice float64 [bins] with NaN for bins without examples.
    """
    confidences = np.asarray(confidences, np.float32)
    finite = np.isfinite(confidences)
    confidences, correct = confidences[finite], np.asarray(correct, float)[finite]
    place = np.minimum((confidences * np.float32(bins)).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    sums = np.array([np.bincount(place, x, minlength=bins) for x in (confidences, correct)])
    confidence, accuracy = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return counts, confidence, accuracy
