"""From a configuration to nets, plans and pipelines, and what does not fit."""

import dataclasses
import math
import pathlib
import types

import numpy as np
import pytest
import tensorflow as tf

import data
import nets
from commands import build
from commands.config import Config
from commands.initial_weights import find_origin
from commands.options import TrainOptions
from commands.saved_config import SavedConfig, read_config, write_config
from commands.setting import ConfigError
from commands.train import train
from data import source as data_source
from loops.distributed.workers import Workers
from loops.hooks import HOOKS
from loops.losses import LOSSES
from loops.metrics import METRICS
from loops.optimizer import OPTIMIZERS, REFUSED
from loops.schedule import SCHEDULES

DIGITS = Config(dataset="digits", epochs=2.0, batch_size=64)


def changed(config=DIGITS, **values):
    return dataclasses.replace(config, **values)


@pytest.fixture(scope="module")
def digits():
    return build.load_data(DIGITS)


def refusal(workers=1, **values):
    """The line with which settings are refused."""
    with pytest.raises((ConfigError, data.DataError)) as caught:
        build.check(changed(**values), workers)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    return line


TABLES = {
    "net": nets.NETS, "dataset": data.DATASETS, "loss": LOSSES, "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES, "best_metric": ["loss", *METRICS], "augment": data.AUGMENTATIONS,
    "hooks": HOOKS,
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("value", ["x", "None", "☃", "a b"])
def test_an_unknown_name_is_one_line_that_lists_the_known_ones(name, value):
    line = refusal(**{name: (value,) if name == "hooks" else value})
    assert line.startswith(f"--{name}")
    assert value in line
    for known in TABLES[name]:
        assert known in line


@pytest.mark.parametrize("name", TABLES)
def test_every_known_name_is_accepted(name):
    needed = {"crop": "crop:1", "cutout": "cutout:2", "mixup": "mixup:0.2", "cutmix": "cutmix:1"}
    for value in TABLES[name]:
        value = needed.get(value, value) if name == "augment" else value
        build.check(changed(**{name: (value,) if name == "hooks" else value}))


@pytest.mark.parametrize("name", REFUSED)
def test_an_optimizer_that_does_not_work_is_refused_with_the_reason(name):
    line = refusal(optimizer=name)
    assert line == f"--optimizer: optimizer {name!r} is not supported: {REFUSED[name]}"


@pytest.mark.parametrize(
    "augment", ["", "crop", "crop:x", "crop:-1", "flip:1", "flip,", "mixup:0.2|x", "cutout:nan"]
)
def test_augmentations_that_are_none(augment):
    line = refusal(augment=augment)
    assert line.startswith("--augment=")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": math.nan}, "--epochs=nan: expected a number (> 0, <= 1000000)"),
        ({"batch_size": 64.0}, "--batch_size=64.0: expected an integer (>= 1, <= 1000000)"),
        ({"device": "tpu"}, "--device='tpu': expected one of auto, cpu, gpu"),
        ({"net": ""}, "--net='': expected text, not empty"),
        ({"step_epochs": 5.0}, "--step_epochs=5.0: expected a list of numbers (> 0, <= 1000000)"),
    ],
)
def test_values_that_no_command_line_has_checked(values, message):
    """As a notebook may have them."""
    assert refusal(**values) == message


def test_batches_that_cannot_be_divided():
    assert refusal(batch_size=9, num_gpus=2) == (
        "--batch_size=9 is not divisible by --num_gpus=2 times --accumulation=1; "
        "use a multiple of 2"
    )
    assert refusal(batch_size=8, accumulation=3).endswith("use a multiple of 3")
    line = refusal(workers=3, batch_size=8, num_gpus=2, accumulation=2)
    assert line.endswith("times --accumulation=2 times 3 workers; use a multiple of 12")
    build.check(changed(batch_size=12, num_gpus=2, accumulation=2), workers=3)


def test_settings_that_cannot_be_combined():
    assert refusal(jit=True, deterministic=True) == (
        "XLA has no deterministic form of some gradients; drop --jit or --deterministic"
    )
    line = "--jit cannot compile the all-reduce of --sync_batch_norm; drop one"
    assert refusal(jit=True, sync_batch_norm=True, num_gpus=2) == line
    assert refusal(workers=2, jit=True, sync_batch_norm=True) == line
    for values in (
        {"jit": True},
        {"deterministic": True},
        {"jit": True, "sync_batch_norm": True},
        {"sync_batch_norm": True, "deterministic": True, "num_gpus": 2},
    ):
        build.check(changed(**values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"jit": True, "deterministic": True}, "drop --jit or --deterministic"),
        ({"batch_size": 9, "num_gpus": 2}, "use a multiple of 2"),
        ({"optimizer": "nadam"}, "is not supported"),
        ({"hooks": ("x",)}, "unknown hook"),
        ({"augment": "crop:8"}, "--augment=crop:8"),
        ({"augment": "mixup:0.2", "batch_size": 7}, "odd"),
        ({"warmup_epochs": 2.0}, "--warmup_epochs=2 must be less than --epochs=2"),
        ({"net": "inception_v3", "stem": "large"}, "too small"),
        ({"num_classes": 3}, "--num_classes=3: digits has 10 classes"),
        ({"epochs": math.nan}, "--epochs=nan"),
    ],
)
def test_what_does_not_fit_is_refused_before_there_is_a_run_directory(tmp_path, values, message):
    run_dir = tmp_path / "run"
    options = TrainOptions(
        **{**vars(DIGITS), "device": "cpu", **values}, run_dir=str(run_dir)
    )  # fmt: skip
    with pytest.raises((ConfigError, data.DataError, nets.NetError), match=message):
        train(options)
    assert not run_dir.exists()


def test_the_defaults_that_depend_on_others(digits):
    found = build.resolve(DIGITS, digits)
    assert found == changed(
        stem="small", batch_norm_momentum=0.9, image_size=8, augment="crop:1", label_smoothing=0.0,
        learning_rate=0.2, weight_decay=5e-4, warmup_epochs=0.4, eval_crop=1.0,
    )  # fmt: skip
    derived = [f.name for f in dataclasses.fields(Config) if f.metadata["derived"]]
    assert None not in [getattr(found, name) for name in derived]
    assert build.resolve(found, digits) == found


def test_what_is_given_is_kept(digits):
    given = changed(
        stem="large", batch_norm_momentum=0.5, augment=" flip, crop:2", label_smoothing=0.2,
        learning_rate=0.01, weight_decay=0.0, warmup_epochs=0.0, image_size=96, net="resnet18",
        eval_crop=0.5,
    )  # fmt: skip
    large = build.load_data(given)
    assert build.resolve(given, large) == changed(given, augment="flip,crop:2")
    assert build.resolve(changed(augment="none"), digits).augment == "none"
    assert build.resolve(changed(augment="random_resized_crop"), digits).eval_crop == 0.875


@pytest.mark.parametrize(
    ("epochs", "net", "momentum"),
    [
        # 1,797 digits: 1,295 to train on, so 21 steps an epoch.
        (0.1, "inception10", 0.9),
        (2.0, "inception_v3", 0.9),
        (100.0, "inception_v3", round(1 - 50 / 2024, 4)),
        (100.0, "inception10", 0.9),
        (1e5, "inception_v3", 0.9997),
    ],
)
def test_the_batch_norm_momentum_of_a_short_run(epochs, net, momentum):
    config = changed(epochs=epochs, net=net, image_size=96, stem="small")
    dataset = build.load_data(config)
    assert len(dataset.splits["train"].labels) == 1295
    found = build.resolve(config, dataset)
    assert found.batch_norm_momentum == momentum
    assert found.label_smoothing == (0.1 if net == "inception_v3" else 0.0)


def test_the_defaults_of_an_optimizer(digits):
    for name, choice in OPTIMIZERS.items():
        found = build.resolve(changed(optimizer=name), digits)
        assert (found.learning_rate, found.weight_decay) == (
            choice.learning_rate,
            choice.weight_decay,
        )


def test_initial_weights_need_the_large_stem_and_their_normalization():
    config = changed(net="resnet50", init_from="keras", image_size=32)
    dataset, origin = build.load_data(config), find_origin(config)
    assert build.resolve(config, dataset, origin).stem == "large"
    with pytest.raises(ConfigError, match="for images of 3 channels; those of digits have 1"):
        build.normalized_for(origin, config, build.data_info(dataset))
    source = data_source.ArraySource(np.zeros((20, 32, 32, 3), np.uint8), np.arange(20) % 2)
    colored = dataclasses.replace(
        dataset, splits={"train": source, "test": source}, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    info = build.normalized_for(origin, config, build.data_info(colored))
    np.testing.assert_allclose(info.mean, np.array([123.68, 116.779, 103.939]) / 255, rtol=1e-3)
    np.testing.assert_allclose(info.std, [1 / 255] * 3, rtol=1e-3)
    assert info.image_shape == (32, 32, 3)


def test_what_a_run_remembers_of_its_data(digits, tmp_path):
    info = build.data_info(digits)
    assert info.name == "digits"
    assert info.class_names == tuple("0123456789")
    assert info.image_shape == (8, 8, 1)
    assert (info.mean, info.std) == ((0.306,), (0.375,))
    assert info.examples == {"train": 1295, "val": 143, "test": 359}
    assert info.fingerprints.keys() == info.examples.keys()
    assert all(len(text) == 8 and int(text, 16) >= 0 for text in info.fingerprints.values())
    assert len(set(info.fingerprints.values())) == 3
    saved = SavedConfig(settings=build.resolve(DIGITS, digits), data=info)
    write_config(tmp_path, saved)
    assert read_config(tmp_path) == saved


def test_paths_hold_in_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = build.with_absolute_paths(changed(data_dir="a/../b", init_from="~/w.h5"))
    assert found.data_dir == str(tmp_path.resolve() / "b")
    assert found.init_from == str((tmp_path / "home/w.h5").resolve())
    for config in (changed(), changed(init_from="keras")):
        assert build.with_absolute_paths(config) == config
    odd = tmp_path / "\udcff"
    odd.mkdir()
    monkeypatch.chdir(odd)
    with pytest.raises(ConfigError, match="--data_dir: expected text in UTF-8"):
        build.with_absolute_paths(changed(data_dir="a"))
    paths = {f.name for f in dataclasses.fields(Config) if f.metadata["path"]}
    assert paths == {"data_dir", "init_from"}


def test_the_plan(digits):
    config = build.resolve(changed(schedule="step", step_epochs=(1.0, 1.5)), digits)
    plan, rate = build.make_plan(config, 1295)
    assert plan.total_steps == math.ceil(2 * 1295 / 64) == 41
    assert rate.warmup_steps == math.ceil(0.4 * 1295 / 64) == 9
    assert rate.boundaries == (21, 31)
    values = [float(rate(tf.constant(step))) for step in (0, 8, 20, 21, 40)]
    np.testing.assert_allclose(values, [0.2 / 9, 0.2, 0.2, 0.02, 0.002], rtol=1e-5)


def test_a_warm_up_that_is_not_shorter_than_the_run(digits):
    for warmup_epochs in (2.0, 9.0):
        config = changed(warmup_epochs=warmup_epochs, learning_rate=0.1)
        with pytest.raises(ConfigError, match="must be less than --epochs=2"):
            build.make_plan(config, 1295)
        with pytest.raises(ConfigError, match="must be less than --epochs=2"):
            build.resolve(config, digits)
    # A run of one step has no warm-up.
    config = changed(warmup_epochs=0.01, epochs=0.01, learning_rate=0.1)
    plan, rate = build.make_plan(config, 1295)
    assert (plan.total_steps, rate.warmup_steps) == (1, 0)


def test_the_net(digits):
    config = changed(
        build.resolve(DIGITS, digits), precision="mixed_bfloat16", batch_norm_momentum=0.7,
        sync_batch_norm=True,
    )  # fmt: skip
    net = build.build_net(config, build.data_info(digits))
    logits = net(tf.zeros((2, 8, 8, 1)), training=False)
    assert logits.shape == (2, 10)
    assert logits.dtype == tf.float32
    assert (net.batch_norm_momentum, net.sync_batch_norm) == (0.7, True)
    assert net.compute_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("precision", "is_enabled", "dtype"),
    [("float32", False, "float32"), ("tf32", True, "float32"), ("mixed_float16", True, "float16")],
)
def test_float32_is_tf32_only_if_asked_for(digits, precision, is_enabled, dtype):
    config = changed(build.resolve(DIGITS, digits), precision=precision)
    tf.config.experimental.enable_tensor_float_32_execution(not is_enabled)
    net = build.build_net(config, build.data_info(digits))
    assert tf.config.experimental.tensor_float_32_execution_enabled() is is_enabled
    assert net.compute_dtype == dtype


def test_pipelines(digits, one_replica):
    config = changed(
        build.resolve(DIGITS, digits), seed=3, augment="crop:1,mixup:0.2", accumulation=2
    )
    info, workers = build.data_info(digits), Workers(one_replica)
    pipeline = build.train_pipeline(config, info, digits.splits["train"], workers)
    assert pipeline.global_batch_size == 64
    assert pipeline.seed == 3
    assert pipeline.augmentations == data.parse_augment("crop:1,mixup:0.2")
    images, labels = next(iter(pipeline.batches(0, 1)))
    assert images.shape == (64, 8, 8, 1)
    assert labels.shape == (64, 10)
    split = build.eval_pipeline(config, info, digits.splits["test"], workers)
    assert (split.size, split.global_batch_size) == (359, 64)


class _Some:
    """Workers of which this is one."""

    def __init__(self, count, index, replicas, device="CPU"):
        self.count, self.index = count, index
        extended = types.SimpleNamespace(worker_devices=[f"/device:{device}:0"])
        self.strategy = types.SimpleNamespace(num_replicas_in_sync=replicas, extended=extended)


def test_the_rows_of_a_worker(digits):
    """All rows of a batch, once each, over all replicas; as many per replica to score."""
    config = changed(build.resolve(DIGITS, digits), num_gpus=2, accumulation=2)
    info, source = build.data_info(digits), digits.splits["train"]
    rows = []
    for index in range(2):
        pipeline = build.train_pipeline(config, info, source, _Some(2, index, 4))
        rows.append(np.sort(np.ravel(pipeline._rows)))
        assert not pipeline.on_device
    assert sorted(np.concatenate(rows)) == list(range(64))
    assert list(rows[0]) == [*range(16), *range(32, 48)]
    for replicas, size in ((4, 64), (1, 16), (3, 48)):
        workers = _Some(1, 0, replicas, "GPU")
        split = build.eval_pipeline(config, info, source, workers, trained_by=2)
        assert split.global_batch_size == size
        assert split.on_device
    assert build.train_pipeline(config, info, source, _Some(1, 0, 4, "GPU")).on_device


def test_a_default_stem():
    assert build.default_stem((32, 32, 3)) == "small"
    assert build.default_stem((224, 224, 3)) == "large"
    origin = find_origin(changed(net="resnet50", init_from="keras"))
    assert build.default_stem((32, 32, 3), origin) == "large"


def test_data_that_are_not_there(tmp_path):
    with pytest.raises(data.DataError, match="is not a directory"):
        build.load_data(changed(data_dir=str(tmp_path / "x")))
    with pytest.raises(data.DataError, match="needs --data_dir"):
        build.load_data(changed(dataset="folder"))
    assert list(pathlib.Path(tmp_path).iterdir()) == []


def test_no_home_directory(monkeypatch):
    """Keras keeps datasets in it."""
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(data.DataError, match="no home directory"):
        build.load_data(Config())
    assert build.load_data(DIGITS).name == "digits"
