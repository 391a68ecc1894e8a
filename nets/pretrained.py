"""Weights of tf.keras.applications for this project's nets.

    model = pretrained.load("resnet50", "keras", channels=3, stem="large")   # or a file
    net = nets.build("resnet50", num_classes=10, image_shape=(224, 224, 3))
    head_copied = pretrained.copy_weights("resnet50", model, net)
    mean, std = pretrained.normalization("resnet50")
    logits = net((rgb / 255 - mean) / std, training=False)

The nets compute the same functions as Keras' models and differ in parameters. Keras' ResNets have
biases before BatchNorm, which are subtracted from the moving mean here. Its Inception nets have no
BatchNorm scale, which is a scale of one here. Its ResNets were trained on BGR images; the input
channels of the first kernel are reversed here.
"""

import dataclasses
import pathlib
import warnings
from collections.abc import Callable, Iterator

import h5py
import numpy as np
import tensorflow as tf

from nets.net import Net

# Normalization of RGB in [0, 1] as in keras.applications.imagenet_utils: mode "caffe" subtracts the
# mean of ImageNet's pixels, mode "tf" scales to [-1, 1].
_CAFFE = {"mean": (123.68 / 255, 116.779 / 255, 103.939 / 255), "std": (1 / 255,) * 3}
_TF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


class PretrainedError(ValueError):
    """The weights are not available, or do not fit the net."""


def _application(name: str) -> "_Application":
    if name not in _APPLICATIONS:
        raise PretrainedError(
            f"there are no Keras weights for {name}, only for {', '.join(_APPLICATIONS)}; it can "
            f"start from the directory of another run of {name}"
        )
    return _APPLICATIONS[name]


def normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and the standard deviation with which the weights' images are normalized.

    Both are per channel of RGB images in [0, 1].

    Raises:
        PretrainedError: Keras has no weights for this net.
    """
    images = _application(name).images
    return images["mean"], images["std"]


def load(name: str, source: str, *, channels: int, stem: str) -> tf.keras.Model:
    """Loads the Keras model that corresponds to a net, with its weights.

    Args:
        name: name of the net.
        source: "keras" to download Keras' ImageNet weights, or the path of a file that a model of
            tf.keras.applications was saved to, .h5 or .weights.h5.
        channels: number of channels of the images.
        stem: stem of the net, "small" or "large".

    Raises:
        PretrainedError: the weights cannot be read or downloaded, or do not fit such a net.
    """
    make = getattr(tf.keras.applications, _application(name).keras_name)
    if channels != 3:
        raise PretrainedError(f"Keras' weights are for images of 3 channels; these have {channels}")
    if stem != "large":
        raise PretrainedError(f"Keras' weights are for the large stem of {name}, not the {stem}")
    if source == "keras":
        try:
            return make(weights="imagenet")
        except Exception as error:  # Downloads raise many types.
            raise PretrainedError(f"cannot load Keras' weights for {name}: {error}") from error
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
            warnings.simplefilter("ignore")  # An error follows each of Keras' warnings here.
            model.load_weights(path)
    except Exception as error:  # For a wrong file, Keras raises many types.
        what = " ".join(str(error).split())[:200]
        raise PretrainedError(f"{source} does not hold weights for {name}: {what}") from error
    return model


def _classes(path: pathlib.Path) -> int | None:
    """Returns the number of classes of the saved model, or None if it has no dense layer."""
    shapes = []

    def visit(_, item):
        if isinstance(item, h5py.Dataset) and len(item.shape) == 2:
            shapes.append(item.shape)

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return shapes[-1][1] if shapes else None


def copy_weights(name: str, model: tf.keras.Model, net: Net) -> bool:
    """Copies the weights and moving statistics of a Keras model into a built net.

    Auxiliary heads, which Keras' models lack, keep their values.

    Args:
        name: name of the net.
        model: returned by `load` or by a function of tf.keras.applications.
        net: with the large stem, for images of 3 channels.

    Returns:
        Whether the head was copied as well. It is not if the model has no head, or one with another
        number of classes.

    Raises:
        PretrainedError: the weights do not fit the net, which is left unchanged.
    """
    trunk = [stage for stage_name, stage in net.stages.items() if stage_name != "head"]
    # By name, since weights of frozen stages are not trainable either.
    ours, our_statistics = (
        [v for stage in trunk for v in stage.variables if v.name.startswith("moving_") is moving]
        for moving in (False, True)
    )
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
    """Copies the last layer if it is a dense layer with the net's number of classes."""
    last = model.layers[-1]
    dense = net.head.dense
    if not isinstance(last, tf.keras.layers.Dense) or last.kernel.shape != dense.kernel.shape:
        return False
    dense.kernel.assign(last.kernel)
    dense.bias.assign(last.bias)
    return True


def _unit(conv, batch_norm) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns weights and statistics of a convolution, a BatchNorm or both, in our layers' form."""
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
    """Convolutions with BatchNorm in the order of their creation, which is ours."""

    def number(layer):
        # conv2d, conv2d_1, conv2d_2, ...; `model.layers` is sorted by depth.
        suffix = layer.name.rpartition("_")[2]
        return int(suffix) if suffix.isdigit() else -1

    def unnamed(kind, prefix):
        found = [x for x in model.layers if isinstance(x, kind) and x.name.startswith(prefix)]
        return sorted(found, key=number)

    convolutions = unnamed(tf.keras.layers.Conv2D, "conv2d")
    batch_norms = unnamed(tf.keras.layers.BatchNormalization, "batch_normalization")
    yield from zip(convolutions, batch_norms, strict=True)


def _inception_resnet(model: tf.keras.Model) -> Units:
    """As `_inception`, and the linear convolution at the end of each module, which has a name."""
    units = _inception(model)

    def take(count):
        for _ in range(count):
            yield next(units)

    def residual(stage, modules, convolutions):
        for i in range(1, modules + 1):
            yield from take(convolutions)
            yield model.get_layer(f"{stage}_{i}_conv"), None

    yield from take(12)  # The stem and the first module.
    yield from residual("block35", 10, 6)
    yield from take(4)
    yield from residual("block17", 20, 4)
    yield from take(7)
    yield from residual("block8", 10, 4)
    yield model.get_layer("conv_7b"), model.get_layer("conv_7b_bn")


def _resnet(model: tf.keras.Model) -> Units:
    """The stem, and the three convolutions and the projection of each block."""
    names = {layer.name for layer in model.layers}

    def unit(prefix):
        return model.get_layer(prefix + "_conv"), model.get_layer(prefix + "_bn")

    yield unit("conv1")
    for block in _blocks(names):
        for part in ("_1", "_2", "_3", "_0"):
            if f"{block}{part}_conv" in names:
                yield unit(block + part)


def _resnet_v2(model: tf.keras.Model) -> Units:
    """The stem, activation, convolutions and projection of each block, and the last activation."""
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
    """Yields the names of the blocks in order."""
    for stage in range(2, 6):
        block = 1
        while f"conv{stage}_block{block}_1_conv" in names:
            yield f"conv{stage}_block{block}"
            block += 1


@dataclasses.dataclass(frozen=True)
class _Application:
    """A model of tf.keras.applications.

    Attributes:
        keras_name: name of the function that creates it.
        layers: yields its convolutions and BatchNorms in the order of our net's variables.
        images: mean and standard deviation with which its images are normalized.
        bgr: whether it was trained on BGR images.
    """

    keras_name: str
    layers: Callable[[tf.keras.Model], Units]
    images: dict
    bgr: bool = False


_APPLICATIONS = {
    "inception_v3": _Application("InceptionV3", _inception, _TF),
    "inception_resnet_v2": _Application("InceptionResNetV2", _inception_resnet, _TF),
    "resnet50": _Application("ResNet50", _resnet, _CAFFE, bgr=True),
    "resnet101": _Application("ResNet101", _resnet, _CAFFE, bgr=True),
    "resnet152": _Application("ResNet152", _resnet, _CAFFE, bgr=True),
    "resnet50_v2": _Application("ResNet50V2", _resnet_v2, _TF),
    "resnet101_v2": _Application("ResNet101V2", _resnet_v2, _TF),
    "resnet152_v2": _Application("ResNet152V2", _resnet_v2, _TF),
}
