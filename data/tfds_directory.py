"""Finds datasets that TensorFlow Datasets has prepared, and checks what they would load."""

import json
import os
import pathlib
import re

from data.source import DataError

PREFIX = "tfds:"
# A dataset, one of its configurations, and a version. Names of packages that tfds would load code
# from, as in "namespace:dataset", are none of these.
_NAME = re.compile(r"(\w+(?:/\w[\w.+-]*)?)(?::([0-9]+\.[0-9]+\.[0-9]+))?")
_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+")
_FEATURES = "tensorflow_datasets.core.features."


def find_prepared(name: str, data_dir: pathlib.Path | None) -> pathlib.Path:
    """The directory of a version of a dataset, the newest by default.

    Args:
        name: "tfds:NAME", "tfds:NAME/CONFIG", or either followed by ":VERSION".
        data_dir: where datasets are prepared; by default that of tfds.

    Raises:
        DataError: there is none, or several that the name does not tell apart, or it has features
            that tfds would import other code for.
    """
    found = _NAME.fullmatch(name.removeprefix(PREFIX))
    if not found:
        raise DataError(f"--dataset={name} is not tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:VERSION")
    place, version = found.groups()
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    parent = data_dir or pathlib.Path(os.path.expanduser(default))
    prepared = [
        path.parent
        for pattern in ("*", "*/*")
        for path in (parent / place).glob(f"{pattern}/dataset_info.json")
        if _VERSION.fullmatch(path.parent.name) and version in (None, path.parent.name)
    ]
    configs = sorted({path.parent for path in prepared})
    if not configs:
        which = f"version {version} of " if version else ""
        raise DataError(
            f"{which}{name} is not prepared in {parent}; prepare it with tfds.builder("
            f'"{place}").download_and_prepare(file_format="array_record"), or give the directory '
            "that it is in with --data_dir"
        )
    if len(configs) > 1:
        names = ", ".join(str(path.relative_to(parent)) for path in configs)
        raise DataError(f"{name} is prepared in several configurations; choose one of {names}")
    newest = max(prepared, key=lambda path: tuple(map(int, path.name.split("."))))
    check_features(name, newest / "features.json")
    return newest


def check_features(name: str, path: pathlib.Path) -> None:
    """Raises DataError if a dataset has other features than those of tfds, whose code it loads."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: {path} cannot be read; prepare the dataset again") from error
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            for key in ("type", "pythonClassName", "python_class_name"):
                kind = item.get(key, _FEATURES)
                if isinstance(kind, str) and not kind.startswith(_FEATURES):
                    raise DataError(f"{name} has a feature of its own, {kind}, which is not loaded")
        if isinstance(item, dict | list):
            waiting += item.values() if isinstance(item, dict) else item
