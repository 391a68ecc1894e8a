"""Compares two trainings of `gpu_checks.py`: how much they differ, and how much they may.

A rounding error changes a result by 1e-7 at first, but grows from update to update, and at once if
it moves an input of a ReLU across 0. So the first updates are compared tightly and the last weights
loosely, and the learning rate is low: with ten times of it, rounding errors make the weights differ
by a seventh of the distance that they have moved.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable

import numpy as np

from benchmarks import kill_runs

STEPS = 20  # Of each training.
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Largest relative differences that are in order (see `figures`), and why there may be any."""

    start: float
    loss: float
    gradient: float
    weights: float
    statistics: float
    test: float
    why: str


# Start, loss, gradient, weights, statistics and test: several times what was measured on a CPU.
# Measured, two replicas and one: loss 1e-7, gradient 2e-5, weights 0.015, statistics 2e-4, test
# 2e-5. cuDNN's Winograd convolutions may round ten times as coarsely.
ROUNDING = Limits(1e-5, 5e-5, 1e-3, 0.2, 2e-3, 5e-4, "float32 sums in another order")
PRECISION = {
    # Not measured: on a CPU it is float32. Its factors have as many bits as those of float16.
    "tf32": Limits(1e-5, 3e-4, 1e-2, 0.4, 0.01, 1e-3, "products of 10-bit fractions"),
    # Measured: loss 8e-4, gradient 6e-3, weights 0.11, statistics 2e-3, test 2e-4.
    "mixed_bfloat16": Limits(1e-5, 5e-3, 0.05, 0.6, 0.02, 2e-3, "activations of 7-bit fractions"),
    # Measured: loss 1e-5, gradient 1e-3, weights 0.05, statistics 6e-4, test 4e-5.
    "mixed_float16": Limits(1e-5, 3e-4, 1e-2, 0.4, 0.01, 1e-3, "activations of 10-bit fractions"),
}


def figures(one: pathlib.Path, other: pathlib.Path) -> dict[str, float]:
    """The differences between two finished runs, by the names of the fields of `Limits`.

    All are relative: to the initial weights; to loss and gradient norm of each of the first three
    updates; to the distance that weights or BatchNorm statistics have moved; to the test loss.
    """
    (first, last), (other_first, other_last) = _net(one), _net(other)
    rows = list(zip(_first_updates(one), _first_updates(other), strict=True))
    distances = {
        kind: _distance(select(last), select(other_last))
        / _distance(select(other_first), select(other_last))
        for kind, select in (("weights", _weights), ("statistics", _statistics))
    }
    return {
        "start": _distance(first, other_first) / _norm(other_first),
        "loss": _largest(_relative(a["loss"], b["loss"]) for a, b in rows),
        "gradient": _largest(_relative(a["gradient_norm"], b["gradient_norm"]) for a, b in rows),
        **distances,
        "test": _relative(_test_loss(one), _test_loss(other)),
    }


def _net(run_dir: pathlib.Path) -> tuple[Arrays, Arrays]:
    """The net's variables before the first update and after the last, by name."""
    both = (kill_runs.tensors(run_dir / "checkpoints", step) for step in (0, STEPS))
    before, after = (
        {name: value for name, value in tensors.items() if name.startswith("net/")}
        for tensors in both
    )
    return before, after


def _statistics(variables: Arrays) -> Arrays:
    """BatchNorm's moving statistics."""
    return {name: value for name, value in variables.items() if "/moving_" in name}


def _weights(variables: Arrays) -> Arrays:
    return {name: value for name, value in variables.items() if "/moving_" not in name}


def _first_updates(run_dir: pathlib.Path) -> list[dict]:
    """The first three rows of metrics.jsonl."""
    with open(run_dir / "metrics.jsonl", encoding="utf-8") as rows:
        return [json.loads(next(rows)) for _ in range(3)]


def _test_loss(run_dir: pathlib.Path) -> float:
    loss = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))["loss"]
    return math.nan if loss is None else loss


def _relative(a: float, b: float) -> float:
    return abs(a - b) / abs(b)


def _largest(values: Iterable[float]) -> float:
    """The largest; NaN if there is one."""
    return float(np.max(list(values)))


def _norm(arrays: Arrays) -> float:
    return math.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in arrays.values()))


def _distance(one: Arrays, other: Arrays) -> float:
    """The Euclidean distance of all values; infinite if the names differ."""
    if one.keys() != other.keys():
        return math.inf
    return _norm({name: one[name].astype(np.float64) - other[name] for name in one})


def judge(found: dict[str, float], limits: Limits) -> tuple[bool, str]:
    """Whether differences are within limits, and a phrase about the one that uses most of its."""

    def share(name: str) -> float:
        value = found[name] / getattr(limits, name)
        return math.inf if math.isnan(value) else value

    worst = max(found, key=share)
    if found[worst] == 0:
        return True, "no difference"
    most = f"{worst} differs by {found[worst]:.1e}, allowed {getattr(limits, worst):.0e}"
    return share(worst) <= 1, f"{most}: {limits.why}"
