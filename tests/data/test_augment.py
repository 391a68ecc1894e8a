import numpy as np
import tensorflow as tf

from data import augment


def numbered(batch, height, width):
    """Images whose pixels say where they are."""
    image = np.arange(height * width, dtype=np.float32).reshape(1, height, width, 1)
    return tf.constant(np.repeat(image, batch, axis=0))


def test_crop_without_a_move_changes_nothing():
    images = numbered(2, 5, 7)
    middle = tf.fill((2, 2), 0.5)
    np.testing.assert_array_equal(augment.crop(images, middle, padding=2), images)


def test_crop_moves_each_image_by_its_own_draw():
    images = numbered(2, 4, 4)
    # Of the moves -1, 0, 1: down and left for the first image, none for the second.
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


def test_cutout_blanks_a_square_cut_at_the_border():
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
