"""Kinds of flags, each with its bounds.

define = Define(values)
define.number("epochs", 30.0, "Length of the run in epochs.", above=0)
"""

import contextlib
import math
import os

from absl import flags

# Where a flag has no bound of its own: what no run needs, and some computation would not survive.
HIGHEST = 1e9
MOST_EPOCHS = 1e6
MOST_PIXELS = 4096


class Define:
    """Defines flags, each with its bounds, and remembers their names."""

    def __init__(self, values: flags.FlagValues):
        self._values = values
        self.names = []

    def _add(self, kind, name, default, help_text, **kwargs):
        kind(name, default, help=help_text, flag_values=self._values, **kwargs)
        self.names.append(name)

    def _check(self, name, good, message):
        flags.register_validator(name, good, message=message, flag_values=self._values)

    def string(self, name, default, help_text):
        self._add(flags.DEFINE_string, name, default, help_text)

        def good(value):
            with contextlib.suppress(UnicodeEncodeError):
                return value is None or (value.encode() is not None and "\0" not in value)
            return False

        self._check(name, good, "must be text in UTF-8, without NUL")

    def path(self, name, default, help_text, what="a path"):
        self.string(name, default, help_text)

        def good(value):
            return value is None or (value != "" and not os.path.expanduser(value).startswith("~"))

        self._check(name, good, f"must be {what}; ~ is a home directory that there is")

    def boolean(self, name, default, help_text):
        self._add(flags.DEFINE_boolean, name, default, help_text)

    def integer(self, name, default, help_text, lowest=1, highest=int(HIGHEST)):
        self._add(
            flags.DEFINE_integer,
            name,
            default,
            help_text,
            lower_bound=lowest,
            upper_bound=highest,
        )

    def choice(self, name, default, help_text, values):
        self._add(flags.DEFINE_enum, name, default, help_text, enum_values=values)

    def number(self, name, default, help_text, *, above=None, below=None, up_to=HIGHEST):
        """A finite number, at least 0 or above `above`, and below `below` or up to `up_to`."""
        self._add(flags.DEFINE_float, name, default, help_text)
        bounds = ["at least 0" if above is None else f"above {above:g}"]
        bounds += [f"at most {up_to:g}" if below is None else f"below {below:g}"]

        def good(value):
            return value is None or (
                math.isfinite(value)
                and (value >= 0 if above is None else value > above)
                and (value <= up_to if below is None else value < below)
            )

        self._check(name, good, f"must be {' and '.join(bounds)}")

    def epochs(self, name, default, help_text):
        """A list of numbers above 0."""
        self._add(flags.DEFINE_list, name, default, help_text)

        def good(values):
            with contextlib.suppress(ValueError):
                return all(0 < float(v) <= MOST_EPOCHS for v in values)
            return False

        self._check(name, good, f"must be numbers above 0, up to {MOST_EPOCHS:g}, as 15,25")
