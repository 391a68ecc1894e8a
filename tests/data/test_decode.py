"""Image files of every kind: what their pixels become."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from data.decode import decode

WHITE, GREY_16, KEY = 65535, 32896, 1000  # 32,896 is 128 * 257.


def png(width, height, depth, colour_type, rows, extra=()):
    """The bytes of a PNG, which Pillow cannot write in every kind that it reads."""

    def chunk(name, body):
        check = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *(chunk(*parts) for parts in extra),
            chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
            chunk(b"IEND", b""),
        )
    )


def encoded(image, **options):
    stream = io.BytesIO()
    image.save(stream, **options)
    return stream.getvalue()


def halves(left, right, mode):
    image = Image.new(mode, (16, 8), left)
    image.paste(right, (8, 0, 16, 8))
    return image


def two_frames(**options):
    """A picture with two frames, of which the first is red and green."""
    return encoded(
        halves(RED, GREEN, "RGB"),
        save_all=True,
        append_images=[Image.new("RGB", (16, 8), (0, 0, 99))],
        **options,
    )


def palette(transparent):
    image = halves(0, 1, "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    return encoded(image, format="PNG", transparency=transparent)


def sixteen(left, right, extra=()):
    return png(16, 8, 16, 0, [struct.pack(">16H", *[left] * 8, *[right] * 8)] * 8, extra)


RED, GREEN = (250, 0, 0), (0, 250, 0)
KINDS = {
    "rgb": (encoded(halves(RED, GREEN, "RGB"), format="PNG"), RED, GREEN),
    "grey": (encoded(halves(7, 99, "L"), format="PNG"), (7,) * 3, (99,) * 3),
    "one bit": (encoded(halves(0, 1, "1"), format="PNG"), (0,) * 3, (255,) * 3),
    "16-bit grey": (sixteen(GREY_16, WHITE), (128,) * 3, (255,) * 3),
    "16-bit dark grey": (sixteen(257, 513), (1,) * 3, (2,) * 3),
    "16-bit grey with a transparent value": (
        sixteen(KEY, GREY_16, [(b"tRNS", struct.pack(">H", KEY))]), (255,) * 3, (128,) * 3,
    ),
    "16-bit colour": (
        png(16, 8, 16, 2, [struct.pack(">3H", GREY_16, 257, WHITE) * 16] * 8),
        (128, 1, 255), (128, 1, 255),
    ),
    "palette": (palette(None), (10, 20, 30), (200, 100, 50)),
    "palette with a transparent entry": (palette(0), (255,) * 3, (200, 100, 50)),
    "palette with alpha": (palette(bytes([255, 51])), (10, 20, 30), (244, 224, 214)),
    "rgba": (
        encoded(halves((0, 0, 0, 51), (*RED, 0), "RGBA"), format="PNG"), (204,) * 3, (255,) * 3,
    ),
    "grey and alpha": (
        encoded(halves((0, 51), (9, 255), "LA"), format="PNG"), (204,) * 3, (9,) * 3,
    ),
    "grey with a transparent value": (
        encoded(halves(7, 99, "L"), format="PNG", transparency=7), (255,) * 3, (99,) * 3,
    ),
    "rgb with a transparent value": (
        encoded(halves(RED, GREEN, "RGB"), format="PNG", transparency=GREEN), RED, (255,) * 3,
    ),
    "cmyk": (
        encoded(halves((0, 255, 255, 0), (0, 0, 0, 155), "CMYK"), format="JPEG"),
        (255, 0, 0), (100,) * 3,
    ),
    "grey jpeg": (encoded(halves(7, 99, "L"), format="JPEG"), (7,) * 3, (99,) * 3),
    "animated gif": (two_frames(format="GIF"), RED, GREEN),
    "animated png": (two_frames(format="PNG"), RED, GREEN),
    "animated webp": (two_frames(format="WEBP", lossless=True), RED, GREEN),
    "several pictures in a jpeg": (two_frames(format="MPO"), RED, GREEN),
    "bmp": (encoded(halves(RED, GREEN, "RGB"), format="BMP"), RED, GREEN),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_kinds_of_images(tmp_path, kind, channels):
    contents, left, right = KINDS[kind]
    (tmp_path / "a.jpg").write_bytes(contents)
    found = decode(tmp_path / "a.jpg", (16, 16, channels))
    assert found.dtype == np.uint8
    assert found.shape == (16, 16, channels)
    for column, colour in ((1, left), (14, right)):
        expected = colour if channels == 3 else [np.dot(colour, (0.299, 0.587, 0.114))]
        np.testing.assert_allclose(found[8, column], expected, atol=3)  # As JPEG is not exact.


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_followed(tmp_path, orientation):
    """What a viewer shows of the four corners, by the values of EXIF 2.3, section 4.6.4."""
    corners = np.array([[10, 60], [120, 250]], np.uint8)
    shown = {
        1: [[10, 60], [120, 250]], 2: [[60, 10], [250, 120]], 3: [[250, 120], [60, 10]],
        4: [[120, 250], [10, 60]], 5: [[10, 120], [60, 250]], 6: [[120, 10], [250, 60]],
        7: [[250, 60], [120, 10]], 8: [[60, 250], [10, 120]],
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.kron(corners, np.ones((8, 8), np.uint8)))
    image.save(tmp_path / "a.jpg", exif=exif, quality=100)
    found = decode(tmp_path / "a.jpg", (16, 16, 1))[..., 0]
    np.testing.assert_allclose(found[::15, ::15], shown, atol=2)


@pytest.mark.parametrize(
    "exif",
    [
        b"no TIFF header",
        b"MM\0*\0\0\0\x08",
        b"MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03\0\0\xff\xff\xff\xff\xff\xff garbage",
    ],
)
def test_damaged_metadata_leaves_the_pixels(tmp_path, exif):
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + exif)
    np.testing.assert_allclose(decode(tmp_path / "a.jpg", (4, 4, 3)), 9, atol=2)


def test_damaged_metadata_of_a_png_leaves_the_pixels(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n8\nnot hexadecimal")
    Image.new("L", (8, 8), 9).save(tmp_path / "a.png", pnginfo=info)
    assert np.all(decode(tmp_path / "a.png", (4, 4, 1)) == 9)
