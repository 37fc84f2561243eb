"""Messages on the console: modules log them with `logging`, scripts and tools print them inside `with messages()`."""

import contextlib
import logging
import os
import resource
import sys
import warnings
from collections.abc import Iterator

from tqdm import tqdm

log = logging.getLogger(__name__)


@contextlib.contextmanager
def messages() -> Iterator[None]:
    """Prints the package's log messages from INFO on, and warnings as one line."""
    logger, handler = logging.getLogger('lib'), _Console()
    level, logger.propagate = logger.level, False  # TensorFlow gives the root logger a handler of its own
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f'warning: {message}', file=sys.stderr)
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = True


class _Console(logging.Handler):
    """Prints messages to stdout, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(record.getMessage(), file=sys.stdout)
        sys.stdout.flush()


def peak_process_memory() -> int:
    """The largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def silence() -> None:
    """Silences this process: of several that train together only one prints. Errors are still printed."""
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 closed with the process
    logging.disable()
    warnings.simplefilter('ignore')


def log_facts(facts: dict[str, str]) -> None:
    """Logs names and values, one per line."""
    for name, fact in facts.items():
        log.info('%-12s%s', name, fact)
