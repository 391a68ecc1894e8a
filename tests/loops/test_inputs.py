"""How batches reach the replicas."""

import types

import tensorflow as tf

from loops.inputs import iterate, on_gpus


def test_a_single_cpu_has_no_second_pipeline(one_replica):
    iterator = iterate(one_replica, tf.data.Dataset.range(3))
    assert isinstance(iterator, tf.data.Iterator)
    assert [int(x) for x in iterator] == [0, 1, 2]


def test_replicas_take_elements_in_turn(two_replicas):
    (values,) = list(iterate(two_replicas, tf.data.Dataset.range(2)))
    assert [int(x) for x in two_replicas.experimental_local_results(values)] == [0, 1]


def test_where_the_replicas_are(strategy):
    assert not on_gpus(strategy)
    assert not on_gpus(tf.distribute.get_strategy())
    extended = types.SimpleNamespace(worker_devices=("/replica:0/task:0/device:GPU:0",))
    assert on_gpus(types.SimpleNamespace(extended=extended))
