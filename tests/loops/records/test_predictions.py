import random

import numpy as np
import pytest

from loops.errors import RunError
from loops.records.predictions import Predictions, read_predictions, write_predictions
from loops.records.run import PREDICTIONS

LABELS = np.array([0, 1, 2, 2, 1], np.int32)
PREDICTED = np.array([0, 2, 2, 1, 0], np.int32)
CONFIDENCES = np.array([0.9, 0.6, np.nan, 0.8, 0.7], np.float32)
PREDICTIONS_OF_FIVE = Predictions(LABELS, PREDICTED, CONFIDENCES, 1 - CONFIDENCES, 2 * CONFIDENCES)


def test_figures_by_hand():
    found = PREDICTIONS_OF_FIVE
    assert found.correct.tolist() == [True, False, False, False, False]
    assert found.confusion(3).tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 1]]
    assert found.worst(2).tolist() == [3, 4]


def test_what_is_read_is_what_was_written(tmp_path):
    assert read_predictions(tmp_path) is None
    write_predictions(tmp_path, PREDICTIONS_OF_FIVE)
    found = read_predictions(tmp_path)
    for name in ("labels", "predicted", "confidences", "label_probabilities", "losses"):
        np.testing.assert_array_equal(getattr(found, name), getattr(PREDICTIONS_OF_FIVE, name))
    assert [path.name for path in tmp_path.iterdir()] == [PREDICTIONS]


def test_a_damaged_file_is_an_error_of_the_run(tmp_path):
    write_predictions(tmp_path, PREDICTIONS_OF_FIVE)
    path, generator = tmp_path / PREDICTIONS, random.Random(0)
    content = path.read_bytes()
    refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(generator.randrange(1, 4)):
            damaged[generator.randrange(len(content))] = generator.randrange(256)
        path.write_bytes(damaged[: generator.randrange(len(content) // 2, len(content) + 1)])
        try:  # Some changes are of no consequence.
            read_predictions(tmp_path)
        except RunError:
            refused += 1
    assert refused > 150


def test_other_contents_are_refused(tmp_path):
    np.savez(open(tmp_path / PREDICTIONS, "wb"), labels=LABELS)  # noqa: SIM115
    with pytest.raises(RunError, match="cannot read"):
        read_predictions(tmp_path)
