"""Predictions as text, CSV or JSON Lines, batch by batch."""

import csv
import io
import json
from collections.abc import Iterator, Sequence

import numpy as np

from data import printable

_LONGEST_PATH = 60  # Characters; a longer path makes its own line longer.


class Format:
    """Makes text of predictions.

    Args:
        class_names: in the order of the probabilities.
        top: number of classes to print, the most probable first.

    Attributes:
        header: printed before the rows.
    """

    header = ""

    def __init__(self, class_names: Sequence[str], top: int):
        self.class_names = class_names
        self.top = min(top, len(class_names))

    def rows(self, paths: Sequence[str], probabilities: np.ndarray) -> str:
        """The lines for a batch of images.

        Args:
            paths: of the images.
            probabilities: float32 [len(paths), classes].
        """
        return "".join(map(self.row, paths, probabilities))

    def row(self, path: str, probabilities: np.ndarray) -> str:
        """The line for one image, whose probabilities are float32 [classes]."""
        raise NotImplementedError

    def best(self, probabilities: np.ndarray) -> Iterator[tuple[str, np.float32]]:
        """The names and probabilities of the most probable classes, in falling order."""
        for number in np.argsort(-probabilities, kind="stable")[: self.top]:
            yield self.class_names[number], probabilities[number]


class Text(Format):
    """The path and, in columns, the classes with their probabilities."""

    def __init__(self, class_names, top):
        super().__init__(class_names, top)
        self._path_width = 0
        self._class_width = max(len(printable(name)) for name in class_names)

    def rows(self, paths, probabilities):
        # As wide as the widest path so far.
        widths = [self._path_width, *(len(printable(path)) for path in paths)]
        self._path_width = min(max(widths), _LONGEST_PATH)
        return super().rows(paths, probabilities)

    def row(self, path, probabilities):
        cells = [
            f"{printable(name):<{self._class_width}} {probability:6.1%}"
            for name, probability in self.best(probabilities)
        ]
        return "  ".join([f"{printable(path):<{self._path_width}}", *cells]) + "\n"


class Csv(Format):
    r"""A row for each image: path, class, probability, class_2, probability_2, ...

    A probability has the digits that make it the same float32 when it is read. Bytes of a path that
    are not UTF-8 are written as `\xff`.
    """

    @property
    def header(self) -> str:
        cells = ["path", "class", "probability"]
        for rank in range(2, self.top + 1):
            cells += [f"class_{rank}", f"probability_{rank}"]
        return _csv_row(cells)

    def row(self, path, probabilities):
        cells = [path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")]
        for name, probability in self.best(probabilities):
            cells += [name, str(probability)]
        return _csv_row(cells)


def _csv_row(cells: Sequence[str]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(cells)
    return stream.getvalue()


class JsonLines(Format):
    """An object per line: {"path": ..., "predictions": [{"class": ..., "probability": ...}, ...]}.

    Probabilities are as in `Csv`. A byte of a path that is not UTF-8 is a lone surrogate, as in
    Python.
    """

    def row(self, path, probabilities):
        predictions = [
            {"class": name, "probability": float(str(probability))}
            for name, probability in self.best(probabilities)
        ]
        return json.dumps({"path": path, "predictions": predictions}) + "\n"


FORMATS = {"text": Text, "csv": Csv, "json": JsonLines}
