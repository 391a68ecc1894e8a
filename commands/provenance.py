"""What a run was made with: the net's operations, the sources, versions and the machine."""

import ast
import functools
import hashlib
import os
import pathlib
import platform
import subprocess

import keras
import numpy as np
import tensorflow as tf

from commands.saved_config import Code
from loops.distributed import processor

_ROOT = pathlib.Path(__file__).resolve().parent.parent
# What a result follows from.
SOURCES = "the code in nets/, data/, loops/ or commands/session.py"
_COUNTED = ("commands/session.py", "data/**/*.py", "loops/**/*.py", "nets/**/*.py")
_NOT_COUNTED = _ROOT / "loops" / "records"  # Files and the terminal.


def versions() -> dict[str, str]:
    """Versions of Python and the libraries that compute, by name.

    Without oneDNN, TensorFlow's operations round differently, as those of another version may.
    """
    off = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1").lower() in ("0", "false")
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "tensorflow": tf.__version__ + (" without oneDNN" if off else ""),
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


@functools.cache  # What this process has loaded, whatever is edited while it trains.
def sources() -> str:
    """A fingerprint of the code that computes, apart from comments, docstrings and layout."""
    digest = hashlib.sha256()
    for pattern in _COUNTED:
        for path in sorted(_ROOT.glob(pattern)):
            hidden = any(part.startswith(".") for part in path.relative_to(_ROOT).parts)
            if _NOT_COUNTED not in path.parents and not hidden and path.is_file():
                digest.update(f"{path.relative_to(_ROOT)}\n{_statements(path)}\n".encode())
    return digest.hexdigest()[:8]


def sources_changed(code: Code) -> bool:
    """Whether the code differs from what a run was trained with; False if that is unknown."""
    return code.sources not in (None, sources())


def _statements(path: pathlib.Path) -> str:
    """The code of a file in one form; its text where it does not parse."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return text
    for node in ast.walk(tree):
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.unparse(tree)


def machine() -> str:
    """The processor and its cores, and the GPUs, such as "AMD EPYC 7763, 2 cores"."""
    cores = processor.cores()
    gpus = tf.config.get_visible_devices("GPU")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name") for gpu in gpus]
    counted = "1 core" if cores == 1 else f"{cores} cores"
    return ", ".join([processor.model(), counted, *map(str, names)])


def commit() -> str:
    """The commit of this project, with "-dirty" if files have changed; "unknown" without git."""
    command = ["git", "-C", _ROOT, "describe", "--always", "--dirty"]
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
