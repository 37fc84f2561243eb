"""PYSKL's compressed release of Kinetics-400, converted to a folder of ordinary pickles.

Annotations of the index k400_hrnet.pkl lack `keypoint` and have raw_file (path of a kpfile), frame_inds (S,) the frame
each of S skeletons, rising, and box_score (S,). A kpfile is a pickled {frame_dir: {'keypoint': (S, V, 3)}}, x, y and
score.
"""

import pickle
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from lib.data.pickles import check_annotation, is_kinetics, read_pickle
from lib.errors import UserError, shown, shown_text
from lib.files import check_writable, make_folder, replacing

MOST_PERSONS = 10


def convert_kinetics(index: Path, kpfiles: Path, box_thr: float, out: Path) -> str:
    """Writes a pickle for each kpfile into a new folder; returns what it made, in words.

    Skeletons with a box score of at least box_thr are kept. Only the index and one kpfile are in memory. Only files
    inside the folder `kpfiles` are opened; what the index has elsewhere, or nowhere, is left out with a warning.
    """
    if not kpfiles.is_dir():
        raise UserError(f'{kpfiles} is not a folder. Name the one that holds the kpfiles (--kpfiles).')
    if out.exists():
        raise UserError(f'{out} is there already. Name a new --out, or remove it.')
    check_writable(out.parent, 'Name another --out.')
    splits_of, by_file = _read_index(index)
    files = {raw_file: _inside(kpfiles, raw_file) for raw_file in by_file}
    absent = [raw_file for raw_file, file in files.items() if file is None]
    if len(absent) == len(files):
        raise UserError(
            f'{kpfiles} has none of the {len(files):,} kpfiles of {index}, such as {shown_text(absent[0])}.'
        )
    partial = out.with_name(f'{out.name}.partial')  # so that a killed conversion is not mistaken for a complete one
    make_folder(partial)
    for left in partial.glob('*.pkl'):
        left.unlink()
    stems = Counter(file.stem for file in files.values() if file)
    total: Counter[str] = Counter()
    for number, (raw_file, file) in enumerate(tqdm(files.items(), unit='file', disable=None)):
        if file:
            name = f'{file.stem}.pkl' if stems[file.stem] == 1 else f'{file.stem}_{number}.pkl'
            total += _convert_file(file, by_file[raw_file], box_thr, splits_of, partial / name)
    if not total['clips']:
        raise UserError(f'{index}: no clip has a skeleton with a box score of {box_thr:g} or more. Lower --box_thr.')
    partial.rename(out)
    if absent:
        lost = sum(len(by_file[raw_file]) for raw_file in absent)
        warnings.warn(
            f'{index}: {len(absent):,} kpfiles are not in {kpfiles} and are left out, with {lost:,} clips '
            f'({shown_text(absent[0])}).',
            stacklevel=2,
        )
    if total['without']:
        warnings.warn(f'{index}: {total["without"]:,} clips are not in their kpfile and are left out.', stacklevel=2)
    if total['empty']:
        warnings.warn(
            f'{index}: {total["empty"]:,} clips have no box score of {box_thr:g} or more and are left out.',
            stacklevel=2,
        )
    return f'{out}: {total["clips"]:,} clips in {total["files"]:,} pickles'


def _convert_file(
    file: Path, annotations: Sequence[dict[str, Any]], box_thr: float, splits_of: Mapping[str, Sequence[str]], out: Path
) -> Counter[str]:
    """Writes the pickle of a kpfile, if a clip is left; returns counts."""
    keypoints = read_pickle(file)
    if not isinstance(keypoints, dict):
        raise UserError(f'{file} is not a kpfile, a dict by frame_dir, but a {type(keypoints).__name__}.')
    found = [a for a in annotations if a['frame_dir'] in keypoints]
    clips = [decompress(a, keypoints[a['frame_dir']], box_thr, str(file)) for a in found]
    clips = [clip for clip in clips if clip is not None]
    if clips:
        split: dict[str, list[str]] = {}
        for clip in clips:
            for name in splits_of.get(clip['frame_dir'], ()):
                split.setdefault(name, []).append(clip['frame_dir'])
        with replacing(out) as opened:
            pickle.dump({'split': split, 'annotations': clips}, opened, protocol=4)
    return Counter(
        files=bool(clips), clips=len(clips), without=len(annotations) - len(found), empty=len(found) - len(clips)
    )


def decompress(annotation: Mapping[str, Any], entry: Any, box_thr: float, where: str) -> dict[str, Any] | None:
    """The ordinary annotation of a clip; None if no skeleton is left. `entry` is what its kpfile has of it.

    Frames without a skeleton are dropped and the others renumbered. The skeletons of a frame are persons 0, 1, ... in
    order; of more than ten the ten with the largest sums of scores, the largest first.
    """
    place = f'{where}: {shown_text(str(annotation["frame_dir"]))}'
    frame, box_score = np.asarray(annotation.get('frame_inds')), np.asarray(annotation.get('box_score'))
    keypoint = entry.get('keypoint') if isinstance(entry, dict) else None
    if (
        not isinstance(keypoint, np.ndarray)
        or keypoint.dtype.kind != 'f'
        or keypoint.shape[2:] != (3,)
        or keypoint.ndim != 3
    ):
        raise UserError(f'{place}: keypoint must be an array of x, y and score (S, V, 3), found {shown(keypoint)}.')
    if (
        not frame.shape == box_score.shape == keypoint.shape[:1]
        or frame.dtype.kind not in 'iu'
        or box_score.dtype.kind != 'f'
    ):
        raise UserError(
            f'{place}: frame_inds, box_score and keypoint must be of the same skeletons, found shapes {frame.shape}, '
            f'{box_score.shape} and {keypoint.shape}. Index and kpfile are of different releases.'
        )
    kept = box_score >= box_thr
    if not kept.any():
        return None
    _, frame = np.unique(frame[kept], return_inverse=True)
    skeletons = keypoint[kept]
    rows = []  # (person, frame, skeleton)
    for t, here in enumerate(np.split(np.arange(len(frame)), np.flatnonzero(np.diff(frame)) + 1)):
        if len(here) > MOST_PERSONS:
            total = skeletons[here, :, 2].sum(axis=1, dtype=np.float64)
            here = here[np.argsort(-total, kind='stable')[:MOST_PERSONS]]
        rows += [(person, t, i) for person, i in enumerate(here)]
    person, time, chosen = np.array(rows).T
    shape = person.max() + 1, time.max() + 1, skeletons.shape[1]
    clip = {
        key: value for key, value in annotation.items() if key not in ('raw_file', 'frame_inds', 'box_score', 'valid')
    }
    clip |= {
        'total_frames': int(shape[1]),
        'keypoint': np.zeros((*shape, 2), skeletons.dtype),
        'keypoint_score': np.zeros(shape, skeletons.dtype),
    }
    clip['keypoint'][person, time] = skeletons[chosen, :, :2]
    clip['keypoint_score'][person, time] = skeletons[chosen, :, 2]
    return check_annotation(clip, where)


def _read_index(index: Path) -> tuple[dict[str, list[str]], dict[str, list[dict[str, Any]]]]:
    """The splits of each clip, and the annotations by raw_file, sorted."""
    data = read_pickle(index)
    annotations = data.get('annotations') if isinstance(data, dict) else None
    if not isinstance(annotations, list) or not annotations or not all(map(is_kinetics, annotations)):
        raise UserError(
            f"{index} is not the index of PYSKL's Kinetics-400: annotations with raw_file and without keypoint. Omit "
            '--kpfiles.'
        )
    splits = data.get('split')
    if not isinstance(splits, dict) or not all(isinstance(ids, list | tuple | np.ndarray) for ids in splits.values()):
        raise UserError(f"{index}: 'split' must be a dict of lists, found {shown(splits)}.")
    by_file: dict[str, list[dict[str, Any]]] = {}
    for i, annotation in enumerate(annotations):
        if not isinstance(annotation['raw_file'], str) or not isinstance(annotation.get('frame_dir'), str):
            raise UserError(f'{index}: annotation {i}: raw_file and frame_dir must be text.')
        by_file.setdefault(annotation['raw_file'], []).append(annotation)
    splits_of: dict[str, list[str]] = {}
    for name, ids in splits.items():
        for frame_dir in dict.fromkeys(map(str, ids)):
            splits_of.setdefault(frame_dir, []).append(str(name))
    return splits_of, {raw_file: by_file[raw_file] for raw_file in sorted(by_file)}


def _inside(folder: Path, raw_file: str) -> Path | None:
    """The file of an index's path inside the folder, by as many of its last parts as fit; None if there is none."""
    parts = [part for part in PurePosixPath(raw_file.replace('\\', '/')).parts if part != '/']
    if '\0' in raw_file:
        return None
    for start in range(len(parts)):
        file = folder.joinpath(*parts[start:])
        if file.is_file() and file.resolve().is_relative_to(folder.resolve()):
            return file
    return None
