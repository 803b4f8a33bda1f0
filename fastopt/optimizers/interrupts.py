"""Parts of a step that no signal may break in two."""

import signal
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ..kernels.hold import Ensured

NAMES = "SIGINT SIGTERM SIGALRM SIGVTALRM SIGPROF SIGUSR1 SIGUSR2 SIGHUP SIGQUIT SIGBREAK"
SIGNALS = [getattr(signal, name) for name in NAMES.split() if hasattr(signal, name)]


class Held(Ensured):
    """Holds signals back: those with a handler in Python, which may raise."""

    def __init__(self) -> None:
        self.handlers: list[tuple[Any, Any]] = []
        self.pending: list[tuple[Any, tuple]] = []

    def begin(self) -> None:
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                self.handlers.append((number, handler))
                signal.signal(number, lambda *caught, handler=handler: self.pending.append((handler, caught)))

    def end(self) -> None:
        for number, handler in self.handlers:
            signal.signal(number, handler)
        pending, self.pending = self.pending, []
        for handler, caught in pending:
            handler(*caught)


def uninterrupted() -> AbstractContextManager[Any]:
    """Holds Ctrl-C and other signals back until the end of the block, so that a step is whole or not begun."""
    if threading.current_thread() is not threading.main_thread():  # there no signal is delivered
        return nullcontext()
    return Held()
