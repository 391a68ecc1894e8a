import io
import json
import math

import pytest
import tensorflow as tf

from loops.errors import RunError
from loops.logs import MetricsLog, Terminal, bar, duration


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
    log = MetricsLog(tmp_path, step=0)
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


def test_rows_behind_the_checkpoint_are_dropped(tmp_path):
    log = MetricsLog(tmp_path, step=0)
    for step in (10, 20, 30):
        log.write("train", step, step / 10, loss=1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"split": "train", "st')  # As a kill leaves it.
    log = MetricsLog(tmp_path, step=20)
    assert [row["step"] for row in rows(tmp_path)] == [10, 20]
    log.write("train", 30, 3, loss=2.0)
    assert [row["step"] for row in rows(tmp_path)] == [10, 20, 30]


def test_rows_are_json_also_where_a_figure_is_not_finite(tmp_path):
    MetricsLog(tmp_path, step=0).write("train", 1, 0.1, loss=math.nan, gradient_norm=math.inf)
    assert rows(tmp_path)[0]["loss"] is None
    assert rows(tmp_path)[0]["gradient_norm"] is None


def test_text(tmp_path):
    MetricsLog(tmp_path, step=0).write_text("configuration", "| a | b |")
    assert scalars(tmp_path / "train")[0, "configuration"] == b"| a | b |"


def test_what_cannot_be_written_is_named(tmp_path):
    log = MetricsLog(tmp_path, step=0)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match=r"cannot write to .*: Is a directory"):
        log.write("train", 1, 0.1, loss=1.0)
    (tmp_path / "metrics.jsonl").rmdir()
    (tmp_path / "val").write_text("in the way of the event files")
    with pytest.raises(RunError, match="cannot write to "):
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
