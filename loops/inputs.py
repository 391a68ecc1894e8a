"""What the loops need of the data. `data.TrainPipeline` and `data.EvalPipeline` fit."""

from typing import Protocol

import tensorflow as tf


class TrainInput(Protocol):
    """The batches to train on."""

    def batches(self, start_step: int, stop_step: int | None = None) -> tf.data.Dataset:
        """The batches from a step on, without an end, or those before another step.

        Each replica has an element of a batch, in turn: a tuple of tensors, from which the
        `prepare` of a `TrainStep` makes images and labels on the replica's device.
        """

    def find_fault(self, step: int) -> Exception | None:
        """The reason why the batch of a step cannot be made, or None."""


class EvalInput(Protocol):
    """A split to evaluate on.

    Attributes:
        size: number of examples.
        num_batches: number of batches that contain them.
    """

    size: int
    num_batches: int

    def batches(self) -> tf.data.Dataset:
        """Batches of (images, labels, mask), one element for each replica in turn.

        Images as `prepare` takes them, labels int32 [n], and mask float32 [n], 1 where the example
        counts. Behind the last batch with examples, batches without any follow, without an end.
        """

    def prepare(self, images: tf.Tensor) -> tf.Tensor:
        """What the net takes, float32 [n, height, width, channels]; of all splits of a run alike.

        It is called on the replica's device.
        """

    def find_fault(self, batch: int) -> Exception | None:
        """The reason why a batch cannot be made, or None."""


def iterate(strategy: tf.distribute.Strategy, dataset: tf.data.Dataset):
    """Iterates over the batches of all replicas.

    Args:
        strategy: the replicas.
        dataset: one element for each replica of this machine in turn. It should have no end:
            otherwise several workers exchange at every step whether one of them has reached it.
    """
    devices = strategy.extended.worker_devices
    if len(devices) == 1 and "CPU" in devices[0]:
        # Nothing to copy. TensorFlow would add a second pipeline for the device, which can only be
        # deleted after waiting for one of its threads, for up to a minute.
        return iter(dataset)
    return iter(strategy.distribute_datasets_from_function(lambda _: dataset))


def on_gpus(strategy: tf.distribute.Strategy) -> bool:
    """Whether the replicas of a strategy are on GPUs."""
    if not tf.distribute.has_strategy() and strategy is tf.distribute.get_strategy():
        return False  # The default strategy has no devices of its own.
    return any("GPU" in device for device in strategy.extended.worker_devices)
