"""Writing a file so that at any moment either the old one or the new one is there."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


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
