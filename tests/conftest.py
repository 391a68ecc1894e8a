import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from commands.command_line import quiet

with quiet():
    import tensorflow as tf

import pytest

from loops.distributed.devices import make_strategy

# Several replicas are several logical CPU devices. The number is fixed once TensorFlow has started,
# so the whole suite runs with as many as any test needs.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
ROOT = pathlib.Path(__file__).parent.parent


def pytest_collection_modifyitems(items):
    """The longest files first, so that the other processes have something to do meanwhile."""
    items.sort(key=lambda item: item.path.parent.name != "trust")


@pytest.fixture(autouse=True)
def _default_precision():
    tf.keras.config.set_dtype_policy("float32")
    yield
    tf.keras.config.set_dtype_policy("float32")


@pytest.fixture
def one_replica():
    return tf.distribute.OneDeviceStrategy("CPU:0")


@pytest.fixture
def two_replicas():
    return make_strategy(2, "cpu")[0]


@pytest.fixture(params=["one_replica", pytest.param("two_replicas", marks=pytest.mark.slow)])
def strategy(request):
    """What must hold on any number of replicas; two are slow, unless a test asks for them."""
    return request.getfixturevalue(request.param)
