import logging
import time

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from loops.errors import SaveError
from loops.records.event_writer import EventWriter
from loops.records.tensorboard import TensorBoard, tag_of
from tests.loops.helpers import full_disk
from tests.loops.records.fakes import FakeTrainer, row


def accumulated(directory):
    """What TensorBoard reads."""
    return EventAccumulator(
        str(directory), size_guidance={"tensors": 0}, purge_orphaned_data=True
    ).Reload()


def curves(directory):
    """What TensorBoard shows: (step, value) of each point by tag."""
    shown = accumulated(directory)
    points = {
        tag: [(e.step, value(tf.make_ndarray(e.tensor_proto))) for e in shown.Tensors(tag)]
        for tag in shown.Tags()["tensors"]
    }
    return {tag: found for tag, found in points.items() if found}


def value(array):
    return array.item() if array.ndim == 0 else array.tolist()


def fast_curves(directory):
    """As `curves`, by the rules of TensorBoard's fast reader, which ignores START.

    A point drops those of its tag that have the same step or a later one.
    """
    found = {}
    for path in sorted(directory.glob("*tfevents*")):
        try:
            for record in tf.data.TFRecordDataset(str(path)):
                event = tf.compat.v1.Event.FromString(record.numpy())
                for item in event.summary.value:
                    points = [p for p in found.get(item.tag, []) if p[0] < event.step]
                    point = (event.step, value(tf.make_ndarray(item.tensor)))
                    found[item.tag] = [*points, point]
        except tf.errors.DataLossError:  # It ends in half an event.
            pass
    return found


def steps(directory, tag="curves/loss"):
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
    board = start(tmp_path, figures=("loss", "top_1_accuracy", "calibration"))
    board.on_log(
        FakeTrainer(10, images_per_second=640.5, waiting_for_data=0.25),
        row(
            "train", 10, loss=1.25, top_1_accuracy=0.75, calibration=0.1, learning_rate=0.1,
            gradient_norm=2, weight_norm=3, skipped_updates=2, from_a_hook=7,
        ),
    )  # fmt: skip
    board.on_evaluate(
        FakeTrainer(10), row("val", 10, loss=1.5, top_1_accuracy=0.25, calibration=0.2), None
    )
    board.on_evaluate(FakeTrainer(10), row("test", 10, loss=2.0), None)
    assert curves(tmp_path / "train") == {
        "curves/loss": [(10, 1.25)],
        "curves/top_1_accuracy": [(10, 0.75)],
        "curves/top_1_error": [(10, 0.25)],
        "metrics/calibration": [(10, pytest.approx(0.1))],
        "optimization/learning_rate": [(10, pytest.approx(0.1))],
        "optimization/gradient_norm": [(10, 2.0)],
        "optimization/weight_norm": [(10, 3.0)],
        "optimization/skipped_updates": [(10, 2.0)],
        "speed/images_per_second": [(10, 640.5)],
        "speed/waiting_for_data": [(10, 0.25)],
        "user/from_a_hook": [(10, 7.0)],
    }
    assert curves(tmp_path / "val") == {
        "curves/loss": [(10, 1.5)],
        "curves/top_1_accuracy": [(10, 0.25)],
        "curves/top_1_error": [(10, 0.75)],
        "metrics/calibration": [(10, pytest.approx(0.2))],
    }
    assert curves(tmp_path / "test") == {"curves/loss": [(10, 2.0)]}
    assert [len(files(tmp_path / split)) for split in ("train", "val", "test")] == [1, 1, 1]


def test_loss_and_accuracy_come_first_on_the_pages(tmp_path):
    """TensorBoard sorts groups, and tags within them, and unfolds the first two groups."""
    names = ("loss", "top_1_accuracy", "accuracy_of_something", "a_hook", "learning_rate",
             "images_per_second", "gradient_norm")  # fmt: skip
    figures = ("loss", "top_1_accuracy", "accuracy_of_something")
    tags = [tag_of(name, figures) for name in names]
    assert sorted([*tags, "pictures/mistakes", "result/best_val_loss", "stage_weights/stem"]) == [
        "curves/loss", "curves/top_1_accuracy", "metrics/accuracy_of_something",
        "optimization/gradient_norm", "optimization/learning_rate", "pictures/mistakes",
        "result/best_val_loss", "speed/images_per_second", "stage_weights/stem", "user/a_hook",
    ]  # fmt: skip


def test_points_are_of_tensorboards_plugins_and_have_their_time(tmp_path):
    before = time.time()
    board = start(tmp_path, texts={"configuration": "| a | \udcff |\n|---|---|"})
    write(board, "train", 10)
    shown = accumulated(tmp_path / "train")
    assert shown.PluginTagToContent("scalars").keys() == {"curves/loss"}
    (event,) = shown.Tensors("curves/loss")
    assert before <= event.wall_time <= time.time()
    shown = accumulated(tmp_path)
    assert shown.PluginTagToContent("text").keys() == {"configuration"}
    (event,) = shown.Tensors("configuration")
    assert (event.step, tf.make_ndarray(event.tensor_proto).item()) == (
        0, b"| a | \\udcff |\n|---|---|",
    )  # fmt: skip


def test_images_and_histograms(tmp_path):
    writer = EventWriter(tmp_path)
    png = tf.io.encode_png(np.arange(18, dtype=np.uint8).reshape(2, 3, 3)).numpy()
    writer.add_image("pictures/a", png, 7)
    values = np.array([0, 0, 1, 3, np.nan, np.inf])
    writer.add_histogram("stage_weights/stem", values, 8)
    writer.add_histogram("stage_weights/none", np.array([np.nan]), 8)
    writer.flush()
    shown = accumulated(tmp_path)
    assert shown.PluginTagToContent("images").keys() == {"pictures/a"}
    (event,) = shown.Tensors("pictures/a")
    assert event.step == 7
    # Width and height, as TensorBoard's own writer has them.
    assert tf.make_ndarray(event.tensor_proto).tolist() == [b"3", b"2", png]
    assert shown.PluginTagToContent("histograms").keys() == {"stage_weights/stem"}
    (event,) = shown.Tensors("stage_weights/stem")
    bins = tf.make_ndarray(event.tensor_proto)
    assert (event.step, bins.shape) == (8, (30, 3))
    # Left and right edges, and counts.
    np.testing.assert_allclose(bins[[0, 10, 29]], [[0, 0.1, 2], [1, 1.1, 1], [2.9, 3, 1]])
    assert bins[:, 2].sum() == 4


SETTINGS = {"net": "tiny", "learning_rate": 0.1, "auxiliary": True, "size": None, "at": (1.0, 2)}


def finished(run_dir):
    """A run of two evaluations, of which the first is the best; it is interrupted between them."""
    figures = {"loss": 1.0, "top_1_accuracy": 0.75}, {"loss": 0.5, "top_1_accuracy": 0.5}
    kwargs = {"settings": SETTINGS, "shown": ("net",)}
    board = start(run_dir, **kwargs)
    for step, values in zip((10, 20), figures, strict=True):
        trainer = FakeTrainer(step, step)
        trainer.best.beaten = step == 10
        board.on_evaluate(trainer, row("val", step, **values), None)
        board = start(run_dir, step=step, evaluated_step=step, **kwargs)
    board.on_evaluate(FakeTrainer(10, 20), row("test", 10, **figures[0]), None)
    board.on_end(FakeTrainer(10, 20), None)


def test_the_best_scores_on_validation_are_curves_of_the_run(tmp_path):
    finished(tmp_path)
    shown = curves(tmp_path)
    assert shown["result/best_val_loss"] == [(10, 1.0)]
    assert shown["result/best_val_top_1_accuracy"] == [(10, 0.75)]


def test_hparams_has_the_settings_and_the_scores(tmp_path):
    finished(tmp_path)
    shown = accumulated(tmp_path).PluginTagToContent("hparams")
    parse = {name.rpartition("/")[2]: HParamsPluginData.FromString(x) for name, x in shown.items()}
    assert parse.keys() == {"experiment", "session_start_info", "session_end_info"}
    values = parse["session_start_info"].session_start_info.hparams
    assert {name: getattr(v, v.WhichOneof("kind")) for name, v in values.items()} == {
        "net": "tiny", "learning_rate": 0.1, "auxiliary": True, "size": "None", "at": "1.0, 2",
    }  # fmt: skip
    assert parse["session_end_info"].session_end_info.status == api_pb2.STATUS_SUCCESS
    found = parse["experiment"].experiment
    assert [(info.name, info.type, info.differs) for info in found.hparam_infos] == [
        ("net", api_pb2.DATA_TYPE_STRING, True),
        ("learning_rate", api_pb2.DATA_TYPE_FLOAT64, False),
        ("auxiliary", api_pb2.DATA_TYPE_BOOL, False),
        ("size", api_pb2.DATA_TYPE_STRING, False),
        ("at", api_pb2.DATA_TYPE_STRING, False),
    ]
    # The page shows the first five.
    assert [(m.display_name, m.name.group, m.name.tag) for m in found.metric_infos][:4] == [
        ("best val top-1 accuracy", "", "result/best_val_top_1_accuracy"),
        ("last val top-1 accuracy", "val", "curves/top_1_accuracy"),
        ("test top-1 accuracy", "test", "curves/top_1_accuracy"),
        ("best val loss", "", "result/best_val_loss"),
    ]


def test_the_layout_puts_loss_and_accuracy_of_all_splits_in_shared_charts_first(tmp_path):
    finished(tmp_path)
    (event,) = accumulated(tmp_path).Tensors("custom_scalars__config__")
    found = layout_pb2.Layout.FromString(tf.make_ndarray(event.tensor_proto).item())
    charts = {
        category.title: [(chart.title, *chart.multiline.tag) for chart in category.chart]
        for category in found.category
    }
    assert list(charts) == ["Loss and accuracy", "Optimization", "Speed"]
    assert charts["Loss and accuracy"] == [
        ("Loss", "^curves/loss$"), ("Top-1 accuracy", "^curves/top_1_accuracy$"),
    ]  # fmt: skip
    assert charts["Speed"][1] == ("Waiting for data", "^speed/waiting_for_data$")


def test_what_belongs_to_the_run_is_there_once_after_restarts(tmp_path):
    for _ in range(2):
        finished(tmp_path)
    shown = accumulated(tmp_path)
    points = [(tag, e.step) for tag in shown.Tags()["tensors"] for e in shown.Tensors(tag)]
    assert len(set(points)) == len(points)
    assert {step for tag, step in points if not tag.startswith("result/")} == {0, 21}


def test_a_best_score_that_is_found_again_is_one_point(tmp_path):
    """The evaluation of step 20 is not in the state that is resumed, whose step is later."""
    for step, evaluated in ((0, -1), (22, 10)):
        board = start(tmp_path, step=step, evaluated_step=evaluated, settings=SETTINGS)
        for at in (10, 20) if step == 0 else (20,):
            trainer = FakeTrainer(at, at)
            trainer.best.beaten = True
            board.on_evaluate(trainer, row("val", at, loss=step, top_1_accuracy=0.5), None)
    assert curves(tmp_path)["result/best_val_loss"] == [(10, 0.0), (20, 22.0)]
    assert steps(tmp_path, "configuration") == []  # There was none; the settings are kept.
    assert "custom_scalars__config__" in curves(tmp_path)


def test_a_run_from_before_there_were_such_files_gets_them(tmp_path):
    start(tmp_path, step=20, evaluated_step=20, settings=SETTINGS)
    assert "custom_scalars__config__" in accumulated(tmp_path).Tags()["tensors"]


def test_points_that_come_late_have_the_time_of_their_row(tmp_path):
    board = start(tmp_path)
    with full_disk(0), pytest.raises(SaveError):
        write(board, "train", 10)
    logged = time.time()
    time.sleep(0.05)
    board.on_save(FakeTrainer())
    shown = accumulated(tmp_path / "train")
    assert shown.Tensors("curves/loss")[0].wall_time <= logged


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
        "curves/loss": [(10, 10.0), (20, 20.0)],
    }
    assert curves(tmp_path) == {"configuration": [(0, b"| a |")]}
    assert curves(tmp_path / "val") == {"curves/loss": [(10, 10.0)]}
    assert curves(tmp_path / "test") == {}
    for step in (30, 40):
        write(board, "train", step, loss=-step)
    for step in (20, 40):
        write(board, "val", step, loss=-step)
    write(board, "test", 40, loss=6)
    assert steps(tmp_path / "train") == [10, 20, 30, 40]
    assert curves(tmp_path / "train")["curves/loss"] == [(10, 10), (20, 20), (30, -30), (40, -40)]
    assert curves(tmp_path / "val")["curves/loss"] == [(10, 10), (20, -20), (40, -40)]
    assert curves(tmp_path / "test")["curves/loss"] == [(40, 6)]
    assert steps(tmp_path, "configuration") == [0]


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
    assert steps(tmp_path, "configuration") == [0]
    assert steps(tmp_path, "data") == [0]


def test_going_back_within_a_process_shows_each_point_once(tmp_path):
    board = start(tmp_path, texts={"configuration": "| a |"})
    for back in (20, 10, 0):
        for step in (10, 20, 30, 40):
            write(board, "train", step, loss=back)
        board.on_start(FakeTrainer(back))
        expected = [(step, back) for step in range(10, back + 10, 10)]
        assert curves(tmp_path / "train").get("curves/loss", []) == expected
        for step in range(back + 10, 50, 10):
            write(board, "train", step, loss=-1)
        assert steps(tmp_path / "train") == [10, 20, 30, 40]
        assert steps(tmp_path, "configuration") == [0]
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
    assert steps(tmp_path, "configuration") == [0]
    assert curves(tmp_path / "train")["curves/loss"] == [(1, 1), *((s, s) for s in range(2, 10))]
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
    assert steps(tmp_path, "configuration") == [0]


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
            writer.add_scalars(step, {"curves/loss": 1.0, "curves/top_1_accuracy": 0.25})
            writer.flush()
    assert steps(tmp_path / "follow-val") == [10, 20]
    assert curves(tmp_path / "follow-val")["curves/top_1_accuracy"] == [(10, 0.25), (20, 0.25)]


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("tensorboard").setLevel(logging.ERROR)


def test_what_cannot_be_written_hides_nothing_of_the_same_step(tmp_path):
    """The scalars of step 82 are on disk when its picture does not fit."""
    writer = EventWriter(tmp_path)
    for step in (41, 82):
        writer.add_scalars(step, {"curves/loss": step})
        writer.flush()
    writer.add_text("large", "x" * 10_000, 82)
    with full_disk(0), pytest.raises(SaveError):
        writer.flush()
    writer.flush()
    writer.add_scalars(123, {"curves/loss": 123})
    writer.flush()
    assert [step for step, _ in curves(tmp_path)["curves/loss"]] == [41, 82, 123]
    assert [step for step, _ in fast_curves(tmp_path)["curves/loss"]] == [41, 82, 123]
