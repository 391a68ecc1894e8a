"""What is trained: nets by name.

    net = nets.build("resnet18", num_classes=10, image_shape=(32, 32, 3))
    logits = net(images, training=True)

A new net is a file beside this one and a line in the table.
"""

import functools

import tensorflow as tf

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

# What the nets of He et al. 2015, section 4.2, have in common, and the nets without shortcuts.
_cifar = functools.partial(ResNet, filters=(16, 32, 64), block=BasicBlock, shortcut=PaddedShortcut)
_projected = functools.partial(_cifar, shortcut=ProjectionShortcut)
_plain = functools.partial(ResNet, block=PlainBlock, shortcut=None)

NETS = {
    "inception10": functools.partial(Inception10, block=InceptionBlock),
    "inception10_v2": functools.partial(Inception10, block=StackedBlock),
    "inception10_v3": functools.partial(Inception10, block=FactorizedBlock),
    "inception10_residual": functools.partial(Inception10, block=ResidualInceptionBlock),
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
}

# A smaller image gets a net's small stem, others the large one, unless told otherwise.
SMALLEST_LARGE_IMAGE = 96


class NetError(ValueError):
    """There is no such net, or it does not take such images."""


def check_name(name: str) -> None:
    """Raises NetError, which lists the known names, unless `name` is a net's."""
    if name not in NETS:
        raise NetError(f"unknown net {name!r}; known nets: {', '.join(NETS)}")


def net_class(name: str) -> type[Net]:
    """The class of a net, with what its paper says as attributes (see `nets.net.Net`).

    Raises:
        NetError: there is no net of that name.
    """
    check_name(name)
    made = NETS[name]
    return made.func if isinstance(made, functools.partial) else made


def default_stem(image_shape: tuple[int, int, int]) -> str:
    """The stem for images of a shape: "small" or "large"."""
    return "small" if min(image_shape[:2]) < SMALLEST_LARGE_IMAGE else "large"


def check_size(name: str, image_shape: tuple[int, int, int], stem: str | None = None) -> None:
    """Raises NetError, which tells the smallest size, if the images are too small for a net."""
    stem = stem or default_stem(image_shape)
    smallest = getattr(net_class(name).smallest_size, stem)
    if min(image_shape[:2]) < smallest:
        height, width, _ = image_shape
        other = net_class(name).smallest_size.small
        hint = f"; --stem=small takes them from {other}x{other}" if stem == "large" else ""
        raise NetError(
            f"images of {height}x{width} are too small for {name}, which with its {stem} stem "
            f"takes them from {smallest}x{smallest}{hint}"
        )


def build(
    name: str,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    stem: str | None = None,
    auxiliary: bool = True,
    batch_norm_momentum: float | None = None,
    sync_batch_norm: bool = False,
) -> Net:
    """Makes a net and all its variables.

    Call it eagerly, in the strategy's scope, after the precision policy and the seed are set.

    Args:
        name: a key of `NETS`.
        num_classes: width of the logits.
        image_shape: (height, width, channels) of the images it will see.
        stem: "small" or "large"; None for what suits the images.
        auxiliary: whether a net that has auxiliary heads gets them.
        batch_norm_momentum: see `nets.net.Net`; None for the net's own.
        sync_batch_norm: whether replicas normalize with the statistics of the whole batch.

    Raises:
        NetError: there is no net of that name, or the images are too small for it.
    """
    stem = stem or default_stem(image_shape)
    check_size(name, image_shape, stem)
    has_heads = net_class(name).auxiliary_weight > 0
    net = NETS[name](num_classes, stem=stem, **({"auxiliary": auxiliary} if has_heads else {}))
    if batch_norm_momentum is not None:
        net.batch_norm_momentum = batch_norm_momentum
    net.sync_batch_norm = sync_batch_norm
    net(tf.zeros((1, *image_shape)), training=False)
    return net
