"""Saving and restoring a run; finding a saved net.

    checkpoints = Checkpoints(state, run_dir, keep=3)
    checkpoints.restore_last()      # -> True if there was one
    checkpoints.save_last()

`checkpoints/` holds the last few states and `best/` the one with the best validation accuracy, each
named by its global step: `checkpoints/step-1200`.
"""

import pathlib
import re

import tensorflow as tf

from loops.errors import RunError, reason
from loops.state import TrainState

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_NAME = re.compile(r"(.*)\.(index|data-\d+-of-\d+)")


class Checkpoints:
    """The checkpoints of a run that is training.

    Args:
        state: all its variables made.
        run_dir: directory of the run.
        keep: how many of the last states stay on disk.
    """

    def __init__(self, state: TrainState, run_dir: pathlib.Path, keep: int):
        self._state = state
        checkpoint = tf.train.Checkpoint(**state.parts())
        self._checkpoint = checkpoint

        def manager(name, max_to_keep):
            directory = run_dir / name
            try:
                found = tf.train.CheckpointManager(
                    checkpoint, str(directory), max_to_keep, checkpoint_name="step"
                )
            except (ValueError, tf.errors.OpError) as error:
                raise RunError(f"{directory / 'checkpoint'} is damaged: {reason(error)}") from error
            if found.latest_checkpoint is None and any(directory.glob("step-*.index")):
                raise RunError(f"{directory} has states, but no file `checkpoint` that lists them")
            return found

        self._last = manager("checkpoints", keep)
        self._best = manager("best", 1)
        self._verified = False

    def restore_last(self) -> bool:
        """Restores the last state. Returns False where there is none.

        Raises:
            RunError: a checkpoint is there, but it is damaged or lacks a variable.
        """
        return self._restore(self._last.latest_checkpoint)

    def restore_best(self) -> bool:
        """As `restore_last`, of the best state."""
        return self._restore(self._best.latest_checkpoint)

    def _restore(self, path: str | None) -> bool:
        if path is None:
            return False
        try:
            status = self._checkpoint.restore(path)
            status.assert_consumed()
        except Exception as error:  # A damaged file makes TensorFlow raise nearly anything.
            raise RunError(f"{path} does not restore this run: {reason(error)}") from error
        return True

    def save_last(self) -> None:
        """Saves the state as the last one, and deletes the oldest if there are too many.

        Raises:
            RunError: it cannot be written; earlier checkpoints are as they were.
        """
        self._save(self._last)

    def save_best(self) -> None:
        """As `save_last`, in the place of the best one so far."""
        self._save(self._best)

    def _save(self, manager: tf.train.CheckpointManager) -> None:
        before = manager.latest_checkpoint
        target = f"{manager.directory}/step-{self._state.step}"
        try:
            path = manager.save(checkpoint_number=self._state.step)
        except (OSError, tf.errors.OpError) as error:
            kept = f"{before} is still good" if before else "there is no earlier one"
            raise RunError(f"cannot save {target}: {reason(error)}; {kept}") from error
        if not self._verified:
            self._verify(path)
            self._verified = True

    def _verify(self, path: str) -> None:
        """Counts what was written against what there is."""
        written = [name for name, _ in tf.train.list_variables(path) if name.endswith(_VALUE)]
        # The checkpoint has one variable of its own, its save counter.
        expected = self._state.num_variables() + 1
        if len(written) != expected:
            raise RunError(f"{path} holds {len(written)} variables of {expected}")


def find_checkpoint(run_dir: pathlib.Path, which: str) -> str:
    """The prefix of a saved state.

    Args:
        run_dir: directory of a run.
        which: "best", "last", or the path of a directory of checkpoints, of a checkpoint's
            prefix (`.../step-1200`) or of one of its files; relative to the working directory or
            to `run_dir`.

    Raises:
        RunError: there is none.
    """
    if which in ("best", "last"):
        places = [run_dir / {"best": "best", "last": "checkpoints"}[which]]
    else:
        places = [pathlib.Path(which).expanduser(), run_dir / which]
    for place in places:
        if place.is_dir():
            if (place / "config.json").exists() and (place / "checkpoints").is_dir():
                place /= "checkpoints"
            try:
                found = tf.train.latest_checkpoint(str(place))
            except (ValueError, tf.errors.OpError) as error:
                raise RunError(f"{place / 'checkpoint'} is damaged: {reason(error)}") from error
            if found:
                return found
        file = _NAME.fullmatch(str(place))
        prefix = file[1] if file else str(place)
        if pathlib.Path(prefix + ".index").is_file():
            return prefix
    hint = "; --val_fraction=0 keeps no best, use --checkpoint=last" if which == "best" else ""
    raise RunError(f"no checkpoint at {' or '.join(map(str, places))}{hint}")


def restore_net(net: tf.keras.layers.Layer, path: str, *, average: bool) -> int:
    """Restores a net alone from a saved state, and returns the state's global step.

    Args:
        net: built.
        path: prefix of a checkpoint, from `find_checkpoint`.
        average: whether the run keeps averages, which are then what is restored.

    Raises:
        RunError: the checkpoint is damaged or lacks a variable of the net.
    """
    try:
        checkpoint = tf.train.Checkpoint(**{"ema_net" if average else "net": net})
        status = checkpoint.read(path)
        status.assert_existing_objects_matched()
        # The rest is the optimizer's, which evaluation has no use for.
        status.expect_partial()
        step = tf.train.load_variable(path, "optimizer/iterations" + _VALUE)
    except Exception as error:  # As above.
        raise RunError(f"{path} does not restore this net: {reason(error)}") from error
    return int(step)
