"""What the tests of the promises share."""

import shutil
import time

from loops.records.checkpoint_files import saved_steps

# Every update in one: what must mean the same on any number of replicas, and after any kill.
ALL = (
    "--dataset=digits", "--device=cpu", "--batch_size=64", "--clip_norm=0.5", "--ema_decay=0.9",
    "--label_smoothing=0.1", "--augment=crop:1,mixup:0.2|cutmix:1", "--learning_rate=0.02",
    "--log_steps=4",
)  # fmt: skip


def until(commands, found):
    """Waits until something is there, as long as all commands are running."""
    while not found():
        for command in commands:
            assert command.returncode is None, command.printed()
        time.sleep(0.01)


def saved_step(run_dir):
    """The last step of which there is a checkpoint; -1 for none."""
    return max(saved_steps(run_dir / "checkpoints"), default=-1)


def copy_of(run, tmp_path):
    run_dir, args = run
    shutil.copytree(run_dir, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    return tmp_path / "run", (*args, f"--run_dir={tmp_path / 'run'}")
