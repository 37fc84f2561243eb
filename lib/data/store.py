"""Memory-mapped store of a PYSKL pickle: a folder of .npy arrays beside it, built on first use.

N clips, S clips of a split, V joints, C coordinates, R rows, one per frame and person, ordered by clip, person, frame.

    keypoint.npy     (R, V, C) float16 if all keypoints in the pickle are float16, else float32
    score.npy        (R, V) float16 or float32 likewise; 0 for a missing joint
    clips.npy        (N,) records of type CLIP
    frame_dir.npy    (N,) clip names, fixed-width bytes in UTF-8
    split_0.npy ...  (S,) int32 clip indices of each split, in the order of the pickle
    meta.json        format; name, size and modification time of the pickle; split names

A store is a cache, rebuilt if it does not match its pickle or cannot be opened. All processes share one copy in the
page cache.
"""

import json
import logging
import mmap
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lib.data.pickles import load_annotations, lost_names_hint, require_pickle, score_of
from lib.errors import UserError
from lib.files import check_writable, hold_lock, make_folder, sync_folder

FORMAT = 4  # increment it when the arrays change
CLIP = np.dtype(
    [
        ('first_row', np.int64),  # of the clip in keypoint.npy and score.npy
        ('label', np.int64),
        ('total_frames', np.int32),
        ('num_persons', np.int32),
        ('img_shape', np.int32, (2,)),  # (h, w) in pixels; zeros for 3D
    ]
)
LARGE = 4 * 2**30  # bytes; larger sets probably do not fit in the page cache
ADVICE = 'The packed form of the data is as large as the pickle. Choose a folder for it: `--set data.store_dir=FOLDER`.'
log = logging.getLogger(__name__)


class Joined:
    """Concatenation of memory-mapped arrays along the first axis, indexed by integers or arrays of integers.

    offsets: numbers added to the values of each array.
    """

    def __init__(self, arrays: Sequence[np.ndarray], offsets: Sequence[int] | None = None) -> None:
        self.arrays, self.offsets = arrays, offsets
        self.starts = np.cumsum([0, *map(len, arrays)])[:-1]
        self.shape = (sum(map(len, arrays)), *arrays[0].shape[1:])
        self.dtype = np.result_type(*arrays)

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: int | np.ndarray, axis: int = 0) -> np.ndarray:
        """Copies rows, (*rows.shape, *self.shape[1:]), in the common dtype. axis: 0."""
        rows = np.asarray(rows)
        copy = np.empty((*rows.shape, *self.shape[1:]), self.dtype)
        file = np.searchsorted(self.starts, rows, side='right') - 1
        for i in np.unique(file):
            selected = file == i
            values = self.arrays[i][rows[selected] - self.starts[i]]  # take would copy the whole record field
            copy[selected] = values if self.offsets is None else values + self.offsets[i]
        return copy[()]

    __getitem__ = take


@dataclass(frozen=True)
class Store:
    """Memory-mapped arrays of a pickle or of a folder of pickles (shapes: see the module docstring)."""

    ann_file: Path
    keypoint: np.ndarray | Joined
    score: np.ndarray | Joined
    first_row: np.ndarray | Joined
    label: np.ndarray | Joined
    total_frames: np.ndarray | Joined
    num_persons: np.ndarray | Joined
    img_shape: np.ndarray | Joined
    frame_dir: np.ndarray | Joined
    splits: dict[str, np.ndarray]

    @property
    def num_joints(self) -> int:
        return self.keypoint.shape[1]

    @property
    def is_3d(self) -> bool:
        return self.keypoint.shape[2] == 3

    def name(self, clip: int) -> str:
        """frame_dir of a clip."""
        return self.frame_dir[clip].decode()

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Copies the keypoints (*rows.shape, V, C) and scores (*rows.shape, V) of rows."""
        return self.keypoint.take(rows, axis=0), self.score.take(rows, axis=0)


def open_store(ann_file: str | os.PathLike, store_dir: str | os.PathLike | None = None) -> Store:
    """Opens the store of a PYSKL pickle; builds it first if it is missing or out of date.

    ann_file: a pickle, or a folder whose *.pkl files, sorted by name, form one set: each has its own store, and splits
    of the same name are concatenated. store_dir: folder for the stores; default: that of the pickle. One process builds
    a store while others wait. Raises UserError, leaving no files behind, if a pickle cannot be used (see
    `load_annotations`) or its store cannot be written.
    """
    ann_file = Path(ann_file)
    parts = [_open_or_build(file, store_folder(file, store_dir)) for file in pickles_of(ann_file)]
    joints = [array for part in parts for array in (part.keypoint, part.score)]
    if sum(array.nbytes for array in joints) > LARGE:
        for array in joints:  # no readahead: clips are read in random order
            array.base._mmap.madvise(mmap.MADV_RANDOM)
    return parts[0] if len(parts) == 1 else _join(ann_file, parts)


def store_folder(file: Path, store_dir: str | os.PathLike | None = None) -> Path:
    """Path of the store of a pickle."""
    return (Path(store_dir) if store_dir else file.parent) / f'{file.stem}.store'


def pickles_of(ann_file: Path) -> list[Path]:
    """The pickle, or the pickles of a folder sorted by name. Raises UserError if there is none."""
    if not ann_file.is_dir():
        require_pickle(ann_file)
        return [ann_file]
    if files := sorted(file for file in ann_file.glob('[!.]*.pkl') if file.is_file()):
        return files
    raise UserError(f'{ann_file} is a folder without a *.pkl file. Use a PYSKL pickle, or a folder of them.')


def _source(file: Path) -> dict[str, Any]:
    """Entries of meta.json that identify a version of the pickle."""
    status = file.stat()
    return {'format': FORMAT, 'name': file.name, 'size': status.st_size, 'mtime_ns': status.st_mtime_ns}


def _open(file: Path, folder: Path) -> Store | None:
    """Opens a store; None if it is missing, out of date or incomplete."""
    try:
        text = (folder / 'meta.json').read_text()
        meta = json.loads(text)
        splits = meta.pop('splits')
        if meta != _source(file):
            return None
        names = 'keypoint', 'score', 'clips', 'frame_dir', *(f'split_{i}' for i in range(len(splits)))
        arrays = [np.asarray(np.load(folder / f'{name}.npy', mmap_mode='r')) for name in names]
        if (folder / 'meta.json').read_text() != text:  # rebuilt by another process meanwhile
            return None
    except (OSError, ValueError, EOFError, KeyError):
        return None
    keypoint, score, clips, frame_dir, *indices = arrays
    fields = {name: clips[name] for name in CLIP.names}
    return Store(file, keypoint, score, **fields, frame_dir=frame_dir, splits=dict(zip(splits, indices, strict=True)))


def _open_or_build(file: Path, folder: Path) -> Store:
    if store := _open(file, folder):
        return store
    check_writable(folder.parent, ADVICE)
    make_folder(folder.parent)
    with hold_lock(folder.with_suffix('.lock'), f'the packed form of {file}', wait=True):
        if store := _open(file, folder):  # built by another process meanwhile
            return store
        _build(file, folder)
        if store := _open(file, folder):
            return store
    raise UserError(f'{file} was changed while it was packed. Repeat the command when the file is complete.')


def _build(file: Path, folder: Path) -> None:
    """Builds a store in a temporary folder and moves it into place. The caller holds the lock."""
    log.info('packing %s into %s (once)', file, folder)
    source, data = _source(file), load_annotations(file)
    names = {annotation['frame_dir'] for annotation in data['annotations']}
    hint = lost_names_hint(data['split'], names)
    if hint and names.isdisjoint(set().union(*data['split'].values())):
        raise UserError(f'{file}: no clip of its splits has an annotation: {hint}. Write the same names in both.')
    temporary = folder.with_suffix('.packing')
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
        temporary.mkdir()
        num_missing = _write_arrays(temporary, data)
        (temporary / 'meta.json').write_text(json.dumps(source | {'splits': list(data['split'])}))
        for path in temporary.iterdir():
            with path.open('rb') as written:
                os.fsync(written.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise UserError(f'{folder} cannot be written ({error.strerror or error}). {ADVICE}') from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if num_missing:
        warnings.warn(
            f'{file}: {num_missing} joints with NaN or infinite coordinates or scores count as missing.', stacklevel=2
        )
    for split, ids in data['split'].items():
        if num_dropped := len(set(ids) - names):
            reason = f': {hint}' if hint else ''
            warnings.warn(
                f'{file}: {num_dropped} clips of split {split} have no annotation and are dropped{reason}.',
                stacklevel=2,
            )


def _write_arrays(folder: Path, data: dict[str, Any]) -> int:
    """Writes all arrays of a store. Returns the number of non-finite joints."""
    annotations = data['annotations']
    clips, row, num_missing = np.zeros(len(annotations), CLIP), 0, 0
    for i, annotation in enumerate(annotations):
        persons, frames, *layout = annotation['keypoint'].shape
        img_shape = annotation['img_shape'] if layout[1] == 2 else (0, 0)
        clips[i] = row, annotation['label'], frames, persons, img_shape
        row += persons * frames
    np.save(folder / 'clips.npy', clips)
    np.save(folder / 'frame_dir.npy', [annotation['frame_dir'].encode() for annotation in annotations])
    for i, ids in enumerate(map(set, data['split'].values())):
        members = [clip for clip, annotation in enumerate(annotations) if annotation['frame_dir'] in ids]
        np.save(folder / f'split_{i}.npy', np.array(members, np.int32))

    def begin(file: BinaryIO, key: str, shape: tuple[int, ...]) -> type:
        half = all(a[key].dtype == np.float16 for a in annotations if a.get(key) is not None)
        dtype = np.float16 if half else np.float32
        header = {'descr': np.dtype(dtype).str, 'fortran_order': False, 'shape': shape}
        np.lib.format.write_array_header_1_0(file, header)
        return dtype

    # Not memory-mapped: a full disk would kill the process with SIGBUS.
    with (folder / 'keypoint.npy').open('wb') as keypoints, (folder / 'score.npy').open('wb') as scores:
        keypoint_type = begin(keypoints, 'keypoint', (row, *layout))
        score_type = begin(scores, 'keypoint_score', (row, layout[0]))
        for annotation in annotations:
            keypoint = annotation['keypoint'].astype(keypoint_type, order='C')
            score = score_of(annotation).astype(score_type, order='C')
            missing = ~(np.isfinite(keypoint).all(axis=-1) & np.isfinite(score))
            keypoint[missing], score[missing] = 0, 0
            num_missing += np.count_nonzero(missing)
            keypoints.write(keypoint.data)
            scores.write(score.data)
    return num_missing


def _join(ann_file: Path, parts: list[Store]) -> Store:
    """Concatenates the stores of a folder. Raises UserError if their layouts differ."""
    layout = parts[0].keypoint.shape[1:]
    for part in parts:
        if part.keypoint.shape[1:] != layout:
            raise UserError(
                f'{part.ann_file} has (joints, coordinates) = {part.keypoint.shape[1:]}, but {parts[0].ann_file} has '
                f'{layout}; all pickles in a folder must have the same layout. Move one of them to another folder.'
            )
    first_row = np.cumsum([0, *(len(part.keypoint) for part in parts)])
    first_clip = np.cumsum([0, *(len(part.label) for part in parts)], dtype=np.int32)
    splits: dict[str, list[np.ndarray]] = {}
    for part, start in zip(parts, first_clip, strict=False):
        for name, clips in part.splits.items():
            splits.setdefault(name, []).append(clips + start)
    names = 'keypoint', 'score', 'frame_dir', *CLIP.names
    joined = {name: Joined([getattr(part, name) for part in parts]) for name in names}
    joined['first_row'] = Joined([part.first_row for part in parts], first_row)
    return Store(ann_file, **joined, splits={name: np.concatenate(clips) for name, clips in splits.items()})
