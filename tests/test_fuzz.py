"""Whatever is wrong with the input: one line, exit code 2, and nothing made or changed."""

import concurrent.futures
import json
import pathlib
import shutil
import subprocess
import sys
import traceback

import pytest
from PIL import Image

from tests import fuzz_cases as cases
from tests.conftest import ROOT
from tests.test_commands import call

PROGRAMS = ("train.py", "eval.py")
COMMAND_LINES = [(p, args) for p in PROGRAMS for args in cases.bad_command_lines(p)]
FLAG_FILES = [(p, content) for content in cases.bad_flag_files() for p in PROGRAMS]
COMBINATIONS = [
    *(("train.py", args) for args in cases.TRAIN_COMBINATIONS),
    *(("eval.py", args) for args in cases.EVAL_COMBINATIONS),
]


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    """A finished run, and the command that made it."""
    run_dir = tmp_path_factory.mktemp("saved") / "run"
    command = (*cases.BASE["train.py"], f"--run_dir={run_dir}")
    call("train.py", *command)
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
    """What is at fault with a command's end, or None; and what it said."""
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
    if list(here.iterdir()):
        fault = f"{fault or ''} left {[p.name for p in here.iterdir()]}"
        shutil.rmtree(here)
        here.mkdir()
    return None if fault is None else f"{program} {shown(args)}: {fault}", error


def report(faults):
    found = [fault for fault in faults if fault is not None]
    assert not found, f"{len(found)} with seed {cases.SEED}\n" + "\n".join(found)


def test_there_are_enough_of_them():
    print(f"seed {cases.SEED}")
    assert len(COMMAND_LINES) + len(FLAG_FILES) + len(COMBINATIONS) >= 500
    tried = " ".join(a for _, args in COMMAND_LINES for a in args)
    for program in PROGRAMS:
        assert all(f"--{name}" in tried for name in cases.DEFINE[program](cases.flags.FlagValues()))


@pytest.mark.parametrize("program", PROGRAMS)
def test_command_lines(program, here, capsys):
    lines = [args for p, args in COMMAND_LINES if p == program]
    report(outcome(capsys, here, p, (*cases.BASE[p], *args))[0] for p, args in
           ((program, args) for args in lines))  # fmt: skip


def test_flag_files(here, tmp_path, capsys):
    faults = []
    path = tmp_path / "flags.txt"
    for program, content in FLAG_FILES:
        path.write_bytes(content.replace(b"{own}", str(path).encode()))
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


@pytest.mark.parametrize("program", PROGRAMS)
def test_combinations(program, places, here, tmp_path, capsys):
    before = contents(tmp_path), contents(places["run"])
    faults = []
    for args in (args for p, args in COMBINATIONS if p == program):
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

    def put(self, name: str, content: bytes, *, finished: bool = True) -> None:
        shutil.rmtree(self.run_dir, ignore_errors=True)
        shutil.copytree(self.saved_run, self.run_dir)
        if not finished:
            (self.run_dir / "result.json").unlink()
        (self.run_dir / name).write_bytes(content)
        self.content = content

    def outcome(self, program, *args, may_pass=True, may_write=False) -> str:
        before = contents(self.run_dir)
        base = cases.BASE[program][:-1] if program == "train.py" else ()
        args = (*base, "--device=cpu", f"--run_dir={self.run_dir}", *args)
        fault, error = outcome(self.capsys, self.here, program, args, may_pass=may_pass)
        if contents(self.run_dir) != before and not may_write:
            fault = f"{fault or ''} changed the run"
        self.faults.append(fault and f"{self.content[:5000]!r} {fault}")
        return error


@pytest.fixture
def damaged(saved_run, tmp_path, capsys, here):
    return Damaged(saved_run, tmp_path, capsys, here)


def test_damaged_configurations(damaged, tmp_path):
    """Where the data are missing, what eval.py has nothing against ends with them."""
    text = (damaged.saved_run / "config.json").read_bytes()
    configs = cases.mutated_configs(text)
    still_good = []
    for i, content in enumerate(configs):
        damaged.put("config.json", content)
        error = damaged.outcome("eval.py", f"--data_dir={tmp_path / 'missing'}", may_pass=False)
        if "missing is not a directory" in error:
            still_good.append(content)
        else:
            assert "config.json" in error, (error, content[:5000])
        if i % 8 == 0:
            damaged.outcome("train.py")
    assert len(configs) > 300
    assert len(still_good) < len(configs) / 4
    for content in still_good[:: len(still_good) // 5]:
        damaged.put("config.json", content)
        damaged.outcome("eval.py")
    report(damaged.faults)


def test_contradictory_configurations(damaged):
    text = (damaged.saved_run / "config.json").read_bytes()
    for changes in cases.CONTRADICTIONS:
        damaged.put("config.json", cases.with_flags(text, changes))
        for program in PROGRAMS:
            assert "config.json" in damaged.outcome(program, may_pass=False), changes
    for changes in cases.LATE_CONTRADICTIONS:
        damaged.put("config.json", cases.with_flags(text, changes))
        damaged.outcome("eval.py", may_pass=False)
    report(damaged.faults)


def test_damaged_results(damaged):
    for content in cases.mutated_results((damaged.saved_run / "result.json").read_bytes()):
        damaged.put("result.json", content)
        damaged.outcome("train.py")
    report(damaged.faults)


def test_damaged_checkpoints(damaged):
    for content in cases.mutated_lists((damaged.saved_run / "best" / "checkpoint").read_bytes()):
        damaged.put("best/checkpoint", content)
        damaged.outcome("eval.py")
    for content in (b"", b"\x00\xff\xfe", b"model_checkpoint_path: 7\n"):
        damaged.put("checkpoints/checkpoint", content, finished=False)
        # The states themselves are good, and a list of them can be made anew.
        damaged.outcome("train.py", may_write=True)
        assert (damaged.run_dir / "result.json").exists()
    report(damaged.faults)


def test_damaged_metrics(damaged):
    for content in cases.mutated_metrics((damaged.saved_run / "metrics.jsonl").read_bytes()):
        damaged.put("metrics.jsonl", content, finished=False)
        damaged.outcome("train.py", may_write=True)
        if damaged.faults[-1]:
            continue
        rows = (damaged.run_dir / "metrics.jsonl").read_text().splitlines()
        assert all(isinstance(json.loads(row)["step"], int) for row in rows)
    report(damaged.faults)


def test_processes_of_their_own(saved_run, tmp_path, places):
    """A sample as a user gives it: nothing else may get to standard error either."""
    broken = tmp_path / "broken"
    shutil.copytree(saved_run, broken)
    for index in (broken / "best").glob("*.index"):
        index.write_bytes(b"no index")
    own = tmp_path / "own.txt"
    own.write_text(f"--flagfile={own}\n")
    samples = [
        ("train.py", "--epochs=1e999"),
        ("train.py", f"--flagfile={own}"),
        ("train.py", f"--flagfile={places['garbage']}"),
        ("train.py", "--dataset=digits", "--batch_size=9", "--num_gpus=2"),
        ("train.py", "--dataset=digits", f"--run_dir={places['foreign']}"),
        ("train.py", "--dataset=digits", "--data_dir=" + "x" * 3000),
        ("eval.py", "--run_dir=\udcff"),
        ("eval.py", f"--run_dir={broken}"),
    ]

    def run(sample):
        program, *args = sample
        return subprocess.run(
            [sys.executable, str(ROOT / program), *args],
            cwd=places["empty"], capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for sample, done in zip(samples, pool.map(run, samples), strict=True):
            assert done.returncode == 2, (sample, done.stderr)
            assert done.stderr.count("\n") == 1, (sample, done.stderr)
            assert "Traceback" not in done.stderr, sample
    assert not list(pathlib.Path(places["empty"]).iterdir())
