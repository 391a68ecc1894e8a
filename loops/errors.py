"""What stops a run for a reason that its user can mend; the message is one line."""


class RunError(RuntimeError):
    """The run cannot start or go on; the message says why and what would do."""
