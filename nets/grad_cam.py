"""Grad-CAM: which regions of an image speak for a class (Selvaraju et al. 2016).

heat = GradCAM(net)(images, classes, training=False)
"""

import tensorflow as tf

from nets import NetError
from nets.net import Net


class GradCAM:
    """Heat maps of a net, from its last feature maps of more than one pixel.

    Args:
        net: with variables.

    Raises:
        NetError: the net is not a sequence of stages.
    """

    def __init__(self, net: Net):
        if type(net).call is not Net.call or len(net.stage_names) < 2:
            raise NetError(
                f"Grad-CAM needs a net that is a sequence of stages, and {type(net).__name__} "
                "overrides `call` or has a single stage"
            )
        self.net = net

    def __call__(self, images: tf.Tensor, classes: tf.Tensor, *, training: bool) -> tf.Tensor:
        """How much each pixel speaks for a class (section 3, equations 1 and 2).

        The weight of a channel of the feature maps is the mean, over the pixels, of the gradient of
        the class's logit. The heat is the positive part of the weighted sum of the channels, scaled
        to the size of the images (bilinear).

        Args:
            images: float [batch, height, width, channels], normalized.
            classes: integers [batch].
            training: as for the net; False to explain a prediction.

        Returns:
            float32 [batch, height, width] in [0, 1], 1 at the hottest pixel of each image. All 0
            where nothing speaks for the class.

        Raises:
            NetError: no stage but the last has such feature maps.
        """
        net, features = self.net, None
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            x = tf.cast(images, net.compute_dtype)
            for name, output in net.run_stages(x, training=training):
                if name == net.stage_names[-1]:
                    break
                if output.shape.rank == 4 and max(output.shape[1:3]) > 1:
                    tape.watch(output)
                    features = output
            logits = tf.gather(output, classes, axis=1, batch_dims=1)
        if features is None:
            raise NetError(
                f"no stage of {type(net).__name__} but the last has feature maps of several pixels"
            )
        gradients = tf.cast(tape.gradient(logits, features), tf.float32)
        weights = tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)
        heat = tf.nn.relu(tf.reduce_sum(weights * tf.cast(features, tf.float32), axis=-1))
        heat = tf.image.resize(heat[..., None], images.shape[1:3])[..., 0]
        return tf.math.divide_no_nan(heat, tf.reduce_max(heat, axis=(1, 2), keepdims=True))
