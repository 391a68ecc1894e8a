"""What every net is: stages in a row, from images to logits.

    class MyNet(Net):
        def __init__(self, num_classes, *, stem="small"):
            super().__init__()
            self.stem = SmallStem(16) if stem == "small" else LargeStem(16)
            self.head = Head(num_classes)
            self.stage_names = ("stem", "head")

A net that is not a plain row of stages overrides `call`.
"""

from typing import NamedTuple

import tensorflow as tf

from nets.layers import BatchNorm, draws


class Sizes(NamedTuple):
    """Least height and width of images in pixels, with the small stem and with the large one."""

    small: int
    large: int


class Net(tf.keras.layers.Layer):
    """A classifier: `net(images, training=...)` gives logits.

    Images are float [batch, height, width, channels], normalized; logits are float32
    [batch, num_classes]. `training` has no default: True normalizes with the batch and moves the
    moving statistics, False uses them. A net with auxiliary heads gives, in training, a tuple: its
    logits, and behind them those of each auxiliary head.

    Attributes:
        stage_names: names of the attributes that hold the stages, in the order they run.
        auxiliary: for each auxiliary head, the name of the stage it takes its input from, and the
            name of the attribute that holds it.

    And what the paper, or else its authors' code, says of the whole net:
        smallest_size: least height and width of images.
        batch_norm_momentum, batch_norm_epsilon: of every BatchNorm that has none of its own.
        sync_batch_norm: whether replicas normalize together.
        auxiliary_weight: share of each auxiliary head's loss in the training loss.
        label_smoothing: that the net is trained with, unless told otherwise.
    """

    stage_names: tuple[str, ...] = ()
    auxiliary: tuple[tuple[str, str], ...] = ()
    smallest_size = Sizes(small=1, large=1)
    # He et al.'s released code: Torch's momentum of 0.1 for new statistics, epsilon 1e-5.
    batch_norm_momentum = 0.9
    batch_norm_epsilon = 1e-5
    sync_batch_norm = False
    auxiliary_weight = 0.0
    label_smoothing = 0.0

    @property
    def stages(self) -> dict[str, tf.keras.layers.Layer]:
        """The stages by name, in the order they run."""
        return {name: getattr(self, name) for name in self.stage_names}

    @property
    def auxiliary_heads(self) -> dict[str, tf.keras.layers.Layer]:
        """The auxiliary heads by name."""
        return {name: getattr(self, name) for _, name in self.auxiliary}

    def build(self, input_shape):
        del input_shape
        for layer in self._flatten_layers():
            if isinstance(layer, BatchNorm):
                if layer.momentum is None:
                    layer.momentum = self.batch_norm_momentum
                if layer.epsilon is None:
                    layer.epsilon = self.batch_norm_epsilon
                if layer.synchronized is None:
                    layer.synchronized = self.sync_batch_norm

    def __call__(self, images, *, training, seed=None, rows=(0, None)):
        """Gives the logits.

        Args:
            images: float [batch, height, width, channels].
            training: as above.
            seed: integers [2] for dropout, other ones at each step; a net without needs none.
            rows: where in the global batch these images are (see `nets.layers.draws`).
        """
        with draws(seed, rows):
            return super().__call__(images, training=training)

    def call(self, images, *, training):
        x, behind = images, {}
        for name, stage in self.stages.items():
            x = stage(x, training=training)
            behind[name] = x
        # Made at every call, so that the first one makes their variables. A traced evaluation does
        # not run them, since nothing uses what they give.
        others = [
            getattr(self, name)(behind[stage], training=training) for stage, name in self.auxiliary
        ]
        return (x, *others) if training and others else x
