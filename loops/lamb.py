"""LAMB with Adam's rule for biases and BatchNorm (You et al. 2020)."""

import tensorflow as tf


class Lamb(tf.keras.optimizers.Lamb):
    """Keras' LAMB, with Adam's rule for variables of one axis: biases, and BatchNorm's scales.

    LAMB multiplies an update by the norm of the variable and divides it by its own (You et al.
    2020, "Large Batch Optimization for Deep Learning", algorithm 2). An offset or a bias begins at
    0, and so would hardly move in a short run; the authors' code leaves such variables out of this,
    as it does of the weight decay.
    """

    amsgrad = False  # Read by Adam's rule.

    def update_step(self, gradient, variable, learning_rate):
        of = tf.keras.optimizers.Lamb if len(variable.shape) > 1 else tf.keras.optimizers.Adam
        of.update_step(self, gradient, variable, learning_rate)
