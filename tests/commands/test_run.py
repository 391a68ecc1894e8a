"""The handle on a run, and what is scored with it: only what the run was trained on and with."""

import collections
import os
import pathlib
import re
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

import nets
from commands import evaluate as evaluation
from commands import options as configuration
from commands import provenance
from commands.run import Run
from commands.setting import ConfigError
from data import DATASETS, Dataset
from data.source import ArraySource
from loops.errors import RunError
from loops.hook import Hook
from loops.hooks import HOOKS
from nets import pretrained
from nets.layers import ConvBatchNorm, Head, SmallStem
from tests.commands import helpers
from tests.commands.helpers import ROOT, TINY, call, contents, read, refused, rows


@pytest.fixture(autouse=True, scope="module")
def tiny_net():
    with helpers.tiny_net() as net:
        yield net


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of a finished run: 2 epochs of 6 and 5 steps."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    call("train.py", *TINY, "--epochs=2", "--ema_decay=0.5", f"--run_dir={run_dir}")
    return run_dir


class Stop(Hook):
    """Interrupts at the first row."""

    def on_log(self, trainer, row):
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def start(monkeypatch):
    """Starts a run, which is stopped and saved at step 2; returns the arguments to resume it."""
    monkeypatch.setitem(HOOKS, "stop", Stop)

    def start(run_dir, *more):
        args = (*TINY, "--epochs=1", "--log_steps=2", *more, f"--run_dir={run_dir}")
        with pytest.raises(SystemExit) as caught:
            call("train.py", *args, "--hooks=stop")
        assert caught.value.code == 128 + signal.SIGTERM
        assert Run.open(run_dir).checkpoints.keys() == {0, 2}
        return args

    return start


def test_the_handle_on_a_run(finished):
    run = Run.open(str(finished))
    assert run.path == finished
    assert (run.config.net, run.config.epochs, run.config.ema_decay) == ("tiny", 2.0, 0.5)
    assert run.config.learning_rate == 0.2  # Which is the default of the optimizer.
    assert run.data.examples == {"train": 1295, "test": 359, "val": 143}
    assert run.data.class_names == tuple(map(str, range(10)))
    assert [row["split"] for row in run.metrics] == ["train", "val", "train", "val", "test"]
    assert run.metrics == rows(finished)
    assert run.result == read(finished / "result.json")
    assert run.checkpoints == {n: f"{finished}/checkpoints/step-{n}" for n in (0, 6, 11)}
    best = f"{finished}/best/step-{run.result['step']}"
    assert run.checkpoint() == run.checkpoint("best") == best
    assert run.checkpoint("last") == run.checkpoints[11]
    assert run.checkpoint("checkpoints/step-6") == run.checkpoints[6]


def test_the_net_and_the_data_of_a_run(finished):
    """The averages, and the examples as in training: together they give the reported accuracy."""
    run = Run.open(finished)
    net, dataset = run.net(checkpoint="best"), run.dataset()
    reader = tf.train.load_checkpoint(run.checkpoint("best"))
    kernel = reader.get_tensor("ema_net/head/dense/_kernel/.ATTRIBUTES/VARIABLE_VALUE")
    np.testing.assert_array_equal(net.head.dense.kernel, kernel)
    images, labels = dataset.examples("test", range(359))
    found = net(images, training=False).numpy().argmax(axis=-1)
    assert (found == labels).mean() == pytest.approx(run.result["top_1_accuracy"])
    assert {split: len(x.labels) for split, x in dataset.splits.items()} == run.data.examples


def test_a_run_that_is_not_finished(tmp_path, start):
    start(tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert run.result is None
    assert [row["step"] for row in run.metrics] == [2]
    with pytest.raises(RunError, match="--checkpoint=last scores the last state"):
        run.net()
    assert run.net("last").built


def test_what_is_no_run(tmp_path):
    with pytest.raises(RunError, match="is not a run directory: it is not a directory"):
        Run.open(tmp_path / "none")
    with pytest.raises(RunError, match=r"is not a run directory: it has no config\.json"):
        Run.open(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="it has no settings"):
        Run.open(tmp_path)


def test_the_lines_of_the_readme(finished, capsys, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if block.startswith("from commands.run import Run\n")]
    assert len([line for line in block.splitlines() if line]) == 6
    (path,) = re.findall(r'"(runs/[^"]+)"', block)
    monkeypatch.chdir(ROOT)
    variables = {}
    exec(block.replace(path, str(finished)), variables)
    first, second = capsys.readouterr().out.split("\n", 1)
    run = Run.open(finished)
    assert first == f"{run.config.learning_rate} {run.metrics[-1]} {run.result}"
    predictions, labels = re.findall(r"\[([\d\s]+)\]", second)
    source = variables["dataset"].splits["test"]
    np.testing.assert_array_equal(labels.split(), source.labels[:8].astype(str))
    assert len(predictions.split()) == 8


def write_images(root, count, classes=("blue", "red")):
    for number, name in enumerate(classes):
        for i in range(count):
            path = root / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (200 * number, 10 * i, 200)).save(path)
    return root


@pytest.mark.slow
def test_files_that_were_added_are_not_scored(tmp_path, capsys):
    """The splits would be others: what was trained on could be in them."""
    write_images(tmp_path / "images", 10)
    run = f"--run_dir={tmp_path / 'run'}"
    call(
        "train.py", "--net=tiny", "--dataset=folder", f"--data_dir={tmp_path / 'images'}", run,
        "--image_size=8", "--batch_size=8", "--epochs=1",
    )  # fmt: skip
    call("eval.py", run, "--split=val")
    capsys.readouterr()
    write_images(tmp_path / "images", 20, ["red"])
    for split in ("train", "val", "test"):
        error = refused(capsys, "eval.py", run, f"--split={split}")
        assert f"the {split} split of images is not the one that {tmp_path / 'run'} was" in error
        assert "files were added, removed or changed. Restore them" in error
    # The advice: they can be scored as other data.
    call("eval.py", run, "--dataset=folder", f"--data_dir={tmp_path / 'images'}")
    assert "(30 examples)" in capsys.readouterr().out


@pytest.mark.slow
def test_a_split_that_is_the_same_is_scored_although_another_is_not(tmp_path, capsys):
    """As of a run whose training data are not there."""
    for split in ("train", "test"):
        write_images(tmp_path / "images" / split, 10)
    run = f"--run_dir={tmp_path / 'run'}"
    call(
        "train.py", "--net=tiny", "--dataset=folder", f"--data_dir={tmp_path / 'images'}", run,
        "--image_size=8", "--batch_size=8", "--epochs=1",
    )  # fmt: skip
    write_images(tmp_path / "images" / "train", 11)
    call("eval.py", run)
    assert "(20 examples)" in capsys.readouterr().out
    assert "the val split of" in refused(capsys, "eval.py", run, "--split=val")


class WorseInTheEnd(Hook):
    """Makes the state at the end of the second epoch a bad one."""

    def on_log(self, trainer, row):
        if trainer.step == 11:
            kernel = trainer.state.net.head.dense.kernel
            kernel.assign(1000 * kernel)


@pytest.mark.slow
def test_the_result_names_the_checkpoint_that_was_scored(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(HOOKS, "worse", WorseInTheEnd)
    args = (*TINY, "--epochs=2", "--best_metric=loss", f"--run_dir={tmp_path / 'run'}")
    call("train.py", *args, "--hooks=worse")
    before = read(tmp_path / "run" / "result.json")
    assert before["checkpoint"] == f"{tmp_path}/run/best/step-6"
    # Without `best/`, it is among the last ones.
    shutil.rmtree(tmp_path / "run" / "best")
    (tmp_path / "run" / "result.json").unlink()
    call("train.py", *args)
    after = read(tmp_path / "run" / "result.json")
    assert after == {**before, "checkpoint": f"{tmp_path}/run/checkpoints/step-6"}
    assert pathlib.Path(after["checkpoint"] + ".index").exists()
    # Of a run without a validation split it is the last.
    args = (*TINY, "--epochs=0.1", "--val_fraction=0", f"--run_dir={tmp_path / 'other'}")
    call("train.py", *args)
    found = read(tmp_path / "other" / "result.json")
    assert found["checkpoint"] == f"{tmp_path}/other/checkpoints/step-1"


def write_digits(root, labels):
    for i, label in enumerate(labels):
        path = root / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 30), 20 * label).save(path)
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "labels", "split"),
    [
        (".", range(10), "test"),  # One image per class.
        (".", [3, 3, 7], "test"),  # Some of the classes only.
        ("test", range(10), "test"),  # There is nothing else.
        ("val", [1, 2], "val"),
    ],
)
def test_a_folder_is_scored_as_it_is(finished, tmp_path, capsys, place, labels, split):
    write_digits(tmp_path / "photos" / place, labels)
    before = contents(finished)
    call(
        "eval.py", f"--run_dir={finished}", "--dataset=folder", f"--split={split}",
        f"--data_dir={tmp_path / 'photos'}", f"--json={tmp_path / 'scores'}",
    )  # fmt: skip
    found = read(tmp_path / "scores")
    assert (found["examples"], found["split"]) == (len(labels), split)
    per_class = [found["per_class"][str(i)] for i in range(10)]
    assert [x is not None for x in per_class] == [i in labels for i in range(10)]
    counts = [list(labels).count(i) for i in range(10)]
    correct = sum(n * x for n, x in zip(counts, per_class, strict=True) if n)
    assert correct / len(labels) == pytest.approx(found["top_1_accuracy"])
    assert contents(finished) == before


def test_a_folder_that_does_not_fit_is_refused(finished, tmp_path, capsys):
    args = ("eval.py", f"--run_dir={finished}", "--dataset=folder")
    assert "needs --data_dir" in refused(capsys, *args)
    write_digits(tmp_path / "test", [1])
    error = refused(capsys, *args, f"--data_dir={tmp_path}", "--split=val")
    assert "has classes that the net does not know: test; it knows 0, 1," in error
    (tmp_path / "empty" / "1").mkdir(parents=True)
    error = refused(capsys, *args, f"--data_dir={tmp_path / 'empty'}")
    assert "has no images (.jpg, .jpeg, .png); add some, or remove the class" in error


def points(directory):
    """How often TensorBoard has each point: by tag and step."""
    events = EventAccumulator(str(directory), size_guidance={"tensors": 0}).Reload()
    return collections.Counter(
        (tag, event.step) for tag in events.Tags()["tensors"] for event in events.Tensors(tag)
    )


@pytest.fixture
def never_waits(monkeypatch):
    def sleep(seconds):
        raise AssertionError("waits for a training that is not there")

    monkeypatch.setattr(evaluation.time, "sleep", sleep)


@pytest.mark.slow
def test_follow_again_adds_only_what_is_new(tmp_path, start, capsys, never_waits):
    run_dir = tmp_path / "run"
    args = start(run_dir)
    follow = ("eval.py", f"--run_dir={run_dir}", "--follow", "--split=val")
    for _ in range(2):  # It ends although the run is not finished.
        call(*follow)
        assert f"no process is training in {run_dir}" in capsys.readouterr().out
        assert {step for _, step in points(run_dir / "follow" / "val")} == {0, 2}
    call("train.py", *args)
    for _ in range(2):
        call(*follow)
        assert "no process" not in capsys.readouterr().out
        found = points(run_dir / "follow" / "val")
        assert set(found.values()) == {1}
        assert {step for _, step in found} == {0, 2, 6}
        tags = {tag for tag, _ in found}
        assert {"curves/loss", "curves/top_1_accuracy", "curves/top_1_error"} < tags
    assert [row["step"] for row in rows(run_dir / "follow" / "val")] == [0, 2, 6]
    last, val = rows(run_dir / "follow" / "val")[-1], rows(run_dir, "val")[-1]
    assert last == pytest.approx(val)


@pytest.mark.slow
def test_two_splits_can_be_followed_at_once(finished, tmp_path, monkeypatch, never_waits):
    """One process after the other writes, and none takes away what another has written."""
    run_dir = shutil.copytree(finished, tmp_path / "run")
    follow = ("eval.py", f"--run_dir={run_dir}", "--follow")
    restore, others = Run.restore, [(*follow, "--split=test")]

    def restore_meanwhile(self, net, path):
        if others:
            call(*others.pop())
        return restore(self, net, path)

    monkeypatch.setattr(Run, "restore", restore_meanwhile)
    call(*follow, "--split=val")
    for _ in range(2):
        for split in ("val", "test"):
            call(*follow, f"--split={split}")
            found = points(run_dir / "follow" / split)
            assert {step for _, step in found} == {0, 6, 11}
            assert set(found.values()) == {1}
            found = rows(run_dir / "follow" / split)
            assert [(row["split"], row["step"]) for row in found] == [
                (split, step) for step in (0, 6, 11)
            ]


@pytest.mark.slow
def test_a_changed_file_of_initial_weights_is_refused(tmp_path, monkeypatch, capsys, start):
    """A file that is gone is not needed."""
    monkeypatch.setattr(pretrained, "load", lambda *args, **kwargs: "model")
    monkeypatch.setattr(pretrained, "copy_weights", lambda *args: True)
    monkeypatch.setattr(pretrained, "normalization", lambda net: ((0.3,), (0.4,)))
    weights = tmp_path / "weights.h5"
    weights.write_bytes(b"weights")
    args = start(tmp_path / "run", f"--init_from={weights}")
    assert "weights.h5; the head is included" in capsys.readouterr().out
    weights.write_bytes(b"WEIGHTS")
    before = contents(tmp_path / "run")
    error = refused(capsys, "train.py", *args)
    assert "the file of --init_from has other contents than it had for the run" in error
    assert contents(tmp_path / "run") == before
    weights.unlink()
    call("train.py", *args)
    assert "resumes at step 2" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "saved", ["resnet20_projection", pytest.param("resnet20", marks=pytest.mark.slow)]
)
def test_a_checkpoint_of_another_net_is_not_scored(finished, tmp_path, capsys, saved):
    """One with more variables, and one with fewer, in a run of the other net."""
    (net,) = {"resnet20", "resnet20_projection"} - {saved}
    config = read(finished / "config.json")
    config["settings"].update(net=net, ema_decay=0)
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "config.json").write_text(helpers.json.dumps(config))
    other = nets.build(saved, num_classes=10, image_shape=(8, 8, 1), stem="small")
    parts = {"net": other, "optimizer": {"iterations": tf.Variable(7, dtype=tf.int64)}}
    tf.train.Checkpoint(**parts).write(f"{run_dir}/checkpoints/step-7")
    flags = ("--checkpoint=last", "--allow_changes")
    error = refused(capsys, "eval.py", f"--run_dir={run_dir}", *flags)
    phrase = "it also has" if saved == "resnet20_projection" else "it lacks"
    assert f"{run_dir}/checkpoints/step-7 does not restore this net: {phrase} net/" in error
    assert "shortcut" in error
    # In a run of its own net it is scored.
    config["settings"].update(net=saved)
    (run_dir / "config.json").write_text(helpers.json.dumps(config))
    call("eval.py", f"--run_dir={run_dir}", *flags)
    assert "(359 examples)" in capsys.readouterr().out


def changed(tiny, **change):
    """The small net with a change that leaves the names and shapes of all variables."""

    class Changed(tiny):
        def __init__(self, num_classes, *, stem="small"):
            super().__init__(num_classes, stem=stem)
            self.stem = SmallStem(8)
            self.stage_1 = ConvBatchNorm(16, 3, **{"strides": 2, **change})
            self.head = Head(num_classes, dropout=0.1)

    return Changed


def test_a_run_whose_net_has_changed_is_not_resumed(tmp_path, monkeypatch, capsys, start, tiny_net):
    args = start(tmp_path / "run")
    before = contents(tmp_path / "run")
    monkeypatch.setitem(nets.NETS, "tiny", changed(tiny_net, relu=False))
    assert "the operations of tiny have changed" in refused(capsys, "train.py", *args)
    assert contents(tmp_path / "run") == before


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"relu": False}, {"strides": 1}], ids=["relu", "strides"])
def test_a_run_whose_net_has_changed_is_resumed_only_if_allowed(
    tmp_path, monkeypatch, capsys, start, tiny_net, change
):
    run_dir = tmp_path / "run"
    args = start(run_dir)
    before = contents(run_dir)
    monkeypatch.setitem(nets.NETS, "tiny", changed(tiny_net, **change))
    error = refused(capsys, "train.py", *args)
    assert f"since {run_dir} was trained, the operations of tiny have changed (fing" in error
    assert "Undo the change, start another run, or continue this one with --allow_cha" in error
    assert contents(run_dir) == before
    call("train.py", *args, "--allow_changes")
    out = capsys.readouterr().out
    assert "continuing although the operations of tiny have changed (fingerprint" in out
    assert "resumes at step 2" in out
    code = read(run_dir / "config.json")["code"]
    assert [entry["from_step"] for entry in code] == [0, 2]
    assert code[0]["net"] != code[1]["net"]
    assert code[0]["versions"] == code[1]["versions"]
    # From now on it is the net of the run, and the former one is not.
    (run_dir / "result.json").unlink()
    call("train.py", *args)
    assert read(run_dir / "config.json")["code"] == code
    (run_dir / "result.json").unlink()
    monkeypatch.setitem(nets.NETS, "tiny", tiny_net)
    assert "have changed" in refused(capsys, "train.py", *args)


@pytest.mark.slow
def test_the_same_operations_in_other_words_are_no_change(
    tmp_path, monkeypatch, capsys, start, tiny_net
):
    args = start(tmp_path / "run")
    (before,) = read(tmp_path / "run" / "config.json")["code"]
    assert before["from_step"] == 0
    assert before["versions"].keys() == {"python", "tensorflow", "keras", "numpy"}
    monkeypatch.setitem(nets.NETS, "tiny", changed(tiny_net))
    call("train.py", *args)
    assert "resumes at step 2" in capsys.readouterr().out
    assert read(tmp_path / "run" / "config.json")["code"] == [before]


@pytest.mark.slow
def test_a_run_of_other_versions_is_resumed_only_if_allowed(tmp_path, monkeypatch, capsys, start):
    args = start(tmp_path / "run")
    monkeypatch.setattr(keras, "__version__", "4.0")
    assert "was trained, keras is 4.0 and was 3." in refused(capsys, "train.py", *args)
    call("train.py", *args, "--allow_changes")
    assert "continuing although keras is 4.0 and was 3." in capsys.readouterr().out
    code = read(tmp_path / "run" / "config.json")["code"]
    assert [entry["from_step"] for entry in code] == [0, 2]
    assert code[0]["net"] == code[1]["net"]
    assert code[1]["versions"] == {**code[0]["versions"], "keras": "4.0"}


@pytest.fixture
def edit_sources(monkeypatch):
    """Changes the code of the project."""

    def edit(text):
        monkeypatch.setattr(provenance, "_statements", lambda path: text)
        provenance.sources.cache_clear()

    yield edit
    provenance.sources.cache_clear()


@pytest.mark.slow
def test_a_change_of_other_code_is_said_and_recorded(
    tmp_path, capsys, start, edit_sources, monkeypatch
):
    """Such as that of a loss, which the fingerprint of the net does not cover."""
    run_dir = tmp_path / "run"
    args = start(run_dir)
    (before,) = read(run_dir / "config.json")["code"]
    assert before["sources"] == provenance.sources()
    assert "has changed" not in capsys.readouterr().out
    # A start that makes no step, as that with a mistake in a new loss, leaves no trace.
    edit_sources("return 0")
    with monkeypatch.context() as patch:
        patch.setattr("loops.trainer.Trainer.run", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call("train.py", *args)
    edit_sources("return 1")
    call("train.py", *args)
    out = capsys.readouterr().out
    said = (
        "note   the code in nets/, data/, loops/ or commands/session.py has changed since this run "
    )
    assert f"{said}was last started; it continues with the code as it is now\n" in out
    assert "resumes at step 2" in out
    code = read(run_dir / "config.json")["code"]
    assert code == [before, {**before, "from_step": 2, "sources": provenance.sources()}]
    assert code[1]["sources"] != code[0]["sources"]
    # The finished run is of the code as it was.
    call("train.py", *args)
    out = capsys.readouterr().out
    assert "has changed" not in out
    assert "--hooks" not in out
    call("train.py", *args, "--hooks=stage_norms")
    assert "note   --hooks are called in training, which is over\n" in capsys.readouterr().out
    edit_sources("return 2")
    call("train.py", *args)
    out = capsys.readouterr().out
    assert "This run is finished." in out
    assert f"{said}was trained\n" in out
    assert read(run_dir / "config.json")["code"] == code


def test_a_changed_net_is_scored_only_if_allowed(finished, capsys, monkeypatch, tiny_net):
    monkeypatch.setitem(nets.NETS, "tiny", changed(tiny_net, relu=False))
    error = refused(capsys, "eval.py", f"--run_dir={finished}")
    assert "the operations of tiny have changed since" in error
    with pytest.raises(RunError, match="have changed since"):
        Run.open(finished).net()
    assert call("eval.py", f"--run_dir={finished}", "--allow_changes")["examples"] == 359
    assert Run.open(finished).net(allow_changes=True).built


def wide(data_dir=None):
    """Noise of 8x12 pixels in two classes."""
    del data_dir
    generator = np.random.default_rng(0)
    sources = {
        split: ArraySource(
            generator.integers(0, 256, (size, 8, 12, 1), np.uint8), np.arange(size) % 2
        )
        for split, size in (("train", 60), ("test", 20))
    }
    return Dataset("wide", ("a", "b"), sources, mean=(0.5,), std=(0.3,))


@pytest.mark.slow
def test_images_that_are_not_square(tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS, "wide", wide)
    args = ("--net=tiny", "--dataset=wide", "--batch_size=20", "--epochs=1", "--device=cpu")
    call("train.py", *args, f"--run_dir={tmp_path / 'run'}")
    run = Run.open(tmp_path / "run")
    assert (run.config.image_size, run.data.image_shape) == (None, (8, 12, 1))
    assert run.dataset().examples("test", [0, 1])[0].shape == (2, 8, 12, 1)
    result = call("eval.py", f"--run_dir={tmp_path / 'run'}")
    assert result["top_1_accuracy"] == run.result["top_1_accuracy"]


def test_examples_are_normalized_as_in_training(finished, tmp_path):
    """As with --init_from, where the initial weights decide how."""
    shutil.copytree(finished, tmp_path / "run")
    config = read(finished / "config.json")
    config["data"].update(mean=[0.5], std=[0.25])
    (tmp_path / "run" / "config.json").write_text(helpers.json.dumps(config))
    pixels, _ = Run.open(finished).dataset().examples("test", [0])
    images, _ = Run.open(tmp_path / "run").dataset().examples("test", [0])
    np.testing.assert_allclose(images, ((pixels * 0.375 + 0.306) - 0.5) / 0.25, atol=1e-5)


@pytest.mark.slow
def test_a_run_opens_and_resumes_without_the_hook_that_it_had(tmp_path, monkeypatch, start):
    args = start(tmp_path / "run")
    monkeypatch.delitem(HOOKS, "stop")
    assert Run.open(tmp_path / "run").config.hooks == ("stop",)
    call("train.py", *args)
    assert Run.open(tmp_path / "run").result["step"] == 6


def test_a_handle_holds_in_another_working_directory(finished, monkeypatch, tmp_path):
    monkeypatch.chdir(finished.parent)
    run = Run.open(finished.name)
    monkeypatch.chdir(tmp_path)
    assert run.result == read(finished / "result.json")


def test_the_code_that_a_checkpoint_was_trained_with_counts(finished, tmp_path):
    """After a change that was allowed at step 6, the states up to step 6 are of the old net."""
    shutil.copytree(finished, tmp_path / "run")
    config = read(finished / "config.json")
    (code,) = config["code"]
    config["code"] = [code, {**code, "from_step": 6, "net": "another"}]
    (tmp_path / "run" / "config.json").write_text(helpers.json.dumps(config))
    run = Run.open(tmp_path / "run")
    run.check_operations(code["net"], 6)
    run.check_operations("another", 7)
    run.check_operations(code["net"], 0)
    for fingerprint, step in ((code["net"], 7), ("another", 6), ("another", 0)):
        with pytest.raises(RunError, match="have changed since"):
            run.check_operations(fingerprint, step)


def test_square_images_need_their_size(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    config = read(finished / "config.json")
    config["settings"]["image_size"] = None
    (tmp_path / "run" / "config.json").write_text(helpers.json.dumps(config))
    error = refused(capsys, "eval.py", f"--run_dir={tmp_path / 'run'}")
    assert "--image_size=None, but data.image_shape is (8, 8, 1)" in error


def test_options_of_a_notebook(finished, capsys):
    """Paths are accepted as `pathlib` makes them, and values are checked."""
    options = configuration.EvaluateOptions(run_dir=finished, device="cpu")
    assert evaluation.evaluate(options)["examples"] == 359
    capsys.readouterr()
    with pytest.raises(ConfigError, match="--num_gpus=0: expected"):
        evaluation.evaluate(configuration.EvaluateOptions(run_dir=finished, num_gpus=0))


def test_a_working_directory_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(RunError, match="the working directory does not exist"):
        Run.open("run")
