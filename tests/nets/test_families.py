"""What a paper says of one net or block."""

import functools

import numpy as np
import pytest
import tensorflow as tf

import nets
from nets.inception10 import InceptionBlock, ResidualInceptionBlock, StackedBlock
from nets.inception_resnet import InceptionResNetC
from nets.inception_v1 import AuxiliaryHead, ConvRelu, LocalResponseNorm
from nets.layers import ConvBatchNorm, Convolution, draws, pool_by_thirds
from nets.resnet import BasicBlock, BottleneckBlock, PaddedShortcut, PlainBlock, ResNet
from nets.resnet_v2 import PreActivationBlock
from nets.table import stage_rows, table
from tests.nets.helpers import count, gradients, images


@functools.cache
def build(name, size=32, num_classes=10, channels=3, **kwargs):
    return nets.build(name, num_classes=num_classes, image_shape=(size, size, channels), **kwargs)


def convolutions(layer):
    return [x.conv for x in layer._flatten_layers() if isinstance(x, Convolution)]


# The table and the names.


def test_unknown_net_lists_the_known_ones():
    with pytest.raises(nets.NetError, match=r"'resnet19'.*inception10, .*resnet18, resnet34"):
        build("resnet19")


def test_flops_by_hand():
    # Pixels x kernel height x kernel width x channels in x channels out.
    stem, *_, head = stage_rows(build("inception10"), (32, 32, 3))
    assert stem.flops == 32 * 32 * 3 * 3 * 3 * 16
    assert head.flops == 128 * 10


def test_flops_of_a_depthwise_convolution_by_hand():
    net = build("inception_v2", size=8, channels=2, num_classes=3)
    rows = stage_rows(net, (8, 8, 2))
    convolution = 64 * (3 * 3 * 2 * 8 + 16 * 64)
    assert rows[0].flops == convolution + 64 * (64 * 64 + 3 * 3 * 64 * 192)


def test_table_ends_with_the_sums():
    lines = table(build("resnet20"), (32, 32, 3)).splitlines()
    assert lines[-1] == "parameters: 269,722 trainable, 1,376 not"
    assert "stage_2  16 x 16 x 32" in lines[3]
    assert lines[-2] == "FLOPs are multiply-adds for one image."


def test_table_tells_what_only_training_runs():
    text = table(build("inception_v1_bn", size=8), (8, 8, 3))
    lines = text.splitlines()
    assert "without auxiliary_4a, auxiliary_4d, which only training runs" in lines[-2]
    assert [line.split()[0] for line in lines][6:8] == ["auxiliary_4a", "inception_4b"]
    # Parameters with the heads, FLOPs without.
    rows = stage_rows(build("inception_v1_bn", size=8), (8, 8, 3))
    parameters = sum(row.trainable for row in rows)
    flops = sum(row.flops for row in rows if not row.auxiliary)
    assert lines[-3].split() == ["total", f"{parameters:,}", f"{flops:,}"]


@pytest.mark.parametrize(("size", "stem"), [(28, "small"), (95, "small"), (96, "large")])
def test_the_stem_goes_by_the_shorter_side(size, stem):
    assert nets.default_stem((size, 200, 3)) == stem


@pytest.mark.parametrize(
    ("shape", "classes"), [((8, 8, 1), 3), ((28, 28, 1), 10), ((48, 64, 4), 7)]
)
@pytest.mark.parametrize("name", ["inception10", "resnet20", "inception_v1"])
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
    [("plain20", "resnet20"), ("plain56", "resnet56"), ("plain18", "resnet18")],
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


@pytest.mark.parametrize("name", ["resnet20", "resnet110", "plain56", "resnet34", "resnet152"])
def test_depth_is_in_the_name(name):
    """Convolutions that are not projections, and the dense layer."""
    net = nets.NETS[name](10)
    shortcuts = [x.shortcut for x in net._flatten_layers() if hasattr(x, "shortcut")]
    projections = sum(len(convolutions(s)) for s in shortcuts if s is not None)
    depth = len(convolutions(net)) - projections + 1
    assert depth == int(name.removeprefix("resnet").removeprefix("plain"))


def test_lengths_of_blocks_and_filters_must_agree():
    with pytest.raises(ValueError, match=r"blocks=\(2, 2\)"):
        ResNet(10, block=BasicBlock, blocks=(2, 2))


def test_nothing_stands_between_the_sums_of_a_pre_activation_net():
    """With a residual of 0 the block is the identity, negative numbers and all."""
    block, x = PreActivationBlock(2), images(2, 4, 8)
    block(x, training=False)
    last = block.residual.block_2.conv
    last.kernel.assign(tf.zeros_like(last.kernel))
    np.testing.assert_array_equal(block(x, training=False), x)


def test_a_projection_has_no_stride():
    with pytest.raises(ValueError, match="strides=2"):
        PreActivationBlock(2, strides=2, project=True)


# The Inceptions.


def test_googlenet_costs_what_table_1_says():
    """But for its first row, 34 M, which is no plain 7x7 convolution."""
    net = build("inception_v1", size=224, num_classes=1000)
    total = sum(row.flops for row in stage_rows(net, (224, 224, 3)) if not row.auxiliary)
    first = 112 * 112 * 7 * 7 * 3 * 64
    # Sum of the column "ops" in millions: convolution, modules 3a to 5b, linear.
    rest = 360 + 128 + 304 + 73 + 88 + 100 + 119 + 170 + 54 + 71 + 1
    assert (total - first) / 1e6 == pytest.approx(rest, rel=0.01)


def test_auxiliary_heads_can_be_left_out():
    with_heads, without = build("inception_v1", size=8), build("inception_v1", 8, auxiliary=False)
    assert len(with_heads.auxiliary_heads) == 2
    assert without.auxiliary_heads == {}
    heads = sum(count(h.variables) for h in with_heads.auxiliary_heads.values())
    assert count(with_heads.variables) - heads == count(without.variables)
    # A net without any takes the same keyword.
    assert build("resnet20", auxiliary=False).auxiliary_heads == {}


def test_auxiliary_heads_are_given_in_training_only():
    net, x = build("inception_v3", size=8), images(2, 8, 3)
    assert net(x, training=False).shape == (2, 10)
    logits, other = net(x, training=True, seed=(0, 1))
    assert logits.shape == other.shape == (2, 10)


def test_papers_weights():
    assert nets.net_class("inception_v1").auxiliary_weight == 0.3
    assert nets.net_class("inception_v3").auxiliary_weight == 0.4
    assert nets.net_class("inception_v3").label_smoothing == 0.1
    assert nets.net_class("inception_v4").label_smoothing == 0
    assert build("inception_v1", 8).head.dropout.rate == 0.4
    assert build("inception_v1", 8).auxiliary_4a.dropout.rate == 0.7
    assert build("inception_v2", 8).head.dropout.rate == 0
    assert build("inception_v3", 8).head.dropout.rate == 0.2


def test_local_response_normalization_by_hand():
    x = np.abs(np.random.default_rng(0).normal(size=(1, 1, 1, 7))).astype(np.float32) * 100
    y = LocalResponseNorm()(tf.constant(x), training=False).numpy()
    squares = x[0, 0, 0] ** 2
    # Krizhevsky et al. 2012 with k = 1, n = 5, and alpha over n as Caffe has it.
    sums = [squares[max(0, i - 2) : i + 3].sum() for i in range(7)]
    expected = x[0, 0, 0] / (1 + 1e-4 / 5 * np.array(sums)) ** 0.75
    np.testing.assert_allclose(y[0, 0, 0], expected, rtol=1e-5)
    assert np.any(y < 0.9 * x)


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


def test_the_last_module_of_inception_resnet_v2_is_neither_scaled_nor_cut():
    modules = nets.NETS["inception_resnet_v2"](10).inception_c.blocks[:-1]
    assert [(m.scale, m.relu) for m in modules] == [(0.2, True)] * 9 + [(1.0, False)]


# Inception10's styles of block.


def kernel_sizes(block):
    sizes = [[c.kernel_size for c in convolutions(branch)] for branch in block.branches]
    return [sorted(branch) for branch in sizes]


def test_styles_differ_in_one_idea():
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


@pytest.mark.parametrize("name", ["inception_v1", "inception_v3", "resnet20"])
def test_draws_of_a_net_come_from_the_seed(name):
    """Only nets with dropout need a seed; with one, a pass repeats."""
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
    """Layers as text: kernels, other layers by their names, and what is side by side."""
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
        return text(nets.NETS[name](10, stem=which).stem)

    assert stem("small") == small
    assert stem("large") == large


def test_layout_of_inception_v4():
    """Szegedy et al. 2016, figures 3 to 8, with the released code's order of 1x7 and 7x1."""
    net = nets.NETS["inception_v4"](10)
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
    net = nets.NETS["inception_resnet_v1"](10)
    assert layout(net.inception_a.block_0.inception) == ["1x1", "1x1 3x3", "1x1 3x3 3x3"]
    assert layout(net.inception_b.block_0.inception) == ["1x1", "1x1 1x7 7x1"]
    assert layout(net.reduction_b) == ["1x1 3x3", "1x1 3x3", "1x1 3x3 3x3", "MaxPool"]
    assert layout(net.inception_c.block_0.inception) == ["1x1", "1x1 1x3 3x1"]


def test_layout_of_inception_v1_and_v2():
    """GoogLeNet pools by maximum; BN-Inception by the mean but in 5b (figure 5)."""
    net = nets.NETS["inception_v1"](10)
    assert layout(net.inception_5b) == ["1x1", "1x1 3x3", "1x1 5x5", "MaxPool 1x1"]
    net = nets.NETS["inception_v2"](10)
    assert layout(net.inception_5a) == ["1x1", "1x1 3x3", "1x1 3x3 3x3", "AvgPool 1x1"]
    assert layout(net.inception_5b) == ["1x1", "1x1 3x3", "1x1 3x3 3x3", "MaxPool 1x1"]
    assert layout(net.inception_4e) == ["1x1 3x3", "1x1 3x3 3x3", "MaxPool"]


# Values by hand, for what no twin in Keras checks.


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


def test_auxiliary_heads_pool_by_the_mean():
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
        with draws((0, 1)):
            return head(x, training=True).numpy()

    assert np.abs(training() - logits).max() > 1e-2  # Dropout.
    np.testing.assert_array_equal(training(), training())


@pytest.mark.parametrize(
    ("name", "dropout"),
    [
        ("inception_v4", 0.2),
        ("inception_resnet_v1", 0.2),
        ("inception_resnet_v2", 0.2),
    ],
)
def test_what_slim_says_of_the_whole_net(name, dropout):
    net = nets.NETS[name](10)
    assert net.head.dropout.rate == dropout
    assert (net.batch_norm_momentum, net.batch_norm_epsilon) == (0.9997, 1e-3)


def test_scales_of_inception_resnet_v1():
    net = nets.NETS["inception_resnet_v1"](10)
    stages = (net.inception_a, net.inception_b, net.inception_c)
    assert [{m.scale for m in stage.blocks} for stage in stages] == [{0.17}, {0.1}, {0.2}]
    assert [len(stage.blocks) for stage in stages] == [5, 10, 5]
