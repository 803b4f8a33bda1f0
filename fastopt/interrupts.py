"""Parts of a step that no signal may break in two."""

import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .kernels.hold import Ensured

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
                signal.signal(number, lambda *caught, handler=handler: self.caught(handler, caught))

    def caught(self, handler: Any, caught: tuple) -> None:
        self.pending.append((handler, caught))

    def end(self) -> None:
        for number, handler in self.handlers:
            signal.signal(number, handler)
        while self.pending:  # should one raise, the others are called by a second end()
            handler, caught = self.pending.pop(0)
            handler(*caught)


class Interrupts(Held):
    """The same, but during functions that are called by `call`: there a handler is called at once, as ever.

    What undoes the block after it raised is not interrupted a second time.
    """

    opened = False

    def begin(self) -> None:
        if threading.current_thread() is threading.main_thread():
            super().begin()

    def call(self, function: Callable[[], Any]) -> Any:
        self.opened = True
        try:
            return function()
        finally:
            self.opened = False

    def caught(self, handler, caught):
        if not self.opened:
            super().caught(handler, caught)
            return
        self.opened = False
        handler(*caught)
        self.opened = True  # it did not raise

    def end(self) -> None:
        self.opened = False
        super().end()


def uninterrupted() -> AbstractContextManager[Any]:
    """Holds Ctrl-C and other signals back until the end of the block, so that a step is whole or not begun."""
    if threading.current_thread() is not threading.main_thread():  # there no signal is delivered
        return nullcontext()
    return Held()
