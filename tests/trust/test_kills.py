"""A killed run ends like an uninterrupted one."""

import random
import signal
import time

import pytest

from benchmarks import kill_runs
from tests.commands.helpers import Command, finish
from tests.trust.helpers import ALL, saved_step, until

DETERMINISTIC = (
    *ALL, "--net=tiny", "--deterministic", "--epochs=2", "--accumulation=2",
    "--save_minutes=0.0001",
)  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_ends_bit_for_bit_like_an_uninterrupted_one(tmp_path):
    """Killed twice: at the start, and at a random moment."""
    one, other = (f"--run_dir={tmp_path / name}" for name in ("one", "other"))
    finish(Command("train.py", *DETERMINISTIC, one))
    assert saved_step(tmp_path / "one") == 41
    step, seconds = random.randrange(1, 30), 0.05 * random.random()
    print(f"step {step}, {seconds} s")  # Which pytest shows if this fails.
    for last in (0, step):
        command = Command("train.py", *DETERMINISTIC, other)
        until([command], lambda last=last: saved_step(tmp_path / "other") >= last)
        time.sleep(seconds)
        command.send_signal(signal.SIGKILL)
        assert command.wait()[0] == -signal.SIGKILL
    finish(Command("train.py", *DETERMINISTIC, other))
    assert kill_runs.differences(tmp_path / "one", tmp_path / "other") == []
