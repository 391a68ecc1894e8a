import json
import math

import pytest

from loops.errors import RunError, SaveError
from loops.records.metrics_log import MetricsLog, read_rows
from tests.loops.helpers import full_disk
from tests.loops.records.fakes import FakeTrainer, row


def start(run_dir, step=0, evaluated_step=-1, **kwargs):
    log = MetricsLog(run_dir, **kwargs)
    log.on_start(FakeTrainer(step, evaluated_step))
    return log


def write(log, split, step, **figures):
    method = log.on_log if split == "train" else lambda *args: log.on_evaluate(*args, None)
    method(FakeTrainer(step), row(split, step, **figures))


def places(rows):
    return [(row["split"], row["step"]) for row in rows]


def text(run_dir):
    return (run_dir / "metrics.jsonl").read_text()


def test_a_row_is_a_line_as_soon_as_it_is_logged(tmp_path):
    log = start(tmp_path)
    write(log, "train", 10, loss=1.25, top_1_accuracy=0.5, skipped_updates=3)
    write(log, "val", 10, loss=1.5)
    assert [json.loads(line) for line in text(tmp_path).splitlines()] == [
        {"split": "train", "step": 10, "epoch": 1.0, "loss": 1.25, "top_1_accuracy": 0.5,
         "skipped_updates": 3},
        {"split": "val", "step": 10, "epoch": 1.0, "loss": 1.5},
    ]  # fmt: skip
    assert read_rows(tmp_path / "metrics.jsonl") == log.rows


def test_timings_are_not_in_the_file(tmp_path):
    log = start(tmp_path)
    log.on_log(FakeTrainer(10, images_per_second=5.0), row("train", 10))
    assert text(tmp_path) == '{"split": "train", "step": 10, "epoch": 1.0, "loss": 1.0}\n'


def test_figures_that_are_not_finite_are_null_and_read_as_nan(tmp_path):
    log = start(tmp_path)
    write(log, "train", 1, loss=math.nan, gradient_norm=math.inf, top_1_accuracy=0.5)
    assert '"loss": null, "gradient_norm": null, "top_1_accuracy": 0.5' in text(tmp_path)
    (read,) = read_rows(tmp_path / "metrics.jsonl")
    assert math.isnan(read["loss"])
    assert math.isnan(read["gradient_norm"])
    before = text(tmp_path)
    start(tmp_path, step=1)
    assert text(tmp_path) == before


def test_later_rows_than_the_state_are_dropped(tmp_path):
    """As the state of step 20, which does not know its own validation row."""
    log = start(tmp_path)
    for step in (10, 20, 30):
        write(log, "train", step)
        write(log, "val", step)
    write(log, "test", 10)
    before = text(tmp_path).splitlines(keepends=True)
    said = []
    log = start(tmp_path, step=20, evaluated_step=10, say=said.append)
    assert said == []
    kept = [("train", 10), ("val", 10), ("train", 20)]
    assert places(log.rows) == kept
    assert text(tmp_path) == "".join(before[:3])
    write(log, "val", 20)
    write(log, "train", 30)
    assert places(read_rows(tmp_path / "metrics.jsonl")) == [*kept, ("val", 20), ("train", 30)]
    # As after --on_nan=restore.
    log.on_start(FakeTrainer(10, evaluated_step=-1))
    assert places(log.rows) == places(read_rows(tmp_path / "metrics.jsonl")) == [("train", 10)]


def test_half_a_line_is_dropped_without_a_word(tmp_path):
    write(start(tmp_path), "train", 10)
    before = text(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"split": "train", "st')
    said = []
    log = start(tmp_path, step=10, say=said.append)
    assert (said, places(log.rows), text(tmp_path)) == ([], [("train", 10)], before)
    assert not (tmp_path / "damaged-metrics.jsonl").exists()


def test_a_last_line_without_an_end_is_kept(tmp_path):
    write(start(tmp_path), "train", 10)
    before = text(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(before[:-1])
    log = start(tmp_path, step=10)
    write(log, "train", 20)
    assert text(tmp_path).startswith(before)
    assert places(read_rows(tmp_path / "metrics.jsonl")) == [("train", 10), ("train", 20)]


@pytest.mark.parametrize(
    "line",
    ['{"split": ["x"], "step": 7}', '{"split": "dev", "step": 7}', '{"split": "val", "step": "7"}',
     '{"split": "val", "step": 7, "loss": "low"}', '{"split": "val", "step": 7, "loss": true}',
     '{"split": "train", "step": 2x}', '{"step": 7}', "[]", "3", "{" * 9999, "", "\udcff"],
)  # fmt: skip
def test_a_damaged_line_is_told_and_takes_no_other_with_it(tmp_path, line):
    good = '{"split": "train", "step": 10, "epoch": 1.0, "loss": null}\n'
    damaged = f"{line}\n{good}".encode("utf-8", "surrogateescape")
    (tmp_path / "metrics.jsonl").write_bytes(damaged)
    said = []
    start(tmp_path, step=10, say=said.append)
    assert text(tmp_path) == good
    copy = tmp_path / "damaged-metrics.jsonl"
    assert said == [f"{tmp_path}/metrics.jsonl had 1 damaged line(s); {copy} has them"]
    assert copy.read_bytes() == damaged
    assert len(read_rows(copy)) == 1
    start(tmp_path, step=10, say=said.append)
    assert len(said) == 1


def test_rows_that_are_gone_are_told(tmp_path):
    said = []
    start(tmp_path, say=said.append)
    assert said == []
    log = start(tmp_path, step=1200, say=said.append)
    assert said == [f"{tmp_path}/metrics.jsonl is missing, and with it the rows up to step 1,200"]
    log.on_start(FakeTrainer(1000))
    assert len(said) == 1


@pytest.mark.parametrize("size", [0, 20, 80, 100])
def test_what_a_full_disk_refuses_is_written_later(tmp_path, size):
    """Once, whatever part of it had reached the disk."""
    log = start(tmp_path)
    write(log, "train", 1)
    with full_disk(size):
        for step in (2, 3):
            with pytest.raises(SaveError, match=f"cannot write {tmp_path}/metrics.jsonl: File too"):
                write(log, "train", step)
        with pytest.raises(SaveError):
            log.on_save(None)
    log.on_save(None)
    assert places(read_rows(tmp_path / "metrics.jsonl")) == [("train", s) for s in (1, 2, 3)]
    write(log, "train", 4)
    assert len(text(tmp_path).splitlines()) == 4


def test_what_a_full_disk_keeps_from_being_dropped_is_dropped_later(tmp_path):
    log = start(tmp_path)
    for step in (10, 20, 30):
        write(log, "train", step)
    before = text(tmp_path)
    with full_disk():
        for _ in range(2):
            with pytest.raises(SaveError, match="cannot write"):
                log.on_start(FakeTrainer(20))
        assert text(tmp_path) == before
        with pytest.raises(SaveError, match="cannot write"):
            write(log, "train", 25)
    log.on_save(None)
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [10, 20, 25]
    assert [row["step"] for row in log.rows] == [10, 20, 25]


def test_a_damaged_line_is_kept_also_if_there_is_no_room_for_the_copy_yet(tmp_path):
    good = '{"split": "train", "step": 10, "epoch": 1.0, "loss": 0.5}\n'
    damaged = "x" * 200 + "\n" + good
    (tmp_path / "metrics.jsonl").write_text(damaged)
    log, said = MetricsLog(tmp_path, say=lambda text: said.append(text)), []
    with full_disk(), pytest.raises(SaveError):
        log.on_start(FakeTrainer(10))
    assert (said, text(tmp_path)) == ([], damaged)
    log.on_save(None)
    assert (len(said), text(tmp_path)) == (1, good)
    assert (tmp_path / "damaged-metrics.jsonl").read_text() == damaged


def test_a_worker_that_is_not_the_chief_keeps_rows_and_writes_nothing(tmp_path):
    log = start(tmp_path, writes=False)
    write(log, "train", 1)
    log.on_save(None)
    assert places(log.rows) == [("train", 1)]
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_or_written_is_named(tmp_path):
    assert read_rows(tmp_path / "metrics.jsonl") == []
    log = start(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(SaveError, match=r"cannot write .*metrics\.jsonl: Is a directory"):
        write(log, "train", 1)
    with pytest.raises(RunError, match=r"cannot read .*metrics\.jsonl: Is a directory"):
        start(tmp_path, step=1)
    with pytest.raises(RunError, match=r"cannot read .*metrics\.jsonl: Is a directory"):
        read_rows(tmp_path / "metrics.jsonl")
