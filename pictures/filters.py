"""The filters of a convolution, such as the first of a net."""

import numpy as np

from pictures.figure import Figure, styled
from pictures.grid import image_grid

_MOST = 256  # Filters that are shown.


@styled
def filters(kernels: np.ndarray) -> Figure:
    """Each filter as an image, all on one scale on which zero is mid-gray.

    Filters of three input channels are shown as RGB, those of another number as the gray mean over
    the channels. Values that are not finite are shown as zero.

    Args:
        kernels: float [height, width, inputs, filters].

    Raises:
        ValueError: kernels is of another shape.
    """
    kernels = np.asarray(kernels, float)
    if kernels.ndim != 4:
        raise ValueError(f"kernels must be [height, width, inputs, filters], not {kernels.shape}")
    height, width, inputs, count = kernels.shape
    images = np.nan_to_num(np.moveaxis(kernels, -1, 0), nan=0, posinf=0, neginf=0)[:_MOST]
    if inputs != 3:
        images = images.mean(axis=-1, keepdims=True)
    largest = np.abs(images).max(initial=0)
    pixels = np.round(127.5 + 127.5 * images / (largest or 1)).astype(np.uint8)
    title = "1 filter" if count == 1 else f"{count} filters"
    title += f", {height}x{width}x{inputs}, from {-largest:.3g} to {largest:.3g}"
    if count > _MOST:
        title = f"{_MOST} of {title}"
    if inputs not in (1, 3):
        title += f", mean over {inputs} channels"
    return image_grid(pixels, [""] * len(pixels), title=title)
