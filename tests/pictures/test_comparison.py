import numpy as np
import pytest

import pictures
from pictures.comparison import mean_curve


def run(epochs, values):
    return {"epoch": np.array(epochs, float), "value": np.array(values, float)}


def compare(groups, higher_is_better=True, *, is_share=True):
    return pictures.compare_curves(
        {"validation": groups},
        metric_label="top-1",
        is_share=is_share,
        higher_is_better=higher_is_better,
    )


def compare_panels(panels):
    return pictures.compare_curves(
        panels, metric_label="top-1", is_share=True, higher_is_better=True
    )


def legend(figure):
    return [text.get_text() for box in figure.legends for text in box.get_texts()]


def band(ax):
    """Lower and upper limits of the only band, by epoch."""
    (filled,) = ax.collections
    points = filled.get_paths()[0].vertices
    return {
        epoch: (column.min(), column.max())
        for epoch in np.unique(points[:, 0])
        for column in [points[points[:, 0] == epoch][:, 1]]
    }


def test_several_seeds_are_a_mean_with_a_band():
    # Values 0.2, 0.4 and 0.6 have the mean 0.4 and the deviation sqrt(0.08 / 2) = 0.2.
    seeds = [run([1, 2], [0.2, 0.5]), run([1, 2], [0.4, 0.5]), run([1, 2], [0.6, 0.8])]
    ax = compare({"plain": seeds}).axes[0]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.4, 0.6])
    limits = band(ax)
    np.testing.assert_allclose(limits[1.0], (0.2, 0.6))
    np.testing.assert_allclose(limits[2.0], (0.6 - 0.03**0.5, 0.6 + 0.03**0.5))


def test_a_single_run_is_a_line_without_a_band():
    ax = compare({"plain": [run([1, 2, 3], [0.1, 0.3, 0.2])]}).axes[0]
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 0.1], [2, 0.3], [3, 0.2]])
    assert not ax.collections
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "top-1")
    assert ax.yaxis.get_major_formatter()(0.3) == "30%"
    (ax,) = compare({"plain": [run([1, 2, 3], [0.1, 0.3, 0.2])]}, is_share=False).axes
    assert ax.yaxis.get_major_formatter()(0.3) != "30%"


def test_runs_are_interpolated_and_count_from_their_first_to_their_last_point():
    epochs, mean, deviation = mean_curve([run([0, 2], [0, 2]), run([1, 3], [3, 5])])
    np.testing.assert_array_equal(epochs, [0, 1, 2, 3])
    # At 1: 1 and 3. At 2: 2 and 4. Before and after, only one run counts.
    np.testing.assert_allclose(mean, [0, 2, 3, 5])
    np.testing.assert_allclose(deviation, [np.nan, 2**0.5, 2**0.5, np.nan])


def test_values_that_are_not_finite_are_left_out():
    epochs, mean, deviation = mean_curve(
        [run([1, 2, 3], [1, np.nan, np.inf]), run([1, 2], [3, 4]), run([1], [np.nan])]
    )
    np.testing.assert_array_equal(epochs, [1, 2])
    np.testing.assert_allclose(mean, [2, 4])
    np.testing.assert_allclose(deviation, [2**0.5, np.nan])


@pytest.mark.parametrize(("higher", "order"), [(True, ["b", "c", "a"]), (False, ["a", "c", "b"])])
def test_the_legend_has_the_best_group_first_with_its_number_of_runs(higher, order):
    groups = {
        "a": [run([1, 2], [0.3, 0.1])],
        "b": [run([1, 2], [0.9, 0.2])] * 2,
        "c": [run([1, 2], [0.5, 0.15])],
    }
    figure = compare(groups, higher)
    number = {"a": 1, "b": 2, "c": 1}
    note = {"b": ", mean ± std"}  # What the band is.
    expected = [f"{name} (n={number[name]}{note.get(name, '')})" for name in order]
    assert legend(figure) == expected
    # The color of a group is that of its line.
    colors = {line.get_label(): line.get_color() for line in figure.axes[0].lines}
    for text, line in zip(
        figure.legends[0].get_texts(), figure.legends[0].get_lines(), strict=True
    ):
        assert colors[text.get_text()] == line.get_color()


def test_twelve_groups_can_be_told_apart():
    groups = {f"{'group ' * 9}{i:02}": [run([1, 2], [0, i])] for i in range(12)}
    figure = compare(groups)
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 12
    pictures.to_png(figure, dpi=60)
    box = figure.legends[0].get_window_extent()
    assert box.x1 <= figure.bbox.x1
    assert box.y0 >= 0
    assert box.y1 <= figure.axes[0].get_window_extent().y0
    assert legend(figure)[0].endswith("11 (n=1)")


@pytest.mark.parametrize(
    "groups", [{}, {"a": []}, {"a": [run([], [])]}, {"a": [run([1], [np.nan])]}]
)
def test_nothing_to_show_is_said(groups):
    figure = compare(groups)
    assert [text.get_text() for text in figure.axes[0].texts] == ["no data"]
    assert not figure.legends
    pictures.to_png(figure, dpi=30)


def test_training_and_validation_are_panels_with_one_legend():
    train = {"a": [run([1, 2], [0.5, 0.9])], "b": [run([1, 2], [0.6, 0.8])]}
    val = {"a": [run([1, 2], [0.4, 0.6])], "b": [run([1, 2], [0.5, 0.7])]}
    figure = compare_panels({"training": train, "validation": val})
    left, right = figure.axes
    assert [ax.get_title(loc="left") for ax in (left, right)] == ["training", "validation"]
    np.testing.assert_array_equal(left.lines[0].get_ydata(), [0.5, 0.9])
    assert [line.get_color() for line in left.lines] == [line.get_color() for line in right.lines]
    assert legend(figure) == ["b (n=1)", "a (n=1)"]  # By validation.
    # Runs without a validation split.
    without = {"training": train, "validation": {"a": [], "b": []}}
    (ax,) = compare_panels(without).axes
    assert ax.get_title(loc="left") == "training"


def test_a_single_point_is_visible():
    ax = compare({"a": [run([1], [0.5])]}).axes[0]
    assert ax.lines[0].get_marker() == "o"


def test_the_legend_has_groups_of_all_panels():
    both, trained = run([1, 2], [0.2, 0.5]), run([1, 2], [0.4, 0.7])
    panels = {"training": {"a": [both], "b": [trained]}, "validation": {"a": [both], "b": []}}
    figure = compare_panels(panels)
    assert [len(ax.lines) for ax in figure.axes] == [2, 1]
    assert legend(figure) == ["b (n=1)", "a (n=1)"]
