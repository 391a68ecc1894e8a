"""Finds a dataset's files under a directory, or downloads and verifies them as Keras does."""

import os
import pathlib

import tensorflow as tf

from data.source import DataError


def default_data_dir() -> pathlib.Path:
    """Where Keras keeps datasets: `$KERAS_HOME/datasets`, by default `~/.keras/datasets`."""
    return pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "datasets"


def fetch(
    dataset: str, data_dir: pathlib.Path, file: str, *, url: str, file_hash: str, instead: str = ""
) -> pathlib.Path:
    """Path of a file under `data_dir`, downloaded if it is not there and verified in any case.

    Args:
        dataset: name of the dataset, for the message.
        data_dir: directory that has or gets the file.
        file: its name.
        url: where it is published.
        file_hash: SHA-256 or MD5 of its contents, in hexadecimal.
        instead: what else would do, for the message.

    Raises:
        DataError: it is neither there nor to be had, or what is there cannot be replaced.
    """
    try:
        path = tf.keras.utils.get_file(
            file, origin=url, file_hash=file_hash, cache_dir=data_dir, cache_subdir="."
        )
    except Exception as error:  # Keras raises a plain Exception when a download fails.
        reason = " ".join(str(error).split())
        raise DataError(
            f"{dataset} is not in {data_dir} and could not be downloaded ({reason}). "
            f"Put {file}{instead} there, or use --dataset=digits, which needs no download."
        ) from error
    return pathlib.Path(path)
