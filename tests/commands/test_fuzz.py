"""Whatever is wrong with the input: one line, exit code 2, and nothing made or changed.

Whatever the environment is: the same results. A test with `some` has a quick form, with a part of
the cases, and a long one with all of them.
"""

import concurrent.futures
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import traceback

import pytest
from PIL import Image

from tests.commands import fuzz_cases as cases
from tests.commands.helpers import ROOT, call, read, tiny_net

PROGRAMS = tuple(cases.OPTIONS)
COMMAND_LINES = {program: cases.bad_command_lines(program) for program in PROGRAMS}
COMBINATIONS = {"train.py": cases.TRAIN_COMBINATIONS, "eval.py": cases.EVAL_COMBINATIONS}


@pytest.fixture(
    params=[
        pytest.param("quick", marks=pytest.mark.slow),
        pytest.param("long", marks=pytest.mark.exhaustive),
    ]
)
def some(request):
    """Takes a share of the cases, from the fixed seed; in the long form all of them."""

    def some(found, one_in):
        if request.param == "long":
            return list(found)
        return random.Random(cases.SEED).sample(list(found), max(len(found) // one_in, 1))

    return some


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    """A finished run, of a net that is quick to train but only known in this process."""
    run_dir = tmp_path_factory.mktemp("saved") / "run"
    with tiny_net():
        call("train.py", *cases.BASE["train.py"], "--net=tiny", f"--run_dir={run_dir}")
        yield run_dir


@pytest.fixture(scope="module")
def real_run(tmp_path_factory):
    """A finished run of a net that every process knows."""
    run_dir = tmp_path_factory.mktemp("real") / "run"
    call("train.py", *cases.BASE["train.py"], f"--run_dir={run_dir}")
    return run_dir


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def contents(directory):
    return {p: p.read_bytes() if p.is_file() else None for p in sorted(directory.rglob("*"))}


def shown(args):
    return " ".join(ascii(a if len(a) < 300 else f"{a[:100]}...{len(a)}") for a in args)


def outcome(capsys, here, program, args, *, may_pass=False):
    """What is wrong with a command's end, or None; and what it printed on standard error."""
    code, fault = 0, None
    try:
        call(program, *args)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        fault = traceback.format_exc()
    error = capsys.readouterr().err
    if fault is None and not (may_pass and code == 0 and error == ""):
        if code != 2:
            fault = f"exit code {code}"
        elif not (error.endswith("\n") and len(error.splitlines()) == 1 and len(error) < 3000):
            fault = f"not one line: {error[:500]!r}"
    if left := sorted(here.iterdir()):
        fault = f"{fault or ''} left {[path.name for path in left]}"
        for path in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return None if fault is None else f"{program} {shown(args)}: {fault}", error


def report(faults):
    found = [fault for fault in faults if fault is not None]
    assert not found, f"{len(found)} with seed {cases.SEED}\n" + "\n".join(found)


def test_there_are_enough_of_them():
    print(f"seed {cases.SEED}")
    counts = [len(x) for table in (COMMAND_LINES, COMBINATIONS) for x in table.values()]
    assert sum(counts) + 2 * len(cases.bad_flag_files()) >= 600
    for program in PROGRAMS:
        tried = " ".join(a for args in COMMAND_LINES[program] for a in args)
        for field in dataclasses.fields(cases.OPTIONS[program]):
            assert field.metadata["positional"] or f"--{field.name}=" in tried


@pytest.mark.parametrize("program", PROGRAMS)
def test_command_lines(program, here, capsys, some):
    report(
        outcome(capsys, here, program, (*cases.BASE[program], *args))[0]
        for args in some(COMMAND_LINES[program], 4)
    )


def test_flag_files(here, tmp_path, capsys, some):
    faults = []
    path = tmp_path / "flags.txt"
    for content in some(cases.bad_flag_files(), 2):
        path.write_bytes(content.replace(b"{own}", str(path).encode()))
        for program in COMBINATIONS:
            args = (*cases.BASE[program], f"--flagfile={path}")
            fault, _ = outcome(capsys, here, program, args)
            faults.append(fault and f"{content[:60]!r} {fault}")
    for program in PROGRAMS:
        for value in ("/no/such/file", str(tmp_path), "", "~nobody-of-that-name/x", cases.LONG):
            args = (*cases.BASE[program], f"--flagfile={value}")
            faults.append(outcome(capsys, here, program, args)[0])
        faults.append(outcome(capsys, here, program, (*cases.BASE[program], "--flagfile"))[0])
    report(faults)


@pytest.fixture
def places(saved_run, tmp_path):
    """Paths for the combinations."""
    made = {name: tmp_path / name for name in ("missing", "file", "garbage", "foreign", "empty")}
    made["file"].write_text("all my work")
    made["garbage"].write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 8)
    (made["foreign"] / "deep").mkdir(parents=True)
    (made["foreign"] / "thesis.txt").write_text("all my work")
    made["empty"].mkdir()
    made["images"] = tmp_path / "images"
    for i in range(20):
        path = made["images"] / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64)).save(path)
    for split in ("train", "test"):
        path = tmp_path / "single" / split / "a" / "1.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(path)
    return {**made, "run": saved_run, "single": tmp_path / "single"}


@pytest.mark.parametrize("program", tuple(COMBINATIONS))
def test_combinations(program, places, here, tmp_path, capsys, some):
    before = contents(tmp_path), contents(places["run"])
    faults = []
    for args in some(COMBINATIONS[program], 3):
        args = [arg.format(**places) for arg in args]
        faults.append(outcome(capsys, here, program, (*cases.BASE[program], *args))[0])
    report(faults)
    assert (contents(tmp_path), contents(places["run"])) == before


class Damaged:
    """A copy of a run with one file replaced, and what the commands say to it."""

    def __init__(self, saved_run, tmp_path, capsys, here):
        self.saved_run, self.run_dir = saved_run, tmp_path / "damaged"
        self.capsys, self.here = capsys, here
        self.faults = []
        self.is_copy = False

    def text(self, name: str) -> bytes:
        """A file of the run as it was saved."""
        return (self.saved_run / name).read_bytes()

    def put(self, name: str, content: bytes, *, finished: bool = True) -> None:
        """Makes a fresh copy of the run, if the last one was changed, and replaces a file in it."""
        if not (self.is_copy and finished):
            shutil.rmtree(self.run_dir, ignore_errors=True)
            shutil.copytree(self.saved_run, self.run_dir)
            self.is_copy = finished
        if not finished:
            (self.run_dir / "result.json").unlink()
        (self.run_dir / name).write_bytes(content)
        self.content = content

    def outcome(self, program, *args, may_pass=True, may_write=False) -> str:
        before = contents(self.run_dir)
        base = (*cases.BASE["train.py"], "--net=tiny") if program == "train.py" else ()
        args = (*base, "--device=cpu", f"--run_dir={self.run_dir}", *args)
        fault, error = outcome(self.capsys, self.here, program, args, may_pass=may_pass)
        if contents(self.run_dir) != before:
            self.is_copy = False
            if not may_write:
                fault = f"{fault or ''} changed the run"
        self.faults.append(fault and f"{self.content[:5000]!r} {fault}")
        return error


@pytest.fixture
def damaged(saved_run, tmp_path, capsys, here):
    return Damaged(saved_run, tmp_path, capsys, here)


def test_damaged_configurations(damaged, tmp_path, some):
    """Where the data are missing, what eval.py has nothing against ends with them."""
    configs = cases.mutated_configs(damaged.text("config.json"))
    assert len(configs) > 300
    still_good = []
    tried = some(configs, 4)
    for i, content in enumerate(tried):
        damaged.put("config.json", content)
        error = damaged.outcome("eval.py", f"--data_dir={tmp_path / 'missing'}", may_pass=False)
        if "missing is not a directory" in error:
            still_good.append(content)
        elif damaged.faults[-1] is None and "config.json" not in error:
            damaged.faults[-1] = f"{content[:5000]!r} does not name the file: {error}"
        if i % 8 == 0:
            damaged.outcome("train.py")
    assert len(still_good) < len(tried) / 4
    for content in some(still_good[:: max(len(still_good) // 5, 1)], 5):
        damaged.put("config.json", content)
        damaged.outcome("eval.py")
    report(damaged.faults)


def test_contradictory_configurations(damaged, some):
    text = damaged.text("config.json")
    for changes in some(cases.CONTRADICTIONS, 3):
        damaged.put("config.json", cases.with_settings(text, changes))
        for program in COMBINATIONS:
            assert "config.json" in damaged.outcome(program, may_pass=False), changes
    for changes in some(cases.TRAINING_CONTRADICTIONS, 2):
        damaged.put("config.json", cases.with_settings(text, changes))
        damaged.outcome("eval.py")
        damaged.outcome("train.py")
    for changes in some(cases.LATE_CONTRADICTIONS, 2):
        damaged.put("config.json", cases.with_settings(text, changes))
        damaged.outcome("eval.py", may_pass=False)
    report(damaged.faults)


def test_damaged_results(damaged, some):
    for content in some(cases.mutated_results(damaged.text("result.json")), 4):
        damaged.put("result.json", content)
        damaged.outcome("train.py")
    report(damaged.faults)


def test_damaged_checkpoints(damaged, some):
    for content in some(cases.mutated_lists(damaged.text("best/checkpoint")), 5):
        damaged.put("best/checkpoint", content)
        damaged.outcome("eval.py")
    for content in some((b"", b"\x00\xff\xfe", b"model_checkpoint_path: 7\n"), 3):
        damaged.put("checkpoints/checkpoint", content, finished=False)
        # The checkpoints themselves are good, and a list of them can be made anew.
        damaged.outcome("train.py", may_write=True)
        assert (damaged.run_dir / "result.json").exists()
    report(damaged.faults)


def test_damaged_metrics(damaged, some):
    for content in some(cases.mutated_metrics(damaged.text("metrics.jsonl")), 3):
        damaged.put("metrics.jsonl", content, finished=False)
        damaged.outcome("train.py", may_write=True)
        if damaged.faults[-1]:
            continue
        rows = (damaged.run_dir / "metrics.jsonl").read_text().splitlines()
        assert all(isinstance(json.loads(row)["step"], int) for row in rows)
    report(damaged.faults)


def start(program, *args, cwd, redirect="", **env):
    """Runs a command in a process of its own."""
    command = ["bash", "-c", f'"$@" {redirect}', "bash", sys.executable, str(ROOT / program), *args]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip


@pytest.mark.exhaustive
def test_processes_of_their_own(real_run, tmp_path, places):
    """A sample as a user gives it: nothing else may get to standard error either."""
    broken = tmp_path / "broken"
    shutil.copytree(real_run, broken)
    for index in (broken / "best").glob("*.index"):
        index.write_bytes(b"no index")
    own = tmp_path / "own.txt"
    own.write_text(f"--flagfile={own}\n")
    samples = [
        ("train.py", f"--flagfile={own}"),
        ("train.py", f"--flagfile={places['garbage']}"),
        ("train.py", "--dataset=digits", "--batch_size=9", "--num_gpus=2"),
        ("train.py", "--dataset=digits", f"--run_dir={places['foreign']}"),
        ("train.py", "--dataset=digits", "--data_dir=" + "x" * 3000),
        ("eval.py", "--run_dir=\udcff"),
        ("train.py", "--epochs=1e999"),
        ("eval.py", f"--run_dir={broken}"),
    ]
    started = [(sample, redirect) for sample in samples for redirect in ("", "2>&-")]

    def run(job):
        sample, redirect = job
        return start(*sample, cwd=places["empty"], redirect=redirect)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for (sample, redirect), done in zip(started, pool.map(run, started), strict=True):
            line, nothing = done.stderr, done.stdout
            if redirect:
                line, nothing = nothing, line
            assert done.returncode == 2, (sample, line)
            # Some mistakes are found after the devices are set up.
            line, nothing = (text.removeprefix("device CPU\n") for text in (line, nothing))
            assert nothing == "", sample
            assert line.count("\n") == 1, (sample, line)
            assert line.startswith(f"{sample[0]}: "), sample
    assert os.listdir(places["empty"]) == []


NO_HOME = """
import os, pwd
os.environ.pop("HOME", None)
def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = getpwuid
"""
KERAS_JSON = {
    "backend": "torch", "image_data_format": "channels_first", "floatx": "float64", "epsilon": 1e-3,
}  # fmt: skip
ALL = {
    "backends": {"KERAS_BACKEND": "torch", "TF_USE_LEGACY_KERAS": "1"},
    "keras.json": {"KERAS_HOME": "{home}"},
    "no home": {"PYTHONPATH": "{stubs}"},
    "an empty home": {"HOME": ""},
    "not UTF-8": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "closed streams": {"redirect": "<&- >&- 2>errors"},
    "closed standard error": {"redirect": "2>&-"},
    "a full disk": {"redirect": ">/dev/full"},
    "a closed pipe": {"redirect": "| false"},
}  # fmt: skip
# Those that change what is printed, and one that contradicts another.
ALONE = (("closed standard error",), ("a closed pipe", "an empty home"), ("a full disk",))
TOGETHER = ("backends", "keras.json", "no home", "not UTF-8", "closed streams")


@pytest.mark.parametrize(
    "which",
    [
        pytest.param(TOGETHER, marks=pytest.mark.slow),
        *(pytest.param(which, marks=pytest.mark.exhaustive) for which in ALONE),
    ],
    ids=str,
)
def test_environments(real_run, tmp_path, which):
    """The result is that of a process in which nothing was wrong."""
    for name, file, content in (
        ("home", "keras.json", json.dumps(KERAS_JSON)),
        ("stubs", "sitecustomize.py", NO_HOME),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(content)
    env = {}
    for name in which:
        env |= ALL[name]
    env = {k: v.format(home=tmp_path / "home", stubs=tmp_path / "stubs") for k, v in env.items()}
    run_dir = tmp_path / "run"
    command = ("train.py", *cases.BASE["train.py"], f"--run_dir={run_dir}")
    done = start(*command, cwd=tmp_path, **env)
    assert done.stderr == ""
    assert "| false" in env.get("redirect", "") or done.returncode == 0
    if "closed streams" in which:
        assert (tmp_path / "errors").read_text() == ""
    expected, found = (read(directory / "result.json") for directory in (real_run, run_dir))
    assert found["step"] == expected["step"] == 2
    # Sums in another order differ in the last bits.
    for name in ("loss", "top_1_accuracy", "expected_calibration_error"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name
