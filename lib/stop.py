"""Stop signals: Ctrl-C (SIGINT), and the signals that clusters send before they end a job."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

from lib import console

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
STOPPED = 75  # exit code of a stopped run, resumable by the same command
# Under torchrun, Ctrl-C reaches the processes twice: from the terminal and from torchrun. Signals within this time
# count as one request.
SECONDS_PER_REQUEST = 5.0 if 'TORCHELASTIC_RUN_ID' in os.environ else 0.0


class Stopped(KeyboardInterrupt):
    """Raised when a run has been saved after a stop signal."""


@contextlib.contextmanager
def interrupt_at_once() -> Iterator[None]:
    """Context manager in which every stop signal raises KeyboardInterrupt."""
    handlers = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    try:
        yield
    finally:
        _restore(handlers)


class StopSignal:
    """Context manager: the first stop signal sets `requested`, a second one ends the process at once.

    The training loop checks `requested` after each step. A thread receives the signals, because Python runs signal
    handlers only between calls into a framework, and one backward pass may take many seconds.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        self._receiver, self._sender = os.pipe()
        os.set_blocking(self._sender, False)
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
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
            if not self.requested:
                self.requested, first = True, time.monotonic()
                console.write('\nstopping; a second signal ends the process at once')
            elif time.monotonic() - first >= SECONDS_PER_REQUEST:
                os._exit(STOPPED)


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler or signal.SIG_DFL)  # None: the handler was not installed from Python
