"""What a net predicts for each example of a split, and the file that keeps it.

    predictions = read_predictions(run_dir)
    (predictions.predicted == predictions.labels).mean()

The file is small, a few bytes per example, so that runs can be compared example by example.
"""

import contextlib
import dataclasses
import pathlib

import numpy as np

from loops.errors import RunError, SaveError, reason
from loops.records.run import PREDICTIONS


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The predictions for the examples of a split, in its order.

    Attributes:
        labels: int32 [n], the true class.
        predicted: int32 [n], the most probable class.
        confidences: float32 [n] in [0, 1], the probability of the predicted class.
        label_probabilities: float32 [n] in [0, 1], the probability of the true class.
        losses: float32 [n], the loss of each example, without label smoothing.
    """

    labels: np.ndarray
    predicted: np.ndarray
    confidences: np.ndarray
    label_probabilities: np.ndarray
    losses: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """Whether each prediction is correct, bool [n]."""
        return (self.predicted == self.labels) & np.isfinite(self.confidences)

    def confusion(self, num_classes: int) -> np.ndarray:
        """Counts of examples, int64 [true class, predicted class]."""
        pairs = self.labels.astype(np.int64) * num_classes + self.predicted
        counts = np.bincount(pairs, minlength=num_classes**2)
        return counts.reshape(num_classes, num_classes)

    def worst(self, count: int) -> np.ndarray:
        """Numbers of up to `count` mistakes, int64, the most confident first."""
        wrong = np.flatnonzero(~self.correct)
        order = np.argsort(-self.confidences[wrong], kind="stable")
        return wrong[order][:count]


_FIELDS = {field.name: np.float32 for field in dataclasses.fields(Predictions)} | {
    "labels": np.int32,
    "predicted": np.int32,
}


def write_predictions(run_dir: pathlib.Path, predictions: Predictions) -> None:
    """Writes the predictions of a run on its test split, completely or not at all.

    Raises:
        SaveError: they cannot be written.
    """
    path = run_dir / PREDICTIONS
    temporary = path.with_name(path.name + ".new")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **dataclasses.asdict(predictions))
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise SaveError(f"cannot write {path}: {reason(error)}") from error


def read_predictions(run_dir: pathlib.Path) -> Predictions | None:
    """The predictions of a run on its test split; None if there is no such file.

    Raises:
        RunError: the file is damaged.
    """
    path = run_dir / PREDICTIONS
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            found = {name: np.asarray(content[name]) for name in _FIELDS}
    except Exception as error:  # A damaged file makes NumPy raise nearly anything.
        raise RunError(f"cannot read {path}: {reason(error)}") from error
    shape = found["labels"].shape
    for name, dtype in _FIELDS.items():
        if found[name].dtype != dtype or found[name].shape != shape or len(shape) != 1:
            raise RunError(f"cannot read {path}: {name} is {found[name].dtype} {found[name].shape}")
    return Predictions(**found)
