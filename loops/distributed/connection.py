"""Connects the workers of a run.

strategy = connect(cluster, "GPU", 4)
"""

import contextlib
import signal

import tensorflow as tf

# TensorFlow makes one replica on each worker without GPUs, whatever `num_accelerators` says, and
# has no public way to ask for more. Its class for the devices of a worker has one method for it.
from tensorflow.python.distribute import collective_all_reduce_strategy

from loops.distributed.cluster import Cluster
from loops.distributed.collectives import worker_options
from loops.distributed.rendezvous import meet
from loops.errors import RunError, reason

_CONNECT_SECONDS = 300


def connect(
    cluster: Cluster, kind: str, num_devices: int
) -> tf.distribute.MultiWorkerMirroredStrategy:
    """Waits for all workers, connects them and returns their strategy.

    Args:
        cluster: the workers.
        kind: of the devices, "GPU" or "CPU".
        num_devices: logical devices of that kind on each worker, one replica each.

    Raises:
        RunError: a worker is missing, stops, has other devices, or cannot be connected.
    """
    jobs = tf.train.ClusterSpec({"worker": list(cluster.addresses)})
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        jobs,
        task_type="worker",
        task_id=cluster.index,
        num_accelerators={kind: num_devices},
        rpc_layer="grpc",
    )
    devices = f"{num_devices} {kind}{'' if num_devices == 1 else 's'}"
    meet(cluster.addresses, cluster.index, _CONNECT_SECONDS, devices)
    on_several_cpus = kind == "CPU" and num_devices > 1
    strategy_class = _Rehearsal if on_several_cpus else tf.distribute.MultiWorkerMirroredStrategy
    try:
        # If a worker dies now, TensorFlow waits for an hour, and an alarm is all that can end it.
        signal.alarm(_CONNECT_SECONDS)
        strategy = strategy_class(resolver, worker_options(kind == "GPU"))
    except (tf.errors.OpError, RuntimeError) as error:
        raise RunError(f"cannot connect to the other workers: {reason(error)}") from error
    finally:
        signal.alarm(0)
    with contextlib.suppress(ValueError):  # Outside the main thread.
        # TensorFlow has installed a handler of its own, which would hide the signal from Python.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)
    _check_replicas(strategy, len(cluster.addresses), kind, num_devices)
    return strategy


def _check_replicas(strategy: tf.distribute.Strategy, workers: int, kind: str, count: int) -> None:
    """Raises RunError unless each worker has `count` replicas on devices of a kind."""
    found = strategy.extended.worker_devices
    expected = workers * count
    if strategy.num_replicas_in_sync != expected or any(kind not in name for name in found):
        raise RunError(
            f"{workers} workers with --num_gpus={count} should make {expected} replicas, one on "
            f"each {kind}, but TensorFlow has made {strategy.num_replicas_in_sync}, here on "
            f"{', '.join(found)}; use --num_gpus=1"
        )


class _SeveralCPUs(collective_all_reduce_strategy.CollectiveAllReduceExtended):
    """Takes all logical CPU devices that `num_accelerators` of the resolver counts."""

    def _initialize_local_devices(self, cluster_resolver, worker_device):
        count = cluster_resolver.num_accelerators()["CPU"]
        return tuple(f"{worker_device}/device:CPU:{i}" for i in range(count)), "CPU"


class _Rehearsal(tf.distribute.MultiWorkerMirroredStrategy):
    """Several replicas on each of several workers, as on GPUs, but on logical CPU devices."""

    def __init__(self, cluster_resolver, communication_options):
        extended = _SeveralCPUs(self, cluster_resolver, communication_options)
        tf.distribute.Strategy.__init__(self, extended)
