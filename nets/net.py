"""Base class of all nets: a sequence of named stages, from images to logits.

    class MyNet(Net):
        def __init__(self, num_classes, *, stem="small"):
            super().__init__()
            self.stem = SmallStem(16) if stem == "small" else LargeStem(16)
            self.head = Head(num_classes)
            self.stage_names = ("stem", "head")

A net that is not a sequence of stages overrides `call`.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import tensorflow as tf

from nets.batch_norm import BatchNormDefaults, batch_norm_defaults
from nets.dropout import dropout_seed
from nets.layers import Composite


class Sizes(NamedTuple):
    """Smallest height and width of images in pixels, with the small and with the large stem."""

    small: int
    large: int


class Net(Composite):
    """An image classifier: `net(images, training=...)` returns logits.

    Images are float [batch, height, width, channels], normalized. Logits are float32
    [batch, num_classes]. `training` has no default: True normalizes with the statistics of the
    batch and updates the moving statistics, False uses the moving statistics. In training, a net
    with auxiliary heads returns a tuple of its logits and those of each auxiliary head.

    Attributes:
        stage_names: names of the attributes that hold the stages, in the order they run.
        auxiliary: for each auxiliary head, the name of the stage whose output it takes and the name
            of the attribute that holds it.

    Settings of the paper or of its authors' code:
        smallest_size: smallest height and width of images.
        batch_norm_momentum, batch_norm_epsilon: of each BatchNorm that does not set its own.
        sync_batch_norm: whether replicas share their batch statistics.
        auxiliary_weight: weight of each auxiliary head's loss in the training loss.
        label_smoothing: default label smoothing of the training loss.
    """

    stage_names: tuple[str, ...] = ()
    auxiliary: tuple[tuple[str, str], ...] = ()
    smallest_size = Sizes(small=1, large=1)
    # He et al.'s released code: Torch's momentum of 0.1, which is 0.9 here, and epsilon 1e-5.
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

    @property
    def heads(self) -> dict[str, tf.keras.layers.Layer]:
        """The last stage and the auxiliary heads by name: what depends on the classes."""
        return {name: getattr(self, name) for name in self.stage_names[-1:]} | self.auxiliary_heads

    def freeze(self, names: Iterable[str]) -> None:
        """Keeps stages as they are in training.

        Their weights are not trainable, and they run in evaluation mode: BatchNorm normalizes with
        its moving statistics, which stay as they are, and nothing is dropped. Call it after the
        net is built and before an optimizer is made for it.

        Args:
            names: of stages.
        """
        for name in names:
            self.stages[name].trainable = False

    def __call__(self, images, *, training, seed=None, rows=(0, None)):
        """Returns the logits.

        Args:
            images: float [batch, height, width, channels].
            training: see the class.
            seed: integers [2], different at each step, that seed dropout and what else is random.
                Required in training by nets that have such layers.
            rows: which rows of the global batch these images are (see `nets.dropout.dropout_seed`).
        """
        defaults = BatchNormDefaults(
            self.batch_norm_momentum, self.batch_norm_epsilon, self.sync_batch_norm
        )
        with batch_norm_defaults(defaults), dropout_seed(seed, rows):
            return super().__call__(images, training=training)

    def call(self, images, *, training):
        if not self.stage_names:
            raise ValueError(f"{type(self).__name__} must set stage_names or override call")
        outputs = dict(self.run_stages(images, training=training))
        logits = outputs[self.stage_names[-1]]
        others = [outputs[name] for _, name in self.auxiliary]
        return (logits, *others) if training and others else logits

    def run_stages(self, images, *, training) -> Iterator[tuple[str, tf.Tensor]]:
        """Yields the name and the output of each stage, then of each auxiliary head.

        Stages that are frozen run as in evaluation, whatever `training` is.
        """
        x, outputs = images, {}
        for name in self.stage_names:
            stage = getattr(self, name)
            x = stage(x, training=training and stage.trainable)
            outputs[name] = x
            yield name, x
        # Called in evaluation too, so that the first call creates their variables. A traced
        # evaluation prunes them, since nothing uses their outputs.
        for stage, name in self.auxiliary:
            yield name, getattr(self, name)(outputs[stage], training=training)
