"""What a file holds, before it is known which tool wrote it: parsed JSON, text, arrays or the content of a pickle."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from lib.data.pickles import read_pickle
from lib.errors import UserError, shown_text, user_file
from lib.files import read_arrays, require_file


class Arrays:
    """Arrays by name, of a .npy or .npz file."""

    def __init__(self, by_name: dict[str, np.ndarray]) -> None:
        self.by_name = by_name


class Pickled:
    """The content of a pickle."""

    def __init__(self, data: Any) -> None:
        self.data = data


_VIDEO = 'a video: find its keypoints by `python -m lib.tools.extract_keypoints VIDEO --out clip.pkl`'
_IMAGE = 'an image: find its keypoints with a pose estimator, and name the file that it writes'
_TORCH = 'a PyTorch file: load it, and save its tensors with np.save(path, tensor.numpy())'
_HDF5 = 'HDF5 (also MATLAB, DeepLabCut): load it with h5py or pandas, and save the keypoints with np.save'
# (offset, bytes, what it is and how to convert it)
_RECOGNISED = (
    (4, b'ftyp', _VIDEO), (0, b'RIFF', _VIDEO), (0, b'\x1aE\xdf\xa3', _VIDEO), (0, b'\x00\x00\x01\xba', _VIDEO),
    (0, b'\x89PNG', _IMAGE), (0, b'\xff\xd8\xff', _IMAGE), (0, b'GIF8', _IMAGE),
    (0, b'\x89HDF', _HDF5), (0, b'MATLAB', 'a MATLAB file: load it with scipy.io.loadmat, and save with np.save'),
    (0, b'\x1f\x8b', 'compressed: unpack it with gunzip'), (0, b'BZh', 'compressed: unpack it with bunzip2'),
    (0, b'7z\xbc\xaf', 'an archive: unpack it'), (0, b'Rar!', 'an archive: unpack it'),
    (0, b'PAR1', 'Parquet: convert it to CSV with pandas'),
    (0, b'HIERARCHY', 'BVH: it has rotations; export joint positions'),
    (0, b'<', 'XML or HTML: export the annotations as COCO keypoints (CVAT: "COCO Keypoints 1.0")'),
    (0, b'\x00\x05\x16\x07', "macOS's metadata of another file: name that file, without ._ before its name"),
)  # fmt: skip


def read_content(path: Path, supported: str) -> Any:
    """JSON as Python values, other text as str, arrays as Arrays, a pickle as Pickled.

    supported: the formats, for messages. Raises UserError for anything else, with a conversion if the kind is known.
    """
    require_file(path)
    with user_file(path), path.open('rb') as file:
        start = file.read(2**10).removeprefix(b'\xef\xbb\xbf').lstrip(b' \t\r\n')
    if start[:1] == b'\x80' or path.suffix in ('.pkl', '.pickle'):
        return Pickled(read_pickle(path))
    if start[:6] == b'\x93NUMPY':
        return Arrays({'keypoint': _read_npy(path)})
    if start[:2] == b'PK':
        return Arrays(read_arrays(path)) if (kind := _zip_kind(path)) is None else _refuse(path, kind, supported)
    for offset, magic, kind in _RECOGNISED:
        if start[offset:].startswith(magic):
            _refuse(path, kind, supported)
    if start[:1] in (b'[', b'{'):
        with user_file(path):
            return _parse(path.read_bytes().removeprefix(b'\xef\xbb\xbf'), path)
    text = read_text(path)
    if '\0' in text or not text.strip():
        _refuse(path, 'neither text nor an array' if text.strip() else 'empty', supported)
    return text


def read_text(path: Path) -> str:
    """The text of a file in UTF-8 or UTF-16; of other files a NUL character."""
    with user_file(path):
        content = path.read_bytes().removeprefix(b'\xef\xbb\xbf')
    try:
        return content.decode('utf-16' if content[:2] in (b'\xff\xfe', b'\xfe\xff') else 'utf-8')
    except UnicodeDecodeError:
        return '\0'


def _refuse(path: Path, kind: str, supported: str) -> None:
    raise UserError(f'{path} is not a keypoint file, but {kind}. Supported: {supported}.')


def _zip_kind(path: Path) -> str | None:
    """What a zip file is if it is not an .npz or is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None
    if any(name.endswith('data.pkl') for name in names):
        return _TORCH
    if any(name.startswith('xl/') for name in names):
        return 'an Excel table: save it as CSV'
    return None if not names or any(name.endswith('.npy') for name in names) else 'an archive: unpack it'


def _parse(content: bytes, path: Path) -> Any:
    """JSON, or several JSON values one after the other (such as a line for each frame), as a list."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # not JSON, too many digits, too deep
        if not isinstance(error, json.JSONDecodeError) or not error.msg.startswith('Extra data'):
            raise UserError(
                f'{path} ({len(content):,} bytes) cannot be read as JSON ({shown_text(str(error))}). It is cut short '
                'or damaged: write or copy it again.'
            ) from None
    decoder, text, values, at = json.JSONDecoder(), content.decode(json.detect_encoding(content)), [], 0
    while at < len(text):
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f'{path} cannot be read as JSON values in a row ({shown_text(str(error))}). It is cut short or damaged.'
            ) from None
        values.append(value)
        at = end + len(text[end:]) - len(text[end:].lstrip(' \t\r\n,'))
    return values


def _read_npy(path: Path) -> np.ndarray:
    try:
        with user_file(path):
            return np.load(path, mmap_mode='r', allow_pickle=False)  # mapped: takes no more than the file has
    except UserError:
        raise
    except Exception as error:  # a broken header may raise anything
        raise UserError(
            f'{path} cannot be read as an array of numbers ({shown_text(str(error))}). Write it with np.save: '
            'np.asarray(keypoint, "float32"), or tensor.numpy() of a tensor.'
        ) from None
