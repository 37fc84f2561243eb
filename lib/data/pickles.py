"""Reading PYSKL pickles without running anything that is in them, and checking what they hold.

The format (PYSKL's tools/data/README.md), M persons, T frames, V joints, C coordinates:

    {'split': {name: [frame_dir, ...]},
     'annotations': [{'frame_dir': str, 'label': int, 'total_frames': int, 'keypoint': (M, T, V, C),
                      # 2D only (C = 2, pixels); 3D (C = 3, metres) has neither score nor shape
                      'keypoint_score': (M, T, V), 'img_shape': (h, w), 'original_shape': (h, w)}, ...]}
"""

import copyreg
import math
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lib.errors import UserError, shown, shown_text, user_file

LINKS = (
    'https://download.openmmlab.com/mmaction/pyskl/data/nturgbd/ntu60_hrnet.pkl',
    'https://download.openmmlab.com/mmaction/pyskl/data/nturgbd/ntu60_3danno.pkl',
)


def load_annotations(path: str | os.PathLike) -> dict[str, Any]:
    """Reads and checks a PYSKL pickle: {'split': {name: [frame_dir, ...]}, 'annotations': [dict, ...]}.

    Raises UserError if there is no such file, or for whatever is not a sound PYSKL pickle.
    """
    return _checked(read_pickle(path), Path(path))


def read_pickle(path: str | os.PathLike) -> Any:
    """The plain containers, numbers, text and NumPy arrays in a pickle, whatever they are about.

    OrderedDict and defaultdict become dict. Nothing in the file is run. Raises UserError naming the file.
    """
    path = Path(path)
    require_pickle(path)
    copyreg.clear_extension_cache()  # EXT opcodes would use its objects without asking for their names
    with user_file(path), path.open('rb') as file:
        try:
            return _Unpickler(file).load()
        except UserError as error:
            raise UserError(
                f'{path}: refused. It {error}, which is not plain data; nothing in it was run. If the file is yours, '
                'save only plain containers, numbers, text and NumPy arrays (str(path), tensor.numpy()); otherwise get '
                'it from its original source.'
            ) from None
        except Exception as error:  # a damaged pickle may raise anything
            raise UserError(
                f'{path}: cannot be read as a pickle ({type(error).__name__}: {shown_text(str(error))}). The file has '
                f'{path.stat().st_size:,} bytes and is probably cut short or damaged: download or copy it again.'
            ) from None


class _Unpickler(pickle.Unpickler):
    """Knows a few names, exactly, and stands in for what they name.

    Opcodes call what find_class returns and set its attributes (BUILD). So it returns neither a class nor an existing
    function, but a new function each time.
    """

    def find_class(self, module: str, name: str) -> Callable[..., Any] | None:
        if (module, name) in _NAMED:
            return None
        if (module, name) not in _CALLED:
            raise UserError(f'asks for {shown_text(f"{module}.{name}")}')
        function = _CALLED[module, name]
        return lambda *arguments: function(*arguments)


class Dtype:
    """Stands in for numpy.dtype: the type of plain numbers or text.

    NumPy's own __setstate__ can change np.dtype('f8') for the whole process, or declare that bytes are pointers.
    """

    __slots__ = ('code', 'numpy')

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if type(code) is not str or not re.fullmatch(r'b1|[iu][1248]|f[248]|[SU][1-9]\d{0,5}', code):
            raise UserError(f'holds an array of type {shown(code)}, not plain numbers or text')
        self.code, self.numpy = code, np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        order = state[1]
        if order not in ('<', '>', '|') or state != np.dtype(order + self.code).__reduce__()[2]:
            raise UserError(f'holds an array of type {self.code} with fields, objects or flags')
        self.numpy = np.dtype(order + self.code)


def _type_of(dtype: Dtype, shape: tuple, content: bytes | bytearray) -> np.dtype:
    """NumPy's type of an array. Raises UserError if the content is not that of its type and shape."""
    if type(dtype) is not Dtype or type(content) not in (bytes, bytearray):
        raise UserError('holds an array without a plain type and content')
    if type(shape) is not tuple or not all(type(length) is int and length >= 0 for length in shape):
        raise UserError(f'holds an array of shape {shown(shape)}')
    if math.prod(shape) * dtype.numpy.itemsize != len(content):
        raise UserError(f'holds an array of shape {shown(shape)} with {len(content):,} bytes')
    return dtype.numpy


class _Array(np.ndarray):
    """An array whose state is checked before NumPy trusts it."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, content = state
        if self.shape != (0,):  # filled already; what views it would be left without memory
            raise UserError('fills an array twice')
        super().__setstate__((1, shape, _type_of(dtype, shape, content), bool(is_fortran), content))
        _require_characters(self)


def _from_buffer(
    content: bytes | bytearray, dtype: Dtype, shape: tuple, order: str, axis_order: tuple | None = None
) -> np.ndarray:
    array = np.frombuffer(content, _type_of(dtype, shape, content)).view(_Array)
    _require_characters(array)
    return array.reshape(shape).transpose(axis_order) if order == 'K' else array.reshape(shape, order=order)


def _require_characters(array: np.ndarray) -> None:
    if array.dtype.kind == 'U':
        array.tolist()  # raises SystemError for numbers that are none


def scalar(dtype: Dtype, content: bytes) -> np.generic:
    """Stands in for the function that NumPy's numbers are pickled with."""
    return np.frombuffer(content, _type_of(dtype, (1,), content))[0]


def _encode(text: str, encoding: str) -> bytes:
    if encoding != 'latin1':  # the name of another codec is that of a module to import
        raise UserError(f'holds text encoded as {shown(encoding)}')
    return str.encode(text, 'latin1')


# Names without a use of their own: the class of arrays, the factory of a defaultdict.
_NAMED = {('numpy', 'ndarray')} | {
    (module, name)
    for module in ('builtins', '__builtin__')
    for name in ('bool', 'dict', 'float', 'int', 'list', 'long', 'str', 'tuple', 'unicode')
}
_CALLED: dict[tuple[str, str], Callable[..., Any]] = {
    ('__builtin__', 'bytes'): lambda: b'',  # in protocols below 3
    ('__builtin__', 'set'): lambda items=(): set(items),
    ('builtins', 'set'): lambda items=(): set(items),
    ('_codecs', 'encode'): _encode,  # bytes in protocols below 3
    ('collections', 'OrderedDict'): lambda items=(): dict(items),
    ('collections', 'defaultdict'): lambda factory=None: {},
    ('numpy', 'dtype'): Dtype,
}
for _core in ('numpy.core', 'numpy._core'):  # NumPy 1 and 2
    _CALLED[f'{_core}.multiarray', '_reconstruct'] = lambda kind, shape, code: _Array(0, np.int8)  # BUILD fills it
    _CALLED[f'{_core}.multiarray', 'scalar'] = scalar
    _CALLED[f'{_core}.numeric', '_frombuffer'] = _from_buffer


def require_pickle(path: Path) -> None:
    """Raises UserError, saying where the file is to be had, if there is no such file."""
    if not path.is_file():
        raise UserError(
            f'{path} is not there. Download the PYSKL pickles of NTU60 from {LINKS[0]} (2D) and {LINKS[1]} (3D) into '
            'data/action/, or make the small sample set with `python -m lib.tools.sample --out data/action` and train '
            'with a config of configs/sample/.'
        )


def _checked(data: Any, path: Path) -> dict[str, Any]:
    split, annotations = require_form(data, path)
    where = [f'{path}: annotation {i}' for i in range(len(annotations))]
    annotations = [check_annotation(annotation, place) for annotation, place in zip(annotations, where, strict=True)]
    layout = annotations[0]['keypoint'].shape[2:]
    for i, annotation in enumerate(annotations):
        if annotation['keypoint'].shape[2:] != layout:
            raise UserError(
                f'{where[i]} ({shown_text(annotation["frame_dir"])}) has (joints, coordinates) = '
                f'{annotation["keypoint"].shape[2:]}, the first one {layout}; one file holds one layout.'
            )
    return {'split': split, 'annotations': annotations}


def require_form(data: Any, path: Path) -> tuple[dict[str, list[str]], list[Any]]:
    """Split and annotations of what `read_pickle` found. Raises UserError for another form."""
    if not isinstance(data, dict) or not {'split', 'annotations'} <= data.keys():
        found = f'the keys {shown(list(data))}' if isinstance(data, dict) else f'a {type(data).__name__}'
        raise UserError(f"{path}: a PYSKL pickle is a dict with 'split' and 'annotations'; found {found}.")
    split, annotations = data['split'], data['annotations']
    if not isinstance(split, dict) or not isinstance(annotations, list | tuple):
        raise UserError(f"{path}: 'split' must be a dict of lists and 'annotations' a list of dicts.")
    if not annotations:
        raise UserError(f'{path}: holds no annotations.')
    split = {name: ids.tolist() if isinstance(ids, np.ndarray) else ids for name, ids in split.items()}
    for name, ids in split.items():
        if not isinstance(name, str) or not isinstance(ids, list | tuple) or not all(isinstance(i, str) for i in ids):
            raise UserError(f'{path}: split {shown(name)} must be a list of frame_dir texts.')
    return {name: list(ids) for name, ids in split.items()}, list(annotations)


def check_annotation(annotation: Any, where: str) -> dict[str, Any]:
    """A sound annotation, its numbers made plain. Raises UserError, which begins with `where`, for the first fault."""
    if not isinstance(annotation, dict):
        raise UserError(f'{where} is a {type(annotation).__name__}, not a dict.')
    if isinstance(annotation.get('frame_dir'), str):
        where += f' ({shown_text(annotation["frame_dir"])})'
    if 'raw_file' in annotation:
        raise UserError(
            f'{where} points to a keypoint file of its own (raw_file), as the Kinetics pickles do. '
            'That form is not supported yet: all keypoints must be inside the pickle.'
        )
    missing = [key for key in ('frame_dir', 'label', 'total_frames', 'keypoint') if key not in annotation]
    if missing:
        raise UserError(f'{where} lacks {", ".join(missing)}; found the keys {shown(list(annotation))}.')
    if not isinstance(annotation['frame_dir'], str):
        raise UserError(f'{where}: frame_dir must be text, found {shown(annotation["frame_dir"])}.')
    checked = {key: a.view(np.ndarray) if isinstance(a, np.ndarray) else a for key, a in annotation.items()}
    checked['label'] = _integer(annotation['label'], 'label', where, minimum=0)
    checked['total_frames'] = _integer(annotation['total_frames'], 'total_frames', where, minimum=0)

    keypoint = checked['keypoint'] = _floats(checked['keypoint'], 'keypoint', where)
    if keypoint.ndim != 4 or keypoint.shape[3] not in (2, 3):
        raise UserError(f'{where}: keypoint must be (persons, frames, joints, 2 or 3), found shape {keypoint.shape}.')
    if checked['total_frames'] == 0 or keypoint.shape[1] == 0:
        raise UserError(f'{where} has zero frames. Take it out of the pickle.')
    if keypoint.shape[1] != checked['total_frames']:
        raise UserError(
            f'{where}: total_frames is {checked["total_frames"]}, but keypoint holds {keypoint.shape[1]} frames.'
        )
    if keypoint.shape[0] == 0 or keypoint.shape[2] == 0:
        raise UserError(f'{where} holds no person or no joint: keypoint has shape {keypoint.shape}.')
    if annotation.get('keypoint_score') is not None:
        score = checked['keypoint_score'] = _floats(checked['keypoint_score'], 'keypoint_score', where)
        if score.shape != keypoint.shape[:3]:
            raise UserError(f'{where}: keypoint_score has shape {score.shape}, keypoint needs {keypoint.shape[:3]}.')
    if keypoint.shape[3] == 2:
        shape = annotation.get('img_shape')
        if isinstance(shape, np.ndarray) and shape.ndim == 1:
            shape = shape.tolist()
        if not isinstance(shape, tuple | list) or len(shape) != 2:
            raise UserError(f'{where}: img_shape must be (height, width) in pixels, found {shown(shape)}.')
        checked['img_shape'] = tuple(_integer(x, 'img_shape', where, minimum=1) for x in shape)
    return checked


def _integer(value: Any, key: str, where: str, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not minimum <= value < 2**31:
        raise UserError(f'{where}: {key} must be a whole number, {minimum} or more, found {shown(value)}.')
    return int(value)


def _floats(value: Any, key: str, where: str) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype.kind != 'f':
        found = f'an array of {value.dtype}' if isinstance(value, np.ndarray) else f'a {type(value).__name__}'
        raise UserError(
            f'{where}: {key} must be an array of floating point numbers, found {found}. Convert it: '
            f"np.asarray({key}, 'float32')."
        )
    return value
