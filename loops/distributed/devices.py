"""The devices of a run: GPUs, or logical CPU devices in their place.

    strategy, note = make_strategy(num_gpus=2, device="auto")

On several machines, making the strategy also connects the workers.
"""

import tensorflow as tf

from loops.distributed.cluster import Cluster, connect
from loops.errors import RunError


def make_strategy(
    num_gpus: int, device: str, cluster: Cluster | None = None
) -> tuple[tf.distribute.Strategy, str | None]:
    """Makes the strategy for `num_gpus` replicas. Call it before TensorFlow runs an operation.

    Without a GPU, the same number of replicas runs on logical CPU devices. That is slow, but a run
    on several GPUs can be tried out anywhere, since it computes the same.

    Args:
        num_gpus: number of replicas on this machine, at least 1.
        device: "gpu" requires GPUs, "cpu" ignores them, "auto" uses them if any is visible.
        cluster: the workers if there are several; each has `num_gpus` replicas.

    Returns:
        The strategy, and a note for the user if CPU devices take the place of several GPUs.

    Raises:
        RunError: fewer than `num_gpus` GPUs are visible, the workers cannot be connected, or
            TensorFlow has already started with other devices.
    """
    try:
        return _make_strategy(num_gpus, device, cluster)
    except RunError:
        raise
    except RuntimeError as error:  # As in a notebook that has used TensorFlow before.
        raise RunError(
            f"--num_gpus={num_gpus} --device={device} cannot be set up, since TensorFlow has "
            "already started; use a new process, or restart the kernel"
        ) from error


def _make_strategy(num_gpus, device, cluster) -> tuple[tf.distribute.Strategy, str | None]:
    gpus = tf.config.list_physical_devices("GPU")
    if device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    elif gpus:
        if len(gpus) < num_gpus:
            raise RunError(
                f"--num_gpus={num_gpus}, but TensorFlow sees {len(gpus)} "
                f"GPU{'' if len(gpus) == 1 else 's'}; use --num_gpus={len(gpus)} or lower"
            )
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        if cluster:
            tf.config.set_visible_devices(gpus[:num_gpus], "GPU")
            return connect(cluster), None
        return _strategy([f"GPU:{i}" for i in range(num_gpus)]), None
    elif device == "gpu":
        raise RunError(
            f"--device=gpu with --num_gpus={num_gpus}, but TensorFlow sees 0 GPUs; set one up as "
            "BUILD.md describes or use --device=cpu"
        )
    if cluster and num_gpus > 1:
        raise RunError(
            f"--num_gpus={num_gpus} on several machines needs GPUs; without GPUs, use --num_gpus=1"
        )
    if cluster:
        return connect(cluster), None
    if num_gpus == 1:
        return _strategy(["CPU:0"]), None
    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or ()) < num_gpus:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * num_gpus
        )
    cause = "no GPU is visible" if device == "auto" else "--device=cpu"
    note = f"{cause}: {num_gpus} replicas run on logical CPU devices"
    return _strategy([f"CPU:{i}" for i in range(num_gpus)]), note


def _strategy(devices: list[str]) -> tf.distribute.Strategy:
    if len(devices) == 1:
        return tf.distribute.OneDeviceStrategy(devices[0])
    return tf.distribute.MirroredStrategy(devices)
