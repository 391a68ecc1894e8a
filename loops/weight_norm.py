"""Logs the global norm of the trainable weights."""

import tensorflow as tf

from loops.hook import Hook


class WeightNorm(Hook):
    """Adds `weight_norm`, the Euclidean norm of all trainable weights, to the training rows."""

    def on_log(self, trainer, row):
        weights = [variable.value for variable in trainer.state.net.trainable_variables]
        row["weight_norm"] = float(tf.linalg.global_norm(weights))
