"""Reading .npz files without trusting them: nothing in them is run, and they take no more memory than they have bytes.

NumPy's own reader allocates what a header announces, and unpacks whatever a small compressed member swells to.
"""

import contextlib
import errno
import io
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lib.files import require_file
from lib.unpickling import CHUNK, RefusedError, shown_text

_LARGEST_DIRECTORY = 2**22  # bytes; some 100 for each member, which take ten times as many in memory
# As np.savez writes it: a type of plain numbers or text that is not empty, an order and a shape. Nothing is evaluated.
_HEADER = re.compile(
    r"\{'descr': '([<>|][biufcU][1-9]\d{0,8})', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,18}, )*(?:\d{1,18},?)?)\), \} *\n"
)


class _BoundedFile(io.FileIO):
    """Against a directory of members, which zipfile reads at once, that would swell."""

    def read(self, size: int = -1) -> bytes:
        if size > _LARGEST_DIRECTORY:
            raise RefusedError('announces a list of members larger than any model needs')
        return super().read(size if size >= 0 else _LARGEST_DIRECTORY)


@contextlib.contextmanager
def stored_members(path: Path, kind: str, advice: str) -> Iterator[zipfile.ZipFile]:
    """A zip file of stored members, all different and together no larger than the file.

    Whatever goes wrong, in the body of `with` too, raises ValueError that names the file: as no file of this `kind`, or
    with the reason of a RefusedError and the `advice`. Raises OSError where it cannot be opened or the disk fails.
    """
    require_file(path)
    size = path.stat().st_size
    try:
        with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            for member in members:
                if not member.orig_filename.isprintable() or re.search(r'^/|(^|[/\\])\.\.([/\\]|$)', member.filename):
                    raise RefusedError(f'holds a member of the name {shown_text(member.orig_filename)}')
                if member.flag_bits & 1:
                    raise RefusedError(f'holds {shown_text(member.filename)} encrypted')
                if member.compress_type != zipfile.ZIP_STORED:
                    raise RefusedError(f'holds {shown_text(member.filename)} compressed')
                if member.compress_size != member.file_size:
                    raise RefusedError(f'announces two sizes of {shown_text(member.filename)}')
            if len(members) > len({member.filename for member in members}):
                raise RefusedError('holds two members of the same name')
            if sum(member.file_size for member in members) > size:
                raise RefusedError('announces members of more bytes than it has')
            yield archive
    except RefusedError as error:
        raise ValueError(f'{path} {error}. {advice}') from None
    except Exception as error:  # a broken file may raise anything
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that is a place before the file's beginning
            raise
        raise ValueError(
            f'{path} ({size:,} bytes) cannot be read as {kind}: it is cut short, damaged or of another kind. '
            'Copy or download it again.'
        ) from None


def read_into(buffer: memoryview, member: BinaryIO) -> None:
    """Fills bytes with what a member still has, which must be as many; at its end its checksum is compared."""
    for start in range(0, len(buffer), CHUNK):
        part = buffer[start : start + CHUNK]
        part[:] = member.read(len(part))
    if member.read(1):
        raise EOFError('it is longer than announced')


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of numbers, truth values and text in a file that np.savez wrote, by name.

    Raises OSError, or ValueError naming the file where it is cut short, damaged, compressed or holds anything else.
    """
    arrays = {}
    with stored_members(path, 'an .npz file', 'Copy it again, or write it with np.savez.') as archive:
        for member in archive.infolist():
            if not member.filename.endswith('.npy'):
                raise RefusedError(f'holds {shown_text(member.filename)}, which is no array')
            with archive.open(member) as file:
                name = member.filename.removesuffix('.npy')
                arrays[name] = _read_array(file, member.file_size, shown_text(name))
    return arrays


def _read_array(file: BinaryIO, size: int, name: str) -> np.ndarray:
    start = file.read(10)
    if start[:8] != b'\x93NUMPY\x01\x00':
        raise RefusedError(f'holds {name}, which is no array in the format 1.0 of NumPy')
    length = int.from_bytes(start[8:], 'little')
    header = _HEADER.fullmatch(file.read(length).decode('latin1'))
    if not header:
        raise RefusedError(f'holds {name}, which is no array of plain numbers or text')
    dtype, shape = np.dtype(header[1]), tuple(map(int, re.findall(r'\d+', header[3])))
    if math.prod(shape) * dtype.itemsize != size - len(start) - length:
        raise RefusedError(f'holds {name} of shape {shown_text(str(shape))}, which announces more or less than it has')
    array = np.empty(math.prod(shape), dtype)
    read_into(memoryview(array.view(np.uint8)), file)
    if dtype.kind == 'U' and array.view(dtype.str[0] + 'u4').max(initial=0) > 0x10FFFF:
        raise RefusedError(f'holds {name}, text of what are no characters')
    return array.reshape(shape, order='F' if header[2] == 'True' else 'C')
