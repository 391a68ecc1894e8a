"""Signals: the first is recorded, the second ends the process."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from loops.interrupt import Interrupted, StopRequest
from tests.conftest import ROOT

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Enters a StopRequest and then a call into C that lasts for minutes and ignores signals, as a call
# of the device loop does.
SCRIPT = """
import hashlib, signal
from loops.interrupt import StopRequest

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGUSR1, lambda number, frame: None)
with StopRequest():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_recorded_within_and_handled_as_before_after(number):
    before = [signal.getsignal(n) for n in SIGNALS]
    threads = threading.active_count()
    with StopRequest() as stop:
        assert stop.signal_number is None
        os.kill(os.getpid(), number)
        assert stop.signal_number == number
    assert [signal.getsignal(n) for n in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
    deadline = time.monotonic() + 5
    while threading.active_count() > threads:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_each_use_counts_anew():
    """As in a notebook, where training is stopped and continued in the same process."""
    stop = StopRequest()
    for _ in range(3):
        with stop:
            assert stop.signal_number is None
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signal_number == signal.SIGINT


def test_handlers_are_restored_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), StopRequest():
        _ = 1 / 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_wakeup_fd_of_an_event_loop_is_restored():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    with StopRequest():
        pass
    assert signal.set_wakeup_fd(-1) == writer
    os.close(reader)
    os.close(writer)


def test_outside_the_main_thread_nothing_changes():
    before = [signal.getsignal(n) for n in SIGNALS]
    seen = []

    def body():
        with StopRequest() as stop:
            seen.append([signal.getsignal(n) for n in SIGNALS])
            seen.append(stop.signal_number)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [before, None]
    assert [signal.getsignal(n) for n in SIGNALS] == before


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((signal.SIGINT, signal.SIGINT), 130),
        ((signal.SIGTERM, signal.SIGTERM), 143),
        ((signal.SIGINT, signal.SIGTERM), 143),
        ((signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT), 130),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "+".join(n.name for n in value),
)
def test_a_second_signal_ends_the_process_within_a_long_call(numbers, code):
    command = [sys.executable, "-c", SCRIPT]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            for number in numbers:
                assert process.poll() is None
                process.send_signal(number)
                time.sleep(0.2)
            assert process.wait(timeout=10) == code
        finally:
            process.kill()


def test_interrupted():
    error = Interrupted(signal.SIGTERM, 20)
    assert (error.signal_number, error.step) == (15, 20)
    assert str(error) == "SIGTERM at step 20"
