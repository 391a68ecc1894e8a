"""What the header of an image file says, read with Pillow when a folder is scanned."""

import dataclasses
import os
import struct
import threading
import warnings

import numpy as np
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


# Kinds of image files. The others are converted, as by `data/convert.py`.
OTHER, PNG_FILE, JPEG_FILE, PROGRESSIVE = range(1, 5)  # 0 is left for "unknown".
CONVERT = -1  # In place of the number of a decoder.


@dataclasses.dataclass(frozen=True)
class Header:
    """What the header of a file says.

    Attributes:
        kind: `PNG_FILE`, `JPEG_FILE`, `PROGRESSIVE`, which is a JPEG file too, or `OTHER`, if
            TensorFlow's decoders cannot read the file, or would ignore its transparency.
        width, height: in pixels, before the image is turned upright.
        orientation: from 1 to 8, as in EXIF.
    """

    kind: int
    width: int
    height: int
    orientation: int

    def decoder(self, image_size: int) -> int:
        """See `decoders`."""
        return int(decoders(self.kind, self.width, self.height, image_size))


def decoders(kinds, widths, heights, image_size: int) -> np.ndarray:
    """Numbers of the decoders in `data/decode.py` for some files.

    Args:
        kinds: integers [n], as in `Header`.
        widths: integers [n], in pixels.
        heights: likewise.
        image_size: height and width that the images will be scaled to, in pixels.

    Returns:
        int32 [n]; `CONVERT` where no decoder can read the file, or needs too much memory.
    """
    kinds = np.asarray(kinds)
    pixels = np.multiply(widths, heights, dtype=np.int64)
    found = np.where((kinds == PNG_FILE) & (pixels <= MAX_PIXELS), PNG, CONVERT)
    for ratio in JPEG_RATIOS:
        # To twice the wanted size at least, as Pillow does it.
        fits = (np.minimum(widths, heights) // (2 * image_size) >= ratio) | (ratio == 1)
        is_jpeg = (kinds == JPEG_FILE) | (kinds == PROGRESSIVE)
        # A progressive file has to be decoded in full before it can be reduced.
        decoded = np.where(kinds == PROGRESSIVE, pixels, pixels // ratio**2)
        decoder = np.where(decoded <= MAX_PIXELS, JPEG[ratio], CONVERT)
        found = np.where(is_jpeg & fits, decoder, found)
    return found.astype(np.int32)


def read_header(path: str | os.PathLike) -> Header:
    """Reads the header of a JPEG, PNG, GIF, WebP or BMP file, recognized by their contents.

    Raises:
        UndecodableError: the file cannot be read, is none of these, or has more than twice the
            pixels of `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return Header(_kind(image), *image.size, _orientation(image))
    except Exception as error:  # Damaged files make Pillow raise nearly anything.
        raise UndecodableError(str(path), reason(error)) from error


def reason(error: Exception) -> str:
    """Why Pillow could not read a file."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _kind(image: Image.Image) -> int:
    if image.format == "PNG":
        return OTHER if image.has_transparency_data else PNG_FILE
    # MPO is a JPEG file with several images, as some cameras write it.
    if image.format not in ("JPEG", "MPO") or image.mode not in ("L", "RGB"):
        return OTHER
    return PROGRESSIVE if "progressive" in image.info else JPEG_FILE


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
