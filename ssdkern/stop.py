"""An orderly way out of a long run."""

import os
import signal
from contextlib import contextmanager


class StopSignal:
    """Turns SIGINT and SIGTERM into a number to look at between steps; a second one ends at once.

    Within `interrupting`, where nothing can be left half done, a signal raises KeyboardInterrupt.
    """

    def __init__(self):
        self.number = 0
        self._raise = False
        self._owner = os.getpid()

    def __enter__(self):
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, _frame):
        if os.getpid() != self._owner:  # a loader's process, which inherits this handler
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        again, self.number = bool(self.number), number
        if again or self._raise:
            raise KeyboardInterrupt

    @contextmanager
    def interrupting(self):
        self._raise = True
        try:
            yield
        except KeyboardInterrupt:
            if not self.number:
                raise
        finally:
            self._raise = False
