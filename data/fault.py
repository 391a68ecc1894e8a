"""Which example cannot be read, when a batch cannot."""

from collections.abc import Iterable

import tensorflow as tf

from data.index import forget
from data.source import DataError, Source, UndecodableError


def why_unreadable(error: tf.errors.OpError) -> str:
    """What kept TensorFlow from reading a file, as the system would say it."""
    if isinstance(error, tf.errors.NotFoundError):
        return "No such file or directory"
    if isinstance(error, tf.errors.PermissionDeniedError):
        return "Permission denied"
    return "its contents are damaged"


def single(source: Source) -> tf.types.experimental.PolymorphicFunction:
    """`source.fetch` for one example at a time, ten times as fast as eager calls."""
    return tf.function(source.fetch, input_signature=[tf.TensorSpec([1], tf.int64)])


def find_fault(source: Source, fetch, numbers: Iterable[int]) -> DataError | None:
    """The error for the first of the numbers that `fetch`, a `single`, cannot read."""
    for number in numbers:
        try:
            fetch(tf.constant([number], tf.int64))
        except tf.errors.ResourceExhaustedError:
            return None
        except tf.errors.OpError as error:
            why = why_unreadable(error)
        else:
            continue
        path = source.describe(int(number))
        forget(path)
        return UndecodableError(path, why)
    return None
