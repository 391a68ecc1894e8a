"""The flag files of recipes, their records, and what is said when they are trained again."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
from absl import flags as absl_flags

from commands import build, flags, records
from commands.options import TrainOptions
from commands.records import Cost, Record, Seconds
from commands.results import read_published
from commands.setting import ConfigError
from loops.errors import RunError
from loops.records.run import read_json
from recipes import rerun
from tests.commands.helpers import contents

RECIPES = sorted(pathlib.Path(rerun.__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_flags_of_recipes_are_accepted(path):
    argv = ["train.py", f"--flagfile={path}"]
    with contextlib.chdir(rerun.ROOT):  # Recipes include others by paths from there.
        options = flags.parse(argv, TrainOptions, absl_flags.FlagValues())
    build.check(options.config)
    assert options.config != TrainOptions().config


def test_bases_of_others_are_no_recipes():
    names = records.recipe_names()
    assert {"digits", "degradation_plain20", "tutorial_inception10_frozen"} <= {*names}
    assert not {"degradation", "inception_ideas"} & {*names}


@pytest.mark.parametrize(
    "path", sorted((rerun.RECORDS).glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_records_are_those_of_their_recipes(path):
    assert records.read_record(path).accuracy == read_json(path / "result.json")["top_1_accuracy"]


def test_the_quick_recipes_take_less_than_an_hour():
    quick = [name for name, known in read_published().recipes.items() if known.quick]
    costs = [
        records.read_record(path).cost.seconds
        for name in quick
        for path in sorted((rerun.RECORDS / name).glob("seed_*"))
    ]
    assert 0 < sum(cost.total + (cost.pictures or 0) for cost in costs) < 3600


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ([90.0, 90.2, 90.4], [90.1, 90.3, 90.5], "holds"),
        ([90.0, 90.2, 90.4], [88.0, 88.2, 88.4], "FAILED: worse"),
        ([90.0, 90.2, 90.4], [92.0, 92.2, 92.4], "differs: better"),
        # Welch: p is 0.02. Yet 1.5 points, 3.7 standard errors, are too much.
        ([90.0, 90.5, 91.0], [88.5, 89.0, 89.5], "FAILED: worse"),
        ([90.0, 92.0, 94.0], [87.0, 89.0, 91.0], "holds"),  # 1.8 standard errors.
        # A single seed, beside those of the same recipe.
        ([90.0, 92.0, 94.0], [87.0], "holds"),  # 2.2 standard errors.
        ([90.0], [87.0, 89.0, 91.0], "holds"),
        ([90.0, 92.0, 94.0], [84.0], "FAILED: worse"),  # 3.5.
        ([90.0, 90.2, 90.4], [90.6, 90.8, 91.0], "holds"),  # Welch: p is 0.02.
        ([90.0, 91.0, 92.0], [87.8, 88.8, 89.8], "holds"),  # 2.7 standard errors.
        # 3.8, since it is the first that spread; Welch: p is 0.02.
        ([88.0, 90.0, 90.0, 90.0, 92.0], [87.6, 87.6], "FAILED: worse"),
        ([90.0, 92.0, 94.0], [93.0, 95.0, 97.0], "holds"),
        # Without any spread.
        ([90.0, 90.0], [90.0, 90.0, 90.0], "holds"),
        ([90.0, 90.0], [89.9, 89.9], "FAILED: worse"),
        ([90.0, 90.0], [90.1, 90.1], "differs: better"),
        # Single seeds.
        ([90.0], [90.9], "holds"),
        ([90.0], [89.1], "holds"),
        ([90.0], [88.9], "FAILED: worse"),
        ([90.0], [91.1], "differs: better"),
        ([90.0, 90.2, 90.4], [91.3], "differs: better"),
    ],
)
def test_what_is_said_of_a_result(before, now, said):
    assert rerun.verdict(np.array(before) / 100, np.array(now) / 100) == said


def run(seed, accuracy, seconds, commit="abc", path=None, data="a"):
    cost = Cost(
        seconds=Seconds(start=2.0, training=seconds - 5, evaluation=3.0, pictures=9.0),
        processes=1,
        machine="m",
        commit=commit,
    )
    info = types.SimpleNamespace(name="digits", fingerprints={"test": data})

    def dataset(data_dir):
        if data != "a":
            raise RunError("the test split is not the one")

    run = types.SimpleNamespace(
        path=path or pathlib.Path(f"seed_{seed}"), data=info, dataset=dataset
    )
    return Record(run=run, result={"top_1_accuracy": accuracy}, cost=cost)


@pytest.fixture
def world(monkeypatch, tmp_path):
    """Recipes of which no net is trained: what is trained, and records by directory and seed."""
    world = types.SimpleNamespace(
        trained=[], accuracy=0.5, root=tmp_path, data="a", recorded_data="a", checked=[]
    )
    world.data_dirs = []
    for seed in (0, 2):
        (tmp_path / "results" / "digits" / f"seed_{seed}").mkdir(parents=True)

    def train(recipe, seed, directory, data_dir):
        world.data_dirs.append(data_dir)
        if recipe == "resnet20":
            raise RunError("training ended with exit code 2")
        world.trained.append((recipe, seed, str(directory.relative_to(tmp_path))))

    def read(directory, seeds):
        is_record = directory.parent == tmp_path / "results"
        accuracy, seconds, data = (
            (0.5, 20.0, world.recorded_data) if is_record else (world.accuracy, 30.0, world.data)
        )
        return [run(n, accuracy + 0.001 * n, seconds + n, data=data) for n in seeds]

    monkeypatch.setattr(rerun, "train", train)
    monkeypatch.setattr(rerun, "read", read)
    monkeypatch.setattr(rerun, "check_same_net", world.checked.append)
    monkeypatch.setattr(rerun, "commit", lambda: "abc")
    monkeypatch.setattr(rerun, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(rerun, "RECORDS", tmp_path / "results")

    def main(*args):
        monkeypatch.setattr(rerun.sys, "argv", ["rerun.py", *args])
        with pytest.raises(SystemExit) as caught:
            rerun.main()
        return caught.value.code

    world.main = main
    return world


def test_recorded_recipes_are_trained_for_this_commit(world, capsys):
    assert world.main() == 0
    assert world.trained == [("digits", 0, "runs/abc/digits"), ("digits", 2, "runs/abc/digits")]
    assert capsys.readouterr().out == (
        "digits: holds, 50.10% in 31 s (n = 2); recorded 50.10% in 21 s (n = 2)\n"
    )


def test_recipes_that_are_not_quick_are_trained_by_name_alone(world):
    (world.root / "results" / "speednet" / "seed_0").mkdir(parents=True)
    assert world.main() == 0
    assert {recipe for recipe, *_ in world.trained} == {"digits"}
    assert world.main("speednet") == 0
    assert world.trained[-1][0] == "speednet"


def test_seeds_are_numbers_in_their_order(tmp_path):
    for name in ("seed_10", "seed_2", "seed_0", "seed_02", "seed_x"):
        (tmp_path / name).mkdir()
    assert rerun.seeds_in(tmp_path) == [0, 2, 10]


def test_data_elsewhere_are_checked_and_used(world, monkeypatch):
    monkeypatch.setattr(rerun, "check_data_at_hand", lambda *args: world.data_dirs.append(args[-1]))
    assert world.main(f"--data_dir={world.root}") == 0
    assert world.data_dirs == [str(world.root)] * 3  # To check them, and for each of two seeds.


def test_no_recorded_seed_is_lost(world, monkeypatch, capsys):
    monkeypatch.setattr(rerun, "record", lambda *args: "kept")
    assert world.main("digits", "--record", "--seeds=0,1") == 1
    assert "digits: FAILED: --record would lose seed 2; name it" in capsys.readouterr().out
    assert world.trained == []
    assert world.main("digits", "--record", "--seeds=0,1,2") == 0


@pytest.mark.slow
def test_output_that_cannot_be_written_is_no_failed_recipe():
    command = [sys.executable, rerun.__file__, "resnet56", "--seeds=0", f"--from={rerun.RECORDS}"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == ("rerun.py: cannot write standard output: No space left on device\n")


def test_a_finished_run_is_said_to_be_from_before(world, capsys):
    path = world.root / "runs" / "abc" / "digits" / "seed_2"
    path.mkdir(parents=True)
    (path / "result.json").touch()
    assert world.main() == 0
    assert capsys.readouterr().out.endswith("; 1 of 2 trained before\n")


@pytest.mark.parametrize(
    ("accuracy", "said"), [(0.4, "FAILED: worse, "), (0.6, "differs: better, ")]
)
def test_the_exit_status_is_1_if_one_differs(world, capsys, accuracy, said):
    world.accuracy = accuracy
    assert world.main() == 1
    assert capsys.readouterr().out.startswith(f"digits: {said}")


def test_a_recipe_that_cannot_be_trained_does_not_stop_the_others(world, capsys):
    assert world.main("resnet20", "digits", "--seeds=0,2") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "resnet20: FAILED: training ended with exit code 2"
    assert lines[1].startswith("digits: holds")


def test_runs_from_elsewhere_are_not_trained(world, capsys):
    (world.root / "mine" / "digits" / "seed_7").mkdir(parents=True)
    assert world.main("digits", f"--from={world.root / 'mine'}") == 0
    assert world.trained == []
    assert "(n = 1); recorded" in capsys.readouterr().out


def test_runs_from_elsewhere_are_by_default_all_that_are_there(world, capsys):
    mine = world.root / "mine"
    for recipe in ("resnet18", "nonsense"):
        (mine / recipe / "seed_7").mkdir(parents=True)
    assert world.main(f"--from={mine}", "--record") == 1  # There are no files to be copied.
    assert capsys.readouterr().out.startswith("resnet18: complete, ")
    assert world.main(f"--from={mine / 'resnet18'}") == 2
    assert "--from: there are no runs of recipes in" in capsys.readouterr().err


def test_other_data_are_not_trained_on_in_vain(world, monkeypatch, capsys):
    world.recorded_data = "b"
    monkeypatch.setattr(rerun, "name_of_data", lambda info: f"data {info.fingerprints['test']}")
    assert world.main() == 1
    assert capsys.readouterr().out.startswith("digits: FAILED: the records are of data b, and dig")
    assert world.trained == []
    assert world.main("--record") == 1  # Since a run of the tests has no files to copy.
    assert len(world.trained) == 2


def test_runs_of_other_data_are_not_compared(world, monkeypatch, capsys):
    world.data = "b"
    monkeypatch.setattr(rerun, "name_of_data", lambda info: f"data {info.fingerprints['test']}")
    (world.root / "mine" / "digits" / "seed_7").mkdir(parents=True)
    assert world.main("digits", f"--from={world.root / 'mine'}") == 1
    said = "digits: FAILED: seed_7 is of other data than the records, data a, and cannot be"
    assert capsys.readouterr().out.startswith(said)


def test_the_nets_of_runs_are_checked_before_records_change(world, monkeypatch, capsys):
    def check(found):
        raise ConfigError("the operations have changed")

    monkeypatch.setattr(rerun, "check_same_net", check)
    monkeypatch.setattr(rerun, "record", lambda *args: pytest.fail("recorded"))
    assert world.main("digits", "--record") == 1
    assert capsys.readouterr().out == "digits: FAILED: the operations have changed\n"


def test_without_records_seeds_are_wanted(world, capsys):
    assert world.main("resnet56") == 1
    said = "resnet56: FAILED: it has no records; name the seeds to train, such as --seeds=0,1,2\n"
    assert capsys.readouterr().out == said
    assert world.main("resnet56", "--seeds=1") == 0


def test_records_are_changed_when_all_is_trained(world, monkeypatch, capsys):
    """A changed record would make the runs of the next recipe ones of uncommitted code."""
    monkeypatch.setattr(rerun, "record", lambda *args: world.trained.append("recorded") or "kept")
    assert world.main("resnet20", "digits", "resnet56", "--seeds=0,2", "--record") == 1
    assert [what if what == "recorded" else what[0] for what in world.trained] == [
        *("digits", "digits", "resnet56", "resnet56", "recorded", "recorded"),
    ]
    assert capsys.readouterr().out.splitlines()[-2:] == ["digits: kept", "resnet56: kept"]
    monkeypatch.setattr(rerun, "commit", lambda: "abc-dirty")
    assert world.main("digits", "--record") == 1
    assert len(world.trained) == 6
    assert "changes that are in no commit" in capsys.readouterr().out


def test_code_that_changes_in_training_is_noticed(world, monkeypatch, capsys):
    monkeypatch.setattr(rerun, "read", lambda directory, seeds: [run(0, 0.5, 20.0, "def")])
    assert world.main() == 1
    assert capsys.readouterr().out == "digits: FAILED: the code has changed: seed_0 is of def\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["digits", "--seeds=a"], "'a' is not a list"),
        (["digits", "--seeds=0,0"], "'0,0' is not a list"),
        (["digits", "--seeds=0,00"], "'0,00' is not a list"),
        (["degradation"], "there is no recipe degradation; known: "),
        (["digits", "--from="], "'' is not a directory"),
        (["digits", "--from=README.md"], "'README.md' is not a directory"),
        (["nonsense"], "there is no recipe nonsense; known: "),
        (["digits", "--rec"], "unrecognized arguments: --rec"),
        (["--data_dir=nowhere"], "'nowhere' is not a directory"),
    ],
)
def test_wrong_arguments_are_one_line(world, capsys, args, said):
    assert world.main(*args) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert " inception_ideas," not in error


def test_uncommitted_changes_have_a_directory_of_their_own(world, monkeypatch):
    monkeypatch.setattr(rerun, "commit", lambda: "abc-dirty")
    found = set()
    for text in (b"one", b"two", b"one"):
        done = types.SimpleNamespace(stdout=text)
        monkeypatch.setattr(rerun.subprocess, "run", lambda *args, done=done, **more: done)
        found.add(rerun.runs_of_this_code())
    assert len(found) == 2
    assert all(path.name.startswith("abc-dirty-") for path in found)


def test_each_seed_is_a_process_in_a_directory_of_its_own(monkeypatch):
    commands = []

    def start(command, cwd):
        commands.append((command[1:], cwd))
        return types.SimpleNamespace(wait=lambda: codes.pop(0))

    monkeypatch.setattr(rerun.subprocess, "Popen", start)
    codes = [0, 2, 130, -2]
    rerun.train("digits", 3, rerun.ROOT / "runs" / "x")
    flags = ["--flagfile=recipes/digits.txt", "--seed=3", "--run_dir=runs/x/seed_3"]
    assert commands == [(["train.py", *flags], rerun.ROOT)]
    with pytest.raises(RunError, match="seed 3 ended with exit code 2"):
        rerun.train("digits", 3, rerun.ROOT / "runs" / "x", "/data")
    assert commands[1][0] == ["train.py", *flags, "--data_dir=/data"]
    for _ in range(2):  # Ctrl-C ends all of it.
        with pytest.raises(SystemExit) as caught:
            rerun.train("digits", 3, rerun.ROOT / "runs" / "x")
        assert caught.value.code == 130


def test_a_termination_is_passed_on(tmp_path, monkeypatch):
    monkeypatch.setattr(rerun, "ROOT", tmp_path)
    (tmp_path / "train.py").write_text(
        "import pathlib, signal, sys, time\n"
        "def stop(*_):\n    pathlib.Path('saved').touch()\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "pathlib.Path('started').touch()\n"
        "time.sleep(60)\n"
    )

    def terminate():
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=terminate, daemon=True).start()
    with pytest.raises(SystemExit) as caught:
        rerun.train("digits", 3, tmp_path / "runs")
    assert caught.value.code == 143
    assert (tmp_path / "saved").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def runs_in(directory, *seeds, commit="abc", without=None):
    """Runs of which a file each says whose it is."""
    for seed in seeds:
        path = directory / f"seed_{seed}"
        path.mkdir(parents=True)
        for name in (*records.FILES, "predictions.npz"):
            if name != without:
                (path / name).write_text(f"{seed} {name} {directory.parent.name}")
    return [run(s, 0.5, 20.0, commit, directory / f"seed_{s}") for s in seeds]


def test_the_small_files_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(rerun, "RECORDS", tmp_path / "results")
    runs_in(tmp_path / "results" / "digits", 0, 5)
    rerun.record("digits", runs_in(tmp_path / "runs" / "digits", 0, 1))
    wanted = {
        f"digits/seed_{seed}/{name}": f"{seed} {name} runs".encode()
        for seed in (0, 1)
        for name in ("config.json", "metrics.jsonl", "result.json", "times.json")
    }
    assert contents(tmp_path / "results") == wanted


def test_records_stay_until_new_ones_are_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(rerun, "RECORDS", tmp_path / "results")
    runs_in(tmp_path / "results" / "digits", 0, 5)
    before = contents(tmp_path / "results" / "digits")
    found = runs_in(tmp_path / "runs" / "digits", 0, 1, without="times.json")
    with pytest.raises(FileNotFoundError):
        rerun.record("digits", found)
    for commit in ("abc-dirty", "abc-dirty; abc", "unknown"):
        with pytest.raises(ConfigError, match=f"in no commit .{commit}"):
            rerun.record("digits", [run(0, 0.5, 20.0, commit)])
    assert contents(tmp_path / "results" / "digits") == before
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["digits"]
