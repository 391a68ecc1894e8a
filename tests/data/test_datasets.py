import gzip
import hashlib
import io
import os
import pickle
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

import data
from data import cifar, download
from data.source import ArraySource, DataError, Part, Resized, split_by_class


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Downloads fail at once, as on a machine without a network."""

    def refuse(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)


def write_cifar10(folder, size=20):
    folder.mkdir(parents=True)
    files = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for seed, name in enumerate(files):
        batch = {b"data": pixels(size, 3072, seed=seed), b"labels": [i % 10 for i in range(size)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = [f"class {i}".encode() for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol=2))


def test_cifar10_is_read_from_the_unpacked_directory(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-py")
    for place in (tmp_path, tmp_path / "cifar-10-batches-py"):
        dataset = data.load("cifar10", data_dir=place)
        assert {k: len(s.labels) for k, s in dataset.splits.items()} == {"train": 100, "test": 20}
        assert dataset.class_names[3] == "class 3"
        # Planes of red, green and blue, row by row.
        image = dataset.splits["train"].fetch(np.array([21]))[0]
        flat = pixels(20, 3072, seed=1)[1]
        assert image[5, 7].tolist() == [flat[k * 1024 + 5 * 32 + 7] for k in range(3)]


def test_cifar10_is_found_where_keras_unpacks_it(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-py-target" / "cifar-10-batches-py")
    assert len(data.load("cifar10", data_dir=tmp_path).splits["test"].labels) == 20


def test_cifar10_archive_is_unpacked(tmp_path, monkeypatch):
    write_cifar10(tmp_path / "made" / "cifar-10-batches-py")
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(cifar, "fetch", lambda *args, **kwargs: archive)
    assert len(data.load("cifar10", data_dir=tmp_path).splits["test"].labels) == 20


def test_archive_cannot_climb_out(tmp_path, monkeypatch):
    inside = tmp_path / "inside"
    inside.mkdir()
    archive = inside / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("../escaped")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"bad"))
    monkeypatch.setattr(cifar, "fetch", lambda *args, **kwargs: archive)
    with pytest.raises(DataError, match="cannot be unpacked"):
        data.load("cifar10", data_dir=inside)
    assert not (tmp_path / "escaped").exists()


def test_missing_batch_is_named(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(DataError, match="data_batch_3 is missing"):
        data.load("cifar10", data_dir=tmp_path)


def test_half_written_batch_is_named(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-py")
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="data_batch_2 cannot be read"):
        data.load("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{b"labels": [10] * 20}, {b"labels": [-1] * 20}, {b"labels": [0]}, {b"data": b"text"}],
)
def test_contents_that_do_not_fit_are_refused(tmp_path, changes):
    write_cifar10(tmp_path / "cifar-10-batches-py")
    bad = {b"data": pixels(20, 3072), b"labels": [0] * 20} | changes
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(bad))
    with pytest.raises(DataError, match="data_batch_1 does not hold"):
        data.load("cifar10", data_dir=tmp_path)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil-was-here",)


def test_pickles_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path / "cifar-10-batches-py")
    evil = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    evil.write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(DataError, match="not allowed"):
        data.load("cifar10", data_dir=tmp_path)
    assert not (tmp_path / "evil-was-here").exists()


def test_cifar100_has_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, size in (("train", 200), ("test", 100)):
        batch = {b"data": pixels(size, 3072), b"fine_labels": [i % 100 for i in range(size)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = [f"class {i}".encode() for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": names}, protocol=2))
    dataset = data.load("cifar100", data_dir=tmp_path)
    assert len(dataset.class_names) == 100
    assert dataset.splits["train"].labels.max() == 99


def test_mnist(tmp_path, monkeypatch):
    path = tmp_path / "mnist.npz"
    arrays = {
        f"{a}_{s}": pixels(30, 28, 28) if a == "x" else np.arange(30) % 10
        for a in "xy"
        for s in ("train", "test")
    }
    np.savez(path, **arrays)
    monkeypatch.setattr(sys.modules["data.mnist"], "fetch", lambda *args, **kwargs: path)
    dataset = data.load("mnist", data_dir=tmp_path)
    assert dataset.image_shape == (28, 28, 1)
    np.testing.assert_array_equal(
        dataset.splits["train"].fetch(np.array([4]))[0, ..., 0], arrays["x_train"][4]
    )
    assert not dataset.flip


def test_fashion_mnist(tmp_path, monkeypatch):
    def fetch(dataset, folder, file, **kwargs):
        size = 12 if file.startswith("train") else 6
        body = pixels(size, 28, 28) if "images" in file else np.arange(size, dtype=np.uint8) % 10
        header = bytes(16 if "images" in file else 8)
        (tmp_path / file).write_bytes(gzip.compress(header + body.tobytes()))
        return tmp_path / file

    monkeypatch.setattr(sys.modules["data.mnist"], "fetch", fetch)
    dataset = data.load("fashion_mnist", data_dir=tmp_path)
    assert {k: len(s.labels) for k, s in dataset.splits.items()} == {"train": 12, "test": 6}
    images = dataset.splits["test"].fetch(np.arange(6))
    np.testing.assert_array_equal(images[..., 0], pixels(6, 28, 28))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist"])
def test_without_files_and_network_one_line_says_what_to_do(name, tmp_path):
    with pytest.raises(DataError) as caught:
        data.load(name, data_dir=tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    assert "--dataset=digits" in message


def test_damaged_download_is_not_used(tmp_path):
    (tmp_path / "mnist.npz").write_bytes(b"half of it")
    with pytest.raises(DataError, match="could not be downloaded"):
        data.load("mnist", data_dir=tmp_path)


def test_digits():
    dataset = data.load("digits", val_fraction=0.1)
    sizes = {k: len(s.labels) for k, s in dataset.splits.items()}
    assert sizes == {"train": 1295, "val": 143, "test": 359}
    images = dataset.splits["train"].fetch(np.arange(1295))
    assert images.shape == (1295, 8, 8, 1)
    assert images.max() == 255
    assert np.mean(images / 255) == pytest.approx(dataset.mean[0], abs=0.01)
    assert np.std(images / 255) == pytest.approx(dataset.std[0], abs=0.01)


def test_unknown_dataset_lists_the_known_ones():
    with pytest.raises(DataError, match=r"'cifar11'.*cifar10, cifar100, digits"):
        data.load("cifar11")


def test_data_dir_must_exist(tmp_path):
    with pytest.raises(DataError, match="is not a directory"):
        data.load("cifar10", data_dir=tmp_path / "typo")


def test_default_directory_is_that_of_keras(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert download.default_data_dir() == tmp_path / "datasets"


def test_splits_hold_the_same_share_of_every_class_and_overlap_nowhere():
    labels = np.repeat([0, 1, 2, 3], [100, 50, 10, 2])
    first, second = split_by_class(labels, 0.1)
    np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), np.arange(162))
    np.testing.assert_array_equal(np.bincount(labels[second]), [10, 5, 1, 1])
    again = split_by_class(labels, 0.1)
    np.testing.assert_array_equal(second, again[1])


def test_split_leaves_a_class_of_one_in_the_first_part():
    first, second = split_by_class(np.array([0, 1, 1, 1]), 0.5)
    assert 0 in first
    assert len(second) == 2 or len(second) == 1


def test_no_fraction_is_no_split():
    first, second = split_by_class(np.array([0, 0, 1]), 0.0)
    assert len(first) == 3
    assert len(second) == 0
    assert "val" not in data.load("digits").splits


def test_part_renumbers():
    whole = ArraySource(pixels(10, 4, 4, 1), np.arange(10))
    part = Part(whole, np.array([7, 2]))
    np.testing.assert_array_equal(part.labels, [7, 2])
    np.testing.assert_array_equal(part.fetch(np.array([1, 0])), whole.images[[2, 7]])


@pytest.mark.parametrize("channels", [1, 3])
def test_resized(channels):
    whole = ArraySource(np.full((3, 8, 8, channels), 7, np.uint8), np.zeros(3))
    resized = Resized(whole, 20).fetch(np.arange(3))
    assert resized.shape == (3, 20, 20, channels)
    assert np.all(resized == 7)


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one label each"):
        ArraySource(pixels(3, 4, 4, 1), np.arange(2))


def test_relabel_goes_by_name():
    dataset = data.load("digits")
    turned = data.relabel(dataset, [str(9 - i) for i in range(10)])
    np.testing.assert_array_equal(turned.splits["test"].labels, 9 - dataset.splits["test"].labels)
    with pytest.raises(DataError, match="lacks ten and has besides 9"):
        data.relabel(dataset, [*(str(i) for i in range(9)), "ten"])


# Anyone's own images.


def write_image(path, colour=(200, 30, 30), size=(40, 30), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)


def write_tree(root, splits=("train", "test"), count=3):
    for split in splits:
        for name, colour in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
            for i in range(count):
                suffix = ("jpg", "PNG", "jpeg")[i % 3]
                write_image(root / split / name / f"{i}.{suffix}", colour)


def test_folder_with_train_and_test(tmp_path):
    write_tree(tmp_path)
    (tmp_path / "train" / "red" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".hidden").mkdir()
    dataset = data.load("folder", data_dir=tmp_path, image_size=16)
    assert dataset.class_names == ["blue", "red"]
    assert {k: len(s.labels) for k, s in dataset.splits.items()} == {"train": 6, "test": 6}
    images = dataset.splits["train"].fetch(np.arange(6))
    assert images.shape == (6, 16, 16, 3)
    np.testing.assert_allclose(images[0], np.full((16, 16, 3), (0, 0, 200)), atol=3)
    np.testing.assert_allclose(images[5], np.full((16, 16, 3), (200, 0, 0)), atol=3)
    assert dataset.name == tmp_path.name


def test_one_tree_is_split(tmp_path):
    write_tree(tmp_path, splits=("",), count=10)
    dataset = data.load("folder", data_dir=tmp_path)
    assert {k: len(s.labels) for k, s in dataset.splits.items()} == {"train": 16, "test": 4}
    assert dataset.image_shape == (64, 64, 3)


def test_shorter_side_fits_and_the_middle_is_kept(tmp_path):
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = 255
    (tmp_path / "a").mkdir()
    Image.fromarray(image).save(tmp_path / "a" / "1.png")
    Image.fromarray(image).save(tmp_path / "a" / "2.png")
    dataset = data.load("folder", data_dir=tmp_path, image_size=20)
    assert np.all(dataset.splits["train"].fetch(np.array([0])) == 255)


def test_folder_can_be_grey(tmp_path):
    write_tree(tmp_path)
    dataset = data.load("folder", data_dir=tmp_path, image_size=8, channels=1)
    assert dataset.splits["test"].fetch(np.array([0])).shape == (1, 8, 8, 1)
    assert len(dataset.mean) == 1


def test_broken_image_is_named(tmp_path):
    write_tree(tmp_path)
    for broken, contents in (("0.jpg", b"text"), ("1.PNG", b"")):
        (tmp_path / "train" / "red" / broken).write_bytes(contents)
    half = (tmp_path / "train" / "red" / "2.jpeg").read_bytes()
    (tmp_path / "train" / "red" / "2.jpeg").write_bytes(half[: len(half) // 2])
    train = data.load("folder", data_dir=tmp_path).splits["train"]
    for number, name in ((3, "0.jpg"), (4, "1.PNG"), (5, "2.jpeg")):
        with pytest.raises(DataError, match=f"train/red/{name} cannot be decoded"):
            train.fetch(np.array([number]))


def test_a_directory_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(DataError, match=r"folder cannot be read from .*Permission denied"):
        data.load("folder", data_dir=tmp_path)


def test_folder_faults_are_named(tmp_path):
    with pytest.raises(DataError, match="needs --data_dir"):
        data.load("folder")
    with pytest.raises(DataError, match="no class directories"):
        data.load("folder", data_dir=tmp_path)
    write_tree(tmp_path, splits=("train",))
    with pytest.raises(DataError, match="no test/"):
        data.load("folder", data_dir=tmp_path)
    write_tree(tmp_path)
    (tmp_path / "test" / "green").mkdir()
    with pytest.raises(DataError, match="green has no images"):
        data.load("folder", data_dir=tmp_path)
    write_image(tmp_path / "test" / "green" / "1.png")
    with pytest.raises(DataError, match="differ in their classes: green"):
        data.load("folder", data_dir=tmp_path)


def test_an_empty_split_is_refused(tmp_path):
    write_tree(tmp_path, splits=("",), count=1)
    with pytest.raises(DataError, match="leaves no example for the test split; use more images"):
        data.load("folder", data_dir=tmp_path)
    write_tree(tmp_path / "both", count=1)
    with pytest.raises(DataError, match="the val split; use --val_fraction=0 or more images"):
        data.load("folder", data_dir=tmp_path / "both", val_fraction=0.1)


def test_fingerprints_tell_data_apart(tmp_path):
    def of(source):
        return source.fingerprint()

    one, other = (ArraySource(pixels(4, 2, 2, 1, seed=s), np.arange(4)) for s in (0, 1))
    assert of(one) == of(ArraySource(one.images.copy(), one.labels))
    assert of(one) != of(other)
    assert of(one) != of(ArraySource(one.images, one.labels[::-1]))
    assert of(Part(one, np.arange(2))) != of(Part(one, np.arange(3)))
    write_tree(tmp_path)
    before = of(data.load("folder", data_dir=tmp_path).splits["train"])
    assert before == of(data.load("folder", data_dir=tmp_path).splits["train"])
    (tmp_path / "train" / "red" / "0.jpg").write_bytes(b"another")
    assert before != of(data.load("folder", data_dir=tmp_path).splits["train"])


def test_a_file_that_is_there_is_verified_and_used(tmp_path):
    (tmp_path / "a").write_bytes(b"contents")
    for digest in (hashlib.md5(b"contents"), hashlib.sha256(b"contents")):
        found = download.fetch("x", tmp_path, "a", url="http://x", file_hash=digest.hexdigest())
        assert found == tmp_path / "a"
    with pytest.raises(DataError, match="could not be downloaded"):
        download.fetch("x", tmp_path, "a", url="http://localhost", file_hash="0" * 64)


def test_downloads_go_where_they_are_looked_for(tmp_path, monkeypatch):
    def get_file(file, *, cache_dir, **kwargs):
        assert cache_dir.is_dir()
        (cache_dir / file).write_bytes(b"contents")

    monkeypatch.setattr("tensorflow.keras.utils.get_file", get_file)
    path = download.fetch("x", tmp_path / "new" / "dir", "a", url="http://x", file_hash="0" * 64)
    assert path.read_bytes() == b"contents"
