"""Images and trees of images for the tests."""

import io
import os
import pathlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data.files import open_files
from data.listing import FACTS, Listing
from data.source import DataError

ROOT = pathlib.Path(__file__).parents[2]


def fetch(source, numbers):
    return source.fetch(np.asarray(numbers, np.int64)).numpy()


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def read(path, image_shape):
    """The image in a file as a run would see it."""
    source, _ = open_paths([path], [0], image_shape, skip=False)
    return fetch(source, [0])[0]


def open_paths(paths, labels, image_shape, *, skip):
    """`open_files` for single files, wherever they are."""
    facts, root = np.zeros(len(paths), FACTS), pathlib.Path("/")
    for fact, status in zip(facts, (path.stat() for path in paths), strict=True):
        fact["size"], fact["time"] = status.st_size, status.st_mtime_ns
    names = np.array([os.fsencode(path.relative_to(root)) for path in paths])
    source, skipped = open_files(Listing(root, names, facts), labels, image_shape, skip=skip)
    return source, list(map(pathlib.Path, skipped))


def refused(match, call, *args, **kwargs):
    """Expects a DataError of one line, and gives its text."""
    with pytest.raises(DataError, match=match) as caught:
        call(*args, **kwargs)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def write(path, color=(200, 30, 30), size=(16, 12), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).convert(mode).save(path)
    return path


def write_tree(root, splits=("train", "test"), count=2, suffixes=(".png",)):
    """Blue and red images, by class."""
    for split in splits:
        for name, color in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
            for i in range(count):
                write(root / split / name / f"{i}{suffixes[i % len(suffixes)]}", color)
    return root


def photo(width, height, seed=0):
    """Smooth RGB noise, as an image."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


def encoded(image, **options):
    stream = io.BytesIO()
    image.save(stream, **options)
    return stream.getvalue()


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width, height, depth, color_type, rows, before=(), after=()):
    """The bytes of a PNG, which Pillow cannot write in every kind that it reads.

    Args:
        before, after: further chunks before and after the pixels, as names and bodies.
    """
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *(chunk(*parts) for parts in before),
            chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
            *(chunk(*parts) for parts in after),
            chunk(b"IEND", b""),
        )
    )


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


RED, GREEN = (250, 0, 0), (0, 250, 0)
_WHITE, _GRAY_16, _KEY = 65535, 32896, 1000  # 32,896 is 128 * 257.


def halves(left, right, mode):
    image = Image.new(mode, (16, 8), left)
    image.paste(right, (8, 0, 16, 8))
    return image


def _two_frames(**options):
    """A picture with two frames, of which the first is red and green."""
    later = [Image.new("RGB", (16, 8), (0, 0, 99))]
    return encoded(halves(RED, GREEN, "RGB"), save_all=True, append_images=later, **options)


def palette(transparent):
    image = halves(0, 1, "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    return encoded(image, format="PNG", transparency=transparent)


def _sixteen(left, right, before=()):
    return png(16, 8, 16, 0, [struct.pack(">16H", *[left] * 8, *[right] * 8)] * 8, before)


# Contents of a file, color of its left and of its right half, and whether it is converted.
KINDS = {
    "rgb": (encoded(halves(RED, GREEN, "RGB"), format="PNG"), RED, GREEN, False),
    "gray": (encoded(halves(7, 99, "L"), format="PNG"), (7,) * 3, (99,) * 3, False),
    "one bit": (encoded(halves(0, 1, "1"), format="PNG"), (0,) * 3, (255,) * 3, False),
    "two bits": (png(16, 8, 2, 0, [b"\x55\x55\xaa\xaa"] * 8), (85,) * 3, (170,) * 3, False),
    "16-bit gray": (_sixteen(_GRAY_16, _WHITE), (128,) * 3, (255,) * 3, False),
    "16-bit dark gray": (_sixteen(257, 513), (1,) * 3, (2,) * 3, False),
    "16-bit gray with a transparent value": (
        _sixteen(_KEY, _GRAY_16, [(b"tRNS", struct.pack(">H", _KEY))]),
        (255,) * 3, (128,) * 3, True,
    ),
    "16-bit color": (
        png(16, 8, 16, 2, [struct.pack(">3H", _GRAY_16, 257, _WHITE) * 16] * 8),
        (128, 1, 255), (128, 1, 255), False,
    ),
    "palette": (palette(None), (10, 20, 30), (200, 100, 50), False),
    "palette with a transparent entry": (palette(0), (255,) * 3, (200, 100, 50), True),
    "palette with alpha": (palette(bytes([255, 51])), (10, 20, 30), (244, 224, 214), True),
    "rgba": (
        encoded(halves((0, 0, 0, 51), (*RED, 0), "RGBA"), format="PNG"),
        (204,) * 3, (255,) * 3, True,
    ),
    "gray and alpha": (
        encoded(halves((0, 51), (9, 255), "LA"), format="PNG"), (204,) * 3, (9,) * 3, True,
    ),
    "gray with a transparent value": (
        encoded(halves(7, 99, "L"), format="PNG", transparency=7), (255,) * 3, (99,) * 3, True,
    ),
    "rgb with a transparent value": (
        encoded(halves(RED, GREEN, "RGB"), format="PNG", transparency=GREEN),
        RED, (255,) * 3, True,
    ),
    "cmyk": (
        encoded(halves((0, 255, 255, 0), (0, 0, 0, 155), "CMYK"), format="JPEG"),
        (255, 0, 0), (100,) * 3, True,
    ),
    "jpeg": (encoded(halves(RED, GREEN, "RGB"), format="JPEG"), RED, GREEN, False),
    "gray jpeg": (encoded(halves(7, 99, "L"), format="JPEG"), (7,) * 3, (99,) * 3, False),
    "progressive jpeg": (
        encoded(halves(RED, GREEN, "RGB"), format="JPEG", progressive=True), RED, GREEN, False,
    ),
    "animated gif": (_two_frames(format="GIF"), RED, GREEN, True),
    "animated png": (_two_frames(format="PNG"), RED, GREEN, False),
    "animated webp": (_two_frames(format="WEBP", lossless=True), RED, GREEN, True),
    "several pictures in a jpeg": (_two_frames(format="MPO"), RED, GREEN, False),
    "bmp": (encoded(halves(RED, GREEN, "RGB"), format="BMP"), RED, GREEN, True),
}  # fmt: skip
