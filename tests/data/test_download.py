import hashlib

import pytest

import data
from data import download
from data.source import DataError
from tests.data.helpers import refused


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Downloads fail at once, as on a machine without a network."""

    def refuse(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)


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


def test_default_directory_is_that_of_keras(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert download.default_data_dir() == tmp_path / "datasets"


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


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist"])
def test_without_a_home_directory(name, monkeypatch):
    def unknown(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.expanduser", unknown)
    refused("there is no home directory to keep data in; use --data_dir", data.load, name)
    refused("--data_dir=~/x: the home directory is unknown", data.load, name, data_dir="~/x")
    assert data.load("digits").splits["test"].image_shape == (8, 8, 1)
