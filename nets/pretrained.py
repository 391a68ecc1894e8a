"""Weights of tf.keras.applications in this project's nets.

    model = pretrained.load("resnet50", "keras", channels=3, stem="large")   # or a file
    net = nets.build("resnet50", num_classes=10, image_shape=(224, 224, 3))
    head_too = pretrained.copy_weights("resnet50", model, net)
    mean, std = pretrained.normalization("resnet50")
    logits = net((rgb / 255 - mean) / std, training=False)

The nets are the same functions, written differently: Keras' ResNets have biases before BatchNorm,
which are taken from the moving mean here, and its Inceptions have no BatchNorm scale, which is a
scale of one. Its ResNets were trained on BGR images; here their first kernel is turned around.
"""

import dataclasses
import pathlib
import warnings
from collections.abc import Callable, Iterator

import h5py
import numpy as np
import tensorflow as tf

from nets.net import Net

# Images as the weights were trained on them, for RGB in [0, 1]: the mean of ImageNet's pixels
# taken away (keras.applications.imagenet_utils, mode "caffe"), or from -1 to 1 (mode "tf").
_MEAN_TAKEN = {"mean": (123.68 / 255, 116.779 / 255, 103.939 / 255), "std": (1 / 255,) * 3}
_FROM_MINUS_1 = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


class PretrainedError(ValueError):
    """There are no such weights, or they do not fit the net."""


def _application(name: str) -> "_Application":
    if name not in _APPLICATIONS:
        raise PretrainedError(
            f"there are no Keras weights for {name}; there are for {', '.join(_APPLICATIONS)}"
        )
    return _APPLICATIONS[name]


def normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation, by channel of RGB in [0, 1], of the images that the weights go with.

    Raises:
        PretrainedError: there are no weights for a net of that name.
    """
    images = _application(name).images
    return images["mean"], images["std"]


def load(name: str, source: str, *, channels: int, stem: str) -> tf.keras.Model:
    """Loads the Keras model of a net with its weights.

    Args:
        name: of the net.
        source: "keras", for what Keras downloads, or a file of weights as a model of
            tf.keras.applications saves them, .h5 or .weights.h5.
        channels: of the images.
        stem: of the net.

    Raises:
        PretrainedError: they cannot be had, or are of no use for such a net.
    """
    make = getattr(tf.keras.applications, _application(name).keras_name)
    if channels != 3:
        raise PretrainedError(f"Keras' weights are for images of 3 channels; these have {channels}")
    if stem != "large":
        raise PretrainedError(f"Keras' weights are for the large stem of {name}, not the {stem}")
    if source == "keras":
        try:
            return make(weights="imagenet")
        except Exception as error:  # Whatever a network can do.
            raise PretrainedError(f"cannot get Keras' weights for {name}: {error}") from error
    path = pathlib.Path(source).expanduser()
    if not path.is_file():
        raise PretrainedError(f"{source} is neither a file of weights nor the word keras")
    if not h5py.is_hdf5(path):
        raise PretrainedError(f"{source} is not an HDF5 file (.h5, .weights.h5)")
    try:
        classes = _classes(path)
        top = {"include_top": False} if classes is None else {"classes": classes}
        model = make(weights=None, **top)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # What Keras warns of it then refuses, in one error.
            model.load_weights(path)
    except Exception as error:  # Of a file that is something else, Keras says nearly anything.
        what = " ".join(str(error).split())[:200]
        raise PretrainedError(f"{source} does not hold weights for {name}: {what}") from error
    return model


def _classes(path: pathlib.Path) -> int | None:
    """The classes of the model whose weights a file holds; None if it has no dense layer."""
    shapes = []

    def visit(_, item):
        if isinstance(item, h5py.Dataset) and len(item.shape) == 2:
            shapes.append(item.shape)

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return shapes[-1][1] if shapes else None


def copy_weights(name: str, model: tf.keras.Model, net: Net) -> bool:
    """Copies the weights and moving statistics of a Keras model into a built net.

    Auxiliary heads stay as they are, which Keras has none of.

    Args:
        name: of the net.
        model: from `load`, or made by the function of tf.keras.applications.
        net: with the large stem, for images of 3 channels.

    Returns:
        Whether the head was copied too: not if the model has none, or one of other classes.

    Raises:
        PretrainedError: the weights do not fit.
    """
    trunk = [stage for stage_name, stage in net.stages.items() if stage_name != "head"]
    ours = [v for stage in trunk for v in stage.trainable_variables]
    our_statistics = [v for stage in trunk for v in stage.non_trainable_variables]
    application = _APPLICATIONS[name]
    weights, statistics = [], []
    for conv, batch_norm in application.layers(model):
        new_weights, new_statistics = _unit(conv, batch_norm)
        weights += new_weights
        statistics += new_statistics
    if application.bgr:
        weights[0] = weights[0][:, :, ::-1]
    pairs = [(ours, weights), (our_statistics, statistics)]
    for variables, values in pairs:
        fits = [tuple(v.shape) for v in variables] == [value.shape for value in values]
        if not fits:
            raise PretrainedError(f"the weights of {model.name} do not fit this net, {name}")
    for variables, values in pairs:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
    return _copy_head(model, net)


def _copy_head(model: tf.keras.Model, net: Net) -> bool:
    """Copies the last layer if it is there and has the net's classes."""
    last = model.layers[-1]
    dense = net.head.dense
    if not isinstance(last, tf.keras.layers.Dense) or last.kernel.shape != dense.kernel.shape:
        return False
    dense.kernel.assign(last.kernel)
    dense.bias.assign(last.bias)
    return True


def _unit(conv, batch_norm) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights and statistics of a convolution, a BatchNorm, or both, as our layers hold them."""
    weights, statistics = [], []
    bias = None
    if conv is not None:
        weights.append(conv.kernel.numpy())
        bias = conv.bias.numpy() if conv.use_bias else None
    if batch_norm is None:
        return [*weights, bias], []
    mean = batch_norm.moving_mean.numpy()
    scale = np.ones_like(mean) if batch_norm.gamma is None else batch_norm.gamma.numpy()
    weights += [scale, batch_norm.beta.numpy()]
    statistics += [mean if bias is None else mean - bias, batch_norm.moving_variance.numpy()]
    return weights, statistics


Units = Iterator[tuple[tf.keras.layers.Layer | None, tf.keras.layers.Layer | None]]


def _inception(model: tf.keras.Model) -> Units:
    """Convolutions with BatchNorm in the order they were made, which is ours."""

    def number(layer):
        # conv2d, conv2d_1, conv2d_2, ...; "layers" has them by their depth.
        suffix = layer.name.rpartition("_")[2]
        return int(suffix) if suffix.isdigit() else -1

    def unnamed(kind, prefix):
        found = [x for x in model.layers if isinstance(x, kind) and x.name.startswith(prefix)]
        return sorted(found, key=number)

    convolutions = unnamed(tf.keras.layers.Conv2D, "conv2d")
    batch_norms = unnamed(tf.keras.layers.BatchNormalization, "batch_normalization")
    yield from zip(convolutions, batch_norms, strict=True)


def _inception_resnet(model: tf.keras.Model) -> Units:
    """As `_inception`, with the linear convolution at each module's end, which has a name."""
    units = _inception(model)

    def take(count):
        for _ in range(count):
            yield next(units)

    def residual(stage, modules, convolutions):
        for i in range(1, modules + 1):
            yield from take(convolutions)
            yield model.get_layer(f"{stage}_{i}_conv"), None

    yield from take(12)  # The stem, and the module behind it.
    yield from residual("block35", 10, 6)
    yield from take(4)
    yield from residual("block17", 20, 4)
    yield from take(7)
    yield from residual("block8", 10, 4)
    yield model.get_layer("conv_7b"), model.get_layer("conv_7b_bn")


def _resnet(model: tf.keras.Model) -> Units:
    """The stem, and each block's three convolutions and projection."""
    names = {layer.name for layer in model.layers}

    def unit(prefix):
        return model.get_layer(prefix + "_conv"), model.get_layer(prefix + "_bn")

    yield unit("conv1")
    for block in _blocks(names):
        for part in ("_1", "_2", "_3", "_0"):
            if f"{block}{part}_conv" in names:
                yield unit(block + part)


def _resnet_v2(model: tf.keras.Model) -> Units:
    """The stem, each block's activation, three convolutions and projection, the last activation."""
    names = {layer.name for layer in model.layers}
    layer = model.get_layer
    yield layer("conv1_conv"), None
    for block in _blocks(names):
        yield None, layer(block + "_preact_bn")
        yield layer(block + "_1_conv"), layer(block + "_1_bn")
        yield layer(block + "_2_conv"), layer(block + "_2_bn")
        yield layer(block + "_3_conv"), None
        if block + "_0_conv" in names:
            yield layer(block + "_0_conv"), None
    yield None, layer("post_bn")


def _blocks(names: set[str]) -> Iterator[str]:
    """Names of the blocks, in order."""
    for stage in range(2, 6):
        block = 1
        while f"conv{stage}_block{block}_1_conv" in names:
            yield f"conv{stage}_block{block}"
            block += 1


@dataclasses.dataclass(frozen=True)
class _Application:
    """A net of tf.keras.applications.

    Attributes:
        keras_name: of the function that makes it.
        layers: gives its convolutions and BatchNorms, in the order of our net's variables.
        images: mean and std of the images it was trained on.
        bgr: whether their channels were blue, green, red.
    """

    keras_name: str
    layers: Callable[[tf.keras.Model], Units]
    images: dict
    bgr: bool = False


_APPLICATIONS = {
    "inception_v3": _Application("InceptionV3", _inception, _FROM_MINUS_1),
    "inception_resnet_v2": _Application("InceptionResNetV2", _inception_resnet, _FROM_MINUS_1),
    "resnet50": _Application("ResNet50", _resnet, _MEAN_TAKEN, bgr=True),
    "resnet101": _Application("ResNet101", _resnet, _MEAN_TAKEN, bgr=True),
    "resnet152": _Application("ResNet152", _resnet, _MEAN_TAKEN, bgr=True),
    "resnet50_v2": _Application("ResNet50V2", _resnet_v2, _FROM_MINUS_1),
    "resnet101_v2": _Application("ResNet101V2", _resnet_v2, _FROM_MINUS_1),
    "resnet152_v2": _Application("ResNet152V2", _resnet_v2, _FROM_MINUS_1),
}
