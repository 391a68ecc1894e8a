"""Properties of the base class, with nets such as a user writes."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import nets
from nets.batch_norm import BatchNorm
from nets.layers import Chain, ConvBatchNorm, Head, SmallStem
from nets.net import Net
from nets.table import trace
from tests.nets.helpers import images

ROOT = pathlib.Path(__file__).parents[2]


class Containers(Net):
    """A net with BatchNorm in every kind of container."""

    batch_norm_momentum = 0.7
    batch_norm_epsilon = 0.1

    def __init__(self):
        super().__init__()
        self.attribute = BatchNorm()
        self.pair = (BatchNorm(), BatchNorm())
        self.chain = Chain([BatchNorm(), Chain([BatchNorm()])])
        self.list = [BatchNorm(), [BatchNorm()]]
        self.dictionary = {"a": BatchNorm(), "b": {"c": BatchNorm()}}
        self.own = BatchNorm(momentum=0.2)
        self.head = Head(2)

    @property
    def batch_norms(self):
        chain = (self.chain.block_0, self.chain.block_1.block_0)
        in_list = (self.list[0], self.list[1][0])
        in_dictionary = (self.dictionary["a"], self.dictionary["b"]["c"])
        return (self.attribute, *self.pair, *chain, *in_list, *in_dictionary)

    def call(self, images, *, training):
        x = images
        for layer in (*self.batch_norms, self.own):
            x = layer(x, training=training)
        return self.head(x, training=training)


def test_batch_norms_in_every_container_have_the_settings_of_the_net():
    net = Containers()
    net.sync_batch_norm = True
    net(images(2, 4, 3), training=False)
    settings = {(x.momentum, x.epsilon, x.synchronized) for x in net.batch_norms}
    assert settings == {(0.7, 0.1, True)}
    assert (net.own.momentum, net.own.epsilon) == (0.2, 0.1)


class Wrapped(Net):
    batch_norm_momentum = 0.3

    def __init__(self):
        super().__init__()
        self.inner = nets.NETS["inception10"](4)
        self.inner.head.dropout.rate = 0.5
        self.head = tf.keras.layers.Dense(2)
        self.stage_names = ("inner", "head")


def test_settings_and_seed_of_a_net_hold_for_a_net_inside():
    net, x = Wrapped(), images(2, 8, 3)
    net(x, training=False)
    assert net.inner.stem.batch_norm.momentum == 0.3
    first, again, other = (net(x, training=True, seed=(0, i)).numpy() for i in (1, 1, 2))
    np.testing.assert_allclose(first, again, rtol=1e-5)
    assert np.abs(first - other).max() > 1e-3


def test_a_net_without_stages_is_an_error():
    class Forgotten(Net):
        pass

    with pytest.raises(ValueError, match="Forgotten must set stage_names or override call"):
        Forgotten()(images(1, 4, 3), training=False)


class Dense(tf.keras.layers.Dense):
    def call(self, x, *, training):
        del training
        return super().call(tf.reduce_mean(x, axis=(1, 2)))


class OfKeras(Net):
    """A net of a layer of Keras."""

    def __init__(self, num_classes, *, stem="small"):
        super().__init__()
        self.head = Dense(num_classes)
        self.stage_names = ("head",)


class Tuple(OfKeras):
    def call(self, images, *, training):
        return (super().call(images, training=training),) * 2


class Pixels(OfKeras):
    def call(self, images, *, training):
        return images


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Tuple, "must return logits [batch, 3] with training=False, not a tuple"),
        (Pixels, "must return logits [batch, 3] with training=False, not shape (1, 8, 8, 1)"),
        (lambda classes, stem: None, "mine in NETS must be a class, or a functools.partial of"),
    ],
)
def test_what_is_no_classifier_is_refused(monkeypatch, entry, message):
    monkeypatch.setitem(nets.NETS, "mine", entry)
    with pytest.raises(nets.NetError, match=re.escape(message)):
        nets.build("mine", num_classes=3, image_shape=(8, 8, 1))


def test_layers_of_keras_are_accepted(monkeypatch):
    monkeypatch.setitem(nets.NETS, "mine", OfKeras)
    assert nets.build("mine", num_classes=3, image_shape=(8, 8, 1)).built


def test_stages_run_in_order():
    class Reversed(Net):
        def __init__(self):
            super().__init__()
            self.head = Head(2)
            self.stem = SmallStem(4)
            self.stage_1 = ConvBatchNorm(5, 3, strides=2)
            self.stage_names = ("stem", "stage_1", "head")

    net, x = Reversed(), images(2, 8, 3)
    logits = net(x, training=False)
    features = net.stage_1(net.stem(x, training=False), training=False)
    np.testing.assert_allclose(logits, net.head(features, training=False), rtol=1e-5)
    shapes = {name: tuple(y.shape) for name, y in net.run_stages(x, training=False)}
    assert shapes == {"stem": (2, 8, 8, 4), "stage_1": (2, 4, 4, 5), "head": (2, 2)}


def small_net(policy):
    """Logits, number of parameters and fingerprint of a net; runs in another process too."""
    tf.keras.config.set_dtype_policy(policy)
    tf.keras.utils.set_random_seed(4)
    net = nets.build("inception10", num_classes=3, image_shape=(8, 8, 3))
    logits = net(images(2, 8, 3), training=False).numpy().tolist()
    return logits, net.count_params(), trace(net, (8, 8, 3)).fingerprint


@pytest.mark.slow
def test_keras_settings_in_the_home_directory_change_nothing(tmp_path):
    """Another process, with other settings and another hash seed, has the same nets."""
    settings = {"image_data_format": "channels_first", "floatx": "float16", "epsilon": 0.5}
    (tmp_path / "keras.json").write_text(json.dumps({"backend": "tensorflow", **settings}))
    policies = ("float32", "mixed_bfloat16")
    code = (
        "import json, tensorflow as tf\n"
        "from tests.nets.test_net import small_net\n"
        "config = tf.keras.config\n"
        "assert (config.image_data_format(), config.floatx()) == ('channels_first', 'float16')\n"
        f"print(json.dumps([small_net(policy) for policy in {policies}]))\n"
    )
    environment = {**os.environ, "KERAS_HOME": str(tmp_path), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    for policy, theirs in zip(policies, json.loads(done.stdout.splitlines()[-1]), strict=True):
        logits, *others = small_net(policy)
        np.testing.assert_allclose(theirs[0], logits, rtol=1e-5, atol=1e-6)
        assert theirs[1:] == others
