"""From an image file of any kind to an array of one shape: 8 bits, upright, opaque, square."""

import pathlib
import warnings

import numpy as np
from PIL import Image, ImageOps

from data.source import DataError

# What is found under the suffixes of JPEG and PNG files. Pillow knows more formats, of which some
# start another program.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns of odd metadata and large images. What matters to the pixels is an exception.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(path: pathlib.Path, image_shape: tuple[int, int, int]) -> np.ndarray:
    """The image in a file, scaled until its shorter side fits, and the middle of it.

    JPEG, PNG, GIF, WebP and BMP are told apart by their contents. Of an animation the first frame
    counts; transparent images are laid onto white; 16-bit grey is scaled to 8 bits; the EXIF
    orientation is followed.

    Args:
        path: the file.
        image_shape: (height, width, channels) of the result; 3 channels for RGB, 1 for grey.

    Returns:
        uint8 [height, width, channels].

    Raises:
        DataError: it cannot be read or decoded, or has more than twice the pixels that Pillow takes
            for harmless (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    height, width, channels = image_shape
    mode = "RGB" if channels == 3 else "L"
    try:
        with Image.open(path, formats=_FORMATS) as image:
            # A JPEG decoder can leave out detail that is scaled away anyhow.
            image.draft(mode, (2 * width, 2 * height))
            image.load()
            whole = _upright(_opaque(image).convert(mode), image)
        fitted = ImageOps.fit(whole, (width, height))
    except Exception as error:  # Damaged files make decoders raise nearly anything.
        raise DataError(
            f"{path} cannot be decoded ({_reason(error)}); replace or remove it, or use "
            "--bad_images=skip"
        ) from error
    return np.asarray(fitted, np.uint8).reshape(image_shape)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "its contents are no image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _opaque(image: Image.Image) -> Image.Image:
    """The same image with 8 bits a channel, what is transparent in it being white."""
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey, which Pillow itself would clip instead of scaling it."""
    values = np.asarray(image, np.int32)
    scaled = np.round(np.clip(values, 0, 65535) / 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is None:
        return Image.fromarray(scaled)
    alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
    return Image.merge("LA", (Image.fromarray(scaled), Image.fromarray(alpha)))


def _upright(pixels: Image.Image, image: Image.Image) -> Image.Image:
    """The pixels, turned as the EXIF data of the image asks for."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # Damaged metadata leaves the pixels as good as they are.
        return pixels
    return pixels.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else pixels
