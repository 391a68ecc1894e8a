"""Which devices are chosen, on machines that are made up."""

import pytest
import tensorflow as tf

from loops.devices import make_strategy
from loops.errors import RunError


@pytest.fixture
def gpus(monkeypatch):
    """A function that says how many GPUs this machine seems to have; what is chosen is returned."""
    found = {"hidden": False, "devices": None}
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
    monkeypatch.setattr("loops.devices._strategy", lambda devices: devices)
    return pretend


def test_gpus_are_taken_where_there_are_any(gpus):
    gpus(4)
    assert make_strategy(2, "auto") == (["GPU:0", "GPU:1"], None)
    assert make_strategy(1, "gpu") == (["GPU:0"], None)


@pytest.mark.parametrize("device", ["auto", "gpu"])
def test_too_few_gpus_name_both_numbers(gpus, device):
    gpus(1)
    with pytest.raises(RunError, match="--num_gpus=3, but TensorFlow sees 1 GPU; ask for at most"):
        make_strategy(3, device)


def test_without_gpus_the_cpu_rehearses_and_says_so(gpus):
    gpus(0)
    strategy, note = make_strategy(2, "auto")
    assert strategy == ["CPU:0", "CPU:1"]
    assert note.startswith("no GPU is visible: 2 replicas run on logical CPU devices")
    assert make_strategy(1, "auto") == (["CPU:0"], None)


def test_insisting_on_gpus(gpus):
    gpus(0)
    with pytest.raises(RunError, match="--device=gpu with --num_gpus=1, but TensorFlow sees 0"):
        make_strategy(1, "gpu")


def test_refusing_gpus_hides_them(gpus):
    found = gpus(4)
    strategy, note = make_strategy(2, "cpu")
    assert strategy == ["CPU:0", "CPU:1"]
    assert note.startswith("--device=cpu: 2 replicas")
    assert found["hidden"]
