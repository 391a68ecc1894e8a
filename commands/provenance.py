"""Fingerprints of what a run was made with: the net's operations, versions, a file of weights."""

import os
import platform
import zlib

import keras
import numpy as np
import tensorflow as tf

from commands.saved_config import Code


def versions() -> dict[str, str]:
    """Versions of Python and the libraries that compute, by name."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def code_changes(net: str, before: Code, now: Code) -> list[str]:
    """How the code of a run differs from before, a phrase each.

    Args:
        net: name of the net.
        before: what the run was trained with.
        now: what it would continue with.
    """
    changes = [
        f"{name} is {now.versions.get(name)} and was {before.versions.get(name)}"
        for name in sorted(now.versions.keys() | before.versions.keys())
        if now.versions.get(name) != before.versions.get(name)
    ]
    if now.net != before.net:
        changes.append(
            f"the operations of {net} have changed (fingerprint {now.net}, was {before.net})"
        )
    return changes


def file_fingerprint(path: str | None) -> str | None:
    """A checksum of a file's contents; None if there is no such file."""
    if path in (None, "keras") or not os.path.isfile(path):
        return None
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 24):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"
