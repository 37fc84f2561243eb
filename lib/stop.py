"""Signals that ask a run to stop: Ctrl-C (SIGINT), and what clusters send before they take the machine away."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
STOPPED = 75  # exit code: the same command goes on
# torchrun hands on what reaches its processes already, as does a terminal: all that comes in this time is one request.
SECONDS_OF_A_REQUEST = 5.0 if 'TORCHELASTIC_RUN_ID' in os.environ else 0.0
_received: list[int] = []  # before training


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Within it each of the signals raises KeyboardInterrupt, as Ctrl-C does."""
    _received.clear()
    handlers = {number: signal.signal(number, _interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        _restore(handlers)


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and has been saved."""


class Stop:
    """Within `with Stop() as stop`, a first signal sets `stop.asked`, and a second one ends the process at once.

    It is left to the training loop to look at `asked` after each step. The signals are taken by a thread, for Python
    runs handlers only between the calls of a framework, and a backward pass may be one call of many seconds.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Self:
        self.asked = bool(_received)  # by an interrupt that was lost (see _interrupt)
        self._receiver, self._sender = os.pipe()
        os.set_blocking(self._sender, False)
        self._handlers = {number: signal.signal(number, _leave_it_to_the_thread) for number in SIGNALS}
        self._wakeup_fd = signal.set_wakeup_fd(self._sender, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup_fd)
        _restore(self._handlers)
        os.close(self._sender)
        self._thread.join()
        os.close(self._receiver)

    def _listen(self) -> None:
        first = 0.0
        while received := os.read(self._receiver, 1):
            if received[0] not in SIGNALS:
                continue
            if not self.asked:
                self.asked, first = True, time.monotonic()
                print('\nstopping after this step; a second signal leaves at once', flush=True)
            elif time.monotonic() - first >= SECONDS_OF_A_REQUEST:
                os._exit(STOPPED)


def _interrupt(number: int, _: object) -> None:
    _received.append(number)  # Python drops what is raised while it destroys an object
    raise KeyboardInterrupt


def _leave_it_to_the_thread(*_: object) -> None: ...


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler or signal.SIG_DFL)  # None: not one of Python's
