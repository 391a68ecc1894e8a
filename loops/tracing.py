"""AutoGraph for what extensions define, and for nothing else.

The step is traced without AutoGraph, which would rewrite every function of the loops at each start:
2 s of CPU time. Losses, metrics, schedules and update rules may still branch on tensors.
"""

import functools
from collections.abc import Callable

import tensorflow as tf


def with_autograph(function: Callable) -> Callable:
    """The function, and those that it calls, rewritten by AutoGraph; itself if it has no source."""
    if isinstance(function, functools.partial):
        return functools.partial(with_autograph(function.func), *function.args, **function.keywords)
    try:
        return tf.autograph.to_graph(function)
    except Exception:  # Of several kinds, of which none is public.
        return function
