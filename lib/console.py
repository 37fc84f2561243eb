"""Messages on the console. Modules log them with `logging`; scripts and tools call `set_up` first."""

import logging
import os
import sys
import warnings

from tqdm import tqdm

log = logging.getLogger(__name__)


class ConsoleHandler(logging.Handler):
    """Prints messages to stdout, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def set_up() -> None:
    """Prints log messages from INFO on, and warnings as one line."""
    logging.basicConfig(level=logging.INFO, handlers=[ConsoleHandler()], force=True)
    warnings.showwarning = lambda message, *_: print(f'warning: {message}', file=sys.stderr)


def silence() -> None:
    """Silences this process: of several that train together only one prints. Errors are still printed."""
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 closed with the process
    logging.disable()
    warnings.simplefilter('ignore')


def log_facts(facts: dict[str, str]) -> None:
    """Logs names and values, one per line."""
    for name, fact in facts.items():
        log.info('%-12s%s', name, fact)
