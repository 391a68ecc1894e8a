"""The choice of devices, on imaginary machines."""

import pytest
import tensorflow as tf

from loops.distributed.devices import make_strategy
from loops.errors import RunError


@pytest.fixture
def gpus(monkeypatch):
    """A function that sets the number of GPUs and returns a dict that records what is hidden."""
    found = {"hidden": False}
    list_devices = tf.config.list_physical_devices

    def pretend(count):
        def listed(kind=None):
            return [f"GPU {i}" for i in range(count)] if kind == "GPU" else list_devices(kind)

        monkeypatch.setattr("tensorflow.config.list_physical_devices", listed)
        return found

    def hide(devices, kind):
        found["hidden"] = (devices, kind) == ([], "GPU")

    monkeypatch.setattr("tensorflow.config.set_visible_devices", hide)
    monkeypatch.setattr("tensorflow.config.experimental.set_memory_growth", lambda *args: None)
    monkeypatch.setattr("loops.distributed.devices._strategy", lambda devices: devices)
    return pretend


def test_gpus_are_used_if_there_are_any(gpus):
    gpus(4)
    assert make_strategy(2, "auto") == (["GPU:0", "GPU:1"], None)
    assert make_strategy(1, "gpu") == (["GPU:0"], None)


@pytest.mark.parametrize("device", ["auto", "gpu"])
def test_too_few_gpus_name_both_numbers(gpus, device):
    gpus(1)
    with pytest.raises(RunError, match="--num_gpus=3, but TensorFlow sees 1 GPU; use --num_gpus=1"):
        make_strategy(3, device)


def test_without_gpus_cpu_devices_take_their_place(gpus):
    gpus(0)
    strategy, note = make_strategy(2, "auto")
    assert strategy == ["CPU:0", "CPU:1"]
    assert note == "no GPU is visible: 2 replicas run on logical CPU devices"
    assert make_strategy(1, "auto") == (["CPU:0"], None)


def test_requiring_gpus(gpus):
    gpus(0)
    with pytest.raises(RunError, match="--device=gpu with --num_gpus=1, but TensorFlow sees 0"):
        make_strategy(1, "gpu")


def test_ignoring_gpus_hides_them(gpus):
    found = gpus(4)
    strategy, note = make_strategy(2, "cpu")
    assert strategy == ["CPU:0", "CPU:1"]
    assert note == "--device=cpu: 2 replicas run on logical CPU devices"
    assert found["hidden"]
