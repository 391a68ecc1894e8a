"""Profiles some steps with TensorFlow's profiler."""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable

import tensorflow as tf

from loops.errors import SaveError, reason
from loops.hook import Hook

# Where TensorBoard's profile plugin looks for the profiles of a run.
DIRECTORY = pathlib.Path("plugins", "profile")


class Profile(Hook):
    """Profiles the updates that lead to the steps from `first` to `last`.

    The profile is in `plugins/profile/` of the run directory, where TensorBoard's profile plugin
    finds it. A run that is resumed between the two profiles what is left of them.

    Args:
        first, last: global steps.
        writes: False on a worker that is not the chief.
        say: prints a message.
    """

    def __init__(
        self, first: int, last: int, *, writes: bool = True, say: Callable[[str], None] = print
    ):
        self._first, self._last = first, last
        self._writes, self._say = writes, say
        self._directory, self._started, self._is_done = None, 0, False

    def next_step(self, step: int) -> int | None:
        return next((s for s in (self._first - 1, self._last) if s > step), None)

    def on_start(self, trainer) -> None:
        if self._first - 1 <= trainer.step < self._last:
            self._start(trainer.step)
        elif self._writes and trainer.step >= self._last and not self._is_done:
            self._say(f"profile  none: the run is already at step {trainer.step:,}")

    def on_step(self, trainer) -> None:
        if trainer.step == self._last:
            self._stop(trainer, f"{self._last:,}")
        else:
            self._start(trainer.step)

    def on_end(self, trainer, outcome) -> None:
        if self._directory is not None:  # The run was shorter, or ended early.
            self._stop(trainer, "the last")
        elif self._writes and trainer.plan.total_steps < self._first:
            self._say(f"profile  none: the run has {trainer.plan.total_steps:,} steps only")

    def _start(self, step: int) -> None:
        if not self._writes or self._directory is not None or self._is_done:
            return
        # Not the run directory: the profiler adds an event file, behind which TensorBoard would
        # read no more from that of the run.
        self._directory = tempfile.TemporaryDirectory(prefix="profile-")
        self._started = step
        tf.profiler.experimental.start(self._directory.name)

    def _stop(self, trainer, last: str) -> None:
        if self._directory is None:
            return
        self._is_done = True
        with self._directory as temporary:
            self._directory = None
            tf.profiler.experimental.stop()
            (source,) = pathlib.Path(temporary, DIRECTORY).iterdir()
            target = trainer.run_dir / DIRECTORY / source.name
            try:
                _copy(source, target)
            except OSError as error:
                raise SaveError(f"cannot write {target}: {reason(error)}") from error
        self._say(f"profile  steps {self._started + 1:,} to {last}, in {target}")


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a directory, completely or not at all."""
    temporary = target.with_name(target.name + ".new")
    try:
        shutil.copytree(source, temporary)
        os.replace(temporary, target)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
