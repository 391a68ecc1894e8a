import numpy as np
import pytest
import tensorflow as tf

import nets
from nets import NetError
from nets.grad_cam import GradCAM
from nets.layers import ConvBatchNorm, Convolution, Head, MaxPool
from nets.net import Net
from tests.nets.helpers import images


class Linear(Net):
    """A 1x1 convolution to two channels, global average pooling and a dense layer."""

    def __init__(self, *, pool=False):
        super().__init__()
        self.stage_1 = Convolution(2, 1)
        self.pool = MaxPool(2, strides=2)
        self.head = Head(3)
        self.stage_names = ("stage_1", *(("pool",) if pool else ()), "head")


WEIGHTS = np.array([[1.0, -1.0, 0.5], [2.0, 3.0, -0.5]], np.float32)  # Channels to classes.


def linear(**options):
    """The net, whose feature maps are the red and the green channel of the image."""
    net = Linear(**options)
    net(tf.zeros((1, 4, 4, 3)), training=False)
    kernel = np.zeros((1, 1, 3, 2), np.float32)
    kernel[0, 0, 0, 0] = kernel[0, 0, 1, 1] = 1
    net.stage_1.conv.kernel.assign(kernel)
    net.head.dense.kernel.assign(WEIGHTS)
    return net


def heat(net, x, classes):
    return GradCAM(net)(tf.constant(x), tf.constant(classes), training=False).numpy()


def test_the_closed_form_of_global_average_pooling():
    """There the weight of a channel is that of the dense layer, up to a factor (CAM)."""
    x = images(3, 4, 3).numpy()
    classes = [0, 1, 2]
    maps = np.einsum("nhwc,cn->nhw", x[..., :2], WEIGHTS[:, classes]).clip(0)
    expected = maps / maps.max(axis=(1, 2), keepdims=True)
    found = heat(linear(), x, classes)
    assert (found.shape, found.dtype) == ((3, 4, 4), np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # The images of a batch do not mix.
    np.testing.assert_allclose(heat(linear(), x[1:2], [1]), expected[1:2], rtol=1e-5, atol=1e-6)


def test_the_last_feature_maps_are_used_and_scaled_to_the_image():
    x = np.zeros((1, 4, 4, 3), np.float32)
    x[0, 0, 0, 0], x[0, 3, 3, 0] = 4.0, 1.0  # Red, in two corners.
    found = heat(linear(pool=True), x, [0])[0]
    # Pooled to [[4, 0], [0, 1]]; interpolated at 0, 1/4, 3/4 and 1 of the way.
    along = np.array([0, 0.25, 0.75, 1])
    expected = 4 * np.outer(1 - along, 1 - along) + np.outer(along, along)
    np.testing.assert_allclose(found, expected / 4, atol=1e-6)


def test_feature_maps_of_one_pixel_are_passed_over():
    """Max pooling to one pixel leaves the gradient 1 at one place, so the weights are the same."""
    x = images(1, 2, 3).numpy()
    maps = np.einsum("nhwc,c->nhw", x[..., :2], WEIGHTS[:, 1]).clip(0)
    found = heat(linear(pool=True), x, [1])
    np.testing.assert_allclose(found, maps / maps.max(), rtol=1e-5, atol=1e-6)


def test_where_nothing_speaks_for_the_class_it_is_cold():
    x = np.zeros((2, 4, 4, 3), np.float32)
    x[:, 1, 1, 0] = 1.0  # Red, which speaks against class 1.
    found = heat(linear(), x, [1, 0])
    assert not found[0].any()
    assert found[1, 1, 1] == found[1].sum() == 1


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_the_heat_follows_a_bright_object(corner):
    x = np.random.default_rng(0).normal(0, 0.1, (1, 16, 16, 3)).astype(np.float32)
    rows, columns = (slice(8 * i + 2, 8 * i + 6) for i in corner)
    x[0, rows, columns, 0] += 3
    found = heat(linear(pool=True), x, [0])[0]
    assert found[rows, columns].mean() > 0.6
    outside = np.ones((16, 16), bool)
    outside[8 * corner[0] : 8 * corner[0] + 8, 8 * corner[1] : 8 * corner[1] + 8] = False
    assert found[outside].mean() < 0.1


def test_nets_without_stages_are_refused():
    class Whole(Linear):
        def call(self, images, *, training):
            return super().call(images, training=training)

    class Single(Net):
        def __init__(self):
            super().__init__()
            self.head = Head(3)
            self.stage_names = ("head",)

    class Flat(Linear):
        def __init__(self):
            super().__init__()
            self.stage_1 = tf.keras.layers.Flatten()
            self.head = tf.keras.layers.Dense(3)

        def run_stages(self, images, *, training):
            del training
            flat = self.stage_1(images)
            yield from (("stage_1", flat), ("head", self.head(flat)))

    for net in (Whole(), Single()):
        with pytest.raises(NetError, match="needs a net that is a sequence of stages") as caught:
            GradCAM(net)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(NetError, match="no stage of Flat but the last has feature maps"):
        heat(Flat(), images(1, 4, 3), [0])


def check_net(name, size, channels=3):
    net = nets.build(name, num_classes=5, image_shape=(size, size, channels))
    x = images(5, size, channels)
    before = [v.numpy() for v in net.variables]
    found = tf.function(GradCAM(net))(x, tf.range(5), training=False).numpy()
    assert found.shape == (5, size, size)
    assert found.min() >= 0
    hot = found[found.max(axis=(1, 2)) > 0]
    np.testing.assert_allclose(hot.max(axis=(1, 2)), 1, rtol=1e-6)
    assert len(np.unique(hot.mean(axis=(1, 2)))) > 1
    for variable, value in zip(net.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_inception10_on_digits():
    check_net("inception10", 16, channels=1)


def test_mixed_precision():
    tf.keras.config.set_dtype_policy("mixed_bfloat16")

    class Small(Net):
        def __init__(self):
            super().__init__()
            self.stage_1 = ConvBatchNorm(8, 3)
            self.head = Head(3)
            self.stage_names = ("stage_1", "head")

    net = Small()
    net(tf.zeros((1, 8, 8, 3)), training=False)
    found = heat(net, images(2, 8, 3), [0, 2])
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 32), ("resnet50_v2", 64), ("inception_v3", 96)]
)
def test_large_nets(name, size):
    check_net(name, size)
