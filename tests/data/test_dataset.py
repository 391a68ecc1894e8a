import numpy as np
import pytest
import tensorflow as tf

import data
from data.dataset import normalize, split_by_class
from tests.data.helpers import pixels


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


@pytest.mark.parametrize("shape", [(2, 5, 4, 3), (7, 1), (3, 2, 9, 4)])
def test_normalized_as_it_is_written_down(shape):
    """Bit for bit, in float32, product by product."""
    images = pixels(*shape)
    mean, std = np.array([0.3, 0.47, 0.61, 0.9]), np.array([0.21, 0.33, 0.7, 0.4])
    mean, std = mean[: shape[-1]], std[: shape[-1]]
    scale, offset = np.float32(1 / (255 * std)), np.float32(-mean / std)
    expected = images.astype(np.float32) * scale + offset
    found = normalize(images, mean, std)
    assert found.shape == shape
    np.testing.assert_array_equal(found, expected)


def test_normalized_in_batches_of_any_size():
    function = tf.function(lambda x: normalize(x, (0.1,), (0.5,)))
    concrete = function.get_concrete_function(tf.TensorSpec((None, 2, 3, 1), tf.uint8))
    assert concrete.output_shapes.as_list() == [None, 2, 3, 1]
    images = pixels(4, 2, 3, 1)
    np.testing.assert_array_equal(concrete(images), normalize(images, (0.1,), (0.5,)))


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
