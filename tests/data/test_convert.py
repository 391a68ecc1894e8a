import os

import numpy as np
import pytest
from PIL import Image, ImageOps

from data.convert import convert
from data.source import UndecodableError, center_cropped
from tests.data.helpers import (
    encoded,
    fetch,
    halves,
    noise,
    open_paths,
    photo,
    png,
    read,
    refused,
    write,
)

SHAPE = (16, 16, 3)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path / "keras" / "datasets" / "converted"


def test_a_conversion_is_reused(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "a.png", mode="RGBA")
    first = read(path, SHAPE)
    (converted,) = cache.iterdir()
    assert Image.open(converted).size == (12, 12)  # The middle square.
    monkeypatch.setattr("data.convert.decode_with_pillow", None)
    np.testing.assert_array_equal(read(path, SHAPE), first)
    # By another way to the same file, too.
    (tmp_path / "link.png").symlink_to(path)
    np.testing.assert_array_equal(read(tmp_path / "link.png", SHAPE), first)
    assert list(cache.iterdir()) == [converted]


def test_what_is_changed_is_converted_again(tmp_path, cache):
    path = write(tmp_path / "a.png", mode="RGBA")
    read(path, SHAPE)
    os.utime(path, ns=(1, 1))  # Another modification time.
    read(path, SHAPE)
    read(path, (8, 8, 3))
    read(path, (16, 16, 1))
    assert len(list(cache.iterdir())) == 4
    size, status = path.stat().st_size, path.stat()
    path.write_bytes(encoded(Image.new("RGBA", (16, 12), (0, 200, 0, 255)), format="PNG") + b" ")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size != size
    assert read(path, SHAPE)[0, 0].tolist() == [0, 200, 0]


def test_converted_pixels_are_those_of_pillow(tmp_path):
    image = photo(101, 60).convert("CMYK")
    image.save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = [np.asarray(ImageOps.fit(image.convert("RGB"), (n, n)), int) for n in (32, 16)]
    # At twice the size, from which it is scaled.
    with Image.open(convert(tmp_path / "a.jpg", SHAPE)) as image:
        np.testing.assert_array_equal(image, expected[0])
    difference = np.abs(read(tmp_path / "a.jpg", SHAPE) - expected[1])
    assert difference.max() <= 10  # At the border, where the image has been cut.
    assert difference.mean() < 1


def test_a_small_image_is_cut_and_not_scaled(tmp_path):
    """To its middle square, or a pixel more where that would have half a pixel at either side."""
    for width, expected in ((20, (3, 0, 17, 13)), (19, (3, 0, 16, 13))):
        image = photo(width, 13)
        image.convert("RGBA").save(tmp_path / f"{width}.png")
        with Image.open(convert(tmp_path / f"{width}.png", (8, 8, 3))) as found:
            np.testing.assert_array_equal(found, image.crop(expected))


@pytest.mark.parametrize(("size", "kind"), [((500, 375), "RGBA"), ((241, 163), "CMYK")])
def test_a_part_of_a_conversion_is_sharp(tmp_path, size, kind):
    """As it is evaluated with --eval_crop. The JPEG, of odd sides, is decoded at half its size."""
    path = tmp_path / f"a.{'jpg' if kind == 'CMYK' else 'png'}"
    photo(*size).convert(kind).save(path)
    with Image.open(path) as image:
        image = image.convert("RGB")
    width, height = image.size
    for fraction in (0.875, 0.5):
        side = fraction * height
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        expected = image.resize((20, 20), Image.Resampling.BICUBIC, box=box)
        source, _ = open_paths([path], [0], (20, 20, 3), skip=False)
        found = fetch(center_cropped(source, fraction), [0])[0]
        # 10 and more if the copy is of 20x20 pixels.
        assert np.abs(found - np.asarray(expected, int)).mean() < 2


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_large_images_are_reduced_in_bands(tmp_path, mode, monkeypatch):
    """As if they were scaled at once."""
    monkeypatch.setattr("data.headers.MAX_PIXELS", 1000)
    monkeypatch.setattr("data.convert._BAND_PIXELS", 3000)
    path = tmp_path / "a.png"
    photo(403, 250).convert(mode).save(path)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.fit(image.convert("RGB"), (16, 16)), int)
    difference = np.abs(read(path, SHAPE) - expected)
    assert difference.max() <= 10
    assert difference.mean() < 2


def test_the_cache_is_written_whole_or_not_at_all(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "a.png", mode="RGBA")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    message = refused("cannot be written", convert, path, SHAPE)
    assert message.startswith(f"{cache} cannot be written (No space left on device), where {path}")
    assert message.endswith("make it writable or set KERAS_HOME to another directory")
    assert list(cache.iterdir()) == []
    monkeypatch.undo()


def test_a_cache_that_cannot_be_made_is_named(tmp_path, cache):
    path = write(tmp_path / "a.png", mode="RGBA")
    (tmp_path / "keras").write_text("a file")
    message = refused("cannot be written", convert, path, SHAPE)
    assert message.startswith(f"{cache} cannot be written (")


def test_a_cache_that_cannot_be_written_is_not_skipped(tmp_path):
    path = write(tmp_path / "a.png", mode="RGBA")
    (tmp_path / "keras").write_text("a file")
    refused("cannot be written", open_paths, [path], [0], SHAPE, skip=True)


def test_without_a_home_directory(tmp_path, monkeypatch):
    def unknown(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setattr("pathlib.Path.expanduser", unknown)
    assert read(write(tmp_path / "rgb.png"), SHAPE).shape == SHAPE
    path = write(tmp_path / "a.png", mode="RGBA")
    refused("no home directory .*set KERAS_HOME to a directory", convert, path, SHAPE)


@pytest.mark.parametrize(
    ("format", "mode"), [("PNG", "RGBA"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("GIF", "RGB")]
)
def test_damaged_files_are_named(tmp_path, format, mode):
    contents = encoded(noise(40, 30).convert(mode), format=format)
    path = tmp_path / "a.jpg"
    path.write_bytes(contents[: len(contents) // 2])
    with pytest.raises(UndecodableError, match=r"a\.jpg cannot be decoded \("):
        convert(path, SHAPE)


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(UndecodableError, match=r"a\.jpg cannot be decoded \(No such file"):
        convert(tmp_path / "a.jpg", SHAPE)


def test_sixteen_bits_with_transparency_in_bands(tmp_path, monkeypatch):
    monkeypatch.setattr("data.convert._BAND_PIXELS", 16)
    rows = [(b"\x03\xe8" * 8 + b"\x80\x80" * 8)] * 8
    (tmp_path / "a.png").write_bytes(png(16, 8, 16, 0, rows, [(b"tRNS", b"\x03\xe8")]))
    found = read(tmp_path / "a.png", (8, 8, 1))
    assert found[0, 0] == 255
    assert found[7, 7] == 128


def test_two_conversions_are_two_examples(tmp_path):
    for name, colors in (("a", ((1, 1, 1, 255),) * 2), ("b", ((9, 9, 9, 255),) * 2)):
        halves(*colors, "RGBA").save(tmp_path / f"{name}.png")
    source, _ = open_paths([tmp_path / "a.png", tmp_path / "b.png"], [0, 0], SHAPE, skip=False)
    assert fetch(source, [1, 0, 1])[:, 0, 0, 0].tolist() == [9, 1, 9]
