"""Scales a box of an image to a size: bicubic, with antialiasing, as Pillow does it.

Pixels outside of the box have a part in those at its border, where the image goes on there.
"""

import tensorflow as tf

_RADIUS = 2  # Of the filter, in pixels of the result if they are larger, otherwise of the image.


def fit(image: tf.Tensor, size: int, sides: tf.Tensor | None = None) -> tf.Tensor:
    """The largest square in the middle of an image, as by `PIL.ImageOps.fit`.

    Args:
        image: uint8 [height, width, channels].
        size: height and width of the result.
        sides: height and width of what is shown, in pixels of `image`, float32 [2]. By default its
            own; they are smaller where its last row and column are filled in part.

    Returns:
        uint8 [size, size, channels].
    """
    if sides is None:
        sides = tf.cast(tf.shape(image)[:2], tf.float32)
    scale = size / tf.reduce_min(sides)
    return _resample(image, (size, size), (scale, scale), tf.unstack((size - scale * sides) / 2))


def scale_box(image: tf.Tensor, box: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """A box of an image, as by `PIL.Image.resize` with `box`.

    Args:
        image: uint8 [height, width, channels].
        box: (top, left, height, width) in pixels, which need not be whole, float32 [4].
        size: height and width of the result.

    Returns:
        uint8 [*size, channels].
    """
    part = window(box, tf.shape(image)[:2], size)
    top, left, height, width = tf.unstack(part)
    image = image[top : top + height, left : left + width]
    corner = box[:2] - tf.cast(part[:2], tf.float32)
    scale = tf.constant(size, tf.float32) / box[2:]
    return _resample(image, size, tf.unstack(scale), tf.unstack(-scale * corner))


def scale_boxes(images: tf.Tensor, boxes: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """As `scale_box`, for images uint8 [n, height, width, channels] and boxes float32 [n, 4]."""
    return tf.map_fn(
        lambda pair: scale_box(*pair, size),
        (images, boxes),
        fn_output_signature=tf.TensorSpec((*size, images.shape[-1]), tf.uint8),
    )


def window(box: tf.Tensor, shape: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """The part of an image that has a part in a box: (top, left, height, width), int32 [4].

    Args:
        box: in the image, as for `scale_box`.
        shape: height and width of the image, int32 [2].
        size: height and width that the box is scaled to.
    """
    reach = _RADIUS * tf.maximum(box[2:] / tf.constant(size, tf.float32), 1.0) + 1
    shape = tf.cast(shape, tf.float32)
    start = tf.clip_by_value(tf.floor(box[:2] - reach), 0.0, shape - 1)
    stop = tf.clip_by_value(tf.math.ceil(box[:2] + box[2:] + reach), start + 1, shape)
    return tf.cast(tf.concat((start, stop - start), axis=0), tf.int32)


def _resample(image, size, scale, offset) -> tf.Tensor:
    """Each pixel at x goes to scale * x + offset; vertical before horizontal, both in pairs."""
    height, width, channels = tf.shape(image)[0], tf.shape(image)[1], image.shape[2]
    # The operation resizes whole rows of many values three times as fast as pixels of a few
    # channels. So the rows are resized first and then, transposed, the columns.
    rows = tf.reshape(image, (height, width * channels))
    rows = _resample_rows(rows, size[0], scale[0], offset[0])
    columns = tf.transpose(tf.reshape(rows, (size[0], width, channels)), (1, 0, 2))
    columns = tf.reshape(columns, (width, size[0] * channels))
    resized = _resample_rows(columns, size[1], scale[1], offset[1])
    resized = tf.transpose(tf.reshape(resized, (size[1], size[0], channels)), (1, 0, 2))
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)


def _resample_rows(x: tf.Tensor, size: int, scale: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """[n, values] resampled to float32 [size, values]."""
    resized = tf.raw_ops.ScaleAndTranslate(
        images=x[None, :, None, :],
        size=(size, 1),
        scale=tf.stack((scale, 1.0)),
        translation=tf.stack((offset, 0.0)),
        kernel_type="keyscubic",
        antialias=True,
    )
    return resized[0, :, 0, :]
