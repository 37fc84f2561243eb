"""Reading PYSKL pickles without running anything that is in them, and checking what they hold.

The format (PYSKL's tools/data/README.md), M persons, T frames, V joints, C coordinates:

    {'split': {name: [frame_dir, ...]},
     'annotations': [{'frame_dir': str, 'label': int, 'total_frames': int, 'keypoint': (M, T, V, C),
                      # 2D only (C = 2, pixels); 3D (C = 3, metres) has neither score nor shape
                      'keypoint_score': (M, T, V), 'img_shape': (h, w), 'original_shape': (h, w)}, ...]}
"""

import math
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

LINKS = (
    'https://download.openmmlab.com/mmaction/pyskl/data/nturgbd/ntu60_hrnet.pkl',
    'https://download.openmmlab.com/mmaction/pyskl/data/nturgbd/ntu60_3danno.pkl',
)


def load_annotations(path: str | os.PathLike) -> dict[str, Any]:
    """Reads and checks a PYSKL pickle: {'split': {name: [frame_dir, ...]}, 'annotations': [dict, ...]}.

    Nothing but plain containers, numbers, text and NumPy arrays is ever built.
    Raises FileNotFoundError where there is no such file, ValueError for whatever is not a sound PYSKL pickle.
    """
    path = Path(path)
    require_pickle(path)
    with path.open('rb') as file:
        try:
            data = _DataUnpickler(file).load()
        except _RefusedGlobalError as error:
            raise ValueError(
                f'{path}: refused. It is not plain data: it asks for {error}, which could run code on this machine. '
                'Nothing of it was run. Get the file from its original source.'
            ) from None
        except OSError:
            raise
        except Exception as error:  # a broken pickle may raise anything
            raise ValueError(
                f'{path}: cannot be read as a pickle ({type(error).__name__}: {error}). The file has '
                f'{path.stat().st_size:,} bytes and is probably cut short or damaged: download or copy it again.'
            ) from None
    return _checked(data, path)


def require_pickle(path: Path) -> None:
    """Raises FileNotFoundError, saying where the file is to be had, if there is no such file."""
    if not path.is_file():
        raise FileNotFoundError(
            f'{path} is not there. Download the PYSKL pickles of NTU60 from {LINKS[0]} (2D) and {LINKS[1]} (3D) into '
            'data/action/, or make the small sample set with `python -m lib.data.sample --out data/action` and train '
            'with a config of configs/sample/.'
        )


# --- the unpickler -------------------------------------------------------------------------------------------------


class _RefusedGlobalError(pickle.UnpicklingError):
    pass


class _PickledDtype:
    """Stands in for numpy.dtype while a pickle is read: plain numbers and text, no objects, fields, subarrays."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not re.fullmatch(r'[<>|=]?([?biuf][1-8]?|[SU]\d{1,4})', code):
            raise pickle.UnpicklingError(f'an array of type {code!r} is not plain numbers or text')
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        byte_order = state[1]  # the rest concerns structured types
        if byte_order in ('<', '>'):
            self.dtype = self.dtype.newbyteorder(byte_order)


class _PickledArray(np.ndarray):
    """An array under construction. The state that NumPy would trust is checked first."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, content = state
        if not isinstance(dtype, _PickledDtype) or not isinstance(content, bytes):
            raise pickle.UnpicklingError('an array is not plain numbers or text')
        if math.prod(shape) * dtype.dtype.itemsize != len(content):
            raise pickle.UnpicklingError(f'an array of shape {shape} announces more or less than its content')
        super().__setstate__((1, shape, dtype.dtype, bool(is_fortran), content))


def _reconstruct(subtype: type, shape: tuple, typecode: bytes) -> _PickledArray:
    return np.ndarray.__new__(_PickledArray, (0,), np.int8)


def _from_buffer(content: bytes, dtype: _PickledDtype, shape: tuple, order: str) -> np.ndarray:
    return np.frombuffer(content, dtype.dtype).reshape(shape, order=order)


def _scalar(dtype: _PickledDtype, content: bytes) -> np.generic:
    return np.frombuffer(content, dtype.dtype, count=1)[0]


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'text encoded as {encoding!r}')
    return text.encode('latin1')  # how protocol 2 writes bytes


_ALLOWED = {('_codecs', 'encode'): _latin1, ('numpy', 'dtype'): _PickledDtype, ('numpy', 'ndarray'): _PickledArray}
for _core in ('numpy.core', 'numpy._core'):  # NumPy 1 and 2
    _ALLOWED[f'{_core}.multiarray', '_reconstruct'] = _reconstruct
    _ALLOWED[f'{_core}.multiarray', 'scalar'] = _scalar
    _ALLOWED[f'{_core}.numeric', '_frombuffer'] = _from_buffer


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _RefusedGlobalError(f'{module}.{name}')
        return _ALLOWED[module, name]


# --- the checks ----------------------------------------------------------------------------------------------------


def _checked(data: Any, path: Path) -> dict[str, Any]:
    if not isinstance(data, dict) or not {'split', 'annotations'} <= data.keys():
        found = f'the keys {sorted(map(str, data))[:8]}' if isinstance(data, dict) else f'a {type(data).__name__}'
        raise ValueError(f"{path}: a PYSKL pickle is a dict with 'split' and 'annotations'; found {found}.")
    split, annotations = data['split'], data['annotations']
    if not isinstance(split, dict) or not isinstance(annotations, list):
        raise ValueError(f"{path}: 'split' must be a dict of lists and 'annotations' a list of dicts.")
    if not annotations:
        raise ValueError(f'{path}: holds no annotations.')
    for name, ids in split.items():
        if not isinstance(name, str) or not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
            raise ValueError(f'{path}: split {name!r} must be a list of frame_dir texts.')
    annotations = [
        _checked_annotation(annotation, f'{path}: annotation {i}') for i, annotation in enumerate(annotations)
    ]
    layout = annotations[0]['keypoint'].shape[2:]
    for i, annotation in enumerate(annotations):
        if annotation['keypoint'].shape[2:] != layout:
            raise ValueError(
                f'{path}: annotation {i} ({annotation["frame_dir"]}) has (joints, coordinates) = '
                f'{annotation["keypoint"].shape[2:]}, the first one {layout}; one file holds one layout.'
            )
    return {'split': split, 'annotations': annotations}


def _checked_annotation(annotation: Any, where: str) -> dict[str, Any]:
    if not isinstance(annotation, dict):
        raise ValueError(f'{where} is a {type(annotation).__name__}, not a dict.')
    if isinstance(annotation.get('frame_dir'), str):
        where += f' ({annotation["frame_dir"]})'
    if 'raw_file' in annotation:
        raise ValueError(
            f'{where} points to a keypoint file of its own (raw_file), as the Kinetics pickles do. '
            'That form is not supported yet: all keypoints must be inside the pickle.'
        )
    missing = [key for key in ('frame_dir', 'label', 'total_frames', 'keypoint') if key not in annotation]
    if missing:
        raise ValueError(f'{where} lacks {", ".join(missing)}; found the keys {sorted(map(str, annotation))[:12]}.')
    if not isinstance(annotation['frame_dir'], str):
        raise ValueError(f'{where}: frame_dir must be text, found {annotation["frame_dir"]!r}.')
    checked = dict(annotation)
    checked['label'] = _integer(annotation['label'], 'label', where, minimum=0)
    checked['total_frames'] = _integer(annotation['total_frames'], 'total_frames', where, minimum=0)

    keypoint = checked['keypoint'] = _floats(annotation['keypoint'], 'keypoint', where)
    if keypoint.ndim != 4 or keypoint.shape[3] not in (2, 3):
        raise ValueError(f'{where}: keypoint must be (persons, frames, joints, 2 or 3), found shape {keypoint.shape}.')
    if checked['total_frames'] == 0 or keypoint.shape[1] == 0:
        raise ValueError(f'{where} has zero frames. Take it out of the pickle.')
    if keypoint.shape[1] != checked['total_frames']:
        raise ValueError(
            f'{where}: total_frames is {checked["total_frames"]}, but keypoint holds {keypoint.shape[1]} frames.'
        )
    if keypoint.shape[0] == 0 or keypoint.shape[2] == 0:
        raise ValueError(f'{where} holds no person or no joint: keypoint has shape {keypoint.shape}.')
    if annotation.get('keypoint_score') is not None:
        score = checked['keypoint_score'] = _floats(annotation['keypoint_score'], 'keypoint_score', where)
        if score.shape != keypoint.shape[:3]:
            raise ValueError(f'{where}: keypoint_score has shape {score.shape}, keypoint needs {keypoint.shape[:3]}.')
    if keypoint.shape[3] == 2:
        shape = annotation.get('img_shape')
        if not isinstance(shape, tuple | list | np.ndarray) or len(shape) != 2:
            raise ValueError(f'{where}: img_shape must be (height, width) in pixels, found {shape!r}.')
        checked['img_shape'] = tuple(_integer(x, 'img_shape', where, minimum=1) for x in shape)
    return checked


def _integer(value: Any, key: str, where: str, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not minimum <= value < 2**31:
        raise ValueError(f'{where}: {key} must be a whole number, {minimum} or more, found {value!r}.')
    return int(value)


def _floats(value: Any, key: str, where: str) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype.kind != 'f':
        found = f'an array of {value.dtype}' if isinstance(value, np.ndarray) else f'a {type(value).__name__}'
        raise ValueError(f'{where}: {key} must be an array of floating point numbers, found {found}.')
    return value.view(np.ndarray)
