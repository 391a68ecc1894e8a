"""Logs the norm of the trainable weights of each stage."""

import tensorflow as tf

from loops.hook import Hook


class StageNorms(Hook):
    """Adds `weight_norm_<stage>`, the Euclidean norm of a stage's weights, to the training rows."""

    def on_log(self, trainer, row):
        for name, stage in getattr(trainer.state.net, "stages", {}).items():
            weights = [variable.value for variable in stage.trainable_variables]
            row[f"weight_norm_{name}"] = float(tf.linalg.global_norm(weights))
