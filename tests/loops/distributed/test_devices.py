"""The choice of devices, on imaginary machines."""

import os

import pytest
import tensorflow as tf

from loops.distributed import gpus as gpu_devices
from loops.distributed.cluster import Cluster
from loops.distributed.devices import make_strategy
from loops.errors import RunError

H100 = {"device_name": "NVIDIA H100 80GB HBM3", "compute_capability": (9, 0)}
V100 = {"device_name": "Tesla V100-SXM2-16GB", "compute_capability": (7, 0)}
VARIABLES = (
    "TF_GPU_THREAD_MODE", "TF_USE_CUDNN_BATCHNORM_SPATIAL_PERSISTENT", "NCCL_NVLS_ENABLE",
    "CUDA_VISIBLE_DEVICES", "SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_TASK",
)  # fmt: skip


class Machine:
    """GPUs by number, and what was done with them."""

    def __init__(self, monkeypatch):
        self.details, self.visible, self.growing = [], None, set()
        list_devices = tf.config.list_physical_devices
        for name, function in {
            "list_physical_devices": lambda kind=None: (
                list(range(len(self.details))) if kind == "GPU" else list_devices(kind)
            ),
            "set_visible_devices": self._set_visible,
            "get_visible_devices": lambda kind: self.visible,
            "experimental.set_memory_growth": lambda gpu, on: self.growing.add(gpu),
            "experimental.get_device_details": lambda gpu: self.details[gpu],
        }.items():
            monkeypatch.setattr(f"tensorflow.config.{name}", function)

    def _set_visible(self, devices, kind):
        assert kind == "GPU"
        self.visible = devices


@pytest.fixture
def machine(monkeypatch):
    """A machine without GPUs. The strategy is the names of the devices, and what connects."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # So that it is unset again afterwards.
        monkeypatch.delenv(name)
    monkeypatch.setattr("loops.distributed.devices._strategy", list)
    monkeypatch.setattr("loops.distributed.devices.connect", lambda *args: args)
    monkeypatch.setattr("loops.distributed.gpus.why_none", lambda environment: None)
    return Machine(monkeypatch)


def test_only_the_gpus_that_are_used_are_initialized(machine):
    machine.details = [H100] * 4
    assert make_strategy(2, "auto") == (
        ["GPU:0", "GPU:1"],
        "2 x NVIDIA H100 80GB HBM3, float32",
    )
    assert (machine.visible, machine.growing) == ([0, 1], {0, 1})
    assert make_strategy(1, "gpu")[0] == ["GPU:0"]
    assert machine.visible == [0]


def test_fewer_gpus_than_a_notebook_has_used_before(machine, monkeypatch):
    machine.details, machine.visible = [H100] * 3, [0, 1]

    def started(devices, kind):
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    monkeypatch.setattr("tensorflow.config.set_visible_devices", started)
    assert make_strategy(1, "auto")[0] == ["GPU:0"]
    with pytest.raises(RunError, match="--num_gpus=3 --device=auto cannot be set up, since"):
        make_strategy(3, "auto")


@pytest.mark.parametrize("device", ["auto", "gpu"])
def test_too_few_gpus_name_both_numbers(machine, device):
    machine.details = [H100]
    with pytest.raises(RunError, match="--num_gpus=3, but TensorFlow sees 1 GPU; use --num_gpus=1"):
        make_strategy(3, device)


def test_without_gpus_cpu_devices_take_their_place(machine):
    assert make_strategy(2, "auto") == (
        ["CPU:0", "CPU:1"],
        "CPU, 2 logical devices (rehearsal): no GPU was found",
    )
    assert make_strategy(1, "auto") == (["CPU:0"], "CPU")
    assert not set(VARIABLES) & set(os.environ)


def test_the_reason_why_there_is_no_gpu(machine, monkeypatch):
    monkeypatch.setattr("loops.distributed.gpus.why_none", lambda environment: "no driver")
    assert make_strategy(1, "auto")[1] == "CPU: no driver"
    assert make_strategy(2, "auto")[1] == "CPU, 2 logical devices (rehearsal): no driver"
    line = r"--device=gpu with --num_gpus=1, but TensorFlow sees 0 GPUs \(no driver\); set one up"
    with pytest.raises(RunError, match=line):
        make_strategy(1, "gpu")


def test_requiring_gpus(machine):
    with pytest.raises(RunError, match="--device=gpu with --num_gpus=1, but TensorFlow sees 0 GP"):
        make_strategy(1, "gpu")


def test_ignoring_gpus_hides_them(machine):
    machine.details = [H100] * 4
    assert make_strategy(2, "cpu") == (
        ["CPU:0", "CPU:1"],
        "CPU, 2 logical devices (rehearsal): --device=cpu",
    )
    assert machine.visible == []
    assert make_strategy(1, "cpu")[1] == "CPU"


@pytest.mark.parametrize(
    ("details", "precision", "description"),
    [
        ([H100], "float32", "1 x NVIDIA H100 80GB HBM3, float32"),
        ([H100] * 2, "tf32", "2 x NVIDIA H100 80GB HBM3, tf32"),
        ([V100, V100, H100], "mixed_float16",
         "2 x Tesla V100-SXM2-16GB, 1 x NVIDIA H100 80GB HBM3, mixed_float16"),
        ([H100, V100], "tf32",
         "1 x NVIDIA H100 80GB HBM3, 1 x Tesla V100-SXM2-16GB, "
         "float32 (without TF32, which needs an Ampere GPU or later)"),
        ([{}], "float32", "1 x GPU, float32"),
    ],
)  # fmt: skip
def test_the_description_names_the_gpus_and_the_precision(machine, details, precision, description):
    machine.details = details
    assert make_strategy(len(details), "auto", precision=precision)[1] == description


@pytest.mark.parametrize(
    ("precision", "deterministic", "expected"),
    [
        ("float32", False, {}),
        ("tf32", False, {}),
        ("mixed_float16", False, {"TF_USE_CUDNN_BATCHNORM_SPATIAL_PERSISTENT": "1"}),
        ("mixed_bfloat16", True,
         {"TF_USE_CUDNN_BATCHNORM_SPATIAL_PERSISTENT": "1", "NCCL_NVLS_ENABLE": "0"}),
    ],
)  # fmt: skip
def test_variables_for_gpus(machine, precision, deterministic, expected):
    machine.details = [H100]
    make_strategy(1, "auto", precision=precision, deterministic=deterministic)
    found = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    assert found == {"TF_GPU_THREAD_MODE": "gpu_private", **expected}


def test_variables_that_the_user_has_set_are_kept(machine, monkeypatch):
    machine.details = [H100]
    given = dict.fromkeys(VARIABLES[:3], "mine")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    make_strategy(1, "auto", precision="mixed_float16", deterministic=True)
    assert {name: os.environ[name] for name in given} == given


# Workers 1 and 2 of these are the second and third on their machine.
FOUR = ("a:1", "a:2", "a:3", "b:1")


def test_workers_on_a_machine_take_their_own_gpus(machine):
    machine.details = [H100] * 6
    for index, visible in enumerate([[0, 1], [2, 3], [4, 5], [0, 1]]):
        strategy, description = make_strategy(2, "auto", Cluster(FOUR, index))
        assert machine.visible == visible
        assert strategy == (Cluster(FOUR, index), "GPU", 2)
        assert description == "4 workers, each 2 x NVIDIA H100 80GB HBM3, float32"


@pytest.mark.parametrize(
    ("seen", "num_gpus", "expected"),
    [
        (4, 1, [[0], [1], [2], [3]]),
        (4, 2, [[0, 1], [2, 3], [0, 1], [2, 3]]),
        (3, 2, [[0, 1]] * 4),
        (1, 1, [[0]] * 4),  # Its own, or shared with the others.
    ],
)
def test_independent_tasks_of_a_job_step_take_turns(machine, monkeypatch, seen, num_gpus, expected):
    machine.details = [H100] * seen
    for task, visible in enumerate(expected):
        monkeypatch.setenv("SLURM_LOCALID", str(task))
        make_strategy(num_gpus, "auto")
        assert machine.visible == visible


@pytest.mark.parametrize(
    ("seen", "environment"),
    [
        (1, {"CUDA_VISIBLE_DEVICES": "2"}),  # Set by the user for each process.
        (1, {"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "3"}),  # srun --gpu-bind=single:1
        (2, {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_ON_NODE": "8"}),
        (1, {"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "1", "SLURM_GPUS_PER_TASK": "1"}),
    ],
)
def test_workers_that_see_only_their_own_gpus_take_the_first(
    machine, monkeypatch, seen, environment
):
    machine.details = [H100] * seen
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for index in range(3):
        make_strategy(1, "auto", Cluster(FOUR, index))
        assert machine.visible == [0]


@pytest.mark.parametrize(
    "environment",
    [{}, {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_ON_NODE": "2"}],  # srun --gpu-bind=none
)
def test_workers_do_not_share_a_gpu(machine, monkeypatch, environment):
    machine.details = [H100] * 2
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    line = "3 workers on this machine with --num_gpus=1 need 3 GPUs, but TensorFlow sees 2 GPUs; "
    with pytest.raises(RunError, match=line):
        make_strategy(1, "auto", Cluster(FOUR, 0))
    make_strategy(1, "auto", Cluster(FOUR, 3))


def test_a_cpu_has_no_tf32(machine):
    assert make_strategy(1, "auto", precision="tf32")[1] == "CPU, float32 (TF32 needs a GPU)"


NO_BFLOAT16 = "mixed_bfloat16 (no instructions for it found; float32 is probably much faster)"


@pytest.mark.parametrize(
    ("text", "slow"),
    [
        (b"processor\t: 0\nflags\t\t: fma avx2 avx512f avx512_vnni\n", True),
        (b"flags\t\t: avx512f avx512_bf16\n", False),
        (b"flags\t\t: avx2 amx_bf16 amx_tile\n", False),
        (b"flags\t\t: avx2 avx_vnni avx_ne_convert\n", False),
        (b"processor\t: 0\nFeatures\t: fp asimd\nCPU part\t: 0xd0c\n", True),
        (b"Features\t: fp asimd bf16\n", False),
        (b"model name\t: of a kind that lists none\n", False),
        (b"flags\t\t:\n", False),
        (b"model name\t: \xff\nflags\t\t: avx2\n", True),
        (None, False),
    ],
)
def test_a_cpu_without_bfloat16_is_named(machine, monkeypatch, tmp_path, text, slow):
    if text is not None:
        (tmp_path / "cpuinfo").write_bytes(text)
    monkeypatch.setattr("loops.distributed.processor.CPUINFO", tmp_path / "cpuinfo")
    description = f"CPU, {NO_BFLOAT16}" if slow else "CPU"
    assert make_strategy(1, "cpu", precision="mixed_bfloat16")[1] == description
    assert make_strategy(1, "cpu")[1] == "CPU"
    replicas = "CPU, 2 logical devices (rehearsal)" + (f", {NO_BFLOAT16}" if slow else "")
    found = make_strategy(2, "cpu", Cluster(("a:1", "b:1"), 0), precision="mixed_bfloat16")[1]
    assert found == f"2 workers, each {replicas}: --device=cpu"
    machine.details = [H100]
    on_gpu = make_strategy(1, "auto", precision="mixed_bfloat16")[1]
    assert on_gpu == "1 x NVIDIA H100 80GB HBM3, mixed_bfloat16"


def test_workers_without_gpus_rehearse(machine):
    cluster = Cluster(("a:1", "b:1"), 0)
    assert make_strategy(2, "cpu", cluster) == (
        (cluster, "CPU", 2),
        "2 workers, each CPU, 2 logical devices (rehearsal): --device=cpu",
    )
    assert make_strategy(1, "auto", cluster) == ((cluster, "CPU", 1), "2 workers, each CPU")


@pytest.fixture
def system(monkeypatch, tmp_path):
    """A directory in place of /dev and /sys, where no file of NVIDIA's is."""
    monkeypatch.setattr(gpu_devices, "_DEVICE_FILES", (f"{tmp_path}/nvidia[0-9]*",))
    monkeypatch.setattr(gpu_devices, "_PCI_VENDORS", f"{tmp_path}/*/vendor")
    return tmp_path


def card(system, vendor, kind):
    (system / vendor).mkdir()
    (system / vendor / "vendor").write_text(f"{vendor}\n")
    (system / vendor / "class").write_text(f"{kind}\n")


@pytest.mark.parametrize(("vendor", "kind"), [("0x8086", "0x030000"), ("0x10de", "0x040300")])
def test_no_reason_is_given_where_there_is_no_nvidia_gpu(system, vendor, kind):
    """As on a laptop, also if NVIDIA made its sound."""
    card(system, vendor, kind)
    assert gpu_devices.why_none({"CUDA_VISIBLE_DEVICES": ""}) is None


def test_a_card_without_a_driver(system):
    card(system, "0x10de", "0x030200")
    expected = "there is an NVIDIA card, but no driver for it (no /dev/nvidia0)"
    assert gpu_devices.why_none({}) == expected


@pytest.mark.parametrize(("value", "hides"), [("", True), ("-1", True), ("0", False)])
def test_hidden_gpus(system, value, hides):
    (system / "nvidia0").touch()
    cause = gpu_devices.why_none({"CUDA_VISIBLE_DEVICES": value})
    assert (cause == f"CUDA_VISIBLE_DEVICES={value!r} hides all GPUs") is hides


@pytest.mark.parametrize(
    ("is_built_with_cuda", "has_driver", "cause"),
    [
        (False, True, "but this TensorFlow is built without CUDA"),
        (True, False, "but the driver's libcuda.so.1 cannot be loaded"),
        (True, True, "but TensorFlow cannot load its CUDA libraries (see BUILD.md)"),
    ],
)
def test_software_that_is_missing(system, monkeypatch, is_built_with_cuda, has_driver, cause):
    (system / "nvidia0").touch()

    def load(name):
        if not has_driver:
            raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", load)
    monkeypatch.setattr("tensorflow.test.is_built_with_cuda", lambda: is_built_with_cuda)
    assert gpu_devices.why_none({}) == f"there is an NVIDIA GPU, {cause}"


def test_one_strategy_for_the_same_devices(two_replicas):
    """Two would give their collective operations the same keys."""
    assert make_strategy(2, "cpu")[0] is two_replicas
    assert make_strategy(1, "cpu")[0] is make_strategy(1, "cpu")[0]
