"""Leaving in time: a signal asks the loop to save and stop at the next step."""

import signal


class Interrupted(Exception):
    """The run was asked to stop, and has saved its state.

    Attributes:
        signal_number: the signal that asked.
        step: the step of the last state that is saved.
    """

    def __init__(self, signal_number: int, step: int):
        super().__init__(f"{signal.Signals(signal_number).name} at step {step}")
        self.signal_number = signal_number
        self.step = step


class StopRequest:
    """Within `with`, SIGINT and SIGTERM are noted; a second one leaves at once.

    Attributes:
        signal_number: of the signal that came, or None.
    """

    def __init__(self):
        self.signal_number = None
        self._previous = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        del frame
        self.signal_number = number
        for each in self._previous:
            signal.signal(each, signal.SIG_DFL)
