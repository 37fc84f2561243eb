"""Reading PYSKL pickles without running anything that is in them, and checking what they hold.

The format (PYSKL's tools/data/README.md), M persons, T frames, V joints, C coordinates:

    {'split': {name: [frame_dir, ...]},
     'annotations': [{'frame_dir': str, 'label': int, 'total_frames': int, 'keypoint': (M, T, V, C),
                      # 2D only (C = 2, pixels); 3D (C = 3, metres) has neither score nor shape
                      'keypoint_score': (M, T, V), 'img_shape': (h, w), 'original_shape': (h, w)}, ...]}
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from lib.errors import UserError, user_file
from lib.unpickling import CHUNK, DataUnpickler, RefusedError, shown, shown_text

LINKS = (
    'https://download.openmmlab.com/mmaction/pyskl/data/nturgbd/ntu60_hrnet.pkl',
    'https://download.openmmlab.com/mmaction/pyskl/data/nturgbd/ntu60_3danno.pkl',
)
_MOST_REPEATED, _ALWAYS_FITS = 4, 10**7  # times a file's bytes, and bytes, that it may stand for: clips named again


def load_annotations(path: str | os.PathLike) -> dict[str, Any]:
    """Reads and checks a PYSKL pickle: {'split': {name: [frame_dir, ...]}, 'annotations': [dict, ...]}.

    Nothing but plain containers, numbers, text and NumPy arrays is ever built.
    Raises UserError where there is no such file, and for whatever is not a sound PYSKL pickle.
    """
    return _checked(read_pickle(path), Path(path))


def read_pickle(path: str | os.PathLike) -> Any:
    """The plain containers, numbers, text and NumPy arrays in a pickle, whatever they are about.

    Nothing of it is run, and it takes little more memory than the file has bytes. Raises UserError naming the file.
    """
    path = Path(path)
    require_pickle(path)
    with user_file(path), path.open('rb', CHUNK) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            return DataUnpickler(file, size).load()
        except RefusedError as error:
            raise UserError(
                f'{path}: refused. It is not plain data: it {error}. Nothing of it was run. Get the file from its '
                'original source.'
            ) from None
        except OSError:
            raise
        except Exception as error:  # a broken pickle may raise anything
            raise UserError(
                f'{path}: cannot be read as a pickle ({type(error).__name__}: {shown_text(str(error))}). The file has '
                f'{size:,} bytes and is probably cut short or damaged: download or copy it again.'
            ) from None


def require_pickle(path: Path) -> None:
    """Raises UserError, saying where the file is to be had, if there is no such file."""
    if not path.is_file():
        raise UserError(
            f'{path} is not there. Download the PYSKL pickles of NTU60 from {LINKS[0]} (2D) and {LINKS[1]} (3D) into '
            'data/action/, or make the small sample set with `python -m lib.data.sample --out data/action` and train '
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
    """Split and annotations of what `read_pickle` found. Raises UserError for another form, and for more than fits.

    What a pickle names many times is stored in it once, but would be packed many times.
    """
    if not isinstance(data, dict) or not {'split', 'annotations'} <= data.keys():
        found = f'the keys {shown(list(data))}' if isinstance(data, dict) else f'a {type(data).__name__}'
        raise UserError(f"{path}: a PYSKL pickle is a dict with 'split' and 'annotations'; found {found}.")
    split, annotations = data['split'], data['annotations']
    if not isinstance(split, dict) or not isinstance(annotations, list):
        raise UserError(f"{path}: 'split' must be a dict of lists and 'annotations' a list of dicts.")
    if not annotations:
        raise UserError(f'{path}: holds no annotations.')
    size, total = path.stat().st_size, 0
    most = _MOST_REPEATED * size + _ALWAYS_FITS
    for name, ids in split.items():
        total += len(ids) if isinstance(ids, list) else 0
        if total <= most and not (isinstance(ids, list) and all(isinstance(i, str) for i in ids)):
            raise UserError(f'{path}: split {shown(name)} must be a list of frame_dir texts.')
    for annotation in annotations:
        arrays = [annotation.get('keypoint'), annotation.get('keypoint_score')] if type(annotation) is dict else []
        total += sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
    if total > most:
        raise UserError(
            f'{path}: refused. Its {size:,} bytes stand for over {total:,}, since lists or arrays are named in it many '
            'times. Write each clip once, with arrays of its own.'
        )
    return split, annotations


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
    checked = dict(annotation)
    checked['label'] = _integer(annotation['label'], 'label', where, minimum=0)
    checked['total_frames'] = _integer(annotation['total_frames'], 'total_frames', where, minimum=0)

    keypoint = checked['keypoint'] = _floats(annotation['keypoint'], 'keypoint', where)
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
        score = checked['keypoint_score'] = _floats(annotation['keypoint_score'], 'keypoint_score', where)
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
        raise UserError(f'{where}: {key} must be an array of floating point numbers, found {found}.')
    return value.view(np.ndarray)
