import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from data import augment
from data.augment import (
    AUGMENTATIONS,
    Crop,
    CutMix,
    Cutout,
    Flip,
    Mixup,
    OneOf,
    format_augment,
    parse_augment,
)
from data.augmentation import Augmentation, Draws, number
from tests.data.helpers import refused


def numbered(batch, height, width):
    """Images whose pixels are their positions."""
    image = np.arange(height * width, dtype=np.float32).reshape(1, height, width, 1)
    return tf.constant(np.repeat(image, batch, axis=0))


def test_crop_without_a_shift_changes_nothing():
    images = numbered(2, 5, 7)
    middle = tf.fill((2, 2), 0.5)
    np.testing.assert_array_equal(augment.crop(images, middle, padding=2), images)


def test_crop_shifts_each_image_by_its_own_draw():
    images = numbered(2, 4, 4)
    # Of the shifts -1, 0, 1: down and left for the first image, none for the second.
    draws = tf.constant([[0.99, 0.0], [0.5, 0.5]])
    moved = augment.crop(images, draws, padding=1)[..., 0]
    # The rows 1, 2, 3, and row 4, which is the reflection of row 2; columns -1 (as 1), 0, 1, 2.
    expected = images[0, :, :, 0].numpy()[[1, 2, 3, 2]][:, [1, 0, 1, 2]]
    np.testing.assert_array_equal(moved[0], expected)
    np.testing.assert_array_equal(moved[1], images[1, :, :, 0])


def test_crop_equals_padding_and_cutting():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (50, 6, 9, 3)).astype(np.uint8)
    draws = generator.uniform(size=(50, 2)).astype(np.float32)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    rows, columns = (draws * 5).astype(int).T
    expected = [p[r : r + 6, c : c + 9] for p, r, c in zip(padded, rows, columns, strict=True)]
    np.testing.assert_array_equal(augment.crop(tf.constant(images), draws, padding=2), expected)


def test_flip_mirrors_below_a_half():
    images = numbered(2, 3, 4)
    flipped = augment.flip(images, tf.constant([0.49, 0.5]))
    np.testing.assert_array_equal(flipped[0], images[0, :, ::-1])
    np.testing.assert_array_equal(flipped[1], images[1])


def test_cutout_sets_a_square_cut_at_the_border():
    images = tf.ones((2, 8, 8, 3))
    draws = tf.constant([[0.5, 0.5], [0.0, 0.99]])
    cut = augment.cutout(images, draws, side=4)[..., 0].numpy()
    expected = np.ones((2, 8, 8))
    expected[0, 2:6, 2:6] = 0
    expected[1, 0:2, 5:8] = 0
    np.testing.assert_array_equal(cut, expected)


def test_neighbours_are_partners():
    np.testing.assert_array_equal(augment.swap_neighbours(tf.range(6)), [1, 0, 3, 2, 5, 4])


def test_mixup_blends_images_and_labels_alike():
    images = tf.constant([0.0, 1.0, 10.0, 20.0])[:, None, None, None] * tf.ones((4, 2, 2, 1))
    labels = tf.one_hot([0, 1, 2, 2], 3)
    mixed, soft = augment.mixup(images, labels, tf.constant([0.75, 1.0, 0.5, 0.0]))
    np.testing.assert_allclose(mixed[:, 0, 0, 0], [0.25, 1.0, 15.0, 10.0])
    np.testing.assert_allclose(soft, [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]])


def test_cutmix_weighs_labels_by_the_area_that_was_pasted():
    images = tf.constant([0.0, 1.0])[:, None, None, None] * tf.ones((2, 8, 8, 1))
    labels = tf.one_hot([0, 1], 2)
    # A quarter of the area, in the middle, and cut to a quarter of that in a corner.
    draws = tf.constant([[0.5, 0.5], [0.0, 0.0]])
    mixed, soft = augment.cutmix(images, labels, draws, tf.constant([0.75, 0.75]))
    assert tf.reduce_mean(mixed[0]).numpy() == 0.25
    np.testing.assert_allclose(soft[0], [0.75, 0.25])
    assert tf.reduce_mean(mixed[1]).numpy() == 1 - 4 / 64
    np.testing.assert_allclose(soft[1], [4 / 64, 1 - 4 / 64])


# The objects.


def draws(rows=8):
    return Draws(tf.constant([3, 4], tf.int64), tf.range(rows, dtype=tf.int64), rows)


def batch(rows=8, classes=3):
    images = tf.random.stateless_normal((rows, 6, 6, 2), (0, 0))
    return images, tf.one_hot(tf.range(rows) % classes, classes)


def test_objects_call_the_functions_with_their_draws():
    images, labels = batch()
    pairs, single = draws().uniform(2), draws().uniform()
    for augmentation, expected in (
        (Crop(2), augment.crop(images, pairs, 2)),
        (Flip(), augment.flip(images, single)),
        (Cutout(3), augment.cutout(images, pairs, 3)),
    ):
        found, unchanged = augmentation(images, labels, draws())
        np.testing.assert_array_equal(found, expected)
        assert unchanged is labels
    weights, boxes = draws().beta(0.4), draws().uniform(2, name="box")
    for augmentation, expected in (
        (Mixup(0.4), augment.mixup(images, labels, weights)),
        (CutMix(0.4), augment.cutmix(images, labels, boxes, weights)),
    ):
        for x, y in zip(augmentation(images, labels, draws()), expected, strict=True):
            np.testing.assert_array_equal(x, y)


def test_one_of_gives_each_example_one_of_the_options():
    images, labels = batch(rows=64)
    options = (Mixup(0.4), CutMix(1.0), Flip())
    mixed, soft = OneOf(options)(images, labels, draws(64))
    results = [
        option(images, labels, draws(64).stream(name))
        for option, name in zip(options, ("mixup", "cutmix", "flip"), strict=True)
    ]
    choices = []
    for i in range(64):
        matches = [
            np.array_equal(mixed[i], x[i]) and np.array_equal(soft[i], y[i]) for x, y in results
        ]
        assert any(matches)
        choices.append(matches.index(True))
    assert np.all(np.bincount(choices, minlength=3) > 10)


def test_one_of_needs_what_its_options_need():
    for options, normalized, soft, pairs in (
        ((Crop(1), Flip()), False, False, False),
        ((Crop(1), Cutout(1)), True, False, False),
        ((Flip(), Mixup(1.0)), True, True, True),
    ):
        found = OneOf(options)
        assert (found.normalized, found.soft_labels, found.pairs) == (normalized, soft, pairs)
    with pytest.raises(ValueError, match="padding of crop must be smaller"):
        OneOf((Flip(), Crop(8))).check((8, 9, 3))


# The texts.

TEXTS = {
    "none": (),
    "crop:4,flip": (Crop(4), Flip()),
    "flip,crop:0,flip": (Flip(), Crop(0), Flip()),
    "cutout:8,mixup:0.2": (Cutout(8), Mixup(0.2)),
    "crop:4,mixup:0.2|cutmix:1": (Crop(4), OneOf((Mixup(0.2), CutMix(1.0)))),
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts(text):
    assert parse_augment(text) == TEXTS[text]
    assert format_augment(TEXTS[text]) == text


def test_equal_chains_have_one_text():
    for text in ("crop:04, flip ,cutmix:1.0", " crop:4,flip,cutmix:1e0"):
        assert format_augment(parse_augment(text)) == "crop:4,flip,cutmix:1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crop:x", "--augment=crop:x: padding of crop must be an integer from 0 to 4096"),
        ("flip,crop:4.5", "--augment=crop:4.5: padding of crop must be an integer from 0 to 4096"),
        ("crop:-1", "--augment=crop:-1: padding of crop must be an integer from 0 to 4096, not -1"),
        ("mixup:0", "--augment=mixup:0: alpha of mixup must be a number from 0.001 to 1000, not 0"),
        ("mixup:nan", "--augment=mixup:nan: alpha of mixup must be a number from 0.001 to 1000"),
        ("flip|cutmix:inf", "--augment=cutmix:inf: alpha of cutmix must be a number from 0.001"),
        ("crop", "--augment=crop: write crop:PADDING"),
        ("crop:1:2", "--augment=crop:1:2: write crop:PADDING"),
        ("flip:1", "--augment=flip:1: write flip"),
        ("blur", "--augment=blur: no augmentation is called 'blur'; use crop, flip, cutout, mixup, "
         "cutmix, none"),
        ("", "--augment=: a name is missing; write none"),
        ("flip,none", "--augment=flip,none: none must stand alone"),
    ],
)  # fmt: skip
def test_texts_that_are_wrong(text, message):
    assert refused("--augment", parse_augment, text).startswith(message)


@dataclasses.dataclass(frozen=True)
class Brighten(Augmentation):
    """An example with two values, of which one has a default and one has no bounds."""

    low: float
    high: float = number(0.0, 2.0, default=1.5)

    def __call__(self, images, labels, draws):
        return images * (self.low + (self.high - self.low) * draws.uniform()), labels


def test_a_line_in_the_table_is_enough(monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "brighten", Brighten)
    assert parse_augment("brighten:0.5") == (Brighten(0.5, 1.5),)
    assert format_augment((Brighten(-0.5), Flip())) == "brighten:-0.5:1.5,flip"
    assert (
        refused("LOW:HIGH", parse_augment, "brighten")
        == "--augment=brighten: write brighten:LOW:HIGH"
    )
    refused("high of brighten must be a number from 0 to 2", parse_augment, "brighten:1:3")
    refused("low of brighten must be a number", parse_augment, "brighten:x")
