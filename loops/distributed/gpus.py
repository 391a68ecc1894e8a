"""The GPUs of this process: which ones it takes, how they are set up, and why there are none."""

import collections
import ctypes
import glob
import pathlib
from collections.abc import Mapping, MutableMapping, Sequence

import tensorflow as tf

from loops.distributed.cluster import Cluster
from loops.errors import RunError

# Where the driver, on Linux or in WSL, shows that there are GPUs.
_DEVICE_FILES = ("/dev/nvidia[0-9]*", "/usr/lib/wsl/lib/libcuda.so*")
_PCI_VENDORS, _NVIDIA = "/sys/bus/pci/devices/*/vendor", "0x10de"
_FIRST_TF32 = (8, 0)  # Compute capability: Ampere.


def set_variables(
    environment: MutableMapping[str, str], *, mixed_precision: bool, deterministic: bool
) -> None:
    """Sets the variables that TensorFlow and NCCL read, unless the user has set them.

    Call it before TensorFlow has started, since each is read once.

    Args:
        environment: variables by name, `os.environ`.
        mixed_precision: the net computes in float16 or bfloat16.
        deterministic: all operations give the same bits every time.
    """
    # Threads of its own launch a GPU's kernels, so that the input pipeline cannot delay them.
    environment.setdefault("TF_GPU_THREAD_MODE", "gpu_private")
    if mixed_precision:
        # cuDNN has BatchNorm for training in half precision and channels-last in this mode only;
        # in others TensorFlow transposes to channels-first and back. It sums in scaled integers:
        # the same bits every time, but very large activations overflow, to a loss that is not
        # finite. In float32 TensorFlow transposes in either mode, so the risk would buy nothing.
        environment.setdefault("TF_USE_CUDNN_BATCHNORM_SPATIAL_PERSISTENT", "1")
    if deterministic:
        # Sums in an NVSwitch can differ from call to call; in rings and trees they do not.
        environment.setdefault("NCCL_NVLS_ENABLE", "0")


def own_gpus(
    gpus: Sequence, num_gpus: int, cluster: Cluster | None, environment: Mapping[str, str]
) -> list:
    """The GPUs that this process takes of those that it sees.

    Several workers on a machine that see the same GPUs take `num_gpus` each, in the order of their
    ranks. Where each sees only its own, as with `srun --gpus-per-task`, it takes the first ones.
    Runs that are independent tasks of a Slurm job step take turns likewise; if there are more of
    them than GPUs, they share.

    Args:
        gpus: all that TensorFlow sees.
        num_gpus: how many to take.
        cluster: the workers, if there are several.
        environment: variables by name.

    Raises:
        RunError: there are too few.
    """
    seen = f"TensorFlow sees {len(gpus)} GPU{'' if len(gpus) == 1 else 's'}"
    if len(gpus) < num_gpus:
        raise RunError(f"--num_gpus={num_gpus}, but {seen}; use --num_gpus={len(gpus)} or lower")
    if cluster is None:
        place = environment.get("SLURM_LOCALID", "")
        first = num_gpus * (int(place) % (len(gpus) // num_gpus) if place.isdecimal() else 0)
        return list(gpus[first : first + num_gpus])
    workers = cluster.local_count
    if len(gpus) >= workers * num_gpus:
        # If each worker has this many of its own, any of them will do.
        first = cluster.local_index * num_gpus
    elif _are_own(len(gpus), environment):
        first = 0
    else:
        raise RunError(
            f"{workers} workers on this machine with --num_gpus={num_gpus} need "
            f"{workers * num_gpus} GPUs, but {seen}; start fewer workers, lower --num_gpus, or "
            "give each worker its own GPUs in CUDA_VISIBLE_DEVICES"
        )
    return list(gpus[first : first + num_gpus])


def _are_own(visible: int, environment: Mapping[str, str]) -> bool:
    """Whether the GPUs that this process sees are hidden from the other workers of its machine."""
    if environment.get("SLURM_GPUS_PER_TASK"):
        return True
    # The number on this machine that the step has, whichever of them a task is bound to.
    of_step = environment.get("SLURM_GPUS_ON_NODE")
    return bool(environment.get("CUDA_VISIBLE_DEVICES")) and of_step != str(visible)


def use(gpus: list) -> list[str]:
    """Makes GPUs the only ones that TensorFlow starts; returns the names of their logical devices.

    Raises:
        RuntimeError: TensorFlow has started without them.
    """
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    try:
        tf.config.set_visible_devices(gpus, "GPU")
    except RuntimeError:  # In a notebook that has used more of them before.
        if not set(gpus) <= set(tf.config.get_visible_devices("GPU")):
            raise
    visible = tf.config.get_visible_devices("GPU")
    return [f"GPU:{visible.index(gpu)}" for gpu in gpus]


def describe(gpus: Sequence, precision: str) -> str:
    """Such as "2 x NVIDIA H100 80GB HBM3, mixed_bfloat16"."""
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    names = collections.Counter(each.get("device_name", "GPU") for each in details)
    text = ", ".join(f"{count} x {name}" for name, count in names.items())
    capabilities = [each.get("compute_capability", (0, 0)) for each in details]
    if precision == "tf32" and min(capabilities) < _FIRST_TF32:
        return f"{text}, float32 (without TF32, which needs an Ampere GPU or later)"
    return f"{text}, {precision}"


def why_none(environment: Mapping[str, str]) -> str | None:
    """Why TensorFlow sees no GPU; None if this machine does not seem to have one."""
    has_device = any(map(glob.glob, _DEVICE_FILES))
    if not has_device and not _has_nvidia_card():
        return None
    hidden = environment.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and (not hidden.strip() or hidden.strip().startswith("-")):
        return f"CUDA_VISIBLE_DEVICES={hidden!r} hides all GPUs"
    if not has_device:
        return "there is an NVIDIA card, but no driver for it (no /dev/nvidia0)"
    if not tf.test.is_built_with_cuda():
        return "there is an NVIDIA GPU, but this TensorFlow is built without CUDA"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is an NVIDIA GPU, but the driver's libcuda.so.1 cannot be loaded"
    return "there is an NVIDIA GPU, but TensorFlow cannot load its CUDA libraries (see BUILD.md)"


def _has_nvidia_card() -> bool:
    """Whether a display or compute device of NVIDIA's is on the PCI bus; only Linux tells."""
    for path in map(pathlib.Path, glob.glob(_PCI_VENDORS)):
        try:
            vendor, kind = path.read_text().strip(), (path.parent / "class").read_text().strip()
        except OSError:
            continue
        if vendor == _NVIDIA and kind.startswith("0x03"):  # Others are sound and network.
            return True
    return False
