"""Runs that start from the weights of another run: what they copy, train and keep."""

import os
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.python.framework.config import disable_op_determinism

from commands import build, session
from commands.initial_weights import find_origin, load_start
from commands.run import Run
from commands.saved_config import Code, SavedConfig, write_config
from data import DATASETS, Dataset, load
from data.source import ArraySource, Relabelled, Subset
from loops.distributed.devices import make_strategy
from loops.hook import Hook
from loops.hooks import HOOKS
from loops.records.checkpoints import Checkpoints
from loops.records.run import write_json
from loops.step import TrainStep
from nets.table import trace
from tests.commands import helpers
from tests.commands.helpers import TINY, call, contents, read, refused

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
EPOCH = (*TINY, "--epochs=1", "--val_fraction=0.2")


def letters(data_dir=None):
    """The digits 5 to 9, with other names and another normalization."""
    del data_dir
    digits = load("digits")
    splits = {}
    for split, source in digits.splits.items():
        chosen = Subset(source, np.flatnonzero(source.labels >= 5))
        splits[split] = Relabelled(chosen, np.maximum(np.arange(10) - 5, 0))
    return Dataset(
        name="letters",
        class_names=list("abcde"),
        splits=splits,
        mean=(0.9,),
        std=(0.8,),
        augment="none",
    )


def colored(data_dir=None):
    """Two classes of images with three channels."""
    del data_dir
    source = ArraySource(np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 2)
    splits = {"train": source, "test": source}
    return Dataset(
        name="colored",
        class_names=["a", "b"],
        splits=splits,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        augment="none",
    )


class Stop(Hook):
    """Interrupts at the second row."""

    def on_log(self, trainer, row):
        if trainer.step == 8:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True, scope="module")
def tables():
    with helpers.tiny_net(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "letters", letters)
        patch.setitem(DATASETS, "colored", colored)
        yield


def made(source, dataset, **settings):
    """Settings, data, state and step of a run that starts from another."""
    init_from = source and str(source)
    config = build.Config(
        net="tiny", dataset=dataset, init_from=init_from, batch_size=64, **settings
    )
    loaded, origin = build.load_data(config), find_origin(config)
    config = build.resolve(config, loaded, origin)
    info = build.normalized_for(origin, config, build.data_info(loaded))
    _, rate = build.make_plan(config, info.examples["train"])
    start = load_start(config, info)
    strategy, _ = make_strategy(1, "cpu")
    state = session.make_state(config, info, strategy, rate, start=start)
    step_settings = session.step_settings(config, info, loaded.splits["train"].labels, state.net)
    return config, info, state, TrainStep(strategy, state, step_settings, rate)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A finished run on ten digits, whose averages are not its weights; it made no update."""
    run_dir = tmp_path_factory.mktemp("source") / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    config, info, state, _ = made(None, "digits", ema_decay=0.5)
    for number, average in enumerate(state.ema_net.variables):
        generator = np.random.default_rng(number)
        average.assign(average + generator.uniform(0.1, 0.2, average.shape))
    code = Code(from_step=0, net=trace(state.net, info.image_shape).fingerprint, versions={})
    write_config(run_dir, SavedConfig(settings=config, data=info, code=(code,)))
    Checkpoints(state, run_dir, 2).save_best()
    result = {"loss": 1.0, "examples": 359, "step": 0, "checkpoint": "best", "selected_on": "val"}
    write_json(run_dir / "result.json", result)
    return run_dir


@pytest.fixture(scope="module")
def target(source, tmp_path_factory):
    """A finished run on five letters that started from it, and the arguments of its command."""
    run_dir = tmp_path_factory.mktemp("target") / "run"
    args = (
        *EPOCH, "--dataset=letters", f"--init_from={source}", "--freeze=stem", "--ema_decay=0.5",
        f"--run_dir={run_dir}", "--head_learning_rate=0.4", "--learning_rate=0.1",
    )  # fmt: skip
    call("train.py", *args)
    return run_dir, args


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "head"), [("digits", "included"), ("letters", "new")])
def test_a_run_starts_from_the_averages_of_another(source, dataset, head, capsys):
    run = Run.open(source)
    config, info, state, _ = made(source, dataset, ema_decay=0.9)
    assert f"start  {source}; the head is {head}" in capsys.readouterr().out
    assert (config.stem, info.mean, info.std) == (run.config.stem, run.data.mean, run.data.std)
    theirs = run.net()  # The averages, as the next line checks.
    reader = tf.train.load_checkpoint(run.checkpoint())
    kernel = reader.get_tensor(f"ema_net/stem/conv/conv/_kernel{VALUE}")
    np.testing.assert_array_equal(theirs.stem.conv.conv.kernel, kernel)
    for name in ("stem", "stage_1", *(["head"] if head == "included" else [])):
        for net in (state.net, state.ema_net):
            pairs = zip(net.stages[name].variables, theirs.stages[name].variables, strict=True)
            for ours, other in pairs:
                np.testing.assert_array_equal(ours, other)
    # The new one is that of a run without initial weights.
    if head == "new":
        tf.keras.utils.set_random_seed(0)
        fresh = build.build_net(config, info)
        np.testing.assert_array_equal(state.net.head.dense.kernel, fresh.head.dense.kernel)
        np.testing.assert_array_equal(state.ema_net.head.dense.kernel, fresh.head.dense.kernel)


def variables(path):
    reader = tf.train.load_checkpoint(path)
    names = [name for name in reader.get_variable_to_shape_map() if name.endswith(VALUE)]
    return {name.removesuffix(VALUE): reader.get_tensor(name) for name in names}


def test_frozen_stages_are_the_same_bits_after_training(source, target):
    before, after = (variables(Run.open(x).checkpoint("best")) for x in (source, target[0]))
    stem = {name for name in after if name.startswith(("net/stem/", "ema_net/stem/"))}
    assert len(stem) == 10
    for name in stem:
        np.testing.assert_array_equal(after[name], before[f"ema_net/{name.partition('/')[2]}"])
    others = {name for name in after if name.startswith("net/stage_1/")}
    assert len(others) == 5
    for name in others:
        assert not np.array_equal(after[name], before[f"ema_{name}"]), name
    slots = {name for name in after if name.startswith("optimizer/momentum")}
    assert {name.split("/")[2] for name in slots} == {"stage_1", "head"}


def test_the_run_remembers_what_it_started_from(source, target):
    saved = read(target[0] / "config.json")
    assert saved["data"]["mean"] == list(DATASETS["digits"]().mean)
    assert saved["settings"]["init_from"] == str(source)
    assert saved["settings"]["freeze"] == ["stem"]
    assert saved["settings"]["head_learning_rate"] == 0.4
    assert len(saved["init_fingerprint"]) == 8


def test_the_head_has_a_multiple_of_the_rate(source):
    *_, step = made(source, "letters", learning_rate=0.1, head_learning_rate=0.4)
    assert step.settings.rate_multipliers == (1, 1, 1, 1, 1, 1, 4, 4)


@pytest.mark.slow
def test_the_update_of_the_head_has_its_own_rate(source):
    """By hand, without momentum: weights - rate * gradient, and 4 times the rate for the head."""
    _, _, state, step = made(
        source, "letters", freeze=("stem",), learning_rate=0.1, head_learning_rate=0.4,
        momentum=0.0, weight_decay=0.0, warmup_epochs=0.0, schedule="constant",
    )  # fmt: skip
    images, labels = letters().examples("train", range(64))
    batch = (tf.constant(images), tf.constant(labels, tf.int32))
    found = step.inspect(batch)
    before = [v.numpy() for v in state.net.trainable_variables]
    step.run(iter(tf.data.Dataset.from_tensors(batch)), tf.constant(1))
    rates = [0.1, 0.1, 0.1, 0.4, 0.4]
    for variable, old, gradient, its_rate in zip(
        state.net.trainable_variables, before, found.gradients, rates, strict=True
    ):
        assert np.abs(gradient).max() > 0
        np.testing.assert_allclose(variable, old - its_rate * gradient, rtol=1e-5, atol=1e-7)
    # There is no gradient of the stem's kernel.
    operations = step.inspect.get_concrete_function(batch).graph.get_operations()
    kinds = [operation.type for operation in operations]
    assert kinds.count("Conv2DBackpropFilter") == 1


def test_a_source_that_changes_is_refused_and_one_that_is_gone_is_not_needed(
    source, target, tmp_path, capsys
):
    run_dir, moved = tmp_path / "run", tmp_path / "source"
    shutil.copytree(source, moved)
    shutil.copytree(target[0], run_dir)
    config = run_dir / "config.json"
    config.write_text(config.read_text().replace(str(source), str(moved)))
    args = (*target[1], f"--run_dir={run_dir}", f"--init_from={moved}")
    best = next((moved / "best").glob("step-*.data-*"))
    content = bytearray(best.read_bytes())
    content[-1] ^= 1
    best.write_bytes(content)
    before = contents(run_dir)
    error = refused(capsys, "train.py", *args)
    assert "the run of --init_from has other weights than it had for the run" in error
    assert contents(run_dir) == before
    shutil.rmtree(moved)
    capsys.readouterr()
    call("train.py", *args)
    assert "This run is finished." in capsys.readouterr().out
    error = refused(capsys, "train.py", *args, "--freeze=stage_1")
    assert "--freeze is stage_1 here and stem in the run" in error


@pytest.fixture(scope="module")
def broken(source, tmp_path_factory):
    """Directories that are no good start, by name."""
    root = tmp_path_factory.mktemp("broken")
    (root / "empty").mkdir()
    for name in ("unfinished", "no_best", "damaged"):
        shutil.copytree(source, root / name)
    (root / "unfinished" / "result.json").unlink()
    shutil.rmtree(root / "no_best" / "best")
    path = next((root / "damaged" / "best").glob("step-*.data-*"))
    path.write_bytes(path.read_bytes()[:-100])
    return root


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--init_from={}/empty"],
            "--init_from: {}/empty is not a run directory: it has no",
        ),
        (["--init_from={}/none"], "--init_from={}/none is neither the word keras, nor a file of"),
        (["--init_from={}/unfinished"], "this run is not finished, so its best weights may still"),
        (["--init_from={}/no_best"], "--init_from={}/no_best: its checkpoint is missing; put it"),
        (["--init_from={}/damaged"], "--init_from: {}/damaged/best/step-0 does not restore this"),
        (["--init_from={}", "--net=resnet20"], "it is a run of tiny, not resnet20; use --net=tiny"),
        (["--init_from={}", "--stem=large"], "its net has the small stem; use --stem=small, or le"),
        (
            ["--init_from={}", "--dataset=colored"],
            "the weights are for images of 1 channels; those of colored have 3",
        ),
        (["--freeze=stem,stage_2"], "--freeze: tiny has no stage 'stage_2'; its stages: stem, st"),
        (["--freeze=head,stem,stage_1"], "--freeze: no stage of tiny is left to train"),
        (
            ["--freeze=head", "--head_learning_rate=1"],
            "--head_learning_rate: head is frozen",
        ),
    ],
)
def test_what_is_no_start_is_one_line(
    flags, message, source, broken, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    at = source if flags[0] == "--init_from={}" else broken
    error = refused(capsys, "train.py", *EPOCH, *(flag.format(at) for flag in flags))
    assert message.format(at) in error
    assert list(tmp_path.iterdir()) == []


SHORT = (
    "--epochs=2",
    "--batch_size=64",
    "--log_steps=4",
    "--deterministic",
    "--ema_decay=0.9",
    "--keep_checkpoints=2",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was really trained, and a run that started from it, with its arguments."""
    yield from _trained(tmp_path_factory.mktemp("trained"))
    disable_op_determinism()  # There is no public way back for the tests that follow.


def _trained(root):
    call("train.py", *TINY, *SHORT, f"--run_dir={root / 'source'}")
    args = (
        *TINY, *SHORT, "--dataset=letters", f"--init_from={root / 'source'}", "--freeze=stem",
        "--head_learning_rate=0.4", "--learning_rate=0.1",
    )  # fmt: skip
    call("train.py", *args, f"--run_dir={root / 'whole'}")
    yield root, args


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(trained, monkeypatch):
    """It is stopped at the step 8 of 23, and its source is gone when it is resumed."""
    root, args = trained
    monkeypatch.setitem(HOOKS, "stop", Stop)
    resumed = (*args, f"--run_dir={root / 'resumed'}")
    with pytest.raises(SystemExit):
        call("train.py", *resumed, "--hooks=stop")
    assert max(Run.open(root / "resumed").checkpoints) == 8
    (root / "source").rename(root / "elsewhere")
    call("train.py", *resumed)
    (root / "elsewhere").rename(root / "source")
    whole, again = (variables(Run.open(root / x).checkpoint("last")) for x in ("whole", "resumed"))
    assert whole.keys() == again.keys()
    del whole["save_counter"], again["save_counter"]
    for name, value in whole.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
    texts = [(root / name / "metrics.jsonl").read_bytes() for name in ("whole", "resumed")]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_other_commands_work_on_such_a_run(trained, tmp_path, capsys):
    root, _ = trained
    run_dir = root / "whole"
    result = Run.open(run_dir).result
    scores = call("eval.py", f"--run_dir={run_dir}")
    assert scores["loss"] == pytest.approx(result["loss"], rel=1e-6)
    call("train.py", *TINY, f"--init_from={run_dir}", "--dataset=letters", "--find_learning_rate",
         f"--run_dir={tmp_path / 'x'}")  # fmt: skip
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    call("predict.py", f"--run_dir={run_dir}", tmp_path / "a.png")
    weights = tmp_path / "weights.txt"
    call("export.py", f"--run_dir={run_dir}", f"--weights_txt={weights}", tmp_path / "model")
    assert "stem/conv/conv/kernel" in weights.read_text()
    assert "moving" not in weights.read_text()
    # From the initial weights, and from a checkpoint.
    for step, place in ((3, "the initial state"), (14, "/step-11,")):
        capsys.readouterr()
        found = call("replay.py", f"--run_dir={run_dir}", f"--step={step}")
        assert found["row"]["is_equal"] is True
        assert place in capsys.readouterr().out
    best = next((root / "source" / "best").glob("step-*.data-*"))
    content = best.read_bytes()
    best.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    error = refused(capsys, "replay.py", f"--run_dir={run_dir}", "--step=3")
    assert "does not hold the weights that" in error
    best.write_bytes(content)


@pytest.mark.slow
def test_replicas_make_the_same_updates(trained):
    root, args = trained
    runs = {}
    for replicas in (1, 2):
        runs[replicas] = call(
            "train.py", *args, "--batch_size=64", f"--num_gpus={replicas}", "--sync_batch_norm",
            "--epochs=1", f"--run_dir={root / str(replicas)}",
        )  # fmt: skip
    one, two = (variables(runs[n].checkpoint("last")) for n in (1, 2))
    for name, value in one.items():
        if name.startswith(("net/", "ema_net/", "optimizer/")):
            np.testing.assert_allclose(value, two[name], rtol=2e-3, atol=2e-4, err_msg=name)
        if "net/stem/" in name:
            np.testing.assert_array_equal(value, two[name])
