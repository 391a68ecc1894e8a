import numpy as np
import pytest
import tensorflow as tf

import data
from tests.data.helpers import (
    KINDS,
    encoded,
    fetch,
    noise,
    open_paths,
    photo,
    read,
    refused,
    write,
    write_tree,
)

SHAPE = (16, 16, 3)


@pytest.fixture(autouse=True)
def keras_home(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))


@pytest.mark.slow
def test_all_kinds_in_one_batch(tmp_path):
    paths = []
    for i, (contents, *_) in enumerate(KINDS.values()):
        paths.append(tmp_path / f"{i}.jpg")
        paths[-1].write_bytes(contents)
    numbers = np.random.default_rng(0).permutation(np.tile(np.arange(len(paths)), 2))
    expected = np.stack([read(path, SHAPE) for path in paths])[numbers]
    for skip in (False, True):
        source, skipped = open_paths(paths, range(len(paths)), SHAPE, skip=skip)
        assert skipped == []
        np.testing.assert_array_equal(fetch(source, numbers), expected)
        in_graph = tf.data.Dataset.from_tensors(numbers).map(source.fetch)
        np.testing.assert_array_equal(next(iter(in_graph)), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "options"),
    [(8, {}), (64, {"quality": 95}), (8, {"progressive": True}), (300, {"progressive": True})],
)
def test_truncation_is_found_at_every_scale(tmp_path, size, options):
    """Also where the decoder leaves out most of the detail."""
    whole = encoded(noise(400, 300), format="JPEG", **options)
    path = tmp_path / "cut.jpg"
    for kept in (len(whole) // 10, len(whole) // 2, len(whole) - 200, len(whole) - 2):
        path.write_bytes(whole[:kept])
        source, _ = open_paths([path], [0], (size, size, 3), skip=False)
        with pytest.raises(tf.errors.InvalidArgumentError):
            fetch(source, [0])
        good, skipped = open_paths([path], [0], (size, size, 3), skip=True)
        assert skipped == [path]
        assert len(good.labels) == 0


def test_a_damaged_png_is_found(tmp_path):
    whole = encoded(noise(400, 300), format="PNG")
    path, middle = tmp_path / "cut.png", len(whole) // 2
    changed = whole[:middle] + b"??" + whole[middle + 2 :]
    for contents in (whole[:100], whole[:middle], whole[:-300], changed):
        path.write_bytes(contents)
        with pytest.raises(tf.errors.InvalidArgumentError):
            read(path, SHAPE)
        assert open_paths([path], [0], SHAPE, skip=True)[1] == [path]


def test_the_first_bad_header_is_named(tmp_path):
    paths = [write(tmp_path / f"{i}.png") for i in range(100)]
    for i in (70, 40, 99):
        paths[i].write_bytes(b"text")
    assert refused("not an image", open_paths, paths, [0] * 100, SHAPE, skip=False).startswith(
        f"{tmp_path}/40.png cannot be decoded"
    )
    source, skipped = open_paths(paths, range(100), SHAPE, skip=True)
    assert skipped == [paths[40], paths[70], paths[99]]
    assert source.labels.tolist() == [i for i in range(100) if i not in (40, 70, 99)]


def test_what_cannot_be_converted_is_named_or_skipped(tmp_path):
    whole = encoded(photo(40, 30).convert("CMYK"), format="JPEG")
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    paths = [tmp_path / "a.jpg", write(tmp_path / "b.png", mode="RGBA")]
    refused(r"a\.jpg cannot be decoded", open_paths, paths, [0, 1], SHAPE, skip=False)
    source, skipped = open_paths(paths, [0, 1], SHAPE, skip=True)
    assert source.labels.tolist() == [1]
    assert skipped == [paths[0]]


def test_a_file_that_goes_away_is_an_error_where_it_is_fetched(tmp_path):
    """The fingerprint is that of the files as they were listed, which `find_fault` names."""
    train = data.load("folder", data_dir=write_tree(tmp_path)).splits["train"]
    (tmp_path / "train" / "red" / "1.png").unlink()
    after = data.load("folder", data_dir=tmp_path).splits["train"]
    assert train.fingerprint() != after.fingerprint()
    with pytest.raises(tf.errors.NotFoundError):
        fetch(train, [3])
    assert train.describe(3) == str(tmp_path / "train" / "red" / "1.png")


def test_the_fingerprint_is_of_names_and_sizes(tmp_path):
    def fingerprint():
        return data.load("folder", data_dir=tmp_path).splits["train"].fingerprint()

    before = write_tree(tmp_path, suffixes=(".jpg",)) and fingerprint()
    assert fingerprint() == before
    path = tmp_path / "train" / "red" / "0.jpg"
    path.rename(path.with_name("1.jpg.png"))
    assert fingerprint() != before
    path.with_name("1.jpg.png").rename(path)
    assert fingerprint() == before
    with path.open("ab") as file:
        file.write(b"more")
    assert fingerprint() != before
