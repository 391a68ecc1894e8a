"""Restores the state of a run at an earlier step, without changing anything in its directory."""

import dataclasses
import pathlib
from collections.abc import Callable

from commands.initial_weights import Start, init_fingerprint, load_start
from commands.run import Run
from loops.errors import RunError
from loops.records import checkpoint_files as files
from loops.records.checkpoints import restore_state
from loops.records.run import BEST, CHECKPOINTS
from loops.state import TrainState


@dataclasses.dataclass(frozen=True, order=True)
class Saved:
    """A checkpoint.

    Attributes:
        step: its global step.
        restores: how often the run had gone back to a checkpoint by then.
        is_last: whether it is among the last ones, and not the best.
        path: its prefix.
    """

    step: int
    restores: int
    is_last: bool
    path: str


def restore_before(
    run: Run,
    step: int,
    make_state: Callable[[Start | None, bool], TrainState],
    *,
    say: Callable[[str], None],
    allow_changes: bool = False,
) -> tuple[TrainState, Saved | None]:
    """The state at the nearest checkpoint from which a step can be made again.

    A training process may delete a checkpoint while it is read; then an earlier one is used.

    Args:
        run: the run.
        step: the global step after the update.
        make_state: makes the state, from what copies the initial weights, or None; it is told
            whether that is the initial state, as it is unless a checkpoint will be restored.
        say: prints a message about a damaged checkpoint.
        allow_changes: whether the net's operations may differ from those of the run that it started
            from.

    Returns:
        The state, and its checkpoint; None for the initial state.

    Raises:
        RunError: it is not known which batches led to the step, or the initial state cannot be
            made.
    """
    restores, candidates = _restores_at(run, step, say)
    for saved in candidates:
        if (why := files.why_unreadable(saved.path)) is not None:
            say(f"{saved.path} is damaged ({why}); using an earlier state")
            continue
        if saved.restores != restores:
            raise RunError(_unknown(run, step, saved.step))
        state = make_state(None, False)
        try:
            restore_state(state, saved.path)
        except RunError:
            if pathlib.Path(saved.path + ".index").exists():
                raise
            continue
        return state, saved
    if restores:
        raise RunError(_unknown(run, step, 0))
    return make_state(_initial_weights(run, allow_changes), True), None


def _restores_at(run: Run, step: int, say: Callable[[str], None]) -> tuple[int, list[Saved]]:
    """How often the run had gone back when it made a step, and the checkpoints before the step.

    The checkpoints are in order of use. The number is that of the first checkpoint that has the
    step, or of the last one if none has it.
    """
    saved = _history(run, say)
    before = sorted((s for s in saved if s.step < step), reverse=True)
    after = [s for s in saved if s.step >= step]
    return next((s.restores for s in (*after, *before)), 0), before


def _history(run: Run, say: Callable[[str], None]) -> list[Saved]:
    """The checkpoints that led to the present state, in order.

    One that was saved before the run went back, to a step before it, is left out.
    """
    found = []
    for name in (CHECKPOINTS, BEST):
        directory = run.path / name
        for step in files.saved_steps(directory):
            path = files.checkpoint_path(directory, step)
            try:
                restores = int(files.saved_value(path, "guard/restores"))
            except Exception as error:  # A damaged file makes TensorFlow raise nearly anything.
                say(f"{path} is damaged ({files.explain(error, directory)}); it is left out")
                continue
            found.append(Saved(step, restores, name == CHECKPOINTS, path))
    history, most = [], 0
    for saved in sorted(found):
        if saved.restores >= most:
            history.append(saved)
            most = saved.restores
    return history


def _unknown(run: Run, step: int, start: int) -> str:
    return (
        f"{run.path} went back to a checkpoint that is gone, somewhere after step {start:,}, and "
        f"left out batches, so that of step {step:,} is not known; use the step of a later "
        "checkpoint plus 1, or more"
    )


def _initial_weights(run: Run, allow_changes: bool) -> Start | None:
    expected = run.saved.init_fingerprint
    if expected is not None and init_fingerprint(run.config.init_from) != expected:
        raise RunError(
            f"--init_from: {run.config.init_from} does not hold the weights that {run.path} "
            "started from; put them back"
        )
    return load_start(run.config, run.data, allow_changes=allow_changes)
