"""The description of the processor."""

import platform

import pytest

from loops.distributed import processor


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"processor\t: 0\nmodel name\t: AMD EPYC 7763\nmodel name\t: another\n", "AMD EPYC 7763"),
        (b"model\t\t: 1\nmodel name\t: A: B\n", "A: B"),
        (b"model name\t: \xff 1\n", "\N{REPLACEMENT CHARACTER} 1"),
        (b"model name\t:\n", None),
        (b"Features\t: fp asimd\n", None),
        (None, None),
    ],
)
def test_model(monkeypatch, tmp_path, text, name):
    """Where the system gives no name, it is the architecture."""
    if text is not None:
        (tmp_path / "cpuinfo").write_bytes(text)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    assert processor.model() == (name or platform.processor() or platform.machine())
    assert processor.model()


def test_cores(monkeypatch):
    monkeypatch.setattr(processor.os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert processor.cores() == 3
    monkeypatch.delattr(processor.os, "sched_getaffinity")
    monkeypatch.setattr(processor.os, "cpu_count", lambda: 12)
    assert processor.cores() == 12
