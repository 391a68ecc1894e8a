import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from data.augment import Crop, Mixup
from data.augmentation import Augmentation, Draws


def draws(rows=range(2000), size=2000, seed=(3, 4)):
    return Draws(tf.constant(seed, tf.int64), tf.constant(list(rows), tf.int64), size)


def test_uniform_numbers():
    found = draws().uniform().numpy()
    assert found.shape == (2000,)
    assert found.dtype == np.float32
    assert np.all((found >= 0) & (found < 1))
    assert found.mean() == pytest.approx(0.5, abs=0.03)
    assert found.std() == pytest.approx(12**-0.5, abs=0.02)
    assert draws().uniform(2, 3).shape == (2000, 2, 3)


@pytest.mark.parametrize("alpha", [0.001, 0.2, 1.0, 1000.0])
def test_beta_numbers(alpha):
    found = draws().beta(alpha).numpy()
    assert found.shape == (2000,)
    assert found.dtype == np.float32
    assert np.all((found >= 0) & (found <= 1))  # No NaN where both Gammas underflow.
    assert found.mean() == pytest.approx(0.5, abs=0.15 if alpha < 0.01 else 0.03)
    if alpha > 0.01:
        assert found.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)


def test_streams_are_unrelated():
    one = draws()
    found = [
        one.uniform(),
        one.uniform(name="box"),
        one.stream("crop").uniform(),
        one.stream("crop").uniform(),
        one.stream("flip").uniform(),
        one.stream("flip").uniform(name="box"),
        draws(seed=(3, 5)).uniform(),
    ]
    correlations = np.corrcoef(np.stack(found)) - np.eye(len(found))
    assert np.abs(correlations).max() < 5 / np.sqrt(2000)


def test_a_stream_depends_on_its_name_and_use_alone():
    """Whatever other streams there are, and by whichever of them it is asked for."""
    alone, among = draws(), draws()
    among.stream("flip").uniform()
    nested = among.stream("mixup|cutmix").stream("crop")
    np.testing.assert_array_equal(alone.stream("crop").uniform(2), nested.uniform(2))
    second = alone.stream("crop")
    np.testing.assert_array_equal(second.uniform(), among.stream("crop").uniform())
    assert np.any(second.uniform() != draws().stream("crop").uniform())


def test_rows_have_the_same_draws_wherever_they_are():
    whole, some = draws(range(12), 12), draws([7, 2], 12)
    np.testing.assert_array_equal(some.uniform(2), whole.uniform(2).numpy()[[7, 2]])
    np.testing.assert_array_equal(some.beta(0.3), whole.beta(0.3).numpy()[[7, 2]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Crop(-1), "padding of crop must be an integer from 0 to 4096, not -1"),
        (lambda: Crop(2.0), "padding of crop must be an integer from 0 to 4096, not 2.0"),
        (lambda: Crop(True), "padding of crop must be an integer"),
        (lambda: Mixup(float("nan")), "alpha of mixup must be a number from 0.001 to 1000"),
        (lambda: Mixup("1"), "alpha of mixup must be a number"),
    ],
)
def test_values_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_augmentations_are_frozen_and_comparable():
    assert Mixup(1) == Mixup(1.0)
    assert hash(Crop(4)) == hash(Crop(4))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Crop(4).padding = 5


def test_the_base_class_does_nothing():
    assert (Augmentation.normalized, Augmentation.soft_labels, Augmentation.pairs) == (False,) * 3
    Augmentation().check((1, 1, 1))
    with pytest.raises(NotImplementedError):
        Augmentation()(None, None, None)
