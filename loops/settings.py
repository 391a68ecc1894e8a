"""Settings of a trainer."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Intervals:
    """How often things happen.

    Attributes:
        log_steps: steps between rows of training metrics.
        eval_epochs: epochs between evaluations on the validation split.
        save_minutes: minutes between saves within an epoch; the end of an epoch always saves.
    """

    log_steps: int = 50
    eval_epochs: int = 1
    save_minutes: float = 10.0


@dataclasses.dataclass(frozen=True)
class FailurePolicy:
    """What to do on a failure.

    Attributes:
        on_nan: "stop"; "skip" the update; or "restore" the last checkpoint, and leave out the
            batches from there to the update that was not finite. `StepSettings.on_nan` is the same.
        on_save_error: "stop", or "continue" and try again at the next occasion.
    """

    on_nan: str = "stop"
    on_save_error: str = "stop"
