"""User errors, which end a command with one line and exit code 2 instead of a traceback."""

import contextlib
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxdict, _repr.maxstring, _repr.maxother = 2, 4, 100, 100


class UserError(ValueError):
    """Invalid command, config or file. The message states what was found and what to do."""


@contextlib.contextmanager
def user_file(path: str | Path, action: str = 'read') -> Iterator[None]:
    """Turns an OSError raised inside into a UserError that names the file and the reason."""
    try:
        yield
    except OSError as error:
        raise UserError(f'{path} cannot be {action} ({error.strerror or error}).') from None


def check_values(section: str, values: Mapping[str, Any], rules: Mapping[str, tuple[bool, str]]) -> None:
    """Raises UserError for the first invalid value in a config section.

    rules: {key: (whether its value is valid, description of valid values)}.
    """
    for key, (is_valid, rule) in rules.items():
        if not is_valid:
            value = list(values[key]) if isinstance(values[key], tuple) else values[key]
            raise UserError(f'{section}.{key} is {value}; it must be {rule}.')


def shown(value: object) -> str:
    """Formats a value for a message: short, on one line."""
    try:
        return ' '.join(_repr.repr(value).split())
    except ValueError:  # a number of over 4,300 digits
        return f'a huge {type(value).__name__}'


def shown_text(text: str) -> str:
    """Formats a name for a message: without quotes unless it is long or not printable."""
    return text if len(text) <= 100 and text.isprintable() else shown(text)


def numbered(count: int, noun: str) -> str:
    """'1 clip', '2,000 clips'."""
    return f'{count:,} {noun}' if count == 1 else f'{count:,} {noun}s'
