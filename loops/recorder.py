"""Calls the hooks and saves the state, and decides what happens if something cannot be written."""

import functools
from collections.abc import Callable, Sequence

from loops import recovery
from loops.errors import SaveError
from loops.hook import Hook
from loops.settings import FailurePolicy


class Recorder:
    """Everything that a trainer has written goes through here.

    Args:
        trainer: what the hooks are called with.
        hooks: called in this order.
        policy: says whether an error stops the run or is only printed.
        say: prints a message.
    """

    def __init__(
        self,
        trainer,
        hooks: Sequence[Hook],
        policy: FailurePolicy,
        say: Callable[[str], None],
    ):
        self._trainer = trainer
        self._hooks = tuple(hooks)
        self._stops = policy.on_save_error == "stop"
        self._say = say

    def call(self, method: str, *args) -> bool:
        """Calls a method of every hook; returns whether all could write what they had to.

        Raises:
            SaveError: one could not, and the policy says stop.
        """
        done = []
        for hook in self._hooks:
            done.append(self._try(functools.partial(getattr(hook, method), self._trainer, *args)))
            if method in ("on_log", "on_evaluate"):
                _make_numbers(args[0], hook)
        return all(done)

    def next_step(self, step: int) -> int | None:
        """The first global step after `step` at which a hook is to be called; None for none."""
        steps = [hook.next_step(step) for hook in self._hooks]
        return min((s for s in steps if s is not None), default=None)

    def call_step(self, step: int) -> None:
        """Calls `on_step` of the hooks that have asked for a step; raises as `call`."""
        for hook in self._hooks:
            if hook.next_step(step - 1) == step:
                self._try(functools.partial(hook.on_step, self._trainer))

    def flush(self) -> None:
        """Has every hook write what is pending.

        Raises:
            SaveError: one cannot, whatever the policy says.
        """
        for hook in self._hooks:
            hook.on_save(self._trainer)

    def save(self, save: Callable[[], None]) -> bool:
        """Saves a state whose weights are finite; returns whether it was saved.

        Args:
            save: a method of `loops.records.checkpoints.Checkpoints`.

        Raises:
            NonFiniteError: a weight is not finite.
            SaveError: it cannot be saved, and the policy says stop.
        """
        trainer = self._trainer
        if not trainer.state.is_finite():
            raise recovery.weight_error(trainer.state, trainer.learning_rate)
        # A state must not be ahead of its rows, which would not be logged again. The chief decides,
        # since it alone writes, and a save needs all workers.
        if not trainer.workers.broadcast_from_chief(self.call("on_save")):
            return False
        return bool(trainer.workers.broadcast_from_chief(self._try(save)))

    def _try(self, write: Callable[[], None]) -> bool:
        """Writes something; returns whether it could be written."""
        try:
            write()
        except SaveError as error:
            if self._stops:
                raise
            self._say(f"{error}; continuing")
            return False
        return True


def _make_numbers(row: dict, hook: Hook) -> None:
    """Makes what a hook has added to a row Python numbers, which every writer takes.

    Raises:
        ValueError: a value is not a number.
    """
    for name, value in row.items():
        if name == "split" or type(value) in (int, float):
            continue
        try:
            if isinstance(value, str):
                raise TypeError
            row[name] = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{type(hook).__name__} set row[{name!r}] to {value!r}, which is not a number"
            ) from error
