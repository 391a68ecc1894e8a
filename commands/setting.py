"""How a setting is declared, and how values are checked against the declarations.

A field's type holds its bounds, its default is the flag's, and `setting` adds the help text and the
part the setting plays in a run's name and on resume. Flags, `--help`, the check of `config.json`,
the name of a run, the comparison on resume and TensorBoard's text are all derived from it.
"""

import dataclasses
import os
import reprlib
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec

LARGEST = 10**9  # Bounds numbers that need no other bound, so that no computation overflows.
MAX_PIXELS = 4096
MAX_EPOCHS = 1e6

Text = Annotated[str, msgspec.Meta(min_length=1)]
Count = Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]
Pixels = Annotated[int, msgspec.Meta(ge=1, le=MAX_PIXELS)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=LARGEST)]
NonNegative = Annotated[float, msgspec.Meta(ge=0, le=LARGEST)]
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Seed = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
Epochs = Annotated[float, msgspec.Meta(gt=0, le=MAX_EPOCHS)]


class ConfigError(ValueError):
    """A setting is wrong. The message, of one line, names it and says what is accepted."""


def setting(
    default,
    help: str,
    *,
    names_run: bool = True,
    may_change: bool = False,
    derived: bool = False,
    earlier: Any = None,
    path: bool = False,
    positional: bool = False,
) -> Any:
    """Declares a field of a configuration.

    Args:
        default: value if the flag is not given.
        help: for `--help`: what it is, with its unit.
        names_run: whether a value other than the default is part of a default run directory's name.
        may_change: whether a resumed run may have another value.
        derived: whether None means that the value depends on the net, the data or other settings;
            a saved run always has a value.
        earlier: of a derived setting, its value in runs that were saved before there was one.
        path: whether it is the path of a file or directory.
        positional: whether its values are the arguments of the command that are not flags.
    """
    metadata = {
        "help": help,
        "names_run": names_run,
        "may_change": may_change,
        "derived": derived,
        "earlier": earlier,
        "path": path,
        "positional": positional,
    }
    return dataclasses.field(default=default, metadata=metadata)


Options = TypeVar("Options")


def convert(values: Mapping[str, Any], cls: type[Options], where: str = "") -> Options:
    """Checks values by name, and makes them a configuration.

    Args:
        values: from a command line or a file. A missing one has its default.
        cls: the class of the configuration.
        where: the file they are from, for messages.

    Raises:
        ConfigError: a name is unknown, or a value is not what its field's type accepts.
    """
    prefix = f"{where}: " if where else ""
    values = {name: os.fspath(x) if isinstance(x, os.PathLike) else x for name, x in values.items()}
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name, value in values.items():
        if name not in fields:
            raise ConfigError(f"{prefix}there is no setting {name!r}")
        _check_text(fields[name], value, prefix)
    try:
        return msgspec.convert(values, cls)
    except msgspec.ValidationError as error:
        # The message ends with the place, such as "at `$.step_epochs[0]`".
        name = str(error).rpartition("`$.")[2].rstrip("`").partition("[")[0]
        value = values[name]
        if isinstance(value, list | tuple):
            value = reprlib.repr(list(value))[1:-1]
        else:
            value = reprlib.repr(value)
        raise ConfigError(f"{prefix}--{name}={value}: expected {accepted(fields[name])}") from error


def kind_of(field: dataclasses.Field) -> Any:
    """The type of a field, without None."""
    is_union = get_origin(field.type) in (Union, types.UnionType)
    return get_args(field.type)[0] if is_union else field.type


_SYMBOLS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def bounds(field: dataclasses.Field) -> list[str]:
    """The bounds of a number, or of the numbers in a list, such as [">= 0", "< 1"]."""
    kind = kind_of(field)
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    found = [
        (symbol, getattr(meta, name))
        for meta in getattr(kind, "__metadata__", ())
        for name, symbol in _SYMBOLS.items()
    ]
    return [f"{symbol} {bound:.0f}" for symbol, bound in found if bound is not None]


_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "text, not empty"}


def accepted(field: dataclasses.Field) -> str:
    """What a field accepts, such as "a number (> 0, <= 1000000)"."""
    kind, limits = kind_of(field), bounds(field)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        what = "a list of numbers" if limits else "a list of names"
        if get_origin(get_args(kind)[0]) is Literal:
            what += f" from {', '.join(get_args(get_args(kind)[0]))}"
    else:
        what = _NAMES[getattr(kind, "__origin__", kind)]
    return f"{what} ({', '.join(limits)})" if limits else what


def _check_text(field: dataclasses.Field, value, prefix: str) -> None:
    name, is_path = field.name, field.metadata["path"]
    # An argument can be the name of a file with bytes that are not UTF-8.
    errors = "surrogateescape" if field.metadata["positional"] else "strict"
    for text in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(text, str):
            continue
        try:
            text.encode("utf-8", errors)
        except UnicodeEncodeError:
            text = "\0"
        if "\0" in text:
            raise ConfigError(f"{prefix}--{name}: expected text in UTF-8 without NUL")
        if is_path and os.path.expanduser(text).startswith("~"):
            raise ConfigError(f"{prefix}--{name}={text}: there is no such home directory")


def text(value) -> str:
    """A value of a setting as in a flag."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, (tuple, list)):
        return ",".join(map(text, value)) or "none"
    return "none" if value is None else str(value)
