"""Atomic file writes, integrity checks and folder locks."""

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import socket
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lib.errors import UserError, shown_text, user_file

log = logging.getLogger(__name__)


def require_file(path: Path) -> None:
    """Raises UserError, listing other files in the folder, if `path` is not a file."""
    if not path.is_file():
        others = sorted(file.name for file in path.parent.glob('*') if file.is_file())
        more = f' and {len(others) - 4} more' if len(others) > 4 else ''
        raise UserError(f'{path}: there is no such file. Its folder holds {", ".join(others[:4]) or "no files"}{more}.')


def check_zip(file: BinaryIO) -> None:
    """Raises zipfile.BadZipFile, or another exception, if a member of a zip file does not match its checksum."""
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.CRC == 0:  # torch.serialization.set_crc32_options(False) omits checksums
                del member.CRC
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f'the checksum of {damaged} is wrong')


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays in an .npz file, by name. Raises UserError if it is damaged or holds anything else."""
    require_file(path)
    arrays, name = {}, ''
    with user_file(path), path.open('rb') as file:
        try:
            check_zip(file)
            file.seek(0)
            content = np.load(file, allow_pickle=False)
            for name in content:
                array = arrays[name] = content[name]
                if not isinstance(array, np.ndarray):
                    raise ValueError(f'{name} is not an array')
                if array.dtype.kind == 'U':
                    array.tolist()  # raises SystemError for invalid code points
        except Exception as error:  # a damaged file may raise anything
            if name and 'allow_pickle' in str(error):
                raise UserError(
                    f'{path}: the array {shown_text(name)} holds Python objects, which are never read. Omit it, or '
                    'convert it to numbers or text, and write the file again with np.savez.'
                ) from None
            raise UserError(
                f'{path} cannot be read as an .npz file ({type(error).__name__}: {shown_text(str(error))}). It is '
                'truncated, damaged or not an .npz file: copy it again, or write plain arrays with np.savez.'
            ) from None
    return arrays


def check_writable(folder: Path, advice: str) -> None:
    """Raises UserError, ending in `advice`, if the folder cannot be created or written."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f'{folder} cannot be written: {nearest} is a file. {advice}')
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f'{folder} cannot be written: {nearest} is read-only. {advice}')
    try:
        tempfile.TemporaryFile(dir=nearest).close()  # root may write anywhere, except in /proc and full file systems
    except OSError as error:
        raise UserError(f'{folder} cannot be written ({error.strerror or error}). {advice}') from None


def make_folder(folder: Path) -> None:
    """Creates a folder and its parents. Raises UserError if that fails."""
    with user_file(folder, 'created'):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def replacing(path: Path, older: Sequence[Path] = (), second_name: Path | None = None) -> Iterator[BinaryIO]:
    """Context manager: yields a temporary file, which replaces `path` once it is complete and on disk.

    A reader finds either the old file or the new one. older: names for previous versions: `path` is renamed to the
    first, the first to the second, and so on. second_name: another name for the new file, replaced before `path` (a
    hard link, or a copy if the file system has no links). Raises UserError, and keeps the old files, if writing
    fails.
    """
    temporary = path.with_name(f'{path.name}.tmp')
    try:
        temporary.unlink(missing_ok=True)  # left by a killed process, perhaps linked to second_name
        with temporary.open('wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if second_name:
            _replace_by_link(temporary, second_name)
        for elder, younger in pairwise(reversed([path, *older])):
            if younger.is_file():
                os.replace(younger, elder)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        remedy = 'Free disk space' if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else 'Make it writable'
        raise UserError(
            f'{path} cannot be written ({error.strerror or error}). The previous files are intact. {remedy} and repeat '
            'the command.'
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _replace_by_link(source: Path, target: Path) -> None:
    temporary = target.with_name(f'{target.name}.tmp')
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # FAT, some network file systems
        shutil.copyfile(source, temporary)
        with temporary.open('rb') as file:
            os.fsync(file.fileno())
    os.replace(temporary, target)


def sync_folder(folder: Path) -> None:
    """Syncs a folder to disk, so that a power cut does not undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not supported by some network file systems
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes or replaces a small text file."""
    with replacing(path) as file:
        file.write(text.encode())


def hold_lock(path: Path, what: str, *, wait: bool = False) -> BinaryIO:
    """Locks a file until the returned handle is closed or the process ends, and writes the holder's name to it.

    what: name of the locked resource, for messages. wait: whether to wait for another process that holds the lock.
    Raises UserError if the file cannot be written or, without `wait`, if another process holds the lock. Warns on file
    systems without locks.
    """
    with user_file(path.parent, 'written'):
        file = path.open('a+b', buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(100).decode(errors='replace') or 'another process'
        if not wait:
            file.close()
            raise UserError(
                f'{what} is in use by {holder}. Wait until it ends, or stop it. If it no longer exists, for example '
                f'after a crash of its host, remove {path}.'
            ) from None
        log.info('waiting for %s, which holds the lock of %s', holder, what)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        warnings.warn(
            f'{path.parent} is on a file system without locks ({error.strerror}): two processes could use it at the '
            'same time.',
            stacklevel=2,
        )
    with contextlib.suppress(OSError):  # a full disk: reported when the first file is written
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}'.encode())
    return file
