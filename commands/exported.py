"""A net as a model for other programs: from uint8 images of any size to probabilities.

    model = ExportedModel(net, run.data, with_classes=True)
    write_saved_model(model, "model")                  # or
    write_tflite(model, "model.tflite")                # or
    write_onnx(model, "model.onnx")

Resizing and normalization are part of the model, and the names of the classes are in it. Nothing of
this project is needed to load it.
"""

import json
import pathlib
import tempfile
import zipfile
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from commands.command_line import quiet
from commands.saved_config import DataInfo
from data import printable
from data.dataset import normalize
from loops.errors import RunError, reason

LABELS = "labels.txt"
_OPSET = 17  # Of ONNX 1.12, which is from 2022.


class ExportedModel(tf.Module):
    """A net with what comes before and after it.

    `model.serve(images)`: images are uint8 [n, height, width, channels] of any n, height and width.
    Returns a dictionary: "probabilities", float32 [n, classes], and for TensorFlow "classes",
    their names, string [classes].

    Args:
        net: built with the policy float32, of the run's weights.
        info: of the run.
        with_tensorflow: use operations that only TensorFlow has: scale with antialiasing as data
            does, and output the names of the classes.
        eval_crop: fraction of the shorter side of an image that the net sees.

    Attributes:
        class_names: names of the classes that can be printed, in the order of the labels.
        image_shape: (height, width, channels) of the images that the net takes.
        serve: a tf.function with one concrete function.
    """

    def __init__(
        self,
        net: tf.keras.layers.Layer,
        info: DataInfo,
        *,
        with_tensorflow: bool,
        eval_crop: float = 1.0,
    ):
        super().__init__()
        self.class_names = tuple(map(printable, info.class_names))
        self.image_shape = tuple(info.image_shape)
        fit = fitting(with_tensorflow)

        def serve(images):
            x = normalize(fit(images, self.image_shape, eval_crop), info.mean, info.std)
            outputs = {"probabilities": tf.nn.softmax(net(x, training=False))}
            if with_tensorflow:
                outputs["classes"] = tf.constant(self.class_names)
            return outputs

        spec = tf.TensorSpec((None, None, None, self.image_shape[-1]), tf.uint8, name="images")
        self.serve = tf.function(serve, input_signature=[spec])
        # A SavedModel holds the variables that are attributes. These are those in use; folded
        # convolutions have constants in their place.
        self.weights = self.concrete.variables

    @property
    def concrete(self) -> tf.types.experimental.ConcreteFunction:
        return self.serve.get_concrete_function()

    @property
    def labels(self) -> str:
        """The names of the classes, one per line."""
        return "".join(f"{name}\n" for name in self.class_names)


def fitting(with_tensorflow: bool) -> Callable:
    """How images get the size of the net in a model with or without TensorFlow's operations."""
    return fit_like_data if with_tensorflow else fit_bilinear


def fit_like_data(
    images: tf.Tensor, image_shape: tuple[int, int, int], eval_crop: float = 1.0
) -> tf.Tensor:
    """Scales images until they cover a size, and cuts out the middle, as `data.decode` does.

    Args:
        images: uint8 [n, height, width, channels].
        image_shape: (height, width, channels) of the result. Images of this size are not changed
            if `eval_crop` is 1.
        eval_crop: fraction of the largest such middle that is cut out.

    Returns:
        Whole numbers from 0 to 255, float32 [n, *image_shape].
    """
    height, width, channels = image_shape
    size = tf.shape(images)[1:3]
    floats = tf.cast(images, tf.float32)

    def resized():
        scale = tf.reduce_max(tf.constant([height, width], tf.float32) / tf.cast(size, tf.float32))
        scale /= eval_crop
        covered = scale * tf.cast(size, tf.float32)
        found = tf.raw_ops.ScaleAndTranslate(
            images=floats,
            size=(height, width),
            scale=tf.stack((scale, scale)),
            translation=(tf.constant([height, width], tf.float32) - covered) / 2,
            kernel_type="keyscubic",
            antialias=True,
        )
        return tf.clip_by_value(tf.round(found), 0, 255)

    fits = tf.reduce_all(tf.equal(size, (height, width))) & (eval_crop == 1)
    return tf.ensure_shape(tf.cond(fits, lambda: floats, resized), (None, height, width, channels))


def fit_bilinear(
    images: tf.Tensor, image_shape: tuple[int, int, int], eval_crop: float = 1.0
) -> tf.Tensor:
    """As `fit_like_data`, but cuts first, and scales bilinearly without antialiasing.

    TFLite and ONNX have operators for this. Images of the size are not changed if `eval_crop` is 1.
    """
    height, width, channels = image_shape
    rows, columns = tf.unstack(tf.shape(images)[1:3])
    # The largest part of the image with the aspect ratio of the result, or the middle of that.
    cut_rows = tf.maximum(tf.minimum(rows, columns * height // width), 1)
    cut_columns = tf.maximum(tf.minimum(columns, rows * width // height), 1)
    if eval_crop != 1:
        cut_rows, cut_columns = (
            tf.maximum(tf.cast(eval_crop * tf.cast(x, tf.float32), tf.int32), 1)
            for x in (cut_rows, cut_columns)
        )
    top, left = (rows - cut_rows) // 2, (columns - cut_columns) // 2
    middle = images[:, top : top + cut_rows, left : left + cut_columns]
    found = tf.image.resize(tf.cast(middle, tf.float32), (height, width))
    return tf.ensure_shape(found, (None, height, width, channels))


def write_saved_model(model: ExportedModel, path: pathlib.Path) -> None:
    """Writes a SavedModel, a directory. The names of the classes are also in assets/labels.txt."""
    with tempfile.TemporaryDirectory() as directory:
        labels = pathlib.Path(directory, LABELS)
        labels.write_text(model.labels, encoding="utf-8")
        # Without `serve`, of which there would be a second copy, weights included.
        saved = tf.Module()
        saved.weights, saved.labels = model.weights, tf.saved_model.Asset(str(labels))
        with quiet():
            tf.saved_model.save(saved, str(path), signatures=model.concrete)


def write_tflite(
    model: ExportedModel, path: pathlib.Path, calibration: Iterable[np.ndarray] | None = None
) -> None:
    """Writes a TFLite model. The names of the classes are in it as an associated file.

    Associated files are stored as in TFLite Metadata, as a zip archive at the end of the model, so
    that `unzip model.tflite labels.txt` works.

    Args:
        model: made without `with_tensorflow`.
        path: of the file.
        calibration: batches of images, uint8, to quantize weights and activations to 8 bits with.

    Raises:
        RunError: the net has an operation that TFLite lacks.
    """
    converter = tf.lite.TFLiteConverter.from_concrete_functions([model.concrete], model)
    if calibration is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([images] for images in calibration)
    try:
        with quiet():
            content = converter.convert()
    except Exception as error:  # The converter raises many types.
        raise RunError(f"TFLite cannot convert this net: {reason(error)}") from error
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(LABELS), model.labels)


def write_onnx(model: ExportedModel, path: pathlib.Path) -> None:
    """Writes an ONNX model. The names of the classes are in its metadata, "names", as JSON.

    Args:
        model: made without `with_tensorflow`.
        path: of the file.

    Raises:
        RunError: the net has an operation that tf2onnx does not convert.
    """
    import onnx
    import tf2onnx

    try:
        with quiet():
            proto, _ = tf2onnx.convert.from_function(
                model.serve, input_signature=model.serve.input_signature, opset=_OPSET
            )
    except Exception as error:  # The converter raises many types.
        raise RunError(f"tf2onnx cannot convert this net: {reason(error)}") from error
    _name_axes(proto.graph.input[0], ("n", "height", "width"))
    _name_axes(proto.graph.output[0], ("n",))
    onnx.helper.set_model_props(proto, {"names": json.dumps(model.class_names)})
    onnx.save(proto, path)


def _name_axes(value, names: tuple[str, ...]) -> None:
    """Names the first axes of an ONNX input or output, which have any size."""
    for axis, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
        axis.dim_param = name
