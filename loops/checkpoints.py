"""Saving and restoring a run; finding a saved net.

    checkpoints = Checkpoints(state, run_dir, keep=3)
    checkpoints.restore_last()      # -> True if there was one
    checkpoints.save_last()

`checkpoints/` holds the last few states and `best/` the one with the best validation accuracy, each
named by its global step: `checkpoints/step-1200`. A process may die at any moment. There is always
a whole state besides the one that is being written, and what a dead process has left behind is
tidied up at the next start.
"""

import contextlib
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable

import tensorflow as tf

from loops.cluster import Workers, lost_worker
from loops.errors import RunError, SaveError, reason
from loops.run_dir import METRICS
from loops.state import TrainState

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_NAME = re.compile(r"(.*)\.(index|data-\d+-of-\d+)")
# Where a state that does not restore is put, so that it is neither taken again nor lost.
_DAMAGED = "damaged-"


class Checkpoints:
    """The checkpoints of a run that is training.

    Args:
        state: all its variables made.
        run_dir: directory of the run.
        keep: how many of the last states stay on disk, at least 2.
        workers: the machines of the run; None for a single one. All take part in saving, since
            variables are read by all together, but only what the chief writes is kept.
        say: is told, in a line, of a checkpoint that is damaged.
    """

    def __init__(
        self,
        state: TrainState,
        run_dir: pathlib.Path,
        keep: int,
        *,
        workers: Workers | None = None,
        say: Callable[[str], None] = lambda text: None,
    ):
        self._state = state
        self._run_dir = run_dir
        self._workers = workers or Workers(tf.distribute.get_strategy())
        self._say = say
        self._checkpoint = tf.train.Checkpoint(**state.parts())
        self._last_dir, self._best_dir = run_dir / "checkpoints", run_dir / "best"
        # What the lists of the last process name, before they are made anew from what there is.
        self._listed = _listed_steps(self._last_dir)
        if self._workers.is_chief:
            self._last = self._manager(self._last_dir, keep)
            self._best = self._manager(self._best_dir, 1)
        self._verified = False
        # Which state was restored or saved last.
        self._safe = None

    def _manager(self, directory: pathlib.Path, keep: int) -> tf.train.CheckpointManager:
        _tidy(directory)
        try:
            _list_anew(directory)
            return tf.train.CheckpointManager(
                self._checkpoint, str(directory), keep, checkpoint_name="step"
            )
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise SaveError(f"cannot write {directory / 'checkpoint'}: {reason(error)}") from error

    def restore_last(self) -> bool:
        """Restores the last state that the chief finds good. Returns False where there is none yet.

        TensorFlow restores variables that are read over replicas with the help of all workers.

        Raises:
            RunError: there are checkpoints, or there were, but none restores.
        """
        found = self.find_good() if self._workers.is_chief else None
        step = int(self._workers.chiefs(-1 if found is None else found))
        if step >= 0:
            self._restore(self._path(self._last_dir, step))
            self._safe = self._now()
        return step >= 0

    def find_good(self) -> int | None:
        """The step of the last state that can be read to its last byte; None where there is none.

        Those behind it are set aside.

        Raises:
            RunError: there are checkpoints, or there were, but none is good.
        """
        steps = saved_steps(self._last_dir)
        missing = [s for s in self._listed if s > max(steps, default=-1)]
        faults = [(step, "its files are missing") for step in missing]
        for step in reversed(steps):
            why = _why_unreadable(self._path(self._last_dir, step))
            if why is None:
                self._tell(faults, step)
                return step
            faults.append((step, why))
        if faults or self._has_been_saved():
            why = f" ({faults[0][1]})" if faults else ""
            raise RunError(
                f"{self._last_dir} has no checkpoint that can be read{why}; put one back, or "
                f"remove {self._run_dir} to start over"
            )
        return None

    def _tell(self, faults: list[tuple[int, str]], good: int) -> None:
        """Tells which states are damaged, and sets them aside."""
        for step, why in faults:
            self._say(f"{self._path(self._last_dir, step)} is damaged ({why})")
        if faults:
            self._say(f"going on from {self._path(self._last_dir, good)}, the one before")
            self._set_aside([step for step, _ in faults])

    def _has_been_saved(self) -> bool:
        """Whether the run must have had a checkpoint: its first is there before any other trace."""
        metrics = self._run_dir / METRICS
        traces = [*self._best_dir.glob("step-*"), *self._last_dir.glob("*")]
        return bool(traces) or (metrics.exists() and metrics.stat().st_size > 0)

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps:
            for file in self._last_dir.glob(f"step-{step}.*"):
                with contextlib.suppress(OSError):
                    file.replace(file.with_name(_DAMAGED + file.name))
        self._last = self._manager(self._last_dir, self._last._max_to_keep)

    def restore_best(self) -> None:
        """Restores the best state so far, or what a life of the run that went on had as the best.

        Raises:
            RunError: none is there, or it is damaged.
        """
        places = (self._best_dir, self._last_dir)
        found = self._find_best(places) if self._workers.is_chief else (0, 0)
        step, place = map(int, self._workers.total(found))
        self._restore(self._path(places[place], step))

    def _find_best(self, places: tuple[pathlib.Path, ...]) -> tuple[int, int]:
        """The step of the best state that can be read, and in which of some places it is."""
        step = int(self._state.progress["best_step"].numpy())
        others = saved_steps(self._best_dir)
        if others and step not in [*others, *saved_steps(self._last_dir)]:
            self._say(f"{self._path(self._best_dir, step)} is gone; step-{others[-1]} is the best")
            step = others[-1]
        faults = []
        for place, directory in enumerate(places):
            there = step in saved_steps(directory)
            why = _why_unreadable(self._path(directory, step)) if there else "missing"
            if why is None:
                return step, place
            faults.append(why)
        raise RunError(
            f"{self._path(self._best_dir, step)}, the best state, cannot be scored ({faults[0]}); "
            "eval.py --checkpoint=last scores the last"
        )

    def _now(self) -> tuple[int, ...]:
        """What tells states apart: the step, and what can change without one."""
        state = self._state
        others = (state.progress["evaluated_step"], state.guard["restores"])
        return state.step, *(int(variable.numpy()) for variable in others)

    @property
    def safe_step(self) -> int | None:
        """The step at which the state was restored or saved last; None before."""
        return None if self._safe is None else self._safe[0]

    def _path(self, directory: pathlib.Path, step: int) -> str:
        return f"{directory}/step-{step}"

    def _restore(self, path: str) -> None:
        try:
            self._checkpoint.restore(path).assert_consumed()
        except Exception as error:  # A damaged file makes TensorFlow raise nearly anything.
            if lost_worker(error):
                raise
            raise RunError(f"{path} does not restore this run: {reason(error)}") from error

    def has_best(self) -> bool:
        """Whether the best state so far is on disk, and can be read to its last byte."""
        step = int(self._state.progress["best_step"].numpy())
        path = self._path(self._best_dir, step)
        return step in saved_steps(self._best_dir) and _why_unreadable(path) is None

    def save_last(self) -> None:
        """Saves the state as the last one, and deletes the oldest if there are too many.

        Nothing is written where the state is on disk already. One of the same step, but from before
        its evaluation or from before the run went back to it, is overwritten; the one before it is
        then what a kill leaves.

        Raises:
            SaveError: it cannot be written; earlier checkpoints are as they were.
        """
        # The chief decides: the others do not know whether it could write the last time.
        if self._workers.chiefs(self._safe == self._now()):
            return
        self._save("_last", self._last_dir)
        self._safe = self._now()

    def save_best(self) -> None:
        """As `save_last`, in the place of the best one so far."""
        self._save("_best", self._best_dir)

    def _save(self, which: str, directory: pathlib.Path) -> None:
        if not self._workers.is_chief:
            self._save_nowhere()
            return
        manager = getattr(self, which)
        target = self._path(directory, self._state.step)
        try:
            path = manager.save(checkpoint_number=self._state.step)
        except (OSError, tf.errors.OpError) as error:
            if lost_worker(error):
                raise
            _tidy(directory)
            # One of the same step may have been overwritten in part.
            good = (self._path(directory, step) for step in reversed(saved_steps(directory)))
            before = next((path for path in good if _why_unreadable(path) is None), None)
            kept = f"{before} is still good" if before else "there is no earlier one"
            raise SaveError(f"cannot save {target}: {reason(error)}; {kept}") from error
        if not self._verified:
            self._verify(path)
            self._verified = True

    def _save_nowhere(self) -> None:
        try:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as elsewhere:
                self._checkpoint.write(f"{elsewhere}/step")
        except (OSError, tf.errors.OpError) as error:
            if lost_worker(error):
                raise
            # Nothing is lost: it would have been thrown away.

    def _verify(self, path: str) -> None:
        """Counts what was written against what there is."""
        written = [name for name, _ in tf.train.list_variables(path) if name.endswith(_VALUE)]
        # The checkpoint has one variable of its own, its save counter.
        expected = self._state.num_variables() + 1
        if len(written) != expected:
            raise RunError(f"{path} holds {len(written)} variables of {expected}")


def saved_steps(directory: pathlib.Path) -> list[int]:
    """Steps of the states in a directory, in order, as the files and not the list have them."""
    found = [re.fullmatch(r"step-(\d+)\.index", path.name) for path in directory.glob("step-*")]
    return sorted(int(match[1]) for match in found if match)


def _listed_steps(directory: pathlib.Path) -> list[int]:
    """Steps that the file `checkpoint` names; none where it is damaged."""
    with contextlib.suppress(OSError):
        text = (directory / "checkpoint").read_text(errors="replace")
        return sorted({int(step) for step in re.findall(r'paths?: "step-(\d{1,18})"', text)})
    return []


def _list_anew(directory: pathlib.Path) -> None:
    """Makes the file `checkpoint` name the states that are there."""
    steps = saved_steps(directory)
    if steps:
        listed = [f'all_model_checkpoint_paths: "step-{step}"' for step in steps]
        # Without times the manager would take them for ones to be kept for ever.
        times = [f"all_model_checkpoint_timestamps: {i + 1}.0" for i in range(len(steps))]
        newest = f'model_checkpoint_path: "step-{steps[-1]}"'
        text = "\n".join([newest, *listed, *times, "last_preserved_timestamp: 0.0\n"])
        temporary = directory / "checkpoint.new"
        temporary.write_text(text)
        temporary.replace(directory / "checkpoint")
    else:
        # It is a trace of what was here; `CheckpointManager` would only stumble over it.
        listed = directory / "checkpoint"
        if listed.exists():
            listed.replace(directory / (_DAMAGED + "checkpoint"))


def _tidy(directory: pathlib.Path) -> None:
    """Removes what a save that was cut short left behind."""
    for path in directory.glob("step-*"):
        match = _NAME.fullmatch(str(path))
        whole = match and pathlib.Path(match[1] + ".index").exists()
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif not whole:
            with contextlib.suppress(OSError):
                path.unlink()


def _why_unreadable(path: str) -> str | None:
    """What keeps a tensor from being read, which compares its checksum; None if all can be."""
    try:
        reader = tf.train.load_checkpoint(path)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except Exception as error:  # A damaged file makes TensorFlow raise nearly anything.
        text = reason(error)
        return text if len(text) < 120 else text[:117] + "..."
    return None


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
            steps = saved_steps(place)
            if steps:
                return str(place / f"step-{steps[-1]}")
        file = _NAME.fullmatch(str(place))
        prefix = file[1] if file else str(place)
        if pathlib.Path(prefix + ".index").is_file():
            return prefix
    hint = "; --checkpoint=last scores the last state" if which == "best" else ""
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
