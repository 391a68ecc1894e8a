"""The processor of this machine, as Linux describes it."""

import os
import pathlib
import platform

CPUINFO = pathlib.Path("/proc/cpuinfo")


def model() -> str:
    """The processor's name, such as "AMD EPYC 7763"; its architecture where none is given."""
    return _described("model name") or platform.processor() or platform.machine()


def cores() -> int | None:
    """How many cores this process may use; None if the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def has_bfloat16() -> bool:
    """Whether the processor computes in bfloat16; True where Linux does not list its features."""
    features = _described("flags", "Features")
    return not features or "bf16" in features or "avx_ne_convert" in features


def _described(*names: str) -> str:
    """The first value that /proc/cpuinfo has of one of these names; "" if there is none."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in fields if name.strip() in names), "")
