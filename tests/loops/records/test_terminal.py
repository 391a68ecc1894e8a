import fcntl
import io
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time

import pytest

from loops.records.metrics_log import MetricsLog
from loops.records.terminal import Terminal, duration
from loops.schedule import Plan
from tests.conftest import ROOT
from tests.loops.records.fakes import FakeTrainer, State, row

METRICS = {"top_1_accuracy": ("top-1", ".2%"), "expected_calibration_error": ("ECE", ".3f")}
# Epochs of 11 steps, of which the last is not full.
PLAN = Plan(epochs=3, train_examples=345, global_batch_size=32)


def train(terminal, trainer, step, loss, top_1=0.5):
    figures = {"loss": loss, "top_1_accuracy": top_1, "expected_calibration_error": 0.25}
    trainer.step = step
    terminal.on_log(trainer, row("train", step, **figures, learning_rate=0.0123))


def evaluate(terminal, trainer, split="val", **figures):
    terminal.on_evaluate(trainer, row(split, trainer.step, **figures), None)


def printed(**kwargs):
    stream = io.StringIO()
    return stream, Terminal(stream, metrics=METRICS, **kwargs)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (725, "12m 05s"), (12_000, "3h 20m")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_an_epoch_is_a_line_with_means_over_its_steps():
    stream, terminal = printed()
    trainer = FakeTrainer(plan=PLAN, images_per_second=1204.3)
    train(terminal, trainer, 11, 9.0)  # Of the epoch before.
    train(terminal, trainer, 20, 1.0, top_1=0.5)
    train(terminal, trainer, 22, 2.1, top_1=0.8)
    evaluate(terminal, trainer, loss=0.75, top_1_accuracy=0.6)
    evaluate(terminal, trainer, "test", loss=0.1)
    trainer.seconds_left = 80.0
    terminal.on_epoch(trainer)
    assert stream.getvalue() == (
        "epoch 2/3  step 22  train loss 1.2000 top-1 55.45% ECE 0.250  "
        "val loss 0.7500 top-1 60.00%  1,204 images/s  1m 20s left\n"
    )


def test_the_first_epoch_begins_at_step_0_and_the_last_may_be_short():
    stream, terminal = printed()
    trainer = FakeTrainer(plan=Plan(epochs=1.5, train_examples=100, global_batch_size=50))
    train(terminal, trainer, 1, 3.0)
    train(terminal, trainer, 2, 1.0)
    terminal.on_epoch(trainer)
    train(terminal, trainer, 3, 0.5)
    terminal.on_epoch(trainer)
    assert stream.getvalue().splitlines() == [
        "epoch 1/1.5  step 2  train loss 2.0000 top-1 50.00% ECE 0.250",
        "epoch 1.5/1.5  step 3  train loss 0.5000 top-1 50.00% ECE 0.250",
    ]


def test_figures_that_are_not_finite_are_in_no_mean():
    """As where every update of a row was skipped, or a metric is new."""
    stream, terminal = printed()
    trainer = FakeTrainer(plan=PLAN)
    train(terminal, trainer, 5, math.nan, top_1=math.nan)
    train(terminal, trainer, 11, 1.0, top_1=math.nan)
    evaluate(terminal, trainer, loss=math.inf, top_1_accuracy=0.5)
    terminal.on_epoch(trainer)
    assert stream.getvalue() == (
        "epoch 1/3  step 11  train loss 1.0000 ECE 0.250  val top-1 50.00%\n"
    )


def test_after_a_restart_the_mean_has_the_rows_of_before(tmp_path):
    log = MetricsLog(tmp_path)
    log.on_start(FakeTrainer())
    log.on_log(None, row("train", 5, loss=3.0))
    log.on_log(None, row("train", 8, loss=99.0))

    log = MetricsLog(tmp_path)
    stream, terminal = printed()
    terminal.log = log
    trainer = FakeTrainer(step=5, plan=PLAN)
    for hook in (terminal, log):
        hook.on_start(trainer)
    trainer.step = 11
    for hook in (terminal, log):
        hook.on_log(trainer, row("train", 11, loss=1.0))
    terminal.on_epoch(trainer)
    assert stream.getvalue() == "epoch 1/3  step 11  train loss 1.9091\n"


def test_rows_that_are_made_again_count_once():
    stream, terminal = printed()
    trainer = FakeTrainer(plan=PLAN)
    train(terminal, trainer, 5, 3.0)
    train(terminal, trainer, 8, 99.0)
    trainer.step = 5
    terminal.on_start(trainer)
    train(terminal, trainer, 11, 1.0)
    terminal.on_epoch(trainer)
    assert "train loss 1.9091" in stream.getvalue()


def test_elsewhere_than_on_a_screen_a_status_is_rare(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream, terminal = printed(best_metric="top_1_accuracy")
    for now[0] in (1.0, 31.0, 32.0, 62.5):
        terminal.status(f"at {now[0]}")
    assert stream.getvalue() == "at 31.0\nat 62.5\n"
    now[0] = 100.0
    trainer = FakeTrainer(plan=PLAN, images_per_second=640)
    trainer.step = 22
    evaluate(terminal, trainer, loss=0.3, top_1_accuracy=0.875)
    trainer.state = State(best_step=22)
    train(terminal, trainer, 30, 0.5)
    trainer.activity, trainer.seconds_left = "evaluating on the val split", 3
    terminal.on_progress(trainer)
    terminal.on_progress(trainer)
    assert stream.getvalue().splitlines()[2:] == [
        "evaluating on the val split  epoch 2.8/3  step 30/33  3s left  loss 0.5000 top-1 50.00%  "
        "lr 0.0123  640 images/s  best top-1 87.50%"
    ]


def test_what_is_printed_depends_on_the_verbosity(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    found = {}
    for verbosity in (0, 1, 2):
        stream, terminal = printed(verbosity=verbosity)
        now[0] += 100
        trainer = FakeTrainer(plan=PLAN, images_per_second=640)
        terminal.line("a message")
        terminal.line("the result", always=True)
        train(terminal, trainer, 11, 0.5)
        terminal.on_progress(trainer)
        terminal.on_epoch(trainer)
        found[verbosity] = [line.split("  train")[0] for line in stream.getvalue().splitlines()]
    assert found[0] == ["the result"]
    status = "epoch 1.0/3  step 11/33  loss 0.5000 top-1 50.00%  lr 0.0123  640 images/s"
    assert found[1] == ["a message", "the result", status, "epoch 1/3  step 11"]
    row = "  step 11"
    assert found[2] == ["a message", "the result", row, status, "epoch 1/3  step 11"]


def test_a_quiet_terminal_prints_nothing(capsys):
    terminal = Terminal(quiet=True)
    terminal.line("a")
    terminal.status("b")
    assert capsys.readouterr() == ("", "")


def test_what_an_encoding_lacks_is_escaped():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", write_through=True)
    Terminal(stream).line("é 写 \udcff [bold]")
    assert stream.buffer.getvalue() == b"\xe9 \\u5199 \\udcff [bold]\n"


class Broken(io.StringIO):
    def __init__(self, error, terminal):
        super().__init__()
        self.error, self.terminal, self.calls = error, terminal, 0

    def isatty(self):
        return self.terminal

    def write(self, text):
        self.calls += 1
        raise self.error


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(28, "No space"), ValueError("closed")]
)
@pytest.mark.parametrize("terminal", [False, True])
def test_an_output_that_fails_is_ignored(error, terminal):
    stream = Broken(error, terminal)
    trainer = FakeTrainer(plan=PLAN)
    with Terminal(stream, metrics=METRICS) as terminal:
        terminal.line("a")
        terminal.status("b")
        train(terminal, trainer, 11, 1.0)
        terminal.on_progress(trainer)
        terminal.on_epoch(trainer)
    assert stream.calls == 1


def test_no_standard_output_is_ignored(monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    Terminal().line("a")
    closed = io.StringIO()
    closed.close()
    Terminal(closed).line("a")


# What a run does, in a process of its own.
SCRIPT = """
import sys, time
from loops.records.terminal import Terminal
from tests.loops.records.fakes import FakePlan, FakeTrainer, State, row

trainer = FakeTrainer(plan=FakePlan(), images_per_second=1204.3)
metrics = {"top_1_accuracy": ("top-1", ".2%"), "expected_calibration_error": ("ECE", ".3f")}
figures = {"top_1_accuracy": 0.5, "expected_calibration_error": 0.25}
with Terminal(metrics=metrics, best_metric="top_1_accuracy") as terminal:
    terminal.line("run    /a/long/path/" + "x" * 60)
    terminal.status("tracing the training step")
    time.sleep(0.3)
    for step in range(1, 34):
        trainer.seconds_left = 80.0 * (33 - step)
        trainer.step = step
        terminal.on_log(trainer, row("train", step, loss=0.5, **figures))
        terminal.on_progress(trainer)
        if step % 11 == 0:
            time.sleep(0.2)
            terminal.on_evaluate(trainer, row("val", step, loss=0.75, top_1_accuracy=0.6), None)
            trainer.state = State(step)
            terminal.on_epoch(trainer)
            print("from a hook", flush=True)
    terminal.on_end(trainer, None)
    terminal.line("test   top-1 60.00%")
"""


def on_a_screen(width, script=SCRIPT, **environment):
    """What a script writes to a terminal of some width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **environment}
    # pytest-xdist sets these.
    inherited = {name: os.environ[name] for name in os.environ if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=inherited | environment, stdin=theirs,
        stdout=theirs, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(theirs)
    output = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # The end, on Linux.
            break
        if not part:
            break
        output += part
    os.close(ours)
    assert (process.wait(), process.stderr.read()) == (0, b"")
    return output.decode()


def screen(output):
    """The lines that stay on a screen, without colours, and the longest live line."""
    output = re.sub(r"\x1b\[[\d;]*m|\x1b\[\?25[lh]", "", output)
    lines, widest = [""], 0
    for token in re.findall(r"\x1b\[2K|\x1b\[1A|\r\n|\r|\n|[^\x1b\r\n]+", output):
        if token == "\x1b[2K":
            widest = max(widest, len(lines[-1]))
            lines[-1] = ""
        elif token == "\x1b[1A":
            assert lines.pop() == ""
        elif token in ("\r\n", "\n"):
            lines.append("")
        elif token != "\r":
            assert lines[-1] == ""  # Nothing is left of what was there before.
            lines[-1] = token
    return lines, widest


@pytest.mark.slow
@pytest.mark.parametrize("width", [10, 40, 200])
def test_a_live_line_leaves_nothing_behind_and_fits(width):
    output = on_a_screen(width)
    lines, widest = screen(output)
    # Cut in words where it does not fit, so that the terminal need not cut within one.
    assert lines[0] == "run    /a/long/path/" + "x" * 60
    text = " ".join(" ".join(lines).split())
    epoch = "train loss 0.5000 top-1 50.00% ECE 0.250 val loss 0.7500 top-1 60.00% 1,204 images/s"
    expected = " ".join(
        [
            lines[0],
            *(
                f"epoch {i}/3 step {11 * i} {epoch} {left} from a hook"
                for i, left in ((1, "29m 20s left"), (2, "14m 40s left"), (3, ""))
            ),
            "test top-1 60.00%",
        ]
    )
    assert text == " ".join(expected.split())
    assert lines[-1] == ""
    assert 0 < widest < width
    assert not re.search(r"\x1b\[\?25l(?!\x1b\[\?25h)", output)  # The cursor is always visible.
    if width == 200:
        assert len(lines) == 1 + 2 * 3 + 1 + 1
        assert "tracing the training step" in output
        assert re.search(r"step 33/33.*best .*top-1 60.00%.*1,204 images/s", output)
    if width == 40:
        assert re.search(r"step \d+/33  \d+m \d\ds left\r", output)


def test_a_dumb_terminal_gets_plain_lines():
    output = on_a_screen(80, TERM="dumb")
    assert "\x1b" not in output
    assert output.count("\r\n") == 8


def test_a_terminal_without_unicode_gets_ascii():
    output = on_a_screen(120, PYTHONIOENCODING="ascii")
    assert output.isascii()
    assert "\\u" not in output
    assert "=====" in output


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["> /dev/full", ">&-", "| true"])
def test_an_output_that_takes_nothing_ends_no_run(redirection):
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "$0" {redirection}; exit ${{PIPESTATUS[0]}}',
         SCRIPT],
        cwd=ROOT, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr, done.stdout) == (0, b"", b"")


def test_the_live_line_moves_by_itself_and_goes(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")

    class Screen(io.StringIO):
        def isatty(self):
            return True

    stream = Screen()
    terminal = Terminal(stream)
    terminal.status("tracing")
    deadline = time.monotonic() + 5
    while stream.getvalue().count("tracing") < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert stream.getvalue().count("tracing") >= 3
    terminal.close()
    assert stream.getvalue().endswith("\x1b[2K")
    terminal.close()
    terminal.line("done")
    assert stream.getvalue().endswith("done\n")
