"""Checks the GPUs of a machine with this project, and times training on them.

    python benchmarks/gpu.py                                # all GPUs, everything
    python benchmarks/gpu.py --only=checks                  # some minutes
    python benchmarks/gpu.py --only=timing --nets=resnet50 --minutes=10
    python benchmarks/gpu.py --quick                        # one check and one timing

The checks train the same 20 updates in pairs that should end alike: on a GPU and the CPU, on one
and all GPUs, in each precision, with --jit, by two workers, and, with --deterministic, twice and
stopped half-way (`gpu_checks.py`). Then images per second are measured for several nets, precisions
and batch sizes, beside PyTorch if it is installed (`gpu_timing.py`).

Every result is printed and written to --out as soon as it is there, as gpu.json and as tables in
gpu.md. The same command continues a report: timings that it has are not made again. Without a GPU,
logical CPU devices take their place in a rehearsal, at tiny sizes. If a check or a timing of this
project fails, the others are still made, and the exit code is 1.
"""

import argparse
import collections
import dataclasses
import json
import math
import os
import pathlib
import sys
import tempfile
import time
import typing

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from commands.command_line import quiet  # noqa: E402
from commands.config import Config  # noqa: E402

with quiet():
    from benchmarks import gpu_checks, gpu_timing

PRECISIONS = typing.get_args(typing.get_type_hints(Config)["precision"])


class Report:
    """What was found, on disk.

    Args:
        directory: for gpu.json and gpu.md.
        machine: what the figures depend on.

    Raises:
        ValueError: the directory has a report of something else, or cannot be written.
    """

    def __init__(self, directory: pathlib.Path, machine: dict):
        self._directory = directory
        self.content = {"machine": machine, "checks": [], "timings": []}
        path, another = directory / "gpu.json", f"--out={directory}: %s; give another directory"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self.content = json.loads(path.read_text(encoding="utf-8"))
            text, found = as_markdown(self.content), self.content["machine"]
        except OSError as error:
            raise ValueError(another % error) from error
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(another % "gpu.json is not a report of this program") from error
        if found != machine:
            raise ValueError(another % "its report is of another machine, commit or kind of run")
        try:
            self._write("gpu.md", text)
        except OSError as error:
            raise ValueError(another % error) from error

    def add(self, kind: str, row: dict) -> None:
        """Adds a result, "checks" or "timings", and writes the files. A check replaces its last."""
        rows = self.content[kind]
        if kind == "checks":
            rows[:] = [each for each in rows if each["check"] != row["check"]]
        rows.append(row)
        self._write("gpu.json", json.dumps(self.content, indent=1))
        self._write("gpu.md", as_markdown(self.content))

    def _write(self, name: str, text: str) -> None:
        """Writes a file, whole or not at all."""
        temporary = self._directory / f".{name}"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self._directory / name)


def headline(machine: dict) -> str:
    """The machine in a line."""
    gpus = collections.Counter(machine["gpus"])
    names = ", ".join(f"{count} x {name}" for name, count in gpus.items())
    if not gpus:
        why = f" ({machine['why_no_gpu']})" if machine["why_no_gpu"] else ""
        names = f"REHEARSAL without a GPU{why}, on {machine['replicas']} logical CPU devices"
    parts = {
        "driver": machine["driver"] if gpus else None,
        "CUDA": machine["cuda"] if gpus else None,
        "cuDNN": machine["cudnn"] if gpus else None,
        "CPU cores:": machine["cpu_cores"],
        "Python": machine["python"],
        "TensorFlow": machine["tensorflow"],
        "PyTorch": machine["torch"],
        "commit": machine["commit"],
    }
    return ", ".join([names, *(f"{name} {x}" for name, x in parts.items() if x is not None)])


def as_markdown(content: dict) -> str:
    """The report as text."""
    machine = content["machine"]
    rehearsal = "" if machine["gpus"] else " (rehearsal on CPUs: the figures say nothing of GPUs)"
    parts = [f"# GPU report{rehearsal}\n", f"{headline(machine)}\n"]
    if content["checks"]:
        rows = [f"| {r['check']} | {status(r)} | {r['found']} |" for r in content["checks"]]
        parts += [f"## Checks{rehearsal}\n", "| check | | |\n| --- | --- | --- |"]
        parts += ["\n".join(rows) + "\n"]
    if content["timings"]:
        parts += [f"## Timings{rehearsal}\n", gpu_timing.table(content["timings"]), NOTE]
    return "\n".join(parts)


NOTE = """Images per second are the median of all windows, and in parentheses the lowest and the
highest. This project trains on batches of its own pipeline, with crop and flip, from images in
memory; PyTorch on one batch that stays on the GPU (torchvision's net, channels last, autocast). "Of
N times 1 GPU" is the scaling efficiency at the same batch size per GPU. "All-reduce" is the time to
sum tensors like the gradients alone; in training, other work may overlap with it. "First step" is
the time from the start of the process to the end of the first update.
"""


def status(row: dict) -> str:
    """Of a check."""
    return "ok" if row["ok"] else "FAILED"


def pending(specs, rows: list[dict]):
    """The measurements that are still to be made, given the rows of those that are made.

    What has failed is not tried again.
    """
    names = [field.name for field in dataclasses.fields(gpu_timing.Spec)]
    made = [gpu_timing.Spec(**{name: row[name] for name in names}) for row in rows]
    counts = collections.Counter(made)
    failed = {spec for spec, row in zip(made, rows, strict=True) if "failed" in row}
    for spec in specs:
        if counts[spec]:
            counts[spec] -= 1
        elif spec not in failed:
            yield spec


def run_checks(report: Report, num_gpus: int, on_gpus: bool, quick: bool, has_time) -> None:
    """Makes the checks, and prints a line for each."""
    found = gpu_checks.checks(num_gpus, PRECISIONS, on_gpus=on_gpus)
    with tempfile.TemporaryDirectory(prefix="gpu-checks-") as home:
        trainings = gpu_checks.Trainings(pathlib.Path(home), num_gpus)
        for number, check in enumerate(found):
            if not has_time() or (quick and number):
                return
            row = gpu_checks.run_check(check, trainings)
            print(f"{status(row):<7} {row['check']}: {row['found']}", flush=True)
            report.add("checks", row)


def run_timings(report: Report, plan: gpu_timing.Plan, has_time) -> None:
    """Makes the measurements, and prints a line for each."""
    rows, failed = report.content["timings"], set()
    for spec in pending(gpu_timing.measurements(plan), rows[:]):
        if spec in failed:
            continue
        if not has_time():
            return
        request = dataclasses.asdict(spec)
        found = gpu_timing.measure(request)
        if "failed" in found:
            failed.add(spec)
        report.add("timings", {**request, **found})
        print(gpu_timing.table(rows[-1:]).splitlines()[-1], flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(gpu_timing.NETS)
    parser.add_argument("--only", choices=("checks", "timing"), help="default: both")
    parser.add_argument("--gpus", type=int, help="number of GPUs; default: all, or 2 CPU devices")
    parser.add_argument("--nets", default=",".join(names), help=f"to time; default: {names}")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="to time; default: all")
    parser.add_argument("--rounds", type=int, default=2, help="of each timing; default: 2")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="start nothing after this time"
    )
    parser.add_argument("--quick", action="store_true", help="one check, and one timing per net")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("gpu_report"))
    args = parser.parse_args(argv)
    for flag, known in (("nets", names), ("precisions", PRECISIONS)):
        given = getattr(args, flag).split(",")
        if not set(given) <= set(known):
            parser.error(f"--{flag}={getattr(args, flag)}: known are {', '.join(known)}")
        setattr(args, flag, given)
    for flag in ("gpus", "rounds"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            parser.error(f"--{flag} must be at least 1")
    if not args.minutes >= 0:  # NaN is not.
        parser.error(f"--minutes={args.minutes:g} must be at least 0")
    return args


def stop(message: str) -> typing.NoReturn:
    """Ends the program because of what it was given."""
    print(message, file=sys.stderr)
    sys.exit(2)


def main(argv: list[str] | None = None) -> None:
    """Makes the report."""
    args = parse(argv)
    started = time.monotonic()
    machine = gpu_timing.measure({"what": "machine"})
    if "failed" in machine:
        stop(f"TensorFlow cannot be used: {machine['failed']}")
    seen = len(machine["gpus"])
    num_gpus = args.gpus or seen or 2
    if seen and num_gpus > seen:
        stop(f"--gpus={num_gpus}, but TensorFlow sees {seen}")
    try:
        report = Report(args.out, {**machine, "replicas": num_gpus, "quick": args.quick})
    except ValueError as error:
        stop(str(error))
    print(headline(report.content["machine"]), flush=True)

    def has_time() -> bool:
        return time.monotonic() - started < 60 * args.minutes

    if args.only != "timing":
        run_checks(report, num_gpus, seen > 0, args.quick, has_time)
    if args.only != "checks":
        plan = gpu_timing.Plan(
            nets=args.nets,
            precisions=args.precisions,
            num_gpus=num_gpus,
            on_gpus=seen > 0,
            pytorch=bool(machine["torch"] and machine["torchvision"]),
            rounds=1 if args.quick else args.rounds,
            quick=args.quick,
        )
        run_timings(report, plan, has_time)
    content = report.content
    ours = [row for row in content["timings"] if row["what"] == "tensorflow"]
    broken = [row for row in ours if row.get("failed", "out of memory") != "out of memory"]
    failed = [row for row in content["checks"] if not row["ok"]]
    checks = f"{len(failed)} of {len(content['checks'])} checks failed"
    print(f"report: {args.out / 'gpu.md'}{'; ' + checks if content['checks'] else ''}")
    sys.exit(bool(failed or broken))


if __name__ == "__main__":
    main()
