"""Folds BatchNorm into the convolutions before it, for evaluation and export.

    count = fold(net)
    logits = net(images, training=False)  # The same up to rounding.

In evaluation, BatchNorm is one multiplication and one addition per channel: y = scale * x + offset
with scale = gamma / sqrt(variance + epsilon) and offset = beta - mean * scale. After a convolution,
the multiplication can be done to the kernel and the addition is a bias (Jacob et al. 2017,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
section 3.2).
"""

import tensorflow as tf

from nets.layers import ConvBatchNorm


def fold(net: tf.keras.layers.Layer) -> int:
    """Folds every `ConvBatchNorm` of a net, which can then be called with training=False only.

    A BatchNorm that does not directly follow a convolution is left as it is, as those before a
    convolution in `nets.resnet_v2`. Variables are kept. If they change, fold again.

    Args:
        net: with variables.

    Returns:
        Number of BatchNorms that were folded.

    Raises:
        ValueError: the net has no variables yet.
    """
    if not net.built:
        raise ValueError("fold needs a net with variables; call the net on images first")
    layers = tf.train.TrackableView(net).descendants()
    found = [layer for layer in layers if isinstance(layer, ConvBatchNorm)]
    for layer in found:
        layer.fold()
    return len(found)
