"""Image files through the pipelines."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import data
from tests.data.helpers import ROOT, encoded, noise, write, write_tree

FORBIDDEN = r"numpy_function|py_function|py_func\b|from_generator|PyFunc"


def train(dataset, size=4, augment="none", **options):
    return data.TrainPipeline(
        dataset.splits["train"], global_batch_size=size, seed=0,
        augmentations=data.parse_augment(augment), mean=dataset.mean, std=dataset.std,
        num_classes=len(dataset.class_names), **options,
    )  # fmt: skip


def evaluation(dataset, size=4):
    return data.EvalPipeline(
        dataset.splits["test"], global_batch_size=size, mean=dataset.mean, std=dataset.std
    )


# No Python in the pipeline, and no deadlock.


def test_no_file_of_the_room_calls_python_from_a_pipeline():
    files = sorted((ROOT / "data").rglob("*.py"))
    assert len(files) > 10
    for file in files:
        assert not re.search(FORBIDDEN, file.read_text(encoding="utf-8")), file


def operations(dataset):
    """The types of all operations in the graph of a dataset."""
    variant = tf.data.experimental.to_variant(dataset)
    graph = tf.compat.v1.GraphDef()
    graph.ParseFromString(tf.raw_ops.DatasetToGraphV2(input_dataset=variant).numpy())
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    return {node.op for node in nodes}


def test_no_thread_tunes_a_pipeline(tmp_path):
    """Deleting an iterator could wait for it, up to a minute."""
    dataset = data.load("folder", data_dir=write_tree(tmp_path), image_size=8)
    for batches in (train(dataset).batches(0, 3), evaluation(dataset).batches()):
        assert batches.options().autotune.enabled is False


def test_the_graphs_have_no_operation_that_calls_python(tmp_path):
    dataset = data.load("folder", data_dir=write_tree(tmp_path), image_size=8)
    shard = data.InputShard(replicas=2, here=2)
    found = operations(train(dataset, augment="crop:1,flip", shard=shard).batches(0, 9))
    assert {"ReadFile", "DecodeJpeg", "DecodePng", "ParallelMapDatasetV2"} <= found
    found |= operations(evaluation(dataset).batches())
    found |= operations(evaluation(data.load("digits", image_size=9)).batches())
    assert not [name for name in found if "Py" in name]


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import tensorflow as tf
import data

data_dir, take, attempts = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
dataset = data.load("folder", data_dir=data_dir, image_size=32)
pipeline = data.TrainPipeline(
    dataset.splits["train"], global_batch_size=32, seed=0,
    augmentations=data.parse_augment(dataset.augment), mean=dataset.mean, std=dataset.std,
    num_classes=2,
)
strategy = tf.distribute.OneDeviceStrategy("CPU:0")

def start(step):
    dataset = pipeline.batches(step)
    return iter(strategy.distribute_datasets_from_function(lambda _: dataset))

errors = 0
for step in range(attempts):
    batches = start(step)  # The iterator before it is dropped.
    try:
        for _ in range(take):
            next(batches)
    except tf.errors.InvalidArgumentError:
        errors += 1
print(errors, next(str(x) for x in map(pipeline.find_fault, range(50)) if x), flush=True)
# Python ends while an iterator is at work.
batches = start(0)
next(batches)
"""


@pytest.mark.slow
def test_iterators_can_be_dropped_on_a_tree_with_damaged_images(tmp_path):
    """After the error, early, and where the process ends.

    A pipeline that called Python hung in 13 of 21 such processes.
    """
    whole = [encoded(noise(40, 40, seed=i), format="JPEG") for i in range(20)]
    for split, count in (("train", 1600), ("test", 2)):
        for i in range(count):
            path = tmp_path / split / "ab"[i % 2] / f"{i:04}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            damaged = split == "train" and i % 133 == 7
            contents = whole[i % 20]
            path.write_bytes(contents[: len(contents) // 2] if damaged else contents)
    bad = sorted((tmp_path / "train").glob("*/*.jpg"), key=lambda path: path.stat().st_size)[:12]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, ROOT, tmp_path, str(take), str(attempts)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_HOME": str(tmp_path / "keras")},
        )
        for take, attempts in ((200, 4), (2, 4), (1, 1))
    ]  # fmt: skip
    try:
        for process, errors in zip(processes, ("4", "0", "0"), strict=True):
            output, complaint = process.communicate(timeout=60)
            assert process.returncode == 0, complaint[-2000:]
            found, _, fault = output.partition(" ")
            assert found == errors
            named, _, advice = fault.partition(" cannot be decoded (its contents are damaged); ")
            assert named in map(str, bad)
            assert advice.startswith("restore the original file")
    finally:
        for process in processes:
            process.kill()
            process.wait()


# Which file it was.


@pytest.mark.slow
def test_a_damaged_file_is_named_for_its_step(tmp_path):
    write_tree(tmp_path, count=20)
    path = tmp_path / "train" / "red" / "3.png"
    dataset = data.load("folder", data_dir=tmp_path, image_size=8)
    path.write_bytes(path.read_bytes()[:60])
    pipeline = train(dataset)
    faults, done = {}, 0
    for step in range(10):  # One epoch.
        fault = pipeline.find_fault(step)
        if fault is not None:
            faults[step] = fault
        try:
            list(pipeline.batches(step, step + 1))
            done += 1
        except tf.errors.InvalidArgumentError:
            assert step in faults
    assert done == 9
    ((step, fault),) = faults.items()
    assert isinstance(fault, data.DataError)
    assert str(fault) == (
        f"{path} cannot be decoded (its contents are damaged); restore the original file, which "
        "runs that have used it need, or remove it; new runs of train.py can leave it out with "
        "--bad_images=skip"
    )
    # Each worker names it, whatever its rows are.
    for first in (0, 1):
        shard = data.InputShard(replicas=2, first=first)
        assert str(train(dataset, shard=shard).find_fault(step)) == str(fault)


@pytest.mark.slow
def test_the_advice_can_be_followed(tmp_path):
    """A replaced or skipped file is other data; the original file is the same."""
    write_tree(tmp_path, count=20)
    path = tmp_path / "train" / "red" / "3.png"
    original = path.read_bytes()
    before = data.load("folder", data_dir=tmp_path).splits["train"].fingerprint()
    for bad_images in ("error", "skip"):
        path.write_bytes(original[:60])
        dataset = data.load("folder", data_dir=tmp_path, bad_images=bad_images)
        assert dataset.splits["train"].fingerprint() != before
    write(path, (9, 9, 9), size=(40, 40))
    replaced = data.load("folder", data_dir=tmp_path)
    assert replaced.splits["train"].fingerprint() != before
    assert all(train(replaced).find_fault(step) is None for step in range(10))
    path.write_bytes(original)
    assert data.load("folder", data_dir=tmp_path).splits["train"].fingerprint() == before


def test_a_damaged_file_is_named_for_its_evaluation_batch(tmp_path):
    write_tree(tmp_path, count=5)
    dataset = data.load("folder", data_dir=tmp_path, image_size=8)
    gone = tmp_path / "test" / "red" / "4.png"  # Example 9, in the batch 2.
    gone.unlink()
    pipeline = evaluation(dataset)
    batches = iter(pipeline.batches())
    next(batches), next(batches)
    with pytest.raises(tf.errors.NotFoundError):
        next(batches)
    assert [pipeline.find_fault(i) is None for i in range(3)] == [True, True, False]
    assert f"{gone} cannot be decoded (No such file or directory)" in str(pipeline.find_fault(2))
    gone.mkdir()
    assert f"{gone} cannot be decoded (" in str(pipeline.find_fault(2))


# Few images.


def test_fewer_images_than_a_batch(tmp_path):
    """Epochs follow without a gap, so a batch of 8 has each of 3 images two or three times."""
    write(tmp_path / "test" / "a" / "0.png")
    write(tmp_path / "test" / "b" / "0.png")
    for i in range(3):
        write(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", (100 * i, 0, 0))
    dataset = data.load("folder", data_dir=tmp_path, image_size=4)
    reds = [np.unique(np.round(images[:, 0, 0, 0], 4), return_counts=True)[1].tolist()
            for images, _ in train(dataset, size=8).batches(0, 3)]  # fmt: skip
    assert np.sum(reds, axis=0).tolist() == [8, 8, 8]
    assert all(set(counts) <= {2, 3} for counts in reds)


def test_one_image_per_class(tmp_path):
    for name in ("train/a", "train/b", "test/a", "test/b"):
        write(tmp_path / name / "0.png")
    dataset = data.load("folder", data_dir=tmp_path, image_size=4)
    for images, labels in train(dataset, size=8).batches(0, 2):
        assert images.shape == (8, 4, 4, 3)
        assert sorted(labels.numpy().tolist()) == [0] * 4 + [1] * 4
    ((images, _, mask),) = evaluation(dataset, size=8).batches().take(1)
    assert mask.numpy().tolist() == [1, 1] + [0] * 6
    images, _ = dataset.examples("test", [0])
    np.testing.assert_allclose(
        images[0, 0, 0] * dataset.std + dataset.mean, np.array([200, 30, 30]) / 255, atol=1e-6
    )
