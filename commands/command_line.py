"""Runs a command from the command line: flags, a quiet start, one line and an exit code for errors.

Nothing below this module exits the process, so that everything also works in a notebook.
"""

import contextlib
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable

from absl import app, logging

from commands import flags
from commands.setting import ConfigError, Options
from loops.errors import RunError

EXIT_BAD_INPUT = 2
# By the shells' convention, a process that a signal ended has exit code 128 + signal number.
EXIT_SIGNAL = 128


def run(main: Callable[[Options], None], options_class: type[Options]) -> None:
    """Calls `main` with the options in the command line, and exits with the code for its outcome.

    The codes: 0, done; 2, an error that the user can act on, after one line on standard error; 130
    and 143, stopped by SIGINT or SIGTERM; 1 with a traceback, a bug.
    """
    _open_closed_streams()
    found = []

    def parse(argv: list[str]) -> list[str]:
        try:
            found.append(flags.parse(argv, options_class))
        except (ConfigError, RunError) as error:
            fail(str(error))
        except BrokenPipeError:  # Of --help | head.
            sys.exit(EXIT_SIGNAL + signal.SIGPIPE)
        except OSError as error:
            what = "print" if error.filename is None else f"use {error.filename}"
            fail(f"cannot {what}: {error.strerror}")
        logging.set_verbosity(logging.ERROR)
        return argv

    def call(_) -> None:
        with quiet():
            import tensorflow
        # It warns of functions that are traced for each of several runs.
        tensorflow.get_logger().setLevel("ERROR")
        with one_line_errors():
            main(found[0])

    try:
        app.run(call, flags_parser=parse)
    except KeyboardInterrupt:
        sys.exit(EXIT_SIGNAL + signal.SIGINT)


def clean_up_at_sigterm() -> None:
    """From now on, SIGTERM unwinds the stack, so that temporary files go, and exits with 143."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(EXIT_SIGNAL + number))


@contextlib.contextmanager
def one_line_errors():
    """Turns errors that the user can act on into one line and an exit code.

    Warnings about the data are one line each.
    """
    import tensorflow as tf

    from data import DataError, DataWarning
    from loops.distributed.workers import lost_worker
    from loops.errors import reason
    from loops.interrupt import Interrupted
    from nets import NetError
    from nets.pretrained import PretrainedError

    try:
        with _one_line_warnings(DataWarning):
            yield
    except (ConfigError, DataError, NetError, PretrainedError, RunError) as error:
        fail(str(error))
    except Interrupted as interrupted:
        sys.exit(EXIT_SIGNAL + interrupted.signal_number)
    except tf.errors.ResourceExhaustedError as error:
        fail(f"out of memory; lower --batch_size or raise --accumulation ({reason(error)})")
    except tf.errors.OpError as error:
        message = lost_worker(error)
        if message is None:
            raise
        fail(message)
    except BrokenPipeError:  # Of predict.py | head.
        sys.exit(EXIT_SIGNAL + signal.SIGPIPE)
    except OSError as error:
        if error.filename is None:
            raise
        fail(f"cannot use {error.filename}: {error.strerror}")


@contextlib.contextmanager
def _one_line_warnings(kind: type[Warning]):
    """Prints warnings of a kind as one line each on standard error."""

    def show(message, category, *place, **options):
        if issubclass(category, kind):
            report(str(message))
        else:
            shown(message, category, *place, **options)

    with warnings.catch_warnings():
        shown, warnings.showwarning = warnings.showwarning, show
        yield


def fail(message: str) -> None:
    """Exits with one printable line on standard error, or standard output if that is closed."""
    report(message)
    sys.exit(EXIT_BAD_INPUT)


def report(message: str) -> None:
    """Prints one printable line on standard error, or standard output if that is closed."""
    line = " ".join(filter(None, (part.strip() for part in message.splitlines())))
    line = re.sub(r"\S{501,}", lambda word: f"{word[0][:300]}...{word[0][-100:]}", line)
    line = f"{line[:1500]} ... {line[-300:]}" if len(line) > 2000 else line
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    line = f"{os.path.basename(sys.argv[0])}: {line}"
    stream = sys.stdout if _stderr_was_closed else sys.stderr
    with contextlib.suppress(OSError, ValueError):
        encoding = stream.encoding or "utf-8"
        print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


_stderr_was_closed = False


def _open_closed_streams() -> None:
    """Opens the null device in place of standard streams that are closed.

    A file that is opened later would otherwise get their number, and whatever is printed.
    """
    global _stderr_was_closed
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # It gets the number of the stream, which is the lowest one that is free.
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
            _stderr_was_closed = _stderr_was_closed or name == "stderr"


@contextlib.contextmanager
def quiet():
    """Hides what TensorFlow prints on standard error while it is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
