"""Augmentation and normalization on the replicas' devices, instead of in the pipeline."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels

from data.augment import AUGMENTATIONS, OneOf, parse_augment
from data.pipeline import EvalPipeline, InputShard, TrainPipeline
from data.source import ArraySource

# 15 examples that differ; two steps cross the end of an epoch.
SOURCE = ArraySource(
    np.random.default_rng(0).integers(0, 256, (15, 8, 8, 3)).astype(np.uint8), np.arange(15) % 5
)
NORMALIZATION = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}


def example(kind):
    """An augmentation of a kind, with 1 for the values that have no default."""
    missing = [x.name for x in kind.settings() if x.default is dataclasses.MISSING]
    return kind(**dict.fromkeys(missing, 1))


EACH = {name: (example(kind),) for name, kind in AUGMENTATIONS.items()}
PIXELS, NORMALIZED = ([x for (x,) in EACH.values() if x.normalized is y] for y in (False, True))
CHAINS = {"none": (), "all": (*PIXELS, *NORMALIZED, OneOf(tuple(NORMALIZED))), **EACH}


def pipeline(chain, *, on_device, replicas=1, microbatches=1):
    return TrainPipeline(
        SOURCE,
        global_batch_size=16,
        seed=3,
        augmentations=sorted(chain, key=lambda x: not hasattr(x, "boxes")),
        num_classes=5,
        shard=InputShard(replicas, 0, replicas, microbatches),
        on_device=on_device,
        **NORMALIZATION,
    )


def elements(made):
    return list(made.batches(5, 7))


def check_same(chain, replicas, microbatches):
    layout = {"replicas": replicas, "microbatches": microbatches}
    device = pipeline(chain, on_device=True, **layout)
    expected = elements(pipeline(chain, on_device=False, **layout))
    found, prepare = elements(device), tf.function(device.prepare)
    assert len(found) == len(expected) == 2 * replicas
    for number, (element, (images, labels)) in enumerate(zip(found, expected, strict=True)):
        assert [x.dtype for x in element] == [tf.uint8, tf.int32, *[tf.int64] * 4]
        assert element[2].numpy() == 5 + number // replicas
        new_images, new_labels = prepare(*element)
        assert new_images.dtype == tf.float32
        np.testing.assert_array_equal(new_images, images)
        np.testing.assert_array_equal(new_labels, labels)


def test_the_batches_are_the_same_bit_for_bit():
    check_same(parse_augment("crop:2,flip,mixup:1"), replicas=2, microbatches=2)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CHAINS)
def test_the_batches_of_each_augmentation_are_the_same(name):
    for replicas, microbatches in ((1, 1), (2, 2), (4, 1)):
        check_same(CHAINS[name], replicas, microbatches)


def test_rows_are_those_of_the_replica():
    for element, rows in zip(
        elements(pipeline((), on_device=True, replicas=2, microbatches=2)),
        2 * ([*range(4), *range(8, 12)], [*range(4, 8), *range(12, 16)]),
        strict=True,
    ):
        assert element[3].numpy().tolist() == rows


def test_an_evaluation_is_the_same():
    made = [
        EvalPipeline(SOURCE, global_batch_size=8, on_device=on_device, **NORMALIZATION)
        for on_device in (False, True)
    ]
    pairs = zip(*(x.batches().take(2) for x in made), strict=True)
    for (images, *others), (pixels, *same) in pairs:
        assert pixels.dtype == tf.uint8
        np.testing.assert_array_equal(made[1].prepare(pixels), images)
        assert made[0].prepare(images) is images
        for x, y in zip(others, same, strict=True):
            np.testing.assert_array_equal(x, y)


def operations(function):
    """All operations of a concrete function, and of those that it calls."""
    definition = function.graph.as_graph_def(add_shapes=False)
    return [*definition.node, *(n for f in definition.library.function for n in f.node_def)]


def runs_on_gpu(node) -> bool:
    """Whether this build of TensorFlow has a GPU kernel for an operation with its types."""
    for kernel in kernels.get_registered_kernels_for_op(node.op).kernel:
        allowed = {x.name: x.allowed_values.list.type for x in kernel.constraint}
        if kernel.device_type == "GPU" and all(
            node.attr[name].type in types for name, types in allowed.items()
        ):
            return True
    return False


@pytest.mark.slow
@pytest.mark.skipif(not tf.test.is_built_with_cuda(), reason="TensorFlow is built without CUDA")
def test_every_operation_has_a_gpu_kernel():
    """Read in the registry; none is placed on the host, where it would wait for a copy."""
    device = pipeline(CHAINS["all"], on_device=True)
    prepare = tf.function(device.prepare, input_signature=device.batches(0).element_spec)
    nodes = operations(prepare.get_concrete_function())
    assert len(nodes) > 20
    # Integer constants are on the host, where kernels want them; their shapes are folded.
    allowed = {"Placeholder", "Const", "BroadcastArgs"}
    assert {n.op for n in nodes if not runs_on_gpu(n)} <= allowed
