"""Batches that are finished on the replicas' devices."""

import numpy as np
import pytest
import tensorflow as tf

from loops.evaluator import Evaluator
from loops.inputs import iterate
from loops.step import StepSettings, TrainStep
from tests.loops.helpers import Split, assert_close, examples, make_state, schedule, weights


def scaled(images):
    return tf.cast(images, tf.float32) / 8 - 1


def prepare(images, labels, step, rows):
    """Images that depend on all that an element has."""
    numbers = tf.cast(step + rows, tf.float32)
    return scaled(images) + numbers[:, None], labels


@pytest.mark.slow
def test_a_step_is_made_from_what_is_prepared(two_replicas):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 16, (8, 4)).astype(np.uint8)
    _, labels = examples()
    strategy, replicas, n, rows = two_replicas, 2, 4, np.arange(8)
    pieces = [(images[i : i + n], labels[i : i + n], 7, rows[i : i + n]) for i in range(0, 8, n)]
    elements = tuple(np.stack(x) for x in zip(*pieces, strict=True))
    finished = [np.float32(images / 8 - 1 + (7 + rows)[:, None]), labels]
    found = []
    for columns, function in (
        (elements, {"prepare": prepare}),
        ([x.reshape(replicas, n, *x.shape[1:]) for x in finished], {}),
    ):
        state = make_state(strategy)
        step = TrainStep(strategy, state, StepSettings(8), schedule(0.1), **function)
        dataset = tf.data.Dataset.from_tensor_slices(tuple(columns))
        (batch,) = iterate(strategy, dataset)
        inspected = step.inspect(batch)
        step.run(iterate(strategy, dataset), tf.constant(1))
        found.append([inspected.losses.numpy(), *weights(state.net)])
    assert_close(*found)


def test_an_evaluation_is_made_from_what_is_prepared(one_replica):
    images, labels = examples(11)
    pixels = np.uint8(np.clip(images * 4 + 8, 0, 15))
    net = make_state(one_replica).net
    found = Evaluator(one_replica, net, prepare=scaled).scores(Split(pixels, labels))
    expected = Evaluator(one_replica, net).scores(Split(np.float32(pixels / 8 - 1), labels))
    assert found.figures == expected.figures
