import numpy as np

from pictures.figure import colormaps
from pictures.overlay import overlay


def test_cold_pixels_stay_and_hot_ones_take_the_color():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    heat = np.zeros((4, 6), np.float32)
    np.testing.assert_array_equal(overlay(image, heat), image)
    heat[1, 2], heat[3, 5] = 1.0, 0.5
    found = overlay(image, heat)
    for place, value in (((1, 2), 1.0), ((3, 5), 0.5)):
        color = 255 * np.array(colormaps["inferno"](value)[:3])
        opacity = 0.6 * value
        expected = (1 - opacity) * image[place] + opacity * color
        np.testing.assert_allclose(found[place], expected, atol=0.51)
    untouched = heat == 0
    np.testing.assert_array_equal(found[untouched], image[untouched])
    assert (found.shape, found.dtype) == ((4, 6, 3), np.uint8)


def test_heat_is_scaled_between_the_centers_of_its_pixels():
    """2x1 values on 8x2 pixels: constant outside of the centers, linear between them."""
    image = np.zeros((8, 2, 3), np.uint8)
    by_hand = [0, 0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1]
    expected = overlay(image, np.tile(np.array(by_hand)[:, None], (1, 2)))
    np.testing.assert_array_equal(overlay(image, np.array([[0.0], [1.0]])), expected)
    turned = overlay(image.transpose(1, 0, 2), np.array([[0.0, 1.0]]))
    np.testing.assert_array_equal(turned, expected.transpose(1, 0, 2))
