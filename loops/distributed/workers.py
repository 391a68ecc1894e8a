"""What the workers of a run decide together.

    workers = Workers(strategy, cluster)
    if workers.total([stop_requested])[0]: ...

All workers run the same program. What depends on a signal, a clock or a file of one of them must be
agreed on; otherwise they would wait for each other forever.
"""

import zlib

import numpy as np
import tensorflow as tf

from loops.distributed.cluster import Cluster

# How TensorFlow reports the loss of another worker.
_LOST_TYPES = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.FailedPreconditionError,
    tf.errors.DeadlineExceededError,
    tf.errors.CancelledError,
)
_LOST_TEXTS = ("Collective ops is aborted", "heartbeat", "/job:worker", "CoordinationService")


class Workers:
    """The processes that train together. All must call the same methods in the same order.

    Args:
        strategy: whose replicas they hold, equally many each.
        cluster: their addresses; None for a single worker.
    """

    def __init__(self, strategy: tf.distribute.Strategy, cluster: Cluster | None = None):
        self.strategy = strategy
        self.count = len(cluster.addresses) if cluster else 1
        self.index = cluster.index if cluster else 0

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes the files and decides for all."""
        return self.index == 0

    def total(self, numbers) -> np.ndarray:
        """The sum over workers, elementwise; float64 in the shape of `numbers`."""
        numbers = np.asarray(numbers, np.float64)
        if self.count == 1:
            return numbers
        local_replicas = self.strategy.num_replicas_in_sync // self.count

        def value(context):
            is_first = context.replica_id_in_sync_group % local_replicas == 0
            return tf.constant(numbers if is_first else np.zeros_like(numbers))

        values = self.strategy.experimental_distribute_values_from_function(value)
        return self.strategy.reduce("SUM", values, axis=None).numpy()

    def broadcast_from_chief(self, number: float) -> float:
        """The number that the chief passes."""
        return float(self.total([number if self.is_chief else 0.0])[0])

    def agree(self, text: str) -> bool:
        """Whether all workers pass the same text."""
        checksum = zlib.crc32(text.encode("utf-8", "surrogateescape"))
        return not self.total([checksum != self.broadcast_from_chief(checksum)])[0]

    def barrier(self) -> bool:
        """Waits for all workers; returns False if one is lost.

        A worker that exits without a barrier is lost to workers that are still computing.
        """
        try:
            self.total([0])
        except tf.errors.OpError as error:
            if not lost_worker(error):
                raise
            return False
        return True


def lost_worker(error: Exception) -> str | None:
    """A message if TensorFlow's error means that another worker is lost; None if it does not."""
    if not isinstance(error, _LOST_TYPES) or not any(text in error.message for text in _LOST_TEXTS):
        return None
    # The error can name the worker that noticed the loss, so the message names none.
    return "another worker has stopped; start all workers again to resume the run"
