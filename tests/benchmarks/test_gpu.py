"""The report on GPUs: its judgements and tables, and its rehearsal on CPUs."""

import dataclasses
import json
import math
import subprocess
import sys
import time

import pytest

from benchmarks import gpu, gpu_checks, gpu_compare, gpu_measure, gpu_timing
from benchmarks.gpu_checks import Check, Training, Trainings
from benchmarks.gpu_compare import PRECISION, ROUNDING, Limits
from benchmarks.gpu_timing import Plan, Spec
from tests.commands import helpers
from tests.commands.helpers import ROOT, Command

LIMITS = Limits(1e-5, loss=1e-5, gradient=1e-3, weights=0.1, statistics=1, test=0.01, why="reason")
SPEC = Spec("tensorflow", "plain", "resnet50", 224, 1000, "tf32", 64, 1, True, 2, 2.0)
EVERYTHING = Plan(tuple(gpu_timing.NETS), gpu.PRECISIONS, 8, on_gpus=True, pytorch=True)


def differences(**others):
    found = {"start": 0.0, "loss": 5e-6, "gradient": 1e-4, "weights": 0.02, "statistics": 0.0}
    return {**found, "test": 0.0, **others}


@pytest.mark.parametrize(
    ("found", "ok", "phrase"),
    [
        (differences(), True, "loss differs by 5.0e-06, allowed 1e-05: reason"),
        (differences(weights=0.11), False, "weights differs by 1.1e-01, allowed 1e-01: reason"),
        (dict.fromkeys(differences(), 0.0), True, "no difference"),
        (differences(test=math.nan), False, "test differs by nan, allowed 1e-02: reason"),
    ],
)
def test_differences_are_judged_by_the_one_nearest_to_its_limit(found, ok, phrase):
    assert gpu_compare.judge(found, LIMITS) == (ok, phrase)


def test_every_precision_has_limits_and_a_place_in_the_order():
    assert {"float32", *PRECISION} == set(gpu.PRECISIONS) == set(gpu_timing.ORDER)


def test_one_gpu_is_not_compared_with_several():
    several = list(gpu_checks.checks(8, gpu.PRECISIONS, on_gpus=True))
    single = list(gpu_checks.checks(1, gpu.PRECISIONS, on_gpus=True))
    assert {check.one.workers for check in several} == {1, 2}
    assert "--num_gpus=4" in several[-1].one.flags  # Two workers with half of the GPUs each.
    assert not any("--num_gpus" in " ".join(check.one.flags) for check in single)
    assert [check.name for check in single] == [
        "float32, 1 GPU and the CPU",
        "--deterministic, twice",
        "--deterministic, stopped and resumed",
        *(f"{precision} and float32, 1 GPU" for precision in gpu.PRECISIONS[1:]),
        "--jit, 1 GPU",
    ]
    assert all(check.one != check.other for check in several + single)


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        ("noise\nTraceback (most recent call last)\n  File x\nValueError: no", 1, "ValueError: no"),
        (
            "Traceback (most recent call last):\n  File x\n"
            "tensorflow.python.framework.errors_impl.ResourceExhaustedError: OOM when allocating "
            "tensor\n\t [[node x]] [Op:__inference_run_1]\n",
            1,
            "out of memory",
        ),
        # TensorFlow warns, tries another algorithm, and then something else fails.
        ("out of memory\nTraceback (most recent call last):\nKeyError: 'x'", 1, "KeyError: 'x'"),
        ("Traceback (most recent call last):\ntorch.OutOfMemoryError: CUDA out of memory. Tried", 1,
         "out of memory"),
        ("", -9, "exit code -9"),
    ],
)  # fmt: skip
def test_a_failed_measurement_has_a_reason(error, code, reason):
    assert gpu_timing.reason(error, code) == reason


def test_measurements_take_turns_and_the_most_useful_come_first():
    plan = dataclasses.replace(EVERYTHING, nets=("resnet50", "resnet18"))
    specs = list(gpu_timing.measurements(plan))
    # Two rounds of five ways, for two nets, two batch sizes and four precisions.
    assert len(specs) == 2 * 5 * 2 * 2 * 4
    assert [(s.what, s.variant, s.replicas) for s in specs[:6]] == [
        ("tensorflow", "plain", 1),
        ("pytorch", "eager", 1),
        ("tensorflow", "jit", 1),
        ("pytorch", "compile", 1),
        ("tensorflow", "plain", 8),
        ("tensorflow", "plain", 1),
    ]
    assert {s.precision for s in specs[: len(specs) // 4]} == {"mixed_bfloat16"}
    assert [(s.net, s.batch_size) for s in specs[:20:10]] == [("resnet50", 256), ("resnet18", 1024)]


def test_a_report_is_continued_but_what_has_failed_is_not_tried_again():
    other = dataclasses.replace(SPEC, batch_size=8)
    made = [dataclasses.asdict(SPEC), {**dataclasses.asdict(other), "failed": "out of memory"}]
    assert list(gpu.pending([SPEC, other, SPEC, other], made)) == [SPEC]


def test_a_table_has_medians_and_shares():
    pytorch = dataclasses.replace(SPEC, what="pytorch", variant="eager")
    compiled = dataclasses.replace(pytorch, variant="compile")
    several = dataclasses.replace(SPEC, replicas=4)
    large = dataclasses.replace(SPEC, batch_size=4096)
    found = [
        (SPEC, {"images_per_second": [100.0, 300.0], "waiting": [0.0, 0.02], "peak_bytes": 3e9}),
        (pytorch, {"images_per_second": [80.0]}),
        (compiled, {"images_per_second": [160.0]}),
        (SPEC, {"images_per_second": [200.0], "waiting": [0.01], "first_step_seconds": 41.0}),
        (several, {"images_per_second": [600.0], "all_reduce_seconds": 0.0021}),
        (large, {"failed": "out of memory"}),
    ]
    table = gpu_timing.table([{**dataclasses.asdict(spec), **more} for spec, more in found])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert {len(row) for row in rows} == {13}
    place = ["resnet50", "224", "tf32", "64"]
    assert rows[2:] == [
        [*place, "1", "this project", "200 (100 to 300)", "125%", "", "1%", "", "3.00 GB", "41 s"],
        [*place, "1", "PyTorch", "80 (80 to 80)", *[""] * 6],
        [*place, "1", "PyTorch, compiled", "160 (160 to 160)", *[""] * 6],
        [*place, "4", "this project", "600 (600 to 600)", "", "75%", "", "2.1 ms", "", ""],
        [*place[:3], "4096", "1", "this project", "out of memory", *[""] * 6],
    ]


MACHINE = {
    "gpus": ["A", "A", "B"], "why_no_gpu": None, "driver": "550.1", "cuda": "12.5", "cudnn": "9",
    "cpu_cores": 16, "python": "3.12", "tensorflow": "2.21", "torch": None, "torchvision": None,
    "commit": "abc", "replicas": 3,
}  # fmt: skip


def test_the_headline_names_gpus_or_a_rehearsal():
    assert gpu.headline(MACHINE).startswith("2 x A, 1 x B, driver 550.1, CUDA 12.5, cuDNN 9, CPU")
    none = {**MACHINE, "gpus": [], "why_no_gpu": "no driver"}
    assert gpu.headline(none).startswith("REHEARSAL without a GPU (no driver), on 3 logical CPU")


def test_a_report_is_on_disk_after_each_result(tmp_path):
    report = gpu.Report(tmp_path / "out", MACHINE)
    report.add("checks", {"check": "one", "ok": False, "found": "broken"})
    report.add("checks", {"check": "one", "ok": True, "found": "mended"})
    again = gpu.Report(tmp_path / "out", MACHINE)
    assert again.content["checks"] == [{"check": "one", "ok": True, "found": "mended"}]
    assert "| one | ok | mended |" in (tmp_path / "out" / "gpu.md").read_text()
    with pytest.raises(ValueError, match="another machine"):
        gpu.Report(tmp_path / "out", {**MACHINE, "commit": "def"})


def test_what_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_timing, "measure", lambda request: {**MACHINE, "gpus": ["A"]})
    (tmp_path / "gpu.json").write_text("[]")
    (tmp_path / "file").touch()
    for flag, message in {
        f"--out={tmp_path}": "gpu.json is not a report of this program; give another directory",
        f"--out={tmp_path / 'file'}": "File exists",
        f"--out={tmp_path / 'file' / 'below'}": "Not a directory",
        "--gpus=2": "--gpus=2, but TensorFlow sees 1",
        "--minutes=-1": "--minutes=-1 must be at least 0",
        "--minutes=nan": "--minutes=nan must be at least 0",
        "--nets=lenet": "--nets=lenet: known are",
    }.items():
        with pytest.raises(SystemExit) as caught:
            gpu.main([flag])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "gpu.json").read_text() == "[]"


@pytest.mark.parametrize(
    ("flags", "fails", "code", "checks", "timings"),
    [
        (("--only=checks",), True, 1, 7, 0),
        (("--only=checks",), False, 0, 7, 0),
        (("--only=timing", "--quick", "--nets=resnet50"), False, 1, 0, 1),
        (("--minutes=0",), True, 0, 0, 0),
    ],
)
def test_a_failure_changes_the_exit_code_alone(
    tmp_path, monkeypatch, flags, fails, code, checks, timings
):
    """On one GPU, where the first check or any timing fails."""
    machine = {**MACHINE, "gpus": ["A"]}

    def measure(request):
        return machine if request["what"] == "machine" else {"failed": "ValueError: no"}

    def check(check, trainings):
        return {"check": check.name, "ok": not fails or "CPU" not in check.name, "found": ""}

    monkeypatch.setattr(gpu_timing, "measure", measure)
    monkeypatch.setattr(gpu_checks, "run_check", check)
    with pytest.raises(SystemExit) as caught:
        gpu.main([f"--out={tmp_path}", *flags])
    assert caught.value.code == code
    report = gpu.Report(tmp_path, {**machine, "replicas": 1, "quick": "--quick" in flags})
    assert len(report.content["checks"]) == checks
    assert len(report.content["timings"]) == timings
    assert (tmp_path / "gpu.md").is_file()


def test_each_timing_is_made_once_per_round(tmp_path, monkeypatch):
    """Of one net in one precision: plain and jit, of which the latter fails, at two batch sizes."""
    machine = {**MACHINE, "gpus": ["A"]}

    def measure(request):
        if request["what"] == "machine":
            return machine
        return {"failed": "no"} if request["variant"] == "jit" else {"images_per_second": [1.0]}

    monkeypatch.setattr(gpu_timing, "measure", measure)
    for rounds, made in ((2, 6), (3, 8)):
        flags = ["--only=timing", "--nets=resnet50", "--precisions=tf32", f"--rounds={rounds}"]
        with pytest.raises(SystemExit):
            gpu.main([f"--out={tmp_path}", *flags])
        content = json.loads((tmp_path / "gpu.json").read_text())
        assert len(content["timings"]) == made


def test_windows_are_timed_after_warming_up(monkeypatch):
    """On a clock that a step takes half a second of, and the first one ten more."""
    clock, calls = [0.0], []

    def run(steps):
        calls.append(steps)
        clock[0] += 0.5 * steps + (10 if len(calls) == 1 else 0)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(gpu_measure, "_STARTED", -1.0)
    found = gpu_measure.time_steps(run, SPEC)
    assert found == {"first_step_seconds": 11.5, "images_per_second": [128.0, 128.0]}
    assert calls == [1, 2, 2, 5, 4, 4]


class Forked:
    """A train.py with the tests' net, in a process that needs no import of TensorFlow."""

    def __init__(self, args, environment):
        self._command = Command("train.py", *args, **environment)
        self.send_signal = self._command.send_signal
        self.poll = lambda: self._command.returncode

    returncode = property(lambda self: self._command.returncode)

    def communicate(self, timeout):
        return self._command.wait(timeout)[1:]


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, helpers.tiny_net():
        patch.setattr(gpu_checks, "NET", "tiny")
        yield Trainings(tmp_path_factory.mktemp("trainings"), 2, Forked)


@pytest.mark.exhaustive
def test_a_rehearsal_passes_its_checks(trainings):
    checks = gpu_checks.checks(2, ("float32",), on_gpus=False)
    # The net has dropout, for which XLA draws other numbers.
    rows = [gpu_checks.run_check(check, trainings) for check in checks if "jit" not in check.name]
    assert [row["found"] for row in rows if not row["ok"]] == []
    exact = [row["check"] for row in rows if row["found"] == "equal bit for bit"]
    assert exact == ["--deterministic, twice", "--deterministic, stopped and resumed"]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (
            ("--schedule=constant",),
            "test differs by",
        ),  # Which lowers no rate after the first steps.
        (("--num_gpus=2", "--batch_size=63"), "exit code 2, not 0: train.py: --batch_size=63"),
    ],
)
def test_a_training_that_differs_or_fails_fails_a_check(trainings, flags, found):
    cpu = "--device=cpu"
    check = Check("x", Training((cpu, *flags)), Training((cpu,)), ROUNDING)
    row = gpu_checks.run_check(check, trainings)
    assert not row["ok"]
    assert found in row["found"]


@pytest.mark.exhaustive
def test_a_rehearsal_times_this_project(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--quick", "--only=timing"]
    command += ["--nets=resnet18", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("REHEARSAL")
    content = json.loads((tmp_path / "out" / "gpu.json").read_text())
    (row,) = (row for row in content["timings"] if row["what"] == "tensorflow")
    assert row["images_per_second"][0] > 0
    assert 0 <= row["waiting"][0] < 1
    assert "(rehearsal" in (tmp_path / "out" / "gpu.md").read_text()
