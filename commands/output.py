"""Standard output of commands whose product it is.

Unlike `loops.records.terminal`, which lets training go on when nothing can be printed, these raise.
"""

import contextlib
import os
import sys

from loops.errors import SaveError


def write(text: str) -> None:
    """Writes text on standard output at once. Characters that its encoding lacks are escaped.

    Raises:
        BrokenPipeError: nothing reads it any more.
        SaveError: it cannot be written.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        # What is left of the text would be written at exit, and fail again.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
        if isinstance(error, BrokenPipeError):
            raise
        raise SaveError(f"cannot write standard output: {error.strerror}") from error


class Output:
    """Prints lines as a `Terminal` does, but raises as `write` does."""

    def line(self, text: str) -> None:
        """Prints a line."""
        write(f"{text}\n")
