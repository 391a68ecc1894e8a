import io
import json
import math

import pytest
import tensorflow as tf

from loops.errors import SaveError
from loops.logs import MetricsLog, Terminal, bar, duration
from tests.loops.helpers import full_disk


def scalars(directory):
    """(step, tag) -> value of the event files in a directory."""
    found = {}
    for path in sorted(directory.glob("events*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars" or value.HasField("tensor"):
                    found[event.step, value.tag] = tf.make_ndarray(value.tensor)
    return found


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_row_is_in_the_file_and_in_tensorboard(tmp_path):
    log = MetricsLog(tmp_path)
    log.write("train", 10, 0.5, loss=1.25, top_1_accuracy=0.5)
    log.write("val", 10, 0.5, loss=1.5, top_1_accuracy=0.25)
    assert rows(tmp_path) == [
        {"split": "train", "step": 10, "epoch": 0.5, "loss": 1.25, "top_1_accuracy": 0.5},
        {"split": "val", "step": 10, "epoch": 0.5, "loss": 1.5, "top_1_accuracy": 0.25},
    ]
    # The same tags in both, so that both curves share a chart.
    assert scalars(tmp_path / "train") == {
        (10, "loss"): 1.25,
        (10, "top_1_accuracy"): 0.5,
        (10, "top_1_error"): 0.5,
    }
    assert scalars(tmp_path / "val") == {
        (10, "loss"): 1.5,
        (10, "top_1_accuracy"): 0.25,
        (10, "top_1_error"): 0.75,
    }


def points(directory):
    """(step, tag) of every point in a directory, as often as it is there."""
    found = []
    for path in directory.glob("events*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            found += [(event.step, value.tag) for value in event.summary.value]
    return sorted(found)


def test_what_is_behind_a_state_is_taken_back(tmp_path):
    """In metrics.jsonl and in TensorBoard, torn as a kill leaves them, and no more than that."""
    log = MetricsLog(tmp_path)
    log.write_text("configuration", "| a |")
    for step in (10, 20, 30):
        log.write("train", step, step / 10, loss=1.0, timings={"images_per_second": 5.0})
        log.write("val", step, step / 10, loss=2.0)
    log.write("test", 30, 3, loss=3.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"split": "train", "st')
    (events,) = (tmp_path / "train").glob("events*")
    with events.open("ab") as file:
        file.write(b"half of a record")

    log = MetricsLog(tmp_path)
    # The validation scores of step 20 are not in the state, so they will come again.
    log.rewind(20, evaluated_step=10)
    log.flush()
    kept = [("train", 10), ("val", 10), ("train", 20)]
    assert [(row["split"], row["step"]) for row in rows(tmp_path)] == kept
    assert log.rows == rows(tmp_path)
    tags = ("images_per_second", "loss")
    expected = [(0, "configuration"), *((step, tag) for step in (10, 20) for tag in tags)]
    assert points(tmp_path / "train") == expected
    assert points(tmp_path / "val") == [(10, "loss")]
    assert points(tmp_path / "test") == []
    log.write("val", 20, 2, loss=2.0)
    log.write("train", 30, 3, loss=2.0)
    assert points(tmp_path / "val") == [(10, "loss"), (20, "loss")]
    assert points(tmp_path / "train") == [*expected, (30, "loss")]
    assert [(r["split"], r["step"]) for r in rows(tmp_path)] == [*kept, ("val", 20), ("train", 30)]


def test_a_spoilt_line_takes_no_other_with_it(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (10, 20, 30):
        log.write("train", step, step / 10, loss=1.0)
    spoilt = (tmp_path / "metrics.jsonl").read_text().replace('"step": 20', '"step": 2x')
    (tmp_path / "metrics.jsonl").write_text(spoilt)
    spoken = []
    log = MetricsLog(tmp_path, say=spoken.append)
    log.rewind(30, evaluated_step=-1)
    log.flush()
    assert [row["step"] for row in rows(tmp_path)] == [10, 30]
    assert len(spoken) == 1
    assert "metrics.jsonl has 1 spoilt line" in spoken[0]
    assert (tmp_path / "damaged-metrics.jsonl").read_text() == spoilt


@pytest.mark.parametrize(
    "line",
    ['{"split": ["x"], "step": 7}', '{"split": "dev", "step": 7}', '{"split": "val", "step": "7"}',
     '{"split": "val", "step": 7, "loss": "low"}', '{"split": "val", "step": 7, "loss": true}',
     '{"step": 7}', "[]", "3", "{" * 9999, ""],
)  # fmt: skip
def test_a_line_that_is_no_row_is_spoilt(tmp_path, line):
    row = '{"split": "train", "step": 10, "epoch": 1.0, "loss": null}\n'
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n{row}")
    log = MetricsLog(tmp_path)
    log.rewind(10, evaluated_step=-1)
    log.flush()
    assert (tmp_path / "metrics.jsonl").read_text() == row


def test_rows_that_are_gone_are_told(tmp_path):
    spoken = []
    MetricsLog(tmp_path, say=spoken.append).rewind(0, evaluated_step=-1)
    assert spoken == []
    MetricsLog(tmp_path, say=spoken.append).rewind(20, evaluated_step=-1)
    assert spoken == [f"{tmp_path}/metrics.jsonl is gone, and with it the rows up to step 20"]


def test_points_before_a_bad_byte_are_kept_and_so_is_the_file(tmp_path):
    log = MetricsLog(tmp_path)
    for step in range(10):
        log.write("train", step, step / 10, loss=1.0)
    (events,) = (tmp_path / "train").glob("events*")
    content = bytearray(events.read_bytes())
    content[len(content) // 2] ^= 1
    events.write_bytes(content)
    spoken = []
    log = MetricsLog(tmp_path, say=spoken.append)
    log.rewind(9, evaluated_step=-1)
    log.flush()
    assert 0 < len(points(tmp_path / "train")) < 10
    (copy,) = (tmp_path / "train").glob("damaged-*")
    assert copy.read_bytes() == content
    assert str(copy) in spoken[0]


def test_what_a_full_disk_keeps_from_being_taken_back_is_taken_back_later(tmp_path):
    log = MetricsLog(tmp_path)
    log.write_text("configuration", "| a |")
    for step in (10, 20, 30):
        log.write("train", step, step / 10, loss=1.0)
    with full_disk():
        log.rewind(20, evaluated_step=-1)
        for _ in range(2):
            with pytest.raises(SaveError, match=f"cannot write {tmp_path}"):
                log.write("train", 25, 2.5, loss=2.0)
            log.rewind(20, evaluated_step=-1)
    log.write("train", 25, 2.5, loss=2.0)
    assert [row["step"] for row in rows(tmp_path)] == [10, 20, 25]
    wanted = [(0, "configuration"), (10, "loss"), (20, "loss"), (25, "loss")]
    assert points(tmp_path / "train") == wanted
    log.rewind(0, evaluated_step=-1)
    log.flush()
    assert points(tmp_path / "train") == [(0, "configuration")]


def test_a_run_that_died_before_its_first_state_tells_all_anew(tmp_path):
    log = MetricsLog(tmp_path)
    log.write_text("configuration", "| a |")
    log.write("train", 1, 0.1, loss=1.0)
    log = MetricsLog(tmp_path)
    log.rewind(0, evaluated_step=-1)
    log.write_text("configuration", "| a |")
    log.flush()
    assert points(tmp_path / "train") == [(0, "configuration")]
    assert rows(tmp_path) == []


def test_timings_are_for_tensorboard_alone(tmp_path):
    MetricsLog(tmp_path).write("train", 1, 0.1, loss=1.0, timings={"images_per_second": 5.0})
    assert "images_per_second" not in rows(tmp_path)[0]
    assert scalars(tmp_path / "train")[1, "images_per_second"] == 5.0


def test_a_worker_that_is_not_the_chief_writes_nothing(tmp_path):
    log = MetricsLog(tmp_path, writes=False)
    log.rewind(0, evaluated_step=-1)
    log.write_text("configuration", "| a |")
    log.write("train", 1, 0.1, loss=1.0)
    assert [row["step"] for row in log.rows] == [1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 80, 150, 200])
def test_what_a_full_disk_refused_is_written_later(tmp_path, size):
    """Once, whatever part of it had got to the disk."""
    log = MetricsLog(tmp_path)
    log.write("train", 1, 0.1, loss=1.0)
    with full_disk(size):
        for step in (2, 3):
            with pytest.raises(SaveError, match=f"cannot write {tmp_path}"):
                log.write("train", step, 0.1, loss=1.0)
    log.write("train", 4, 0.1, loss=1.0)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4]
    assert points(tmp_path / "train") == [(step, "loss") for step in (1, 2, 3, 4)]


def test_rows_are_json_also_where_a_figure_is_not_finite(tmp_path):
    MetricsLog(tmp_path).write("train", 1, 0.1, loss=math.nan, gradient_norm=math.inf)
    assert rows(tmp_path)[0]["loss"] is None
    assert rows(tmp_path)[0]["gradient_norm"] is None


def test_text(tmp_path):
    log = MetricsLog(tmp_path)
    log.write_text("configuration", "| a | b |")
    log.flush()
    assert scalars(tmp_path / "train")[0, "configuration"] == b"| a | b |"


def test_what_cannot_be_written_is_named(tmp_path):
    log = MetricsLog(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(SaveError, match=r"cannot write .*metrics\.jsonl: Is a directory"):
        log.write("train", 1, 0.1, loss=1.0)
    (tmp_path / "metrics.jsonl").rmdir()
    (tmp_path / "val").write_text("in the way of the event files")
    log = MetricsLog(tmp_path)
    with pytest.raises(SaveError, match=r"cannot write .*/val: "):
        log.write("val", 1, 0.1, loss=1.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (725, "12m 05s"), (12_000, "3h 20m")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_bar():
    assert bar(0.5, 4) == "[==  ]"
    assert bar(2, 4) == "[====]"


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_a_status_renews_itself_on_a_screen():
    screen = Screen()
    terminal = Terminal(screen)
    terminal.status("one")
    terminal.line("two")
    assert screen.getvalue() == "\r\x1b[Kone\r\x1b[Ktwo\n"


def test_what_an_encoding_lacks_is_escaped():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", write_through=True)
    Terminal(stream).line("é 写 \udcff")
    assert stream.buffer.getvalue() == b"\xe9 \\u5199 \\udcff\n"


def test_a_status_is_rare_elsewhere(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    terminal = Terminal(io.StringIO())
    for now[0] in (1.0, 31.0, 32.0, 62.5):
        terminal.status(f"at {now[0]}")
    assert terminal._stream.getvalue() == "at 31.0\nat 62.5\n"
