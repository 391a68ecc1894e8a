"""The page of results."""

import pathlib
import shutil

import numpy as np
import pytest

from commands import results
from commands.results import read_published
from commands.run import Run
from commands.setting import ConfigError
from tests.commands import helpers
from tests.commands.helpers import TINY, call, read, refused


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("results")
    with helpers.tiny_net():
        for recipe, flags in {
            "small": ("--epochs=1", "--seeds=0,1"),
            "b|c": ("--epochs=2",),
        }.items():
            at = directory / recipe
            at = at if "--seeds=0,1" in flags else at / "seed_0"
            call("train.py", *TINY, *flags, f"--run_dir={at}")
        yield directory


def table(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line[1:-1].split(" | ")] for line in lines)
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_rows_are_made_of_records_alone(runs, tmp_path, monkeypatch, capsys):
    print_of_test = Run.open(runs / "small" / "seed_0").data.fingerprints["test"]
    published = tmp_path / "published.toml"
    published.write_text(
        '[recipes.small]\naccuracy = 91.25\nsource = "somebody"\n'
        f'[data]\n{print_of_test} = "a copy"\n'
    )
    monkeypatch.setattr(results, "PUBLISHED", published)
    call("compare.py", runs, "--format=results")
    first, second = table(capsys.readouterr().out)
    scores = [
        100 * Run.open(runs / "small" / f"seed_{seed}").result["top_1_accuracy"] for seed in (0, 1)
    ]
    assert first["recipe"] == r"`b\|c`"
    assert (first["n"], first["published"], first["epochs"]) == ("1", "-", "2")
    assert second["test accuracy"] == f"{np.mean(scores):.2f}% ± {np.std(scores, ddof=1):.2f}"
    assert (second["n"], second["published"]) == ("2", "91.25%, somebody")
    assert second["data"] == "a copy"
    # 3x3x8, 3x3x8x16 and 16x10 weights, ten biases, and two figures per channel of BatchNorm.
    assert second["parameters"] == f"{72 + 1152 + 170 + 2 * 24:,}"
    # Outputs of 8x8, 4x4 and 1.
    assert second["multiply-adds"] == f"{64 * 72 + 16 * 1152 + 160:,}"
    times = read(runs / "small" / "seed_0" / "times.json")
    assert second["machine"] == times["machine"]
    assert times["commit"] in second["versions, commit"]
    assert all(seconds >= 0 for seconds in times["seconds"].values())


def test_a_recipe_is_one_setting(runs, tmp_path, capsys):
    shutil.copytree(runs, tmp_path / "runs")
    (tmp_path / "runs" / "b|c" / "seed_0").rename(tmp_path / "runs" / "small" / "seed_2")
    message = "differ in more than their seed; a recipe is one directory"
    assert message in refused(capsys, "compare.py", tmp_path / "runs", "--format=results")


def test_what_is_published_is_read():
    known = read_published()
    assert all(0 < recipe.get("accuracy", 1) < 100 for recipe in known["recipes"].values())


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "published.toml").write_text("[")
    with pytest.raises(ConfigError, match="published"):
        read_published(tmp_path / "published.toml")


ROOT = pathlib.Path(results.__file__).resolve().parent.parent


def test_the_rows_of_readme_are_results():
    rows = table((ROOT / "RESULTS.md").read_text(encoding="utf-8"))
    known = {(row["recipe"], row["data"], row["test accuracy"], row["n"]) for row in rows}
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Results")[2]
    shown = table(section.partition("\n## ")[0])
    assert shown
    assert {tuple(row.values()) for row in shown} <= known


@pytest.mark.slow
def test_the_page_of_results_is_that_of_the_records(capsys):
    call("compare.py", ROOT / "results", "--format=results")
    assert capsys.readouterr().out == (ROOT / "RESULTS.md").read_text(encoding="utf-8")
