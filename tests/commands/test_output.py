"""Commands whose output is their product do not lose it silently."""

import errno
import io
import os
import signal
import sys

import pytest

from commands.output import Output, write
from loops.errors import SaveError
from tests.commands.helpers import TINY, call, refused, tiny_net


class Broken(io.StringIO):
    """A stream to which nothing can be written, with an error number."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("output") / "run"
    with tiny_net():
        call("train.py", *TINY, "--epochs=0.4", "--verbosity=0", f"--run_dir={path}")
        yield path


COMMANDS = {
    "train.py": ("--describe", "--net=tiny"),
    "eval.py": ("--run_dir={run}", "--device=cpu"),
    "compare.py": ("{run}",),
    "export.py": ("--run_dir={run}", "--weights_txt={out}/weights.txt"),
    "replay.py": ("--run_dir={run}", "--step=1", "--picture={out}/a.png"),
}


@pytest.mark.slow
@pytest.mark.parametrize("program", COMMANDS)
def test_an_output_that_cannot_be_written(program, run_dir, tmp_path, capsys, monkeypatch):
    for name in ("full", "closed"):
        (tmp_path / name).mkdir()
    args = [x.format(run=run_dir, out=tmp_path / "full") for x in COMMANDS[program]]
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        line = refused(capsys, program, *args)
    assert line.endswith(": cannot write standard output: No space left on device\n")
    args = [x.format(run=run_dir, out=tmp_path / "closed") for x in COMMANDS[program]]
    monkeypatch.setattr(sys, "stdout", Broken(errno.EPIPE))
    with pytest.raises(SystemExit) as caught:
        call(program, *args)
    assert caught.value.code == 128 + signal.SIGPIPE
    assert capsys.readouterr().err == ""


def test_what_is_written(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    write("é")
    Output().line("x")
    assert stream.buffer.getvalue() == b"\\xe9x\n"


def test_errors_of_the_stream(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Broken(errno.ENOSPC))
    with pytest.raises(SaveError, match="cannot write standard output: No space left on device"):
        write("x")
    monkeypatch.setattr(sys, "stdout", Broken(errno.EPIPE))
    with pytest.raises(BrokenPipeError):
        write("x")
