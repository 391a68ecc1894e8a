"""What is done about losses, gradients and weights that are not finite."""

import math
import pathlib
import shlex
from collections.abc import Callable

from loops.errors import NonFiniteError
from loops.records.checkpoints import Checkpoints
from loops.state import TrainState

# How often a run may go back to a checkpoint because of values that are not finite.
MAX_RESTORES = 3


def update_error(
    state: TrainState, learning_rate: Callable[[int], float], *, skips: bool
) -> NonFiniteError:
    """The error for an update that was not made; where updates are skipped, for the last of them.

    Args:
        state: with `guard["stuck"]` set.
        learning_rate: the rate of the update from a step.
        skips: whether such updates are skipped, up to a limit.
    """
    guard = {name: variable.numpy() for name, variable in state.guard.items()}
    what = "gradient" if math.isfinite(guard["loss"]) else "loss"
    step = state.step if skips else state.step + 1
    in_a_row = f", the last of {guard['in_a_row']} in a row" if skips else ""
    return NonFiniteError(
        f"the {what} is not finite at step {step}{in_a_row} (loss {guard['loss']:.4g}, "
        f"gradient norm {guard['gradient_norm']:.4g}, learning rate {learning_rate(step - 1):.4g})",
        step,
    )


def weight_error(state: TrainState, learning_rate: Callable[[int], float]) -> NonFiniteError:
    """The error for a state in which a weight is not finite."""
    step = state.step
    rate = learning_rate(step - 1)
    return NonFiniteError(f"a weight is not finite at step {step} (learning rate {rate:.4g})", step)


def with_advice(error: NonFiniteError, checkpoints: Checkpoints) -> NonFiniteError:
    """The same error, with what the user can do about it."""
    return NonFiniteError(
        f"{error}; the checkpoint of step {checkpoints.safe_step or 0} is kept. Try a lower "
        "--learning_rate, longer --warmup_epochs, --clip_norm, or another --on_nan. See the step "
        f"with {replay_command(checkpoints.run_dir, error.step)}",
        error.step,
    )


def replay_command(run_dir: pathlib.Path, step: int) -> str:
    """The command that shows a step of a run again."""
    return f"python replay.py --run_dir={shlex.quote(str(run_dir))} --step={step}"


def go_back(state: TrainState, checkpoints: Checkpoints, error: NonFiniteError) -> str:
    """Restores the last checkpoint, and leaves out the batches up to the failing update.

    Returns:
        A message about it.

    Raises:
        NonFiniteError: the run has gone back too often, or has no checkpoint.
    """
    guard = state.guard
    # Where an update was not made, its batch is the last of them.
    failed = state.step + int(guard["stuck"].numpy())
    left_out, restores = int(guard["batches_left_out"].numpy()), int(guard["restores"].numpy())
    if restores == MAX_RESTORES:
        message = f"{error}; training went back {restores} times already"
        again = NonFiniteError(message, error.step)
        raise with_advice(again, checkpoints) from error
    if not checkpoints.restore_last():
        raise error
    step = state.step
    guard["restores"].assign(restores + 1)
    guard["batches_left_out"].assign(left_out + failed - step)
    return (
        f"{error}; continuing from step {step} without the next {failed - step} batches "
        f"(restore {restores + 1} of {MAX_RESTORES})"
    )
