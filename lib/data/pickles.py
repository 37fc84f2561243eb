"""Safe reading, validation and writing of PYSKL pickles: no code in them is run.

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
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib.data.skeletons import COCO17
from lib.errors import UserError, shown, shown_text, user_file
from lib.files import make_folder, replacing

LINKS = (
    'https://download.openmmlab.com/mmaction/pyskl/data/nturgbd/ntu60_hrnet.pkl',
    'https://download.openmmlab.com/mmaction/pyskl/data/nturgbd/ntu60_3danno.pkl',
)
MOST_METRES = 30  # from the camera, beyond the range of a Kinect
HIGHEST_SCORE = 2  # COCO's visibility; scores of pose estimators may slightly exceed 1


def load_annotations(path: str | os.PathLike) -> dict[str, Any]:
    """Reads and checks a PYSKL pickle: {'split': {name: [frame_dir, ...]}, 'annotations': [dict, ...]}.

    Raises UserError if the file is missing or is not a valid PYSKL pickle.
    """
    return check_content(read_pickle(path), Path(path))


def save_annotations(path: Path, split: Mapping[str, Sequence[str]], annotations: Sequence[dict[str, Any]]) -> None:
    """Writes or replaces a PYSKL pickle, and creates its folder. Raises UserError if that fails."""
    make_folder(path.parent)
    with replacing(path) as file:
        pickle.dump({'split': split, 'annotations': annotations}, file, protocol=4)


def read_pickle(path: str | os.PathLike) -> Any:
    """Reads the plain containers, numbers, text and NumPy arrays in a pickle. No code in the file is run.

    OrderedDict and defaultdict become dict. Raises UserError naming the file.
    """
    path = Path(path)
    require_pickle(path)
    copyreg.clear_extension_cache()  # EXT opcodes would use its objects without find_class
    with user_file(path), path.open('rb') as file:
        try:
            return _Unpickler(file).load()
        except UserError as error:
            remedy = '' if str(error).endswith('.') else _PLAIN
            raise UserError(f'{path}: refused. It {error}{remedy}') from None
        except Exception as error:  # a damaged pickle may raise anything
            file.seek(0)
            start = file.read(2**10).lstrip(b'\xef\xbb\xbf \t\r\n')
            if kind := next((kind for magic, kind in _OTHER_FILES.items() if start.startswith(magic)), None):
                raise UserError(
                    f'{path} is {kind}, not a pickle. Make one from a folder of keypoint files and a table of labels: '
                    '`python -m lib.tools.make_pickle FOLDER LABELS.csv --out NEW.pkl`.'
                ) from None
            raise UserError(
                f'{path}: cannot be read as a pickle ({type(error).__name__}: {shown_text(str(error))}). The file has '
                f'{path.stat().st_size:,} bytes and is probably truncated or damaged: download or copy it again.'
            ) from None


_OTHER_FILES = {b'{': 'JSON', b'[': 'JSON', b'PK': 'an .npz or zip file', b'\x93NUMPY': 'a .npy file'}


class _Unpickler(pickle.Unpickler):
    """Maps a few exact names to harmless replacements.

    Opcodes call the result of find_class and can set its attributes (BUILD). Therefore it returns a new function each
    time, never a class or an existing function.
    """

    def find_class(self, module: str, name: str) -> Callable[..., Any] | None:
        if (module, name) in _NAMED:
            return None
        if (module, name) not in _CALLED:
            raise UserError(f'contains {shown_text(f"{module}.{name}")}, {_remedy(module, name)}')
        function = _CALLED[module, name]
        return lambda *arguments: function(*arguments)


def _remedy(module: str, name: str) -> str:
    """Advice on a name in a pickle that is not plain data."""
    root = module.split('.')[0]
    if how := _CONVERSIONS.get(root) or _CONVERSIONS.get(f'{module}.{name}'):
        return f'which is not plain data: convert it before saving, with {how}.'
    if root in sys.stdlib_module_names or root in ('__builtin__', 'commands', 'copy_reg'):
        return 'which could run code; nothing in it was run. Get the file from its original source.'
    return f'which is not plain data{_PLAIN}'


_PLAIN = (
    '; nothing in it was run. Save only dicts, lists, numbers, text and arrays of numbers, for example '
    "np.asarray(array, 'float32'), array.tolist(), tensor.numpy(), str(path)."
)
# Conversions of values of other packages to plain data.
_CONVERSIONS = {
    'torch': 'tensor.numpy() (on a GPU: tensor.cpu().numpy())',
    'tensorflow': 'tensor.numpy()',
    'jax': 'np.asarray(array)',
    'pathlib': 'str(path)',
    'pandas': '.to_numpy(), or .tolist()',
    'numpy': "np.asarray(array, 'float32')",
    'easydict': 'dict(...)',
    'collections': 'dict(...) or list(...)',
    'datetime': 'str(...)',
    'decimal': 'float(...)',
    'fractions': 'float(...)',
    'uuid': 'str(...)',
    'enum': '.value',
    'array': "np.asarray(array, 'float32')",
    'types.SimpleNamespace': 'vars(...)',
    'argparse.Namespace': 'vars(...)',
    'copyreg._reconstructor': 'a dict of its parts',
    'builtins.frozenset': 'list(...)',
    'builtins.range': 'list(...)',
}


class Dtype:
    """Replacement for numpy.dtype: the type of plain numbers or text.

    NumPy's own __setstate__ can change np.dtype('f8') for the whole process, or declare that bytes are pointers.
    """

    __slots__ = ('code', 'numpy')

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if type(code) is not str or not re.fullmatch(r'O8|b1|[iu][1248]|f[248]|[SU][1-9]\d{0,5}', code):
            raise UserError(f'holds an array of type {shown(code)}, not plain numbers or text')
        self.code, self.numpy = code, np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        order = state[1]
        if order not in ('<', '>', '|') or state != np.dtype(order + self.code).__reduce__()[2]:
            raise UserError(f'holds an array of type {self.code} with fields, objects or flags')
        self.numpy = np.dtype(order + self.code)


def _type_of(dtype: Dtype, shape: tuple, content: bytes | bytearray | list) -> np.dtype:
    """The NumPy type of an array, float32 for an empty one of objects.

    Raises UserError if the content does not match its type and shape, or has objects.
    """
    is_objects = type(dtype) is Dtype and dtype.code == 'O8'
    if is_objects and (type(content) is not list or content):
        raise UserError("holds an array of type 'O8', not plain numbers or text")
    if type(dtype) is not Dtype or (type(content) not in (bytes, bytearray) and not is_objects):
        raise UserError('holds an array without a plain type and content')
    if type(shape) is not tuple or not all(type(length) is int and length >= 0 for length in shape):
        raise UserError(f'holds an array of shape {shown(shape)}')
    if math.prod(shape) * dtype.numpy.itemsize != len(content):
        raise UserError(f'holds an array of shape {shown(shape)} with {len(content):,} bytes')
    return np.dtype('f4') if is_objects else dtype.numpy


class _Array(np.ndarray):
    """An array that validates its state before passing it to NumPy."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, content = state
        if self.shape != (0,):  # already filled; views of it would lose their memory
            raise UserError('fills an array twice')
        super().__setstate__((1, shape, _type_of(dtype, shape, content), bool(is_fortran), content or b''))
        _require_characters(self)


def _from_buffer(
    content: bytes | bytearray, dtype: Dtype, shape: tuple, order: str, axis_order: tuple | None = None
) -> np.ndarray:
    array = np.frombuffer(content, _type_of(dtype, shape, content)).view(_Array)
    _require_characters(array)
    return array.reshape(shape).transpose(axis_order) if order == 'K' else array.reshape(shape, order=order)


def _require_characters(array: np.ndarray) -> None:
    if array.dtype.kind == 'U':
        array.tolist()  # raises SystemError for invalid code points


def scalar(dtype: Dtype, content: bytes) -> np.generic:
    """Replacement for the function that unpickles NumPy's numbers."""
    return np.frombuffer(content, _type_of(dtype, (1,), content))[0]


def _encode(text: str, encoding: str) -> bytes:
    if encoding != 'latin1':  # other codecs are modules to import
        raise UserError(f'holds text encoded as {shown(encoding)}')
    return str.encode(text, 'latin1')


# Names that are only arguments: the class of arrays, the factory of a defaultdict.
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
    """Raises UserError with download links if the file does not exist."""
    if not path.is_file():
        raise UserError(
            f'{path} does not exist. Download the PYSKL pickles of NTU60 from {LINKS[0]} (2D) and {LINKS[1]} (3D) into '
            'data/action/, or generate the small sample dataset with `python -m lib.tools.sample --out data/action` '
            'and train with a config in configs/sample/.'
        )


def check_content(data: Any, path: Path) -> dict[str, Any]:
    """Validates the content of a PYSKL pickle. Clips without persons are dropped with a warning.

    Raises UserError naming the file.
    """
    split, annotations = require_form(data, path)
    return {'split': split, 'annotations': check_annotations(annotations, path)}


def check_annotations(annotations: Sequence[Any], path: Path) -> list[dict[str, Any]]:
    """Validates annotations, which must have one layout. Clips without persons are dropped with one warning."""
    checked = {}  # by their place in the file
    for i, annotation in enumerate(annotations):
        if not is_without_persons(annotation):
            place = f'{path}: annotation {i}'
            checked[place] = check_annotation(annotation, place)
    if not checked:
        raise UserError(f'{path}: none of its clips has a person.')
    if empty := len(annotations) - len(checked):
        warnings.warn(f'{path}: {empty} of {len(annotations)} clips have no persons and are skipped.', stacklevel=2)
    layout = next(iter(checked.values()))['keypoint'].shape[2:]
    for place, annotation in checked.items():
        refuse_third_score(annotation, place)
        if annotation['keypoint'].shape[2:] != layout:
            raise UserError(
                f'{place} ({shown_text(annotation["frame_dir"])}) has (joints, coordinates) = '
                f'{annotation["keypoint"].shape[2:]}, but the first annotation {layout}. Write one file per layout.'
            )
    return list(checked.values())


def is_without_persons(annotation: Any) -> bool:
    """Whether an annotation has no persons or no frames: keypoint is empty or None."""
    if not isinstance(annotation, dict) or 'keypoint' not in annotation or 'raw_file' in annotation:
        return False
    keypoint = annotation['keypoint']
    if isinstance(keypoint, np.ndarray):
        return 0 in keypoint.shape[:2]
    return keypoint is None or _is_empty(keypoint)


def _is_empty(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_empty, value))


def require_form(data: Any, path: Path) -> tuple[dict[str, list[str]], list[Any]]:
    """The splits, without clips that have no persons, and the annotations in the result of `read_pickle`.

    Raises UserError if the content has another form.
    """
    refuse_kinetics(data, path)
    if not isinstance(data, dict) or not {'split', 'annotations'} <= data.keys():
        if listed := listed_annotations(data):
            raise UserError(
                f"{path}: a PYSKL pickle is a dict with 'split' and 'annotations'; found {len(listed):,} annotations "
                "without 'split', which training needs. Add it: "
                "pickle.dump({'split': {'train': [frame_dir, ...], 'val': [...]}, 'annotations': [...]}, file), or "
                f'add a table of labels: `python -m lib.tools.make_pickle {path} LABELS.csv --out NEW.pkl`.'
            )
        found = f'the keys {shown(list(data))}' if isinstance(data, dict) else f'a {_type_name(data)}'
        raise UserError(f"{path}: a PYSKL pickle is a dict with 'split' and 'annotations'; found {found}.")
    split, annotations = data['split'], data['annotations']
    if not isinstance(split, dict) or not isinstance(annotations, list | tuple):
        raise UserError(f"{path}: 'split' must be a dict of lists and 'annotations' a list of dicts.")
    if not annotations:
        raise UserError(f'{path}: holds no annotations.')
    split = {name: ids.tolist() if isinstance(ids, np.ndarray) else ids for name, ids in split.items()}
    split = {name: sorted(ids, key=str) if isinstance(ids, set) else ids for name, ids in split.items()}
    for name, ids in split.items():
        if not isinstance(name, str) or not isinstance(ids, list | tuple) or not all(isinstance(i, str) for i in ids):
            raise UserError(f'{path}: split {shown(name)} must be a list of frame_dir strings.')
    empty = {annotation.get('frame_dir') for annotation in annotations if is_without_persons(annotation)}
    return {name: [i for i in ids if i not in empty] for name, ids in split.items()}, list(annotations)


def listed_annotations(data: Any) -> list[Any] | None:
    """The annotations in a pickle without splits: one, a list, or a dict by name. None for other content."""
    if isinstance(data, dict) and 'keypoint' in data:
        return [data]
    if isinstance(data, dict) and 'annotations' in data and 'split' not in data:
        data = data['annotations']
    elif isinstance(data, dict) and data and all(isinstance(value, dict) for value in data.values()):
        data = [{'frame_dir': name} | value for name, value in data.items()]
    is_list = isinstance(data, list | tuple) and data and isinstance(data[0], dict) and 'keypoint' in data[0]
    return list(data) if is_list else None


def _type_name(value: Any) -> str:
    return 'NumPy array' if isinstance(value, np.ndarray) else type(value).__name__


def is_kinetics(annotation: Any) -> bool:
    """Whether an annotation belongs to PYSKL's Kinetics-400 index, which stores keypoints elsewhere."""
    return isinstance(annotation, dict) and 'raw_file' in annotation and 'keypoint' not in annotation


_SPELLINGS: dict[str, Callable[[str], str]] = {
    'spaces': str.strip,
    'folder': lambda name: name.replace('\\', '/').rsplit('/', 1)[-1],
    'suffix': lambda name: re.sub(r'\.\w{1,9}$', '', name),
    'ending': lambda name: re.sub(r'[_-](rgb|depth|ir|skeleton|keypoints|pose|video)$', '', name, flags=re.IGNORECASE),
    'case': str.lower,
}


def _plainest(name: str) -> str:
    for plain in _SPELLINGS.values():
        name = plain(name)
    return name


def refuse_kinetics(data: Any, path: Path) -> None:
    """Raises UserError if a pickle is PYSKL's index of Kinetics-400 or one of its keypoint files (kpfiles)."""
    annotations = data.get('annotations') if isinstance(data, dict) else data
    if isinstance(annotations, list | tuple) and any(map(is_kinetics, annotations)):
        kind, index = ('the index', path) if isinstance(data, dict) else ('a list', 'k400_hrnet.pkl')
        raise UserError(
            f"{path} is {kind} of PYSKL's Kinetics-400, without keypoints. Convert the index, a dict with split and "
            f'annotations, with its folder of kpfiles: `python -m lib.tools.make_pickle {index} --kpfiles FOLDER '
            '--box_thr 0.5 --out data/action/k400`.'
        )
    if isinstance(data, dict) and data and all(map(_is_kpfile_entry, data.values())):
        raise UserError(
            f'{path} looks like a keypoint file (kpfile) of Kinetics-400, without labels and frames. Convert it with '
            f'its index: `python -m lib.tools.make_pickle k400_hrnet.pkl --kpfiles {path.parent} --out '
            'data/action/k400`.'
        )


def _is_kpfile_entry(value: Any) -> bool:
    """Whether a value is the skeletons (N, 17, 3) of a clip in a kpfile."""
    keypoint = value.get('keypoint') if isinstance(value, dict) and len(value) == 1 else None
    return isinstance(keypoint, np.ndarray) and keypoint.ndim == 3 and keypoint.shape[1:] == (17, 3)


def lost_names_hint(split: Mapping[str, Sequence[str]], frame_dirs: Iterable[str]) -> str:
    """How names in splits differ from frame_dirs, if only by _SPELLINGS; otherwise empty."""
    known = set(frame_dirs)
    lost = next((name for names in split.values() for name in names if name not in known), None)
    for what, plain in (*_SPELLINGS.items(), ('several parts', _plainest)):
        twin = lost and next((name for name in known if plain(name) == plain(lost)), None)
        if twin:
            show = shown if what == 'spaces' else shown_text
            return f'the names differ by {what}: {show(lost)} in a split, {show(twin)} as frame_dir'
    return ''


def check_annotation(annotation: Any, where: str) -> dict[str, Any]:
    """Validates an annotation and converts its numbers. Raises UserError, starting with `where`."""
    if not isinstance(annotation, dict):
        raise UserError(f'{where} is a {type(annotation).__name__}, not a dict.')
    if isinstance(annotation.get('frame_dir'), str):
        where += f' ({shown_text(annotation["frame_dir"])})'
    if 'raw_file' in annotation:
        raise UserError(
            f'{where} refers to another keypoint file (raw_file), as in the index of Kinetics-400. Convert it: '
            '`python -m lib.tools.make_pickle k400_hrnet.pkl --kpfiles FOLDER --out data/action/k400`.'
        )
    missing = [key for key in ('frame_dir', 'label', 'total_frames', 'keypoint') if key not in annotation]
    if missing:
        raise UserError(f'{where} lacks {", ".join(missing)}; found the keys {shown(list(annotation))}.')
    if not isinstance(annotation['frame_dir'], str):
        raise UserError(f'{where}: frame_dir must be text, found {shown(annotation["frame_dir"])}.')
    checked = {key: a.view(np.ndarray) if isinstance(a, np.ndarray) else a for key, a in annotation.items()}
    checked['label'] = _integer(checked['label'], 'label', where, minimum=0)
    checked['total_frames'] = _integer(checked['total_frames'], 'total_frames', where, minimum=0)

    keypoint = checked['keypoint'] = _floats(checked['keypoint'], 'keypoint', where)
    if keypoint.ndim != 4 or keypoint.shape[3] not in (2, 3):
        raise UserError(f'{where}: keypoint must be (persons, frames, joints, 2 or 3), found shape {keypoint.shape}.')
    if keypoint.shape[1] != checked['total_frames']:
        raise UserError(
            f'{where}: total_frames is {checked["total_frames"]}, but keypoint has {keypoint.shape[1]} frames: its '
            f'shape (persons, frames, joints, coordinates) is {keypoint.shape}.'
        )
    if 0 in keypoint.shape:
        raise UserError(f'{where} has no persons, frames or joints: keypoint has shape {keypoint.shape}.')
    if annotation.get('keypoint_score') is not None:
        score = checked['keypoint_score'] = _floats(checked['keypoint_score'], 'keypoint_score', where)
        if score.shape != keypoint.shape[:3]:
            raise UserError(f'{where}: keypoint_score has shape {score.shape}, but keypoint {keypoint.shape}.')
    if keypoint.shape[3] == 2:
        shape = checked.get('img_shape')
        if isinstance(shape, np.ndarray) and shape.ndim == 1:
            shape = shape.tolist()
        if not isinstance(shape, tuple | list) or len(shape) != 2:
            raise UserError(f'{where}: img_shape must be (height, width) in pixels, found {shown(shape)}.')
        checked['img_shape'] = tuple(_integer(x, 'img_shape', where, minimum=1) for x in shape)
    return checked


def score_of(annotation: Mapping[str, Any]) -> np.ndarray:
    """keypoint_score (M, T, V), or without it whether each joint differs from zero."""
    score = annotation.get('keypoint_score')
    return (annotation['keypoint'] != 0).any(axis=-1) if score is None else score


def refuse_third_score(annotation: Mapping[str, Any], where: str) -> None:
    """Raises UserError if the third number of the joints is a score instead of a depth in metres.

    17 joints are always 2D: the only 3D skeleton is Kinect's. Of others, x and y in pixels reveal a score.
    """
    keypoint = annotation['keypoint']
    if keypoint.shape[3] == 2 or not keypoint.size:
        return
    third = keypoint[..., 2]
    low, high = np.nanmin(third, initial=0), np.nanmax(third, initial=0)
    is_score = np.nanmax(np.abs(keypoint[..., :2]), initial=0) > MOST_METRES and low >= 0 and high <= HIGHEST_SCORE
    is_coco = keypoint.shape[2] == len(COCO17.joints)
    if is_score or is_coco:
        reason = '17 joints are 2D (3D needs the 25 of Kinect)' if is_coco else 'x and y of keypoint are pixels'
        raise UserError(
            f'{where} ({shown_text(annotation["frame_dir"])}): {reason}, so the third number ({low:.3g} to {high:.3g}) '
            "must be a score. Move it to keypoint_score, between 0 and 1: annotation['keypoint_score'] = "
            "keypoint[..., 2]; annotation['keypoint'] = keypoint[..., :2] in pixels."
        )


def _integer(value: Any, key: str, where: str, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not minimum <= value < 2**31:
        raise UserError(f'{where}: {key} must be a whole number, {minimum} or more, found {shown(value)}.')
    return int(value)


def _floats(value: Any, key: str, where: str) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype.kind != 'f':
        found = f'an array of {value.dtype}' if isinstance(value, np.ndarray) else f'a {type(value).__name__}'
        raise UserError(
            f'{where}: {key} must be an array of floats, found {found}. Convert it: '
            + (f"{key}.astype('float32')." if isinstance(value, np.ndarray) else f"np.asarray({key}, 'float32').")
        )
    return value
