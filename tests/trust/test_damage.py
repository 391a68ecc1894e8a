"""Damaged checkpoints and full disks lose no more than necessary."""

import shutil

import pytest

from benchmarks import kill_runs
from commands.run import Run
from tests.commands import helpers
from tests.commands.helpers import TINY, Command, call, read, refused, rows
from tests.trust.helpers import copy_of, saved_step


def damage(run_dir, step, how):
    for file in (run_dir / "checkpoints").glob(f"step-{step}.*"):
        content = file.read_bytes()
        if how == "truncated":
            file.write_bytes(content[: len(content) // 2])
        elif how == "zeroed":
            file.write_bytes(bytes(len(content)))
        elif how == "altered" and ".data-" in file.name:
            middle = len(content) // 2
            flipped = bytes([content[middle] ^ 255])
            file.write_bytes(content[:middle] + flipped + content[middle + 1 :])
        elif how == "missing":
            file.unlink()


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("truncated", marks=pytest.mark.slow),
        *(pytest.param(x, marks=pytest.mark.exhaustive) for x in ("missing", "zeroed", "altered")),
    ],
)
def test_training_continues_from_the_checkpoint_before_a_damaged_one(
    unfinished, tmp_path, capsys, how
):
    run_dir, args = copy_of(unfinished, tmp_path)
    damage(run_dir, 11, how)
    call("train.py", *args)
    out = capsys.readouterr().out
    assert f"{run_dir}/checkpoints/step-11 is damaged (" in out
    assert f"continuing from {run_dir}/checkpoints/step-6, the one before\n" in out
    assert "resumes at step 6, 11 steps" in out
    assert rows(run_dir) == rows(unfinished[0])
    expected, found = (read(path / "result.json") for path in (unfinished[0], run_dir))
    assert found["per_class"] == expected["per_class"]
    assert len(list((run_dir / "checkpoints").glob("damaged-step-11.*"))) == 2 * (how != "missing")


@pytest.mark.slow
def test_training_never_starts_over_by_itself(unfinished, tmp_path, capsys):
    run_dir, args = copy_of(unfinished, tmp_path)
    for step in (0, 6, 11):
        damage(run_dir, step, "zeroed")
    error = refused(capsys, "train.py", *args)
    assert f"{run_dir}/checkpoints has no checkpoint that can be read (" in error
    assert f"put one back, or remove {run_dir} to start over" in error
    error = refused(capsys, "eval.py", f"--run_dir={run_dir}", "--checkpoint=last")
    assert f"{run_dir}/checkpoints/step-11 does not restore this net" in error
    shutil.rmtree(run_dir / "checkpoints")
    assert "has no checkpoint that can be read" in refused(capsys, "train.py", *args)


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_loses_nothing(tmp_path):
    """Checkpoints have room, and after some rows no file has more."""
    args = (*TINY, "--epochs=10", "--log_steps=1", "--eval_epochs=5", "--momentum=0")
    run, other = ((*args, f"--run_dir={tmp_path / name}") for name in ("run", "other"))
    call("train.py", *other, "--on_save_error=continue")
    files = (tmp_path / "other" / "best").iterdir()
    limit = max(file.stat().st_size for file in files) + 1000
    assert (tmp_path / "other" / "metrics.jsonl").stat().st_size > limit
    process = Command("train.py", *run, "--on_save_error=continue", largest_file=limit)
    code, out, err = process.wait()
    failure = f"cannot write {tmp_path}/run/metrics.jsonl: File too large"
    assert (code, err) == (2, f"train.py: {failure}\n")
    assert f"{failure}; continuing\n" in out
    # No checkpoint is ahead of the rows that lead to it.
    assert saved_step(tmp_path / "run") <= Run.open(tmp_path / "run").metrics[-1]["step"]
    assert not (tmp_path / "run" / "result.json").exists()
    call("train.py", *run)
    assert kill_runs.differences(tmp_path / "other", tmp_path / "run") == []


@pytest.mark.slow
def test_damaged_rows_are_kept_and_reported(unfinished, tmp_path, capsys):
    run_dir, args = copy_of(unfinished, tmp_path)
    text = (run_dir / "metrics.jsonl").read_text()
    first, second, rest = text.split("\n", 2)
    damaged = f"{first}\n{second[:20]}\n{rest}"
    (run_dir / "metrics.jsonl").write_text(damaged)
    call("train.py", *args)
    assert f"{run_dir}/metrics.jsonl had 1 damaged line(s); " in capsys.readouterr().out
    assert (run_dir / "damaged-metrics.jsonl").read_text() == damaged
    (lost,) = [row for row in rows(unfinished[0]) if row not in rows(run_dir)]
    assert lost == helpers.json.loads(second)
