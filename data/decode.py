"""From the contents of an image file to pixels, with TensorFlow operations only.

The image is scaled until its shorter side fits, and its middle is cut out, as
`PIL.ImageOps.fit` does with its default filter. Or a box of it is scaled, and of a JPEG not much
more than the box is decoded.
"""

import tensorflow as tf

from data.resampling import fit, scale_box, window

# Numbers of the decoders. A JPEG decoder can leave out detail that is lost in scaling anyway, by a
# ratio of 1, 2, 4 or 8.
PNG = 0
JPEG_RATIOS = (1, 2, 4, 8)
JPEG = {ratio: number for number, ratio in enumerate(JPEG_RATIOS, start=1)}
# Slower approximations of both would save little.
_JPEG_OPTIONS = {"dct_method": "INTEGER_ACCURATE", "fancy_upscaling": True}


def decode(
    path: tf.Tensor,
    decoder: tf.Tensor,
    orientation: tf.Tensor,
    image_shape: tuple[int, int, int],
    box: tf.Tensor | None = None,
) -> tf.Tensor:
    """The image in a JPEG or PNG file, upright, square and of one size.

    Args:
        path: string scalar.
        decoder: int32 scalar, `PNG` or one of `JPEG`. Alpha channels are ignored.
        orientation: int32 scalar, from 1 to 8 (EXIF 2.3, section 4.6.4); 1 is upright.
        image_shape: (size, size, channels) of the result; 3 channels for RGB, 1 for gray.
        box: float32 [4], the part of the upright image that is scaled to this size: (top, left,
            height, width) in pixels. By default the largest square in the middle. The ratio of a
            JPEG decoder is then that of the box, whichever is asked for.

    Returns:
        uint8 of that shape.

    Raises:
        tf.errors.OpError: the file cannot be read, or its contents are damaged.
    """
    size, _, channels = image_shape
    contents = tf.io.read_file(path)
    if box is None:
        image, sides = _decode_all(contents, decoder, channels)
        image = fit(image, size, sides)
    else:
        image = _decode_box(contents, decoder, orientation, box, size, channels)
    return tf.ensure_shape(upright(image, orientation), image_shape)


def _decode_all(contents, decoder, channels: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The image and, in its pixels, its height and width, which need not be whole."""

    def png():
        image = tf.io.decode_png(contents, channels)
        return image, tf.cast(tf.shape(image)[:2], tf.float32)

    def jpeg(ratio):
        image = tf.io.decode_jpeg(contents, channels, ratio=ratio, **_JPEG_OPTIONS)
        shape = tf.io.extract_jpeg_shape(contents) if ratio > 1 else tf.shape(image)
        return image, tf.cast(shape[:2], tf.float32) / ratio

    decoders = [png, *(lambda r=ratio: jpeg(r) for ratio in JPEG_RATIOS)]
    image, sides = tf.switch_case(decoder, decoders)
    return tf.ensure_shape(image, (None, None, channels)), sides


def _decode_box(contents, decoder, orientation, box, size: int, channels: int) -> tf.Tensor:
    """A box of the upright image, scaled, but not turned upright."""

    def png():
        image = tf.ensure_shape(tf.io.decode_png(contents, channels), (None, None, channels))
        part = _stored_box(box, tf.shape(image)[:2], orientation)
        return scale_box(image, part, (size, size))

    def jpeg():
        shape = tf.io.extract_jpeg_shape(contents)[:2]
        part = _stored_box(box, shape, orientation)
        # To twice the wanted size at least, as for whole images (`data/headers.py`).
        surplus = tf.reduce_min(part[2:]) / (2 * size)
        number = tf.reduce_sum([tf.cast(surplus >= ratio, tf.int32) for ratio in JPEG_RATIOS[1:]])
        reduced = [lambda r=ratio: reduced_jpeg(part, shape, r) for ratio in JPEG_RATIOS]
        return tf.switch_case(number, reduced)

    def reduced_jpeg(part, shape, ratio):
        part, shape = part / ratio, (shape + ratio - 1) // ratio
        needed = window(part, shape, (size, size))
        image = tf.io.decode_and_crop_jpeg(contents, needed, channels, ratio=ratio, **_JPEG_OPTIONS)
        image = tf.ensure_shape(image, (None, None, channels))
        corner = tf.cast(tf.pad(needed[:2], [[0, 2]]), tf.float32)
        return scale_box(image, part - corner, (size, size))

    return tf.cond(decoder == PNG, png, jpeg)


def _stored_box(box: tf.Tensor, shape: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Where a box of the upright image is in the stored image, whose height and width are given."""
    turn = orientation - 1
    turned = turn >= 4
    shape = tf.cast(tf.where(turned, shape[::-1], shape), tf.float32)
    # As `upright` undoes it: those that are reversed from top to bottom, and from left to right.
    reversed_axes = tf.stack((turn % 4 >= 2, (turn % 4 == 1) | (turn % 4 == 2)))
    corner, sides = box[:2], box[2:]
    corner = tf.where(reversed_axes, shape - corner - sides, corner)
    corner, sides = (tf.where(turned, x[::-1], x) for x in (corner, sides))
    return tf.concat((corner, sides), axis=0)


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
