"""Freezing stages, and copying weights from one net to another."""

import numpy as np
import pytest
import tensorflow as tf

import nets
from nets import NetError, transfer
from nets.layers import ConvBatchNorm, Head, MaxPool, SmallStem
from nets.net import Net
from nets.pretrained import PretrainedError


class Staged(Net):
    """Every kind of stage, an auxiliary head, and dropout in two places."""

    auxiliary_weight = 0.3

    def __init__(self, num_classes, *, stem="small", auxiliary=True):
        super().__init__()
        self.stem = SmallStem(4 if stem == "small" else 5)
        self.stage_1 = ConvBatchNorm(6, 3)
        self.pool = MaxPool(3, strides=2)
        self.stage_2 = Head(7, dropout=0.5)
        self.head = Last(num_classes)
        self.stage_names = ("stem", "stage_1", "pool", "stage_2", "head")
        if auxiliary:
            self.side = Head(num_classes, dropout=0.5)
            self.auxiliary = (("stage_1", "side"),)


class Last(Net):
    """A dense layer."""

    def __init__(self, num_classes):
        super().__init__()
        self.dense = tf.keras.layers.Dense(num_classes)

    def call(self, x, *, training):
        del training
        return self.dense(x)


class Whole(Net):
    """A net that is not a sequence of stages."""

    def __init__(self, num_classes, *, stem="small"):
        del stem
        super().__init__()
        self.head = Head(num_classes)

    def call(self, images, *, training):
        return self.head(images, training=training)


@pytest.fixture(autouse=True, scope="module")
def table():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(nets.NETS, "staged", Staged)
        patch.setitem(nets.NETS, "whole", Whole)
        yield


IMAGES = np.random.default_rng(0).normal(2, 3, (16, 6, 6, 3)).astype(np.float32)


def build(name="staged", classes=3, seed=0, **kwargs):
    """A net whose statistics and scales are not those of a new one."""
    tf.keras.utils.set_random_seed(seed)
    net = nets.build(name, num_classes=classes, image_shape=(6, 6, 3), **kwargs)
    generator = np.random.default_rng(seed)
    for variable in net.variables:
        variable.assign(np.abs(variable) + generator.uniform(0.1, 0.2, variable.shape))
    return net


def stage_outputs(net, *, training):
    with nets.net.dropout_seed((0, 1)):
        return dict(net.run_stages(tf.constant(IMAGES), training=training))


def test_frozen_stages_run_as_in_evaluation():
    free, frozen = build(), build(freeze=("stem", "stage_2"))
    before = {v.path: v.numpy() for v in frozen.stem.variables + frozen.stage_1.variables}
    found, training = stage_outputs(frozen, training=True), stage_outputs(free, training=True)
    # Of equal nets: the stem of the one is evaluated, that of the other trains.
    evaluated = stage_outputs(build(), training=False)
    np.testing.assert_array_equal(found["stem"], evaluated["stem"])
    assert np.abs(found["stem"] - training["stem"]).max() > 0.1
    # No dropout in the frozen stage; the units that are dropped are 0 in the other net.
    dense, pooled = frozen.stage_2.dense, tf.reduce_mean(found["pool"], axis=(1, 2))
    np.testing.assert_allclose(found["stage_2"], dense(pooled), rtol=1e-5)
    changed = {path for path, old in before.items() if path not in kept(frozen, before)}
    statistics = {v.path for v in frozen.stage_1.non_trainable_variables}
    assert changed == statistics
    assert len(statistics) == 2


def kept(net, before):
    """The variables of a net that are what they were."""
    now = {v.path: v.numpy() for v in net.variables}
    return {path for path, old in before.items() if np.array_equal(now[path], old)}


def test_what_is_frozen_is_not_trainable_and_in_the_same_place():
    free, frozen = build(), build(freeze=("stem", "pool"))
    assert [v.shape for v in frozen.variables] == [v.shape for v in free.variables]
    ours = {id(v) for v in frozen.stem.variables}
    assert not ours & {id(v) for v in frozen.trainable_variables}
    assert len(frozen.trainable_variables) == len(free.trainable_variables) - 3
    assert list(frozen.heads) == ["head", "side"]


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (("stem", "x"), "staged has no stage 'x'; its stages: stem, stage_1, pool, stage_2, head"),
        (("side",), "no stage 'side'"),
        (("stem", "stage_1", "stage_2", "head"), "no stage of staged is left to train; its stages"),
    ],
)
def test_stages_that_cannot_be_frozen(freeze, message):
    for check in (
        lambda: nets.check_stages("staged", freeze, stem="small"),
        lambda: nets.build("staged", num_classes=2, image_shape=(6, 6, 3), freeze=freeze),
    ):
        with pytest.raises(NetError, match=message):
            check()
    nets.check_stages("staged", ("stem", "stage_1", "pool", "head"), stem="small")


def test_a_net_that_is_no_sequence_of_stages():
    nets.check_stages("whole", (), stem="small")
    with pytest.raises(NetError, match="whole is not a sequence of stages"):
        nets.check_stages("whole", ("head",), stem="small")
    with pytest.raises(NetError, match="whole is not a sequence of stages"):
        nets.check_head("whole", (), stem="small")
    weights = transfer.read_weights(build("whole", seed=1))
    net = build("whole")
    assert transfer.copy_weights(weights, net, same_classes=True)
    np.testing.assert_array_equal(net.variables[0], weights["net"][0])
    with pytest.raises(PretrainedError, match="no head that could be left out"):
        transfer.copy_weights(weights, net, same_classes=False)


def test_the_head_of_a_rate_must_be_trained():
    nets.check_head("staged", ("stem",), stem="small")
    with pytest.raises(NetError, match="head is frozen"):
        nets.check_head("staged", ("stem", "head"), stem="small")


@pytest.mark.parametrize("same_classes", [False, True])
def test_weights_of_another_net_are_copied_by_stage(same_classes):
    source = build(seed=1)
    net = build(freeze=("stem",))  # With as many classes, in either case.
    before = {v.path: v.numpy() for v in net.variables}
    weights = transfer.read_weights(source)
    assert transfer.copy_weights(weights, net, same_classes=same_classes) is same_classes
    for name, layer in {**net.stages, **net.auxiliary_heads}.items():
        theirs = getattr(source, name).variables
        if same_classes or name not in net.heads:
            for ours, other in zip(layer.variables, theirs, strict=True):
                np.testing.assert_array_equal(ours, other)
        else:
            assert {v.path for v in layer.variables} <= kept(net, before)
    assert len(kept(net, before)) == (0 if same_classes else 4)


def test_auxiliary_heads_may_be_missing_and_others_may_not():
    weights = transfer.read_weights(build(seed=1, auxiliary=False))
    net = build()
    side = [v.numpy() for v in net.side.variables]
    assert transfer.copy_weights(weights, net, same_classes=True)
    for ours, before in zip(net.side.variables, side, strict=True):
        np.testing.assert_array_equal(ours, before)
    wide = build(stem="large")
    before = {v.path: v.numpy() for v in wide.variables}
    with pytest.raises(PretrainedError, match="the weights do not fit the stem of this net"):
        transfer.copy_weights(weights, wide, same_classes=True)
    assert kept(wide, before) == set(before)
