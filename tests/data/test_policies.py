import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from data import policies
from data.augment import RandAugment, TrivialAugment
from data.augmentation import Draws
from data.policies import AUTO_AUGMENT, OPERATIONS, WIDE
from tests.data.helpers import photo

COUNT = len(OPERATIONS)
IMAGES = np.stack([np.array(photo(30, 20, seed=i)) for i in range(COUNT)])


def by_pillow(name, image, strength, sign, ranges):
    """An operation at a strength, with the values of the papers."""
    height, width = image.shape[:2]
    image, signed = Image.fromarray(image), sign * strength
    wide = ranges is WIDE
    shear, factor = (0.99, 0.99) if wide else (0.3, 0.9)
    across, down = (32, 32) if wide else (150 / 331 * width, 150 / 331 * height)

    def affine(*coefficients):
        return image.transform(image.size, Image.Transform.AFFINE, coefficients)

    kinds = {"brightness": "Brightness", "contrast": "Contrast", "color": "Color",
             "sharpness": "Sharpness"}  # fmt: skip
    if name in kinds:
        return getattr(ImageEnhance, kinds[name])(image).enhance(1 + factor * signed)
    return {
        "identity": lambda: image,
        "shear_x": lambda: affine(1, shear * signed, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, shear * signed, 1, 0),
        "translate_x": lambda: affine(1, 0, round(across * signed), 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, round(down * signed)),
        "rotate": lambda: image.rotate(-(135 if wide else 30) * signed),
        "posterize": lambda: ImageOps.posterize(image, 8 - round((6 if wide else 4) * strength)),
        "solarize": lambda: ImageOps.solarize(image, 256 * (1 - strength)),
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
    }[name]()


@pytest.mark.parametrize("ranges", [WIDE, AUTO_AUGMENT], ids=["wide", "auto_augment"])
@pytest.mark.parametrize(("strength", "sign"), [(0.3, 1), (0.7, -1), (1, 1)])
def test_operations_are_those_of_pillow(ranges, strength, sign):
    found = policies.apply(
        tf.constant(IMAGES),
        tf.range(COUNT, dtype=tf.float32),
        tf.fill([COUNT], float(strength)),
        tf.fill([COUNT], float(sign)),
        ranges,
    ).numpy()
    for i, name in enumerate(OPERATIONS):
        expected = np.array(by_pillow(name, IMAGES[i], strength, sign, ranges))
        difference = np.abs(found[i].astype(int) - expected)
        if name in ("shear_x", "shear_y", "rotate"):  # Where a pixel is half way, rounding decides.
            assert np.mean(difference.max(axis=-1) > 0) < 0.05, name
        else:
            assert difference.max() <= 1, name
            assert np.mean(difference > 0) < (1 if name == "autocontrast" else 0.02), name


def test_gray_images():
    images = IMAGES[..., :1] // 2 + 20
    everything = tf.range(COUNT, dtype=tf.float32)
    strengths = tf.fill([COUNT], 0.5)
    found = policies.apply(tf.constant(images), everything, strengths, -tf.ones(COUNT), WIDE)
    changed = [not np.array_equal(x, y) for x, y in zip(found, images, strict=True)]
    assert [name for name, x in zip(OPERATIONS, changed, strict=True) if not x] == [
        "identity", "color",
    ]  # fmt: skip


class Spy:
    """Takes the place of `policies.apply`, and remembers what it is called with."""

    def __init__(self, monkeypatch):
        self.calls = []
        monkeypatch.setattr(policies, "apply", self)

    def __call__(self, images, operations, strengths, signs, ranges):
        self.calls.append([x.numpy() for x in (operations, strengths, signs)])
        self.ranges = ranges
        return images + 1


def draws(rows):
    return Draws(tf.constant([3, 4], tf.int64), tf.range(rows, dtype=tf.int64), rows)


def test_trivial_augment_draws_each_operation_and_strength_equally_often(monkeypatch):
    spy = Spy(monkeypatch)
    TrivialAugment()(tf.zeros((6200, 1, 1, 1)), None, draws(6200))
    ((operations, strengths, signs),) = spy.calls
    assert spy.ranges is WIDE
    counts = np.bincount(operations.astype(int))
    assert len(counts) == COUNT
    assert np.all(np.abs(counts - 6200 / COUNT) < 5 * np.sqrt(6200 / COUNT))
    levels, counts = np.unique(strengths, return_counts=True)
    np.testing.assert_allclose(levels, np.arange(31) / 30, rtol=1e-6)
    assert np.all(np.abs(counts - 200) < 5 * np.sqrt(200))
    assert np.mean(signs) == pytest.approx(0, abs=5 / np.sqrt(6200))
    assert set(signs) == {-1, 1}


def test_rand_augment_applies_some_operations_in_turn(monkeypatch):
    spy = Spy(monkeypatch)
    found, _ = RandAugment(3, 4.0)(tf.zeros((1400, 1, 1, 1)), None, draws(1400))
    assert np.all(found == 3)
    assert spy.ranges is AUTO_AUGMENT
    operations, strengths, signs = map(np.stack, zip(*spy.calls, strict=True))
    assert np.all(strengths == np.float32(0.4))
    for some in operations:
        assert np.all(np.abs(np.bincount(some.astype(int)) - 100) < 50)
    for some in (operations, signs):
        assert np.abs(np.corrcoef(some) - np.eye(3)).max() < 5 / np.sqrt(1400)
