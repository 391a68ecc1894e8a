"""Draws pictures from arrays and names, with matplotlib. Knows nothing of runs and nets.

Synopsis:

figure = confusion_matrix(counts, class_names)
save(figure, path)
"""

from pictures.calibration import calibration
from pictures.comparison import compare_curves
from pictures.confusion import confusion_matrix
from pictures.curves import curves
from pictures.figure import save, to_png
from pictures.filters import filters
from pictures.grid import image_grid
from pictures.learning_rate import learning_rate_range

__all__ = [
    "calibration",
    "compare_curves",
    "confusion_matrix",
    "curves",
    "filters",
    "image_grid",
    "learning_rate_range",
    "save",
    "to_png",
]
