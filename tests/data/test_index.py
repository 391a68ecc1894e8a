"""What is remembered of image files, and when it is not trusted."""

import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import data
from data.files import FileSource
from data.headers import read_header
from data.index import Index
from data.listing import list_images
from data.pipeline import EvalPipeline
from tests.data.helpers import exif, fetch, noise, open_paths, photo, refused, write, write_tree

FILES = ("blue/0.png", "blue/1.png", "red/0.png", "red/1.png")


@pytest.fixture
def indexes(tmp_path, monkeypatch):
    """Where indexes are, of small trees as well."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr("data.files.MIN_FILES", 1)
    return tmp_path / "keras" / "datasets" / "indexes"


@pytest.fixture
def read(monkeypatch):
    """The files whose headers are read."""
    read = []

    def record(path):
        read.append("/".join(path.split("/")[-2:]))
        return read_header(path)

    monkeypatch.setattr("data.files.read_header", record)
    return read


@pytest.fixture
def tree(tmp_path):
    return age(write_tree(tmp_path / "tree", splits=("",)))


def age(root, seconds=100):
    """Makes files look as if they had been written some time ago."""
    for path in root.rglob("*.*"):
        moment = path.stat().st_mtime_ns - seconds * 10**9
        os.utime(path, ns=(moment, moment))
    return root


def load(tree, **options):
    return data.load("folder", data_dir=tree, image_size=8, **options)


def first_read(read):
    """The files that have been read since it was last asked."""
    found = tuple(sorted(read))
    read.clear()
    return found


def test_headers_are_read_once(tree, indexes, read):
    before = load(tree)
    assert first_read(read) == FILES
    (index,) = indexes.iterdir()
    written = index.stat()
    after = load(tree)
    assert first_read(read) == ()
    for split in ("train", "test"):
        assert after.splits[split].fingerprint() == before.splits[split].fingerprint()
        np.testing.assert_array_equal(
            fetch(after.splits[split], [0, 1]), fetch(before.splits[split], [0, 1])
        )
    # Nothing is new, so it is not written again. At another image size, it is the same.
    data.load("folder", data_dir=tree, image_size=4)
    assert first_read(read) == ()
    assert (index.stat().st_mtime_ns, index.stat().st_ino) == (written.st_mtime_ns, written.st_ino)


def test_a_header_holds_for_every_image_size(tmp_path, indexes, read):
    """A large JPEG is decoded at a fraction of its size, which depends on the image size."""
    tree = write_tree(tmp_path / "tree", splits=("",), count=1)
    for name in ("blue", "red"):
        photo(150, 140).save(tree / name / "0.jpg", exif=exif(6))
    age(tree)
    load(tree)
    first_read(read)
    for size in (8, 64):
        images = [
            fetch(data.load("folder", data_dir=tree, image_size=size).splits["train"], [0])
            for _ in (shutil.rmtree(indexes), None)
        ]
        np.testing.assert_array_equal(*images)
        assert len(first_read(read)) == 4


def test_what_has_changed_is_read_again(tree, indexes, read):
    load(tree)
    first_read(read)
    path = tree / "red" / "1.png"
    before, status = load(tree).splits["train"].fingerprint(), path.stat()
    # In place, which leaves the times of the directory as they are: another size,
    with path.open("ab") as file:
        file.write(b"more")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert load(tree).splits["train"].fingerprint() != before
    assert first_read(read) == ("red/1.png",)
    # and another time.
    os.utime(path, ns=(1, 1))
    load(tree)
    assert first_read(read) == ("red/1.png",)
    # Names.
    path.rename(tree / "red" / "2.png")
    load(tree)
    assert first_read(read) == ("red/2.png",)
    (tree / "red" / "2.png").unlink()
    age(write(tree / "a" / "0.png").parent)
    dataset = data.load("folder", data_dir=tree, image_size=8)
    assert first_read(read) == ("a/0.png",)
    assert dataset.class_names == ["a", "blue", "red"]
    load(tree)
    assert first_read(read) == ()


def test_a_file_that_has_just_been_written_is_not_remembered(tmp_path, indexes, read):
    """It may be written again without a change that its time shows."""
    tree = age(write_tree(tmp_path / "tree", splits=("",)))
    write(tree / "red" / "1.png")
    load(tree)
    first_read(read)
    load(tree)
    assert first_read(read) == ("red/1.png",)


class Harmful:
    """Makes a directory when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "damage", ["cut", "text", "empty", "directory", "version", "dtype", "code"]
)
def test_an_index_that_cannot_be_used_is_made_anew(tree, indexes, read, damage, tmp_path):
    load(tree)
    (path,) = indexes.iterdir()
    whole = path.read_bytes()
    with np.load(path) as file:
        content = dict(file)
    if damage == "version":
        content["version"] = np.array("0")
    elif damage == "dtype":
        content["facts"] = content["facts"][["size", "time"]]
    elif damage == "code":
        content["names"] = np.array([Harmful(tmp_path / "harm")], object)
    if damage == "directory":
        path.unlink()
        path.mkdir()
    elif damage in ("version", "dtype", "code"):
        np.savez(path, **content)
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "text": b"text", "empty": b""}[damage])
    first_read(read)
    load(tree)
    assert first_read(read) == FILES
    load(tree)
    assert first_read(read) == (FILES if damage == "directory" else ())
    assert not (tmp_path / "harm").exists()
    assert pickle.loads(pickle.dumps(Harmful(tmp_path / "harm"))) is None  # It would have.
    assert (tmp_path / "harm").exists()


def test_trees_are_read_without_a_place_for_an_index(tree, tmp_path, monkeypatch, read):
    monkeypatch.setattr("data.files.MIN_FILES", 1)
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file"))
    load(tree)

    def unknown(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setattr("pathlib.Path.expanduser", unknown)
    source, _ = open_paths([tree / "red" / "0.png"], [0], (8, 8, 3), skip=False)
    assert fetch(source, [0]).shape == (1, 8, 8, 3)


def test_a_small_tree_has_none(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    load(tree)
    assert not (tmp_path / "keras").exists()


def test_a_start_that_fails_remembers_what_it_has_read(tree, indexes, read):
    bad = tree / "red" / "1.png"
    original = bad.read_bytes()
    bad.write_bytes(b"text")
    age(tree)
    refused(r"red/1\.png cannot be decoded", load, tree)
    first_read(read)
    bad.write_bytes(original)
    load(tree)
    assert first_read(read) == ("red/1.png",)


def test_several_can_write_at_a_time(tree, indexes):
    files, *_ = list_images(tree, [b"blue", b"red"], skip=False)
    files.facts["kind"] = 1
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: Index(tree).remember(files), range(40)))
    assert len(list(indexes.iterdir())) == 1  # No temporary files.
    again, *_ = list_images(tree, [b"blue", b"red"], skip=False)
    Index(tree).recall(again)
    np.testing.assert_array_equal(again.facts, files.facts)


# --bad_images=skip.


@pytest.fixture
def tried(monkeypatch):
    """The names of files that are decoded to see whether they can be."""
    tried, decodable = [], FileSource.decodable

    def record(self):
        tried.extend(name.decode() for name in self.files.names)
        return decodable(self)

    monkeypatch.setattr(FileSource, "decodable", record)
    return tried


def test_files_that_have_been_decoded_are_not_tried_again(tree, indexes, tried):
    bad = tree / "blue" / "1.png"
    original = bad.read_bytes()
    bad.write_bytes(original[:60])
    age(tree)
    for expected in (FILES, ("blue/1.png",)):  # A bad file is: a disk may have failed once.
        dataset = load(tree, bad_images="skip")
        assert first_read(tried) == expected
        assert dataset.skipped == (bad,)
        assert len(dataset.splits["train"].labels) == 2
    bad.write_bytes(original)
    age(tree)
    assert load(tree, bad_images="skip").skipped == ()
    first_read(tried)
    # Damaged later: the checksum of its pixels.
    bad.write_bytes(original[:-16] + b"????" + original[-12:])
    assert load(tree, bad_images="skip").skipped == (bad,)
    assert first_read(tried) == ("blue/1.png",)


@pytest.mark.slow
def test_a_file_that_cannot_be_fetched_is_forgotten(tree, indexes, tried, read):
    """Of the same size and time as it was when it could be, as of a sector that has gone bad."""
    bad = tree / "red" / "1.png"
    original, status = bad.read_bytes(), bad.stat()
    load(tree, bad_images="skip")
    bad.write_bytes(original[:-16] + b"????" + original[-12:])
    os.utime(bad, ns=(status.st_atime_ns, status.st_mtime_ns))
    for bad_images in ("skip", "error"):
        splits = load(tree, bad_images=bad_images).splits
        first_read(tried), first_read(read)
        faults = [
            EvalPipeline(source, global_batch_size=4, mean=(0.0,) * 3, std=(1.0,) * 3).find_fault(0)
            for source in splits.values()
        ]
        (fault,) = filter(None, faults)
        assert str(fault).startswith(f"{bad} cannot be decoded (its contents are damaged); ")
        # The header is read again, too, and is intact.
        load(tree)
        assert first_read(read) == ("red/1.png",)
    # A start that leaves out what is damaged finds it now.
    dataset = load(tree, bad_images="skip")
    assert first_read(tried) == ("red/1.png",)
    assert dataset.skipped == (bad,)


def test_files_are_tried_as_they_are_decoded(tmp_path, indexes, tried):
    """Another image size may need another decoder, and conversions are tried every time."""
    for name in ("blue", "red"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        noise(90, 90).save(tmp_path / "tree" / name / "0.jpg")
        write(tmp_path / "tree" / name / "1.png")
        Image.new("RGBA", (9, 9), (9, 9, 9, 9)).save(tmp_path / "tree" / name / "2.png")
    age(tmp_path / "tree")
    converted = ("blue/2.png", "red/2.png")
    jpegs = ("blue/0.jpg", "red/0.jpg")
    everything = tuple(sorted((*jpegs, *converted, "blue/1.png", "red/1.png")))
    for size, expected in ((8, everything), (8, converted), (9, converted)):
        data.load("folder", data_dir=tmp_path / "tree", image_size=size, bad_images="skip")
        assert first_read(tried) == expected
    data.load("folder", data_dir=tmp_path / "tree", image_size=64, bad_images="skip")
    assert first_read(tried) == tuple(sorted((*jpegs, *converted)))


def test_sizes_are_of_the_upright_images(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    photo(20, 30).save(tmp_path / "a.jpg")
    photo(20, 30).save(tmp_path / "b.jpg", exif=exif(6))
    photo(20, 30).convert("CMYK").save(tmp_path / "c.jpg")
    photo(20, 13).convert("CMYK").save(tmp_path / "d.jpg", exif=exif(6))
    paths = [tmp_path / f"{name}.jpg" for name in "abcd"]
    source, _ = open_paths(paths, [0] * 4, (8, 8, 3), skip=False)
    # A conversion is the middle, at twice the size of the images, or as it is: 13 rows, of which
    # a square has a part in 14 of 20 columns.
    expected = [[20, 30], [30, 20], [16, 16], [14, 13]]
    assert source.sizes([1, 0, 2, 3]).numpy().tolist() == expected
