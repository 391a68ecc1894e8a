"""The devices of a run: GPUs, or logical CPU devices in their place.

    strategy, description = make_strategy(num_gpus=2, device="auto")

On several machines, making the strategy also connects the workers.
"""

import functools
import os

import tensorflow as tf

from loops.distributed import gpus as gpu_devices
from loops.distributed import processor
from loops.distributed.cluster import Cluster
from loops.distributed.connection import connect
from loops.errors import RunError


def make_strategy(
    num_gpus: int,
    device: str,
    cluster: Cluster | None = None,
    *,
    precision: str = "float32",
    deterministic: bool = False,
) -> tuple[tf.distribute.Strategy, str]:
    """Makes the strategy for `num_gpus` replicas. Call it before TensorFlow runs an operation.

    Without a GPU, the same number of replicas runs on logical CPU devices. That is slow, but a run
    on several GPUs can be tried out anywhere, since it computes the same. GPUs that are not used
    are not initialized.

    Args:
        num_gpus: number of replicas of this process, at least 1.
        device: "gpu" requires GPUs, "cpu" ignores them, "auto" uses them if any is visible.
        cluster: the workers if there are several; each has `num_gpus` replicas.
        precision: in which the net computes, a value of --precision.
        deterministic: whether all operations give the same bits every time.

    Returns:
        The strategy, and a description of its devices for the user, such as "2 x NVIDIA A100-SXM4,
        mixed_bfloat16" or "CPU, 2 logical devices (rehearsal)".

    Raises:
        RunError: fewer than `num_gpus` GPUs are visible, the workers cannot be connected, or
            TensorFlow has already started with other devices.
    """
    try:
        kind, names, description = _choose(num_gpus, device, cluster, precision, deterministic)
        if not cluster:
            return _strategy(tuple(names)), description
    except RunError:
        raise
    except RuntimeError as error:  # As in a notebook that has used TensorFlow before.
        raise RunError(
            f"--num_gpus={num_gpus} --device={device} cannot be set up, since TensorFlow has "
            "already started; use a new process, or restart the kernel"
        ) from error
    description = f"{len(cluster.addresses)} workers, each {description}"
    return connect(cluster, kind, num_gpus), description


def _choose(
    num_gpus: int, device: str, cluster: Cluster | None, precision: str, deterministic: bool
) -> tuple[str, list[str], str]:
    """Sets the devices up; returns their kind, names of the logical ones, and a description."""
    gpus = tf.config.list_physical_devices("GPU")
    if device == "cpu":
        tf.config.set_visible_devices([], "GPU")
        return "CPU", *_use_cpu(num_gpus, "--device=cpu" if num_gpus > 1 else None, precision)
    if gpus:
        gpus = gpu_devices.own_gpus(gpus, num_gpus, cluster, os.environ)
        mixed = precision.startswith("mixed_")
        gpu_devices.set_variables(os.environ, mixed_precision=mixed, deterministic=deterministic)
        return "GPU", gpu_devices.use(gpus), gpu_devices.describe(gpus, precision)
    cause = gpu_devices.why_none(os.environ)
    if device == "gpu":
        because = f" ({cause})" if cause else ""
        raise RunError(
            f"--device=gpu with --num_gpus={num_gpus}, but TensorFlow sees 0 GPUs{because}; set "
            "one up as BUILD.md describes or use --device=cpu"
        )
    if num_gpus > 1:
        cause = cause or "no GPU was found"
    return "CPU", *_use_cpu(num_gpus, cause, precision)


def _use_cpu(count: int, cause: str | None, precision: str) -> tuple[list[str], str]:
    """Sets up `count` logical CPU devices; returns their names and a description."""
    description = "CPU"
    if count > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        if len(tf.config.get_logical_device_configuration(cpu) or ()) < count:
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * count
            )
        description = f"CPU, {count} logical devices (rehearsal)"
    if precision == "tf32":
        description += ", float32 (TF32 needs a GPU)"
    if precision == "mixed_bfloat16" and not processor.has_bfloat16():
        advice = "no instructions for it found; float32 is probably much faster"
        description += f", mixed_bfloat16 ({advice})"
    return [f"CPU:{i}" for i in range(count)], f"{description}: {cause}" if cause else description


# One strategy for the same devices: TensorFlow numbers the collective operations of each strategy
# from the same start, so those of a second one in a process, as in a notebook that trains twice,
# would meet those of the first.
@functools.cache
def _strategy(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    if len(devices) == 1:
        return tf.distribute.OneDeviceStrategy(devices[0])
    return tf.distribute.MirroredStrategy(devices)
