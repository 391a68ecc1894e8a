"""The files of checkpoints: listing, checking, tidying, and reading a net from them.

A checkpoint is named by its global step: `checkpoints/step-1200` is the prefix of its files. Beside
them is TensorFlow's list of the checkpoints, the file `checkpoint`.
"""

import atexit
import contextlib
import functools
import os
import pathlib
import re
import shutil
import tempfile

import numpy as np
import tensorflow as tf

from loops.errors import RunError, reason
from loops.records.run import BEST, CHECKPOINTS, CONFIG

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_FILE = re.compile(r"(.+)\.(?:index|data-\d{5}-of-\d{5})", re.DOTALL)
# What TensorFlow writes before a checkpoint is complete.
_PARTIAL = re.compile(r"step-\d+(_temp|\.(?:index|data-\d{5}-of-\d{5})\.tempstate\d+)")


def _is_literal(path: str) -> bool:
    """Whether TensorFlow, which treats paths as patterns, takes this one as it is."""
    return path.isprintable() and not set(path) & set("*?[]{}\\")


@functools.cache
def _link(path: str) -> str:
    parent = next(p for p in (tempfile.gettempdir(), "/tmp") if _is_literal(p))
    home = tempfile.mkdtemp(prefix="checkpoints-", dir=parent)
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.symlink(path, f"{home}/link")
    return f"{home}/link"


def literal_path(directory: str | os.PathLike) -> str:
    """A path to the same directory that TensorFlow takes literally, if necessary a link.

    For TensorFlow `lr[1]` is `lr1`, and to delete a checkpoint in `lr?` deletes that in `lr1` too.
    """
    # Resolved, since TensorFlow removes ".." from a path without regard to links.
    path = os.path.realpath(directory)
    return path if _is_literal(path) else _link(path)


def literal_prefix(prefix: str) -> str:
    """As `literal_path`, for the prefix of a checkpoint."""
    directory, name = os.path.split(prefix)
    if not _is_literal(name):
        raise RunError(f"TensorFlow cannot read a checkpoint named {name}; rename its files")
    return f"{literal_path(directory)}/{name}"


def explain(error: Exception, directory: str | os.PathLike) -> str:
    """The reason of an error, with the path of the directory as the user knows it."""
    return reason(error).replace(literal_path(directory), os.fspath(directory))


def checkpoint_path(directory: pathlib.Path, step: int) -> str:
    """The prefix of the checkpoint of a step."""
    return f"{directory}/step-{step}"


def saved_steps(directory: pathlib.Path) -> list[int]:
    """The steps of the checkpoints in a directory, in order, by their files."""
    names = os.listdir(directory) if directory.is_dir() else []
    found = [re.fullmatch(r"step-(0|[1-9][0-9]*)\.index", name) for name in names]
    return sorted(int(match[1]) for match in found if match)


def listed_steps(directory: pathlib.Path) -> list[int]:
    """The steps that the file `checkpoint` lists; none if it cannot be read."""
    with contextlib.suppress(OSError):
        text = (directory / "checkpoint").read_text(encoding="utf-8", errors="replace")
        return sorted({int(step) for step in re.findall(r'paths?: "step-(\d{1,18})"', text)})
    return []


def make_manager(checkpoint, directory: pathlib.Path, keep: int) -> tf.train.CheckpointManager:
    """A manager of the checkpoints that exist in a directory, whatever the file `checkpoint` lists.

    What an interrupted save has left is removed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    remove_partial(directory)
    steps, listed = saved_steps(directory), directory / "checkpoint"
    if steps:
        paths = [f'all_model_checkpoint_paths: "step-{step}"' for step in steps]
        # The manager never deletes what has no later time than "last preserved".
        times = [f"all_model_checkpoint_timestamps: {i + 1}.0" for i in range(len(steps))]
        newest = f'model_checkpoint_path: "step-{steps[-1]}"'
        temporary = directory / "checkpoint.new"
        temporary.write_text("\n".join([newest, *paths, *times, "last_preserved_timestamp: 0.0\n"]))
        temporary.replace(listed)
    elif listed.exists():  # Kept, since it shows that there were checkpoints.
        listed.replace(directory / "damaged-checkpoint")
    return tf.train.CheckpointManager(
        checkpoint, literal_path(directory), keep, checkpoint_name="step"
    )


def remove_partial(directory: pathlib.Path) -> None:
    """Removes what an interrupted save has left."""
    for path in directory.glob("step-*"):
        file = _FILE.fullmatch(path.name)
        if _PARTIAL.fullmatch(path.name) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif _PARTIAL.fullmatch(path.name) or (
            file and not path.with_name(file[1] + ".index").exists()
        ):
            with contextlib.suppress(OSError):
                path.unlink()


def quarantine(directory: pathlib.Path, step: int) -> None:
    """Renames the files of a checkpoint to `damaged-...`."""
    for path in directory.glob(f"step-{step}.*"):
        with contextlib.suppress(OSError):
            path.replace(path.with_name("damaged-" + path.name))


def why_unreadable(prefix: str) -> str | None:
    """Why a tensor of a checkpoint cannot be read; None if all can, checksums included."""
    try:
        reader = tf.train.load_checkpoint(literal_prefix(prefix))
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except Exception as error:  # A damaged file makes TensorFlow raise nearly anything.
        text = explain(error, os.path.dirname(prefix))
        return text if len(text) < 120 else text[:117] + "..."
    return None


def saved_variables(prefix: str) -> dict[str, list[int]]:
    """The shapes of the variables in a checkpoint, by name, such as "net/dense/_kernel"."""
    saved = tf.train.list_variables(literal_prefix(prefix))
    shapes = {name.removesuffix(_VALUE): shape for name, shape in saved if name.endswith(_VALUE)}
    return {name: shape for name, shape in shapes.items() if name != "save_counter"}


def saved_value(prefix: str, name: str) -> np.ndarray:
    """The value of a variable in a checkpoint, such as "guard/restores"."""
    return np.asarray(tf.train.load_variable(literal_prefix(prefix), name + _VALUE))


def object_variables(root: tf.train.Checkpoint) -> dict[str, list[int]]:
    """The shapes of the variables that `root` saves, by the names that it gives them."""
    view, seen = tf.train.TrackableView(root), {id(root)}
    queue, shapes = [(root, ())], {}
    for item, path in queue:  # Breadth first, as TensorFlow names them.
        if isinstance(item, tf.Variable | tf.keras.Variable):
            shapes["/".join(path)] = list(item.shape)
            continue
        children = [(k, child) for k, child in view.children(item).items() if id(child) not in seen]
        seen.update(id(child) for _, child in children)
        queue += [(v, (*path, k.replace(".", "..").replace("/", ".S"))) for k, v in children]
    return {name: shape for name, shape in shapes.items() if name != "save_counter"}


def difference(saved: dict[str, list[int]], wanted: dict[str, list[int]]) -> str | None:
    """How the variables of a checkpoint differ from those wanted; None if they do not."""
    phrases = []
    for phrase, one, other in (("it lacks", wanted, saved), ("it also has", saved, wanted)):
        names = sorted(name for name in one if other.get(name) != one[name])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        if names:
            phrases.append(f"{phrase} {', '.join(f'{n} {one[n]}' for n in names[:3])}{more}")
    return "; ".join(phrases) or None


def find_checkpoint(run_dir: pathlib.Path, which: str) -> str:
    """The prefix of a checkpoint; raises RunError if there is none.

    Args:
        run_dir: directory of a run.
        which: "best", "last", or the path of a directory of checkpoints, of a checkpoint's prefix
            or of one of its files; relative to the working directory or to `run_dir`.
    """
    directories = {"best": [run_dir / BEST], "last": [run_dir / CHECKPOINTS]}
    places = directories.get(which) or [pathlib.Path(os.path.expanduser(which)), run_dir / which]
    for place in places:
        is_run = (place / CONFIG).exists() and (place / CHECKPOINTS).is_dir()
        directory = place / CHECKPOINTS if is_run else place
        if steps := saved_steps(directory):
            return checkpoint_path(directory, steps[-1])
        file = _FILE.fullmatch(str(place))
        prefix = file[1] if file else str(place)
        if os.path.isfile(prefix + ".index"):
            return prefix
    hint = "; --checkpoint=last scores the last state" if which == "best" else ""
    raise RunError(f"no checkpoint at {' or '.join(map(str, places))}{hint}")


def restore_net(net: tf.keras.layers.Layer, prefix: str, *, average: bool) -> int:
    """Restores a built net from a checkpoint of a run; returns the checkpoint's global step.

    Args:
        net: built.
        prefix: of the checkpoint, from `find_checkpoint`.
        average: whether the run keeps averages of the weights, which are then restored.

    Raises:
        RunError: the checkpoint is damaged, or its variables are not exactly the net's.
    """
    part = "ema_net" if average else "net"
    try:
        checkpoint, saved = tf.train.Checkpoint(**{part: net}), saved_variables(prefix)
        saved = {name: shape for name, shape in saved.items() if name.startswith(part + "/")}
        found = difference(saved, object_variables(checkpoint))
        if found is None:
            status = checkpoint.read(literal_prefix(prefix))
            status.assert_existing_objects_matched()
            status.expect_partial()  # The rest is the optimizer's.
            return int(saved_value(prefix, "optimizer/iterations"))
    except Exception as error:  # As in `why_unreadable`.
        found = explain(error, os.path.dirname(prefix))
    raise RunError(f"{prefix} does not restore this net: {found}")
