"""The nets by name.

    net = nets.build("resnet18", num_classes=10, image_shape=(32, 32, 3))
    logits = net(images, training=True)

To add a net, write its file in this folder, import its class here and add a line to `NETS`.
"""

import functools
from collections.abc import Sequence

import tensorflow as tf

from nets.frozen_norm import FrozenNormInception10
from nets.inception10 import (
    FactorizedBlock,
    Inception10,
    InceptionBlock,
    ResidualInceptionBlock,
    StackedBlock,
)
from nets.inception_resnet import InceptionResNetV1, InceptionResNetV2
from nets.inception_v1 import InceptionV1
from nets.inception_v2 import InceptionV2
from nets.inception_v3 import InceptionV3
from nets.inception_v4 import InceptionV4
from nets.initialize import convolutions, first_convolution
from nets.layers import MaxPool
from nets.net import Net
from nets.resnet import (
    BasicBlock,
    BottleneckBlock,
    PaddedShortcut,
    PlainBlock,
    ProjectionShortcut,
    ResNet,
)
from nets.resnet_v2 import ResNetV2
from nets.speednet import SpeedNet

# Shared settings: the nets of He et al. 2015, section 4.2, and the nets without shortcuts.
_cifar = functools.partial(ResNet, filters=(16, 32, 64), block=BasicBlock, shortcut=PaddedShortcut)
_projected = functools.partial(_cifar, shortcut=ProjectionShortcut)
_plain = functools.partial(ResNet, block=PlainBlock, shortcut=None)

NETS = {
    "inception10": functools.partial(Inception10, block=InceptionBlock),
    "inception10_v2": functools.partial(Inception10, block=StackedBlock),
    "inception10_v3": functools.partial(Inception10, block=FactorizedBlock),
    "inception10_residual": functools.partial(Inception10, block=ResidualInceptionBlock),
    "inception10_frozen_norm": FrozenNormInception10,
    "inception_v1": InceptionV1,
    "inception_v1_bn": functools.partial(InceptionV1, batch_norm=True),
    "inception_v2": InceptionV2,
    "inception_v3": InceptionV3,
    "inception_v4": InceptionV4,
    "inception_resnet_v1": InceptionResNetV1,
    "inception_resnet_v2": InceptionResNetV2,
    "resnet18": functools.partial(ResNet, block=BasicBlock, blocks=(2, 2, 2, 2)),
    "resnet34": functools.partial(ResNet, block=BasicBlock, blocks=(3, 4, 6, 3)),
    "resnet50": functools.partial(ResNet, block=BottleneckBlock, blocks=(3, 4, 6, 3)),
    "resnet101": functools.partial(ResNet, block=BottleneckBlock, blocks=(3, 4, 23, 3)),
    "resnet152": functools.partial(ResNet, block=BottleneckBlock, blocks=(3, 8, 36, 3)),
    "resnet50_v2": functools.partial(ResNetV2, blocks=(3, 4, 6, 3)),
    "resnet101_v2": functools.partial(ResNetV2, blocks=(3, 4, 23, 3)),
    "resnet152_v2": functools.partial(ResNetV2, blocks=(3, 8, 36, 3)),
    "resnet20": functools.partial(_cifar, blocks=(3, 3, 3)),
    "resnet32": functools.partial(_cifar, blocks=(5, 5, 5)),
    "resnet44": functools.partial(_cifar, blocks=(7, 7, 7)),
    "resnet56": functools.partial(_cifar, blocks=(9, 9, 9)),
    "resnet110": functools.partial(_cifar, blocks=(18, 18, 18)),
    "resnet20_projection": functools.partial(_projected, blocks=(3, 3, 3)),
    "resnet32_projection": functools.partial(_projected, blocks=(5, 5, 5)),
    "resnet44_projection": functools.partial(_projected, blocks=(7, 7, 7)),
    "resnet56_projection": functools.partial(_projected, blocks=(9, 9, 9)),
    "resnet110_projection": functools.partial(_projected, blocks=(18, 18, 18)),
    "plain18": functools.partial(_plain, blocks=(2, 2, 2, 2)),
    "plain34": functools.partial(_plain, blocks=(3, 4, 6, 3)),
    "plain20": functools.partial(_plain, filters=(16, 32, 64), blocks=(3, 3, 3)),
    "plain32": functools.partial(_plain, filters=(16, 32, 64), blocks=(5, 5, 5)),
    "plain44": functools.partial(_plain, filters=(16, 32, 64), blocks=(7, 7, 7)),
    "plain56": functools.partial(_plain, filters=(16, 32, 64), blocks=(9, 9, 9)),
    "speednet": SpeedNet,
}

# Images from this size on get the large stem by default, smaller ones the small stem.
SMALLEST_LARGE_IMAGE = 96


class NetError(ValueError):
    """The net is unknown, or the images are too small for it."""


def check_name(name: str) -> None:
    """Raises NetError, which lists the known names, unless `name` is a key of `NETS`."""
    if name not in NETS:
        raise NetError(f"unknown net {name!r}; known nets: {', '.join(NETS)}")


def net_class(name: str) -> type[Net]:
    """Returns the class of a net, whose attributes are its paper's settings (see `nets.net.Net`).

    Raises:
        NetError: the name is unknown, or its entry is no class.
    """
    check_name(name)
    net = NETS[name]
    found = net.func if isinstance(net, functools.partial) else net
    if not isinstance(found, type):
        raise NetError(f"{name} in NETS must be a class, or a functools.partial of one")
    return found


def default_stem(image_shape: tuple[int, int, int]) -> str:
    """Returns the default stem, "small" or "large", for images [height, width, channels]."""
    return "small" if min(image_shape[:2]) < SMALLEST_LARGE_IMAGE else "large"


def check_size(name: str, image_shape: tuple[int, int, int], stem: str | None = None) -> None:
    """Raises NetError, which names the smallest size, if the images are too small for a net.

    Args:
        name: a key of `NETS`.
        image_shape: (height, width, channels).
        stem: "small" or "large"; None for the default of the image size.
    """
    stem = stem or default_stem(image_shape)
    smallest = getattr(net_class(name).smallest_size, stem)
    if min(image_shape[:2]) < smallest:
        height, width, _ = image_shape
        other = net_class(name).smallest_size.small
        hint = f"; with --stem=small, at least {other}x{other}" if stem == "large" else ""
        raise NetError(
            f"images of {height}x{width} are too small for {name}: with its {stem} stem they must "
            f"be at least {smallest}x{smallest}{hint}"
        )


def check_auxiliary_heads(
    name: str, image_shapes: Sequence[tuple[int, int, int]], stem: str
) -> None:
    """Checks that auxiliary heads take images of several sizes, by building the net for each.

    Args:
        name: a key of `NETS`.
        image_shapes: (height, width, channels) of each size.
        stem: "small" or "large".

    Raises:
        NetError: the shapes of their weights differ.
    """
    if net_class(name).auxiliary_weight == 0:
        return
    found = set()
    for shape in image_shapes:
        heads = build(name, num_classes=1, image_shape=shape, stem=stem).auxiliary_heads
        found.add(str([v.shape for head in heads.values() for v in head.variables]))
    if len(found) > 1:
        raise NetError(f"the auxiliary heads of {name} are made for one size; use --noauxiliary")


def check_stages(name: str, freeze: Sequence[str], *, stem: str) -> None:
    """Checks that a net has stages to freeze, and is left something to train.

    Args:
        name: a key of `NETS`.
        freeze: names of stages.
        stem: "small" or "large".

    Raises:
        NetError: it is no sequence of stages, has none of such a name, or no stage with weights is
            left.
    """
    if freeze:
        _check_stages(name, NETS[name](1, stem=stem), freeze)


def _check_stages(name: str, net: Net, freeze: Sequence[str]) -> None:
    if not freeze:
        return
    _check_is_sequence(name, net)
    known = ", ".join(net.stage_names)
    if unknown := [stage for stage in freeze if stage not in net.stage_names]:
        raise NetError(f"{name} has no stage {unknown[0]!r}; its stages: {known}")
    pools = [stage for stage, layer in net.stages.items() if isinstance(layer, MaxPool)]
    if not set(net.stage_names) - set(freeze) - set(pools):
        raise NetError(f"no stage of {name} is left to train; its stages: {known}")


def check_head(name: str, freeze: Sequence[str], stem: str) -> None:
    """Raises NetError if the head of a net is not known, or frozen; arguments as `check_stages`."""
    net = NETS[name](1, stem=stem)
    _check_is_sequence(name, net)
    if net.stage_names[-1] in freeze:
        raise NetError(f"{net.stage_names[-1]} is frozen")


def check_whitening(name: str, freeze: Sequence[str], stem: str) -> None:
    """Checks that a net begins with a convolution, and that no random one is frozen with it.

    The arguments are those of `check_stages`.

    Raises:
        NetError: it does not, or the first stage is frozen and has further convolutions.
    """
    net = NETS[name](1, stem=stem)
    if first_convolution(net) is None:
        raise NetError(f"{name} does not begin with a convolution of all channels")
    first = net.stage_names[0]
    others = len(convolutions(net.stages[first])) - 1
    if first in freeze and others:
        raise NetError(f"{first} of {name} has {others} more convolutions, which would stay random")


def _check_is_sequence(name: str, net: Net) -> None:
    """Raises NetError if a net overrides `call`, so that its stages are not known."""
    if type(net).call is not Net.call or not net.stage_names:
        raise NetError(f"{name} is not a sequence of stages, since it overrides `call`")


def build(
    name: str,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    stem: str | None = None,
    auxiliary: bool = True,
    batch_norm_momentum: float | None = None,
    sync_batch_norm: bool = False,
    freeze: Sequence[str] = (),
) -> Net:
    """Creates a net and all its variables.

    Call it eagerly, in the strategy's scope, after setting the dtype policy and the random seed.
    The data layout is channels_last, whatever ~/.keras/keras.json says.

    Args:
        name: a key of `NETS`.
        num_classes: number of logits.
        image_shape: (height, width, channels) of the images.
        stem: "small" or "large"; None for the default of the image size.
        auxiliary: whether to create the auxiliary heads of a net that has them.
        batch_norm_momentum: BatchNorm momentum, in [0, 1]; None for the net's own.
        sync_batch_norm: whether replicas normalize with the statistics of the whole batch.
        freeze: names of stages that are not trained (see `nets.net.Net.freeze`).

    Raises:
        NetError: the name is unknown, the images are too small for the net, it has no such stages,
            or its output is not logits.
    """
    stem = stem or default_stem(image_shape)
    check_size(name, image_shape, stem)
    has_heads = net_class(name).auxiliary_weight > 0
    net = NETS[name](num_classes, stem=stem, **({"auxiliary": auxiliary} if has_heads else {}))
    if batch_norm_momentum is not None:
        net.batch_norm_momentum = batch_norm_momentum
    net.sync_batch_norm = sync_batch_norm
    _check_stages(name, net, freeze)
    _check_logits(name, net(tf.zeros((1, *image_shape)), training=False), num_classes)
    net.freeze(freeze)
    return net


def _check_logits(name: str, logits, num_classes: int) -> None:
    """Raises NetError if the output of a net in evaluation is not a row of logits."""
    shape = getattr(logits, "shape", None)
    if shape is None or tuple(shape) != (1, num_classes):
        found = f"a {type(logits).__name__}" if shape is None else f"shape {tuple(shape)}"
        raise NetError(
            f"{name} must return logits [batch, {num_classes}] with training=False, not {found}"
        )
