"""From the contents of an image file to pixels, with TensorFlow operations only.

The image is scaled until its shorter side fits, and its middle is cut out, as
`PIL.ImageOps.fit` does with its default filter.
"""

import tensorflow as tf

# Numbers of the decoders. A JPEG decoder can leave out detail that is lost in scaling anyway, by a
# ratio of 1, 2, 4 or 8.
PNG = 0
JPEG_RATIOS = (1, 2, 4, 8)
JPEG = {ratio: number for number, ratio in enumerate(JPEG_RATIOS, start=1)}


def decode(
    path: tf.Tensor, decoder: tf.Tensor, orientation: tf.Tensor, image_shape: tuple[int, int, int]
) -> tf.Tensor:
    """The image in a JPEG or PNG file, upright, square and of one size.

    Args:
        path: string scalar.
        decoder: int32 scalar, `PNG` or one of `JPEG`. Alpha channels are ignored.
        orientation: int32 scalar, from 1 to 8 (EXIF 2.3, section 4.6.4); 1 is upright.
        image_shape: (size, size, channels) of the result; 3 channels for RGB, 1 for gray.

    Returns:
        uint8 of that shape.

    Raises:
        tf.errors.OpError: the file cannot be read, or its contents are damaged.
    """
    size, _, channels = image_shape
    contents = tf.io.read_file(path)

    def jpeg(ratio):
        # Slower approximations of both would save little.
        return lambda: tf.io.decode_jpeg(
            contents, channels, ratio=ratio, dct_method="INTEGER_ACCURATE", fancy_upscaling=True
        )

    decoders = [lambda: tf.io.decode_png(contents, channels), *map(jpeg, JPEG_RATIOS)]
    image = tf.ensure_shape(tf.switch_case(decoder, decoders), (None, None, channels))
    return tf.ensure_shape(upright(_fit(image, size), orientation), image_shape)


def _fit(image: tf.Tensor, size: int) -> tf.Tensor:
    """The middle of an image, uint8 [height, width, channels], as uint8 [size, size, channels]."""
    height, width, channels = tf.shape(image)[0], tf.shape(image)[1], image.shape[2]
    scale = size / tf.cast(tf.minimum(height, width), tf.float32)
    # The operation resizes whole rows of many values three times as fast as pixels of a few
    # channels. So the rows are resized first and then, transposed, the columns.
    rows = _resize_rows(tf.reshape(image, (height, width * channels)), size, scale)
    columns = tf.transpose(tf.reshape(rows, (size, width, channels)), (1, 0, 2))
    square = _resize_rows(tf.reshape(columns, (width, size * channels)), size, scale)
    square = tf.transpose(tf.reshape(square, (size, size, channels)), (1, 0, 2))
    return tf.cast(tf.clip_by_value(tf.round(square), 0, 255), tf.uint8)


def _resize_rows(x: tf.Tensor, size: int, scale: tf.Tensor) -> tf.Tensor:
    """[n, values] resampled to float32 [size, values]: bicubic, antialiased, about the middle."""
    offset = (size - scale * tf.cast(tf.shape(x)[0], tf.float32)) / 2
    resized = tf.raw_ops.ScaleAndTranslate(
        images=x[None, :, None, :],
        size=(size, 1),
        scale=tf.stack((scale, 1.0)),
        translation=tf.stack((offset, 0.0)),
        kernel_type="keyscubic",
        antialias=True,
    )
    return resized[0, :, 0, :]


def upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """A square image turned as its EXIF orientation requires."""
    turn = orientation - 1
    image = tf.cond(turn < 4, lambda: image, lambda: tf.transpose(image, (1, 0, 2)))
    return tf.switch_case(
        turn % 4,
        [
            lambda: image,
            lambda: image[:, ::-1],
            lambda: image[::-1, ::-1],
            lambda: image[::-1],
        ],
    )
