"""What the loops need of the data. `data.TrainPipeline` and `data.EvalPipeline` fit."""

from typing import Protocol

import tensorflow as tf


class TrainInput(Protocol):
    """The batches to train on."""

    def batches(self, start_step: int, stop_step: int) -> tf.data.Dataset:
        """Batches of (images, labels) of some steps, one element for each replica in turn.

        Images float32 [n, height, width, channels]; labels int32 [n], or float32 [n, classes].
        """

    def find_fault(self, step: int) -> Exception | None:
        """The reason why the batch of a step cannot be made, or None."""


class EvalInput(Protocol):
    """A split to evaluate on.

    Attributes:
        size: number of examples.
    """

    size: int

    def batches(self) -> tf.data.Dataset:
        """Batches of (images, labels, mask), one element for each replica in turn.

        Images float32 [n, height, width, channels], labels int32 [n], and mask float32 [n], 1 where
        the example counts.
        """

    def find_fault(self, batch: int) -> Exception | None:
        """The reason why a batch cannot be made, or None."""


def iterate(strategy: tf.distribute.Strategy, dataset: tf.data.Dataset):
    """Iterates over the batches of all replicas.

    Args:
        strategy: the replicas.
        dataset: one element for each replica of this machine in turn.
    """
    devices = strategy.extended.worker_devices
    if len(devices) == 1 and "CPU" in devices[0]:
        # Nothing to copy. TensorFlow would add a second pipeline for the device, which can only be
        # deleted after waiting for one of its threads, for up to a minute.
        return iter(dataset)
    return iter(strategy.distribute_datasets_from_function(lambda _: dataset))
