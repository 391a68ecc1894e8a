"""What the header of an image file says, read with Pillow when a folder is scanned."""

import dataclasses
import os
import pathlib
import struct
import threading
import warnings

from PIL import Image

from data.decode import JPEG, JPEG_RATIOS, PNG
from data.source import UndecodableError

# Pillow knows more formats, of which some start another program.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")
# Larger images are not decoded in the input pipeline, to bound its memory.
MAX_PIXELS = 2**24
_ORIENTATION = 0x0112
_EXIF_TEXTS = (b"Raw profile type exif", b"XML:com.adobe.xmp")

# Pillow warns of odd metadata and of large images. What matters to the pixels is an exception.
warnings.filterwarnings("ignore", module=r"PIL\.")
_loading = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Header:
    """How a file is decoded.

    Attributes:
        decoder: number of the decoder in `data/decode.py`; None if TensorFlow's decoders cannot
            read the file, or would ignore its transparency, or need too much memory.
        orientation: from 1 to 8, as in EXIF.
    """

    decoder: int | None
    orientation: int


def read_header(path: pathlib.Path, image_size: int) -> Header:
    """Reads the header of a JPEG, PNG, GIF, WebP or BMP file, recognized by their contents.

    Args:
        path: the file.
        image_size: height and width that the image will be scaled to, in pixels.

    Raises:
        UndecodableError: the file cannot be read, is none of these, or has more than twice the
            pixels of `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return Header(_decoder(image, image_size), _orientation(image))
    except Exception as error:  # Damaged files make Pillow raise nearly anything.
        raise UndecodableError(str(path), reason(error)) from error


def reason(error: Exception) -> str:
    """Why Pillow could not read a file."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _decoder(image: Image.Image, image_size: int) -> int | None:
    width, height = image.size
    if image.format == "PNG":
        simple = not image.has_transparency_data and width * height <= MAX_PIXELS
        return PNG if simple else None
    # MPO is a JPEG file with several images, as some cameras write it.
    if image.format not in ("JPEG", "MPO") or image.mode not in ("L", "RGB"):
        return None
    # To twice the wanted size at least, as Pillow does it.
    ratio = max(r for r in JPEG_RATIOS if r == 1 or min(width, height) // (2 * image_size) >= r)
    # A progressive file has to be decoded in full before it can be reduced.
    pixels = width * height // (1 if "progressive" in image.info else ratio**2)
    return JPEG[ratio] if pixels <= MAX_PIXELS else None


def _orientation(image: Image.Image) -> int:
    try:
        if image.format == "PNG" and _has_exif(image.fp):
            with _loading:  # One at a time, to bound the memory.
                image.load()
        # Not the method of the PNG class, which decodes the pixels first.
        orientation = Image.Image.getexif(image).get(_ORIENTATION)
    except Exception:  # Damaged metadata does not matter to the pixels.
        return 1
    return orientation if orientation in range(1, 9) else 1


def _has_exif(file) -> bool:
    """Whether a PNG file has EXIF or XMP data, which may be behind the pixels."""
    position = file.tell()
    file.seek(8)
    try:
        while len(start := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", start)
            if kind == b"eXIf":
                return True
            skip = length + 4
            if kind in (b"tEXt", b"zTXt", b"iTXt"):
                keyword = file.read(min(length, 32))
                skip -= len(keyword)
                if keyword.split(b"\0")[0] in _EXIF_TEXTS:
                    return True
            file.seek(skip, os.SEEK_CUR)
        return False
    finally:
        file.seek(position)
