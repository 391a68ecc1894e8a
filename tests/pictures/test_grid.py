import itertools
import time

import numpy as np
import pytest
from matplotlib.image import imread

import pictures
from pictures.grid import compose

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)


def canvas(figure):
    (image,) = figure.axes[0].images
    return np.asarray(image.get_array())


def captions(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_compose_by_hand():
    images = np.array([[[[10], [20]]], [[[30], [40]]], [[[50], [60]]]], np.uint8)  # 1 x 2 pixels.
    w = 255
    expected = [
        [w, w, w, w, w, w, w, w, w, w, w],
        [w, 10, 10, 20, 20, w, 30, 30, 40, 40, w],
        [w, 10, 10, 20, 20, w, 30, 30, 40, 40, w],
        [w, w, w, w, w, w, w, w, w, w, w],
        [w, w, w, w, w, w, w, w, w, w, w],
        [w, 50, 50, 60, 60, w, w, w, w, w, w],
        [w, 50, 50, 60, 60, w, w, w, w, w, w],
        [w, w, w, w, w, w, w, w, w, w, w],
        [w, w, w, w, w, w, w, w, w, w, w],
    ]
    result = compose(images, columns=2, scale=2, gap=1, below=2)
    np.testing.assert_array_equal(result, np.repeat(np.array(expected)[..., None], 3, axis=-1))


@pytest.mark.parametrize("side", [1, 8, 28, 32, 100])
def test_images_are_enlarged_by_whole_numbers_and_nothing_is_lost(side):
    images = np.random.default_rng(1).integers(0, 255, (3, side, side, 3)).astype(np.uint8)
    figure = pictures.image_grid(images, [""] * 3, columns=3)
    pixels = canvas(figure)
    inside = (pixels != 255).all(axis=-1)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    scale = len(rows) // side
    assert len(rows) == side * scale
    assert len(columns) == 3 * side * scale
    assert side * scale >= 64
    shown = pixels[rows][:, columns][::scale, ::scale]
    np.testing.assert_array_equal(shown, np.concatenate(images, axis=1))
    assert figure.axes[0].images[0].get_interpolation() == "nearest"


def test_gray_images():
    gray = IMAGES[..., :1]
    np.testing.assert_array_equal(
        canvas(pictures.image_grid(gray, ["a"] * 5)),
        canvas(pictures.image_grid(gray.repeat(3, axis=-1), ["a"] * 5)),
    )


def test_pixels_in_the_file_are_those_of_the_image(tmp_path):
    colors = np.array([[255, 0, 0], [0, 0, 255], [0, 128, 0], [9, 9, 9]], np.uint8)
    image = colors.reshape(1, 2, 2, 3)
    pictures.save(pictures.image_grid(image, [""]), tmp_path / "grid.png")
    pixels = (imread(tmp_path / "grid.png")[..., :3] * 255).round().astype(np.uint8)
    found, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    # Nothing is blended: there are white and the four colors, and as much of each.
    assert {tuple(color) for color in found} == {*map(tuple, colors), (255, 255, 255)}
    of_image = counts[(found != 255).any(axis=1)]
    assert of_image.min() > 0.98 * of_image.max()


def test_each_caption_is_below_its_image_in_its_color():
    names = ["true cat, predicted dog 98%", "b", "", "d", "e"]
    colors = ["red", None, "red", "#009E73", "blue"]
    figure = pictures.image_grid(IMAGES, names, colors=colors, columns=2, title="Worst mistakes")
    texts = figure.axes[0].texts
    assert [text.get_text().replace("\n", " ") for text in texts] == [n for n in names if n]
    assert [text.get_color() for text in texts] == ["red", "black", "#009E73", "blue"]
    pixels = canvas(figure)
    for number, text in zip((0, 1, 3, 4), texts, strict=True):
        x, y = text.get_position()
        # A little above the caption is the lowest row of the image.
        found = pixels[int(y) - 4, int(x) - 1]
        np.testing.assert_array_equal(found, IMAGES[number, 7, 3])
        assert (pixels[int(y) + 2, int(x)] == 255).all()
    assert figure.get_suptitle() == "Worst mistakes"


def test_captions_keep_their_lines_are_wrapped_and_end_at_four_lines():
    long = "true cat\n" + "predicted a very long name " * 9
    (text,) = captions(pictures.image_grid(IMAGES[:1], [long]))
    lines = text.split("\n")
    assert len(lines) == 4
    assert lines[0] == "true cat"
    assert lines[-1].endswith("…")


def test_captions_of_small_tiles_do_not_overlap():
    figure = pictures.image_grid(
        np.zeros((64, 8, 8, 3), np.uint8), ["true automobile, predicted airplane 98%"] * 64
    )
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    pictures.to_png(figure)
    for left, right in itertools.pairwise(boxes[:10]):
        assert left.x1 < right.x0
    # The last row ends above the edge of the figure.
    assert min(box.y0 for box in boxes) > 0


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (16, 6), (64, 11)])
def test_a_grid_is_wider_than_high(count, columns):
    images = np.zeros((count, 32, 32, 3), np.uint8)
    figure = pictures.image_grid(images, ["cat"] * count)
    assert len({text.get_position()[0] for text in figure.axes[0].texts}) == columns
    width, height = figure.get_size_inches()
    assert 1 <= width / height < 2.2
    # Two columns when asked for two.
    figure = pictures.image_grid(images, ["cat"] * count, columns=2)
    assert len({text.get_position()[0] for text in figure.axes[0].texts}) == min(count, 2)


def test_no_images():
    figure = pictures.image_grid(np.zeros((0, 8, 8, 3), np.uint8), [], title="Worst mistakes")
    assert captions(figure) == ["no images"]
    assert figure.get_suptitle() == "Worst mistakes"
    pictures.to_png(figure, dpi=30)


def test_large_photographs_are_not_enlarged():
    images = np.zeros((2, 300, 400, 3), np.uint8)
    figure = pictures.image_grid(images, ["a", "b"], columns=2)
    assert (canvas(figure) == 0).all(axis=-1).sum() == 2 * 300 * 400
    assert figure.axes[0].images[0].get_interpolation() == "antialiased"


def test_64_tiles_are_drawn_fast():
    images = np.zeros((64, 32, 32, 3), np.uint8)
    pictures.to_png(pictures.image_grid(images, ["true cat, predicted dog 98%"] * 64))
    start = time.process_time()
    pictures.to_png(pictures.image_grid(images, ["true cat, predicted dog 98%"] * 64))
    # About 0.3 s; one axes per tile would take several seconds.
    assert time.process_time() - start < 1.5


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((1, 8, 8, 3)), {}, "images must be uint8"),
        (np.zeros((1, 8, 8, 2), np.uint8), {}, "images must be uint8"),
        (np.zeros((8, 8, 3), np.uint8), {}, "images must be uint8"),
        (np.zeros((2, 8, 8, 3), np.uint8), {}, "captions: 1 given for 2 images"),
        (np.zeros((1, 8, 8, 3), np.uint8), {"colors": []}, "colors: 0 given for 1 images"),
    ],
)
def test_other_shapes_are_refused(images, options, message):
    with pytest.raises(ValueError, match=message):
        pictures.image_grid(images, ["a"], **options)
