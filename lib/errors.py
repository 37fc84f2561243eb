"""The exception for mistakes of the user: it ends a command with one line and exit code 2, without a traceback."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


class UserError(ValueError):
    """A command, config or file that cannot be used. The text says what was found and what to do."""


@contextlib.contextmanager
def user_file(path: str | Path, action: str = 'read') -> Iterator[None]:
    """Turns an OSError raised inside into a UserError that names the file and the reason."""
    try:
        yield
    except OSError as error:
        raise UserError(f'{path} cannot be {action} ({error.strerror or error}).') from None
