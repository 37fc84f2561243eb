"""File content before its source is known: parsed JSON, text, arrays or a pickle."""

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib.data.pickles import read_pickle
from lib.errors import UserError, shown_text, user_file
from lib.files import read_arrays, require_file


@dataclass(frozen=True)
class Arrays:
    """Content of a .npy or .npz file, or a pickled array."""

    by_name: dict[str, np.ndarray]


@dataclass(frozen=True)
class Pickled:
    """Content of a pickle."""

    data: Any


_BOM = b'\xef\xbb\xbf'
_UTF16_BOMS = b'\xff\xfe', b'\xfe\xff'
_SEPARATORS = re.compile(r'[ \t\r\n,]*')  # between JSON values
_VIDEO = 'a video: extract its keypoints with `python -m lib.tools.extract_keypoints VIDEO --out clip.pkl`'
_IMAGE = 'an image: extract its keypoints with a pose estimator'
_TORCH = 'a PyTorch file: load it and save its tensors with np.save(path, tensor.numpy())'
# (offset, bytes, kind of file and how to convert it)
_OTHER_FILES = (
    (4, b'ftyp', _VIDEO), (0, b'RIFF', _VIDEO), (0, b'\x1aE\xdf\xa3', _VIDEO), (0, b'\x00\x00\x01\xba', _VIDEO),
    (0, b'\x89PNG', _IMAGE), (0, b'\xff\xd8\xff', _IMAGE), (0, b'GIF8', _IMAGE),
    (0, b'\x89HDF', 'HDF5 (MATLAB, DeepLabCut): load it with h5py or pandas and save the keypoints with np.save'),
    (0, b'\x1f\x8b', 'compressed: unpack it with gunzip'),
    (0, b'<', 'XML or HTML: export the annotations as COCO keypoints (CVAT: "COCO Keypoints 1.0")'),
    (0, b'\x00\x05\x16\x07', "macOS's metadata of another file: name the file without ._"),
)  # fmt: skip


def read_content(path: Path, supported: str) -> Any:
    """JSON as Python values, other text as str, arrays as Arrays, other pickles as Pickled.

    supported: the formats, for messages. Raises UserError for any other file, with a conversion if its kind is known.
    """
    require_file(path)
    with user_file(path), path.open('rb') as file:
        start = file.read(2**10)
    if start[:2] in _UTF16_BOMS:
        start = start.decode('utf-16', 'replace').encode()
    start = start.removeprefix(_BOM).lstrip(b' \t\r\n')
    if start[:1] == b'\x80' or path.suffix in ('.pkl', '.pickle'):
        data = read_pickle(path)
        return Arrays({'keypoint': data}) if isinstance(data, np.ndarray) else Pickled(data)
    if start[:6] == b'\x93NUMPY':
        return Arrays({'keypoint': _read_npy(path)})
    kind = next((kind for offset, magic, kind in _OTHER_FILES if start[offset:].startswith(magic)), None)
    if start[:2] == b'PK':
        kind = _zip_kind(path)
        if kind is None:
            return Arrays(read_arrays(path))
    if kind is None:
        if start[:1] in (b'[', b'{'):
            with user_file(path):
                return _parse(path.read_bytes().removeprefix(_BOM), path)
        text = read_text(path)
        if '\0' not in text and text.strip():
            return text
        kind = 'neither text nor an array' if text.strip() else 'empty'
    raise UserError(f'{path} is not a keypoint file, but {kind}. Supported: {supported}.')


def read_text(path: Path) -> str:
    """The text of a file in UTF-8 or UTF-16; a NUL character for other files."""
    with user_file(path):
        content = path.read_bytes().removeprefix(_BOM)
    try:
        return content.decode('utf-16' if content[:2] in _UTF16_BOMS else 'utf-8')
    except UnicodeDecodeError:
        return '\0'


def _zip_kind(path: Path) -> str | None:
    """The kind of a zip file that is not an .npz; None if it is one or is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None
    if any(name.endswith('data.pkl') for name in names):
        return _TORCH
    is_npz = not names or any(name.endswith('.npy') for name in names)
    return None if is_npz else 'an archive or a spreadsheet: unpack it, or save it as CSV'


def _parse(content: bytes, path: Path) -> Any:
    """A JSON value, or the list of several consecutive values (such as one line per frame)."""
    decoder, values = json.JSONDecoder(), []
    try:
        text = content.decode(json.detect_encoding(content))
        at = _SEPARATORS.match(text).end()
        while at < len(text):
            value, end = decoder.raw_decode(text, at)
            values.append(value)
            at = _SEPARATORS.match(text, end).end()
    except (ValueError, RecursionError) as error:  # not JSON, too many digits, too deep
        raise UserError(
            f'{path} ({len(content):,} bytes) cannot be read as JSON ({shown_text(str(error))}). It is truncated or '
            'damaged: write or copy it again.'
        ) from None
    return values[0] if len(values) == 1 else values


def _read_npy(path: Path) -> np.ndarray:
    try:
        with user_file(path):  # mapped: a false size in the header allocates nothing
            return np.load(path, mmap_mode='r', allow_pickle=False)
    except UserError:
        raise
    except Exception as error:  # a damaged header may raise anything
        raise UserError(
            f'{path} cannot be read as an array of numbers ({shown_text(str(error))}). Write it with np.save: '
            'np.asarray(keypoint, "float32"), or tensor.numpy() for a tensor.'
        ) from None
