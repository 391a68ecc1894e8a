"""Non-finite values never reach a checkpoint."""

import math
import re

import numpy as np
import pytest
import tensorflow as tf

from loops.hook import Hook
from loops.hooks import HOOKS
from loops.records.checkpoint_files import saved_steps
from tests.commands.helpers import TINY, call, refused, rows


class Poison(Hook):
    """Makes a weight infinite after the rows of some steps, until the row after."""

    def __init__(self):
        self.finite = None

    def on_log(self, trainer, row):
        bias = trainer.state.net.head.dense.bias
        if trainer.step in Poison.steps:
            Poison.steps.remove(trainer.step)
            self.finite = tf.identity(bias)
            bias.assign(bias + math.inf)
        elif self.finite is not None:
            bias.assign(self.finite)
            self.finite = None


@pytest.fixture
def poison(monkeypatch):
    monkeypatch.setitem(HOOKS, "poison", Poison)

    def poison(steps):
        monkeypatch.setattr(Poison, "steps", steps, raising=False)

    return poison


def assert_checkpoints_are_finite(run_dir):
    for directory in ("checkpoints", "best"):
        for step in saved_steps(run_dir / directory):
            reader = tf.train.load_checkpoint(f"{run_dir}/{directory}/step-{step}")
            for name, shape in reader.get_variable_to_shape_map().items():
                values = reader.get_tensor(name)
                if name.startswith(("net/", "optimizer/")):
                    assert np.isfinite(values).all(), (name, shape)


POISONED = (*TINY, "--epochs=3", "--log_steps=2", "--hooks=poison")


@pytest.mark.slow
def test_a_run_stops_at_a_value_that_is_not_finite(tmp_path, capsys, poison):
    poison([8])
    args = (*POISONED, f"--run_dir={tmp_path / 'run'}")
    error = refused(capsys, "train.py", *args)
    assert re.search(
        r"the loss is not finite at step 9 \(loss nan, gradient norm nan, learning rate 0\.\d+\); "
        r"the checkpoint of step 6 is kept\. Try a lower --learning_rate, ",
        error,
    )
    assert saved_steps(tmp_path / "run" / "checkpoints") == [0, 6]
    assert_checkpoints_are_finite(tmp_path / "run")
    # Without the fault, the same command resumes the run.
    call("train.py", *args)
    assert "resumes at step 6, 16 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_a_weight_that_is_not_finite_is_not_saved(tmp_path, capsys, poison):
    """At the end of an epoch, before a save."""
    poison([6])
    error = refused(capsys, "train.py", *POISONED, f"--run_dir={tmp_path / 'run'}")
    message = r"a weight is not finite at step 6 \(.*\); the checkpoint of step 0 is kept\. Try"
    assert re.search(message, error)
    assert saved_steps(tmp_path / "run" / "checkpoints") == [0]


@pytest.mark.slow
def test_updates_that_are_not_finite_are_skipped_and_counted(tmp_path, capsys, poison):
    poison([8])
    call("train.py", *POISONED, "--on_nan=skip", f"--run_dir={tmp_path / 'run'}")
    skipped = {row["step"]: row["skipped_updates"] for row in rows(tmp_path / "run", "train")}
    assert skipped == {2: 0, 4: 0, 6: 0, 8: 0, 10: 2, 11: 2, 12: 2, 14: 2, 16: 2}
    assert_checkpoints_are_finite(tmp_path / "run")


@pytest.mark.slow
def test_training_goes_back_and_leaves_out_batches(tmp_path, capsys, poison):
    poison([8, 12])
    args = (*POISONED, "--on_nan=restore", f"--run_dir={tmp_path / 'run'}")
    call("train.py", *args)
    lines = capsys.readouterr().out.splitlines()
    messages = [line for line in lines if "the loss is not finite" in line]
    assert [re.sub(r"\(loss.*rate [\d.]+\)", "", line) for line in messages] == [
        "the loss is not finite at step 9 ; continuing from step 6 without the next 3 batches "
        "(restore 1 of 3)",
        "the loss is not finite at step 13 ; continuing from step 11 without the next 2 batches "
        "(restore 2 of 3)",
    ]
    steps = [row["step"] for row in rows(tmp_path / "run", "train")]
    assert steps == [2, 4, 6, 8, 10, 11, 12, 14, 16]
    assert_checkpoints_are_finite(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("skip", "the last of 100 in a row (loss "),
        pytest.param(
            "restore",
            "training went back 3 times already; the checkpoint of step 0 is kept. Try a",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_that_diverges_ends(tmp_path, capsys, policy, message):
    """After each restore, it does so again."""
    args = (*TINY, "--epochs=3", "--batch_size=10", "--learning_rate=1e9", f"--on_nan={policy}")
    error = refused(capsys, "train.py", *args, f"--run_dir={tmp_path / 'run'}")
    assert message in error
    assert_checkpoints_are_finite(tmp_path / "run")
