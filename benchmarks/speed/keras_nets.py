"""The nets of `nets.py` of plain Keras layers, in the functional style."""

import tensorflow as tf

from benchmarks.speed import nets
from benchmarks.speed.job import CLASSES

_layers = tf.keras.layers


class Builder:
    """Makes a model.

    Args:
        description: of the net.

    Attributes:
        named: the convolution and the BatchNorm of each `Conv`, and the dense layer, by path.
    """

    def __init__(self, description: nets.Description):
        self._description = description
        self.named: dict[str, tuple] = {}

    def model(self, image_size: int) -> tf.keras.Model:
        """The model, from normalized images to float32 logits."""
        images = x = tf.keras.Input((image_size, image_size, 3))
        for name, stage in self._description.stages.items():
            x = self._apply(stage, x, name)
        x = _layers.GlobalAveragePooling2D(dtype="float32")(x)
        if self._description.dropout:
            x = _layers.Dropout(self._description.dropout, dtype="float32")(x)
        dense = _layers.Dense(CLASSES, dtype="float32")
        self.named["head/dense"] = (dense,)
        return tf.keras.Model(images, dense(x))

    def _apply(self, unit, x, path: str):
        if isinstance(unit, nets.Conv):
            return self._conv(unit, x, path)
        if isinstance(unit, nets.Pool):
            return _pool(unit, x)
        if isinstance(unit, nets.Branches):
            outputs = [
                self._apply(branch, x, f"{path}/branch_{i}")
                for i, branch in enumerate(unit.branches)
            ]
            return _layers.Concatenate()(outputs)
        if isinstance(unit, nets.Residual):
            shortcut = self._shortcut(unit.shortcut, x, f"{path}/shortcut")
            x = self._apply(unit.residual, x, f"{path}/residual")
            return _layers.ReLU()(_layers.Add()([x, shortcut]))
        for i, part in enumerate(unit):
            x = self._apply(part, x, f"{path}/block_{i}")
        return x

    def _shortcut(self, unit, x, path: str):
        if isinstance(unit, nets.Subsampling):
            missing = unit.filters - x.shape[-1]
            x = _layers.AveragePooling2D(1, 2)(x)  # Every second pixel.
            return _layers.Lambda(lambda y: tf.pad(y, ((0, 0),) * 3 + ((0, missing),)))(x)
        return x if unit is None else self._conv(unit, x, path)

    def _conv(self, unit: nets.Conv, x, path: str):
        padding = unit.padding
        if padding == "same" and unit.strides > 1:
            # Keras' "same" pads a strided convolution more at the right and the bottom.
            if max(unit.size) > 1:
                x = _layers.ZeroPadding2D([(n - 1) // 2 for n in unit.size])(x)
            padding = "valid"
        conv = _layers.Conv2D(
            unit.filters,
            unit.size,
            unit.strides,
            padding,
            use_bias=False,
            kernel_initializer="he_normal",
        )
        norm = _layers.BatchNormalization(
            momentum=self._description.momentum, epsilon=self._description.epsilon
        )
        self.named[path] = (conv, norm)
        x = norm(conv(x))
        return _layers.ReLU()(x) if unit.relu else x


def _pool(unit: nets.Pool, x):
    pool = _layers.MaxPooling2D if unit.kind == "max" else _layers.AveragePooling2D
    if unit.padding == "zeros":
        x = _layers.ZeroPadding2D(1)(x)
    return pool(3, unit.strides, "same" if unit.padding == "same" else "valid")(x)


def set_weights(named: dict[str, tuple], weights) -> None:
    """Copies the weights of the same net of another framework (see `ours.check`)."""
    for path, (layer, *norms) in named.items():
        if not norms:
            layer.set_weights([weights[f"{path}/kernel"], weights[f"{path}/bias"]])
            continue
        layer.set_weights([weights[f"{path}/kernel"]])
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        norms[0].set_weights([weights[f"{path}/{name}"] for name in names])


def multiply_adds(named: dict[str, tuple]) -> int:
    """Of convolutions and the dense layer, for one image."""
    total = 0
    for layer, *norms in named.values():
        height, width = layer.output.shape[1:3] if norms else (1, 1)
        total += height * width * layer.kernel.shape.num_elements()
    return total
