"""Signals save and stop."""

import os
import re
import signal

import pytest

from loops.hook import Hook
from loops.hooks import HOOKS
from loops.records.run import locked
from tests.commands.helpers import Command, call, refused, rows
from tests.trust.helpers import ALL, copy_of, saved_step, until


@pytest.mark.slow
def test_a_signal_saves_and_the_run_is_resumed(tmp_path, capsys):
    args = (*ALL, "--net=tiny", "--epochs=20", f"--run_dir={tmp_path / 'run'}")
    process = Command("train.py", *args)
    until([process], lambda: (tmp_path / "run" / "metrics.jsonl").exists())
    process.send_signal(signal.SIGTERM)
    code, out, err = process.wait(30)
    assert (code, err) == (143, "")
    step = re.search(r"stopped; saved at step (\d+); rerun the command to resume\n$", out)[1]
    assert saved_step(tmp_path / "run") == int(step) > 0
    assert max(row["step"] for row in rows(tmp_path / "run")) <= int(step)
    process = Command("train.py", *args)
    until([process], lambda: "resumes at step" in process.printed()[0])
    assert f"resumes at step {step}, " in process.printed()[0]
    # While a process trains, another one is refused.
    error = refused(capsys, "train.py", *args)
    assert f"{tmp_path / 'run'} is in use: process " in error
    # Both signals come within the same call of the device loop.
    until([process], lambda: saved_step(tmp_path / "run") > int(step))
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        process.send_signal(number)
    code, out, err = process.wait(10)
    assert code in (130, 143)
    assert "stopped" not in out
    assert err == ""


class StopAt(Hook):
    """Sends a signal when a split is being evaluated, once, since a second one exits at once."""

    split = None

    def on_progress(self, trainer):
        if trainer.activity == f"evaluating on the {StopAt.split} split":
            StopAt.split = None
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(("split", "step"), [("val", 6), ("test", 11)])
def test_a_signal_during_an_evaluation(unfinished, tmp_path, monkeypatch, capsys, split, step):
    """The end is that of the run that was not stopped."""
    monkeypatch.setitem(HOOKS, "stop", StopAt)
    monkeypatch.setattr(StopAt, "split", split)
    run_dir, args = unfinished
    args = (*args, f"--run_dir={tmp_path / 'run'}")
    with pytest.raises(SystemExit) as caught:
        call("train.py", *args, "--hooks=stop")
    assert caught.value.code == 143
    assert f"stopped; saved at step {step}; rerun" in capsys.readouterr().out
    call("train.py", *args)
    assert rows(tmp_path / "run") == rows(run_dir)


@pytest.mark.slow
def test_eval_stops_at_a_signal(unfinished, tmp_path):
    run_dir, _ = copy_of(unfinished, tmp_path)
    with locked(run_dir):  # As while the run is trained.
        process = Command("eval.py", f"--run_dir={run_dir}", "--follow")
        until([process], lambda: "step 11" in process.printed()[0])
        process.send_signal(signal.SIGINT)
        code, _, err = process.wait(10)
    assert (code, err) == (130, "")
