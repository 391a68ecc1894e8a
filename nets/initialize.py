"""Initial values for short trainings: a first layer that whitens, and identity convolutions.

    whiten(net, images)
    make_identity(net)

Call them after the net is built. Without them, the convolutions have the values of their papers.
"""

import numpy as np
import tensorflow as tf

from nets.layers import Convolution
from nets.net import Net


def make_identity(net: Net) -> int:
    """Lets convolutions begin by passing their input on, as far as they have filters for it.

    Filter i takes channel i alone, at the center of the kernel, with weight 1. Filters beyond the
    number of input channels keep their values (Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a
    Single GPU", section 3.3; Zagoruyko & Komodakis 2017). The convolutions that take images are
    left as they are.

    Args:
        net: built.

    Returns:
        Number of convolutions.
    """
    found = [layer for layer in convolutions(net) if layer is not first_convolution(net)]
    for layer in found:
        kernel = layer.conv.kernel.numpy()
        height, width, inputs, filters = kernel.shape
        count = min(inputs, filters)
        kernel[..., :count] = 0
        kernel[height // 2, width // 2, range(count), range(count)] = 1
        layer.conv.kernel.assign(kernel)
    return len(found)


def whiten(net: Net, images: np.ndarray, *, epsilon: float = 5e-4) -> None:
    """Lets the first convolution give uncorrelated channels of equal variance.

    Its filters are the eigenvectors of the covariance of the images' patches, divided by the
    square roots of the eigenvalues, those of the largest eigenvalues first, and then the same
    negated. Filters beyond these keep their values (Page 2019, "How to Train Your ResNet 8: Bag of
    Tricks"; Jordan 2024, section 3.2).

    Args:
        net: built.
        images: of the train split, normalized, float32 [n, height, width, channels].
        epsilon: added to the eigenvalues.

    Raises:
        ValueError: the first stage of the net does not begin with a convolution of images.
    """
    layer = first_convolution(net)
    if layer is None:
        raise ValueError("the net does not begin with a convolution")
    kernel = layer.conv.kernel.numpy()
    height, width, channels, filters = kernel.shape
    values, vectors = np.linalg.eigh(_covariance(images, (height, width)))
    whitening = (vectors / np.sqrt(values + epsilon))[:, ::-1]  # The largest first.
    whitening = whitening.reshape(height, width, channels, -1)
    pairs = min(whitening.shape[-1], filters // 2)
    kernel[..., :pairs] = whitening[..., :pairs]
    kernel[..., pairs : 2 * pairs] = -whitening[..., :pairs]
    layer.conv.kernel.assign(kernel)


def _covariance(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Second moments of all patches of a height and width, float64 [values, values]."""
    # [n, rows, columns, channels, height, width]
    patches = np.lib.stride_tricks.sliding_window_view(images, size, axis=(1, 2))
    values = size[0] * size[1] * images.shape[-1]
    total, count = np.zeros((values, values)), 0
    for patch in patches:
        rows = patch.transpose(0, 1, 3, 4, 2).reshape(-1, values).astype(np.float64)
        total += rows.T @ rows
        count += len(rows)
    return total / count


def first_convolution(net: Net) -> Convolution | None:
    """The convolution that the images go through first; None if there is no such."""
    stage = net.stages[net.stage_names[0]] if net.stage_names else None
    while stage is not None and not isinstance(stage, Convolution):
        stage = getattr(stage, "conv", None) or getattr(stage, "block_0", None)
    return stage


def convolutions(layer: tf.keras.layers.Layer) -> list[Convolution]:
    """All convolutions in a net or a stage, built or not."""
    layers = tf.train.TrackableView(layer).descendants()
    return [layer for layer in layers if isinstance(layer, Convolution)]
