import numpy as np
import pytest

import data
from data.dataset import normalize, split_by_class


def test_splits_hold_the_same_fraction_of_every_class_and_do_not_overlap():
    labels = np.repeat([0, 1, 2, 3], [100, 50, 10, 2])
    first, second = split_by_class(labels, 0.1)
    np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), np.arange(162))
    np.testing.assert_array_equal(np.bincount(labels[second]), [10, 5, 1, 1])
    again = split_by_class(labels, 0.1)
    np.testing.assert_array_equal(second, again[1])


def test_a_class_of_one_stays_in_the_first_part():
    first, second = split_by_class(np.array([0, 1, 1, 1]), 0.5)
    assert 0 in first
    assert len(second) == 2 or len(second) == 1


def test_no_fraction_is_no_split():
    first, second = split_by_class(np.array([0, 0, 1]), 0.0)
    assert len(first) == 3
    assert len(second) == 0


def test_normalized_per_channel():
    found = normalize(np.array([[0, 51, 255]], np.uint8), (0.1, 0.2, 0.5), (0.5, 1, 2))
    np.testing.assert_allclose(found, [[-0.2, 0.0, 0.25]], atol=1e-6)


def test_digits():
    dataset = data.load("digits", val_fraction=0.1)
    sizes = {k: len(s.labels) for k, s in dataset.splits.items()}
    assert sizes == {"train": 1295, "val": 143, "test": 359}
    images, labels = dataset.examples("train", range(1295))
    assert images.shape == (1295, 8, 8, 1)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(labels, dataset.splits["train"].labels)
    assert images.max() == pytest.approx((1 - dataset.mean[0]) / dataset.std[0])
    assert np.mean(images) == pytest.approx(0, abs=0.03)
    assert np.std(images) == pytest.approx(1, abs=0.03)
    assert dataset.augment == "crop:1"
    _, labels = dataset.examples("test", [3, 1])
    np.testing.assert_array_equal(labels, dataset.splits["test"].labels[[3, 1]])
