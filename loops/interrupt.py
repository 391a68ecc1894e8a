"""Leaving in time: a signal asks the loop to save and stop at the next step."""

import os
import signal
import socket
import threading

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A shell's convention for a process that a signal ended.
_EXIT_SIGNAL = 128


class Interrupted(Exception):
    """The run was asked to stop, and has saved its state if it could.

    Attributes:
        signal_number: the signal that asked.
        step: the step of the last state that is saved; None where none could be.
    """

    def __init__(self, signal_number: int, step: int | None):
        super().__init__(f"{signal.Signals(signal_number).name} at step {step}")
        self.signal_number = signal_number
        self.step = step


class StopRequest:
    """Within `with`, SIGINT and SIGTERM are noted; a second one leaves at once, with 128 + number.

    Python runs a handler only between two of its own operations, and a call of the device loop can
    be long. So the second signal is not left to a handler: a thread is told of each by a socket.

    Attributes:
        signal_number: of the signal that came, or None.
    """

    def __init__(self):
        self.signal_number = None

    def __enter__(self):
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        self._previous_fd = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_leave_at_second, args=(self._receiver,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._sender.close()  # Which ends the thread.

    def _note(self, number, frame):
        del frame
        self.signal_number = number


def _leave_at_second(receiver: socket.socket) -> None:
    """Leaves the process when a second signal comes; ends when the socket does."""
    came = False
    with receiver:
        while byte := receiver.recv(1):
            if byte[0] not in _SIGNALS:
                continue
            if came:
                os._exit(_EXIT_SIGNAL + byte[0])
            came = True
