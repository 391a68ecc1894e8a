"""Properties of single nets and blocks, after their papers."""

import functools

import numpy as np
import pytest
import tensorflow as tf

import nets
from nets.dropout import dropout_seed
from nets.inception10 import InceptionBlock, ResidualInceptionBlock, StackedBlock
from nets.inception_resnet import InceptionResNetC
from nets.inception_v1 import AuxiliaryHead, ConvRelu, LocalResponseNorm
from nets.inception_v2 import DepthwiseConvolution
from nets.layers import AvgPool, CenteredMaxPool, ConvBatchNorm, Convolution, pool_by_thirds
from nets.resnet import BasicBlock, Block, BottleneckBlock, PaddedShortcut, PlainBlock, ResNet
from nets.resnet_v2 import PreActivationBlock
from nets.table import trace
from tests.nets.helpers import count, gradients, images, layers
from tests.nets.pinned import CIFAR, PINNED


@functools.cache
def build(name, size=32, num_classes=10, channels=3, **kwargs):
    return nets.build(name, num_classes=num_classes, image_shape=(size, size, channels), **kwargs)


@functools.cache
def unbuilt(name, stem="large"):
    """A net without variables. Tests only look at its layers."""
    return nets.NETS[name](10, stem=stem)


def convolutions(layer):
    return [x.conv for x in layers(layer, Convolution)]


# Names and image shapes.


def test_unknown_net_lists_the_known_ones():
    with pytest.raises(nets.NetError, match="unknown net 'resnet19'; known nets: ") as error:
        build("resnet19")
    assert str(error.value).split(": ")[1].split(", ") == list(nets.NETS)


@pytest.mark.parametrize(("size", "stem"), [(28, "small"), (95, "small"), (96, "large")])
def test_the_stem_goes_by_the_shorter_side(size, stem):
    assert nets.default_stem((size, 200, 3)) == stem


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("inception10", (8, 8, 1), 3),
        ("inception10", (28, 28, 1), 10),
        ("resnet20", (48, 64, 4), 7),
        pytest.param("inception_v1", (48, 64, 4), 7, marks=pytest.mark.slow),
    ],
)
def test_any_channels_classes_and_sizes(name, shape, classes):
    net = nets.build(name, num_classes=classes, image_shape=shape)
    assert net(tf.zeros((2, *shape)), training=False).shape == (2, classes)


def test_an_example_does_not_depend_on_its_neighbours_in_evaluation():
    net, x = build("inception10"), images(3, 32, 3)
    whole = net(x, training=False)
    np.testing.assert_allclose(whole[1:2], net(x[1:2], training=False), rtol=1e-4, atol=1e-5)


# He et al. 2015 and 2016.


def test_block_adds_its_input():
    """With a residual of 0, a basic block is ReLU of its input."""
    block, x = BasicBlock(3), images(4, 8, 3)
    block(x, training=False)
    block.residual.block_1.batch_norm.gamma.assign([0.0, 0.0, 0.0])
    np.testing.assert_allclose(block(x, training=False), tf.nn.relu(x))


def test_plain_block_does_not_add_its_input():
    block, x = PlainBlock(3), images(4, 8, 3)
    block(x, training=False)
    block.block_1.batch_norm.gamma.assign([0.0, 0.0, 0.0])
    np.testing.assert_array_equal(block(x, training=False), np.zeros(x.shape))


def test_bottleneck_has_its_stride_in_the_first_convolution():
    strides = [c.strides for c in convolutions(BottleneckBlock(4, strides=2))]
    assert sorted(strides) == [(1, 1), (1, 1), (2, 2)]
    assert BottleneckBlock(4, strides=2).residual.block_0.conv.conv.strides == (2, 2)


def test_option_a_takes_pixels_and_adds_zeros():
    x = images(2, 7, 3)
    y = PaddedShortcut(8, strides=2)(x, training=False).numpy()
    np.testing.assert_array_equal(y[..., :3], x.numpy()[:, ::2, ::2])
    np.testing.assert_array_equal(y[..., 3:], np.zeros((2, 4, 4, 5)))


@pytest.mark.parametrize(
    ("plain", "residual"),
    [
        ("plain20", "resnet20"),
        pytest.param("plain18", "resnet18", marks=pytest.mark.slow),
        pytest.param("plain56", "resnet56", marks=pytest.mark.slow),
    ],
)
def test_a_plain_net_is_the_residual_net_without_shortcuts(plain, residual):
    """Layer by layer: the same kernels, but for the projections."""

    def kernels(name):
        with_strides = [(tuple(c.kernel.shape), c.strides) for c in convolutions(build(name))]
        return sorted(with_strides)

    projections = [((1, 1, 2**i, 2 ** (i + 1)), (2, 2)) for i in (6, 7, 8)]
    expected = kernels(residual)
    if residual == "resnet18":
        for projection in projections:
            expected.remove(projection)
    assert kernels(plain) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in PINNED if n.startswith(("resnet", "plain"))])
def test_depth_is_in_the_name(name):
    """Convolutions other than projections, and the dense layer."""
    net = nets.NETS[name](10)
    found = layers(net, (Convolution, Block, PreActivationBlock))
    shortcuts = [x.shortcut for x in found if isinstance(x, Block)]
    shortcuts += [x.projection for x in found if isinstance(x, PreActivationBlock)]
    projections = sum(len(convolutions(s)) for s in shortcuts if s is not None)
    depth = name.removeprefix("resnet").removeprefix("plain").split("_")[0]
    assert sum(isinstance(x, Convolution) for x in found) - projections + 1 == int(depth)
    assert len(net.stages) == (5 if depth in CIFAR else 6) + name.endswith("_v2")


def test_lengths_of_blocks_and_filters_must_agree():
    with pytest.raises(ValueError, match=r"blocks=\(2, 2\)"):
        ResNet(10, block=BasicBlock, blocks=(2, 2))


def test_a_pre_activation_block_with_a_residual_of_0_is_the_identity():
    """For negative values too."""
    block, x = PreActivationBlock(2), images(2, 4, 8)
    block(x, training=False)
    last = block.residual.block_2.conv
    last.kernel.assign(tf.zeros_like(last.kernel))
    np.testing.assert_array_equal(block(x, training=False), x)


def test_a_projection_has_no_stride():
    with pytest.raises(ValueError, match="strides=2"):
        PreActivationBlock(2, strides=2, project=True)


# The Inceptions.


@pytest.mark.slow
def test_googlenet_costs_what_table_1_says():
    """Except for its first row, 34 M, which is not a plain 7x7 convolution."""
    net = build("inception_v1", size=32, num_classes=1000, stem="large", auxiliary=False)
    total = sum(row.flops for row in trace(net, (224, 224, 3)).rows)
    first = 112 * 112 * 7 * 7 * 3 * 64
    # Sum of the column "ops" in millions: convolution, modules 3a to 5b, linear.
    rest = 360 + 128 + 304 + 73 + 88 + 100 + 119 + 170 + 54 + 71 + 1
    assert (total - first) / 1e6 == pytest.approx(rest, rel=0.01)


@pytest.mark.slow
def test_auxiliary_heads_can_be_left_out():
    with_heads, without = build("inception_v1", size=8), build("inception_v1", 8, auxiliary=False)
    assert len(with_heads.auxiliary_heads) == 2
    assert without.auxiliary_heads == {}
    heads = sum(count(h.variables) for h in with_heads.auxiliary_heads.values())
    assert count(with_heads.variables) - heads == count(without.variables)
    # A net that has none accepts the keyword.
    assert build("resnet20", auxiliary=False).auxiliary_heads == {}


def test_auxiliary_logits_are_returned_in_training_only():
    net, x = build("inception_v1", size=8), images(2, 8, 3)
    assert net(x, training=False).shape == (2, 10)
    logits, *others = net(x, training=True, seed=(0, 1))
    assert [y.shape for y in (logits, *others)] == [(2, 10)] * 3


@pytest.mark.slow
def test_papers_weights():
    assert nets.net_class("inception_v1").auxiliary_weight == 0.3
    assert nets.net_class("inception_v3").auxiliary_weight == 0.4
    assert nets.net_class("inception_v3").label_smoothing == 0.1
    assert nets.net_class("inception_v4").label_smoothing == 0
    assert unbuilt("inception_v1").auxiliary_4a.dropout.rate == 0.7
    rates = [unbuilt(f"inception_v{i}").head.dropout.rate for i in (1, 2, 3, 4)]
    assert rates == [0.4, 0, 0.2, 0.2]
    assert unbuilt("inception_resnet_v1").head.dropout.rate == 0.2
    assert unbuilt("inception_resnet_v2").head.dropout.rate == 0.2


def test_local_response_normalization_by_hand():
    x = np.abs(np.random.default_rng(0).normal(size=(1, 1, 1, 7))).astype(np.float32) * 100
    y = LocalResponseNorm()(tf.constant(x), training=False).numpy()
    squares = x[0, 0, 0] ** 2
    # Krizhevsky et al. 2012 with k = 1, n = 5, and alpha / n as in Caffe.
    sums = [squares[max(0, i - 2) : i + 3].sum() for i in range(7)]
    expected = x[0, 0, 0] / (1 + 1e-4 / 5 * np.array(sums)) ** 0.75
    np.testing.assert_allclose(y[0, 0, 0], expected, rtol=1e-5)
    assert np.any(y < 0.9 * x)


@pytest.mark.slow
def test_inception_v1_has_biases_or_batch_norm():
    def names(name):
        return {v.name for v in build(name, size=8).inception_3a.variables}

    assert names("inception_v1") == {"kernel", "bias"}
    with_norm = {"kernel", "gamma", "beta", "moving_mean", "moving_variance"}
    assert names("inception_v1_bn") == with_norm


def test_residuals_are_scaled():
    block, x = InceptionResNetC(4, (3, 3), scale=0.25), images(2, 3, 4)
    block(x, training=False)
    block.expand.conv.kernel.assign(tf.zeros_like(block.expand.conv.kernel))
    block.expand.conv.bias.assign([8.0, 0.0, -8.0, 4.0])
    expected = tf.nn.relu(x + tf.constant([2.0, 0.0, -2.0, 1.0]))
    np.testing.assert_allclose(block(x, training=False), expected, rtol=1e-6)


def test_the_last_module_of_inception_resnet_v2_has_neither_scale_nor_relu():
    modules = unbuilt("inception_resnet_v2").inception_c.blocks[:-1]
    assert [(m.scale, m.relu) for m in modules] == [(0.2, True)] * 9 + [(1.0, False)]


# The blocks of Inception10.


def kernel_sizes(block):
    sizes = [[c.kernel_size for c in convolutions(branch)] for branch in block.branches]
    return [sorted(branch) for branch in sizes]


def test_blocks_of_inception10_differ_in_one_idea():
    classic = kernel_sizes(InceptionBlock(2))
    stacked = kernel_sizes(StackedBlock(2))
    factorized = kernel_sizes(nets.inception10.FactorizedBlock(2))
    assert classic == [[(1, 1)], [(1, 1), (3, 3)], [(1, 1), (5, 5)], [(1, 1)]]
    assert stacked == [[(1, 1)], [(1, 1), (3, 3)], [(1, 1), (3, 3), (3, 3)], [(1, 1)]]
    assert factorized[1:3] == [[(1, 1), (1, 3), (3, 1)], [(1, 1), (1, 5), (5, 1)]]


def test_residual_inception_block_adds_its_input():
    block, x = ResidualInceptionBlock(1), images(2, 6, 4)
    block(x, training=False)
    block.expand.batch_norm.gamma.assign([0.0] * 4)
    np.testing.assert_allclose(block(x, training=False), tf.nn.relu(x))


@pytest.mark.parametrize("name", [pytest.param("inception_v1", marks=pytest.mark.slow), "resnet20"])
def test_dropout_of_a_net_is_a_function_of_the_seed(name):
    """Only nets with dropout need a seed."""
    net, x = build(name, size=8), images(4, 8, 3)
    if name == "resnet20":
        gradients(net, x, seed=None)
        return
    with pytest.raises(ValueError, match="seed"):
        net(x, training=True)
    first, again, other = (gradients(net, x, seed=(0, s))[0][0].numpy() for s in (1, 1, 2))
    np.testing.assert_allclose(first, again, rtol=1e-4, atol=1e-4)
    assert np.abs(first - other).max() > 1e-3


def text(layer):
    """Layers as text: kernel sizes, names of other layers, and branches in brackets."""
    if hasattr(layer, "branches"):
        return "[" + " | ".join(layout(layer)) + "]"
    if hasattr(layer, "blocks"):
        return " ".join(map(text, layer.blocks))
    if isinstance(layer, (ConvBatchNorm, ConvRelu)):
        height, width = layer.conv.conv.kernel_size
        return f"{height}x{width}"
    return type(layer).__name__


def layout(branches):
    """Each branch as text."""
    return [text(branch) for branch in branches.branches]


@pytest.mark.parametrize(
    ("name", "small", "large"),
    [
        (
            "inception_v1",
            "3x3 LocalResponseNorm 1x1 3x3 LocalResponseNorm",
            "7x7 MaxPool LocalResponseNorm 1x1 3x3 LocalResponseNorm MaxPool",
        ),
        ("inception_v1_bn", "3x3 1x1 3x3", "7x7 MaxPool 1x1 3x3 MaxPool"),
        (
            "inception_v2",
            "DepthwiseConvolution 1x1 1x1 3x3",
            "DepthwiseConvolution 1x1 MaxPool 1x1 3x3 MaxPool",
        ),
        ("inception_v3", "3x3 3x3 3x3 1x1 3x3", "3x3 3x3 3x3 MaxPool 1x1 3x3 MaxPool"),
        ("inception_resnet_v1", "3x3 3x3 3x3 1x1 3x3 3x3", "3x3 3x3 3x3 MaxPool 1x1 3x3 3x3"),
        ("inception10", "3x3", "7x7 CenteredMaxPool"),
        ("resnet18", "3x3", "7x7 CenteredMaxPool"),
    ],
)
def test_stems(name, small, large):
    def stem(which):
        return text(unbuilt(name, which).stem)

    assert stem("small") == small
    assert stem("large") == large


def test_layout_of_inception_v4():
    """Szegedy et al. 2016, figures 3 to 8, with the order of 1x7 and 7x1 of the released code."""
    net = unbuilt("inception_v4")
    assert layout(net.stem.block_3) == ["MaxPool", "3x3"]
    assert layout(net.stem.block_4) == ["1x1 3x3", "1x1 1x7 7x1 3x3"]
    assert layout(net.stem.block_5) == ["3x3", "MaxPool"]
    assert layout(net.inception_a.block_0) == ["1x1", "1x1 3x3", "1x1 3x3 3x3", "AvgPool 1x1"]
    assert layout(net.reduction_a) == ["3x3", "1x1 3x3 3x3", "MaxPool"]
    assert layout(net.inception_b.block_0) == [
        "1x1", "1x1 1x7 7x1", "1x1 7x1 1x7 7x1 1x7", "AvgPool 1x1",
    ]  # fmt: skip
    assert layout(net.reduction_b) == ["1x1 3x3", "1x1 1x7 7x1 3x3", "MaxPool"]
    assert layout(net.inception_c.block_0) == [
        "1x1", "1x1 [1x3 | 3x1]", "1x1 3x1 1x3 [1x3 | 3x1]", "AvgPool 1x1",
    ]  # fmt: skip


def test_layout_of_inception_resnet_v1():
    """Szegedy et al. 2016, figures 10 to 13."""
    net = unbuilt("inception_resnet_v1")
    assert layout(net.inception_a.block_0.inception) == ["1x1", "1x1 3x3", "1x1 3x3 3x3"]
    assert layout(net.inception_b.block_0.inception) == ["1x1", "1x1 1x7 7x1"]
    assert layout(net.reduction_b) == ["1x1 3x3", "1x1 3x3", "1x1 3x3 3x3", "MaxPool"]
    assert layout(net.inception_c.block_0.inception) == ["1x1", "1x1 1x3 3x1"]


def test_layout_of_inception_v1_and_v2():
    """GoogLeNet has max pooling; BN-Inception has average pooling except in 5b (figure 5)."""
    net = unbuilt("inception_v1")
    assert layout(net.inception_5b) == ["1x1", "1x1 3x3", "1x1 5x5", "MaxPool 1x1"]
    net = unbuilt("inception_v2")
    assert layout(net.inception_5a) == ["1x1", "1x1 3x3", "1x1 3x3 3x3", "AvgPool 1x1"]
    assert layout(net.inception_5b) == ["1x1", "1x1 3x3", "1x1 3x3 3x3", "MaxPool 1x1"]
    assert layout(net.inception_4e) == ["1x1 3x3", "1x1 3x3 3x3", "MaxPool"]


@pytest.mark.parametrize(
    "block",
    [
        DepthwiseConvolution(3),
        LocalResponseNorm(),
        AvgPool(3),
        CenteredMaxPool(),
        ResidualInceptionBlock(2),
        InceptionResNetC(8, (3, 3)),
        PreActivationBlock(2, project=True),
        BottleneckBlock(2),
    ],
    ids=lambda block: type(block).__name__,
)
def test_blocks_in_bfloat16(block):
    """Outputs in bfloat16 near those in float32, and a gradient for every variable."""
    x = images(4, 6, 8)
    expected = block(x, training=False)
    for layer in layers(block, tf.keras.layers.Layer):
        layer.dtype_policy = "mixed_bfloat16"
    y = block(x, training=False)
    assert y.dtype == tf.bfloat16
    np.testing.assert_allclose(y, expected, atol=0.05 * np.abs(expected).max())
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.cast(block(x, training=True), tf.float32) ** 3)
    for gradient in tape.gradient(loss, [v.value for v in block.trainable_variables]):
        assert np.all(np.isfinite(gradient))
        assert np.any(gradient != 0)


# Values by hand, of layers that no model in Keras checks.


def test_conv_relu_by_hand():
    layer, x = ConvRelu(3, 1), images(2, 4, 2)
    y = layer(x, training=False)
    np.testing.assert_allclose(layer.conv.conv.bias, [0.2] * 3, rtol=1e-6)
    expected = np.maximum(x.numpy() @ layer.conv.conv.kernel.numpy()[0, 0] + 0.2, 0)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert np.any(expected == 0)


def test_a_basic_block_has_a_relu_inside():
    block, x = BasicBlock(3), images(2, 6, 3)
    block(x, training=False)
    first = block.residual.block_0(x, training=False)
    assert np.min(first) == 0
    second = block.residual.block_1(first, training=False)
    assert np.min(second) < 0
    np.testing.assert_allclose(block(x, training=False), tf.nn.relu(x + second), atol=1e-5)


def test_auxiliary_heads_have_average_pooling():
    x = images(1, 14, 2)
    pooled = pool_by_thirds(x).numpy()
    assert pooled.shape == (1, 4, 4, 2)
    np.testing.assert_allclose(pooled[0, 1, 2], x.numpy()[0, 3:8, 6:11].mean((0, 1)), rtol=1e-4)
    corner = x[:, :2, :2]
    mean = corner.numpy().mean((0, 1, 2))
    np.testing.assert_allclose(pool_by_thirds(corner)[0, 0, 0], mean, rtol=1e-4)


def test_the_auxiliary_head_of_googlenet_by_hand():
    head, x = AuxiliaryHead(3, ConvRelu), images(2, 14, 4)
    logits = head(x, training=False).numpy()
    hidden = head.conv(pool_by_thirds(x), training=False).numpy().reshape(2, 4 * 4 * 128)
    kernel, bias = head.hidden.get_weights()
    assert kernel.shape == (2048, 1024)
    hidden = np.maximum(hidden @ kernel + bias, 0)
    kernel, bias = head.dense.get_weights()
    np.testing.assert_allclose(logits, hidden @ kernel + bias, rtol=1e-3, atol=1e-4)

    def training():
        with dropout_seed((0, 1)):
            return head(x, training=True).numpy()

    assert np.abs(training() - logits).max() > 1e-2  # Dropout.
    np.testing.assert_array_equal(training(), training())


def test_scales_of_inception_resnet_v1():
    net = unbuilt("inception_resnet_v1")
    stages = (net.inception_a, net.inception_b, net.inception_c)
    assert [{m.scale for m in stage.blocks} for stage in stages] == [{0.17}, {0.1}, {0.2}]
    assert [len(stage.blocks) for stage in stages] == [5, 10, 5]
