"""Compares the speed of this project with `model.fit` and with PyTorch, on equal nets.

    python benchmarks/compare_speed.py                          # about 20 minutes on two cores
    python benchmarks/compare_speed.py --torch_python=/path/to/python --json=speed.json
    python benchmarks/compare_speed.py --nets=resnet50,inception_v3
    python benchmarks/compare_speed.py --parts=pipeline,evaluate,start,growth

parts   train     this project's train.py with its defaults, the training step alone, Keras' `fit`
                  at its default and at its best, PyTorch at its best (eager or compiled); and a
                  matrix product, the roof
        pipeline  the batches of each alone
        evaluate  this project's evaluation, as it is and with BatchNorm folded, `evaluate`, PyTorch
        start     seconds from the command to the first step, over `import tensorflow`
        growth    larger batches, more replicas on the same cores, larger folders

Before a net is timed, those of the frameworks are compared: numbers of parameters and multiply-adds
and, for equal weights and images, logits, loss and the norm of the gradient. Each contestant is a
process that trains on and on, and stops when others are measured; so the windows of all alternate.
Figures are the median of the windows and their range, ratios are taken round by round. PyTorch
needs what is in benchmarks/requirements.txt, in this environment or in that of `--torch_python`.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.speed import examples, parts  # noqa: E402
from benchmarks.speed.contest import Settings  # noqa: E402
from benchmarks.speed.job import PRECISIONS  # noqa: E402
from benchmarks.speed.process import WorkerError  # noqa: E402
from loops.distributed import processor  # noqa: E402


def _names(known):
    """The type of a flag that lists some names."""

    def parse(text: str) -> list[str]:
        names = list(dict.fromkeys(text.split(",")))
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(
                f"{unknown[0]!r} is unknown; known: {', '.join(known)}"
            )
        return names

    return parse


def _at_least(least, kind):
    """The type of a flag with a number."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = least - 1
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} must be a number of at least {least}")
        return value

    return parse


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    count, nets = _at_least(1, int), parts.NETS

    def names(flag, known, default, text):
        parser.add_argument(
            flag, type=_names(known), default=default, help=f"{text}: some of {','.join(known)}"
        )

    names("--parts", list(parts.PARTS), ["train"], "default train")
    names("--nets", list(nets), ["inception10", "resnet18"], "default inception10,resnet18")
    names("--precisions", PRECISIONS, list(PRECISIONS), "default all")
    names("--contestants", parts.CONTESTANTS, list(parts.CONTESTANTS), "default all")
    add = parser.add_argument
    add("--batch_size", type=count, help="default 128, and 32 of images of 128 pixels")
    add("--windows", type=count, default=7, help="of each contestant, default 7")
    add("--seconds", type=_at_least(0, float), default=1.5, help="of a window, default 1.5")
    add("--num_gpus", type=count, default=1, help="replicas of this project and of Keras")
    add("--dataset", choices=("made_up", "cifar10"), default="made_up")
    add("--torch_python", help="an interpreter that has torch; default: this one, if it has")
    add("--json", type=pathlib.Path, help="file for all figures")
    add("--chart", type=pathlib.Path, help="PNG file for a bar chart of training")
    add("--examples", type=count, help="number of made-up images; default: as many as CIFAR-10's")
    add("--roof_size", type=count, default=parts.ROOF_SIZE, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    # A part may need the figures of one before it.
    options.parts = [name for name in parts.PARTS if name in options.parts]
    for flag in ("json", "chart"):
        if problem := _cannot_write(getattr(options, flag), suffix=".png" * (flag == "chart")):
            parser.error(f"--{flag}={getattr(options, flag)}: {problem}")
    wanted = [(options.batch_size or batch, size) for size, batch in map(nets.get, options.nets)]
    if "growth" in options.parts:
        wanted.append((max(parts.GROWTH_BATCHES), 32))
    for batch, size in wanted:
        if batch > (number := options.examples or examples.count(size)):
            parser.error(f"a batch of {batch:,} needs as many --examples; there are {number:,}")
        if batch % options.num_gpus:
            parser.error(f"--num_gpus={options.num_gpus} does not divide a batch of {batch}")
    if options.torch_python and torch_version(options.torch_python) is None:
        parser.error(f"--torch_python={options.torch_python} cannot import torch")
    return options


def _cannot_write(path: pathlib.Path | None, *, suffix: str) -> str:
    """Why a file cannot be written; empty if nothing is known."""
    if path is None:
        return ""
    parent = path.resolve().parent
    if not path.name or path.is_dir():
        return "it is a directory, not a file"
    if not parent.is_dir():
        return f"there is no directory {parent}"
    try:
        with tempfile.NamedTemporaryFile(dir=parent):
            pass
    except OSError:
        return f"{parent} cannot be written to"
    return "" if path.name.endswith(suffix) else f"its name must end in {suffix}"


def printed(*command: str) -> str | None:
    """What a command prints; None if it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def torch_version(python: str) -> str | None:
    """The version of PyTorch that an interpreter has; None if it has none."""
    return printed(python, "-c", "import torch; print(torch.__version__)")


def machine(pythons: dict[str, str]) -> dict:
    """What the figures depend on."""
    return {
        "cpu": processor.model(),
        "cores": processor.cores(),
        "python": platform.python_version(),
        "tensorflow": importlib.metadata.version("tensorflow"),
        "keras": importlib.metadata.version("keras"),
        "torch": torch_version(pythons["torch"]) if "torch" in pythons else None,
        "commit": printed("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "variables": {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("TF_", "OMP_", "KMP_", "ONEDNN_", "DNNL_", "LD_PRELOAD", "MALLOC_"))
        },
    }


def main(argv: list[str] | None = None) -> None:
    """Measures the parts that the flags name."""
    options = parse(argv)
    pythons = {"ours": sys.executable, "keras": sys.executable}
    torch_python = options.torch_python or (
        sys.executable if importlib.util.find_spec("torch") else None
    )
    if torch_python:
        pythons["torch"] = torch_python
    elif "torch" in options.contestants:
        if options.contestants == ["torch"]:
            sys.exit("compare_speed.py: PyTorch is not installed here; give --torch_python")
        print("PyTorch is left out: it is not installed here, and --torch_python is not given")
    settings = Settings(pythons, options.windows, options.seconds, lambda x: print(x, flush=True))
    flags = {k: str(x) if isinstance(x, pathlib.Path) else x for k, x in vars(options).items()}
    found = {"machine": machine(pythons), "options": flags}
    print(", ".join(f"{k} {v}" for k, v in found["machine"].items() if v and k != "variables"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # Cleans up.
    with tempfile.TemporaryDirectory(prefix="compare-speed-") as directory:
        plan = parts.Plan(options, settings, pathlib.Path(directory), found)
        try:
            for name in options.parts:
                parts.PARTS[name](plan)
        except (WorkerError, OSError, subprocess.SubprocessError) as error:
            sys.exit(f"compare_speed.py: {error}")
        except KeyboardInterrupt:
            sys.exit("compare_speed.py: interrupted")
    sys.exit(plan.has_failed)


if __name__ == "__main__":
    main()
