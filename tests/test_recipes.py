"""The flag files of recipes, and what is said of results that were measured again."""

import pathlib

import numpy as np
import pytest
from absl import flags as absl_flags

from commands import build, flags
from commands.options import TrainOptions
from recipes import rerun

RECIPES = sorted(pathlib.Path(rerun.__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_flags_of_recipes_are_accepted(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("--")]
    options = flags.parse(["train.py", *lines], TrainOptions, absl_flags.FlagValues())
    build.check(options.config)
    assert options.config != TrainOptions().config


def test_a_result_holds_if_seeds_explain_the_difference():
    before = np.array([0.900, 0.902, 0.904])
    holds, text = rerun.verdict(before, before + 0.001)
    assert holds
    assert text == "90.30% (n = 3), recorded 90.20% (n = 3)"
    assert not rerun.verdict(before, before - 0.02)[0]
    assert rerun.verdict(before[:1], before[:1] + 0.009)[0]
    assert not rerun.verdict(before[:1], before[:1] - 0.011)[0]


def test_quick_recipes_without_records_are_left_out(monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(rerun, "train", lambda recipe, seeds: trained.append((recipe, seeds)))
    monkeypatch.setattr(rerun, "recorded_seeds", lambda recipe: [0, 2] * (recipe == "digits"))
    monkeypatch.setattr(rerun, "accuracies", lambda directory, seeds: np.array([0.9, 0.91]))
    monkeypatch.setattr(rerun.sys, "argv", ["rerun.py"])
    with pytest.raises(SystemExit) as caught:
        rerun.main()
    assert caught.value.code == 0
    assert trained == [("digits", [0, 2])]
    assert capsys.readouterr().out.startswith("holds  digits: 90.50% (n = 2)")
