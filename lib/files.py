"""Files that must be there, and writing so that at any moment either the old file or the new one is there."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def require_file(path: Path) -> None:
    """Raises FileNotFoundError, telling what lies beside it, where there is no such file."""
    if not path.is_file():
        there = sorted(file.name for file in path.parent.glob('*') if file.is_file())
        more = f' and {len(there) - 4} more' if len(there) > 4 else ''
        raise FileNotFoundError(
            f'{path}: there is no such file. Its folder holds {", ".join(there[:4]) or "no files"}{more}.'
        )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, beside `path`, which it replaces once it is written and synced."""
    temporary = path.with_name(f'{path.name}.tmp')
    with temporary.open('wb') as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Replaces a small text file."""
    with replacing(path) as file:
        file.write(text.encode())
