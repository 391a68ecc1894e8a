"""What every net is: stages in a row, from images to logits.

    class MyNet(Net):
        def __init__(self, num_classes):
            super().__init__()
            self.stem = ConvBatchNorm(16, 3)
            self.head = Head(num_classes)
            self.stage_names = ("stem", "head")

A net that is not a plain row of stages overrides `call`.
"""

import tensorflow as tf


class Net(tf.keras.layers.Layer):
    """A classifier: `net(images, training=...)` gives logits.

    Images are float [batch, height, width, channels], normalized; logits are float32
    [batch, num_classes]. `training` has no default: True normalizes with the batch and moves the
    moving statistics, False uses them.

    Attributes:
        stage_names: names of the attributes that hold the stages, in the order they run.
    """

    stage_names: tuple[str, ...] = ()

    @property
    def stages(self) -> dict[str, tf.keras.layers.Layer]:
        """The stages by name, in the order they run."""
        return {name: getattr(self, name) for name in self.stage_names}

    def call(self, images, *, training):
        x = images
        for stage in self.stages.values():
            x = stage(x, training=training)
        return x
