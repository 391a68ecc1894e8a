"""Whether the nets of the frameworks are the same net."""

import pathlib

import numpy as np

# Largest relative differences, of float32 sums in another order. Measured on a CPU, with 32 images:
# logits 4e-6 and gradient norm 3e-5 on 32 pixels. Of resnet50 and inception_v3, whose last
# BatchNorms see few values in training, 4e-4 and 6e-4.
LIMITS = {
    "parameters": 0.0,
    "multiply_adds": 0.0,
    "evaluated": 1e-3,
    "folded": 1e-3,
    "trained": 1e-3,
    "loss": 1e-4,
    "gradient_norm": 1e-2,
}


def differences(ours: dict, other: dict) -> dict[str, float]:
    """The largest difference of each figure, relative to the largest value of it.

    Args:
        ours: arrays by the names of `LIMITS`: numbers of parameters and multiply-adds; the logits
            of a batch in evaluation, in evaluation with BatchNorm folded, and in training; its loss
            and the norm of its gradient.
        other: likewise, for the same weights and batch.
    """
    return {
        name: float(np.max(np.abs(ours[name] - other[name])) / np.max(np.abs(ours[name])))
        if ours[name].shape == other[name].shape
        else np.inf
        for name in LIMITS
    }


def compared(directory: pathlib.Path, framework: str) -> dict[str, float]:
    """The differences of what the workers of this project and a framework have written."""
    ours, other = (dict(np.load(directory / f"{name}.npz")) for name in ("ours", framework))
    return differences(ours, other)


def unequal(found: dict[str, float]) -> str:
    """What differs by more than rounding, as a phrase; empty if nothing does."""
    return ", ".join(
        f"{name.replace('_', ' ')} differ by {found[name]:.2g} of their size"
        for name, limit in LIMITS.items()
        if not found[name] <= limit
    )
