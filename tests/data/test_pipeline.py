import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from data.augment import AUGMENTATIONS, parse_augment
from data.augmentation import Augmentation
from data.order import balanced_numbers, example_numbers
from data.pipeline import EvalPipeline, InputShard, TrainPipeline
from data.source import ArraySource
from tests.data.helpers import refused

ALL = "crop:2,flip,cutout:3,mixup:0.4|cutmix:1"


def source(size=23, image_size=8):
    """Images that differ, each with its own number in every pixel of channel 0."""
    images = np.random.default_rng(0).integers(0, 256, (size, image_size, image_size, 3))
    images[..., 0] = np.arange(size)[:, None, None]
    return ArraySource(images.astype(np.uint8), np.arange(size) % 5)


def pipeline(batch_size=8, augment=ALL, **kwargs):
    return TrainPipeline(
        kwargs.pop("source", None) or source(),
        **{
            "global_batch_size": batch_size,
            "seed": 3,
            "augmentations": parse_augment(augment),
            "mean": (0.0, 0.0, 0.0),
            "std": (1 / 255,) * 3,
            "num_classes": 5,
            **kwargs,
        },
    )


def batches(start=0, stop=6, batch_size=8, augment=ALL, **kwargs):
    dataset = pipeline(batch_size, augment, **kwargs).batches(start, stop)
    return [tuple(x.numpy() for x in batch) for batch in dataset]


def numbers(step, size, batch_size, seed):
    rows = tf.range(batch_size, dtype=tf.int64)
    return example_numbers(
        tf.constant(step, tf.int64), rows, size=size, global_batch_size=batch_size, seed=seed
    )[0].numpy()


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


@pytest.mark.parametrize("balanced", [False, True])
def test_numbers_are_those_of_the_examples_in_a_batch(balanced):
    """Row by row, whatever rows are read here: each image has its number as its first channel."""
    ((images, _),) = batches(2, 3, augment="none", balanced=balanced)
    half = pipeline(augment="none", balanced=balanced, shard=InputShard(2, 1, 1))
    for one in (pipeline(augment="none", balanced=balanced), half):
        np.testing.assert_allclose(one.numbers(2), images[:, 0, 0, 0], atol=1e-3)


def test_orders_of_epochs_and_seeds_are_unrelated():
    size = 45_000
    epochs = [numbers(e, size, size, seed) for seed in (0, 1) for e in range(3)]
    for i, a in enumerate(epochs):
        for b in [np.arange(size), *epochs[:i]]:
            # The deviation of the correlation of two random orders is 1 / sqrt(size).
            assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(size)
            assert np.sum(a == b) < 10


def test_the_order_is_that_of_earlier_versions():
    assert numbers(0, 10, 10, seed=0).tolist() == [4, 9, 3, 6, 1, 5, 0, 8, 2, 7]
    assert numbers(3, 1000, 8, seed=7).tolist() == [351, 832, 283, 532, 310, 136, 210, 211]


def test_a_batch_is_a_function_of_seed_and_step():
    assert_equal(batches(), batches())
    assert_equal(batches()[4:], batches(start=4))


def test_another_seed_is_another_batch():
    first, other = batches(stop=1, augment="crop:2"), batches(stop=1, augment="crop:2", seed=4)
    assert np.any(first[0][0] != other[0][0])


def test_replicas_get_consecutive_slices_of_the_same_batch():
    whole, slices = batches(), batches(shard=InputShard(replicas=2, here=2))
    pairs = zip(slices[::2], slices[1::2], strict=True)
    joined = [tuple(np.concatenate(p) for p in zip(a, b, strict=True)) for a, b in pairs]
    assert_equal(whole, joined)


@settings(max_examples=200, deadline=None)
@given(
    microbatches=st.integers(1, 4),
    workers=st.integers(1, 5),
    here=st.integers(1, 4),
    n=st.integers(1, 6),
)
def test_shards_are_disjoint_and_together_whole(microbatches, workers, here, n):
    replicas = workers * here
    size = microbatches * replicas * n
    shards = [InputShard(replicas, here * w, here, microbatches).rows(size) for w in range(workers)]
    assert all(rows.shape == (here, microbatches * n) for rows in shards)
    rows = np.concatenate(shards)
    np.testing.assert_array_equal(np.sort(rows.reshape(-1)), np.arange(size))
    # The k-th microbatches of all replicas together are the k-th microbatch.
    for k in range(microbatches):
        found = rows[:, k * n : (k + 1) * n].reshape(-1)
        np.testing.assert_array_equal(found, np.arange(size).reshape(microbatches, -1)[k])


class Counting(ArraySource):
    """Records how many examples are fetched at a time."""

    def __init__(self, size):
        whole = source(size)
        super().__init__(whole.images.numpy(), whole.labels)
        self.fetched = set()

    def fetch(self, numbers):
        self.fetched.add(numbers.shape[0])
        return super().fetch(numbers)


@pytest.mark.parametrize(
    ("workers", "here", "microbatches"),
    [
        (2, 2, 2),
        *(
            pytest.param(*x, marks=pytest.mark.slow)
            for x in ((1, 2, 1), (1, 1, 2), (2, 1, 1), (3, 1, 2))
        ),
    ],
)
def test_workers_together_have_the_batches_of_one(workers, here, microbatches):
    """From any step on, bit for bit, with every draw; and each reads only its own examples."""
    batch_size = 48
    for start, size, seed in ((0, 23, 0), (7, 60, 2**32 - 1)):
        whole = batches(start, start + 2, batch_size, source=source(size), seed=seed)
        for worker in range(workers):
            shard = InputShard(workers * here, here * worker, here, microbatches)
            counted = Counting(size)
            found = batches(start, start + 2, batch_size, source=counted, seed=seed, shard=shard)
            expected = [
                tuple(x[rows] for x in batch) for batch in whole for rows in shard.rows(batch_size)
            ]
            assert_equal(found, expected)
            assert counted.fetched == {batch_size // workers // here}


@settings(max_examples=5, deadline=None)
@given(
    start=st.integers(0, 40),
    size=st.integers(1, 50),
    batch_size=st.integers(1, 12).map(lambda n: 2 * n),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_start_at_any_step_is_the_same_as_skipping_to_it(start, size, batch_size, seed):
    made = pipeline(batch_size, source=source(size), seed=seed)
    skipped = list(made.batches(0, start + 2).as_numpy_iterator())[start:]
    assert_equal(list(made.batches(start, start + 2).as_numpy_iterator()), skipped)


def test_batches_have_no_end():
    """Otherwise several workers ask each other at every step whether one has reached it.

    See `_enable_get_next_as_optional` in TensorFlow's `distribute/input_lib.py`.
    """
    shard = InputShard(replicas=2, here=2)
    normalization = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    splits = EvalPipeline(source(), global_batch_size=8, shard=shard, **normalization)
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    for dataset in (pipeline(shard=shard).batches(5), splits.batches()):
        distributed = strategy.distribute_datasets_from_function(lambda _, x=dataset: x)
        assert distributed.cardinality == tf.data.INFINITE_CARDINALITY


# What does not suit the data is refused when the pipeline is made.


def test_a_batch_must_divide():
    refused("batch_size=10 is not divisible by 4",
            pipeline, batch_size=10, shard=InputShard(replicas=2, microbatches=2))  # fmt: skip
    refused("batch_size=10 is not divisible by 4", EvalPipeline, source(), global_batch_size=10,
            mean=(), std=(), shard=InputShard(replicas=4))  # fmt: skip


def test_pairs_stay_together_on_a_replica():
    shard = InputShard(replicas=2, here=2, microbatches=3)
    message = refused("pairs", pipeline, batch_size=18, shard=shard)
    assert message == (
        "mixup and cutmix combine pairs of examples: with batch_size=18, a replica has 3 of a "
        "microbatch; use a multiple of 12"
    )
    pipeline(batch_size=18, shard=shard, augment="crop:2,flip,cutout:3")
    pipeline(batch_size=24, shard=shard)


def test_pairs_need_an_even_batch():
    refused("batch_size=7 is odd", pipeline, batch_size=7)
    pipeline(batch_size=7, augment="crop:2")


def test_a_crop_must_fit_the_image():
    message = refused("8x8", pipeline, augment="flip,crop:8")
    assert message == (
        "--augment=flip,crop:8: padding of crop must be smaller than the images, which are 8x8"
    )
    pipeline(augment="crop:7")


# Draws.


def test_a_draw_for_each_image_and_each_step():
    same = ArraySource(np.repeat(source().images[:1], 23, axis=0), np.zeros(23, int))
    first, second = batches(stop=2, source=same, augment="crop:2")
    assert len(np.unique(first[0], axis=0)) > 4
    assert np.any(first[0] != second[0])


@pytest.mark.parametrize(
    "more", ["cutout:0,crop:2,flip", "crop:2,cutout:3", "crop:2,flip|cutout:2"]
)
def test_one_augmentation_leaves_the_draws_of_the_others(more):
    less = batches(stop=1, augment="crop:2")[0][0]
    more = batches(stop=1, augment=more)[0][0]
    for a, b in zip(less, more, strict=True):
        kept = np.any(b != 0, axis=-1)
        assert np.array_equal(a[kept], b[kept]) or np.array_equal(a[:, ::-1], b)


def test_one_of_two_mixtures_draws_as_it_does_alone():
    mixup, cutmix, either = (
        batches(stop=1, batch_size=64, augment=text)[0]
        for text in ("mixup:0.4", "cutmix:1", "mixup:0.4|cutmix:1")
    )
    is_mixup = np.all(either[0] == mixup[0], axis=(1, 2, 3))
    is_cutmix = np.all(either[0] == cutmix[0], axis=(1, 2, 3))
    assert np.all(is_mixup | is_cutmix)
    assert 10 < is_mixup.sum() < 54
    np.testing.assert_array_equal(either[1][is_mixup], mixup[1][is_mixup])


def test_the_second_crop_has_draws_of_its_own():
    once, twice = (batches(stop=1, augment=x)[0][0] for x in ("crop:0,crop:2", "crop:2,crop:2"))
    first = batches(stop=1, augment="crop:2")[0][0]
    assert np.any(once != first)
    assert np.any(once != twice)


def test_labels_belong_to_their_images():
    data = source()
    for images, labels in batches(augment="flip", source=data):
        which = images[:, 0, 0, 0].round().astype(int)
        np.testing.assert_array_equal(labels, data.labels[which])
        assert labels.dtype == np.int32


def test_images_are_normalized_per_channel():
    (images, _), *_ = batches(augment="none", mean=(0.1, 0.2, 0.3), std=(0.5, 1, 2))
    which = images[:, 0, 0, 0] * 0.5 + 0.1
    raw = source().images.numpy()[(which * 255).round().astype(int)] / 255
    np.testing.assert_allclose(images, (raw - [0.1, 0.2, 0.3]) / [0.5, 1, 2], atol=1e-5)


@dataclasses.dataclass(frozen=True)
class Record(Augmentation):
    """Keeps what it is given."""

    def __call__(self, images, labels, draws):
        SEEN.append((images.dtype, labels.dtype, labels.shape.rank))
        return images, labels


SEEN = []


@pytest.mark.parametrize(
    ("augment", "seen"),
    [
        ("record,crop:1", [(tf.uint8, tf.int32, 1)]),
        ("crop:1,record,cutout:1", [(tf.uint8, tf.int32, 1)]),
        ("record,cutout:1,record", [(tf.uint8, tf.int32, 1), (tf.float32, tf.int32, 1)]),
        ("record,mixup:1,record", [(tf.uint8, tf.float32, 2), (tf.float32, tf.float32, 2)]),
    ],
)
def test_images_are_normalized_and_labels_softened_where_it_is_needed(augment, seen, monkeypatch):
    """By an augmentation that is one line in the table."""
    monkeypatch.setitem(AUGMENTATIONS, "record", Record)
    SEEN.clear()
    images, labels = batches(stop=1, augment=augment, mean=(0.5,) * 3)[0]
    assert seen == SEEN
    assert images.dtype == np.float32
    assert images.min() < -90
    assert labels.dtype == (np.float32 if "mixup" in augment else np.int32)


@dataclasses.dataclass(frozen=True)
class InvertDark(Augmentation):
    """Branches on a tensor, in a function that it calls, too."""

    def __call__(self, images, labels, draws):
        if tf.reduce_mean(tf.cast(images, tf.float32)) < 300:
            images = self.inverted(images)
        return images, labels

    def inverted(self, images):
        for _ in tf.range(3):
            images = 255 - images
        return images


def test_an_augmentation_may_branch_on_tensors(monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "invert_dark", InvertDark)
    plain, inverted = (batches(stop=1, augment=x)[0][0] for x in ("none", "invert_dark"))
    np.testing.assert_array_equal(inverted, 255 - plain)


@pytest.mark.parametrize("on_device", [False, True])
def test_an_image_is_mirrored_in_every_other_epoch(on_device):
    """And about half of them in the same one."""
    size, batch_size = 200, 16
    made = pipeline(batch_size, "alternating_flip", source=source(size), on_device=on_device)
    plain = source(size).images.numpy()
    mirrored = np.zeros((4, size), bool)
    for step, element in enumerate(made.batches(0, 4 * size // batch_size)):
        images = made.prepare(*element)[0].numpy().round().astype(np.uint8)
        for row, image in enumerate(images):
            number = image[0, 0, 0]
            is_plain = np.array_equal(image, plain[number])
            assert is_plain or np.array_equal(image, plain[number][:, ::-1])
            mirrored[(step * batch_size + row) // size, number] = not is_plain
    np.testing.assert_array_equal(mirrored[1], ~mirrored[0])
    np.testing.assert_array_equal(mirrored[2:], mirrored[:2])
    assert 70 < mirrored[0].sum() < 130


@pytest.mark.parametrize("on_device", [False, True])
def test_with_balanced_sampling_an_image_is_mirrored_every_other_time(on_device):
    """Whether it is taken several times in an epoch or less often; in one epoch, in any order."""
    images = source(30).images.numpy()
    uneven = ArraySource(images, np.array([0] * 24 + [1] * 6))
    made = pipeline(10, "alternating_flip", source=uneven, balanced=True, on_device=on_device)
    found = {number: [] for number in range(30)}
    for element in made.batches(0, 9 * 3):  # Nine epochs.
        for image in made.prepare(*element)[0].numpy().round().astype(np.uint8):
            number = image[0, 0, 0]
            found[number].append(not np.array_equal(image, images[number]))
    assert {len(mirrored) for mirrored in found.values()} == {5, 6, 22, 23}
    for mirrored in found.values():
        assert abs(2 * sum(mirrored) - len(mirrored)) <= 1


def test_mixed_labels_sum_to_one():
    for mixing in ("mixup:0.2", "cutmix:1", "mixup:0.2|cutmix:1"):
        for images, labels in batches(stop=2, augment=mixing, batch_size=64):
            assert labels.shape == (64, 5)
            np.testing.assert_allclose(labels.sum(1), np.ones(64), rtol=1e-5)
            assert np.all(np.isfinite(images))
            assert np.any((labels > 0.01) & (labels < 0.99))


# Evaluation.


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("size", [1, 7, 8, 9, 23])
def test_evaluation_sees_each_example_once(size, replicas):
    made = EvalPipeline(
        source(size),
        global_batch_size=8,
        mean=(0.0,) * 3,
        std=(1 / 255,) * 3,
        shard=InputShard(replicas=replicas, here=replicas),
    )
    assert made.size == size
    seen = []
    # Behind them, no example counts.
    for images, labels, mask in made.batches().take((made.num_batches + 2) * replicas):
        assert images.shape == (8 // replicas, 8, 8, 3)
        which = images[:, 0, 0, 0].numpy().round().astype(int)
        np.testing.assert_array_equal(labels, which % 5)
        seen += list(which[mask.numpy() == 1])
    assert seen == list(range(size))


def test_arrays_have_no_fault():
    assert pipeline().find_fault(2) is None
    assert EvalPipeline(source(), global_batch_size=8, mean=(), std=()).find_fault(2) is None


def balanced_epochs(labels, epochs, batch_size=7, seed=3):
    """The numbers of some epochs, [epochs, size], of balanced sampling."""
    size = len(labels)
    steps = -(-epochs * size // batch_size)
    rows = tf.range(batch_size, dtype=tf.int64)
    found = [
        balanced_numbers(
            tf.constant(step, tf.int64),
            rows,
            labels=labels,
            global_batch_size=batch_size,
            seed=seed,
        )[0]
        for step in range(steps)
    ]
    return np.concatenate(found)[: epochs * size].reshape(epochs, size)


def test_balanced_sampling_takes_equally_many_of_every_class():
    # Class 2 has no example; the others have 20, 6, 3 and 1.
    labels = (
        np.random.default_rng(0).permutation([0] * 20 + [1] * 6 + [3] * 3 + [4]).astype(np.int32)
    )
    epochs = balanced_epochs(labels, 8)
    for epoch in epochs:
        counts = np.bincount(labels[epoch], minlength=5)
        assert counts[2] == 0
        # 30 places for four classes.
        assert sorted(counts[[0, 1, 3, 4]]) == [7, 7, 8, 8]
    # After every epoch, all examples of a class have been taken equally often, but for one time.
    taken = np.array([np.bincount(epoch, minlength=30) for epoch in epochs]).cumsum(axis=0)
    for label in (0, 1, 3, 4):
        counts = taken[:, labels == label]
        assert np.all(counts.max(axis=1) - counts.min(axis=1) <= 1)
    # The classes are mixed, and orders differ between epochs and seeds.
    assert np.mean(labels[epochs[0]][1:] == labels[epochs[0]][:-1]) < 0.6
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs, balanced_epochs(labels, 8, seed=4))


def test_balanced_batches_are_a_function_of_the_step():
    images = np.zeros((30, 8, 8, 3), np.uint8)
    images[..., 0] = np.arange(30)[:, None, None]
    uneven = ArraySource(images, np.array([0] * 24 + [1] * 4 + [2] * 2))
    whole = batches(0, 12, augment="none", source=uneven, balanced=True)
    assert_equal(whole[5:], batches(5, 12, augment="none", source=uneven, balanced=True))
    labels = np.concatenate([labels for _, labels in whole])[:90]
    assert np.bincount(labels).tolist() == [30, 30, 30]
    numbers = np.concatenate([x[:, 0, 0, 0] for x, _ in whole])[:90]
    np.testing.assert_array_equal(uneven.labels[numbers.astype(int)], labels)
