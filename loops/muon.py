"""Muon for convolutions (Jordan et al. 2024, "Muon: An optimizer for hidden layers")."""

import tensorflow as tf


class Muon(tf.keras.optimizers.Muon):
    """Keras' Muon, with kernels of convolutions as its matrices.

    The momentum of a kernel [height, width, channels, filters], as a matrix of
    height * width * channels rows, is replaced by the nearest matrix with orthogonal columns or
    rows, approximately, and scaled to a root mean square of 0.2 (Liu et al. 2025, "Muon is
    Scalable for LLM Training", section 2.2). Heads, biases, BatchNorm and depthwise kernels, whose
    channels never meet, follow Adam's rule with a tenth of the learning rate; the weight decay of
    heads is that of the full rate. Keras' own, made for language models, would leave convolutions
    to Adam, and not the head. Unlike in Jordan et al. 2024, the first convolution is not left to
    Adam either.

    Args:
        learning_rate: a float or a LearningRateSchedule.
        momentum: in [0, 1), in the form of Nesterov.
    """

    def __init__(self, learning_rate=1e-3, *, momentum: float = 0.95, **kwargs):
        super().__init__(
            learning_rate, momentum=momentum, adam_lr_ratio=0.1, weight_decay=None, **kwargs
        )

    # Both have no public counterpart.
    def _should_use_adamw(self, variable):
        return len(variable.shape) != 4 or "depthwise" in variable.path

    def _muon_update_step(self, gradient, variable, lr, m):
        m.assign(self.momentum * m + gradient)
        matrix = tf.reshape(gradient + self.momentum * m, (-1, variable.shape[-1]))
        update = self.lr_adjust(self.zeropower_via_newtonschulz5(matrix, self.ns_steps))
        variable.assign_sub(lr * tf.reshape(update, variable.shape))
