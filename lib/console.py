"""Console output: modules use `logging`; scripts and tools print the messages inside `with messages()`."""

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
    """Context manager that prints log messages of the package, and warnings on one line each."""
    logger, handler = logging.getLogger('lib'), _Console()
    level, logger.propagate = logger.level, False  # TensorFlow adds a handler to the root logger
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
    def emit(self, record: logging.LogRecord) -> None:
        write(record.getMessage())


def write(text: str) -> None:
    """Writes a line to stdout, above a progress bar. Work goes on when nobody reads it any more (`| head`)."""
    try:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        with open(os.devnull, 'w') as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def peak_process_memory() -> int:
    """Peak resident memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def silence() -> None:
    """Silences all output of this process except errors."""
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 closed with the process
    logging.disable()
    warnings.simplefilter('ignore')


def log_facts(facts: dict[str, str]) -> None:
    """Logs names and values, one per line."""
    for name, fact in facts.items():
        log.info('%-12s%s', name, fact)
