"""Saving and restoring a run: which checkpoint is written, restored, kept or set aside.

    checkpoints = Checkpoints(state, run_dir, keep=3)
    checkpoints.restore_last()      # False if there is none yet
    checkpoints.save_last()

`checkpoints/` has the last few states and `best/` the one that is best on validation. The process
may be killed at any moment: besides the checkpoint being written there is always a complete one.
"""

import math
import pathlib
import tempfile
from collections.abc import Callable

import tensorflow as tf

from loops.distributed.workers import Workers, lost_worker
from loops.errors import RunError, SaveError
from loops.records import checkpoint_files as files
from loops.records.run import BEST, CHECKPOINTS, METRICS


class Checkpoints:
    """The checkpoints of a run in training.

    Args:
        state: a TrainState with all its variables.
        run_dir: directory of the run.
        keep: how many of the last checkpoints to keep, at least 2.
        workers: the `Workers` of the run; None for a single one. All take part in saving, since
            variables are read by all together, but only the chief's files are kept.
        say: prints a message about a damaged checkpoint.
    """

    def __init__(
        self, state, run_dir: pathlib.Path, keep: int, *, workers=None, say: Callable = print
    ):
        self.run_dir = run_dir
        self._state = state
        self._workers = workers or Workers(tf.distribute.get_strategy())
        self._say = say
        self._checkpoint = tf.train.Checkpoint(**state.parts())
        self._keep = {False: keep, True: 1}
        # What the previous process listed, before the lists are made again from the files.
        self._listed = files.listed_steps(self._directory(best=False))
        if self._workers.is_chief:
            self._managers = {best: self._make_manager(best) for best in (False, True)}
        self._verified = False
        # Identifies the state that was last restored or saved.
        self._saved = None

    def _directory(self, best: bool) -> pathlib.Path:
        return self.run_dir / (BEST if best else CHECKPOINTS)

    def path_of(self, step: int, best: bool) -> str:
        """The prefix of the checkpoint of a step, as the best or among the last."""
        return files.checkpoint_path(self._directory(best), step)

    def _make_manager(self, best: bool) -> tf.train.CheckpointManager:
        directory = self._directory(best)
        try:
            return files.make_manager(self._checkpoint, directory, self._keep[best])
        except (OSError, ValueError, tf.errors.OpError) as error:
            why = files.explain(error, directory)
            raise SaveError(f"cannot write {directory / 'checkpoint'}: {why}") from error

    @property
    def safe_step(self) -> int | None:
        """The step at which the state was last restored or saved; None before."""
        return None if self._saved is None else self._saved[0]

    def _identity(self) -> tuple[int, ...]:
        """The step, and what can change without one."""
        others = (self._state.progress["evaluated_step"], self._state.guard["restores"])
        return self._state.step, *(int(variable.numpy()) for variable in others)

    def restore_last(self) -> bool:
        """Restores the last checkpoint that is not damaged; returns False if there is none yet.

        Raises:
            RunError: there are checkpoints, or there were, but none can be restored.
        """
        # The chief decides, and all restore: variables may be written by all together.
        found = self._find_undamaged() if self._workers.is_chief else -1
        step = int(self._workers.broadcast_from_chief(found))
        if step >= 0:
            self._restore(self.path_of(step, best=False))
            self._saved = self._identity()
        return step >= 0

    def _find_undamaged(self) -> int:
        """The last step that can be read completely, or -1; later ones are set aside."""
        directory = self._directory(best=False)
        steps = files.saved_steps(directory)
        faults = {s: "its files are missing" for s in self._listed if s > max(steps, default=-1)}
        good = -1
        for step in reversed(steps):
            why = files.why_unreadable(self.path_of(step, best=False))
            if why is None:
                good = step
                break
            faults[step] = why
        if good < 0 and (faults or self._has_been_saved()):
            why = "".join(f" ({why})" for why in list(faults.values())[:1])
            raise RunError(
                f"{directory} has no checkpoint that can be read{why}; put one back, or "
                f"remove {self.run_dir} to start over"
            )
        for step, why in faults.items():
            self._say(f"{self.path_of(step, best=False)} is damaged ({why})")
            files.quarantine(directory, step)
        if faults:
            self._say(f"continuing from {self.path_of(good, best=False)}, the one before")
            self._managers[False], self._listed = self._make_manager(best=False), []
        return good

    def _has_been_saved(self) -> bool:
        """Whether the run must have had a checkpoint: its first one precedes all these traces."""
        metrics = self.run_dir / METRICS
        return bool(
            any(self._directory(best=False).iterdir())
            or files.saved_steps(self._directory(best=True))
            or (metrics.exists() and metrics.stat().st_size)
        )

    def restore_best(self) -> str:
        """Restores the best checkpoint, from `best/` or from among the last; returns its path.

        Raises:
            RunError: there is none, or it is damaged.
        """
        found = self._find_best() if self._workers.is_chief else (0, 0)
        step, best = map(int, self._workers.total(found))
        path = self.path_of(step, bool(best))
        self._restore(path)
        return path

    def _find_best(self) -> tuple[int, bool]:
        """The step of the best checkpoint that can be read, and whether it is in `best/`."""
        step = int(self._state.progress["best_step"].numpy())
        steps = {best: files.saved_steps(self._directory(best)) for best in (True, False)}
        if steps[True] and step not in steps[True] + steps[False]:
            self._say(f"{self.path_of(step, True)} is missing; using step-{steps[True][-1]}")
            step = steps[True][-1]
        faults = []
        for best in (True, False):
            saved = step in steps[best]
            why = files.why_unreadable(self.path_of(step, best)) if saved else "missing"
            if why is None:
                return step, best
            faults.append(why)
        raise RunError(
            f"{self.path_of(step, True)}, the best checkpoint, cannot be scored ({faults[0]}); "
            "eval.py --checkpoint=last scores the last one"
        )

    def has_best(self) -> bool:
        """Whether the best state so far is in `best/`, and can be read completely."""
        step = int(self._state.progress["best_step"].numpy())
        saved = step in files.saved_steps(self._directory(best=True))
        return saved and files.why_unreadable(self.path_of(step, best=True)) is None

    def _restore(self, path: str) -> None:
        restore_state(self._state, path, self._checkpoint)

    def save_last(self) -> None:
        """Saves the state as the last one, unless it has been saved; deletes the oldest.

        A checkpoint of the same step, from before its evaluation or from before training went back
        to it, is overwritten. If the process is killed meanwhile, the one before it remains.

        Raises:
            SaveError: it cannot be written. Earlier checkpoints are as they were.
        """
        # The chief decides: the others do not know whether its last save succeeded.
        if self._workers.broadcast_from_chief(self._saved == self._identity()):
            return
        self._save(best=False)
        self._saved = self._identity()

    def save_best(self) -> None:
        """Saves the state as the best one, in place of the previous; raises as `save_last`."""
        self._save(best=True)

    def _save(self, best: bool) -> None:
        if not self._workers.is_chief:
            self._save_nowhere()
            return
        directory, path = self._directory(best), self.path_of(self._state.step, best)
        try:
            self._managers[best].save(checkpoint_number=self._state.step)
        except (OSError, tf.errors.OpError) as error:
            if lost_worker(error):
                raise
            files.remove_partial(directory)
            # One of the same step may have been overwritten in part.
            paths = [self.path_of(step, best) for step in reversed(files.saved_steps(directory))]
            before = next((path for path in paths if files.why_unreadable(path) is None), None)
            kept = f"{before} is still good" if before else "there is no earlier one"
            why = files.explain(error, directory)
            raise SaveError(f"cannot save {path}: {why}; {kept}") from error
        if not self._verified:
            written, expected = len(files.saved_variables(path)), self._state.num_variables()
            if written != expected:
                raise RunError(f"{path} holds {written} variables of {expected}")
            self._verified = True

    def _save_nowhere(self) -> None:
        """Takes part in the chief's save."""
        try:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
                self._checkpoint.write(files.literal_prefix(f"{directory}/step"))
        except (OSError, tf.errors.OpError) as error:
            if lost_worker(error):  # Otherwise nothing is lost.
                raise


def restore_state(state, path: str, checkpoint: tf.train.Checkpoint | None = None) -> None:
    """Restores a state; nothing is written.

    Args:
        state: a TrainState with all its variables.
        path: prefix of a checkpoint.
        checkpoint: one of `state.parts()`, to be used again; by default a new one.

    Raises:
        RunError: the checkpoint is damaged, or its variables are not exactly those of the state.
    """
    try:
        _check_and_read(state, path, checkpoint or tf.train.Checkpoint(**state.parts()))
    except Exception as error:  # A damaged file makes TensorFlow raise nearly anything.
        if lost_worker(error):
            raise
        why = files.explain(error, pathlib.Path(path).parent)
        raise RunError(f"{path} does not restore this run: {why}") from error


def _check_and_read(state, path: str, checkpoint: tf.train.Checkpoint) -> None:
    """Restores all variables; the sums of metrics that the checkpoint lacks become NaN."""
    parts, prefix = state.parts(), files.literal_prefix(path)
    saved, wanted = files.saved_variables(path), files.object_variables(checkpoint)
    window = {f"window/{name}": variable for name, variable in parts["window"].items()}
    changed = {  # Sums of metrics that were added to the table since, removed, or changed.
        name
        for name in saved.keys() | wanted.keys()
        if name.startswith("window/") and saved.get(name) != wanted.get(name)
        if name not in window or window[name].dtype.is_floating
    }
    found = files.difference(
        *({k: v for k, v in names.items() if k not in changed} for names in (saved, wanted))
    )
    if found is not None:
        raise RunError(found)
    if not changed:
        checkpoint.restore(prefix).assert_consumed()
        return
    parts["window"] = {k: v for k, v in parts["window"].items() if f"window/{k}" not in changed}
    status = tf.train.Checkpoint(**parts).read(prefix)
    status.assert_existing_objects_matched()
    status.expect_partial()
    for name in changed & window.keys():
        window[name].assign(tf.fill(window[name].shape, tf.cast(math.nan, window[name].dtype)))
