"""Weights of one net as the initial weights of another of the same name.

    weights = transfer.read_weights(trained)
    head_copied = transfer.copy_weights(weights, net, same_classes=False)

The nets may differ in their number of classes, in the size of their images, and in having auxiliary
heads.
"""

import numpy as np

from nets.net import Net
from nets.pretrained import PretrainedError

Weights = dict[str, list[np.ndarray]]


def read_weights(net: Net) -> Weights:
    """Weights and moving statistics of a built net, by the names of stages and auxiliary heads."""
    return {name: [v.numpy() for v in layer.variables] for name, layer in _parts(net).items()}


def _parts(net: Net) -> dict:
    # A net that is not a sequence of stages is one part, which fits a net with as many classes.
    return {**net.stages, **net.auxiliary_heads} or {"net": net}


def copy_weights(weights: Weights, net: Net, *, same_classes: bool) -> bool:
    """Copies weights and moving statistics into a built net.

    Args:
        weights: from `read_weights`.
        net: of the same name.
        same_classes: whether the classes are the same. Otherwise the head and the auxiliary heads
            keep their values. So do auxiliary heads without weights that fit, since the shape of
            some depends on the size of the images.

    Returns:
        Whether the head was copied as well.

    Raises:
        PretrainedError: the weights do not fit the net, which is left unchanged.
    """
    parts, copied = _parts(net), []
    if "net" in parts and not same_classes:
        raise PretrainedError("a net that overrides `call` has no head that could be left out")
    for name, layer in parts.items():
        if name in net.heads and not same_classes:
            continue
        values = weights.get(name, [])
        if [tuple(v.shape) for v in layer.variables] == [value.shape for value in values]:
            copied.append(name)
        elif name not in net.auxiliary_heads:
            raise PretrainedError(f"the weights do not fit the {name} of this net")
    for name in copied:
        for variable, value in zip(parts[name].variables, weights[name], strict=True):
            variable.assign(value)
    return same_classes
