"""What stops a run for a reason that its user can mend; the message is one line."""

import re

import tensorflow as tf


class RunError(RuntimeError):
    """The run cannot start or go on; the message says why and what would do."""


class SaveError(RunError):
    """Something could not be written; the message names the file."""


class NumbersError(RunError):
    """A loss, a gradient or a weight is not finite."""


def reason(error: Exception) -> str:
    """The first line of what an error says, without TensorFlow's decoration."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = error.message if isinstance(error, tf.errors.OpError) else str(error)
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", text).strip()
    # A file that could not be written, whose name is one that TensorFlow made up.
    text = re.sub(r"^/\S+; ", "", text)
    return text.splitlines()[0].strip() if text else type(error).__name__
