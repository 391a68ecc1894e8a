"""Three faults that are common in tutorials of such nets, with a check for each.

A check takes a net and raises AssertionError. It must pass on our nets and fail on a faulty one.
"""

import numpy as np
import pytest
import tensorflow as tf

import nets
from nets.batch_norm import BatchNorm
from nets.layers import Chain, ConvBatchNorm, Head
from nets.resnet import BasicBlock, ProjectionShortcut, ResNet
from tests.nets.helpers import layers

IMAGES = tf.constant(np.random.default_rng(0).normal(size=(4, 32, 32, 3)), tf.float32)


def check_batch_norm_trains(net):
    """Training updates every moving statistic."""
    before = [v.numpy() for v in net.non_trainable_variables]
    net(IMAGES, training=True)
    for variable, old in zip(net.non_trainable_variables, before, strict=True):
        assert np.any(variable.numpy() != old), f"{variable.path} did not move"


def check_first_stage_keeps_the_size(net):
    stem = net.stem(IMAGES, training=False)
    assert stem.shape[1:3] == (32, 32)
    assert net.stage_1(stem, training=False).shape[1:3] == (32, 32)


def check_logits_are_flat(net):
    assert net(IMAGES, training=False).shape == (4, 10)


class FrozenBatchNorm(BatchNorm):
    def call(self, x, *, training):
        return super().call(x, training=False)


def frozen(name):
    net = nets.build(name, num_classes=10, image_shape=(32, 32, 3))
    for layer in layers(net, BatchNorm):
        layer.__class__ = FrozenBatchNorm
    return net


def strided_first_stage():
    net = ResNet(10, block=BasicBlock, blocks=(2, 2, 2, 2))
    shortcut = ProjectionShortcut(64, strides=2)
    net.stage_1 = Chain([BasicBlock(64, strides=2, shortcut=shortcut), BasicBlock(64)])
    return net


class UnflattenedHead(Head):
    def call(self, x, *, training):
        return self.dense(tf.reduce_mean(x, axis=(1, 2), keepdims=True))


def unflattened():
    net = ResNet(10, block=BasicBlock, blocks=(2, 2, 2, 2))
    net.head = UnflattenedHead(10)
    return net


@pytest.mark.parametrize(
    "name",
    [
        "inception10",
        "resnet20",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("resnet18", "plain20")),
    ],
)
def test_our_nets(name):
    net = nets.build(name, num_classes=10, image_shape=(32, 32, 3))
    check_logits_are_flat(net)
    check_batch_norm_trains(net)
    if not name.startswith("inception"):
        check_first_stage_keeps_the_size(net)


def test_batch_norm_that_never_trains_is_found():
    with pytest.raises(AssertionError, match="did not move"):
        check_batch_norm_trains(frozen("inception10"))


def test_stride_in_the_first_stage_is_found():
    with pytest.raises(AssertionError):
        check_first_stage_keeps_the_size(strided_first_stage())


def test_stride_in_the_stem_is_found():
    net = ResNet(10, block=BasicBlock, blocks=(2, 2, 2, 2))
    net.stem = ConvBatchNorm(64, 3, strides=2)
    with pytest.raises(AssertionError):
        check_first_stage_keeps_the_size(net)


def test_pooled_output_that_is_not_flat_is_found():
    with pytest.raises(AssertionError):
        check_logits_are_flat(unflattened())
