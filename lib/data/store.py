"""The packed form of a PYSKL pickle: a folder of flat .npy arrays beside it, made once and memory-mapped afterwards.

    keypoint.npy      (R, V, C)   float16 as PYSKL writes (float32 if the pickle has more); R = frames of all persons:
                                  clip after clip, in it person after person, in it frame after frame
    score.npy         (R, V)      0 for a missing joint
    first_row.npy     (N,) int64  where clip i begins
    total_frames.npy  (N,) int32
    num_persons.npy   (N,) int32
    label.npy         (N,) int64
    img_shape.npy     (N, 2) int32, (h, w) in pixels; zeros for 3D
    frame_dir.npy     (N,) bytes, UTF-8
    split.npy         (S,) int32  the clips of all splits, split after split, each in the order of the pickle
    meta.json         which pickle it was made from, and where each split lies

However many processes open it, they share one copy in the page cache.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib.data.pickles import load_annotations, require_pickle

FORMAT = 1  # raise it whenever the arrays change their meaning
ARRAYS = (
    'keypoint',
    'score',
    'first_row',
    'total_frames',
    'num_persons',
    'label',
    'img_shape',
    'frame_dir',
    'split',
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """The mapped arrays (see the module's docstring) of one pickle, and the clips (int32 indices) of each split."""

    ann_file: Path
    keypoint: np.ndarray
    score: np.ndarray
    first_row: np.ndarray
    total_frames: np.ndarray
    num_persons: np.ndarray
    label: np.ndarray
    img_shape: np.ndarray
    frame_dir: np.ndarray
    splits: dict[str, np.ndarray]

    def name(self, clip: int) -> str:
        """frame_dir of a clip."""
        return self.frame_dir[clip].decode()


def open_store(ann_file: str | os.PathLike, store_dir: str | os.PathLike | None = None) -> Store:
    """Maps the packed form of a PYSKL pickle; packs it first where there is none or the pickle has changed.

    store_dir: where the packed form lies, the pickle's own folder by default. One process packs, others wait for it.
    Raises FileNotFoundError, OSError or ValueError (see `load_annotations`); a failed packing leaves nothing behind.
    """
    ann_file = Path(ann_file)
    require_pickle(ann_file)
    folder = (Path(store_dir) if store_dir else ann_file.parent) / f'{ann_file.stem}.store'
    if _meta(folder, ann_file) is None:
        with _packing_lock(folder):
            if _meta(folder, ann_file) is None:  # nobody packed it while this process waited
                _pack(ann_file, folder)
    meta = _meta(folder, ann_file)
    arrays = {name: np.load(folder / f'{name}.npy', mmap_mode='r').view(np.ndarray) for name in ARRAYS}
    split = arrays.pop('split')
    return Store(ann_file, **arrays, splits={name: split[a:b] for name, (a, b) in meta['splits'].items()})


def _fingerprint(ann_file: Path) -> dict[str, int]:
    status = ann_file.stat()
    return {'format': FORMAT, 'bytes': status.st_size, 'mtime_ns': status.st_mtime_ns}


def _meta(folder: Path, ann_file: Path) -> dict[str, Any] | None:
    """meta.json of a store that was made from this very pickle, else None."""
    try:
        meta = json.loads((folder / 'meta.json').read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return meta if meta['pickle'] == _fingerprint(ann_file) else None


@contextlib.contextmanager
def _packing_lock(folder: Path) -> Iterator[None]:
    lock = folder.with_suffix('.lock')
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open('w')
    except OSError as error:
        raise OSError(
            f'{folder.parent} cannot be written ({error.strerror}), and the packed form of the data must lie '
            'somewhere: name a folder with `--set data.store_dir=FOLDER`.'
        ) from None
    with file:  # the lock goes with the process, however it ends
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info('waiting for another process that packs %s', folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _pack(ann_file: Path, folder: Path) -> None:
    log.info('packing %s into %s (once)', ann_file, folder)
    fingerprint = _fingerprint(ann_file)  # before reading: a pickle replaced meanwhile is packed again next time
    data = load_annotations(ann_file)
    temporary = folder.with_suffix('.packing')  # what a killed process left there is taken over: we hold the lock
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        num_missing = _write_arrays(data['annotations'], temporary)
        splits = _write_splits(data, ann_file, temporary)
        (temporary / 'meta.json').write_text(json.dumps({'pickle': fingerprint, 'splits': splits}))
        for file in temporary.iterdir():
            with file.open('rb') as written:
                os.fsync(written.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if num_missing:
        warnings.warn(
            f'{ann_file}: {num_missing} joints with coordinates or scores that are not finite (NaN) count as missing.',
            stacklevel=2,
        )


def _write_arrays(annotations: list[dict[str, Any]], folder: Path) -> int:
    """Writes all arrays but the splits; returns the number of joints that were not finite."""
    total_frames = np.array([a['total_frames'] for a in annotations], np.int32)
    num_persons = np.array([len(a['keypoint']) for a in annotations], np.int32)
    num_rows = total_frames.astype(np.int64) * num_persons
    first_row = np.cumsum(num_rows) - num_rows
    per_clip = {
        'first_row': first_row,
        'total_frames': total_frames,
        'num_persons': num_persons,
        'label': np.array([a['label'] for a in annotations], np.int64),
        'img_shape': np.array([a.get('img_shape', (0, 0)) for a in annotations], np.int32),
        'frame_dir': np.array([a['frame_dir'].encode() for a in annotations]),
    }
    for name, array in per_clip.items():
        np.save(folder / f'{name}.npy', array)

    def create(name: str, key: str, shape: tuple[int, ...]) -> np.memmap:
        half = all(a[key].dtype == np.float16 for a in annotations if a.get(key) is not None)
        dtype = np.float16 if half else np.float32
        return np.lib.format.open_memmap(folder / f'{name}.npy', 'w+', dtype, shape)

    joints, coordinates = annotations[0]['keypoint'].shape[2:]
    keypoints = create('keypoint', 'keypoint', (int(num_rows.sum()), joints, coordinates))
    scores = create('score', 'keypoint_score', (int(num_rows.sum()), joints))
    num_missing = 0
    for annotation, start, count in zip(annotations, first_row, num_rows, strict=True):
        keypoint = annotation['keypoint'].reshape(count, joints, coordinates)
        score = annotation.get('keypoint_score')
        score = (keypoint != 0).any(axis=2) if score is None else score.reshape(count, joints)
        sound = np.isfinite(keypoint).all(axis=2) & np.isfinite(score)
        if not sound.all():
            num_missing += int((~sound).sum())
            keypoint, score = np.where(sound[..., None], keypoint, 0), np.where(sound, score, 0)
        keypoints[start : start + count] = keypoint
        scores[start : start + count] = score
    keypoints.flush()
    scores.flush()
    return num_missing


def _write_splits(data: dict[str, Any], ann_file: Path, folder: Path) -> dict[str, tuple[int, int]]:
    """Writes split.npy; returns start and end of each split in it."""
    frame_dirs = [annotation['frame_dir'] for annotation in data['annotations']]
    parts, splits, end = [], {}, 0
    for name, ids in data['split'].items():
        wanted = set(ids)
        part = np.array([i for i, frame_dir in enumerate(frame_dirs) if frame_dir in wanted], np.int32)
        if lost := len(wanted.difference(frame_dirs)):
            warnings.warn(
                f'{ann_file}: {lost} clips of split {name} have no annotation and are left out.', stacklevel=2
            )
        parts.append(part)
        splits[name] = (end, end + len(part))
        end += len(part)
    np.save(folder / 'split.npy', np.concatenate(parts) if parts else np.zeros(0, np.int32))
    return splits
