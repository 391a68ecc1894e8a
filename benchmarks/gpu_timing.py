"""The timings of `gpu.py`: images per second in training, with this project and with PyTorch.

Every measurement is a process of its own (`gpu_measure.py`). Those of the same net, precision and
batch size take turns, so that a machine that slows down slows all of them.
"""

import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence

from benchmarks.gpu_measure import Spec

ROOT = pathlib.Path(__file__).resolve().parent.parent
SECONDS = 900  # After which a measurement has failed.
# Net: image size, number of classes, and batch sizes per GPU.
NETS = {
    "resnet50": (224, 1000, (256, 64)),
    "inception_v3": (299, 1000, (128, 32)),
    "resnet18": (32, 10, (1024, 128)),
}
# The same in a rehearsal on CPUs, where nothing is learnt from the figures.
REHEARSED = {
    "resnet50": (32, 10, (8,)),
    "inception_v3": (299, 10, (2,)),  # PyTorch's takes no smaller images.
    "resnet18": (16, 10, (8,)),
}
# The most useful first, since a limit on the time can end the list anywhere.
ORDER = ("mixed_bfloat16", "tf32", "mixed_float16", "float32")
_MEMORY = ("out of memory", "oom when allocating", "resource_exhausted", "alloc_failed")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Attributes:
        nets: keys of `NETS`.
        precisions: values of --precision.
        num_gpus: number of GPUs, or of CPU devices.
        on_gpus: False for a rehearsal on CPUs.
        pytorch: whether torch and torchvision are installed.
        rounds: how often each measurement is made.
        quick: the shortest form: one precision, one batch size, one window.
    """

    nets: Sequence[str]
    precisions: Sequence[str]
    num_gpus: int
    on_gpus: bool
    pytorch: bool
    rounds: int = 2
    quick: bool = False


def measurements(plan: Plan) -> Iterator[Spec]:
    """What to measure, in order; each round again."""
    nets = NETS if plan.on_gpus else REHEARSED
    precisions = [each for each in ORDER if each in plan.precisions]
    batches = max(len(nets[net][2]) for net in plan.nets)
    for precision in precisions[:1] if plan.quick else precisions:
        for which in range(1 if plan.quick else batches):
            for net in plan.nets:
                size, classes, batch_sizes = nets[net]
                for what, variant, replicas in _ways(plan) if which < len(batch_sizes) else ():
                    yield Spec(
                        what=what,
                        variant=variant,
                        net=net,
                        image_size=size,
                        classes=classes,
                        precision=precision,
                        batch_size=batch_sizes[which],
                        replicas=replicas,
                        on_gpus=plan.on_gpus,
                        windows=1 if plan.quick else 5,
                        seconds=2.0 if plan.on_gpus else 0.1,
                    )


def _ways(plan: Plan) -> Iterator[tuple[str, str, int]]:
    """What measures, how, and on how many replicas."""
    counts = (1, plan.num_gpus) if plan.num_gpus > 1 and not plan.quick else (1,)
    for _ in range(plan.rounds):
        for number, variants in enumerate((("plain", "eager"), ("jit", "compile"))):
            if number and (plan.quick or not plan.on_gpus):  # XLA is slow on CPUs.
                continue
            yield "tensorflow", variants[0], 1
            if plan.pytorch:
                yield "pytorch", variants[1], 1
        for count in counts[1:]:
            yield "tensorflow", "plain", count


def measure(request: dict) -> dict:
    """Makes a measurement; returns what it has found, or {"failed": the reason}."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_measure.py"), json.dumps(request)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {SECONDS} s"}
    if done.returncode:
        return {"failed": reason(done.stderr, done.returncode)}
    return json.loads(done.stdout.splitlines()[-1])


def reason(error: str, code: int) -> str:
    """Why a measurement has failed, in a phrase.

    Args:
        error: what it has printed on standard error.
        code: its exit code.
    """
    traceback = error.rpartition("Traceback (most recent call last)")[2]
    if any(sign in traceback.lower() for sign in _MEMORY):
        return "out of memory"
    lines = [line for line in traceback.splitlines() if line and not line.startswith(" ")]
    return lines[-1][:200] if lines else f"exit code {code}"


def table(rows: Sequence[dict]) -> str:
    """A table of measurements in Markdown; those of the same thing are one line.

    Args:
        rows: each the fields of a `Spec` and what `measure` has returned.
    """
    names = [field.name for field in dataclasses.fields(Spec)]
    groups: dict[Spec, list[dict]] = {}
    for row in rows:
        groups.setdefault(Spec(**{name: row[name] for name in names}), []).append(row)
    rates = {
        spec: speeds
        for spec, found in groups.items()
        if (speeds := [x for row in found for x in row.get("images_per_second", ())])
    }
    title = (
        "net", "pixels", "precision", "batch per GPU", "GPUs", "by", "images/s (lowest to highest)",
        "of PyTorch's best", "of N times 1 GPU", "waits for data", "all-reduce", "peak memory",
        "first step",
    )  # fmt: skip
    lines = [title, ["---"] * len(title)]
    lines += [_line(spec, found, rates) for spec, found in groups.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _line(spec: Spec, found: list[dict], rates: dict[Spec, list[float]]) -> list[str]:
    by = {
        "plain": "this project", "jit": "this project, --jit",
        "eager": "PyTorch", "compile": "PyTorch, compiled",
    }[spec.variant]  # fmt: skip
    place = [
        spec.net, str(spec.image_size), spec.precision, str(spec.batch_size), str(spec.replicas), by
    ]  # fmt: skip
    if spec not in rates:
        return [*place, found[-1]["failed"].replace("|", "/"), *[""] * 6]
    median = statistics.median(rates[spec])
    return [
        *place,
        f"{median:,.0f} ({min(rates[spec]):,.0f} to {max(rates[spec]):,.0f})",
        _share(median, _pytorch(spec, rates)),
        _share(median, _ideal(spec, rates)),
        _median(found, "waiting", "{:.0%}"),
        _median(found, "all_reduce_seconds", "{:.1f} ms", 1e3),
        _median(found, "peak_bytes", "{:.2f} GB", 1e-9),
        _median(found, "first_step_seconds", "{:.0f} s"),
    ]


def _pytorch(spec: Spec, rates: dict[Spec, list[float]]) -> float | None:
    """The best of PyTorch's medians for the same thing."""
    if spec.what == "pytorch":
        return None
    same = [
        statistics.median(rates[other])
        for variant in ("eager", "compile")
        if (other := dataclasses.replace(spec, what="pytorch", variant=variant)) in rates
    ]
    return max(same, default=None)


def _ideal(spec: Spec, rates: dict[Spec, list[float]]) -> float | None:
    """What as many GPUs would do if each did what one does alone."""
    single = dataclasses.replace(spec, replicas=1)
    if spec.replicas == 1 or single not in rates:
        return None
    return spec.replicas * statistics.median(rates[single])


def _share(value: float, whole: float | None) -> str:
    return "" if whole is None else f"{value / whole:.0%}"


def _median(found: list[dict], name: str, form: str, factor: float = 1) -> str:
    """The median of a figure, formatted; nothing if it was not measured."""
    values = [row[name] for row in found if name in row]
    values = [x for value in values for x in (value if isinstance(value, list) else [value])]
    return form.format(factor * statistics.median(values)) if values else ""
