import io
import os
import pickle
import tarfile

import numpy as np
import pytest

import data
from data import cifar
from data.source import DataError
from tests.data.helpers import fetch, pixels


@pytest.fixture
def unchecked(monkeypatch):
    """Files are taken as they are."""

    def fetch(dataset, folder, file, **kwargs):
        return folder / file

    monkeypatch.setattr(cifar, "fetch", fetch)


def refused(name, data_dir, file, message):
    with pytest.raises(DataError) as caught:
        data.load(name, data_dir=data_dir)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(f"{data_dir / file} {message}")


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
        assert dataset.augment == "crop:4,flip"
        # Planes of red, green and blue, row by row.
        image = fetch(dataset.splits["train"], [21])[0]
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


@pytest.mark.parametrize(
    ("file", "contents", "message"),
    [
        ("test_batch", {b"data": np.zeros((2, 3072), np.uint8), b"labels": [[1], [1, 2]]}, "does"),
        ("test_batch", ["no", "dictionary"], "cannot be read as a CIFAR batch"),
        ("batches.meta", {b"label_names": 10}, "does not name 10 classes"),
        ("batches.meta", {b"label_names": [b"\xff"] * 10}, "does not name 10 classes"),
        ("batches.meta", {}, "does not name 10 classes"),
    ],
)
def test_cifar_with_contents_that_do_not_fit(tmp_path, unchecked, file, contents, message):
    write_cifar10(tmp_path / "cifar-10-batches-py")
    data.load("cifar10", data_dir=tmp_path)
    (tmp_path / "cifar-10-batches-py" / file).write_bytes(pickle.dumps(contents))
    refused("cifar10", tmp_path, f"cifar-10-batches-py/{file}", message)


def test_an_archive_that_is_cut_is_named(tmp_path, unchecked):
    write_cifar10(tmp_path / "cifar-10-batches-py")
    archive = tmp_path / "made" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    whole = archive.read_bytes()
    for contents in (b"", b"text", whole[: len(whole) // 2]):
        archive.write_bytes(contents)
        refused("cifar10", archive.parent, archive.name, "cannot be unpacked: ")
        for path in (archive.parent / "cifar-10-batches-py").glob("*"):
            path.unlink()
