"""The comparison of speed: its flags, its arithmetic on made-up figures, and a rehearsal."""

import contextlib
import dataclasses
import io
import json
import math

import numpy as np
import pytest

from benchmarks import compare_speed
from benchmarks.speed import contest as contests
from benchmarks.speed import equality, examples, nets, parts, report, worker
from benchmarks.speed.contest import Measured, Settings, contest
from benchmarks.speed.job import Job


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--nets=resnet19", "'resnet19' is unknown; known: inception10, resnet18"),
        ("--parts=train,", "'' is unknown; known: train, pipeline"),
        ("--precisions=float16", "'float16' is unknown; known: float32, mixed_bfloat16"),
        ("--contestants=jax", "'jax' is unknown; known: ours, step"),
        ("--windows=0", "'0' must be a number of at least 1"),
        ("--seconds=nan", "'nan' must be a number of at least 0"),
        ("--batch_size=x", "'x' must be a number of at least 1"),
        ("--json=/no/such/place/a.json", "--json=/no/such/place/a.json: there is no directory"),
        ("--json=/", "--json=/: it is a directory"),
        ("--chart=a.svg", "--chart=a.svg: its name must end in .png"),
        ("--examples=50", "a batch of 128 needs as many --examples; there are 50"),
        ("--num_gpus=3", "--num_gpus=3 does not divide a batch of 128"),
        ("--torch_python=/no/python", "--torch_python=/no/python cannot import torch"),
    ],
)
def test_a_wrong_flag_is_named(capsys, flag, message):
    with pytest.raises(SystemExit) as caught:
        compare_speed.parse([flag])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_layer_of_a_description_has_the_path_that_it_has_in_the_net():
    net = nets.NETS["resnet20"](32)
    first, *_ = net.stages["stage_2"]
    assert first.residual == (nets.Conv(32, (3, 3), 2), nets.Conv(32, (3, 3), relu=False))
    assert first.shortcut == nets.Subsampling(32)
    assert [len(net.stages[f"stage_{i}"]) for i in (1, 2, 3)] == [3, 3, 3]


class Clock:
    """A clock that stands still, of two cores that compute."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(worker.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(worker.time, "process_time", lambda: 2 * self.now)


def test_windows_begin_after_a_warm_up_and_leave_out_what_is_between_epochs(monkeypatch):
    clock, answers = Clock(monkeypatch), io.StringIO()
    commands = io.StringIO('{"seconds": 2}\n{"seconds": 1}\n')
    meter = worker.Meter(worker.Channel(commands, answers), started=97.0, per_step=10)
    with contextlib.suppress(worker.Ended):
        for steps in range(1, 100):
            clock.now += 0.25
            if steps % 3 == 0:  # An epoch, shorter than a window; this is no part of it.
                meter.pause()
                clock.now += 60.0
                meter.at(steps)
                meter.resume()
            meter.at(steps, waiting=0.25)
    first, *windows = map(json.loads, answers.getvalue().splitlines())
    assert first["first_step_seconds"] == 3.25
    assert [(w["images"], w["seconds"], w["cpu"]) for w in windows] == [(80, 2, 4), (40, 1, 2)]
    assert steps == 1 + 2 + 8 + 2 + 4  # Half a second warms up.
    assert windows[0]["waiting"] == 0.25
    assert windows[0]["peak_bytes"] > 1e6


class FakeWorker:
    """Measures so many images per second, and is disturbed as often as a class attribute says."""

    calls, disturbances, started = [], {}, []

    def __init__(self, job, python, environment):
        if job.variant == "broken":
            raise contests.WorkerError("ValueError: no")
        self.start = {"first_step_seconds": 1.0, "cpu": 1.0, "peak_bytes": 5}
        self.job, self.is_ended = job, False

    def measure(self, seconds):
        assert not self.is_ended
        variant = self.job.variant
        self.calls.append(variant)
        left = self.disturbances[variant] = self.disturbances.get(variant, 0) - 1
        rate = float(variant)
        answer = {"images": rate * seconds, "seconds": seconds, "cpu": 2 * seconds}
        return {**answer, "peak_bytes": 7, "disturbed": 0.5 if left >= 0 else 0.0}

    def end(self):
        self.is_ended = True


def test_the_fastest_way_takes_part_and_windows_alternate(monkeypatch):
    FakeWorker.calls, FakeWorker.disturbances = [], {}
    monkeypatch.setattr(contests, "Worker", FakeWorker)
    families = [
        [Job("torch", "train", x) for x in ("20", "broken", "30")],
        [Job("ours", "train", "9")],
    ]
    lines = []
    settings = Settings({"torch": "", "ours": ""}, windows=3, seconds=2.0, say=lines.append)
    torch, ours = contest(families, settings)
    assert FakeWorker.calls == ["20", "30"] * 3 + ["30", "9", "9", "30", "30", "9"]
    assert torch.tried == {"20": 20, "broken": "ValueError: no", "30": 30}
    assert (torch.job.variant, torch.rates(), torch.rates("cpu")) == ("30", [30] * 3, [15] * 3)
    assert ours.peak_bytes == 7
    assert any("broken" in line and "ValueError: no" in line for line in lines)


def test_a_disturbed_window_is_measured_again(monkeypatch):
    FakeWorker.calls, FakeWorker.disturbances = [], {"9": 1}
    monkeypatch.setattr(contests, "Worker", FakeWorker)
    settings = Settings({"ours": ""}, windows=2, seconds=2.0, say=lambda line: None)
    (ours,) = contest([[Job("ours", "train", "9")]], settings)
    assert FakeWorker.calls == ["9"] * 3
    assert [window["disturbed"] for window in ours.windows] == [0.0, 0.0]


def measured(framework, task, rates, **more):
    """Windows of a second, at rates in images per second, with both cores."""
    windows = [
        {
            "images": x,
            "seconds": 1.0,
            "cpu": 2.0,
            "peak_bytes": 2e9,
            "disturbed": 0.0,
            "waiting": 0.1,
        }
        for x in rates
    ]
    start = {"first_step_seconds": 8.0, "cpu": 7.0, "peak_bytes": 1e9}
    return Measured(Job(framework, task, **more), start, windows)


def test_ratios_are_taken_round_by_round():
    # A machine that is half as fast in the second round.
    ours, torch = (
        measured(x, "train", r) for x, r in (("ours", (300, 150, 330)), ("torch", (100, 50, 100)))
    )
    (found,) = report.ratio("x", ours, torch)
    assert found["images_per_second"] == {"median": 3, "low": 3, "high": 3.3}
    assert report.ratio("x", ours, None) == []


def test_each_framework_is_taken_at_its_best():
    results = [
        measured("ours", "train", [200], precision="float32"),
        measured("ours", "step", [999], precision="float32"),
        measured("ours", "train", [300], precision="mixed_bfloat16"),
        measured("keras", "train", [100], precision="float32", variant="default"),
        measured("keras", "train", [150], precision="float32", variant="no XLA"),
        measured("keras", "train", [120], precision="mixed_bfloat16", variant="no XLA"),
    ]
    ratios = {r["what"]: r for r in report.training_ratios(results) if "over" in r}
    assert {what: r["images_per_second"]["median"] for what, r in ratios.items()} == {
        "train, over Keras at its best way, each at its best": 2,
        "train, over Keras at its best way, f32": pytest.approx(4 / 3),
        "train, over Keras at its best way, bf16": 2.5,
        "train, over Keras at its default": 3,
    }


def test_the_cost_of_what_is_around_the_step_includes_saves():
    train, step = measured("ours", "train", [100, 60]), measured("ours", "step", [100, 100])
    assert report.around(train, step) == pytest.approx(0.2)
    # 1/80 s an image, and two saves of 5 s in 1,600 images: 1/160 s more.
    train.windows[-1] |= {"save_seconds": 5.0, "epoch_images": 1600}
    assert report.around(train, step) == pytest.approx(1 - (1 / 100) / (3 / 160))


def test_a_row_has_the_share_of_the_roof():
    row = report.row(measured("ours", "train", [100, 300, 200]), multiply_adds=10**9, roof=2400.0)
    assert (row["gflops"], row["share_of_roof"]) == (1200, 0.5)
    texts = [
        "this project, f32",
        "200 (100 to 300)",
        "100",
        "2.00 GB",
        "8.0 s",
        "10.0%",
        "1,200",
        "50%",
    ]
    assert [x.strip() for x in report.line(row).split("  ") if x.strip()] == texts
    failed = report.row(Measured(Job("ours", "train"), failed="no"))
    assert report.line(failed) == "  this project, f32: no"


def test_nets_are_equal_up_to_rounding():
    ours = {name: np.array([2.0, 4.0]) for name in equality.LIMITS}
    assert equality.unequal(equality.differences(ours, ours)) == ""
    other = {**ours, "parameters": np.array([2.0, 4.1]), "loss": np.array([2.0, 4.0 + 1e-4])}
    found = equality.differences(ours, other)
    assert found["loss"] == pytest.approx(2.5e-5)
    assert equality.unequal(found) == "parameters differ by 0.025 of their size"
    assert equality.unequal(found | {"loss": math.nan}).endswith("loss differ by nan of their size")


def test_results_are_on_disk_and_drawn_at_once(tmp_path):
    flags = [f"--json={tmp_path / 'a.json'}", f"--chart={tmp_path / 'a.png'}"]
    options = compare_speed.parse(flags)
    plan = parts.Plan(options, Settings({}, 1, 1.0), tmp_path, {"machine": "x"})
    row = report.row(measured("ours", "train", [1, 2]))
    plan.record("train", "resnet18", {"rows": [row]})
    content = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert content == {"machine": "x", "train": {"resnet18": {"rows": [row]}}}
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


class AnyWorker(FakeWorker):
    """Measures a hundred images per second of everything, and keeps the jobs in `started`."""

    def __init__(self, job, python, environment=None):
        super().__init__(dataclasses.replace(job, variant="100"), python, environment)
        self.started.append(job)


@pytest.mark.parametrize("gpus", [1, 2])
def test_all_contestants_of_a_net_have_the_same_data(monkeypatch, tmp_path, capsys, gpus):
    FakeWorker.started = []
    monkeypatch.setattr(contests, "Worker", AnyWorker)
    monkeypatch.setattr(parts, "Worker", AnyWorker)
    monkeypatch.setattr(equality, "compared", lambda *_: dict.fromkeys(equality.LIMITS, 0.0))
    monkeypatch.setattr(parts, "_import_seconds", lambda python: (1.0, 1.0))
    monkeypatch.setattr(parts, "make_folder", lambda directory, number: directory)
    options = compare_speed.parse(
        [
            *("--nets=inception10,resnet50", "--parts=growth,start,evaluate,pipeline,train"),
            *("--dataset=cifar10", "--examples=1024", f"--num_gpus={gpus}", "--windows=1"),
        ]
    )
    pythons = dict.fromkeys(("ours", "keras", "torch"), "python")
    plan = parts.Plan(options, Settings(pythons, 1, 1.0, print), tmp_path, {})
    for name in options.parts:
        parts.PARTS[name](plan)
    printed = capsys.readouterr().out
    assert "train, over Keras at its best way, bf16" in printed
    assert ("train, over PyTorch at its best way, bf16" in printed) == (gpus == 1)
    trained = [job for job in FakeWorker.started if job.task == "train" and job.framework == "ours"]
    sizes = {(job.net, job.dataset, job.image_size) for job in trained}
    assert {x for x in sizes if x[1] not in ("folder", "digits")} == {
        ("inception10", "cifar10", 32),
        ("inception10", "made_up", 32),  # Of growth.
        ("resnet50", "made_up", 128),
    }
    checked = [
        job.net for job in FakeWorker.started if (job.task, job.framework) == ("check", "ours")
    ]
    assert checked == ["inception10", "resnet50"] * 2  # To train, and to evaluate.


class Ends:
    """A channel that wants some windows, and keeps the answers."""

    def __init__(self, windows):
        self.left, self.answers = windows, []

    def send(self, **answer):
        self.answers.append(answer)

    def receive(self):
        self.left -= 1
        if self.left < 0:
            raise worker.Ended
        return {"seconds": 0.01}


@pytest.mark.exhaustive
def test_keras_net_is_checked_and_trains(tmp_path):
    from benchmarks.speed import keras_fit, ours

    examples.write(tmp_path, 32, 64)
    job = Job("ours", "check", batch_size=8, directory=str(tmp_path), net="resnet20")
    for check in (ours.check, keras_fit.check):
        check(job, Ends(0))
    found = equality.compared(tmp_path, "keras")
    assert equality.unequal(found) == ""
    assert found["evaluated"] < 1e-5
    ends = Ends(1)
    with pytest.raises(worker.Ended):
        keras_fit.train(
            Job("keras", "train", "no XLA", batch_size=8, directory=str(tmp_path)), ends
        )
    assert [answer.get("images", 0) % 8 for answer in ends.answers] == [0, 0]


@pytest.mark.exhaustive
def test_a_rehearsal_measures_this_project(tmp_path, capsys):
    flags = ["--contestants=ours", "--precisions=float32", "--nets=inception10", "--batch_size=8"]
    flags += ["--windows=2", "--seconds=0", "--examples=100", f"--json={tmp_path / 'a.json'}"]
    with pytest.raises(SystemExit) as caught:
        compare_speed.main([*flags, "--parts=pipeline,train"])
    assert caught.value.code == 0
    found = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    (row,) = found["train"]["inception10"]["rows"]
    assert len(row["windows"]) == 2
    assert row["images_per_second"]["low"] > 0
    assert row["windows"][-1]["save_seconds"] > 0
    assert 0 <= row["waiting_for_data"] <= 1
    assert found["machine"]["cores"] >= 1
    assert "this project, f32" in capsys.readouterr().out
