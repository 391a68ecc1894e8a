"""What the pixels of image files become. Pillow is the reference."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps, PngImagePlugin

from data import decode
from tests.data.helpers import KINDS, chunk, encoded, exif, noise, photo, png, read


@pytest.fixture(autouse=True)
def keras_home(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))


def reference(path, size, channels):
    with Image.open(path) as image:
        # Decoded at a reduced size, the last row and column are filled in part.
        draft = image.draft("RGB" if channels == 3 else "L", (2 * size, 2 * size))
        width, height = draft[1][2:] if draft else image.size
        upright = ImageOps.exif_transpose(image).convert("RGB" if channels == 3 else "L")
        width, height = (width, height) if upright.size == image.size else (height, width)
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    fitted = upright.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(fitted).reshape(size, size, channels)


def assert_close(found, expected, most=2, mean=0.3):
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert difference.max() <= most
    assert difference.mean() <= mean


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_kinds_of_images(tmp_path, kind, channels):
    contents, left, right, converted = KINDS[kind]
    (tmp_path / "a.jpg").write_bytes(contents)
    found = read(tmp_path / "a.jpg", (16, 16, channels))
    assert found.dtype == np.uint8
    assert found.shape == (16, 16, channels)
    for column, color in ((1, left), (14, right)):
        expected = color if channels == 3 else [np.dot(color, (0.299, 0.587, 0.114))]
        np.testing.assert_allclose(found[8, column], expected, atol=3)  # As JPEG is not exact.
    assert (tmp_path / "keras").exists() == converted


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 32, 75, 120])
@pytest.mark.parametrize(
    "options",
    [
        {"suffix": "jpg", "quality": 90},
        {"suffix": "jpg", "quality": 90, "progressive": True, "subsampling": 0},
        {"suffix": "png"},
    ],
)
def test_pixels_are_those_of_pillow(tmp_path, options, size, channels):
    """Made smaller by any factor, with every ratio of the JPEG decoder, and larger."""
    path = tmp_path / f"a.{options['suffix']}"
    photo(201, 100).save(path, **{k: v for k, v in options.items() if k != "suffix"})
    # TensorFlow rounds the gray of a PNG down.
    mean = 0.7 if options["suffix"] == "png" and channels == 1 else 0.3
    assert_close(read(path, (size, size, channels)), reference(path, size, channels), mean=mean)


@pytest.mark.parametrize(("width", "height", "size"), [(241, 163, 40), (203, 325, 20)])
def test_a_reduced_jpeg_is_not_stretched(tmp_path, width, height, size):
    """Its sides are no multiples of the ratio, 2 and 4; the reference is the whole image."""
    photo(width, height).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.asarray(ImageOps.fit(image, (size, size)), int)
    difference = np.abs(read(tmp_path / "a.jpg", (size, size, 3)) - expected)
    assert difference.mean() < 2  # 7 where it is stretched.


@pytest.mark.parametrize("size", [(100, 100), (101, 100), (100, 103), (1, 7)])
def test_noise_is_filtered_as_by_pillow(tmp_path, size):
    noise(*size).save(tmp_path / "a.png")
    assert_close(read(tmp_path / "a.png", (30, 30, 3)), reference(tmp_path / "a.png", 30, 3))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_followed(tmp_path, orientation, suffix):
    """What a viewer shows of the four corners, by the values of EXIF 2.3, section 4.6.4."""
    corners = np.array([[10, 60], [120, 250]], np.uint8)
    shown = {
        1: [[10, 60], [120, 250]], 2: [[60, 10], [250, 120]], 3: [[250, 120], [60, 10]],
        4: [[120, 250], [10, 60]], 5: [[10, 120], [60, 250]], 6: [[120, 10], [250, 60]],
        7: [[250, 60], [120, 10]], 8: [[60, 250], [10, 120]],
    }[orientation]  # fmt: skip
    image = Image.fromarray(np.kron(corners, np.ones((8, 8), np.uint8)))
    contents = encoded(
        image, format={"jpg": "JPEG"}.get(suffix, suffix), exif=exif(orientation), quality=100
    )
    (tmp_path / "a.jpg").write_bytes(contents)
    found = read(tmp_path / "a.jpg", (16, 16, 1))[..., 0]
    np.testing.assert_allclose(found[::15, ::15], shown, atol=2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_crop_that_is_turned_is_that_of_the_turned_image(tmp_path, orientation):
    photo(77, 40).save(tmp_path / "a.jpg", exif=exif(orientation), quality=95)
    expected = reference(tmp_path / "a.jpg", 20, 3)
    assert_close(read(tmp_path / "a.jpg", (20, 20, 3)), expected)


def test_orientation_behind_the_pixels_of_a_png(tmp_path):
    rows = [bytes([10] * 8 + [200] * 8)] * 16
    for name, body in (
        (b"eXIf", exif(2).tobytes().removeprefix(b"Exif\0\0")),
        (b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="2"/>'),
    ):
        for place in ("before", "after"):
            other = (b"tEXt", b"comment\0none")
            contents = png(16, 16, 8, 0, rows, **{place: [other, (name, body)]})
            (tmp_path / "a.png").write_bytes(contents)
            found = read(tmp_path / "a.png", (16, 16, 1))
            assert found[0, 0] == 200, (name, place)
            assert found[0, 15] == 10, (name, place)


@pytest.mark.parametrize(
    "damaged",
    [
        b"no TIFF header",
        b"MM\0*\0\0\0\x08",
        b"MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03\0\0\xff\xff\xff\xff\xff\xff garbage",
        exif(9).tobytes().removeprefix(b"Exif\0\0"),
    ],
)
def test_damaged_metadata_leaves_the_pixels(tmp_path, damaged):
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + damaged)
    np.testing.assert_allclose(read(tmp_path / "a.jpg", (4, 4, 3)), 9, atol=2)


def test_damaged_metadata_of_a_png_leaves_the_pixels(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n8\nnot hexadecimal")
    Image.new("L", (8, 8), 9).save(tmp_path / "a.png", pnginfo=info)
    assert np.all(read(tmp_path / "a.png", (4, 4, 1)) == 9)
    contents = png(8, 8, 8, 0, [bytes([9] * 8)] * 8, after=[(b"eXIf", b"garbage")])
    (tmp_path / "b.png").write_bytes(contents + chunk(b"tEXt", b"behind the end"))
    assert np.all(read(tmp_path / "b.png", (4, 4, 1)) == 9)


def test_a_jpeg_is_decoded_at_the_ratio_that_is_asked_for(tmp_path, monkeypatch):
    path = str(tmp_path / "a.jpg")
    photo(160, 160).save(path)
    ratios = []
    real = tf.io.decode_jpeg

    def spy(contents, channels, *, ratio, **kwargs):
        ratios.append(ratio)
        return real(contents, channels, ratio=ratio, **kwargs)

    monkeypatch.setattr("tensorflow.io.decode_jpeg", spy)
    for ratio, number in decode.JPEG.items():
        decode.decode(tf.constant(path), tf.constant(number), tf.constant(1), (20, 20, 3))
        assert ratios.pop() == ratio
        assert not ratios
