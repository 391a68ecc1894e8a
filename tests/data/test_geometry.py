import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data import geometry


def numbered(batch, height, width):
    """Images whose pixels are their positions."""
    image = np.arange(height * width, dtype=np.float32).reshape(1, height, width, 1)
    return tf.constant(np.repeat(image, batch, axis=0))


def crop(images, draws, padding):
    return geometry.rearranged(
        images, *geometry.crop_places(images.shape[1:3], tf.constant(draws), padding)
    )


def test_crop_without_a_shift_changes_nothing():
    images = numbered(2, 5, 7)
    middle = tf.fill((2, 2), 0.5)
    np.testing.assert_array_equal(crop(images, middle, padding=2), images)


def test_crop_shifts_each_image_by_its_own_draw():
    images = numbered(2, 4, 4)
    # Of the shifts -1, 0, 1: down and left for the first image, none for the second.
    draws = tf.constant([[0.99, 0.0], [0.5, 0.5]])
    moved = crop(images, draws, padding=1)[..., 0]
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
    np.testing.assert_array_equal(crop(images, draws, padding=2), expected)


def test_flip_mirrors_below_a_half():
    images = numbered(2, 3, 4)
    columns = geometry.flip_columns(4, tf.constant([0.49, 0.5]))
    flipped = geometry.rearranged(images, None, columns)
    np.testing.assert_array_equal(flipped[0], images[0, :, ::-1])
    np.testing.assert_array_equal(flipped[1], images[1])


def photo(seed=0, height=20, width=30):
    """uint8 [height, width, 3], blocks of different colors."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 5, 3))
    return np.kron(blocks, np.ones((4, 5, 1))).astype(np.uint8)


@pytest.mark.parametrize(
    ("parameters", "coefficients"),
    [
        ({"shear": (0.3, 0)}, (1, 0.3, 0, 0, 1, 0)),
        ({"shear": (0, -0.99)}, (1, 0, 0, -0.99, 1, 0)),
        ({"shift": (4, 0)}, (1, 0, 4, 0, 1, 0)),
        ({"shift": (0, -7)}, (1, 0, 0, 0, 1, -7)),
        ({"radians": 0.7}, None),
    ],
)
def test_affine_transformations_are_those_of_pillow(parameters, coefficients):
    image = Image.fromarray(photo())
    if coefficients:
        expected = image.transform(image.size, Image.Transform.AFFINE, coefficients)
    else:
        expected = image.rotate(-np.degrees(parameters["radians"]))
    given = {"shear": (0, 0), "shift": (0, 0), "radians": 0} | parameters
    found = geometry.affine(
        tf.constant(np.array(image)[None]),
        **{name: tf.constant([value], tf.float32) for name, value in given.items()},
    )
    # Where a pixel is half way between two, rounding decides.
    assert np.mean(np.any(found[0] != np.array(expected), axis=-1)) < 0.01
    assert np.any(found[0] != np.array(image))


def test_affine_transformations_are_of_each_image_alone():
    images = tf.constant(np.stack([photo(0), photo(1)]))
    found = geometry.affine(
        images, shear=tf.zeros((2, 2)), shift=tf.constant([[0.0, 0], [5, 0]]), radians=tf.zeros(2)
    )
    np.testing.assert_array_equal(found[0], images[0])
    np.testing.assert_array_equal(found[1, :, :25], images[1, :, 5:])
    assert np.all(found[1, :, 25:] == 0)
