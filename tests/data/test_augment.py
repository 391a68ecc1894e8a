import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from data import erasing, geometry, mixing
from data.augment import (
    AUGMENTATIONS,
    ColorJitter,
    Crop,
    Cutmix,
    Cutout,
    Flip,
    Mixup,
    OneOf,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    TrivialAugment,
    format_augment,
    joined,
    parse_augment,
    stream_name,
)
from data.augmentation import Augmentation, Draws, number
from tests.data.helpers import pixels, refused

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
        (Crop(2), geometry.rearranged(images, *geometry.crop_places((6, 6), pairs, 2))),
        (Flip(), geometry.rearranged(images, None, geometry.flip_columns(6, single))),
        (Cutout(3), erasing.cutout(images, pairs, 3)),
    ):
        found, unchanged = augmentation(images, labels, draws())
        np.testing.assert_array_equal(found, expected)
        assert unchanged is labels
    weights, boxes = draws().beta(0.4), draws().uniform(2, name="box")
    for augmentation, expected in (
        (Mixup(0.4), mixing.mixup(images, labels, weights)),
        (Cutmix(0.4), mixing.cutmix(images, labels, boxes, weights)),
    ):
        for x, y in zip(augmentation(images, labels, draws()), expected, strict=True):
            np.testing.assert_array_equal(x, y)


def test_one_of_gives_each_example_one_of_the_options():
    images, labels = batch(rows=64)
    options = (Mixup(0.4), Cutmix(1.0), Flip())
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


# Neighbours that rearrange images.

ROWS, COLUMNS = 7, 5


def plainly(images, augmentation, stream):
    """Crop or flip, as it is described: padding and cutting, and mirroring."""
    images = images.numpy()
    if isinstance(augmentation, Flip):
        flipped = stream.uniform().numpy() < 0.5
        return tf.constant(np.where(flipped[:, None, None, None], images[:, :, ::-1], images))
    p = augmentation.padding
    padded = np.pad(images, ((0, 0), (p, p), (p, p), (0, 0)), mode="reflect")
    starts = np.floor(stream.uniform(2).numpy() * (2 * p + 1)).astype(int)
    cut = [x[r : r + ROWS, c : c + COLUMNS] for x, (r, c) in zip(padded, starts, strict=True)]
    return tf.constant(np.stack(cut))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("text", "passes", "channels", "dtype"),
    [
        ("crop:2,flip,crop:3", 1, 3, tf.uint8),
        ("flip", 1, 1, tf.uint8),
        ("crop:4", 1, 4, tf.float32),
        ("flip,crop:1,flip|crop:2,crop:1,cutout:0,flip", 5, 3, tf.float32),
    ],
)
def test_neighbours_are_done_in_one_pass_with_the_same_result(
    text, passes, channels, dtype, compiled
):
    chain = parse_augment(text)
    images = tf.constant(pixels(16, ROWS, COLUMNS, channels))
    images = expected = tf.cast(images, dtype)
    together, one_by_one, labels = draws(16), draws(16), tf.zeros(16, tf.int32)
    found = joined(chain, compiled=compiled)
    assert len(found) == passes
    for augmentation in found:
        images, _ = augmentation(images, labels, together.stream(stream_name(augmentation)))
    for augmentation in chain:
        stream = one_by_one.stream(stream_name(augmentation))
        if isinstance(augmentation, (Crop, Flip)):
            expected = plainly(expected, augmentation, stream)
        else:
            expected, _ = augmentation(expected, labels, stream)
    assert images.dtype == dtype
    np.testing.assert_array_equal(images, expected)


def test_only_what_is_marked_is_joined():
    chain = (Flip(), Cutout(1), Crop(1), Flip(), OneOf((Flip(), Crop(1))))
    first, second, third, fourth = joined(chain, compiled=True)
    assert (first.parts, second, third.parts, fourth) == (chain[:1], chain[1], chain[2:4], chain[4])


# The texts.

TEXTS = {
    "none": (),
    "crop:4,flip": (Crop(4), Flip()),
    "flip,crop:0,flip": (Flip(), Crop(0), Flip()),
    "cutout:8,mixup:0.2": (Cutout(8), Mixup(0.2)),
    "crop:4,mixup:0.2|cutmix:1": (Crop(4), OneOf((Mixup(0.2), Cutmix(1.0)))),
    "random_resized_crop:0.3:1:1.5,trivial_augment|rand_augment:1:5": (
        RandomResizedCrop(0.3, 1.0, 1.5),
        OneOf((TrivialAugment(), RandAugment(1, 5.0))),
    ),
    "random_erasing:0.25:0.1:0.2:3": (RandomErasing(0.25, 0.1, 0.2, 3.0),),
    "color_jitter:0.4:0.4:0.4:0.1": (ColorJitter(),),
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
        ("blur", "--augment=blur: no augmentation is called 'blur'; use random_resized_crop, crop, "
         "flip, alternating_flip, color_jitter, "),
        ("", "--augment=: a name is missing; write none"),
        ("color_jitter:x", "--augment=color_jitter:x: brightness of color_jitter must be a number"),
        ("cutout:1,rand_augment", "--augment=cutout:1,rand_augment: rand_augment must come before "
         "cutout"),
        ("flip,color_jitter|mixup:1", "--augment=flip,color_jitter|mixup:1: color_jitter must come "
         "before mixup"),
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
