"""Files that must be there, folders that one process uses, and writing so that a kill or a full disk loses nothing."""

import contextlib
import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, BinaryIO

from lib.errors import UserError, user_file


def require_file(path: Path) -> None:
    """Raises UserError, telling what lies beside it, where there is no such file."""
    if not path.is_file():
        there = sorted(file.name for file in path.parent.glob('*') if file.is_file())
        more = f' and {len(there) - 4} more' if len(there) > 4 else ''
        raise UserError(f'{path}: there is no such file. Its folder holds {", ".join(there[:4]) or "no files"}{more}.')


def check_writable(folder: Path, advice: str) -> None:
    """Raises UserError, ending in `advice`, where nothing can be written into a folder or it cannot be made."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f'{folder} cannot be written: {nearest} is a file. {advice}')
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f'{folder} cannot be written: {nearest} may only be read. {advice}')


def make_folder(folder: Path) -> None:
    """Creates a folder and its parents. Raises UserError if that fails."""
    with user_file(folder, 'created'):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def replacing(path: Path, older: Sequence[Path] = ()) -> Iterator[BinaryIO]:
    """A file to write, beside `path`, which it replaces once it is written and on the disk.

    At any moment either the old file is there or the new one. older: where the files go that are replaced: the last
    one takes the first of these names, the one before it the second, and so on; in between `path` is missing for a
    moment. Raises UserError, naming the file, where it cannot be written; then all is as it was.
    """
    temporary = path.with_name(f'{path.name}.tmp')
    try:
        with temporary.open('wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        for elder, younger in pairwise(reversed([path, *older])):
            if younger.is_file():
                os.replace(younger, elder)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        remedy = 'Make room there' if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else 'Make it writable'
        raise UserError(
            f'{path} cannot be written ({error.strerror or error}). What was there before is still there. {remedy}, '
            'and give the same command again.'
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Brings to the disk which files a folder has, so that a power cut does not undo a renaming."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems know no such thing
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replaces a small text file."""
    with replacing(path) as file:
        file.write(text.encode())


def hold_lock(path: Path, what: str) -> IO[str]:
    """Locks a file, which says who holds it, until it is closed: at the latest when the process ends, however it does.

    Raises UserError, naming the process that holds it, where there is one, or where it cannot be written.
    what: what is locked, for the message.
    """
    try:
        file = path.open('a+')
    except OSError as error:
        raise UserError(f'{path.parent} cannot be written ({error.strerror}).') from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = ''.join(letter for letter in file.read(100) if letter.isprintable())
        file.close()
        raise UserError(
            f'{what} is in use by {holder or "another process"}. Wait until it ends, or stop it. If it is gone for '
            f'sure, as after a crash of its host, remove {path}.'
        ) from None
    except OSError as error:
        warnings.warn(
            f'{path.parent} lies on a file system without locks ({error.strerror}): nothing keeps a second process '
            'from using it at the same time.',
            stacklevel=2,
        )
    with contextlib.suppress(OSError):  # a full disk; what is of use here fails by itself
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}')
        file.flush()
    return file
