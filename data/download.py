"""Finds the files of a dataset in a directory, or downloads and verifies them as Keras does."""

import hashlib
import os
import pathlib

import tensorflow as tf

from data.source import DataError


def default_data_dir(*, otherwise: str = "use --data_dir") -> pathlib.Path:
    """Where Keras keeps datasets: `$KERAS_HOME/datasets`, by default `~/.keras/datasets`.

    Args:
        otherwise: what a person without a home directory can do, for the message.

    Raises:
        DataError: there is no home directory.
    """
    try:
        return pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "datasets"
    except RuntimeError as error:
        raise DataError(f"there is no home directory to keep data in; {otherwise}") from error


def fetch(
    dataset: str, data_dir: pathlib.Path, file: str, *, url: str, file_hash: str, instead: str = ""
) -> pathlib.Path:
    """Path of a file under `data_dir`, downloaded if it is not there, and verified.

    Args:
        dataset: name of the dataset, for the message.
        data_dir: directory of the file; it is created.
        file: its name.
        url: where it is published.
        file_hash: SHA-256 or MD5 of its contents, in hexadecimal.
        instead: what else can be put there, for the message.

    Raises:
        DataError: it is not there and cannot be downloaded, or what is there cannot be replaced.
    """
    path = data_dir / file
    try:
        if path.is_file() and _digest(path, file_hash) == file_hash:
            return path
        # Keras would download elsewhere if the directory were missing or could not be written.
        data_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(data_dir, os.W_OK):
            raise PermissionError(f"{data_dir} cannot be written")
        tf.keras.utils.get_file(
            file, origin=url, file_hash=file_hash, cache_dir=data_dir, cache_subdir="."
        )
    except Exception as error:  # Keras raises a plain Exception when a download fails.
        reason = " ".join(str(error).split())
        raise DataError(
            f"{dataset} is not in {data_dir} and could not be downloaded ({reason}). "
            f"Put {file}{instead} there, or use --dataset=digits, which needs no download."
        ) from error
    return path


def published(path: pathlib.Path, file_hash: str) -> pathlib.Path:
    """The path of a file, if its contents are as published.

    Args:
        path: of the file.
        file_hash: SHA-256 or MD5 of the contents, in hexadecimal.

    Raises:
        DataError: they are not, or there is no such file.
    """
    try:
        as_published = _digest(path, file_hash) == file_hash
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not as_published:
        raise DataError(f"{path} is not the published file; restore it, or remove {path.parent}")
    return path


def _digest(path: pathlib.Path, like: str) -> str:
    """MD5 or SHA-256 of a file, whichever has the length of `like`, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5" if len(like) == 32 else "sha256").hexdigest()
