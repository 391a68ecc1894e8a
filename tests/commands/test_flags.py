"""Flags and the command line: what is good, and one line for what is not.

Nothing here trains; commands that are started in processes of their own end before TensorFlow.
"""

import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import tensorflow as tf
from absl import flags as absl_flags

from commands import command_line, flags
from commands.config import Config
from commands.options import EvaluateOptions, TrainOptions
from commands.setting import ConfigError, bounds
from data import DataError
from loops.errors import RunError, SaveError
from loops.interrupt import Interrupted
from nets import NetError
from nets.pretrained import PretrainedError
from tests.conftest import ROOT

PROGRAMS = {"train.py": TrainOptions, "eval.py": EvaluateOptions}


def parse(*args, cls=TrainOptions):
    return flags.parse(["train.py", *args], cls, absl_flags.FlagValues())


def refusal(*args, cls=TrainOptions):
    """The message with which a command line is refused."""
    with pytest.raises(ConfigError) as caught:
        parse(*args, cls=cls)
    return str(caught.value)


def test_none_is_an_empty_list(run_dir):
    names = [field.name for field in dataclasses.fields(TrainOptions) if field.default == ()]
    assert {"tta", "hooks", "freeze", "train_sizes"} <= set(names)
    for name in names:
        assert getattr(parse(f"--{name}=none"), name) == (), name
    assert parse("--tta=flip", "--tta=none").tta == ()
    # Where the default is the run's value, it differs from none.
    path = f"--run_dir={run_dir}"
    assert parse(path, "--tta=none", cls=EvaluateOptions).tta == ()
    assert parse(path, cls=EvaluateOptions).tta is None
    assert refusal("--tta=flip,none").endswith("expected a list of names from flip, shifts")


@pytest.fixture
def run_dir(tmp_path):
    """A directory that is a run's as far as options are concerned."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    return str(tmp_path / "run")


@pytest.fixture
def run(tmp_path):
    """Runs a command in a process of its own, in which importing TensorFlow is an error."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for module in ("tensorflow", "keras", "numpy"):
        (stubs / f"{module}.py").write_text(f"raise SystemExit('{module} was imported')")

    def run(*command, redirect="", env=None, text=True, **kwargs):
        command = [sys.executable, *command]
        if redirect:
            command = ["bash", "-c", f'"$@" {redirect}', "bash", *command]
        env = {**os.environ, "PYTHONPATH": str(stubs), **(env or {})}
        return subprocess.run(
            command, cwd=ROOT, env=env, text=text, check=False, timeout=60,
            **{"capture_output": "stdout" not in kwargs, **kwargs},
        )  # fmt: skip

    return run


@pytest.mark.parametrize("cls", PROGRAMS.values())
def test_the_defaults_are_those_of_the_configuration(cls, run_dir):
    assert parse(f"--run_dir={run_dir}", cls=cls) == cls(run_dir=run_dir)


@pytest.mark.parametrize("cls", PROGRAMS.values())
def test_every_field_has_a_flag_with_its_help_and_default(cls):
    values = absl_flags.FlagValues()
    names = flags.define(cls, values)
    assert names == [field.name for field in dataclasses.fields(cls)]
    assert set(values) == set(names)
    for field in dataclasses.fields(cls):
        flag = values[field.name]
        assert flag.boolean == (field.type is bool)
        choices = getattr(flag.parser, "enum_values", ())
        before = f"<{'|'.join(choices)}>: " if choices else ""
        limits = ", ".join(bound for bound in bounds(field) if bound != "<= 1000000000")
        after = f" ({limits})" if limits else ""
        assert flag.help == before + field.metadata["help"] + after


def test_bounds_in_the_help():
    values = absl_flags.FlagValues()
    flags.define(TrainOptions, values)
    for name, text in {
        "batch_size": "(>= 1, <= 1000000)",
        "seed": "(>= 0, < 4294967296)",
        "step_epochs": "(> 0, <= 1000000)",
        "learning_rate": "(> 0)",
        "momentum": "(>= 0, < 1)",
        "warmup_epochs": "(>= 0, <= 1000000)",
    }.items():
        assert values[name].help.endswith(". " + text), name
    assert not re.search(r"\([<>]", values["net"].help)


@pytest.mark.parametrize(("program", "cls"), PROGRAMS.items())
def test_help_lists_the_flags(run, program, cls):
    done = run(program, "--help", env={"COLUMNS": "80"})
    assert done.stderr == ""
    text = " ".join(done.stdout.split())
    for field in dataclasses.fields(cls):
        assert re.search(rf"--(\[no\])?{field.name}: ", text), field.name
        assert field.metadata["help"].replace("  ", " ") in text
    assert text.startswith(("Trains an image classifier.", "Scores a saved run."))


def test_values():
    found = parse(
        "--net=resnet18", "--epochs=2", "--step_epochs=3,5.5", "--jit", "--noauxiliary",
        "--hooks=a,b", "--seed", "4294967295", "--stem=small", "--batch_norm_momentum=0",
        "--run_dir=a b", "--save_minutes=1e-3",
    )  # fmt: skip
    assert found == TrainOptions(
        net="resnet18", epochs=2.0, step_epochs=(3.0, 5.5), jit=True, auxiliary=False,
        hooks=("a", "b"), seed=2**32 - 1, stem="small", batch_norm_momentum=0.0, run_dir="a b",
        save_minutes=0.001,
    )  # fmt: skip
    assert type(found.epochs) is type(found.step_epochs[0]) is float
    assert parse("--step_epochs=", "--hooks=").step_epochs == ()


def test_flag_files(tmp_path):
    recipe = tmp_path / "a recipe.txt"
    recipe.write_text("# A recipe.\n--net=resnet18\n--step_epochs=3,5.5\n")
    found = parse(f"--flagfile={recipe}", "--seed=4")
    assert found.config == Config(net="resnet18", step_epochs=(3.0, 5.5), seed=4)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--epochs=0", "--epochs=0.0: expected a number (> 0, <= 1000000)"),
        ("--epochs=nan", "--epochs=nan: expected a number (> 0, <= 1000000)"),
        ("--epochs=1e999", "--epochs=inf: expected a number (> 0, <= 1000000)"),
        ("--epochs=many", "--epochs=many: expected a number (> 0, <= 1000000)"),
        ("--epochs=", "--epochs=: expected a number"),
        ("--batch_size=0", "--batch_size=0: expected an integer (>= 1, <= 1000000)"),
        ("--batch_size=1.5", "--batch_size=1.5: expected an integer (>= 1, <= 1000000)"),
        ("--batch_size=1e3", "--batch_size=1e3: expected an integer (>= 1, <= 1000000)"),
        ("--num_gpus=0", "--num_gpus=0: expected an integer (>= 1, <= 64)"),
        ("--seed=4294967296", "--seed=4294967296: expected an integer (>= 0, < 4294967296)"),
        ("--seed=" + "9" * 100, "expected an integer (>= 0, < 4294967296)"),
        ("--image_size=5000", "--image_size=5000: expected an integer (>= 1, <= 4096)"),
        ("--accumulation=0", "--accumulation=0: expected an integer (>= 1, <= 1000000000)"),
        ("--keep_checkpoints=1", "--keep_checkpoints=1: expected an integer (>= 2"),
        ("--learning_rate=-0.1", "--learning_rate=-0.1: expected a number (> 0"),
        ("--momentum=1", "--momentum=1.0: expected a number (>= 0, < 1)"),
        ("--step_factor=1.1", "--step_factor=1.1: expected a number (>= 0, <= 1)"),
        ("--precision=int8", "--precision=int8: expected one of float32, tf32, mixed_bfloat16"),
        ("--device=CPU", "--device=CPU: expected one of auto, cpu, gpu"),
        ("--stem=", "--stem=: expected one of small, large"),
        ("--step_epochs=1,x", "--step_epochs=1,x: expected a list of numbers (> 0, <= 1000000)"),
        ("--step_epochs=1,,2", "--step_epochs=1,,2: expected a list of numbers (> 0"),
        ("--step_epochs=0", "--step_epochs=0.0: expected a list of numbers (> 0"),
        ('--step_epochs="1', '--step_epochs="1: expected a list of numbers (> 0'),
        ("--hooks=a,,b", "--hooks='a', '', 'b': expected a list of names"),
        ("--jit=perhaps", "--jit=perhaps: expected true or false"),
        ("--nojit=1", "--nojit=1 does not take an argument"),
        ("--net=", "--net='': expected text, not empty"),
        ("--data_dir=", "--data_dir='': expected text, not empty"),
        ("--data_dir=\udcff", "--data_dir: expected text in UTF-8 without NUL"),
        ("--run_dir=a\0b", "--run_dir: expected text in UTF-8 without NUL"),
        ("--data_dir=~nobody-of-that-name/x", "there is no such home directory"),
        ("--seed", "Missing value for flag --seed"),
        ("--nett=resnet18", "Did you mean: net"),
        ("resnet18", "unexpected argument 'resnet18'; flags start with --"),
        ("--flagfile=/no/such/file", "/no/such/file"),
        ("--flagfile=", "--flagfile= names no file"),
        ("--" + "x" * 20_000, "unknown flag --xxx"),
    ],
)
def test_wrong_flags(argument, message):
    found = refusal(argument)
    assert message in found
    # What a list, bound or choice accepts is said, or where that is listed.
    assert re.search("expected|help|names no file|start with|home directory", found)


def test_a_flag_that_is_given_twice():
    assert parse("--seed=1", "--seed=2").seed == 2
    assert refusal("--seed=1", "--seed=x").startswith("--seed=x: expected an integer")


def test_the_first_of_several_wrong_values_is_named():
    assert refusal("--momentum=2", "--epochs=nan").startswith("--epochs=nan: ")


def test_flag_files_that_are_none(tmp_path):
    path = tmp_path / "flags.txt"
    for content, message in {
        b"--seed=\xff\n": "is not a text file",
        b"--seed=1\n--sead=2\n": "sead",
        b"--seed=one\n": "--seed=one: expected an integer",
        f"--flagfile={path}\n".encode(): "remove it from that file",
    }.items():
        path.write_bytes(content)
        assert message in refusal(f"--flagfile={path}")
    assert str(tmp_path) in refusal(f"--flagfile={tmp_path}")


def test_eval_has_no_flags_of_the_net():
    assert not {"net", "precision", "image_size", "batch_size"} & set(vars(EvaluateOptions()))


# The command line in processes of its own.


@pytest.mark.parametrize("program", PROGRAMS)
def test_wrong_flags_are_one_line_within_a_second_and_without_tensorflow(run, program):
    """The stubs end a process that imports TensorFlow; the quickest of three is not disturbed."""
    for args, message in (
        (("--nett=resnet18",), "Unknown command line flag 'nett'"),
        (("--num_gpus=0",), "--num_gpus=0: expected an integer"),
        (("--device=tpu",), "--device=tpu: expected one of"),
    ):
        seconds = []
        for _ in range(3):
            start = time.monotonic()
            done = run(program, *args)
            seconds.append(time.monotonic() - start)
        assert done.returncode == 2
        assert done.stdout == ""
        assert re.fullmatch(rf"{program}: .*{re.escape(message)}.*\n", done.stderr)
        assert min(seconds) < 1


def test_good_flags_do_import_tensorflow(run):
    """That is, the stubs of the test above work."""
    done = run("train.py", "--dataset=digits")
    assert done.returncode == 1
    assert done.stderr == "tensorflow was imported\n"


CLOSED = [
    redirections
    for count in (1, 2, 3)
    for redirections in itertools.combinations(("<&-", ">&-", "2>&-"), count)
]


@pytest.mark.parametrize("closed", CLOSED, ids=" ".join)
def test_closed_streams(run, closed):
    done = run("train.py", "--epochs=nan", redirect=" ".join(closed))
    line = "train.py: --epochs=nan: expected a number (> 0, <= 1000000)\n"
    assert done.returncode == 2
    assert done.stderr == ("" if "2>&-" in closed else line)
    assert done.stdout == (line if "2>&-" in closed and ">&-" not in closed else "")


OPEN_FILES = """
import logging, os, sys
sys.argv = ["program.py"]
from commands import command_line
from commands.options import TrainOptions
import contextlib
command_line.quiet = contextlib.nullcontext
command_line.one_line_errors = contextlib.nullcontext
sys.modules["tensorflow"], sys.get_logger = sys, logging.getLogger

def main(options):
    files = [open(f"{path}-{i}", "w+") for i in range(3)]
    assert min(file.fileno() for file in files) > 2, "a file has the number of a stream"
    print("to standard output")
    print("to standard error", file=sys.stderr)
    os.write(1, b"to 1"), os.write(2, b"to 2")
    for file in files:
        file.write("content")
        file.flush()
        file.seek(0)
        assert file.read() == "content"
    assert sys.stdin.read() == ""
    command_line.fail("an error")

path = os.environ["FILES"]
command_line.run(main, TrainOptions)
"""


@pytest.mark.parametrize("closed", CLOSED, ids=" ".join)
def test_files_that_are_opened_later_are_not_damaged_by_output(run, tmp_path, closed):
    done = run(
        "-c", OPEN_FILES, redirect=" ".join(closed), env={"FILES": str(tmp_path / "file")}, input=""
    )
    assert done.returncode == 2, done.stderr
    for i in range(3):
        assert (tmp_path / f"file-{i}").read_text() == "content"
    if ">&-" not in closed:
        assert "to standard output\n" in done.stdout
        assert ("program.py: an error\n" in done.stdout) == ("2>&-" in closed)
    if "2>&-" not in closed:
        assert "to standard error\n" in done.stderr
        assert done.stderr.endswith("program.py: an error\n")


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_to_a_pipe_that_is_closed(run, program):
    """As of `--help | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run(program, "--help", stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_streams_that_are_full(run):
    done = run("train.py", "--help", redirect=">/dev/full")
    assert done.returncode == 2
    assert done.stderr == "train.py: cannot print: No space left on device\n"
    assert run("train.py", "--seed=x", redirect="2>/dev/full").returncode == 2


@pytest.mark.parametrize("closed", ["", "2>&-"])
def test_a_line_that_the_stream_cannot_encode(run, closed):
    done = run("train.py", "--ünï=1", redirect=closed, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2
    assert r"Unknown command line flag '\xfcn\xef'" in (done.stdout if closed else done.stderr)


NO_HOME = """
import os, pwd
os.environ.pop("HOME", None)
def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = getpwuid
"""


def test_no_home_directory(run, tmp_path):
    """As of a user who is in no list, in a container."""
    (tmp_path / "stubs" / "sitecustomize.py").write_text(NO_HOME)
    for program in PROGRAMS:
        assert run(program, "--help").stdout
        for name in ("run_dir", "data_dir"):
            done = run(program, f"--{name}=~/x")
            assert done.returncode == 2
            assert done.stderr == f"{program}: --{name}=~/x: there is no such home directory\n"


def test_long_and_unprintable_values_stay_one_short_line(capsys):
    with pytest.raises(SystemExit) as caught:
        command_line.fail(refusal("--seed=\x1b[2J\u2028" + "x" * 100_000))
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert len(error) < 1000
    assert "\x1b" not in error
    assert "expected an integer" in error


def test_a_failure_is_one_line_and_keeps_the_spaces_of_names(capsys):
    with pytest.raises(SystemExit):
        command_line.fail("two  spaces.jpg\n  is wrong\r\n\n")
    assert capsys.readouterr().err.endswith(": two  spaces.jpg is wrong\n")


def ended(error, capsys):
    """The exit code and the line with which a command ends that raises an error."""
    with pytest.raises(SystemExit) as caught, command_line.one_line_errors():
        raise error
    return caught.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConfigError("--x is wrong"), "--x is wrong"),
        (DataError("no such data"), "no such data"),
        (NetError("unknown net"), "unknown net"),
        (PretrainedError("no weights"), "no weights"),
        (RunError("no checkpoint"), "no checkpoint"),
        (SaveError("cannot write x"), "cannot write x"),
        (FileNotFoundError(2, "No such file or directory", "a/b"), "cannot use a/b: No such file"),
        # By its type: the message is TensorFlow's, which may change.
        (tf.errors.ResourceExhaustedError(None, None, "x"), "out of memory; lower --batch_size"),
        (tf.errors.UnavailableError(None, None, "heartbeat"), "another worker has stopped"),
    ],
)
def test_an_error_that_the_user_can_act_on_is_one_line(error, message, capsys):
    code, line = ended(error, capsys)
    assert code == 2
    assert message in line
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_exit_code_of_a_signal(number, capsys):
    assert ended(Interrupted(number, 7), capsys) == (128 + number, "")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("of a fault in the code"),
        OSError(5, "without a file"),
        tf.errors.InvalidArgumentError(None, None, "shapes"),
        tf.errors.UnavailableError(None, None, "of nothing known"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, command_line.one_line_errors():
        raise error
    assert caught.value is error


INTERRUPTED = """
import contextlib, logging, sys
sys.argv = ["program.py"]
from commands import command_line
from commands.options import TrainOptions
command_line.quiet = command_line.one_line_errors = contextlib.nullcontext
sys.modules["tensorflow"], sys.get_logger = sys, logging.getLogger
def interrupt(*_):
    raise KeyboardInterrupt
{replaced} = interrupt
command_line.run({main}, TrainOptions)
"""


@pytest.mark.parametrize(
    ("replaced", "main"),
    [("command_line.flags.parse", "print"), ("command_line.quiet", "print"), ("_", "interrupt")],
)
def test_an_interrupt_before_there_is_anything_to_save(run, replaced, main):
    done = run("-c", INTERRUPTED.format(replaced=replaced, main=main))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


BACKENDS = """
import commands, json, os, sys
assert "keras" not in sys.modules
print(json.dumps([os.environ["KERAS_BACKEND"], os.environ["TF_USE_LEGACY_KERAS"]]))
"""


def test_the_backend_is_tensorflow_whatever_the_environment_says(run):
    env = {"KERAS_BACKEND": "torch", "TF_USE_LEGACY_KERAS": "1"}
    assert json.loads(run("-c", BACKENDS, env=env).stdout) == ["tensorflow", "0"]


ONEDNN = """
import commands, os, sys
assert "tensorflow" not in sys.modules
print(os.environ["TF_ENABLE_ONEDNN_OPTS"])
"""


@pytest.mark.parametrize(("said", "used"), [(None, "1"), ("0", "0")])
def test_onednn_is_requested_unless_the_environment_says_otherwise(run, monkeypatch, said, used):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    done = run("-c", ONEDNN, env={} if said is None else {"TF_ENABLE_ONEDNN_OPTS": said})
    assert done.stdout.strip() == used


def test_keras_with_another_backend_is_refused(run, tmp_path):
    (tmp_path / "stubs" / "keras.py").write_text(
        "class config:\n    backend = staticmethod(lambda: 'torch')\n"
    )
    done = run("-c", "import keras, commands")
    assert "ImportError: Keras is loaded with the torch backend; import commands" in done.stderr
