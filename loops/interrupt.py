"""Stops a run on SIGINT or SIGTERM: the loop saves its state before it stops."""

import contextlib
import os
import signal
import socket
import threading

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """A signal stopped the run. Its state has been saved, if possible.

    Attributes:
        signal_number: of the signal.
        step: global step of the last saved state, or None if there is none.
    """

    def __init__(self, signal_number: int, step: int | None):
        super().__init__(f"{signal.Signals(signal_number).name} at step {step}")
        self.signal_number = signal_number
        self.step = step


class StopRequest(contextlib.ExitStack):
    """A context that records a first SIGINT or SIGTERM; a second one exits the process at once.

    The exit code is then 128 + signal number. A thread waits for the second signal, since Python
    calls no handler during a call of the device loop, which can be long. Outside the main thread,
    where Python cannot set handlers, no signal is recorded.

    Attributes:
        signal_number: of the recorded signal, or None.
    """

    signal_number: int | None = None

    def __enter__(self):
        self.signal_number = None
        if threading.current_thread() is threading.main_thread():
            receiver, sender = socket.socketpair()
            sender.setblocking(False)
            threading.Thread(target=_exit_at_second, args=(receiver,), daemon=True).start()
            self.callback(sender.close)  # Which ends the thread.
            for number in _SIGNALS:
                previous = signal.signal(number, self._record)
                self.callback(signal.signal, number, previous or signal.SIG_DFL)
            fd = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
            self.callback(signal.set_wakeup_fd, fd)
        return self

    def _record(self, number, _frame):
        self.signal_number = number


def _exit_at_second(receiver: socket.socket) -> None:
    """Exits the process at the second signal; returns when the socket is closed."""
    signals = 0
    with receiver:
        while data := receiver.recv(1):
            signals += data[0] in _SIGNALS
            if signals == 2:
                os._exit(128 + data[0])  # As shells report a process that a signal ended.
