"""The middle that is evaluated: --eval_crop in training, eval.py, predict.py and export.py."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import data
from commands import build, verification
from commands.config import Config
from commands.exported import fit_bilinear, fit_like_data
from commands.run import Run
from data.resampling import scale_box
from data.source import ArraySource
from loops.distributed.workers import Workers
from tests.commands.helpers import call, read, tiny_net


def test_exported_models_see_the_middle():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)
    images, shape = tf.constant(pixels[None]), (24, 24, 3)
    middle = tf.constant([3.75, 18.75, 52.5, 52.5])  # 0.875 of 60 pixels.
    found = fit_like_data(images, shape, 0.875)[0]
    np.testing.assert_allclose(found, scale_box(tf.constant(pixels), middle, (24, 24)), atol=2)
    # Cut first: of 60 pixels 30, in the middle.
    found = fit_bilinear(images, shape, 0.5)
    expected = tf.image.resize(tf.cast(images[:, 15:45, 30:60], tf.float32), (24, 24))
    np.testing.assert_array_equal(found, expected)


def test_exported_models_cut_images_of_the_size_of_the_net():
    """As `data` cuts those of an array."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3)).astype(np.uint8)
    source = data.center_cropped(ArraySource(pixels, np.zeros(3, np.int32)), 0.5)
    found = fit_like_data(tf.constant(pixels), source.image_shape, 0.5)
    np.testing.assert_allclose(found, source.fetch(tf.range(3)), atol=1)
    found = fit_bilinear(tf.constant(pixels), source.image_shape, 0.5)
    expected = tf.image.resize(tf.cast(pixels[:, 6:18, 6:18], tf.float32), (24, 24))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_exports_are_checked_with_images_that_are_not_cut(tmp_path, monkeypatch):
    with tiny_net():
        flags = ("--net=tiny", "--dataset=digits", "--batch_size=256", "--device=cpu")
        call("train.py", *flags, "--epochs=3", "--eval_crop=0.6", f"--run_dir={tmp_path / 'run'}")
        run = Run.open(tmp_path / "run")
        seen = []

        def answers(format, model, images):
            seen.append(np.load(images))
            loaded = tf.saved_model.load(str(model)).signatures["serving_default"]
            return loaded(images=tf.constant(seen[-1]))["probabilities"].numpy()

        monkeypatch.setattr(verification, "fresh_answers", answers)
        found = call("export.py", f"--run_dir={run.path}", tmp_path / "model")
    originals = run.dataset().splits["test"]
    np.testing.assert_array_equal(seen[0], originals.fetch(tf.range(len(originals.labels))))
    assert found.expected_accuracy == pytest.approx(run.result["top_1_accuracy"])
    # Another rounding of a pixel may turn an example over.
    assert found.accuracy == pytest.approx(found.expected_accuracy, abs=1.1 / 359)


def test_splits_are_scored_on_the_middle():
    config = Config(dataset="digits", net="resnet20", eval_crop=0.5, device="cpu")
    dataset = build.load_data(config)
    config = build.resolve(config, dataset)
    source = dataset.splits["test"]
    workers = Workers(tf.distribute.get_strategy())
    pipeline = build.eval_pipeline(config, build.data_info(dataset), source, workers)
    images, *_ = next(iter(pipeline.batches()))
    cropped = data.center_cropped(source, 0.5)
    dataset = dataclasses.replace(dataset, eval_crop=0.5)
    examples, _ = dataset.examples("test", range(4))
    np.testing.assert_allclose(pipeline.prepare(images)[:4], examples, atol=1e-6)
    assert np.any(cropped.fetch(range(4)) != source.fetch(range(4)))
    np.testing.assert_array_equal(
        dataset.evaluated("test").fetch(range(4)), cropped.fetch(range(4))
    )


@pytest.mark.slow
def test_a_run_on_photographs(tmp_path, capsys):
    """Random crops are the default from 128 pixels on; a run from before keeps what it had."""
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 256, (9, 12, 3)).astype(np.uint8)
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((200, 150 + i)).save(path)
    flags = (
        "--net=tiny", "--dataset=folder", f"--data_dir={tmp_path / 'photos'}", "--device=cpu",
        "--image_size=128", "--batch_size=4", "--epochs=1", f"--run_dir={tmp_path / 'run'}",
    )  # fmt: skip
    with tiny_net():
        call("train.py", *flags)
        settings = read(tmp_path / "run/config.json")["settings"]
        assert settings["augment"] == "random_resized_crop:0.08:1:1.3333,flip"
        assert settings["eval_crop"] == 0.875
        run = Run.open(tmp_path / "run")
        # What eval.py scores is what predict.py and an exported model say of the files.
        score = call("eval.py", "--run_dir", run.path, "--device=cpu")
        assert score["loss"] == pytest.approx(run.result["loss"], rel=1e-5)
        source = run.dataset().splits["test"]
        capsys.readouterr()
        paths = [source.describe(n) for n in range(len(source.labels))]
        call("predict.py", "--run_dir", run.path, "--format=json", "--device=cpu", *paths)
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        predictions = run.predictions
        classes = run.data.class_names
        assert [line["predictions"][0]["class"] for line in lines] == [
            classes[n] for n in predictions.predicted
        ]
        # A run from before there were random crops.
        content = read(tmp_path / "run/config.json")
        content["settings"]["augment"] = "crop:16,flip"
        del content["settings"]["eval_crop"]
        (tmp_path / "run/config.json").write_text(json.dumps(content))
        resumed = call("train.py", *flags)
        assert (resumed.config.augment, resumed.config.eval_crop) == ("crop:16,flip", 1.0)
