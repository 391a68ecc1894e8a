"""Initial values: a first layer that whitens, and convolutions that are identities."""

import numpy as np
import pytest
import tensorflow as tf

import nets
from nets.initialize import first_convolution, make_identity, whiten


def build(name, size=16):
    tf.keras.utils.set_random_seed(0)
    return nets.build(name, num_classes=10, image_shape=(size, size, 3))


def images(size=16):
    """Smooth ones, whose pixels and channels are correlated."""
    noise = np.random.default_rng(0).normal(size=(200, size, size, 3))
    smooth = sum(np.roll(noise, (i, j), (1, 2)) for i in range(3) for j in range(3))
    return (smooth + smooth.mean(-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "pairs"), [("speednet", 12), ("inception10", 8), ("resnet18", 27)]
)
def test_the_channels_of_the_first_layer_are_white(name, pairs):
    net = build(name)
    first, before = first_convolution(net), first_convolution(build(name)).conv.kernel.numpy()
    whiten(net, images(), epsilon=0.0)
    kernel = first.conv.kernel
    channels = tf.nn.conv2d(images(), kernel, 1, "VALID").numpy()
    values = channels.reshape(-1, channels.shape[-1]).astype(np.float64)
    covariance = values.T @ values / len(values)
    np.testing.assert_allclose(covariance[:pairs, :pairs], np.eye(pairs), atol=2e-3)
    np.testing.assert_array_equal(kernel[..., pairs : 2 * pairs], -kernel[..., :pairs])
    np.testing.assert_array_equal(kernel[..., 2 * pairs :], before[..., 2 * pairs :])


def test_the_largest_eigenvalues_come_first():
    net = build("inception10")
    whiten(net, images(), epsilon=0.0)
    norms = np.linalg.norm(first_convolution(net).conv.kernel.numpy().reshape(27, 16), axis=0)
    assert list(norms[:8]) == sorted(norms[:8])  # The inverses of the eigenvalues' roots.


def test_the_filters_of_small_eigenvalues_are_bounded():
    net = build("inception10")
    whiten(net, 1e-4 * images(), epsilon=0.25)
    norms = np.linalg.norm(first_convolution(net).conv.kernel.numpy().reshape(27, 16), axis=0)
    np.testing.assert_allclose(norms, 2, rtol=1e-5)  # 1 / sqrt(0.25)


def test_a_net_that_begins_otherwise_is_refused():
    nets.check_whitening("resnet50_v2", (), "large")
    with pytest.raises(nets.NetError, match="inception_v2 does not begin with a convolution"):
        nets.check_whitening("inception_v2", (), "large")


def test_random_convolutions_are_not_frozen_with_the_first():
    for name in ("speednet", "inception10", "resnet18", "resnet50_v2"):
        nets.check_whitening(name, ("stem",), "small")
    nets.check_whitening("inception_v1_bn", ("stage_3",), "small")
    with pytest.raises(nets.NetError, match="stem of inception_v1_bn has 2 more convolutions"):
        nets.check_whitening("inception_v1_bn", ("stem",), "small")


def test_convolutions_begin_as_identities():
    net, plain = build("resnet20"), build("resnet20")
    assert make_identity(net) == 20 - 2  # All but the first, and without the dense layer.
    first, same = (first_convolution(x).conv.kernel for x in (net, plain))
    np.testing.assert_array_equal(first, same)
    conv = net.stage_2.blocks[0].residual.blocks[0].conv  # From 16 to 32 channels.
    other = plain.stage_2.blocks[0].residual.blocks[0].conv
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 16)).astype(np.float32)
    y = conv(x, training=False)
    np.testing.assert_allclose(y[..., :16], x[:, ::2, ::2], atol=1e-6)
    np.testing.assert_allclose(y[..., 16:], other(x, training=False)[..., 16:], atol=1e-5)
