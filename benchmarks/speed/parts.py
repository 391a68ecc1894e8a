"""The parts of the comparison: which contestants there are, and what is made of their figures."""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import tempfile
import time

from benchmarks import input_speed
from benchmarks.speed import equality, examples, report
from benchmarks.speed.contest import DISTURBED, Measured, Settings, contest
from benchmarks.speed.job import Job
from benchmarks.speed.process import Worker, WorkerError

# Of each net, size of the images in pixels and examples in a batch.
NETS = {
    "inception10": (32, 128),
    "resnet18": (32, 128),
    "resnet20": (32, 128),
    "resnet50": (128, 32),
    "inception_v3": (128, 32),
}
CONTESTANTS = ("ours", "step", "keras", "torch", "roof")
KERAS_BEST = ("no XLA", "no XLA, 4 steps a call")
TORCH = {
    "float32": ("eager", "compiled"),
    "mixed_bfloat16": (
        *("eager", "compiled"),
        *("eager, bfloat16 weights", "compiled, bfloat16 weights"),
    ),
}
# In evaluation, BatchNorm is also folded into the convolutions.
TORCH_FOLDED = {name: tuple(f"{x}, folded" for x in ways) for name, ways in TORCH.items()}
ROOF_SIZE = 4096  # Rows and columns of the matrices.
GROWTH_BATCHES, GROWTH_REPLICAS = (32, 64, 128, 256, 512, 1024), (1, 2, 4)
GROWTH_FILES = (1_000, 10_000, 60_000)
MOST_IDLE_CPU = 0.02  # Share of a core that a process that waits may use.


class Plan:
    """What is asked for.

    Args:
        options: the flags.
        settings: how it is measured.
        directory: for examples and runs.
        found: what is known of the machine and the flags; results are added.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        settings: Settings,
        directory: pathlib.Path,
        found: dict,
    ):
        self.options, self.settings, self.directory = options, settings, directory
        self.found, self.say = found, settings.say
        self.has_failed = False
        self._size = 0

    def has(self, contestant: str) -> bool:
        """Whether a contestant takes part; PyTorch and the roof are those of one device."""
        if self.options.num_gpus > 1 and contestant in ("torch", "roof"):
            return False
        framework = {"step": "ours", "roof": "ours"}.get(contestant, contestant)
        return contestant in self.options.contestants and framework in self.settings.pythons

    def job(self, framework: str, task: str, net: str = "inception10", **more) -> Job:
        """A job with the sizes of the net, unless the flags say otherwise."""
        size, batch_size = NETS[net]
        fields = {
            "image_size": size,
            "batch_size": self.options.batch_size or batch_size,
            "replicas": self.options.num_gpus,
            "directory": str(self.directory),
            **more,
        }
        return Job(framework, task, net=net, **fields)

    def prepare(self, net: str) -> None:
        """Writes the examples that a net is trained on, unless they are there."""
        size, _ = NETS[net]
        if size == self._size:
            return
        if self.options.dataset != "made_up" and size == 32:
            self._run(self.job("ours", "export", net, dataset=self.options.dataset))
        else:
            number = self.options.examples or examples.count(size)
            examples.write(self.directory, size, number)
        self._size = size

    def _run(self, job: Job) -> None:
        Worker(job, self.settings.pythons[job.framework]).end()

    def check(self, net: str) -> dict[str, dict[str, float]]:
        """Compares the net of each framework with this project's.

        Raises:
            WorkerError: they are not equal.
        """
        frameworks = [x for x in ("keras", "torch") if self.has(x)]
        found = {}
        for framework in ["ours", *frameworks]:
            self._run(self.job(framework, "check", net, batch_size=32, replicas=1))
            if framework != "ours":
                found[framework] = equality.compared(self.directory, framework)
                if problem := equality.unequal(found[framework]):
                    raise WorkerError(f"{net} of {framework} is another net: {problem}")
                largest = max(found[framework]["evaluated"], found[framework]["trained"])
                self.say(f"  {net} of {framework} is equal: logits differ by {largest:.0e} at most")
        return found

    def multiply_adds(self, net: str) -> int:
        """Of the forward pass, as the check has found."""
        import numpy as np

        path = self.directory / "ours.npz"
        return int(np.load(path)["multiply_adds"]) if path.exists() else 0

    def contest(self, families, environment=None) -> list[Measured]:
        """Measures, and says what disturbs."""
        results = contest(families, self.settings, environment)
        for x in results:
            self.has_failed |= bool(x.failed)
            if x.idle_cpu > MOST_IDLE_CPU:
                self.say(f"  {x.job.name} used {x.idle_cpu:.0%} of a core while it waited")
        shares = [x.disturbed for x in results if x.windows]
        if shares and max(shares) > DISTURBED:
            self.say(
                f"  THE MACHINE IS BUSY: others used {min(shares):.0%} to {max(shares):.0%} of its "
                "cores, so these figures say little"
            )
        return results

    def record(self, part: str, name: str, result: dict) -> None:
        """Keeps a result, and writes the files that are asked for."""
        self.found.setdefault(part, {})[name] = result
        if self.options.json:
            write_json(self.options.json, self.found)
        trained = {net: shown(x["rows"]) for net, x in self.found.get("train", {}).items()}
        if part == "train" and self.options.chart and any(trained.values()):
            report.draw(self.options.chart, {net: rows for net, rows in trained.items() if rows})


def shown(rows: list[dict]) -> list[dict]:
    """The rows of a chart of training."""
    return [row for row in rows if row["task"] == "train" and "failed" not in row]


def train(plan: Plan) -> None:
    """Training of each net, each precision and each framework."""
    for net in plan.options.nets:
        plan.say(f"train {net}")
        plan.prepare(net)
        differences = plan.check(net)
        results = plan.contest(_training_families(plan, net))
        roofs = {x: _roof(results, x) for x in plan.options.precisions}
        count = plan.multiply_adds(net)
        trained = [x for x in results if x.job.task != "roof"]
        rows = [report.row(x, count, roofs[x.job.precision]) for x in trained]
        ratios = report.training_ratios(trained)
        _print(plan, rows, ratios)
        for precision, roof in roofs.items():
            if roof:
                plan.say(f"  roof, a matrix product in {precision}: {roof:,.0f} GFLOP/s")
        result = {
            "differences": differences,
            "multiply_adds": count,
            "roof_gflops": roofs,
            "rows": rows,
            "ratios": ratios,
        }
        plan.record("train", net, result)


def _print(plan: Plan, rows: list[dict], ratios: list[dict]) -> None:
    plan.say(report.HEADER)
    for row in rows:
        plan.say(report.line(row))
    for ratio in ratios:
        plan.say(report.ratio_line(ratio))


def _training_families(plan: Plan, net: str) -> list[list[Job]]:
    families = []
    for precision in plan.options.precisions:
        for task in ("train", "step"):
            if plan.has({"train": "ours"}.get(task, task)):
                families.append(
                    [plan.job("ours", task, net, precision=precision, **_data(plan, task, net))]
                )
        families += _others(plan, "train", net, precision)
        for framework in ("ours", "torch") if plan.has("roof") else ():
            if framework in plan.settings.pythons:
                size = plan.options.roof_size
                families.append(
                    [plan.job(framework, "roof", net, precision=precision, batch_size=size)]
                )
    return families


def _data(plan: Plan, task: str, net: str) -> dict:
    """The dataset of this project's train.py: for 32 pixels, it may be one that it knows."""
    real = task == "train" and plan.options.dataset != "made_up" and NETS[net][0] == 32
    return {"dataset": plan.options.dataset} if real else {}


def _others(plan: Plan, task: str, net: str, precision: str) -> list[list[Job]]:
    """Keras at its default and at its best, and PyTorch at its best."""
    families = []
    if plan.has("keras"):
        for variants in (("default",), KERAS_BEST):
            families.append(
                [plan.job("keras", task, net, precision=precision, variant=x) for x in variants]
            )
    if plan.has("torch"):
        ways = TORCH_FOLDED[precision] if task == "evaluate" else TORCH[precision]
        families.append(
            [plan.job("torch", task, net, precision=precision, variant=x) for x in ways]
        )
    return families


def _roof(results: list[Measured], precision: str) -> float:
    """GFLOP/s of the faster matrix product; 0 if there is none."""
    rates = [
        x.rate
        for x in results
        if x.windows and (x.job.task, x.job.precision) == ("roof", precision)
    ]
    return max(rates, default=0.0)


def pipeline(plan: Plan) -> None:
    """Training batches that nobody uses, cropped and flipped."""
    plan.say("pipeline alone")
    plan.prepare("inception10")
    families = [[plan.job("ours", "pipeline")]] if plan.has("ours") else []
    if plan.has("keras"):
        families += [
            [plan.job("keras", "pipeline", variant=x)] for x in ("default", "by the batch")
        ]
    if plan.has("torch"):
        families.append([plan.job("torch", "pipeline")])
    results = plan.contest(families)
    rows = [report.row(x) for x in results]
    ratios, ours = [], report.best(results, "ours", "pipeline")
    for framework, name in (("keras", "tf.data by the batch"), ("torch", "PyTorch")):
        ratios += report.ratio(
            f"pipeline, over {name}", ours, report.best(results, framework, "pipeline")
        )
    trained = plan.found.get("train", {}).get("inception10", {}).get("rows", [])
    rates = [
        row["images_per_second"]["median"]
        for row in trained
        if (row["framework"], row["task"]) == ("ours", "train") and "failed" not in row
    ]
    if ours and rates:
        per_core = statistics.median(ours.rates("cpu"))
        what = "pipeline's images per CPU second over inception10's training rate"
        ratios.append(report.single(what, per_core / max(rates), ".1f"))
    _print(plan, rows, ratios)
    plan.record("pipeline", "crop and flip", {"rows": rows, "ratios": ratios})


def evaluate(plan: Plan) -> None:
    """Evaluation of each net, each precision and each framework."""
    for net in plan.options.nets:
        plan.say(f"evaluate {net}")
        plan.prepare(net)
        plan.check(net)
        families = []
        for precision in plan.options.precisions:
            for variant in ("", "folded") if plan.has("ours") else ():
                families.append(
                    [plan.job("ours", "evaluate", net, precision=precision, variant=variant)]
                )
            families += _others(plan, "evaluate", net, precision)
        results = plan.contest(families)
        rows, ratios = [report.row(x) for x in results], report.evaluation_ratios(results)
        _print(plan, rows, ratios)
        plan.record("evaluate", net, {"rows": rows, "ratios": ratios})


def start(plan: Plan) -> None:
    """From the command to the first step, in fresh processes, over `import tensorflow` alone."""
    plan.say("start")
    plan.prepare("inception10")
    python = plan.settings.pythons["ours"]
    dataset = plan.options.dataset
    jobs = {name: plan.job("ours", "train", dataset=name) for name in ("digits", dataset)}
    times: dict[str, list[tuple[float, float]]] = {"import tensorflow": []} | {x: [] for x in jobs}
    for _ in range(plan.settings.windows):
        times["import tensorflow"].append(_import_seconds(python))
        for name, job in jobs.items():
            worker = Worker(job, python)
            times[name].append((worker.start["first_step_seconds"], worker.start["cpu"]))
            worker.end()
    imported = times["import tensorflow"]
    for name, values in times.items():
        found = {}
        for number, unit in enumerate(("seconds", "cpu_seconds")):
            found[unit] = report.summary([x[number] for x in values])
            pairs = zip(values, imported, strict=True)
            found[f"{unit}_over_import"] = report.summary([a[number] / b[number] for a, b in pairs])
        plan.say(
            f"  {name:<24}{found['seconds']['median']:.1f} s ({found['seconds']['low']:.1f} to "
            f"{found['seconds']['high']:.1f}), {found['seconds_over_import']['median']:.2f} times "
            f"the import; in CPU seconds {found['cpu_seconds_over_import']['median']:.2f} times"
        )
        plan.record("start", name, found)


def _import_seconds(python: str) -> tuple[float, float]:
    """Seconds and CPU seconds of a process that imports TensorFlow."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run(
        [python, "-c", "import tensorflow"], env=environment, check=True, capture_output=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - began, cpu


def growth(plan: Plan) -> None:
    """Larger batches, more replicas on the same cores, and larger folders."""
    plan.prepare("inception10")
    precision = plan.options.precisions[-1]

    def measured(name: str, title: str, values, jobs, environment=None) -> None:
        plan.say(f"growth: {title}")
        rows = [report.row(x) for x in plan.contest([[job] for job in jobs], environment)]
        plan.say(f"  {name:<10}{report.HEADER[report.NAME_WIDTH :]}")
        for value, row in zip(values, rows, strict=True):
            text = row["failed"] if "failed" in row else report.line(row)[report.NAME_WIDTH :]
            plan.say(f"  {value:<10,}{text}")
        plan.record("growth", title, {"values": list(values), "rows": rows})

    def job(**more) -> Job:
        return plan.job("ours", "train", precision=precision, **more)

    batches, replicas = GROWTH_BATCHES, GROWTH_REPLICAS
    measured("batch", "batch size", batches, [job(batch_size=n) for n in batches])
    title = "replicas, of the same batch on the same cores"
    measured("replicas", title, replicas, [job(replicas=n) for n in replicas])
    with tempfile.TemporaryDirectory() as home:
        jobs = [
            job(dataset="folder", data_dir=str(make_folder(pathlib.Path(home, str(n)), n)))
            for n in GROWTH_FILES
        ]
        for which in ("first start", "later start"):
            title = f"files of a folder, {which}"
            measured("files", title, GROWTH_FILES, jobs, {"KERAS_HOME": home})


def make_folder(directory: pathlib.Path, number: int, originals: int = 1_000) -> pathlib.Path:
    """A folder with so many JPEG files of 32x32 pixels in train/, most of them hard links."""
    originals = min(number, originals)
    input_speed.make_photographs(directory, originals, size=(32, 32))
    files = sorted((directory / "train").rglob("*.jpg"))
    for i in range(originals, number):
        source = files[i % originals]
        os.link(source, source.with_name(f"{i:06}.jpg"))
    return directory


PARTS = {
    "train": train,
    "pipeline": pipeline,
    "evaluate": evaluate,
    "start": start,
    "growth": growth,
}


def write_json(path: pathlib.Path, content: dict) -> None:
    """Writes a file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
