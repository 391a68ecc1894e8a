import logging
import time

import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from loops.errors import SaveError
from loops.records.tensorboard import EventWriter, TensorBoard
from tests.loops.helpers import full_disk
from tests.loops.records.fakes import FakeTrainer, row


def curves(directory):
    """What TensorBoard shows: (step, value) of each point by tag."""
    shown = EventAccumulator(
        str(directory), size_guidance={"tensors": 0}, purge_orphaned_data=True
    ).Reload()
    points = {
        tag: [(e.step, tf.make_ndarray(e.tensor_proto).item()) for e in shown.Tensors(tag)]
        for tag in shown.Tags()["tensors"]
    }
    return {tag: found for tag, found in points.items() if found}


def fast_curves(directory):
    """As `curves`, by the rules of TensorBoard's fast reader, which ignores START.

    A point drops those of its tag that have the same step or a later one.
    """
    found = {}
    for path in sorted(directory.glob("*tfevents*")):
        try:
            for record in tf.data.TFRecordDataset(str(path)):
                event = tf.compat.v1.Event.FromString(record.numpy())
                for value in event.summary.value:
                    points = [p for p in found.get(value.tag, []) if p[0] < event.step]
                    point = (event.step, tf.make_ndarray(value.tensor).item())
                    found[value.tag] = [*points, point]
        except tf.errors.DataLossError:  # It ends in half an event.
            pass
    return found


def steps(directory, tag="loss"):
    shown = curves(directory)
    assert shown == fast_curves(directory)
    return [step for step, _ in shown.get(tag, [])]


def start(run_dir, step=0, evaluated_step=-1, **kwargs):
    board = TensorBoard(run_dir, **kwargs)
    board.on_start(FakeTrainer(step, evaluated_step))
    return board


def write(board, split, step, loss=1.0):
    figures = row(split, step, loss=loss)
    if split == "train":
        board.on_log(FakeTrainer(step), figures)
    else:
        board.on_evaluate(FakeTrainer(step), figures, None)


def files(directory):
    return sorted(directory.glob("*"))


def test_each_figure_is_a_curve_with_the_same_tag_in_every_split(tmp_path):
    board = start(tmp_path)
    board.on_log(
        FakeTrainer(10, images_per_second=640.5),
        row("train", 10, loss=1.25, top_1_accuracy=0.75, skipped_updates=2),
    )
    board.on_evaluate(FakeTrainer(10), row("val", 10, loss=1.5, top_1_accuracy=0.25), None)
    board.on_evaluate(FakeTrainer(10), row("test", 10, loss=2.0), None)
    assert curves(tmp_path / "train") == {
        "loss": [(10, 1.25)],
        "top_1_accuracy": [(10, 0.75)],
        "top_1_error": [(10, 0.25)],
        "skipped_updates": [(10, 2.0)],
        "images_per_second": [(10, 640.5)],
    }
    assert curves(tmp_path / "val") == {
        "loss": [(10, 1.5)], "top_1_accuracy": [(10, 0.25)], "top_1_error": [(10, 0.75)],
    }  # fmt: skip
    assert curves(tmp_path / "test") == {"loss": [(10, 2.0)]}
    assert [len(files(tmp_path / split)) for split in ("train", "val", "test")] == [1, 1, 1]


def test_points_are_scalars_and_texts_for_tensorboard_and_have_their_time(tmp_path):
    before = time.time()
    board = start(tmp_path, texts={"configuration": "| a | \udcff |\n|---|---|"})
    write(board, "train", 10)
    shown = EventAccumulator(str(tmp_path / "train"), size_guidance={"tensors": 0}).Reload()
    assert shown.PluginTagToContent("scalars").keys() == {"loss"}
    assert shown.PluginTagToContent("text").keys() == {"configuration"}
    (event,) = shown.Tensors("configuration")
    assert (event.step, tf.make_ndarray(event.tensor_proto).item()) == (
        0, b"| a | \\udcff |\n|---|---|",
    )  # fmt: skip
    (event,) = shown.Tensors("loss")
    assert before <= event.wall_time <= time.time()


def test_points_that_come_late_have_the_time_of_their_row(tmp_path):
    board = start(tmp_path)
    with full_disk(0), pytest.raises(SaveError):
        write(board, "train", 10)
    logged = time.time()
    time.sleep(0.05)
    board.on_save(FakeTrainer())
    shown = EventAccumulator(str(tmp_path / "train"), size_guidance={"tensors": 0}).Reload()
    assert shown.Tensors("loss")[0].wall_time <= logged


def test_nothing_is_made_before_there_is_a_point(tmp_path):
    board = start(tmp_path)
    board.on_save(FakeTrainer())
    assert files(tmp_path) == []


def test_a_restart_shows_each_point_once(tmp_path):
    """The new values, also of points that the old process had written behind its last save."""
    board = start(tmp_path, texts={"configuration": "| a |"})
    for step in (10, 20, 30):
        write(board, "train", step, loss=step)
        write(board, "val", step, loss=step)
    write(board, "test", 10, loss=5)
    # The validation scores of step 20 are not in the state, so they will come again.
    board = start(tmp_path, step=20, evaluated_step=10, texts={"configuration": "| a |"})
    assert curves(tmp_path / "train") == {
        "configuration": [(0, b"| a |")], "loss": [(10, 10.0), (20, 20.0)],
    }  # fmt: skip
    assert curves(tmp_path / "val") == {"loss": [(10, 10.0)]}
    assert curves(tmp_path / "test") == {}
    for step in (30, 40):
        write(board, "train", step, loss=-step)
    for step in (20, 40):
        write(board, "val", step, loss=-step)
    write(board, "test", 40, loss=6)
    assert steps(tmp_path / "train") == [10, 20, 30, 40]
    assert curves(tmp_path / "train")["loss"] == [(10, 10), (20, 20), (30, -30), (40, -40)]
    assert curves(tmp_path / "val")["loss"] == [(10, 10), (20, -20), (40, -40)]
    assert curves(tmp_path / "test")["loss"] == [(40, 6)]
    assert steps(tmp_path / "train", "configuration") == [0]


def test_existing_files_stay_as_they_are(tmp_path):
    write(start(tmp_path), "train", 10)
    (file,) = files(tmp_path / "train")
    before = file.read_bytes()
    write(start(tmp_path, step=5), "train", 10)
    assert file.read_bytes() == before
    first, second = files(tmp_path / "train")
    assert first == file
    assert second.name.startswith("events.out.tfevents.")


def test_a_run_that_died_before_its_first_state_shows_its_texts_once(tmp_path):
    for _ in range(3):
        board = start(tmp_path, texts={"configuration": "| a |", "data": "b"})
        write(board, "train", 1)
    assert steps(tmp_path / "train") == [1]
    assert steps(tmp_path / "train", "configuration") == [0]
    assert steps(tmp_path / "train", "data") == [0]


def test_going_back_within_a_process_shows_each_point_once(tmp_path):
    board = start(tmp_path, texts={"configuration": "| a |"})
    for back in (20, 10, 0):
        for step in (10, 20, 30, 40):
            write(board, "train", step, loss=back)
        board.on_start(FakeTrainer(back))
        expected = [(step, back) for step in range(10, back + 10, 10)]
        assert curves(tmp_path / "train").get("loss", []) == expected
        for step in range(back + 10, 50, 10):
            write(board, "train", step, loss=-1)
        assert steps(tmp_path / "train") == [10, 20, 30, 40]
        assert steps(tmp_path / "train", "configuration") == [0]
        board.on_start(FakeTrainer(0))


@pytest.mark.parametrize("cut", [1, 8, 40, 100])
def test_a_kill_within_a_write_hides_no_later_point(tmp_path, cut):
    board = start(tmp_path)
    for step in (10, 20, 30):
        write(board, "train", step)
    (file,) = files(tmp_path / "train")
    file.write_bytes(file.read_bytes()[:-cut])
    board = start(tmp_path, step=20 if cut < 100 else 10)
    for step in (20, 30, 40):
        if cut == 100 or step > 20:
            write(board, "train", step)
    assert steps(tmp_path / "train") == [10, 20, 30, 40]


@pytest.mark.parametrize("size", [0, 30, 100, 200, 300, 400])
def test_what_a_full_disk_refuses_is_shown_later_once(tmp_path, size):
    """Whatever part of it had reached the disk."""
    board = start(tmp_path, texts={"configuration": "| a |"})
    write(board, "train", 1)
    (first,) = files(tmp_path / "train")
    failed = []
    with full_disk(size):
        for step in range(2, 9):
            try:
                write(board, "train", step, loss=step)
            except SaveError as error:
                failed.append(str(error))
    assert failed
    assert set(failed) == {f"cannot write {tmp_path}/train: File too large"}
    if size < 100:  # No event fits. Files without any are not left behind.
        assert files(tmp_path / "train") == [first]
    write(board, "train", 9, loss=9)
    assert steps(tmp_path / "train") == list(range(1, 10))
    assert steps(tmp_path / "train", "configuration") == [0]
    assert curves(tmp_path / "train")["loss"] == [(1, 1), *((s, s) for s in range(2, 10))]
    assert files(tmp_path / "train")[0] == first


def test_what_a_full_disk_keeps_from_being_dropped_is_dropped_later(tmp_path):
    board = start(tmp_path, texts={"configuration": "| a |"})
    for step in (10, 20, 30):
        write(board, "train", step)
    with full_disk(10):
        for back in (20, 10):
            with pytest.raises(SaveError):
                board.on_start(FakeTrainer(back))
            with pytest.raises(SaveError):
                write(board, "train", 25)
    board.on_start(FakeTrainer(10))
    write(board, "train", 15)
    assert steps(tmp_path / "train") == [10, 15]
    assert steps(tmp_path / "train", "configuration") == [0]


def test_a_clock_that_was_set_back_changes_nothing(tmp_path, monkeypatch):
    now = time.time_ns()
    for i, back in enumerate((0, 3600, 7200)):
        monkeypatch.setattr("time.time_ns", lambda back=back: now - back * 10**9)
        write(start(tmp_path, step=i), "train", i + 1, loss=i)
    assert steps(tmp_path / "train") == [1, 2, 3]


def test_a_worker_that_is_not_the_chief_writes_nothing(tmp_path):
    board = start(tmp_path, writes=False, texts={"configuration": "| a |"})
    write(board, "train", 1)
    write(board, "val", 1)
    board.on_save(FakeTrainer())
    assert files(tmp_path) == []


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "val").write_text("in the way of the event files")
    board = TensorBoard(tmp_path)
    with pytest.raises(SaveError, match=rf"cannot write {tmp_path}/val: (File exists|Not a dir)"):
        write(board, "val", 1)
    (tmp_path / "val").unlink()
    write(board, "val", 2)
    assert steps(tmp_path / "val") == [1, 2]


@pytest.mark.parametrize("name", ["lr[1]", "a\nb", "a*b", "\udcff"], ids=ascii)
def test_any_directory(tmp_path, name):
    for step in (1, 2):
        write(start(tmp_path / name, step=step - 1), "train", step)
    assert len(files(tmp_path / name / "train")) == 2
    (tmp_path / name / "train").rename(tmp_path / "plain")
    assert steps(tmp_path / "plain") == [1, 2]


def test_a_writer_alone(tmp_path):
    """As eval.py --follow uses it; a restart scores all checkpoints again."""
    for _ in range(2):
        writer = EventWriter(tmp_path / "follow-val")
        writer.restart(0)
        for step in (10, 20):
            writer.add_scalars(step, {"loss": 1.0, "top_1_accuracy": 0.25})
            writer.flush()
    assert steps(tmp_path / "follow-val") == [10, 20]
    assert curves(tmp_path / "follow-val")["top_1_error"] == [(10, 0.75), (20, 0.75)]


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
