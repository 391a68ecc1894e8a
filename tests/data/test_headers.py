import subprocess
import sys

import pytest
from PIL import Image

from data.decode import JPEG, PNG
from data.headers import CONVERT, read_header
from tests.data.helpers import (
    KINDS,
    ROOT,
    chunk,
    encoded,
    exif,
    noise,
    palette,
    photo,
    png,
    refused,
)


@pytest.mark.parametrize("kind", KINDS)
def test_which_kinds_are_converted(tmp_path, kind):
    contents, _, _, converted = KINDS[kind]
    (tmp_path / "a").write_bytes(contents)
    decoder = JPEG[1] if contents.startswith(b"\xff\xd8") else PNG
    assert read_header(tmp_path / "a").decoder(8) == (CONVERT if converted else decoder)


@pytest.mark.parametrize(
    ("size", "ratio"),
    [((127, 127), 1), ((128, 128), 2), ((255, 900), 2), ((900, 256), 4), ((512, 512), 8)],
)
def test_large_jpegs_are_decoded_at_twice_the_size_at_least(tmp_path, size, ratio):
    Image.new("L", size).save(tmp_path / "a.jpg")
    assert read_header(tmp_path / "a.jpg").decoder(32) == JPEG[ratio]


@pytest.mark.parametrize(
    ("contents", "direct"),
    [
        (png(4096, 4096, 1, 0, []), True),
        (png(4096, 4097, 1, 0, []), False),
        (encoded(Image.new("L", (4096, 4097)), format="JPEG"), True),
        (encoded(Image.new("L", (4096, 4097)), format="JPEG", progressive=True), False),
    ],
)
def test_images_that_need_much_memory_are_converted(tmp_path, contents, direct):
    (tmp_path / "a").write_bytes(contents)
    assert (read_header(tmp_path / "a").decoder(64) != CONVERT) == direct


def test_a_large_image_is_not_decoded_for_its_header(tmp_path, monkeypatch):
    contents = png(4096, 4096, 1, 0, [], before=[(b"tEXt", b"comment\0" + b"x" * 100)])
    (tmp_path / "a.png").write_bytes(contents)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    assert read_header(tmp_path / "a.png").orientation == 1


def test_orientation(tmp_path):
    photo(8, 8).save(tmp_path / "a.jpg", exif=exif(6))
    assert read_header(tmp_path / "a.jpg").orientation == 6


def refusal(path):
    message = refused("cannot be decoded", read_header, path)
    assert message.startswith(str(path))
    assert message.endswith("; new runs of train.py can leave it out with --bad_images=skip")
    return message


def test_text_and_nothing_are_no_images(tmp_path):
    for contents in (b"", b"a text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"):
        path = tmp_path / "a.jpg"
        path.write_bytes(contents)
        assert "(it is not an image)" in refusal(path)


def test_formats_that_are_not_supported_are_no_images(tmp_path):
    photo(8, 8).save(tmp_path / "a.jpg", format="TIFF")
    assert "(it is not an image)" in refusal(tmp_path / "a.jpg")


def test_a_decompression_bomb_is_named(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(60_000, 60_000, 1, 0, [b"\0"]))
    assert "3600000000 pixels" in refusal(path)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    photo(8, 8).save(tmp_path / "secret.png")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", "secret.png")

    monkeypatch.setattr("builtins.open", refuse)
    assert "(Permission denied)" in refusal(tmp_path / "secret.png")


@pytest.mark.slow
def test_nothing_is_printed_on_standard_error(tmp_path):
    """About damaged metadata, large images and palettes, of which Pillow warns."""
    damaged = b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x02\0\0\xff\xff\0\0\xff\xff garbage"
    Image.new("RGB", (8, 8)).save(tmp_path / "exif.jpg", exif=damaged)
    (tmp_path / "palette.png").write_bytes(palette(bytes([255, 51])))
    Image.new("1", (9500, 9500)).save(tmp_path / "large.png")  # 90 million pixels.
    noise(8, 8).save(tmp_path / "noise.png")
    with (tmp_path / "noise.png").open("ab") as file:
        file.write(chunk(b"tEXt", b"behind the end"))
    code = (
        "import sys, pathlib, os; sys.path.insert(0, sys.argv[1])\n"
        "from tests.data.helpers import open_paths\n"
        "os.environ['KERAS_HOME'] = sys.argv[3]\n"
        "paths = sorted(pathlib.Path(sys.argv[2]).iterdir())\n"
        "os.write(2, b'START')\n"
        "source, _ = open_paths(paths, [0] * len(paths), (8, 8, 3), skip=True)\n"
        "assert len(source.labels) == 4"
    )
    command = [sys.executable, "-c", code, ROOT, tmp_path, tmp_path / "keras"]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stderr.partition("START")[2] == ""
