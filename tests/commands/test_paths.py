"""Directories of any name: every command works there, and touches no file of another run.

TensorFlow takes paths for patterns: to it, `lr?` and `lr[1]` are also `lr1`.
"""

import os
import pathlib
import shlex
import shutil

import pytest
from PIL import Image

from commands.run import Run
from loops.hook import Hook
from loops.hooks import HOOKS
from tests.commands import helpers
from tests.commands.helpers import TINY, Command, call, contents, finish, read, refused, rows

# Names of run directories, each with that of a neighbour, which the name would also match as a
# pattern, or which is left of it if a special character is lost.
NAMES = {
    "lr?": "lr1",
    "-it's a*b, {br} ü ☃ %41 $HOME": "-it's a b, {br} ü ☃ %41 $HOME",
    "lr[1]": "lr1",
    "back\\slash": "backslash",
    "new\nline": "new",
    "lr=[0.1]": "lr=0",
    "[!a]": "b",
    "é" * 100: "e",
}


@pytest.fixture(autouse=True, scope="module")
def _tiny_net():
    with helpers.tiny_net():
        yield


class Stop(Hook):
    """Sends the signal of Ctrl-C after a row, once."""

    sent = False

    def on_log(self, trainer, row):
        if not Stop.sent:
            Stop.sent = True
            os.kill(os.getpid(), 2)


@pytest.fixture(autouse=True)
def _stop_hook(monkeypatch):
    monkeypatch.setitem(HOOKS, "stop", Stop)
    monkeypatch.setattr(Stop, "sent", False)


@pytest.fixture(scope="module")
def other_run(tmp_path_factory):
    """A finished run, whose checkpoints have the names that other runs delete."""
    run_dir = tmp_path_factory.mktemp("other") / "run"
    call("train.py", *TINY, "--epochs=2", "--seed=1", f"--run_dir={run_dir}")
    assert sorted(Run.open(run_dir).checkpoints) == [0, 6, 11]
    return run_dir


@pytest.mark.parametrize(
    ("name", "other"),
    [
        pytest.param(
            *names, marks=pytest.mark.slow if "it's" in names[0] else pytest.mark.exhaustive
        )
        for names in NAMES.items()
    ],
)
def test_every_command_works_beside_another_run(
    name, other, other_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(other_run, tmp_path / other)
    before = contents(tmp_path / other)

    def untouched():
        names = {path.name for path in tmp_path.iterdir()}
        return names == {name, other} and contents(tmp_path / other) == before

    args = (*TINY, "--epochs=2", "--log_steps=2", "--keep_checkpoints=2", f"--run_dir={name}")
    with pytest.raises(SystemExit) as caught:  # Stopped within the first epoch.
        call("train.py", *args, "--hooks=stop")
    assert caught.value.code == 130
    assert sorted(Run.open(name).checkpoints) == [0, 2]
    assert untouched()
    call("train.py", *args)
    assert "resumes at step 2, 11 steps" in capsys.readouterr().out
    assert untouched()
    # The oldest ones were deleted, and no other.
    steps = [row["step"] for row in rows(name, "train")]
    assert steps == [2, 4, 6, 8, 10, 11]
    assert sorted(Run.open(name).checkpoints) == [6, 11]
    assert len(list(pathlib.Path(name, "best").glob("step-*.index"))) == 1
    result = read(pathlib.Path(name, "result.json"))
    call("train.py", *args)
    assert "This run is finished." in capsys.readouterr().out
    call("eval.py", f"--run_dir={name}", f"--json={name}.json")
    found = read(f"{name}.json")
    assert {**result, "checkpoint": 0} == {**found, "checkpoint": 0, "selected_on": "val"}
    assert found["checkpoint"] == f"{tmp_path}/{name}/best/step-{found['step']}"
    pathlib.Path(f"{name}.json").unlink()
    call("eval.py", f"--run_dir={name}", "--follow", "--split=val")
    assert [row["step"] for row in rows(pathlib.Path(name, "follow", "val"))] == [6, 11]
    call("eval.py", f"--run_dir={name}", f"--checkpoint={name}/checkpoints/step-6")
    assert f"{name}/checkpoints/step-6, step 6" in capsys.readouterr().out
    run = Run.open(name)
    assert run.result["step"] == found["step"]
    assert run.net("last").built
    assert untouched()


@pytest.mark.slow
def test_processes_of_their_own_beside_another_run(other_run, tmp_path):
    """`lr1`, and then `lr?`, which is longer."""
    shutil.copytree(other_run, tmp_path / "lr1")
    before = contents(tmp_path / "lr1")
    args = (*TINY, "--epochs=5", "--run_dir=lr?")
    (out,) = finish(Command("train.py", *args, cwd=tmp_path))
    assert "\ntest  " in out
    assert contents(tmp_path / "lr1") == before
    assert Run.open(tmp_path / "lr?").checkpoints.keys() == {16, 21, 26}


@pytest.mark.slow
def test_a_data_folder_of_any_name_names_a_run_that_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = pathlib.Path("my flowers [v2]?")
    for name, shade in (("da*sy [x]", 40), ("rose", 200)):
        for i in range(5):
            path = folder / name / f"{i} [{name[:2]}].png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (shade, i, 0)).save(path)
    args = ("--net=tiny", "--dataset=folder", "--image_size=8", "--batch_size=4", "--epochs=3")
    call("train.py", *args, f"--data_dir={folder}")
    lines = capsys.readouterr().out.splitlines()
    (run_dir,) = pathlib.Path("runs").iterdir()
    assert run_dir.name.startswith("tiny-my_flowers__v2__-")
    python, program, *words = shlex.split(lines[-2].removeprefix("score     "))
    assert (python, program, words) == ("python", "eval.py", [f"--run_dir={run_dir}"])
    before = rows(run_dir)
    call(program, *words)
    out = capsys.readouterr().out
    assert "da*sy [x]" in out
    assert "(2 examples)" in out
    call("train.py", *args, f"--data_dir={folder}")
    assert "This run is finished." in capsys.readouterr().out
    # As a user would name the run after the folder.
    call("train.py", *args, f"--data_dir={folder}", f"--run_dir=runs/{folder}")
    assert rows(f"runs/{folder}") == before
    # The folder may be renamed, and what is in it may not.
    folder.rename("other")
    (run_dir / "result.json").unlink()
    call("train.py", *args, "--data_dir=other", f"--run_dir={run_dir}")
    assert "resumes at step 5, 5 steps" in capsys.readouterr().out
    call("eval.py", f"--run_dir={run_dir}", "--data_dir=other")
    assert "(2 examples)" in capsys.readouterr().out
    (pathlib.Path("other") / "rose" / "0 [ro].png").rename("other/rose/new.png")
    error = refused(capsys, "train.py", *args, "--data_dir=other", f"--run_dir={run_dir}")
    assert "the data's fingerprints: train " in error


@pytest.mark.parametrize("inside", ["checkpoints", "best/x", "x", "."])
def test_no_run_starts_inside_another(other_run, tmp_path, capsys, inside):
    shutil.copytree(other_run, tmp_path / "run")
    before = contents(tmp_path / "run")
    run_dir = tmp_path / "run" / inside
    error = refused(capsys, "train.py", *TINY, "--epochs=3", f"--run_dir={run_dir}")
    assert ("another configuration" if inside == "." else "use another --run_dir") in error
    assert contents(tmp_path / "run") == before
