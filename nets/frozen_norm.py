"""Inception10 with a fault on purpose, to see what it costs."""

from nets.inception10 import Inception10


class FrozenNormInception10(Inception10):
    """Inception10 whose BatchNorm never normalizes: it runs in evaluation mode in training, too.

    Its moving statistics stay at mean 0 and variance 1, so all that remains is a scale and an
    offset for each channel. That is what `training=False`, passed to a BatchNorm of Keras by
    mistake, does; compared with `inception10` it shows what BatchNorm is worth.
    """

    def run_stages(self, images, *, training):
        del training
        return super().run_stages(images, training=False)
