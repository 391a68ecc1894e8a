import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data.source import ArraySource, DataError, Relabelled, Resized, Subset, printable
from tests.data.helpers import fetch, photo, pixels


def test_arrays():
    images = pixels(10, 4, 4, 1)
    source = ArraySource(images, np.arange(10))
    np.testing.assert_array_equal(fetch(source, [7, 2, 7]), images[[7, 2, 7]])
    assert source.image_shape == (4, 4, 1)
    assert source.labels.dtype == np.int32
    assert source.describe(7) == "example 7"
    assert "CPU:0" in source.images.device
    for device in ("CPU:0", "CPU:1"):
        with tf.device(device):
            assert "CPU:0" in source.fetch(tf.constant([0])).device


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one label each"):
        ArraySource(pixels(3, 4, 4, 1), np.arange(2))
    with pytest.raises(ValueError, match="not float64"):
        ArraySource(pixels(3, 4, 4, 1) / 255, np.arange(3))


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        (np.zeros((3, 1), int), r"int64 \[3, 1\]"),
        (np.eye(3, dtype=int), r"int64 \[3, 3\]"),
        (np.array([0.0, 1.5, 2.0]), r"float64 \[3\]"),
    ],
)
def test_labels_that_are_no_numbers_of_classes_are_refused(labels, what):
    with pytest.raises(ValueError, match=f"labels must be integers .size., not {what}"):
        ArraySource(pixels(3, 4, 4, 1), labels)


def test_a_subset_is_renumbered():
    whole = ArraySource(pixels(10, 4, 4, 1), np.arange(10))
    subset = Subset(Subset(whole, np.array([9, 7, 2])), [1, 2])
    np.testing.assert_array_equal(subset.labels, [7, 2])
    np.testing.assert_array_equal(fetch(subset, [1, 0]), fetch(whole, [2, 7]))
    assert subset.describe(1) == "example 2"


def test_relabelled():
    whole = ArraySource(pixels(3, 4, 4, 1), [0, 1, 1])
    relabelled = Relabelled(whole, [5, 3])
    np.testing.assert_array_equal(relabelled.labels, [5, 3, 3])
    np.testing.assert_array_equal(fetch(relabelled, [0, 2]), fetch(whole, [0, 2]))
    assert relabelled.describe(2) == "example 2"


@pytest.mark.parametrize("size", [(20, 20), (5, 5), (7, 12)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resized_as_pillow_does(channels, size):
    images = [photo(16, 16, seed=i).convert("RGB" if channels == 3 else "L") for i in range(3)]
    whole = ArraySource(
        np.stack([np.asarray(x).reshape(16, 16, channels) for x in images]), [0] * 3
    )
    resized = Resized(whole, size)
    assert resized.image_shape == (*size, channels)
    for found, image in zip(fetch(resized, range(3)), images, strict=True):
        expected = np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR), int)
        np.testing.assert_allclose(found, expected.reshape(*size, channels), atol=1)


def test_fingerprints_tell_data_apart():
    def of(source):
        return source.fingerprint()

    images = pixels(5000, 2, 2, 1)
    one, labels = ArraySource(images, np.arange(5000)), np.arange(5000)
    assert of(one) == of(ArraySource(images.copy(), labels))
    assert of(one) != of(ArraySource(pixels(5000, 2, 2, 1, seed=1), labels))
    assert of(one) != of(ArraySource(images, labels[::-1]))
    images[4999, 1, 1, 0] += 1
    assert of(one) != of(ArraySource(images, labels))
    assert of(Subset(one, np.arange(2))) != of(Subset(one, np.arange(3)))
    assert of(Resized(one, (8, 8))) == of(one)


def test_fingerprints_are_those_of_earlier_versions():
    images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    source = ArraySource(images, [3, 1])
    assert source.fingerprint() == 403210447
    assert Subset(source, [1]).fingerprint() == 1054555824


def test_errors_are_one_line():
    assert str(DataError("a\nb\udcff.jpg")) == "a\\nb\\udcff.jpg"
    assert printable("naïve 写真") == "naïve 写真"
