"""absl flags made from a configuration: one flag for each of its fields.

Synopsis:

options = flags.parse(sys.argv, TrainOptions)
"""

import contextlib
import dataclasses
import io
import typing

from absl import flags

from commands.setting import LARGEST, ConfigError, Options, accepted, bounds, convert, kind_of

_HELP = "--help lists the flags"


def define(cls: type, values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Defines a flag for each field of a configuration class, and returns their names."""
    fields = [field for field in dataclasses.fields(cls) if not field.metadata["positional"]]
    for field in fields:
        kind = kind_of(field)
        # Very large bounds are left out.
        limits = ", ".join(bound for bound in bounds(field) if bound != f"<= {LARGEST}")
        help_text = field.metadata["help"] + (f" ({limits})" if limits else "")
        arguments = {"help": help_text, "flag_values": values}
        if typing.get_origin(kind) is typing.Literal:
            flags.DEFINE_enum(field.name, field.default, typing.get_args(kind), **arguments)
        elif typing.get_origin(kind) is tuple:
            default = None if field.default is None else [str(item) for item in field.default]
            flags.DEFINE_list(field.name, default, **arguments)
        else:
            kind = getattr(kind, "__origin__", kind)  # Of `Annotated[X, ...]`.
            # absl's logging has a flag --verbosity of its own.
            override = {"allow_override": True} if field.name in values else {}
            _DEFINE[kind](field.name, field.default, **arguments, **override)
    return [field.name for field in fields]


_DEFINE = {
    bool: flags.DEFINE_boolean,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def parse(argv: list[str], cls: type[Options], values: flags.FlagValues = flags.FLAGS) -> Options:
    """The configuration that a command line asks for.

    Args:
        argv: the command line, beginning with the program's name.
        cls: class of the configuration, with a method `check`.
        values: absl's flags, in which the definitions are entered.

    Raises:
        ConfigError, RunError: a flag is unknown, its value is wrong, or flags do not fit.
    """
    names = define(cls, values)
    for name in names:  # absl's --help lists the flags of the main module.
        values.register_key_flag_for_module(argv[0], values[name])
    if {"--flagfile=", "-flagfile="} & set(argv):  # absl would ignore it.
        raise ConfigError("--flagfile= names no file")
    values.set_gnu_getopt()  # Flags may follow other arguments.
    warnings = io.StringIO()
    try:
        # absl prints a warning about a flag file that includes itself.
        with contextlib.redirect_stderr(warnings):
            rest = values(argv)
    except UnicodeDecodeError as error:
        files = " ".join(argument for argument in argv if "flagfile" in argument)
        raise ConfigError(f"{files} is not a text file: {error}") from error
    except flags.IllegalFlagValueError as error:
        raise ConfigError(_with_accepted(error, cls)) from error
    except (flags.Error, ValueError) as error:  # ValueError for --nojit=1.
        raise ConfigError(f"{error}; {_HELP}") from error
    except RecursionError as error:  # absl compares a very long unknown name with the known ones.
        raise ConfigError(f"unknown flag {max(argv, key=len)}; {_HELP}") from error
    if warnings.getvalue():
        raise ConfigError(f"{warnings.getvalue().strip()}; remove it from that file")
    found = {name: values[name].value for name in names}
    positional = [field.name for field in dataclasses.fields(cls) if field.metadata["positional"]]
    if positional:
        found[positional[0]] = tuple(rest[1:])
    elif len(rest) > 1:
        raise ConfigError(f"unexpected argument {rest[1]!r}; flags start with --")
    for field in dataclasses.fields(cls):
        is_list = typing.get_origin(kind_of(field)) is tuple and not field.metadata["positional"]
        if is_list and found[field.name] is not None:
            found[field.name] = _items(field, found[field.name])
    options = convert(found, cls)
    options.check()
    return options


def _with_accepted(error: flags.IllegalFlagValueError, cls: type) -> str:
    """The message "flag --NAME=VALUE: REASON", with what is accepted in place of the reason."""
    text = str(error).removeprefix("flag ").removesuffix(f": {error.__context__}")
    for field in dataclasses.fields(cls):
        if text.startswith(f"--{field.name}="):
            return f"{text}: expected {accepted(field)}"
    return str(error)  # One of absl's own flags.


def _items(field: dataclasses.Field, items: list[str]) -> list:
    """The items of a list flag, in the type of the field's items; none for "none"."""
    if items == ["none"]:
        return []
    kind = typing.get_args(kind_of(field))[0]
    if typing.get_origin(kind) is typing.Literal:
        return items
    kind = getattr(kind, "__origin__", kind)
    try:
        return [kind(item) for item in items]
    except ValueError as error:
        text = ",".join(items)
        raise ConfigError(f"--{field.name}={text}: expected {accepted(field)}") from error
