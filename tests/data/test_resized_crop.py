"""Random crops, and the boxes that are read of each kind of source."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from data import boxes, decode
from data.augment import RandomResizedCrop, parse_augment
from data.augmentation import Draws
from data.pipeline import TrainPipeline
from data.reader import ImageReader
from data.resized_crop import random_boxes
from data.source import ArraySource, CenterCropped, Relabelled, Resized, Subset, center_cropped
from tests.data.helpers import exif, fetch, noise, open_paths, photo, refused

ROWS = 4000


def draws(rows=ROWS):
    return Draws(tf.constant([3, 4], tf.int64), tf.range(rows, dtype=tf.int64), rows)


def sampled(height, width, *values):
    found = RandomResizedCrop(*values).boxes(tf.tile([[height, width]], (ROWS, 1)), draws()).numpy()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.round(found))
    top, left, rows, columns = found.T
    assert np.all((top >= 0) & (left >= 0) & (rows >= 1) & (columns >= 1))
    assert np.all((top + rows <= height) & (left + columns <= width))
    return top, left, rows, columns


def by_rejection(height, width, areas, aspect, size=20_000):
    """Heights and widths of the boxes that fit, of draws one after the other."""
    generator = np.random.default_rng(0)
    area = generator.uniform(*areas, size) * height * width
    ratio = np.exp(generator.uniform(-np.log(aspect), np.log(aspect), size))
    rows, columns = np.round(np.sqrt(area / ratio)), np.round(np.sqrt(area * ratio))
    fits = (rows <= height) & (columns <= width)
    return rows[fits], columns[fits]


@pytest.mark.parametrize(("height", "width"), [(375, 500), (300, 300)])
def test_area_and_aspect_of_boxes(height, width):
    top, left, rows, columns = sampled(height, width)
    expected_rows, expected_columns = by_rejection(height, width, (0.08, 1.0), 4 / 3)
    for found, expected in (
        (rows * columns / (height * width), expected_rows * expected_columns / (height * width)),
        (np.log(columns / rows), np.log(expected_columns / expected_rows)),
    ):
        for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
            assert np.quantile(found, quantile) == pytest.approx(
                np.quantile(expected, quantile), abs=0.03
            )
    assert np.all(rows * columns > 0.079 * height * width)
    assert np.all(np.abs(np.log(columns / rows)) < np.log(4 / 3) + 0.02)
    # Each place is equally likely, the first and the last included.
    for corner, room in ((top, height - rows), (left, width - columns)):
        places = corner[room > 20] / room[room > 20]
        assert places.mean() == pytest.approx(0.5, abs=0.03)
        assert (places.min(), places.max()) == pytest.approx((0, 1), abs=0.02)


def test_small_areas_are_evenly_distributed():
    """Where every box fits, which is up to 9/16, area and logarithm of the aspect are uniform."""
    _, _, rows, columns = sampled(400, 400, 0.1, 0.5, 4 / 3)
    for found, low, high in (
        (rows * columns / 400**2, 0.1, 0.5),
        (np.log(columns / rows), -np.log(4 / 3), np.log(4 / 3)),
    ):
        assert np.quantile(found, (0.1, 0.5, 0.9)) == pytest.approx(
            low + (high - low) * np.array([0.1, 0.5, 0.9]), abs=0.02
        )


def test_the_middle_is_taken_where_no_box_fits():
    """Of the whole area there is no box in a panorama; the largest has an aspect ratio of 4/3."""
    whole = RandomResizedCrop(1.0, 1.0)
    for size, expected in (
        ((90, 1000), (0, 440, 90, 120)),
        ((1000, 90), (440, 0, 120, 90)),
        ((1, 1), (0, 0, 1, 1)),
    ):
        found = whole.boxes(tf.constant([size]), draws(1))
        np.testing.assert_array_equal(found[0], expected)


def test_a_box_by_hand():
    """Half the area, twice as wide as high: of 100x400, 100x200; at the last of 201 places."""
    values = np.full((1, 2 + 2 * boxes.ATTEMPTS), 0.999, np.float32)
    values[0, :2] = (0.9, 0.999)
    values[0, 2:6] = (0.999, 0.0, 0.5, 1.0)  # The first attempt is too high: 200 pixels.
    found = random_boxes(tf.constant([[100, 400]]), values, areas=(0.0, 1.0), aspect=2.0)
    # sqrt(20,000 / 2) = 100 and sqrt(20,000 * 2) = 200.
    np.testing.assert_array_equal(found[0], [0, 200, 100, 200])


def test_it_is_the_first_of_its_chain():
    assert parse_augment("random_resized_crop:0.3,flip")[0] == RandomResizedCrop(0.3)
    for text in ("flip,random_resized_crop", "random_resized_crop|crop:1",
                 "random_resized_crop,random_resized_crop"):  # fmt: skip
        message = refused("--augment", parse_augment, text)
        assert message == f"--augment={text}: random_resized_crop cuts before images are decoded; "\
            "it can only be the first"  # fmt: skip
    assert "smallest of random_resized_crop must not be above largest" in refused(
        "--augment", parse_augment, "random_resized_crop:0.5:0.4"
    )
    assert "smallest of random_resized_crop must be a number from 0.001 to 1" in refused(
        "--augment", parse_augment, "random_resized_crop:0"
    )


# What is read.


def by_pillow(image, box, size):
    top, left, height, width = box
    part = (left, top, left + width, top + height)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=part))


def assert_close(found, expected, most, mean):
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= most
    assert difference.mean() <= mean


BOXES = np.array([[0, 0, 60, 90], [10.5, 20.25, 22, 40], [30, 50, 30, 40], [3, 5, 9, 7]], "f4")


def test_boxes_of_arrays_are_resized_as_by_pillow():
    images = np.stack([np.array(photo(90, 60, seed=i)) for i in range(4)])
    whole = ArraySource(images, np.arange(4))
    numbers = np.arange(4)
    np.testing.assert_array_equal(whole.sizes(numbers), [[60, 90]] * 4)
    resized = Resized(Relabelled(Subset(whole, [1, 2, 3, 0]), range(4)), (24, 24))
    np.testing.assert_array_equal(resized.sizes(numbers), [[60, 90]] * 4)
    found = resized.fetch(numbers, BOXES).numpy()
    for image, pixels, box in zip(images[[1, 2, 3, 0]], found, BOXES, strict=True):
        assert_close(pixels, by_pillow(Image.fromarray(image), box, 24), 2, 0.3)
    assert whole.fetch(numbers, BOXES).shape == (4, 60, 90, 3)
    np.testing.assert_array_equal(whole.fetch(numbers, BOXES)[0], images[0])


KINDS = {
    "baseline": {"format": "JPEG", "quality": 95},
    "progressive": {"format": "JPEG", "quality": 95, "progressive": True},
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "lossless": True},
}


@pytest.mark.slow
def test_boxes_of_files_are_those_of_the_upright_image(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    files = [(kind, turn, tmp_path / f"{kind}{turn}.jpg") for kind in KINDS for turn in range(1, 9)]
    for kind, turn, path in files:
        # Upright, each is 60 high and 90 wide.
        size = (60, 90) if turn > 4 else (90, 60)
        photo(*size, seed=turn).save(path, exif=exif(turn), **KINDS[kind])
    source, _ = open_paths([path for *_, path in files], [0] * 32, (24, 24, 3), skip=False)
    sizes = source.sizes(np.arange(32)).numpy()
    np.testing.assert_array_equal(sizes[:24], [[60, 90]] * 24)
    read = tf.function(source.fetch)
    numbers = np.repeat(np.arange(24), len(BOXES))
    found = read(numbers, np.tile(BOXES, (24, 1))).numpy()
    for number, box, pixels in zip(numbers, np.tile(BOXES, (24, 1)), found, strict=True):
        kind, _, path = files[number]
        with Image.open(path) as image:
            expected = by_pillow(ImageOps.exif_transpose(image).convert("RGB"), box, 24)
        assert_close(pixels, expected, *((3, 0.3) if kind == "png" else (12, 1)))
    # A conversion is the middle of the image, 60x60, at twice the size of the images.
    np.testing.assert_array_equal(sizes[24:], [[48, 48]] * 8)
    found = read(np.arange(24, 32), np.tile(np.float32([0, 24, 48, 24]), (8, 1))).numpy()
    for (_, _, path), pixels in zip(files[24:], found, strict=True):
        with Image.open(path) as image:
            expected = by_pillow(ImageOps.exif_transpose(image).convert("RGB"), (0, 45, 60, 30), 24)
        assert_close(pixels, expected, 12, 1.5)


def test_little_more_than_the_box_of_a_jpeg_is_decoded(tmp_path, monkeypatch):
    path = str(tmp_path / "a.jpg")
    photo(640, 320).save(path)
    windows = []
    real = tf.io.decode_and_crop_jpeg

    def spy(contents, window, channels, *, ratio, **kwargs):
        windows.append((ratio, *window.numpy().tolist()))
        return real(contents, window, channels, ratio=ratio, **kwargs)

    monkeypatch.setattr("tensorflow.io.decode_and_crop_jpeg", spy)
    for box, expected in (
        # Scaled by 1/2, a filter of radius 2 reaches 4 pixels beyond, and one more.
        ((100, 200, 40, 40), (1, 95, 195, 50, 50)),
        ((0, 0, 40, 40), (1, 0, 0, 45, 45)),
        # At half the size: (20, 40, 40, 40), scaled by 1/2 again.
        ((40, 80, 80, 80), (2, 15, 35, 50, 50)),
        ((0, 0, 320, 640), (8, 0, 0, 40, 80)),
    ):
        arguments = tf.constant(path), tf.constant(1), tf.constant(1), (20, 20, 3)
        decode.decode(*arguments, tf.constant(box, tf.float32))
        assert windows.pop() == expected


def test_center_crop():
    image = photo(90, 60)
    source = ArraySource(np.array(image)[None], np.zeros(1, int))
    square = Resized(source, (21, 21))
    cropped = center_cropped(square, 0.875)
    assert isinstance(cropped, CenterCropped)
    assert center_cropped(square, 1.0) is square
    # The middle 52.5 pixels of 60, of either axis.
    expected = by_pillow(image, (3.75, 18.75, 52.5, 52.5), 21)
    assert_close(fetch(cropped, [0])[0], expected, 2, 0.3)
    assert cropped.fingerprint() == source.fingerprint()
    box = np.array([[0, 0, 60, 90]], np.float32)
    np.testing.assert_array_equal(cropped.fetch([0], box), square.fetch([0], box))
    # Images that are not square keep their shape: half of 60x90 is 30x45.
    half = by_pillow_of_shape(image, (15, 22.5, 30, 45), (90, 60))
    assert_close(fetch(center_cropped(source, 0.5), [0])[0], half, 2, 0.3)


def by_pillow_of_shape(image, box, size):
    top, left, height, width = box
    part = (left, top, left + width, top + height)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=part))


def test_the_pipeline_reads_the_boxes_that_are_drawn():
    images = np.stack([np.array(noise(12, 12, seed=i)) for i in range(10)])
    source = ArraySource(images, np.arange(10))
    crop = RandomResizedCrop()
    pipeline = TrainPipeline(
        source, global_batch_size=4, seed=5, augmentations=[crop], mean=(0.0,) * 3,
        std=(1 / 255,) * 3, num_classes=10,
    )  # fmt: skip
    (element,) = pipeline.batches(7, 8)
    found, labels = pipeline.prepare(*element)
    numbers = pipeline.numbers(7)
    np.testing.assert_array_equal(labels, numbers)
    seed = tf.random.experimental.stateless_fold_in(
        tf.constant([5, 0], tf.int64), tf.constant(7, tf.int64)
    )
    stream = Draws(seed, tf.range(4, dtype=tf.int64), 4).stream("random_resized_crop")
    expected = source.fetch(numbers, crop.boxes(source.sizes(numbers), stream))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.any(found != images[numbers])


def test_files_to_predict_are_cut_like_those_of_a_dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    paths = [tmp_path / name for name in ("a.jpg", "b.png", "c.webp")]
    for turn, path in enumerate(paths, start=6):
        photo(120, 90, seed=turn).save(path, exif=exif(turn))
    source, _ = open_paths(paths, [0] * 3, (24, 24, 3), skip=False)
    reader = ImageReader((24, 24, 3), eval_crop=0.75)
    for path, expected in zip(paths, fetch(center_cropped(source, 0.75), range(3)), strict=True):
        np.testing.assert_array_equal(reader.read(str(path)), expected)
