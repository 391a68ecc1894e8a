"""What is trained: nets by name.

    net = nets.build("resnet18", num_classes=10, image_shape=(32, 32, 3))
    logits = net(images, training=True)

A new net is a file beside this one and a line in the table.
"""

import functools

import tensorflow as tf

from nets.inception10 import Inception10
from nets.net import Net
from nets.resnet import ResNet

NETS = {
    "inception10": Inception10,
    "resnet18": functools.partial(ResNet, blocks=(2, 2, 2, 2)),
    "resnet34": functools.partial(ResNet, blocks=(3, 4, 6, 3)),
}


class UnknownNetError(ValueError):
    """The name is not in the table."""


def check_name(name: str) -> None:
    """Raises UnknownNetError, which lists the known names, unless `name` is a net's."""
    if name not in NETS:
        raise UnknownNetError(f"unknown net {name!r}; known nets: {', '.join(sorted(NETS))}")


def build(name: str, *, num_classes: int, image_shape: tuple[int, int, int]) -> Net:
    """Makes a net and all its variables.

    Call it eagerly, in the strategy's scope, after the precision policy and the seed are set.

    Args:
        name: a key of `NETS`.
        num_classes: width of the logits.
        image_shape: (height, width, channels) of the images it will see.

    Raises:
        UnknownNetError: there is no net of that name.
    """
    check_name(name)
    net = NETS[name](num_classes)
    net(tf.zeros((1, *image_shape)), training=False)
    return net
