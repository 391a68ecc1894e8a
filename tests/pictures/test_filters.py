import numpy as np
import pytest

import pictures


def shown(kernels):
    """The picture of kernels, and one pixel for each weight, without the gaps."""
    figure = pictures.filters(kernels)
    (image,) = figure.axes[0].images
    pixels = np.asarray(image.get_array())
    inside = (pixels != 255).any(axis=-1)
    rows = pixels[inside.any(axis=1)][:, inside.any(axis=0)]
    scale = -(-64 // max(kernels.shape[:2]))
    return figure, rows[scale // 2 :: scale, scale // 2 :: scale].tolist()


def test_one_channel_is_gray_with_zero_in_the_middle():
    # Two filters of 1 x 2; 0.5 is the largest, so -0.25 is at a quarter of the scale.
    figure, pixels = shown(np.array([[[[0.0, 0.25]], [[-0.5, -0.25]]]]))
    assert pixels == [[[128] * 3, [0] * 3], [[191] * 3, [64] * 3]]
    assert figure.get_suptitle() == "2 filters, 1x2x1, from -0.5 to 0.5"


def test_three_channels_are_rgb_on_one_scale():
    figure, pixels = shown(np.array([[[[-1.0], [0.5], [0.0]]]]))
    assert pixels == [[[0, 191, 128]]]
    assert figure.get_suptitle() == "1 filter, 1x1x3, from -1 to 1"


def test_other_numbers_of_channels_are_averaged():
    figure, pixels = shown(np.array([[[[1.0, -3.0], [3.0, -1.0]]]]) - [0.0, 2.0])
    assert pixels == [[[191] * 3, [0] * 3]]
    title = figure.get_suptitle().replace("\n", " ")
    assert title == "2 filters, 1x1x2, from -4 to 4, mean over 2 channels"


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_nothing_but_zero_is_gray(value):
    _, pixels = shown(np.full((2, 2, 3, 1), value))
    assert pixels == [[[128] * 3] * 2] * 2


def test_at_most_256_filters_are_shown():
    figure = pictures.filters(np.zeros((1, 1, 1, 300)))
    assert figure.get_suptitle() == "256 of 300 filters, 1x1x1, from -0 to 0"


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"kernels must be \[height, width, inputs, filters\]"):
        pictures.filters(np.zeros((3, 3, 8)))
