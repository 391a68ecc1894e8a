"""Figures in the style of this project, and the PNG files made of them.

Nothing here goes through pyplot, so no figure stays behind and none needs a display. A picture does
not depend on a user's matplotlibrc or MPLBACKEND. Equal figures are equal bytes.
"""

import contextlib
import functools
import io
import logging
import os
import pathlib
import sys
import threading
import unicodedata
from collections.abc import Callable

import numpy as np


@contextlib.contextmanager
def _undisturbed():
    """Keeps the environment out of the first import of matplotlib.

    It warns if there is no directory for its cache or if a matplotlibrc is faulty, and cannot be
    imported with an unknown MPLBACKEND. A valid one stays in force, for pyplot in a notebook.
    """
    if "matplotlib" in sys.modules:
        yield
        return
    logger = logging.getLogger("matplotlib")
    level, backend = logger.level, os.environ.pop("MPLBACKEND", None)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    with contextlib.suppress(ValueError):
        if backend:
            matplotlib.rcParams["backend"] = backend


# The other files of this room take what they need of matplotlib from here.
with _undisturbed():
    import matplotlib
    from matplotlib import colormaps, font_manager
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

__all__ = [
    "BLUE",
    "COLORS",
    "FONT_SIZE",
    "GRAY",
    "ORANGE",
    "SKY",
    "Figure",
    "PowerNorm",
    "colormaps",
    "epoch_axis",
    "new_figure",
    "note",
    "percent",
    "printable",
    "save",
    "styled",
    "to_png",
]

# Distinguishable with any kind of color vision: Okabe & Ito 2008, without the yellow, which is too
# light for lines on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
BLUE, ORANGE, SKY, GRAY = "#0072B2", "#D55E00", "#8EC7EC", "#767676"
FONT_SIZE = 13  # Points.
_FONT = "DejaVu Sans"
_STYLE = {
    "font.family": _FONT,
    "font.size": FONT_SIZE,
    "text.parse_math": False,  # A dollar sign in a name is a dollar sign.
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#4D4D4D",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": FONT_SIZE + 1,
    "axes.titleweight": "bold",
    "axes.titlepad": 10.0,
    "figure.titlesize": FONT_SIZE + 1,
    "figure.titleweight": "bold",
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "legend.fontsize": FONT_SIZE - 1,
    "lines.linewidth": 2.0,
    "xtick.color": "#4D4D4D",
    "ytick.color": "#4D4D4D",
    "xtick.labelsize": FONT_SIZE - 1,
    "ytick.labelsize": FONT_SIZE - 1,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
}
# Settings are global in matplotlib, so only one thread at a time may have its own.
_LOCK = threading.RLock()


@contextlib.contextmanager
def _style():
    """The settings of this room, for a block; then those of before."""
    defaults = {k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"}
    with _LOCK, matplotlib.rc_context({**defaults, **_STYLE}):
        yield


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorator: the function draws in the style of this room, whatever a user's settings."""

    @functools.wraps(draw)
    def wrapper(*args, **kwargs):
        with _style():
            return draw(*args, **kwargs)

    return wrapper


def new_figure(width: float, height: float, **options) -> Figure:
    """An empty figure with a canvas, of a size in inches; options are those of `Figure`."""
    figure = Figure(figsize=(width, height), **options)
    FigureCanvasAgg(figure)
    if options.get("layout"):
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    return figure


@styled
def to_png(figure: Figure, dpi: int = 100) -> bytes:
    """The content of a PNG file of the figure. Equal figures make equal bytes."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, metadata={"Software": None})
    return content.getvalue()


def save(figure: Figure, path: str | os.PathLike, dpi: int = 150) -> None:
    """Writes a PNG file, completely or not at all. Its directory must exist.

    Raises:
        OSError: it cannot be written; a file that was there before is unchanged.
    """
    path = pathlib.Path(path)
    content = to_png(figure, dpi)
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@functools.cache
def _glyphs() -> frozenset[int]:
    """The code points that the font can draw."""
    return frozenset(font_manager.get_font(font_manager.findfont(_FONT)).get_charmap())


def printable(text: str, width: int | None = None) -> str:
    """A text on one line that the font can draw, shortened in its middle to `width` characters.

    A character that the font lacks becomes a square.
    """
    text = " ".join(unicodedata.normalize("NFC", str(text)).split())
    text = "".join(c if ord(c) in _glyphs() else "\N{WHITE SQUARE}" for c in text)
    if width is None or len(text) <= width:
        return text
    tail = (width - 1) // 2
    return text[: width - 1 - tail] + "\N{HORIZONTAL ELLIPSIS}" + text[len(text) - tail :]


def percent(value: float, _=None) -> str:
    """A share as a percentage, for ticks: 0.5 is "50%"."""
    return f"{np.round(100 * value, 6):g}%"


def epoch_axis(ax) -> None:
    """Makes the horizontal axis one of epochs, with whole numbers if it is long enough."""
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))


def note(ax, text: str) -> None:
    """Writes a remark in the middle of axes that have nothing to show."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=GRAY)
