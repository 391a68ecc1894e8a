"""Options of train.py: several seeds, the range test, balanced classes, patience, verbosity."""

import csv
import re

import numpy as np
import pytest
from PIL import Image

from nets.net import Net
from tests.commands import helpers
from tests.commands.helpers import TINY, call, contents, read, refused, rows


@pytest.fixture(autouse=True, scope="module")
def _tiny_net():
    with helpers.tiny_net():
        yield


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """The directory of two runs made by one command, and the runs."""
    home = tmp_path_factory.mktemp("seeds")
    runs = call("train.py", *TINY, "--epochs=0.4", "--seeds=3,1", f"--run_dir={home / 'both'}")
    return home, runs


@pytest.mark.slow
def test_each_seed_gives_the_run_of_its_own_command(seeds):
    home, runs = seeds
    assert [run.path.name for run in runs] == ["seed_3", "seed_1"]
    assert [run.config.seed for run in runs] == [3, 1]
    alone = call("train.py", *TINY, "--epochs=0.4", "--seed=1", f"--run_dir={home / 'alone'}")
    for name in ("config.json", "metrics.jsonl", "predictions.npz"):
        assert (runs[1].path / name).read_bytes() == (alone.path / name).read_bytes(), name
    assert rows(runs[0].path) != rows(runs[1].path)


@pytest.mark.slow
def test_the_runs_of_several_seeds_are_compared(seeds, capsys):
    home, runs = seeds
    before = {**contents(home / "both"), "seed_3/lock": b"", "seed_1/lock": b""}
    call("train.py", *TINY, "--epochs=0.4", "--seeds=3,1", f"--run_dir={home / 'both'}")
    assert {**contents(home / "both"), "seed_3/lock": b"", "seed_1/lock": b""} == before
    out = capsys.readouterr().out
    mean = np.mean([run.result["top_1_accuracy"] for run in runs])
    assert out.index("seed   3, run 1 of 2") < out.index("seed   1, run 2 of 2")
    assert f"{100 * mean:.2f}" in out.splitlines()[-1] or f"{100 * mean:.2f}" in out


def test_wrong_seeds_are_refused(capsys):
    assert "--seeds=1,1: a seed is given twice" in refused(capsys, "train.py", "--seeds=1,1")
    assert "--seeds=1,x: expected" in refused(capsys, "train.py", "--seeds=1,x")


def test_the_range_test_suggests_a_rate_and_makes_no_run(tmp_path, capsys):
    run_dir = tmp_path / "run"
    found = call("train.py", *TINY, "--find_learning_rate", f"--run_dir={run_dir}")
    assert found is None
    assert {p.name for p in tmp_path.iterdir()} == {
        "run.learning_rate.png",
        "run.learning_rate.csv",
    }
    *_, curve, suggestion = capsys.readouterr().out.splitlines()
    assert curve == f"curve  {run_dir}.learning_rate.png"
    rate = float(re.fullmatch(r"rate   --learning_rate=(.*)", suggestion)[1])
    assert 0.002 < rate < 2
    with Image.open(f"{run_dir}.learning_rate.png") as image:
        assert min(image.size) > 300
    with open(f"{run_dir}.learning_rate.csv") as file:
        header, *lines = csv.reader(file)
    assert header == ["learning_rate", "loss", "smoothed_loss"]
    table = np.array(lines, float)
    assert table[0, 0] == pytest.approx(2e-5, rel=1e-3)
    assert rate == pytest.approx(table[table[:, 2].argmin(), 0] / 10, rel=0.06)


@pytest.mark.slow
def test_the_range_test_is_at_full_size(tmp_path):
    losses = []
    for sizes in ("none", "5:0.9"):
        run_dir = tmp_path / sizes[0]
        flags = ("--find_learning_rate", f"--train_sizes={sizes}", f"--run_dir={run_dir}")
        call("train.py", *TINY, *flags)
        with open(f"{run_dir}.learning_rate.csv") as file:
            losses.append([float(row["loss"]) for row in csv.DictReader(file)][:9])
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """A folder with 40 dark images of one class and 8 bright ones of another."""
    directory, generator = tmp_path_factory.mktemp("uneven"), np.random.default_rng(0)
    for split in ("train", "test"):
        for name, count, level in (("dark", 40, 90), ("light", 8, 160)):
            (directory / split / name).mkdir(parents=True)
            for i in range(count):
                noise = generator.normal(level, 30, (8, 8, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(noise).save(directory / split / name / f"{i}.png")
    return directory


FOLDER = ("--net=tiny", "--dataset=folder", "--image_size=8", "--batch_size=16", "--device=cpu")


@pytest.mark.slow
def test_balanced_classes_change_the_training(uneven, tmp_path):
    """Loss of the first step: with equal weights, with class weights, with balanced sampling."""
    args = (*FOLDER, f"--data_dir={uneven}", "--epochs=0.2", "--augment=none", "--log_steps=1")
    runs = {}
    for flag in ("--seed=0", "--class_weights=balanced", "--sampling=balanced"):
        runs[flag] = call("train.py", *args, flag, f"--run_dir={tmp_path / flag}")
    first = {flag: rows(run.path, "train")[0]["loss"] for flag, run in runs.items()}
    assert len(set(first.values())) == 3
    config = read(runs["--sampling=balanced"].path / "config.json")["settings"]
    assert (config["sampling"], config["class_weights"]) == ("balanced", "none")


def test_class_weights_reach_the_loss(uneven):
    from commands import build, session
    from commands.config import Config

    config = Config(
        net="tiny", dataset="folder", data_dir=str(uneven), image_size=8, batch_size=16,
        class_weights="balanced",
    )  # fmt: skip
    dataset = build.load_data(config)
    config = build.resolve(config, dataset)
    labels = dataset.splits["train"].labels
    settings = session.step_settings(config, build.data_info(dataset), labels, Net())
    # 36 and 7 images are left for training.
    np.testing.assert_allclose(settings.class_weights, [43 / (2 * 36), 43 / (2 * 7)])


def test_balancing_twice_is_refused(capsys):
    line = refused(capsys, "train.py", "--sampling=balanced", "--class_weights=balanced")
    assert "balance the classes twice" in line


def test_patience_needs_a_validation_split(capsys):
    line = refused(capsys, "train.py", "--patience=2", "--val_fraction=0")
    assert "--patience needs a validation split" in line


@pytest.mark.slow
def test_patience_ends_a_run(tmp_path, capsys):
    """The rate is so high that the accuracy goes up and down."""
    args = (*TINY, "--epochs=20", "--patience=2", "--learning_rate=3", "--schedule=constant")
    run = call("train.py", *args, f"--run_dir={tmp_path / 'run'}")
    val = rows(run.path, "val")
    ranks = [(row["top_1_accuracy"], -row["loss"]) for row in val]
    assert len(val) < 20
    assert ranks.index(max(ranks)) == len(val) - 3
    for end in range(3, len(val)):  # It did not stop too late.
        assert ranks[:end].index(max(ranks[:end])) > end - 3
    assert run.result["step"] == val[-3]["step"]
    out = capsys.readouterr().out
    assert f"stopped early at step {val[-1]['step']}: no improvement on val for 2 epochs" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    "verbosity", [*(pytest.param(x, marks=pytest.mark.slow) for x in (0, 1)), 2]
)
def test_verbosity(tmp_path, capsys, verbosity):
    args = (*TINY, "--epochs=1", "--log_steps=2", f"--verbosity={verbosity}")
    run = call("train.py", *args, f"--run_dir={tmp_path / 'run'}")
    lines = capsys.readouterr().out.splitlines()
    scored = f"top-1 {run.result['top_1_accuracy']:.2%}"
    if verbosity == 0:
        (line,) = lines
        assert line.startswith("test   loss ")
        assert scored in line
    steps = [line for line in lines if re.match(r"  step \d+  train loss .* lr ", line)]
    assert len(steps) == (len(rows(run.path, "train")) if verbosity == 2 else 0)
    assert any(line.startswith("epoch 1/1") for line in lines) == (verbosity > 0)


@pytest.mark.slow
def test_the_summary_has_the_figures_of_every_split(tmp_path, capsys):
    run = call("train.py", *TINY, "--epochs=2", f"--run_dir={tmp_path / 'run'}")
    lines = capsys.readouterr().out.splitlines()
    start = next(
        i for i, line in enumerate(lines) if line.split() == ["loss", "top-1", "top-5", "ECE"]
    )
    table = [line.split()[:3] for line in lines[start + 1 : start + 5]]
    train, val = rows(run.path, "train"), rows(run.path, "val")
    assert table[0] == ["train", f"{train[-1]['loss']:.4f}", f"{train[-1]['top_1_accuracy']:.2%}"]
    best = next(row for row in val if row["step"] == run.result["step"])
    assert table[1] == ["val", f"{best['loss']:.4f}", f"{best['top_1_accuracy']:.2%}"]
    test = next(cells for cells in table if cells[0] == "test")
    assert test[1:] == [f"{run.result['loss']:.4f}", f"{run.result['top_1_accuracy']:.2%}"]


@pytest.mark.slow
def test_nothing_but_results_is_printed_for_many_seeds(tmp_path):
    """TensorFlow would warn of the functions that each run traces."""
    args = (*TINY, "--epochs=0.1", "--verbosity=0")
    many = (*args, "--seeds=0,1,2,3,4,5", f"--run_dir={tmp_path / 'runs'}")
    (out,) = helpers.finish(helpers.Command("train.py", *many))
    assert [line.split()[0] for line in out.splitlines()[:6]] == ["test"] * 6
    # The last one is bit for bit that of a process of its own.
    args = (*args, "--seed=5", f"--run_dir={tmp_path / 'alone'}")
    helpers.finish(helpers.Command("train.py", *args))
    for name in ("metrics.jsonl", "predictions.npz"):
        alone = (tmp_path / "alone" / name).read_bytes()
        assert (tmp_path / "runs" / "seed_5" / name).read_bytes() == alone, name
