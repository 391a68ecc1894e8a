"""Which devices a run uses: GPUs, or CPUs that stand in for them, here and on other machines.

Synopsis:

    strategy, note = make_strategy(num_gpus=2, device="auto")
"""

import tensorflow as tf

from loops.cluster import Cluster, connect
from loops.errors import RunError


def make_strategy(
    num_gpus: int, device: str, cluster: Cluster | None = None
) -> tuple[tf.distribute.Strategy, str | None]:
    """The strategy for `num_gpus` replicas. Call it before TensorFlow has run anything.

    Without a GPU the same number of replicas runs on logical CPU devices: slow, but the same
    arithmetic, so a run for several GPUs can be rehearsed anywhere.

    Args:
        num_gpus: number of replicas on this machine, at least 1.
        device: "gpu" insists on GPUs, "cpu" refuses them, "auto" takes them if any is visible.
        cluster: this machine and others; each has as many replicas.

    Returns:
        The strategy, and a line for the user where the CPU stands in for several GPUs.

    Raises:
        RunError: fewer GPUs than asked for are visible, or the machines do not get together.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    elif gpus:
        if len(gpus) < num_gpus:
            raise RunError(
                f"--num_gpus={num_gpus}, but TensorFlow sees {len(gpus)} GPU"
                f"{'' if len(gpus) == 1 else 's'}; ask for at most {len(gpus)}"
            )
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        if cluster:
            tf.config.set_visible_devices(gpus[:num_gpus], "GPU")
            return connect(cluster), None
        return _strategy([f"GPU:{i}" for i in range(num_gpus)]), None
    elif device == "gpu":
        raise RunError(
            f"--device=gpu with --num_gpus={num_gpus}, but TensorFlow sees 0 GPUs; "
            "BUILD.md says how to set one up, and --device=cpu does without"
        )
    if cluster and num_gpus > 1:
        raise RunError(
            f"--num_gpus={num_gpus} on several machines needs GPUs; without, each has one replica"
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
    why = "no GPU is visible" if device == "auto" else "--device=cpu"
    note = f"{why}: {num_gpus} replicas run on logical CPU devices, as a rehearsal"
    return _strategy([f"CPU:{i}" for i in range(num_gpus)]), note


def _strategy(devices: list[str]) -> tf.distribute.Strategy:
    if len(devices) == 1:
        return tf.distribute.OneDeviceStrategy(devices[0])
    return tf.distribute.MirroredStrategy(devices)
