"""A grid of images with captions."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np

from pictures.figure import FONT_SIZE, Figure, new_figure, note, printable, styled

_WIDTH = 12  # Inches that a grid is to be wide.
_LARGEST = 2.6  # Inches of the longer side of an image, at most.
_SMALLEST, _CAPTIONED = 0.4, 1.15  # At least; the latter if it has a caption.
_ASPECT = 1.4  # Width over height that a grid is to have.
_GAP = 0.12  # Inches between images.
_PIXELS = 64  # Images smaller than this are enlarged in the array, for finer gaps.
_LINES = 4  # Of a caption.
_TEXT_SIZE = FONT_SIZE - 3
_LINE = 1.3 * _TEXT_SIZE / 72  # Inches of a line of a caption.
_CHARACTER = 0.57 * _TEXT_SIZE / 72  # Inches of a character of a caption, about.


@styled
def image_grid(
    images: np.ndarray,
    captions: Sequence[str],
    *,
    title: str | None = None,
    colors: Sequence[str | None] | None = None,
    columns: int | None = None,
) -> Figure:
    """Images in rows, each above its caption. Small images are enlarged without smoothing.

    Args:
        images: uint8 [n, height, width, channels], gray or RGB.
        captions: one for each image; wrapped, and shortened to four lines.
        title: above the grid.
        colors: the color of each caption, as matplotlib knows them; None for black.
        columns: images in a row. By default so many that the grid is a little wider than high.

    Raises:
        ValueError: images are of another shape or type, or captions or colors of another number.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images must be uint8 [n, height, width, 1 or 3], not {images.dtype} {images.shape}"
        )
    for name, given in (("captions", captions), ("colors", colors)):
        if given is not None and len(given) != len(images):
            raise ValueError(f"{name}: {len(given)} given for {len(images)} images")
    if not len(images):
        return _nothing(title)
    height, width = images.shape[1:3]
    columns = columns or _columns(len(images), height / width, any(captions))
    columns = min(columns, len(images))
    smallest = _CAPTIONED if any(captions) else _SMALLEST
    side = min(max(_WIDTH / columns - _GAP, smallest), _LARGEST)
    inch = max(height, width) * (scale := math.ceil(_PIXELS / max(height, width))) / side
    room = side * width / max(height, width) + _GAP / 2
    texts = [_wrap(text, int(room / _CHARACTER)) for text in captions]
    lines = max(text.count("\n") + 1 if text else 0 for text in texts)
    gap, below = math.ceil(_GAP * inch), math.ceil((_GAP + _LINE * lines) * inch)
    canvas = compose(images, columns, scale, gap, below)
    ax = _show(canvas, inch, title, smooth=scale == 1 and max(height, width) > 2 * _PIXELS)
    for number, text in enumerate(texts):
        if not text:
            continue
        row, column = divmod(number, columns)
        x = gap + column * (width * scale + gap) + width * scale / 2
        y = gap + row * (height * scale + below) + height * scale + 0.03 * inch
        color = (colors[number] if colors is not None else None) or "black"
        ax.text(x, y, text, ha="center", va="top", fontsize=_TEXT_SIZE, color=color)
    return ax.figure


def compose(images: np.ndarray, columns: int, scale: int, gap: int, below: int) -> np.ndarray:
    """One white array with the images in rows, uint8 [height, width, 3].

    Args:
        images: uint8 [n, height, width, 1 or 3].
        columns: images in a row.
        scale: how many times an image is enlarged.
        gap: pixels left of each column, right of the last and above the first row.
        below: pixels below each row.
    """
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    canvas = np.full(
        (gap + rows * (height + below), gap + columns * (width + gap), 3), 255, np.uint8
    )
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        top, left = gap + row * (height + below), gap + column * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


def _columns(count: int, ratio: float, captioned: bool) -> int:
    """The number of columns that gives a grid of images of height / width about its aspect.

    A grid without holes in its last row is preferred.
    """
    ideal = math.sqrt(_ASPECT * count * (ratio + (0.3 if captioned else 0.05)))

    def cost(columns: int) -> float:
        holes = -count % columns
        return 0.5 * holes / columns + abs(math.log(columns / ideal))

    return min(range(1, count + 1), key=cost)


def _wrap(caption: str, width: int) -> str:
    """A caption in lines of up to `width` characters."""
    paragraphs = [printable(line) for line in caption.splitlines()]
    lines = [line for paragraph in paragraphs for line in textwrap.wrap(paragraph, max(width, 4))]
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], lines[_LINES - 1][: width - 1] + "\N{HORIZONTAL ELLIPSIS}"]
    return "\n".join(lines)


def _show(canvas: np.ndarray, inch: float, title: str | None, *, smooth: bool):
    """Axes of a new figure that show an array of `inch` pixels per inch, below a title."""
    height, width = (length / inch for length in canvas.shape[:2])
    full = max(width, 5.0)
    heading = textwrap.fill(printable(title or ""), int(full * 72 / (0.68 * FONT_SIZE)))
    above = 0.25 * (heading.count("\n") + 1) + 0.15 if heading else 0
    figure = new_figure(full, height + above)
    ax = figure.add_axes((0, 0, width / full, height / (height + above)))
    ax.imshow(canvas, interpolation="antialiased" if smooth else "nearest", aspect="auto")
    ax.set_axis_off()
    figure.suptitle(heading, x=_GAP / full, y=1 - 0.12 / (height + above), ha="left", va="top")
    return ax


def _nothing(title: str | None) -> Figure:
    ax = _show(np.full((100, 400, 3), 255, np.uint8), 100, title, smooth=False)
    note(ax, "no images")
    return ax.figure
