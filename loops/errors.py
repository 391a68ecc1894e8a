"""Errors that the user of a run can act on. Each has a message of one line."""

import re
import unicodedata


class RunError(RuntimeError):
    """A run cannot start or continue. The message gives the cause and, if possible, a remedy."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class SaveError(RunError):
    """Something could not be written. The message names the file."""


class NonFiniteError(RunError):
    """A loss, a gradient or a weight is not finite.

    Attributes:
        step: the global step after the update that is to blame.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


def printable(text: str) -> str:
    """The text on one line: escapes for control characters and for bytes that are not UTF-8.

    File names may contain both.
    """
    return "".join(c.encode("unicode_escape").decode() if _is_control(c) else c for c in text)


def _is_control(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] == "C" or category in ("Zl", "Zp")


def reason(error: Exception) -> str:
    """The first line of an error's message, without TensorFlow's decoration."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # Imported here, since options are checked before TensorFlow, which takes seconds to load.
    import tensorflow as tf

    text = error.message if isinstance(error, tf.errors.OpError) else str(error)
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", text).strip()
    # A file that could not be written, under a temporary name of TensorFlow's.
    text = re.sub(r"^/.*; ", "", text, flags=re.DOTALL)
    return text.splitlines()[0].strip() if text else type(error).__name__
