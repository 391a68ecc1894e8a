import numpy as np
import pytest
import tensorflow as tf

from nets.dropout import Dropout, dropout_seed
from tests.nets.helpers import images


def test_rate_and_scale():
    x = tf.ones((64, 1000))
    with dropout_seed((0, 1)):
        y = Dropout(0.3)(x, training=True).numpy()
    assert np.mean(y == 0) == pytest.approx(0.3, abs=0.01)
    np.testing.assert_allclose(y[y > 0], 1 / 0.7, rtol=1e-6)


def test_evaluation_drops_nothing():
    x = images(2, 4, 3)
    np.testing.assert_array_equal(Dropout(0.9)(x, training=False), x)


def test_the_mask_is_a_function_of_the_seed():
    x, layer = tf.ones((4, 100)), Dropout(0.5)

    def drop(seed, rows=(0, None)):
        with dropout_seed(seed, rows):
            return layer(x, training=True).numpy(), layer(x, training=True).numpy()

    first, second = drop((3, 7))
    assert np.any(first != second)  # Each layer of a pass has its own mask.
    np.testing.assert_array_equal(drop((3, 7)), (first, second))
    assert np.any(drop((3, 8))[0] != first)
    assert np.any(drop((4, 7))[0] != first)


def test_the_mask_does_not_depend_on_which_replica_has_the_example():
    x, layer = tf.ones((8, 50)), Dropout(0.5)

    def drop(part, first):
        with dropout_seed((1, 2), (first, 8)):
            return layer(part, training=True).numpy()

    whole = drop(x, 0)
    np.testing.assert_array_equal(np.concatenate([drop(x[:3], 0), drop(x[3:], 3)]), whole)


def test_training_without_a_seed_is_an_error():
    with pytest.raises(ValueError, match="seed=\\(0, step\\)"):
        Dropout(0.5)(tf.ones((2, 3)), training=True)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5])
def test_a_rate_out_of_range_is_an_error(rate):
    with pytest.raises(ValueError, match=f"rate={rate}"):
        Dropout(rate)
