import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from data.augment import Augmentation
from data.pipeline import Share, data_error, eval_batches, example_numbers, train_batches
from data.source import ArraySource, DataError

ALL = Augmentation(crop_padding=2, flip=True, cutout=3, mixup=0.4, cutmix=1.0)


def source(size=23, image_size=8):
    """Images that differ, each with its own number in every pixel of channel 0."""
    images = np.random.default_rng(0).integers(0, 256, (size, image_size, image_size, 3))
    images[..., 0] = np.arange(size)[:, None, None]
    return ArraySource(images.astype(np.uint8), np.arange(size) % 5)


def batches(start=0, stop=6, batch_size=8, augmentation=ALL, **kwargs):
    dataset = train_batches(
        kwargs.pop("source", None) or source(),
        **{
            "global_batch_size": batch_size,
            "seed": 3,
            "start_step": start,
            "stop_step": stop,
            "augmentation": augmentation,
            "mean": (0.0, 0.0, 0.0),
            "std": (1 / 255,) * 3,
            "num_classes": 5,
            **kwargs,
        },
    )
    return [tuple(x.numpy() for x in batch) for batch in dataset]


def numbers(step, size, batch_size, seed):
    rows = tf.range(batch_size, dtype=tf.int64)
    return example_numbers(
        tf.constant(step, tf.int64), rows, size=size, global_batch_size=batch_size, seed=seed
    ).numpy()


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 60), batch_size=st.integers(1, 30), seed=st.integers(0, 2**31))
def test_every_epoch_is_a_permutation(size, batch_size, seed):
    steps = -(-3 * size // batch_size)
    order = np.concatenate([numbers(s, size, batch_size, seed) for s in range(steps)])
    for epoch in range(3):
        part = order[epoch * size : (epoch + 1) * size]
        np.testing.assert_array_equal(np.sort(part), np.arange(size))


def test_orders_of_epochs_and_seeds_are_unrelated():
    size = 45_000
    epochs = [numbers(e, size, size, seed) for seed in (0, 1) for e in range(3)]
    for i, a in enumerate(epochs):
        for b in [np.arange(size), *epochs[:i]]:
            # The deviation of the correlation of two random orders is 1 / sqrt(size).
            assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(size)
            assert np.sum(a == b) < 10


def test_a_batch_is_a_function_of_seed_and_step():
    assert_equal(batches(), batches())
    assert_equal(batches()[4:], batches(start=4))


def test_another_seed_is_another_batch():
    assert np.any(batches(stop=1)[0][0] != batches(stop=1, seed=4)[0][0])


def test_replicas_get_consecutive_slices_of_the_same_batch():
    whole, slices = batches(), batches(share=Share(replicas=2, here=2))
    pairs = zip(slices[::2], slices[1::2], strict=True)
    joined = [tuple(np.concatenate(p) for p in zip(a, b, strict=True)) for a, b in pairs]
    assert_equal(whole, joined)


@settings(max_examples=200, deadline=None)
@given(
    parts=st.integers(1, 4), workers=st.integers(1, 5), here=st.integers(1, 4), n=st.integers(1, 6)
)
def test_shares_are_disjoint_and_together_whole(parts, workers, here, n):
    replicas = workers * here
    size = parts * replicas * n
    shares = [Share(replicas, here * w, here, parts).rows(size) for w in range(workers)]
    assert all(rows.shape == (here, parts * n) for rows in shares)
    rows = np.concatenate(shares)
    np.testing.assert_array_equal(np.sort(rows.reshape(-1)), np.arange(size))
    # The k-th parts of all replicas together are the k-th part of the batch.
    for part in range(parts):
        of_part = rows[:, part * n : (part + 1) * n].reshape(-1)
        np.testing.assert_array_equal(of_part, np.arange(size).reshape(parts, -1)[part])


@settings(max_examples=8, deadline=None)
@given(
    workers=st.sampled_from([1, 2, 3]),
    here=st.sampled_from([1, 2]),
    parts=st.sampled_from([1, 2]),
    start=st.integers(0, 9),
    size=st.integers(1, 60),
    seed=st.integers(0, 2**32 - 1),
)
def test_workers_together_have_the_batches_of_one(workers, here, parts, start, size, seed):
    """From any step on, bit for bit, with every draw; and each reads only its own examples."""
    data, batch_size = source(size), 48
    whole = batches(start, start + 2, batch_size, source=data, seed=seed)
    for worker in range(workers):
        share = Share(workers * here, here * worker, here, parts)
        counted = Counting(data)
        found = batches(start, start + 2, batch_size, source=counted, seed=seed, share=share)
        expected = [
            tuple(x[rows] for x in batch) for batch in whole for rows in share.rows(batch_size)
        ]
        assert_equal(found, expected)
        assert counted.fetched == 2 * batch_size // workers


class Counting(ArraySource):
    """Counts what is read of it."""

    def __init__(self, data):
        super().__init__(data.images, data.labels)
        self.fetched = 0

    def fetch(self, indices):
        self.fetched += len(indices)
        return super().fetch(indices)


@settings(max_examples=10, deadline=None)
@given(
    start=st.integers(0, 40),
    size=st.integers(1, 50),
    batch_size=st.integers(1, 12).map(lambda n: 2 * n),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_start_at_any_step_is_the_same_as_skipping_to_it(start, size, batch_size, seed):
    kwargs = {"source": source(size), "seed": seed}
    skipped = batches(0, start + 2, batch_size, **kwargs)[start:]
    assert_equal(batches(start, start + 2, batch_size, **kwargs), skipped)


def test_a_batch_must_divide():
    with pytest.raises(DataError, match="batch_size=10 does not divide by 4"):
        batches(batch_size=10, share=Share(replicas=2, parts=2))


def test_pairs_stay_together_on_a_worker():
    with pytest.raises(DataError, match="use a larger --batch_size"):
        batches(batch_size=6, share=Share(replicas=2))


def test_a_draw_for_each_image_and_each_step():
    same = ArraySource(np.repeat(source().images[:1], 23, axis=0), np.zeros(23))
    first, second = batches(stop=2, source=same, augmentation=Augmentation(crop_padding=2))
    assert len(np.unique(first[0], axis=0)) > 4
    assert np.any(first[0] != second[0])


@pytest.mark.parametrize("extra", [{"cutout": 3}, {"flip": True}])
def test_one_augmentation_leaves_the_draws_of_the_others(extra):
    less = batches(stop=1, augmentation=Augmentation(crop_padding=2))[0][0]
    more = batches(stop=1, augmentation=Augmentation(crop_padding=2, **extra))[0][0]
    for a, b in zip(less, more, strict=True):
        kept = np.any(b != 0, axis=-1)
        assert np.array_equal(a[kept], b[kept]) or np.array_equal(a[:, ::-1], b)


def test_labels_belong_to_their_images():
    data = source()
    for images, labels in batches(augmentation=Augmentation(flip=True), source=data):
        which = images[:, 0, 0, 0].round().astype(int)
        np.testing.assert_array_equal(labels, data.labels[which])


def test_images_are_normalized_per_channel():
    (images, _), *_ = batches(augmentation=Augmentation(), mean=(0.1, 0.2, 0.3), std=(0.5, 1, 2))
    which = images[:, 0, 0, 0] * 0.5 + 0.1
    raw = source().images[(which * 255).round().astype(int)] / 255
    np.testing.assert_allclose(images, (raw - [0.1, 0.2, 0.3]) / [0.5, 1, 2], atol=1e-5)


def test_mixed_labels_are_shares_that_sum_to_one():
    for mixing in ({"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}):
        for images, labels in batches(augmentation=Augmentation(**mixing), batch_size=64):
            assert labels.shape == (64, 5)
            np.testing.assert_allclose(labels.sum(1), np.ones(64), rtol=1e-5)
            assert np.all(np.isfinite(images))
            assert np.any((labels > 0.01) & (labels < 0.99))


def test_mixing_needs_an_even_batch():
    with pytest.raises(DataError, match="batch_size=7 is odd"):
        batches(batch_size=7)


def test_crop_must_fit_the_image():
    with pytest.raises(DataError, match=r"crop_padding=8 must be smaller.*8x8"):
        batches(augmentation=Augmentation(crop_padding=8))


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("size", [1, 7, 8, 9, 23])
def test_evaluation_sees_each_example_once(size, replicas):
    dataset = eval_batches(
        source(size),
        global_batch_size=8,
        mean=(0.0,) * 3,
        std=(1 / 255,) * 3,
        share=Share(replicas=replicas, here=replicas),
    )
    seen = []
    for images, labels, mask in dataset:
        assert images.shape == (8 // replicas, 8, 8, 3)
        which = images[:, 0, 0, 0].numpy().round().astype(int)
        np.testing.assert_array_equal(labels, which % 5)
        seen += list(which[mask.numpy() == 1])
    assert seen == list(range(size))


def test_an_error_of_the_source_is_found_again():
    class Broken(ArraySource):
        def fetch(self, indices):
            raise DataError("a.jpg cannot be decoded; replace or remove it")

    data = source()
    with pytest.raises(tf.errors.OpError) as caught:
        batches(source=Broken(data.images, data.labels))
    assert str(data_error(caught.value)) == "a.jpg cannot be decoded; replace or remove it"
    assert data_error(tf.errors.InternalError(None, None, "something else")) is None
