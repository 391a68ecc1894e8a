import collections
import os
import pathlib

import numpy as np
import pytest

from data import reader as module
from data.reader import ImageReader
from data.source import DataError
from tests.data.helpers import (
    KINDS,
    encoded,
    exif,
    fetch,
    noise,
    open_paths,
    photo,
    read,
    refused,
    write,
)

SHAPE = (24, 24, 3)


@pytest.fixture(scope="module")
def reader():
    return ImageReader(SHAPE)


@pytest.fixture(scope="module", autouse=True)
def keras_home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", str(home))
        yield home


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A folder of 116 images in all formats, and 8 files that cannot be read, in random order."""
    root = tmp_path_factory.mktemp("tree")
    contents = [kind[0] for kind in KINDS.values()]
    for i in range(92):
        image = photo(20 + 3 * i, 200 - i, seed=i)
        if i % 8 == 0:
            contents.append(encoded(image.convert("CMYK"), format="JPEG"))
        elif i % 8 == 1:
            contents.append(encoded(image, format="WEBP", exif=exif(1 + i // 8 % 8)))
        else:
            contents.append(encoded(image, format="JPEG", progressive=i % 2 == 0))
    whole = encoded(noise(300, 200), format="JPEG")
    contents += [
        *(whole[: len(whole) // 2], whole[:-2], b"", b"text", whole[:20]),
        *(encoded(noise(50, 50), format=kind)[:900] for kind in ("PNG", "WEBP", "GIF")),
    ]
    assert len(contents) == 124
    for name, content in zip(np.random.default_rng(0).permutation(900), contents, strict=False):
        (root / f"{name:03} [x].jpg").write_bytes(content)
    return root


def test_a_folder_of_all_formats(reader, tree, keras_home):
    """The pixels are those of training, whatever the format; bad files do not stop the others."""
    paths = [str(path) for path in sorted(tree.iterdir())]
    batches = list(reader.batches(paths, 32))
    assert list(map(len, batches)) == [32, 32, 32, 28]
    assert list(keras_home.iterdir()) == []
    items = [item for batch in batches for item in batch]
    good = [item for item in items if not isinstance(item, DataError)]
    paths = [pathlib.Path(path) for path in paths]
    trained, skipped = open_paths(paths, [0] * len(paths), SHAPE, skip=True)
    assert [path for path, _ in good] == [*map(trained.describe, range(len(trained.labels)))]
    np.testing.assert_array_equal([image for _, image in good], fetch(trained, range(116)))
    errors = [
        str(item).split(" cannot be read: ")[0] for item in items if isinstance(item, DataError)
    ]
    assert errors == list(map(str, skipped))
    assert len(errors) == 8


def test_orientation_and_gray(reader, tmp_path):
    path = tmp_path / "a"
    readers = (reader, ImageReader((16, 16, 1)))
    for format in ("JPEG", "PNG", "WEBP"):
        image = photo(40, 64)
        if format != "JPEG":
            image.putalpha(128)
        path.write_bytes(encoded(image, format=format, exif=exif(6)))
        for reader in readers:
            found = reader.read(str(path))
            assert (found.shape, found.dtype) == (reader.image_shape, np.uint8)
            np.testing.assert_array_equal(found, read(path, reader.image_shape))


def test_reasons(reader, tmp_path, monkeypatch):
    text = tmp_path / "text.jpg"
    text.write_text("text")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(encoded(noise(99, 99), format="JPEG")[:3000])
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("nowhere")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    for name, reason in {
        "text.jpg": "it is not an image",
        "cut.jpg": "its contents are damaged",
        "pipe.jpg": "it is not a regular file",
        "link.jpg": "No such file or directory",
        "loop.jpg": "Too many levels of symbolic links",
        "missing.jpg": "No such file or directory",
        "text.jpg/a.jpg": "Not a directory",
        ".": "it is not a regular file",
        "x" * 300: "File name too long",
    }.items():
        path = os.path.join(tmp_path, name)
        assert refused(None, reader.read, path) == f"{path} cannot be read: {reason}"
    assert refused("null", reader.read, "a\0b.jpg").startswith(r"a\x00b.jpg cannot be read: ")
    line_break = os.path.join(tmp_path, os.fsdecode(b"a\nb\xff.jpg"))
    assert r"a\nb\udcff.jpg cannot be read" in refused(None, reader.read, line_break)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # The superuser may read everything.
    assert refused(None, reader.read, str(cut)) == f"{cut} cannot be read: Permission denied"


def test_paths_that_tensorflow_would_misread(tmp_path, monkeypatch):
    (tmp_path / "real" / "inside").mkdir(parents=True)
    path = write(tmp_path / "real" / "a.png")
    (tmp_path / "link").symlink_to("real/inside")
    (tmp_path / "gs:").mkdir()
    write(tmp_path / "gs:" / "b.png")
    monkeypatch.chdir(tmp_path)
    reader = ImageReader(SHAPE)
    expected = read(path, SHAPE)
    for name in ("link/../a.png", "gs://b.png", "real/a.png"):
        np.testing.assert_array_equal(reader.read(name), expected)
    monkeypatch.chdir(tmp_path / "real")
    np.testing.assert_array_equal(reader.read("a.png"), expected)


def test_each_file_is_read_once_and_few_ahead(reader, tmp_path, monkeypatch):
    good = str(write(tmp_path / "a.png"))
    taken, headers = [], collections.Counter()
    read_header = module.read_header

    def count(path):
        headers[str(path)] += 1
        return read_header(path)

    def paths():
        for i in range(1000):
            taken.append(i)
            yield DataError("nothing there") if i == 3 else good

    monkeypatch.setattr(module, "read_header", count)
    batches = reader.batches(paths(), 4)
    first = next(batches)
    assert [isinstance(item, DataError) for item in first] == [False, False, False, True]
    assert str(first[3]) == "nothing there"
    assert len(taken) == 8
    next(batches)
    assert len(taken) == 12
    batches.close()
    assert headers[good] <= 11
    assert list(reader.batches([], 4)) == []


def test_shapes_that_cannot_be_read():
    assert "the net takes 24x16" in refused("squares", ImageReader, (24, 16, 3))
    assert "the net takes 2 channels" in refused("RGB or gray", ImageReader, (24, 24, 2))
