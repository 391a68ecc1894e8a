"""The page of results."""

import contextlib
import json
import pathlib
import shutil
import time
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from commands import records, results, train
from commands.records import FILES
from commands.results import read_published
from commands.run import Run
from commands.setting import ConfigError
from loops.schedule import Plan
from tests.commands import helpers
from tests.commands.helpers import TINY, call, read, refused

pytestmark = pytest.mark.slow
ACCURACY = "top_1_accuracy"
LAST = ("--epochs=1.5", "--val_fraction=0", "--tta=flip", "--precision=tf32")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of two recipes, `small` with two seeds and `b|c` with one."""
    root = tmp_path_factory.mktemp("project")
    recipes, directory = root / "recipes", root / "results"
    recipes.mkdir()
    (recipes / "base.txt").write_text("\n".join(TINY[1:]))
    (recipes / "small.txt").write_text(f"--flagfile=recipes/base.txt\n{TINY[0]}\n--epochs=1\n")
    (recipes / "b|c.txt").write_text("\n".join([*TINY, *LAST]))
    (recipes / "other.txt").write_text("\n".join([*TINY, "--epochs=1", "--momentum=0.8"]))
    with helpers.tiny_net(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "RECIPES", recipes)
        patch.setattr(train, "commit", lambda: "abc1234")
        small = (*TINY, "--epochs=1", "--seeds=0,1")
        began = time.monotonic()
        call("train.py", *small, f"--run_dir={directory / 'small'}")
        seconds = time.monotonic() - began
        call("train.py", *TINY, *LAST, f"--run_dir={directory / 'b|c' / 'seed_0'}")
        yield types.SimpleNamespace(directory=directory, seconds_of_small=seconds)


@pytest.fixture
def copy(runs, tmp_path):
    """A copy of the records of `runs`, to change."""
    for source in runs.directory.glob("*/*"):
        target = tmp_path / "results" / source.parent.name / source.name
        target.mkdir(parents=True)
        for name in records.FILES:
            shutil.copy(source / name, target / name)
    return tmp_path / "results"


def change(path, edit):
    """Changes the content of a JSON file."""
    content = read(path)
    edit(content)
    path.write_text(json.dumps(content))


def table(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line[1:-1].split(" | ")] for line in lines)
    return [dict(zip(header, row, strict=True)) for row in rows]


def change_row(root, split, run="small/seed_1", **values):
    """Changes values in the rows of a split in the log of a run, and in its result for test."""
    path = root / run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["split"] == split:
            row.update(values)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if split == "test":
        change(root / run / "result.json", lambda x: x.update(values))


def test_rows_are_made_of_records_alone(copy, tmp_path, monkeypatch, capsys):
    print_of_test = Run.open(copy / "small" / "seed_0").data.fingerprints["test"]
    published = tmp_path / "published.toml"
    published.write_text(
        '[recipes.small]\naccuracy = 91.25\nsource = "somebody"\n'
        f'[data]\n"{print_of_test}" = "a copy"\n'
    )
    monkeypatch.setattr(results, "PUBLISHED", published)
    for seed, seconds in enumerate(((10, 20, 3, 2), (30, 44, 5, 4))):
        names = ("start", "training", "evaluation", "pictures")
        times = {"seconds": dict(zip(names, seconds, strict=True)), "processes": 1 + seed}
        times |= {"machine": f"m{seed}", "commit": f"c{seed}"}
        change(copy / "small" / f"seed_{seed}" / "times.json", lambda x, t=times: x.update(t))
    change(copy / "b|c" / "seed_0" / "times.json", lambda x: x["seconds"].pop("pictures"))
    change(copy / "b|c" / "seed_0" / "times.json", lambda x: x.update(machine="m\n2"))
    versions = {"tensorflow": "1.0", "keras": "2.0"}
    change(
        copy / "small" / "seed_1" / "config.json",
        lambda x: x["code"][0]["versions"].update(versions),
    )
    change_row(copy, "test", **{ACCURACY: 90 / 359})
    call("compare.py", copy, "--format=results")
    first, second = table(capsys.readouterr().out)
    scores = [100 * read(copy / "small" / f"seed_{n}" / "result.json")[ACCURACY] for n in (0, 1)]
    assert first["recipe"] == r"`b\|c`"
    assert (first["n"], first["for comparison"], first["epochs"]) == ("1", "-", "1.5")
    assert (first["precision"], second["precision"]) == ("tf32", "float32")
    assert (first["training images"], second["training images"]) == ("1,438", "1,295")
    assert (first["checkpoint"], first["variants"]) == ("last", "2")
    assert (second["checkpoint"], second["variants"]) == ("best on val", "1")
    assert scores[0] != scores[1]
    assert second["test accuracy"] == f"{np.mean(scores):.2f}% ± {np.std(scores, ddof=1):.2f}"
    assert (first["seeds"], second["seeds"]) == ("0", "0-1")
    assert (second["n"], second["for comparison"]) == ("2", "91.25%, somebody")
    assert second["data"] == "a copy"
    # 3x3x8, 3x3x8x16 and 16x10 weights, ten biases, and two figures per channel of BatchNorm.
    assert second["trained parameters"] == f"{72 + 1152 + 170 + 2 * 24:,}"
    # Outputs of 8x8, 4x4 and 1.
    assert second["multiply-adds"] == f"{64 * 72 + 16 * 1152 + 160:,}"
    column = "seconds: start, training, evaluation, pictures"
    assert second[column] == "20, 32, 4, 3; resumed once"
    assert first[column].endswith(", -")
    assert (first["machine"], second["machine"]) == (r"m\n2", "m0; m1")
    now = f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
    assert second["versions"] == f"{now}; TensorFlow 1.0, Keras 2.0"
    assert second["commit"] == "c0; c1"


def test_the_seconds_of_seeds_add_up_to_those_of_the_command(runs):
    paths = [runs.directory / "small" / f"seed_{seed}" for seed in (0, 1)]
    times = [read(path / "times.json") for path in paths]
    for path, time_of in zip(paths, times, strict=True):
        assert sorted(time_of["seconds"]) == ["evaluation", "pictures", "start", "training"]
        result, written = (path / name for name in ("result.json", "times.json"))
        assert result.stat().st_mtime_ns <= written.stat().st_mtime_ns
    totals = [sum(time_of["seconds"].values()) for time_of in times]
    assert sum(totals) <= runs.seconds_of_small + 8 * 0.05  # Each is rounded to a tenth.
    assert all(total > 0 for total in totals)


def test_the_last_step_is_scored_without_validation(copy, capsys):
    change_row(copy, "test", "b|c/seed_0", step=3)
    error = refused(capsys, "compare.py", copy, "--format=results")
    assert "b|c/seed_0/result.json: 3 is not the last step" in error


@pytest.mark.parametrize(
    ("seeds", "said"), [((0, 1, 2), "0-2"), ((2, 0), "0, 2"), ((3,), "3"), ((2, 1), "1-2")]
)
def test_seeds_are_a_range_if_none_is_missing(seeds, said):
    configs = [types.SimpleNamespace(config=types.SimpleNamespace(seed=seed)) for seed in seeds]
    assert results._seeds([types.SimpleNamespace(run=run) for run in configs]) == said


@pytest.mark.parametrize(
    ("rows", "patience", "eval_epochs", "said"),
    [
        ("t5 v5 t10 v10 T10", 0, 1, None),
        ("t3 t5 v5 t8 t10 v10 T10", 0, 1, None),
        ("t5 t10 v10 T10", 0, 1, "no row of val for step 5"),
        ("t5 t10 v10 T10", 0, 2, None),
        ("t10 v5 v10 T10", 0, 1, "no row of train for step 5"),
        ("t5 v5 T5", 0, 1, "training up to step 5, not 10"),
        ("t5 v5 T5", 1, 1, None),
        ("t5 T5 v5", 1, 1, "row of the test split is not the last"),
        ("v5 T5", 1, 1, "training up to step 0, not 10"),
    ],
)
def test_every_epoch_has_its_rows(rows, patience, eval_epochs, said):
    splits = {"t": "train", "v": "val", "T": "test"}
    rows = [
        {"split": splits[row[0]], "step": int(row[1:]), "loss": 1.0, ACCURACY: int(row[1:]) / 10}
        for row in rows.split()
    ]
    (scored,) = (row["step"] for row in rows if row["split"] == "test")
    run = types.SimpleNamespace(
        path=pathlib.Path("seed_0"),
        plan=Plan(epochs=2, train_examples=50, global_batch_size=10),
        config=types.SimpleNamespace(
            patience=patience, eval_epochs=eval_epochs, best_metric=ACCURACY
        ),
        data=types.SimpleNamespace(examples={"val": 5}),
        result={"selected_on": "val", "step": scored},
    )
    with pytest.raises(ConfigError, match=said) if said else contextlib.nullcontext():
        records._check_steps(run, rows)


def test_seeds_may_have_read_the_data_from_different_places(copy, capsys):
    call("compare.py", copy, "--format=results")
    before = capsys.readouterr().out
    elsewhere = {"data_dir": "/elsewhere"}
    change(copy / ONE / "config.json", lambda x: x["settings"].update(elsewhere))
    call("compare.py", copy, "--format=results")
    assert capsys.readouterr().out == before


def test_rows_are_directories_and_not_groups_of_equal_settings(copy, capsys):
    shutil.copytree(copy / "small", copy / "again")
    (records.RECIPES / "again.txt").write_text((records.RECIPES / "small.txt").read_text())
    call("compare.py", copy, "--format=results")
    rows = table(capsys.readouterr().out)
    assert [(row["recipe"], row["n"]) for row in rows] == [
        ("`again`", "2"),
        (r"`b\|c`", "1"),
        ("`small`", "2"),
    ]


ONE = "small/seed_1"


def rename(old, new):
    return lambda root: (root / old).rename(root / new)


def without_training(root):
    path = root / ONE / "metrics.jsonl"
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join(row for row in rows if json.loads(row)["split"] != "train"))


def edited(name, edit):
    return lambda root: change(root / ONE / name, edit)


def copied(root):
    for name in ("metrics.jsonl", "result.json"):
        shutil.copy(root / "small" / "seed_0" / name, root / ONE / name)


def without_classes(result):
    result["per_class"] = dict.fromkeys(result["per_class"], 0.0)


def replaced(name, old, new):
    def damage(root):
        path = root / ONE / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return damage


def twice(root):
    path = root / ONE / "metrics.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")


def better(root):
    """Another step was evaluated, and is better than the one that was scored."""
    path = root / ONE / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    (best,) = (row for row in rows if row["split"] == "val")
    rows.insert(0, best | {"step": 3, ACCURACY: best[ACCURACY] + 0.01})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def without_loss(root):
    path = root / ONE / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["split"] == "val":
            del row["loss"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def no_accuracy_at_all(root):
    """Removes the accuracy from both files that have it."""
    edited("result.json", lambda x: x.pop(ACCURACY))(root)
    path = root / ONE / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["split"] == "test":
            del row[ACCURACY]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


DAMAGE = {
    **{f"no {name}": (lambda root, n=name: (root / ONE / n).unlink(), name) for name in FILES},
    "empty": (lambda root: (root / "small" / "seed_7").mkdir(), "seed_7/config.json is missing"),
    "config": (lambda root: (root / ONE / "config.json").write_text("{"), "config.json"),
    "rate": (
        edited("config.json", lambda x: x["settings"].update(learning_rate=0.3)),
        "seed_1/config.json: --learning_rate is 0.3, not 0.2 as in the recipe small",
    ),
    "device": (
        edited("config.json", lambda x: x["settings"].update(save_minutes=5.0)),
        "--save_minutes is 5, not 10",
    ),
    "seed": (
        edited("config.json", lambda x: x["settings"].update(seed=2)),
        "--seed is 2; the directory must be seed_2",
    ),
    "recipe": (rename("small", "unknown"), "there is no recipe unknown"),
    "base": (rename("small", "base"), "there is no recipe base"),
    "other": (rename("small", "other"), "--momentum is 0.9, not 0.8"),
    "data": (
        edited("config.json", lambda x: x["data"]["fingerprints"].update(test="00000000")),
        "is of other data, or weights, than",
    ),
    "net": (
        edited("config.json", lambda x: x["code"][0].update(net="0123456789ab")),
        "the operations of tiny have changed",
    ),
    "net of a part": (
        edited(
            "config.json",
            lambda x: x["code"].append({**x["code"][0], "from_step": 3, "net": "0123456789ab"}),
        ),
        "the operations of tiny have changed",
    ),
    "code": (edited("config.json", lambda x: x.update(code=[])), "there is no code"),
    "versions": (
        edited("config.json", lambda x: x["code"][0].update(versions={})),
        "the versions of TensorFlow and Keras are missing",
    ),
    "split": (
        edited("result.json", lambda x: x.update(split="val")),
        "seed_1/result.json: split is val, but test in metrics.jsonl",
    ),
    "accuracy": (
        edited("result.json", lambda x: x.update({ACCURACY: 0.99})),
        "seed_1/result.json: top_1_accuracy is 0.99, but",
    ),
    "no accuracy": (edited("result.json", lambda x: x.pop(ACCURACY)), "top_1_accuracy is None"),
    "examples": (
        edited("result.json", lambda x: x.update(examples=5)),
        "examples is 5, but 359",
    ),
    "no rows of training": (without_training, "metrics.jsonl has rows of training up to step 0,"),
    "not finished": (
        lambda root: change_row(root, "train", step=3),
        "metrics.jsonl has rows of training up to step 3, not",
    ),
    "selection": (
        edited("result.json", lambda x: x.update(selected_on=None)),
        'seed_1/result.json: selected_on must be "val"',
    ),
    "step": (
        lambda root: change_row(root, "test", step=3),
        "3 is not the step that is best on val",
    ),
    "a better step": (better, "is not the step that is best on val"),
    "no figures of validation": (without_loss, "is not the step that is best on val"),
    "no validation": (
        replaced("metrics.jsonl", '"val"', '"train"'),
        "metrics.jsonl has no row of val for step 6",
    ),
    "more than all": (
        lambda root: change_row(root, "test", top_1_accuracy=7.0),
        "an accuracy is 7.0, which is not in [0, 1]",
    ),
    "not a number": (
        lambda root: change_row(root, "test", top_1_accuracy=None),
        "an accuracy is nan, which",
    ),
    "part of an image": (
        lambda root: change_row(root, "test", top_1_accuracy=0.1234),
        "top_1_accuracy is not that of 359 images",
    ),
    "classes": (edited("result.json", without_classes), "is not within those of the classes"),
    "no classes": (
        edited("result.json", lambda x: x.update(per_class={})),
        "is not within those of the classes",
    ),
    "classes are missing": (
        edited("result.json", lambda x: x.pop("per_class")),
        "seed_1/result.json: Object missing required field per_class",
    ),
    "classes without names": (
        edited("result.json", lambda x: x.update(per_class=[0.5])),
        "seed_1/result.json: per_class: expected object, got array",
    ),
    "no accuracy at all": (
        no_accuracy_at_all,
        "seed_1/result.json: Object missing required field top_1_accuracy",
    ),
    "copied seed": (copied, "seed_1/metrics.jsonl is the same as that of"),
    "no test row": (replaced("metrics.jsonl", '"test"', '"val"'), "has 0 rows of the test split"),
    "two test rows": (twice, "seed_1/metrics.jsonl has 2 rows of the test split, not one"),
    "half a row": (replaced("metrics.jsonl", "}\n{", "\n{"), "metrics.jsonl has damaged lines"),
    "result": (lambda root: (root / ONE / "result.json").write_text("{}"), "result.json"),
    "times": (
        lambda root: (root / ONE / "times.json").write_text("{}"),
        "seed_1/times.json: Object missing required field seconds",
    ),
    "commit": (
        edited("times.json", lambda x: x.update(commit="abc; abc-dirty")),
        "seed_1 was trained from code that is in no commit (abc; abc-dirty)",
    ),
    "seconds": (
        edited("times.json", lambda x: x["seconds"].update(start="long")),
        "seed_1/times.json: seconds.start: expected float",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_record_that_is_not_whole_is_one_line(copy, capsys, case):
    damage, message = DAMAGE[case]
    damage(copy)
    error = refused(capsys, "compare.py", copy, "--format=results")
    assert message in error
    assert capsys.readouterr().out == ""


def test_half_copied_records_are_no_records(copy, capsys):
    call("compare.py", copy, "--format=results")
    before = capsys.readouterr().out
    shutil.copytree(copy / "small", copy / ".small.new", ignore=lambda *_: ["times.json"])
    call("compare.py", copy, "--format=results")
    assert capsys.readouterr().out == before


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--metric=loss", "--format=results shows the top-1 accuracy; drop --metric"),
        ("--confidence=0.9", "--format=results has no intervals; drop --confidence"),
    ],
)
def test_the_page_has_no_other_figure(copy, capsys, flag, said):
    assert said in refused(capsys, "compare.py", copy, "--format=results", flag)


def test_a_recipe_with_a_wrong_flag_is_named(copy, monkeypatch, capsys):
    recipes = shutil.copytree(records.RECIPES, copy.parent / "recipes")
    with (recipes / "small.txt").open("a") as file:
        file.write("--batchsize=3\n")
    monkeypatch.setattr(records, "RECIPES", recipes)
    error = refused(capsys, "compare.py", copy, "--format=results")
    assert "seed_0/config.json: in the recipe small: Unknown command line flag" in error


def test_what_is_published_is_read_and_of_recipes(monkeypatch):
    monkeypatch.setattr(records, "RECIPES", ROOT / "recipes")  # Whatever `runs` has put there.
    known = read_published()
    assert known.recipes["resnet20"].accuracy == 91.25
    assert known.recipes.keys() <= {*records.recipe_names()}
    assert known.data["a75d095f"] == "CIFAR-10"


@pytest.mark.parametrize(
    "text",
    [
        *(b"[", b"\xff", b"recipes = 3\n[data]", b"[recipes]", b"[recipes]\n[data]\nabc = 3"),
        *(b"[data]\n[recipes]\ndigits = 3", b"[data]\n[recipes.digits]\naccuracy = 91.25"),
        b'[data]\n[recipes.digits]\naccuracy = "x"\nsource = "somebody"',
        b"[data]\n[recipes.digits]\nqick = true",
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, text):
    (tmp_path / "published.toml").write_bytes(text)
    with pytest.raises(ConfigError, match="published"):
        read_published(tmp_path / "published.toml")


ROOT = pathlib.Path(results.__file__).resolve().parent.parent


def seconds(recipe):
    """The mean of start, training and evaluation."""
    found = [
        read(path)["seconds"] for path in (ROOT / "results" / recipe).glob("seed_*/times.json")
    ]
    return f"{np.mean([x['start'] + x['training'] + x['evaluation'] for x in found]):,.0f}"


def test_the_rows_of_readme_are_results():
    rows = table((ROOT / "RESULTS.md").read_text(encoding="utf-8"))
    columns = ("recipe", "data", "test accuracy", "n")
    known = {
        (*(row[column] for column in columns), seconds(row["recipe"].strip("`"))) for row in rows
    }
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Results")[2]
    shown = table(section.partition("\n## ")[0])
    assert shown
    assert {tuple(row.values()) for row in shown} <= known


def test_the_page_of_results_is_that_of_the_records(capsys, monkeypatch):
    monkeypatch.setattr(records, "RECIPES", ROOT / "recipes")  # Whatever `runs` has put there.
    call("compare.py", ROOT / "results", "--format=results")
    assert capsys.readouterr().out == (ROOT / "RESULTS.md").read_text(encoding="utf-8")
