"""Runs the commands for tests, in this process or in one of its own."""

import atexit
import contextlib
import importlib
import json
import multiprocessing
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile

import pytest
from absl import flags as absl_flags

from commands.command_line import quiet

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# A run of a second. The net is only there inside `tiny_net`, and in the processes of `Command`.
PROGRAMS = {
    "train.py": ("TrainOptions", "train"),
    "eval.py": ("EvaluateOptions", "evaluate"),
    "predict.py": ("PredictOptions", "predict"),
    "export.py": ("ExportOptions", "export"),
    "compare.py": ("CompareOptions", "compare"),
    "replay.py": ("ReplayOptions", "replay"),
}
TINY = ("--net=tiny", "--dataset=digits", "--batch_size=256", "--device=cpu")


@contextlib.contextmanager
def tiny_net(draws=False):
    """Adds a net of two convolutions to the table of nets.

    Args:
        draws: whether train.py draws pictures, which takes several times as long as its training.
    """
    import nets
    from commands import dashboards
    from commands import pictures as drawing
    from loops.hook import Hook
    from nets.layers import ConvBatchNorm, Head, SmallStem
    from nets.net import Net

    class Tiny(Net):
        def __init__(self, num_classes, *, stem="small"):
            del stem
            super().__init__()
            self.stem = SmallStem(8)
            self.stage_1 = ConvBatchNorm(16, 3, strides=2)
            self.head = Head(num_classes, dropout=0.1)
            self.stage_names = ("stem", "stage_1", "head")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(nets.NETS, "tiny", Tiny)
        if not draws:
            patch.setattr(dashboards, "Pictures", lambda *args: Hook())
            patch.setattr(drawing, "draw_all", lambda *args, **kwargs: [])
        yield Tiny


def _program(name):
    """The function and the class of the options of a command."""
    from commands import options

    kind, module = PROGRAMS[name]
    function = getattr(importlib.import_module(f"commands.{module}"), module)
    return function, getattr(options, kind)


def call(program, *args):
    """Runs a command in this process; returns what its function returns."""
    from commands import command_line, flags

    main, options = _program(program)
    with command_line.one_line_errors():
        return main(flags.parse([program, *map(str, args)], options, absl_flags.FlagValues()))


def refused(capsys, program, *args, code=2):
    """The line with which a command ends in an error."""
    with pytest.raises(SystemExit) as caught:
        call(program, *args)
    assert caught.value.code == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def real(program, *args, **kwargs):
    """Runs a command as users do; returns the exit code, standard output and standard error."""
    command = [sys.executable, ROOT / program, *map(str, args)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, **kwargs
    )
    return done.returncode, done.stdout, done.stderr


# A process that has imported TensorFlow, of which the others are forks: that saves three seconds of
# computing for each.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tensorflow", "sklearn.datasets"])


class Command:
    """A command in a process of its own, in which the net of `tiny_net` is there too.

    Args:
        program: "train.py" or "eval.py".
        *args: its arguments.
        cwd: working directory; default: that of this process.
        terminal: path of a terminal that standard output goes to.
        largest_file: size in bytes beyond which no file can grow, as on a full disk.
        draws: whether train.py draws pictures.
        **environment: variables to add.
    """

    def __init__(
        self, program, *args, cwd=None, terminal=None, largest_file=None, draws=False, **environment
    ):
        self._output = tempfile.TemporaryDirectory()
        streams = [terminal or f"{self._output.name}/out", f"{self._output.name}/err"]
        argv = [program, *map(str, args)]
        where = os.fspath(cwd or os.getcwd())
        self._process = _FORKS.Process(
            target=_run, args=(argv, where, streams, largest_file, draws, environment), daemon=True
        )
        with quiet():  # The first starts the process that imports TensorFlow.
            self._process.start()

    @property
    def returncode(self):
        """The exit code; minus the number of a signal that ended it; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def wait(self, timeout=200):
        """Waits for the end; returns the exit code, standard output and standard error."""
        self._process.join(timeout)
        if self.returncode is None:
            self._process.kill()
            pytest.fail(f"the command has not ended after {timeout} s: {self.printed()}")
        return self.returncode, *self.printed()

    def printed(self):
        """Standard output, unless that is a terminal, and standard error so far."""
        files = [pathlib.Path(self._output.name, name) for name in ("out", "err")]
        return tuple(file.read_text() if file.exists() else "" for file in files)


def _run(argv, cwd, streams, largest_file, draws, environment):
    """What a process of `Command` does."""
    for number, path in enumerate(streams, start=1):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOCTTY)
        os.dup2(file, number)
        os.close(file)
    for number, mode in enumerate("rww"):
        stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
        setattr(sys, ("stdin", "stdout", "stderr")[number], stream)
    # A shell makes what it starts in the background ignore it, and what that starts too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = argv
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # As Python does in a process that it starts.
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    from commands import command_line

    try:
        with tiny_net(draws):
            command_line.run(*_program(argv[0]))
    finally:
        atexit._run_exitfuncs()  # A fork would leave without.


def finish(*commands):
    """Waits for commands to end well; returns what they printed."""
    outputs = [command.wait() for command in commands]
    assert all((code, err) == (0, "") for code, _, err in outputs), outputs
    return [out for _, out, _ in outputs]


def free_cluster(count):
    """The environment of each of some workers on this machine."""
    from benchmarks.kill_runs import free_ports

    workers = [f"127.0.0.1:{port}" for port in free_ports(count)]
    return [
        {
            "TF_CONFIG": json.dumps(
                {"cluster": {"worker": workers}, "task": {"type": "worker", "index": i}}
            )
        }
        for i in range(count)
    ]


def read(path):
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))


def rows(run_dir, split=None):
    """The rows of `metrics.jsonl`, of all splits or of one."""
    lines = (pathlib.Path(run_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if split in (None, row["split"])]


def contents(directory):
    """The contents of every file below a directory, by path."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(pathlib.Path(directory).rglob("*"))
        if path.is_file()
    }
