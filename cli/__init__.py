"""The command line: flags, messages for people, a quiet start. Nothing outside of it knows absl.

Synopsis:

    cli.run(main, cli.define_train_flags)
"""

import contextlib
import io
import os
import re
import reprlib
import signal
import sys

from absl import app, flags, logging

from cli.definitions import (
    COMMAND_FLAGS,
    FREE_FLAGS,
    UNNAMED_FLAGS,
    define_eval_flags,
    define_train_flags,
)

__all__ = [
    "COMMAND_FLAGS",
    "EXIT_BAD_INPUT",
    "EXIT_SIGNAL",
    "FREE_FLAGS",
    "UNNAMED_FLAGS",
    "check",
    "define_eval_flags",
    "define_train_flags",
    "fail",
    "parse",
    "quiet_start",
    "run",
]

EXIT_BAD_INPUT = 2
# A shell's convention for a process that a signal ended: 130 for SIGINT, 143 for SIGTERM.
EXIT_SIGNAL = 128

# What a flag's value is in JSON, by absl's name of its type.
_SAVED_TYPES = {
    "bool": bool,
    "float": (int, float),
    "int": int,
    "string": str,
    "string enum": str,
    "comma separated list of strings": list,
}


def fail(message: str) -> None:
    """Ends the program with one line on standard error."""
    line = " ".join(filter(None, (part.strip() for part in message.splitlines())))
    line = re.sub(r"\S{501,}", lambda word: f"{word[0][:300]}...{word[0][-100:]}", line)
    line = f"{line[:1500]} ... {line[-300:]}" if len(line) > 2000 else line
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    print(f"{os.path.basename(sys.argv[0])}: {line}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


def parse(argv: list[str], define_flags, values=flags.FLAGS) -> dict:
    """The flags in a command line, by name; ends the program if one is wrong.

    Args:
        argv: the command line, beginning with the program's name.
        define_flags: `define_train_flags` or `define_eval_flags`.
        values: absl's flags, which get the definitions.
    """
    names = define_flags(values)
    for name in names:  # So that --help lists them: absl lists those of the main module.
        values.register_key_flag_for_module(argv[0], values[name])
    if {"--flagfile=", "-flagfile="} & set(argv):  # Which absl would leave out silently.
        fail("--flagfile= names no file; give one, or leave it out")
    warnings = io.StringIO()
    try:
        # absl only warns of a file of flags that includes itself.
        with contextlib.redirect_stderr(warnings):
            rest = values(argv)
    except flags.Error as error:
        fail(f"{error}; --help lists the flags")
    except UnicodeDecodeError as error:
        files = " ".join(argument for argument in argv if "flagfile" in argument)
        fail(f"{files} is not text, or includes what is not: {error}")
    except ValueError as error:  # Of --nojit=1.
        fail(f"{error}; --help lists the flags")
    except RecursionError:  # absl looks for names that are like an unknown one.
        fail(f"unknown flag {max(argv, key=len)}; --help lists the flags")
    if warnings.getvalue():
        fail(f"{warnings.getvalue()}; take it out of that file")
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}; flags start with --")
    return {name: values[name].value for name in names}


def _as_text(flag: flags.Flag, value) -> str | None:
    """A flag's value in JSON as a command line has it, or None if it is of another type."""
    if not isinstance(value, _SAVED_TYPES[flag.flag_type()]):
        return None
    if isinstance(value, bool):
        return str(value) if flag.boolean else None
    if not isinstance(value, list):
        return str(value)
    numbers = {type(item) for item in value} <= {int, float}
    return ",".join(map(str, value)) if numbers else None


def check(saved: dict, define_flags, where: str, *, needed: tuple[str, ...] = ()) -> dict:
    """Flags from a file, checked as those of a command line; ends the program if one is wrong.

    Args:
        saved: values by name. A flag that is missing has its default: it may be younger.
        define_flags: as for `parse`.
        where: the file, for the message.
        needed: flags that must have a value.
    """
    values = flags.FlagValues()
    names = [name for name in define_flags(values) if name not in COMMAND_FLAGS]
    argv = [where]
    for name, value in saved.items():
        if name not in names:
            fail(f"{where}: there is no flag --{name}; mend the file, or use another run")
        if value is None and values[name].value is None:
            continue
        text = _as_text(values[name], value)
        if text is None:
            fail(f"{where}: --{name} cannot be {reprlib.repr(value)}; mend the file")
        argv.append(f"--{name}={text}")
    try:
        values(argv)
    except flags.Error as error:
        fail(f"{where}: {error}; mend the file")
    for name in needed:
        if values[name].value is None:
            fail(f"{where}: --{name} has no value; mend the file")
    return {name: values[name].value for name in names}


def run(main, define_flags) -> None:
    """Calls `main` with the flags in the command line."""
    found = {}

    def parse_all(argv):
        found.update(parse(argv, define_flags))
        logging.set_verbosity(logging.ERROR)
        return argv

    def guarded(_):
        try:
            main(found)
        except KeyboardInterrupt:
            sys.exit(EXIT_SIGNAL + signal.SIGINT)

    app.run(guarded, flags_parser=parse_all)


@contextlib.contextmanager
def quiet_start():
    """Keeps what TensorFlow says on standard error while it is imported from the user."""
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
