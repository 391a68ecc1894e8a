import numpy as np
import pytest

import pictures

COUNTS = np.array([[6, 2, 0], [0, 0, 0], [1, 0, 3]])
NAMES = ["cat", "dog", "frog"]


def texts(ax):
    """The numbers in the cells, by (row, column)."""
    return {
        (int(text.get_position()[1]), int(text.get_position()[0])): text.get_text()
        for text in ax.texts
    }


def test_cells_have_counts_and_colors_the_shares_of_the_row():
    ax = pictures.confusion_matrix(COUNTS, NAMES).axes[0]
    shown = np.ma.filled(ax.images[0].get_array(), np.nan)
    nan = np.nan
    np.testing.assert_allclose(shown, [[0.75, 0.25, 0], [nan, nan, nan], [0.25, 0, 0.75]])
    assert texts(ax) == {(0, 0): "6", (0, 1): "2", (2, 0): "1", (2, 2): "3"}


def test_axes_are_named_and_the_title_has_the_accuracy():
    ax = pictures.confusion_matrix(COUNTS, NAMES).axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == NAMES
    assert [label.get_text() for label in ax.get_yticklabels()] == NAMES
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class", "true class")
    # The first row is at the top.
    assert ax.get_ylim() == (2.5, -0.5)
    assert ax.get_title(loc="left") == "Accuracy 75.00% (9 of 12)"


def test_numbers_are_white_on_dark_cells():
    ax = pictures.confusion_matrix(np.array([[1, 9], [5, 5]]), ["a", "b"]).axes[0]
    colors = {text.get_text(): text.get_color() for text in ax.texts}
    assert colors == {"1": "black", "9": "white", "5": "white"}


def test_empty_rows_are_gray_and_no_others():
    ax = pictures.confusion_matrix(COUNTS, NAMES).axes[0]
    image = ax.images[0]
    colors = image.to_rgba(image.get_array())[:, 1, :3]
    np.testing.assert_allclose(colors[1], [0xDD / 255] * 3)
    assert (colors[[0, 2], 2] > colors[[0, 2], 0]).all()


@pytest.mark.parametrize(
    ("classes", "numbered", "named"), [(1, True, True), (20, True, True), (21, False, True)]
)
def test_numbers_need_room(classes, numbered, named):
    names = [f"class {i}" for i in range(classes)]
    ax = pictures.confusion_matrix(np.eye(classes, dtype=int) * 7, names).axes[0]
    assert len(ax.texts) == (classes if numbered else 0)
    assert ([label.get_text() for label in ax.get_yticklabels()] == names) == named


def test_a_hundred_names_fit_and_are_shortened():
    names = [f"{'long ' * 10}{i:03}" for i in range(100)]
    figure = pictures.confusion_matrix(np.eye(100, dtype=int), names)
    ax = figure.axes[0]
    labels = ax.get_yticklabels()
    assert labels[7].get_text() == "long long…long 007"
    # Lines of text are no higher than a row.
    figure.draw_without_rendering()
    height = ax.get_position().height * figure.get_figheight() * 72 / 100
    assert 4.5 < labels[0].get_fontsize() < height


def test_a_thousand_classes_are_blocks_with_their_largest_share():
    counts = np.eye(1000, dtype=int) * 9
    counts[5, 990] = 1
    counts[996:] = 0
    counts[8] = 0  # The other rows of its block are shown.
    ax = pictures.confusion_matrix(counts, [str(i) for i in range(1000)]).axes[0]
    shown = np.ma.filled(ax.images[0].get_array(), np.nan)
    assert shown.shape == (250, 250)
    assert shown[0, 0] == 1
    assert shown[1, 247] == pytest.approx(0.1)
    assert np.isnan(shown[249]).all()
    assert np.count_nonzero(shown[:249]) == 250
    # The axes still count classes.
    assert ax.images[0].get_extent() == [-0.5, 999.5, 999.5, -0.5]
    assert all(len(label.get_text()) <= 4 for label in ax.get_yticklabels())
    assert not ax.texts


def test_blocks_need_not_divide_the_number_of_classes():
    counts = np.zeros((251, 251), int)
    counts[250, 250] = 1
    ax = pictures.confusion_matrix(counts, [str(i) for i in range(251)]).axes[0]
    shown = np.ma.filled(ax.images[0].get_array(), np.nan)
    assert shown.shape == (126, 126)
    assert shown[125, 125] == 1
    assert ax.images[0].get_extent() == [-0.5, 251.5, 251.5, -0.5]


def test_no_examples_at_all():
    figure = pictures.confusion_matrix(np.zeros((2, 2), int), ["a", "b"])
    assert figure.axes[0].get_title(loc="left") == "Accuracy 0.00% (0 of 0)"
    pictures.to_png(figure, dpi=30)


@pytest.mark.parametrize(("shape", "names"), [((2, 3), 2), ((3, 3), 2), ((0, 0), 0)])
def test_counts_of_other_classes_are_refused(shape, names):
    with pytest.raises(ValueError, match=r"counts must be .*name for each class"):
        pictures.confusion_matrix(np.zeros(shape, int), ["x"] * names)
