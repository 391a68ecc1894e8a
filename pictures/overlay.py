"""Images with the regions marked that speak for a class."""

import numpy as np

from pictures.figure import colormaps

_OPACITY = 0.6


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An image under a heat map, which is transparent where it is cold.

    Args:
        image: uint8 [height, width, 3].
        heat: float [h, w] in [0, 1]; scaled to the size of the image (bilinear).

    Returns:
        uint8 [height, width, 3].
    """
    height, width, _ = image.shape
    heat = _resize(_resize(heat, height).T, width).T[..., None]
    colors = 255 * colormaps["inferno"](heat[..., 0])[..., :3]
    opacity = _OPACITY * heat
    return np.round((1 - opacity) * image + opacity * colors).astype(np.uint8)


def _resize(x: np.ndarray, size: int) -> np.ndarray:
    """[n, m] interpolated between the centers of its rows, as [size, m]."""
    places = (np.arange(size) + 0.5) * len(x) / size - 0.5
    places = np.clip(places, 0, len(x) - 1)
    lower = np.floor(places).astype(int)
    upper = np.minimum(lower + 1, len(x) - 1)
    share = (places - lower)[:, None]
    return (1 - share) * x[lower] + share * x[upper]
