"""Comparisons of runs: groups, tests, sentences, formats, pictures, and what cannot be compared."""

import csv
import dataclasses
import io
import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image

from commands import build
from commands.compare import compare_runs
from commands.comparison_report import as_csv, as_json, as_markdown, as_text
from commands.config import Config
from commands.run import Run
from commands.saved_config import Code, SavedConfig, write_config
from commands.statistics import seeds_needed
from loops.errors import RunError
from loops.metrics import METRICS, Metric
from loops.records.predictions import Predictions, write_predictions
from loops.records.run import write_json
from tests.commands import helpers
from tests.commands.helpers import TINY, call, read, refused

EXAMPLES = 359  # In the test split of digits.


@pytest.fixture(autouse=True, scope="module")
def tiny_net():
    with helpers.tiny_net():
        yield


@pytest.fixture(scope="module")
def saved(tiny_net):
    """The configuration of a run of one epoch, and its test labels."""
    requested = Config(net="tiny", dataset="digits", batch_size=256, epochs=1.0)
    dataset = build.load_data(requested)
    config = build.resolve(requested, dataset)
    code = Code(from_step=0, net="0123456789ab", versions={})
    info = build.data_info(dataset)
    return SavedConfig(settings=config, data=info, code=(code,)), dataset.splits["test"].labels


@pytest.fixture
def make(tmp_path, saved):
    """Makes runs, as training leaves them, with given numbers of correct test predictions."""
    saved, labels = saved

    def make(
        name,
        correct,
        *,
        seed=0,
        offset=0,
        losses=None,
        finished=True,
        data=None,
        sources=None,
        **settings,
    ):
        """Makes a run.

        Args:
            name: of its directory.
            correct: number of correct predictions, those of examples from `offset` on.
            seed: its seed.
            offset: number of the first example that is classified correctly.
            losses: of each example.
            finished: whether it has a result.
            data: fingerprints to change.
            sources: fingerprints of the code, from first to last.
            **settings: to change.
        """
        path = tmp_path / name
        path.mkdir(parents=True)
        info = dataclasses.replace(saved.data, fingerprints=saved.data.fingerprints | (data or {}))
        config = dataclasses.replace(saved.settings, seed=seed, **settings)
        code = saved.code
        if sources:
            code = [
                dataclasses.replace(code[0], from_step=i, sources=x) for i, x in enumerate(sources)
            ]
        write_config(path, dataclasses.replace(saved, settings=config, data=info, code=tuple(code)))
        rows = [{"split": "train", "step": 6}, {"split": "val", "step": 6, "top_1_accuracy": 0.75}]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if not finished:
            return path
        numbers = np.arange(EXAMPLES)
        is_correct = (numbers >= offset) & (numbers < offset + correct)
        predictions = Predictions(
            labels=labels,
            predicted=np.where(is_correct, labels, (labels + 1) % 10).astype(np.int32),
            confidences=np.full(EXAMPLES, 0.5, np.float32),
            label_probabilities=np.full(EXAMPLES, 0.25, np.float32),
            losses=np.asarray(np.ones(EXAMPLES) if losses is None else losses, np.float32),
        )
        write_predictions(path, predictions)
        result = {
            "loss": float(predictions.losses.mean()),
            "top_1_accuracy": float(is_correct.mean()),
            "top_5_accuracy": 1.0,
            "expected_calibration_error": 0.125,
            "examples": EXAMPLES,
            "checkpoint": str(path / "best/step-6"),
            "step": 6,
            "selected_on": "val",
        }
        write_json(path / "result.json", result)
        return path

    return make


def edit(path, **fields):
    path.write_text(json.dumps(read(path) | fields))


def test_groups_of_seeds_are_compared_with_welchs_test(make, tmp_path):
    """Accuracies are 300/359, ..., 316/359."""
    for seed, (a, b) in enumerate([(300, 310), (304, 313), (308, 316)]):
        make(f"runs/a{seed}", a, seed=seed)
        make(f"runs/b{seed}", b, seed=seed, learning_rate=0.1)
    comparison = compare_runs([tmp_path / "runs"])
    first, second = comparison.groups
    assert (first.name, second.name) == ("learning_rate=0.2", "learning_rate=0.1")
    np.testing.assert_allclose(second.figure("top_1_accuracy") * EXAMPLES, [310, 313, 316])
    (found,) = comparison.differences
    assert (found.test, found.seeds, found.is_seen) == ("Welch", (3, 3), True)
    # 9 -+ t(0.975, df) * sqrt((16 + 9) / 3) with df = 2 * 25**2 / (16**2 + 9**2) = 3.709.
    low, high = 9 - 8.2701, 9 + 8.2701
    assert found.estimate.difference * EXAMPLES == pytest.approx(9)
    assert found.estimate[1:3] == pytest.approx((low / EXAMPLES, high / EXAMPLES), abs=2e-5)
    assert found.sentence == (
        "top-1: learning_rate=0.1 is better than learning_rate=0.2 by 2.5 points (95% interval "
        f"0.2 to 4.8, n = 3 seeds each, Welch p = {found.corrected_p:.2g})."
    )
    table = as_text(comparison).splitlines()
    assert table[0].split("  ")[0] == "learning_rate"
    assert table[1].split()[:5] == ["0.2", "3", "84.68%", "±", "1.11"]
    assert table[2].split()[:5] == ["0.1", "3", "87.19%", "±", "0.84"]


def test_runs_of_different_code_are_not_taken_together(make, tmp_path):
    """Although all settings are the same, as after an edit of a loss."""
    for seed in (0, 1, 2):
        make(f"runs/a{seed}", 330 + seed, seed=seed, sources=["aaaaaaaa"])
        make(f"runs/b{seed}", 300 + seed, seed=seed, sources=["bbbbbbbb"])
    make("runs/c", 300, sources=["aaaaaaaa", "bbbbbbbb"])
    make("runs/d", 300, sources=["aaaaaaaa", "bbbbbbbb", "aaaaaaaa"])
    make("runs/e", 300)
    comparison = compare_runs([tmp_path / "runs"])
    names = [group.name for group in comparison.groups]
    assert names[0] == "code=aaaaaaaa"
    assert sorted(names[1:]) == [
        "code=aaaaaaaa, then bbbbbbbb",
        "code=aaaaaaaa, then bbbbbbbb, then aaaaaaaa",
        "code=bbbbbbbb",
        "code=unknown",
    ]
    assert [d.is_seen for d in comparison.differences] == [True] * 4
    assert comparison.notes[0] == "code=aaaaaaaa: a0, a1, a2"
    assert sorted(comparison.notes[1:]) == [
        "code=aaaaaaaa, then bbbbbbbb, then aaaaaaaa: d",
        "code=aaaaaaaa, then bbbbbbbb: c",
        "code=bbbbbbbb: b0, b1, b2",
        "code=unknown: e",
    ]
    make("runs/a3", 300, seed=3, sources=["aaaaaaaa"])
    make("runs/a4", 300, seed=4, sources=["aaaaaaaa"])
    assert compare_runs([tmp_path / "runs"]).notes[0] == "code=aaaaaaaa: a0, a1, a2 and 2 more"


def test_code_is_no_column_where_a_setting_differs_as_well(make, tmp_path):
    one = make("one", 300, sources=["aaaaaaaa"])
    other = make("other", 300, learning_rate=0.1, sources=["bbbbbbbb"])
    comparison = compare_runs([one, other])
    assert [group.name for group in comparison.groups] == ["learning_rate=0.2", "learning_rate=0.1"]
    assert comparison.notes == (
        "the code in nets/, data/, loops/ or commands/session.py differs too: "
        "learning_rate=0.2 (aaaaaaaa) and learning_rate=0.1 (bbbbbbbb)",
    )
    same = make("same", 300, learning_rate=0.3, sources=["aaaaaaaa"])
    unknown = make("unknown", 300, learning_rate=0.4)
    assert compare_runs([one, same, unknown]).notes == ()


def test_training_is_drawn_as_the_mean_of_each_epoch(make):
    run = make("run", 300, epochs=2.0)  # Epochs end after 5.06 and 10.1 steps of 256.
    values = [("train", 4, 0.2), ("train", 6, 0.8), ("val", 6, 0.5), ("train", 8, 0.4)]
    rows = [{"split": s, "step": step, "top_1_accuracy": x} for s, step, x in values]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (group,) = compare_runs([run]).groups
    curves = group.entries[0].curves
    np.testing.assert_allclose(curves["train"]["value"], [(4 * 0.2 + 2 * 0.8) / 6, 0.4])
    np.testing.assert_allclose(curves["train"]["epoch"], np.array([6, 11]) * 256 / 1295)
    np.testing.assert_allclose(curves["val"]["value"], [0.5])
    np.testing.assert_allclose(curves["val"]["epoch"], [6 * 256 / 1295])


def test_a_difference_that_cannot_be_seen(make, tmp_path):
    """0.56 points with deviations of 1.11 each: an effect of 0.5, for which Cohen has 64."""
    for seed, correct in enumerate([300, 304, 308]):
        make(f"a{seed}", correct, seed=seed)
        make(f"b{seed}", correct - 2, seed=seed, learning_rate=0.1)
    (found,) = compare_runs([tmp_path]).differences
    assert (found.is_seen, found.seeds_needed) == (False, 64)
    assert found.sentence.startswith(
        "top-1: no difference can be seen between learning_rate=0.1 and learning_rate=0.2: 0.6 "
        "points for learning_rate=0.2 (95% interval -2.0 to 3.1, n = 3 seeds each, Welch p = 0.57)"
    )
    assert found.sentence.endswith("; about 64 seeds each would show one of 0.6 points.")


def test_two_runs_are_compared_example_by_example(make):
    """The first is right on examples 0 to 299, the second on 10 to 339."""
    one, other = make("one", 300), make("other", 330, offset=10, optimizer="lion")
    comparison = compare_runs([one, other])
    (found,) = comparison.differences
    assert (found.test, found.only, found.is_seen) == ("McNemar", (10, 40), True)
    assert found.estimate.difference == pytest.approx(30 / EXAMPLES)
    cases = [math.comb(50, k) for k in range(11)]  # Fewer than 10 of 50, twice, and 10 once.
    assert found.estimate.p_value == pytest.approx((2 * sum(cases[:10]) + cases[10]) / 2**50)
    assert found.sentence == (
        "top-1: optimizer=lion is better than optimizer=sgd by 8.4 points (95% interval 4.5 to "
        "12.1, of 359 examples only optimizer=sgd is right on 10, only optimizer=lion on 40, "
        "McNemar p < 0.001). This is about these two trained nets, not about other seeds."
    )
    # The order of the runs decides what is compared with what, and nothing else.
    (back,) = compare_runs([other, one]).differences
    assert back.estimate.difference == -found.estimate.difference
    assert back.sentence.startswith("top-1: optimizer=lion is better than optimizer=sgd by 8.4 ")


def test_lower_is_better(make):
    """Losses of 1 on all examples, and of 0.9 and 0.8 on half of them each."""
    one = make("one", 300, losses=np.ones(EXAMPLES))
    other = make("other", 300, losses=0.8 + 0.1 * (np.arange(EXAMPLES) % 2), momentum=0.8)
    (found,) = compare_runs([one, other], "loss").differences
    assert (found.test, found.is_seen) == ("paired t", True)
    assert found.estimate.difference == pytest.approx(-0.15, abs=2e-4)
    assert found.sentence.startswith(
        "loss: momentum=0.8 is better than momentum=0.9 by 0.150 (95% interval 0.145 to 0.155, "
        "359 examples, paired t p < 0.001)."
    )


def test_figures_without_a_value_per_example(make):
    runs = make("one", 300), make("other", 330, momentum=0.8)
    (found,) = compare_runs(runs, "expected_calibration_error").differences
    assert (found.metric, found.test, found.only) == ("top_1_accuracy", "McNemar", (0, 30))
    assert found.sentence.endswith(" ECE cannot be compared example by example.")


def test_intervals_of_accuracies_alone_end_at_0_and_1(make, monkeypatch, tmp_path):
    """A metric of the table may be negative."""
    monkeypatch.setitem(METRICS, "log_p", Metric(None, "log p", format=".3f"))
    for seed in (0, 1, 2):
        edit(make(f"runs/{seed}", 300, seed=seed) / "result.json", log_p=-1.0 - seed / 10)
    (sentence,) = compare_runs([tmp_path / "runs"], "log_p").sentences
    # -1.1 -+ t(0.975, 2) * 0.1 / sqrt(3)
    assert "(95% interval of the mean -1.348 to -0.852, n = 3 seeds)" in sentence


def test_two_seeds_are_two_nets_too(make):
    comparison = compare_runs([make("one", 300), make("other", 330, seed=1)])
    assert [group.name for group in comparison.groups] == ["tiny on digits"]
    mean, nets = comparison.sentences
    assert mean == (
        "top-1: 87.74% ± 5.91 for tiny on digits (95% interval of the mean 34.65% to 100.00%, "
        "n = 2 seeds)."
    )
    assert nets.startswith("top-1: other is better than one by 8.4 points ")


def test_nets_that_answer_alike(make):
    """Also where all answers are correct."""
    for name, correct in (("all", EXAMPLES), ("some", 300)):
        runs = make(f"{name}/a", correct), make(f"{name}/b", correct, momentum=0.8)
        (found,) = compare_runs(runs).differences
        assert (found.only, found.estimate.p_value, found.is_seen) == ((0, 0), 1, False)
        assert "no difference can be seen between momentum=0.9 and momentum=0.8 (95% interval " in (
            found.sentence
        )
        assert "both are right on the same of 359 examples" in found.sentence


def test_seeds_without_a_spread(make, tmp_path):
    for seed in (0, 1):
        make(f"a{seed}", EXAMPLES, seed=seed)
        make(f"b{seed}", 300, seed=seed, momentum=0.8)
    (found,) = compare_runs([tmp_path]).differences
    assert (found.test, found.is_seen) == (None, False)
    assert "-16.43 points, but no test: the seeds of each do not differ" in found.sentence


def test_one_run_against_several(make, tmp_path):
    """The accuracies 330 against 300, 304 and 308: 26 -+ t(0.975, 2) * 4 * sqrt(4 / 3)."""
    one = make("one", 330, momentum=0.8)
    for seed, correct in enumerate([300, 304, 308]):
        make(f"runs/{seed}", correct, seed=seed)
    for paths, sign in (([one, tmp_path / "runs"], -1), ([tmp_path / "runs", one], 1)):
        (found,) = compare_runs(paths).differences
        assert found.test == "one against several"
        bounds = sorted(sign * (26 + half) / EXAMPLES for half in (-19.873, 19.873))
        assert found.estimate[1:3] == pytest.approx(bounds, abs=1e-5)
        assert found.sentence.startswith("top-1: momentum=0.8 is better than momentum=0.9 by ")
        assert found.sentence.endswith(
            " With one run of momentum=0.8, this assumes that its seeds would differ as much as "
            "those of momentum=0.9."
        )


def test_several_comparisons_are_corrected(make):
    """McNemar's p of 0 against 6, 7 and 8 examples, times 3."""
    runs = [make(f"run{i}", 300 + i, momentum=0.9 - i / 100) for i in (0, 6, 7, 8)]
    comparison = compare_runs(runs)
    assert [d.second for d in comparison.differences] == [
        *("momentum=0.82", "momentum=0.83", "momentum=0.84")
    ]
    corrected = [d.corrected_p for d in comparison.differences]
    assert corrected == pytest.approx([3 / 2**8, 3 / 2**7, 3 / 2**6])
    # (8 / 361) -+ 2.39398 * sqrt((10 / 361 - (8 / 361)**2) / 361), for 1 - 0.05 / 3.
    assert comparison.differences[0].level == pytest.approx(1 - 0.05 / 3)
    half = 2.39398 * math.sqrt((10 / 361 - (8 / 361) ** 2) / 361)
    assert comparison.differences[0].estimate[1:3] == pytest.approx(
        (8 / 361 - half, 8 / 361 + half), abs=1e-6
    )
    assert "(98.333% interval 0.1 to 4.3, " in comparison.sentences[0]
    assert comparison.sentences[-1] == (
        "The p values and intervals are corrected for 3 comparisons with momentum=0.9, the first "
        "(Bonferroni), so that all intervals together have a level of 95%."
    )


def test_corrected_tests_intervals_and_numbers_of_seeds_agree(make, tmp_path):
    """Three differences of 9 examples: each is seen alone, and none of three at once."""
    for seed, (a, b) in enumerate([(300, 310), (304, 313), (308, 316)]):
        make(f"a{seed}", a, seed=seed)
        for group in range(3):
            make(f"b{group}{seed}", b, seed=seed, momentum=0.8 - group / 10)
    differences = compare_runs([tmp_path]).differences
    assert len(differences) == 3
    for d in differences:
        assert d.estimate.p_value < 0.05 < d.corrected_p
        assert d.estimate.low < 0 < d.estimate.high
        deviations = 4 / EXAMPLES, 3 / EXAMPLES
        alone, together = (seeds_needed(9 / EXAMPLES, *deviations, c) for c in (0.95, 1 - 0.05 / 3))
        assert alone < together == d.seeds_needed
        assert f"; about {together} seeds each would show one of 2.5 points." in d.sentence


def test_an_interval_and_a_test_that_disagree_are_said_to(make):
    """0 against 5 examples have p = 1 / 2^5 and the interval 5/361 -+ 1.96 * 0.00729.

    88 against 116 have p = 0.0503 and the interval 28/361 -+ 1.96 * 0.0394.
    """
    runs = make("one", 300), make("other", 305, momentum=0.8)
    (found,) = compare_runs(runs).differences
    assert found.is_seen
    assert found.estimate.low < 0
    assert " The interval just includes 0, the test rejects; the test decides. " in found.sentence
    runs = make("a", 100), make("b", 12 + 116, offset=88, momentum=0.8)
    (found,) = compare_runs(runs).differences
    assert (found.only, found.is_seen) == ((88, 116), False)
    assert found.estimate.low > 0
    assert " The interval just excludes 0, the test does not reject; the test decides. " in (
        found.sentence
    )


def test_what_makes_a_group(make, tmp_path):
    """What does not change results does not matter; data, code and number of workers do."""
    make("1", 300)
    make("2", 300, seed=1, device="auto", hooks=["count"], data_dir="/elsewhere", log_steps=7)
    make("3", 300, seed=2, deterministic=True, save_minutes=1)
    assert [group.name for group in compare_runs([tmp_path]).groups] == ["tiny on digits"]
    make("4", 300, data={"train": "other"})
    code = read(tmp_path / "1/config.json")["code"]
    edit(make("5", 300) / "config.json", code=[code[0] | {"net": "edited"}])
    edit(make("6", 300) / "config.json", workers=2)
    names = {group.name for group in compare_runs([tmp_path]).groups}
    prints = {name: read(tmp_path / f"{name}/config.json")["data"]["fingerprints"] for name in "14"}
    train = {name: f"{p['train']}+{p['val']}" for name, p in prints.items()}
    assert names == {
        f"workers=1, train_data={train['1']}, operations={code[0]['net']}",
        f"workers=1, train_data={train['4']}, operations={code[0]['net']}",
        f"workers=1, train_data={train['1']}, operations=edited",
        f"workers=2, train_data={train['1']}, operations={code[0]['net']}",
    }


def test_names_leave_out_what_follows_from_other_settings(make, tmp_path):
    make("1", 300)
    make("2", 300, epochs=2, warmup_epochs=0.4, batch_norm_momentum=0.91)
    groups = compare_runs([tmp_path]).groups
    assert [group.name for group in groups] == ["epochs=1", "epochs=2"]
    assert groups[1].settings == {"epochs": 2}  # The columns of the table.
    make("3", 300, epochs=2, warmup_epochs=0.2)
    names = {group.name for group in compare_runs([tmp_path]).groups}
    assert "batch_norm_momentum=0.9, epochs=2, warmup_epochs=0.2" in names


def test_names_are_on_one_line(make):
    one, other = make("one\ntwo", 300), make("other", 310, init_from="a|b\x1b")
    comparison = compare_runs([one, other])
    assert [group.entries[0].name for group in comparison.groups] == [r"one\ntwo", "other"]
    assert comparison.groups[1].name == r"init_from=a|b\x1b"
    assert len(as_text(comparison).splitlines()) == 5
    assert as_markdown(comparison).splitlines()[3].startswith(r"| a\|b\x1b | 1 | 86.35% |")


def test_repeats_of_a_seed_count_as_one(make, tmp_path):
    for name, correct, seed in (("1", 300, 0), ("2", 304, 0), ("3", 310, 1)):
        make(name, correct, seed=seed)
    comparison = compare_runs([tmp_path, tmp_path / "1"])
    (group,) = comparison.groups
    np.testing.assert_allclose(group.figure("top_1_accuracy") * EXAMPLES, [302, 310])
    assert comparison.notes == ("2 runs of tiny on digits have seed 0; they count as one",)


def test_which_of_several_runs_of_one_seed_is_tested(make, tmp_path):
    """The table has the mean of 300 and 304, the test 320 against 300."""
    for name, correct in (("1", 300), ("2", 304)):
        make(name, correct)
    make("3", 320, momentum=0.8)
    comparison = compare_runs([tmp_path])
    (found,) = comparison.differences
    assert found.only == (0, 20)
    np.testing.assert_allclose(comparison.groups[0].figure("top_1_accuracy") * EXAMPLES, [302])
    assert found.sentence.endswith(
        " Of the 2 runs of momentum=0.9, which have one seed, this is 1; the table has their mean."
    )


def test_a_run_that_is_given_twice(make):
    one, other = make("one", 300), make("other", 320, momentum=0.8)
    comparison = compare_runs([one, other, other.parent / "one/../other"])
    assert [len(group.entries) for group in comparison.groups] == [1, 1]
    assert comparison.notes == (
        f"given more than once, but counted once: {other.parent}/one/../other",
    )
    assert compare_runs([one, other, one.parent]).notes == ()


def test_runs_that_are_not_finished(make):
    paths = make("one", 300), make("other", 300, finished=False, momentum=0.8, epochs=3)
    comparison = compare_runs(paths)
    assert comparison.differences[0].test is None
    assert comparison.differences[0].sentence.endswith(
        "no test: no run of epochs=3, momentum=0.8 is finished, with a finite figure."
    )
    assert comparison.notes == ("not finished: other, step 6 of 16, best top-1 on val 75.00%",)
    assert as_text(comparison).splitlines()[2].split()[:4] == ["3", "0.8", "0", "-"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data": {"test": "other"}}, "their test splits differ"),
        ({"loss": "focal"}, "the one is the cross_entropy and the other the focal"),
    ],
)
def test_figures_of_different_things(make, change, reason):
    runs = make("one", 300), make("other", 300, momentum=0.8, **change)
    comparison = compare_runs(runs, "loss")
    assert comparison.differences[0].test is None
    assert reason in comparison.differences[0].sentence
    assert len(as_text(comparison).splitlines()) >= 5


def test_figures_that_are_not_finite(make, tmp_path):
    for seed in range(3):
        make(f"a{seed}", 300 + seed, seed=seed)
        make(f"b{seed}", 305 + seed, seed=seed, momentum=0.8)
    edit(tmp_path / "a2/result.json", top_1_accuracy=None)
    comparison = compare_runs([tmp_path])
    assert comparison.differences[0].seeds == (2, 3)
    assert comparison.notes == ("left out: a2 has no finite top-1 on test",)
    assert "NaN" not in as_json(comparison) + as_csv(comparison)
    assert json.loads(as_json(comparison))["groups"][0]["runs"][2]["test"]["top_1_accuracy"] is None


def test_predictions_that_are_missing_or_of_another_run(make):
    one, other = make("one", 300), make("other", 320, momentum=0.8)
    shutil.copy(one / "predictions.npz", other)
    (found,) = compare_runs([one, other]).differences
    assert (found.test, found.estimate.difference) == (None, pytest.approx(20 / EXAMPLES))
    assert found.sentence.startswith(
        "top-1: momentum=0.8 against momentum=0.9: +5.57 points, but no test: "
        f"{other / 'predictions.npz'} does not belong to the run's result"
    )
    (other / "predictions.npz").write_bytes(b"damaged")
    (found,) = compare_runs([one, other]).differences
    assert f"no test: cannot read {other / 'predictions.npz'}: " in found.sentence
    (other / "predictions.npz").unlink()
    (found,) = compare_runs([one, other]).differences
    assert "no test: other has no predictions.npz, which neither records nor" in found.sentence


def test_damaged_runs(make, tmp_path):
    """One that is named is an error; one that is found is left out."""
    one, other = make("runs/one", 300), make("runs/other", 320, momentum=0.8)
    (other / "result.json").write_text("{")
    for content in ("{", "{}"):
        (other / "result.json").write_text(content)
        with pytest.raises(RunError) as found:
            compare_runs([one, other])
        assert str(other / "result.json") in str(found.value)
        assert str(found.value).endswith(
            "; remove the run from the arguments, or remove the file and have the run scored again "
            "with train.py"
        )
        assert str(found.value).count("scored again") == 1
    (other / "result.json").write_text("{")
    comparison = compare_runs([tmp_path / "runs"])
    assert len(comparison.groups) == 1
    assert comparison.notes[0].startswith(f"left out: cannot read {other / 'result.json'}")
    assert comparison.notes[0].endswith(
        "; remove the file and have the run scored again with train.py"
    )


def test_runs_are_searched_for_but_not_inside_of_runs(make, tmp_path):
    one = make("runs/deep/one", 300)
    make("runs/deep/one/best/copy", 300, momentum=0.8)
    make("runs/two", 300, seed=1)
    (tmp_path / "runs/loop").symlink_to(tmp_path / "runs", target_is_directory=True)
    (group,) = compare_runs([tmp_path / "runs"]).groups
    assert [entry.name for entry in group.entries] == ["deep/one", "two"]
    # Its net is not in the table any more.
    edit(one / "config.json", settings=read(one / "config.json")["settings"] | {"net": "gone"})
    assert len(compare_runs([tmp_path / "runs"]).groups) == 2


def test_formats(make, tmp_path, capsys):
    for seed in (0, 1):
        make(f"a{seed}", 300 + seed, seed=seed)
        make(f"b{seed}", 310 + seed, seed=seed, augment="crop:1,flip", finished=seed == 0)
    for form, make_text in (("text", as_text), ("markdown", as_markdown), ("json", as_json)):
        comparison = call("compare.py", tmp_path, f"--format={form}")
        assert capsys.readouterr().out == make_text(comparison) + "\n"
    content = json.loads(as_json(comparison))
    assert [group["differs_in"] for group in content["groups"]] == [
        {"augment": "crop:1"},
        {"augment": "crop:1,flip"},
    ]
    assert content["groups"][0]["test"]["top_1_accuracy"] == {
        "seeds": 2,
        "mean": pytest.approx(300.5 / EXAMPLES),
        "std": pytest.approx(math.sqrt(0.5) / EXAMPLES),
    }
    assert content["groups"][0]["runs"][1]["path"] == str(tmp_path / "a1")
    assert content["comparisons"][0]["test"] == "one against several"
    assert content["sentences"] == comparison.sentences
    markdown = as_markdown(comparison).splitlines()
    assert markdown[0].startswith("| augment | n | test top-1 | best val top-1 | trained |")
    assert markdown[1] == "|" + "---|" * 8
    assert markdown[3].startswith("| crop:1,flip | 1 | 86.35% |")
    assert markdown[-1] == f"- {comparison.sentences[-1]}"
    call("compare.py", tmp_path, "--format=csv")
    out, err = capsys.readouterr()
    table = list(csv.DictReader(io.StringIO(out)))
    assert [row["run"] for row in table] == [str(tmp_path / n) for n in ("a0", "a1", "b0", "b1")]
    assert table[2]["augment"] == "crop:1,flip"
    assert float(table[1]["test_top_1_accuracy"]) == pytest.approx(301 / EXAMPLES)
    assert (table[3]["finished"], table[3]["test_loss"], table[3]["step"]) == ("false", "", "6")
    assert err.splitlines() == [*comparison.notes, *comparison.sentences]


def test_a_wide_table_leaves_out_columns(make, tmp_path):
    wide = {"epochs": 2, "momentum": 0.8, "weight_decay": 0.25, "clip_norm": 1.0, "patience": 3}
    make("a", 300)
    make("b", 300, **wide)
    comparison = compare_runs([tmp_path])
    header = as_text(comparison).splitlines()[0]
    assert len(header) <= 100
    assert "test loss" in header
    assert "test top-5" not in header
    assert "test top-5" in as_markdown(comparison)


@pytest.mark.slow
def test_trained_runs(tmp_path):
    """What a comparison counts is what the runs have saved."""
    for seed in (0, 1):
        call("train.py", *TINY, "--epochs=1", f"--seed={seed}", f"--run_dir={tmp_path}/{seed}")
    (found,) = compare_runs([tmp_path]).differences
    one, other = (Run.open(tmp_path / str(seed)) for seed in (0, 1))
    assert found.test == "McNemar"
    difference = other.result["top_1_accuracy"] - one.result["top_1_accuracy"]
    assert found.estimate.difference == pytest.approx(difference, abs=1e-6)
    assert found.only[1] - found.only[0] == round(difference * EXAMPLES)


def test_pictures(make, tmp_path):
    one, other = make("one", 357), make("other", 356, offset=2, momentum=0.8)
    chart, examples = tmp_path / "chart.png", tmp_path / "examples.png"
    call("compare.py", one, other, f"--chart={chart}", f"--examples={examples}")
    assert Image.open(chart).width > Image.open(chart).height > 300
    assert Image.open(examples).width > 300


@pytest.mark.parametrize("as_error", [False, True])
def test_the_chart_is_of_the_accuracy_or_the_error(make, tmp_path, monkeypatch, as_error):
    """The rows have a top-1 accuracy of 0.75 on val."""
    found = {}

    def compare_curves(panels, **options):
        found.update(panels=panels, **options)

    monkeypatch.setattr("pictures.compare_curves", compare_curves)
    monkeypatch.setattr("pictures.save", lambda figure, path: None)
    flags = ["--chart_error"] if as_error else []
    call("compare.py", make("one", 357), f"--chart={tmp_path / 'x.png'}", *flags)
    ((curve,),) = found["panels"]["validation"].values()
    np.testing.assert_array_equal(curve["value"], [0.25 if as_error else 0.75])
    assert len(curve["epoch"]) == 1
    assert found["metric_label"] == ("top-1 error" if as_error else "top-1")
    assert found["is_share"]
    assert found["higher_is_better"] != as_error


def test_the_images_that_tell_two_runs_apart(make, tmp_path, monkeypatch):
    """The first is right on 0 to 356, the second on 2 to 357: so on 0 and 1, and on 357."""
    found = {}

    def image_grid(images, captions, **options):
        found.update(images=images, captions=captions, **options)

    monkeypatch.setattr("pictures.image_grid", image_grid)
    monkeypatch.setattr("pictures.save", lambda figure, path: None)
    one, other = make("one", 357), make("other", 356, offset=2, momentum=0.8)
    call("compare.py", one, other, f"--examples={tmp_path / 'x.png'}")
    source = Run.open(one).dataset().splits["test"]
    np.testing.assert_array_equal(found["images"], source.fetch([0, 1, 357]).numpy())
    labels = source.labels[[0, 1, 357]]
    assert found["captions"] == [
        f"is {labels[0]}\nA: {labels[0]}\nB: {(labels[0] + 1) % 10}",
        f"is {labels[1]}\nA: {labels[1]}\nB: {(labels[1] + 1) % 10}",
        f"is {labels[2]}\nA: {(labels[2] + 1) % 10}\nB: {labels[2]}",
    ]
    assert found["title"] == (
        "A is one, B is other. Of 359 test images only A is right on 2 (blue), only B on 1 (orange)"
    )
    assert found["colors"][0] == found["colors"][1] != found["colors"][2]


def test_images_of_different_test_splits_are_not_drawn(make, tmp_path, capsys):
    """Although their labels are the same, as those of a copy in other quality."""
    one, other = make("one", 300), make("other", 310, data={"test": "01234567"})
    picture = tmp_path / "x.png"
    error = refused(capsys, "compare.py", one, other, f"--examples={picture}")
    assert "--examples: the two runs were scored on different test splits" in error
    assert not picture.exists()


def test_mistakes_are_one_line(make, tmp_path, capsys):
    run = make("runs/one", 300)
    make("runs/other", 300, seed=1, finished=False)
    for args, line in (
        ([], "nothing to compare: give directories of runs"),
        ([tmp_path / "none"], "none is not a run directory, it is not a directory"),
        ([run, run.parent.parent], None),
        ([run, "--metric=speed"], "--metric=speed is unknown; known: loss, top_1_accuracy, "),
        ([run, "--confidence=1"], "--confidence=1"),
        ([run, f"--chart={tmp_path}/x.jpg"], "expected the name of a .png file in a directory"),
        ([run, f"--chart={tmp_path}/no/x.png"], "expected the name of a .png file in a directory"),
        ([run, "--chart_error"], "--chart_error needs --chart, the name of the picture"),
        (
            [run, f"--chart={tmp_path}/x.png", "--chart_error", "--metric=loss"],
            "--chart_error draws 100% minus an accuracy, not --metric=loss",
        ),
        (
            [
                *(run, f"--chart={tmp_path}/x.png", "--chart_error"),
                "--metric=expected_calibration_error",
            ],
            "--chart_error draws 100% minus an accuracy, not --metric=expected_calibration_error",
        ),
        ([run.parent, f"--examples={tmp_path}/x.png"], "two finished runs apart, not 1; name two"),
    ):
        if line is not None:
            assert line in refused(capsys, "compare.py", *args)
    (tmp_path / "empty").mkdir()
    assert "empty is not a run directory, and there is none below it" in refused(
        capsys, "compare.py", tmp_path / "empty"
    )
    assert not list(tmp_path.glob("*.png"))
