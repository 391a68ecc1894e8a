"""Properties of every net with the small stem."""

import numpy as np
import pytest
import tensorflow as tf

import nets
from loops.variables import named_variables
from tests.nets.helpers import images
from tests.nets.pinned import PINNED
from tests.nets.test_every_net import (
    NOT_DEEPER,
    check_training_pass,
    exhaustive_if,
    smallest_size,
)

# What these are made of is tried in the others.
ALIKE = (
    *("inception_v1_bn", "inception_v4", "inception_resnet_v2", "inception10_v2"),
    *("inception10_frozen_norm", "resnet18", "resnet20_projection", "plain18"),
)
NAMES = [name for name in NOT_DEEPER if name not in ALIKE]


def is_long(name):
    return name in PINNED and name != "resnet20"


@pytest.mark.parametrize("name", exhaustive_if(is_long, NAMES))
def test_graph_equals_eager(name):
    size = smallest_size(name, "small")
    net = nets.build(name, num_classes=3, image_shape=(size, size, 3), stem="small")
    x = images(4, size, 3)
    eager = net(x, training=False)
    graph = tf.function(lambda x: net(x, training=False))(x)
    np.testing.assert_allclose(graph, eager, rtol=1e-3, atol=1e-4 * np.abs(eager).max())


@pytest.mark.parametrize("name", exhaustive_if(is_long, NAMES))
def test_bfloat16_with_the_small_stem_and_a_rebuilt_net(name, tmp_path, monkeypatch):
    """Training in bfloat16; a checkpoint holds every variable and fits a net built anew."""
    tf.keras.config.set_dtype_policy("mixed_bfloat16")
    tf.keras.utils.set_random_seed(1)
    size = smallest_size(name, "small")
    shape = (size, size, 2)

    def build():
        return nets.build(name, num_classes=3, image_shape=shape, stem="small")

    net, x = build(), images(4, size, 2)
    check_training_pass(net, x, 3)
    path = tf.train.Checkpoint(net=net).write(str(tmp_path / "net"))
    saved = [n for n, _ in tf.train.list_variables(path) if n.startswith("net/")]
    assert len(saved) == len(net.variables) == len(named_variables(net))
    # Zeros take less time than random values.
    monkeypatch.setattr(tf.keras.initializers, "HeNormal", tf.keras.initializers.Zeros)
    again = build()
    tf.train.Checkpoint(net=again).read(path).assert_consumed()
    for old, new in zip(net.variables, again.variables, strict=True):
        np.testing.assert_array_equal(old.numpy(), new.numpy())
    np.testing.assert_array_equal(net(x, training=False), again(x, training=False))
