"""Converts image files that TensorFlow cannot decode as needed, once, into a cache of PNG files.

These are CMYK JPEGs, transparent PNGs, which are composited onto white, GIF, WebP and BMP files, of
which the first frame is used, and images too large to be decoded in the input pipeline.
"""

import contextlib
import hashlib
import os
import pathlib
import tempfile

import numpy as np
from PIL import Image

from data.download import default_data_dir
from data.headers import FORMATS, reason
from data.source import DataError, UndecodableError

_BAND_PIXELS = 2**20
_VERSION = "2"  # Of what is written; files of earlier ones are left alone.


def cache_directory() -> pathlib.Path:
    """Where conversions are: `converted/` beside Keras' datasets.

    Raises:
        DataError: there is no home directory.
    """
    return default_data_dir(otherwise="set KERAS_HOME to a directory") / "converted"


def convert(path: pathlib.Path, image_shape: tuple[int, int, int]) -> pathlib.Path:
    """A PNG file with the middle of the image in a file, as by `decode_with_pillow`.

    It is in `cache_directory()`, under a name made of the file's real path, size and modification
    time, and of the image size.

    Args:
        path: the file.
        image_shape: (size, size, channels); 3 channels for RGB, 1 for gray.

    Raises:
        UndecodableError: the file cannot be decoded.
        DataError: the cache cannot be written.
    """
    cache = cache_directory()
    try:
        status = path.stat()
        key = (os.path.realpath(path), status.st_size, status.st_mtime_ns, *image_shape, _VERSION)
    except OSError as error:
        raise UndecodableError(str(path), reason(error)) from error
    digest = hashlib.sha256(os.fsencode("\0".join(map(str, key)))).hexdigest()
    converted = cache / f"{digest[:40]}.png"
    if not converted.is_file():
        image = decode_with_pillow(path, image_shape)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _write(image, converted)
        except OSError as error:
            raise DataError(
                f"{cache} cannot be written ({error.strerror or error}), where {path} is to be "
                "converted to PNG; make it writable or set KERAS_HOME to another directory"
            ) from error
    return converted


def converted_sizes(heights, widths, image_size: int) -> np.ndarray:
    """Height and width of the middle of images as `decode_with_pillow` gives it, int32 [n, 2].

    It is a square of twice the image size, so that a part of it can be evaluated, or of a smaller
    image all that a square in the middle has a part in.

    Args:
        heights: integers [n], in pixels.
        widths: likewise.
        image_size: height and width that the images will be scaled to, in pixels.
    """
    sides = np.stack((heights, widths), axis=-1).astype(np.int32)
    shorter = sides.min(axis=-1, keepdims=True)
    middle = shorter + (sides - shorter) % 2
    return np.where(shorter > 2 * image_size, 2 * image_size, middle)


def decode_with_pillow(path: pathlib.Path, image_shape: tuple[int, int, int]) -> Image.Image:
    """The middle of the image in a file, of `converted_sizes`, which is not turned upright.

    Args:
        path: the file.
        image_shape: (size, size, channels); 3 channels for RGB, 1 for gray.

    Raises:
        UndecodableError: the file cannot be decoded.
    """
    size, _, channels = image_shape
    mode = "RGB" if channels == 3 else "L"
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            found = converted_sizes(height, width, size)[::-1].tolist()
            shorter = min(width, height)
            sides = (shorter, shorter) if shorter > 2 * size else found
            draft = image.draft(mode, (4 * size, 4 * size))
            image.load()
            # Averaged to four times that size at least, which hardly changes the result.
            factor = max(1, min(image.size) // (8 * size))
            reduced = _reduce(image, mode, factor)
            # The last row and column may be filled in part.
            ratio = factor * (width / draft[1][2] if draft else 1)
            left, top = (width - sides[0]) / 2, (height - sides[1]) / 2
            box = [x / ratio for x in (left, top, left + sides[0], top + sides[1])]
            return reduced.resize(found, Image.Resampling.BICUBIC, box=box)
    except Exception as error:  # Damaged files make Pillow raise nearly anything.
        raise UndecodableError(str(path), reason(error)) from error


def _write(image: Image.Image, path: pathlib.Path) -> None:
    """Writes a PNG file, whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with open(handle, "wb") as file:
            image.save(file, format="PNG")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _reduce(image: Image.Image, mode: str, factor: int) -> Image.Image:
    """The image in another mode, on white, at 1/`factor` of its size.

    Made of bands of the image, so that no second copy of a large one is needed.
    """
    width, height = image.size
    reduced = Image.new(mode, (-(-width // factor), -(-height // factor)))
    rows = factor * max(1, _BAND_PIXELS // (width * factor))
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        reduced.paste(_opaque(band).convert(mode).reduce(factor), (0, top // factor))
    return reduced


def _opaque(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel, composited onto white."""
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray as 8-bit gray, which Pillow itself would clip instead of scaling it."""
    values = np.asarray(image, np.int32)
    scaled = np.round(np.clip(values, 0, 65535) / 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is None:
        return Image.fromarray(scaled)
    alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
    return Image.merge("LA", (Image.fromarray(scaled), Image.fromarray(alpha)))
