"""What a run was made with: the net's operations, versions and the machine."""

import pathlib
import platform
import subprocess

import keras
import numpy as np
import tensorflow as tf

from commands.saved_config import Code
from loops.distributed import processor


def versions() -> dict[str, str]:
    """Versions of Python and the libraries that compute, by name."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def machine() -> str:
    """The processor and its cores, and the GPUs, such as "AMD EPYC 7763, 2 cores"."""
    cores = processor.cores()
    gpus = tf.config.get_visible_devices("GPU")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name") for gpu in gpus]
    counted = "1 core" if cores == 1 else f"{cores} cores"
    return ", ".join([processor.model(), counted, *map(str, names)])


def commit() -> str:
    """The commit of this project, with "-dirty" if files have changed; "unknown" without git."""
    command = ["git", "-C", pathlib.Path(__file__).parent, "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


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
