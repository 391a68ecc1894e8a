"""The code that a run was made with: the net's operations, and versions."""

import platform

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
