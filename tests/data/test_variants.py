import numpy as np
import pytest

from data.variants import count, variants
from tests.data.helpers import pixels


def groups(images, *names):
    return [np.asarray(group) for group in variants(images, names)]


ROWS = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8)[None, :, :, None]


def shown(images):
    return images[0, :, :, 0].tolist()


def test_mirror_images():
    whole, mirrored = groups(ROWS, "flip")
    np.testing.assert_array_equal(whole, ROWS)
    assert shown(mirrored) == [[3, 2, 1], [6, 5, 4], [9, 8, 7]]


def test_shifts_of_a_small_image_are_by_one_pixel():
    whole, *shifted = groups(ROWS, "shifts")
    np.testing.assert_array_equal(whole, ROWS)
    assert [shown(x) for x in shifted] == [
        [[4, 5, 6], [1, 2, 3], [4, 5, 6]],  # Down; the border is reflected.
        [[4, 5, 6], [7, 8, 9], [4, 5, 6]],  # Up.
        [[2, 1, 2], [5, 4, 5], [8, 7, 8]],  # To the right.
        [[2, 3, 2], [5, 6, 5], [8, 9, 8]],  # To the left.
    ]


@pytest.mark.parametrize(("size", "shift"), [(2, 1), (32, 1), (63, 1), (64, 2), (224, 7)])
def test_shifts_are_by_a_32nd(size, shift):
    images = pixels(2, size, size, 3)
    _, down, up, right, left = groups(images, "shifts")
    np.testing.assert_array_equal(down[:, shift:], images[:, :-shift])
    np.testing.assert_array_equal(up[:, :-shift], images[:, shift:])
    np.testing.assert_array_equal(right[:, :, shift:], images[:, :, :-shift])
    np.testing.assert_array_equal(left[:, :, :-shift], images[:, :, shift:])
    np.testing.assert_array_equal(down[:, :shift], images[:, shift:0:-1])


def test_all_combinations():
    images = pixels(3, 8, 8, 1)
    both = groups(images, "flip", "shifts")
    shifts = groups(images, "shifts")
    assert len(both) == 10
    for found, expected in zip(both, [*shifts, *groups(images[:, :, ::-1], "shifts")], strict=True):
        np.testing.assert_array_equal(found, expected)
    assert len(groups(images, "flip", "flip")) == 2
    assert len(groups(images)) == 1


@pytest.mark.parametrize(
    ("names", "number"), [((), 1), (("flip",), 2), (("shifts",), 5), (("flip", "shifts"), 10)]
)
def test_the_number_of_variants(names, number):
    assert count(names) == number


def test_an_image_of_one_pixel_stays():
    for group in groups(pixels(1, 1, 1, 3), "flip", "shifts"):
        np.testing.assert_array_equal(group, pixels(1, 1, 1, 3))
