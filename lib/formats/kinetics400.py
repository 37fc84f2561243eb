"""Conversion of PYSKL's compressed release of Kinetics-400 to a folder of ordinary pickles.

Annotations in the index k400_hrnet.pkl lack `keypoint`; they have raw_file (path of a kpfile), frame_inds (S,), the
ascending frame numbers of S skeletons, and box_score (S,). A kpfile is a pickled {frame_dir: {'keypoint': (S, V, 3)}}
with x, y and score.
"""

import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from lib.data.pickles import check_annotation, is_kinetics, read_pickle, save_annotations
from lib.errors import UserError, shown, shown_text
from lib.files import make_folder

MOST_PERSONS = 10
INDEX_KEYS = ('raw_file', 'frame_inds', 'box_score', 'valid')


def convert_kinetics(index: Path, kpfiles: Path, box_thr: float, out: Path) -> str:
    """Writes one pickle per kpfile into the new folder `out`; returns a summary.

    Skips skeletons with a box score below box_thr, kpfiles outside the folder `kpfiles`, and clips without skeletons;
    warns of skipped clips. Memory holds the index and one kpfile.
    """
    if not kpfiles.is_dir():
        raise UserError(f'{kpfiles} is not a folder. Give the folder of the kpfiles as --kpfiles.')
    splits_of, by_file = _read_index(index)
    files = {raw_file: _file_in(kpfiles, raw_file) for raw_file in by_file}
    absent = [raw_file for raw_file, file in files.items() if file is None]
    if len(absent) == len(files):
        raise UserError(f'{kpfiles} has none of the {len(files):,} kpfiles of {index} ({shown_text(absent[0])}).')
    partial = out.with_name(f'{out.name}.partial')  # a killed conversion is not mistaken for a complete one
    make_folder(partial)
    for old in partial.glob('*.pkl'):
        old.unlink()
    counts: Counter[str] = Counter()
    for number, (raw_file, file) in enumerate(tqdm(files.items(), unit='file', leave=False, disable=None)):
        if file is None:
            continue
        keypoints = read_pickle(file)
        if not isinstance(keypoints, dict):
            raise UserError(f'{file} is not a kpfile, a dict by frame_dir, but a {type(keypoints).__name__}.')
        clips, split = [], defaultdict(list)
        for annotation in by_file[raw_file]:
            name = annotation['frame_dir']
            if name not in keypoints:
                counts['without'] += 1
                continue
            clip = decompress(annotation, keypoints[name], box_thr, str(file))
            if clip is None:
                counts['empty'] += 1
                continue
            clips.append(clip)
            for split_name in splits_of[name]:
                split[split_name].append(name)
        if clips:
            counts['clips'] += len(clips)
            counts['files'] += 1
            save_annotations(partial / f'{number:05d}_{file.stem}.pkl', dict(split), clips)
    if not counts['clips']:
        raise UserError(f'{index}: no skeleton has a box score of at least {box_thr:g}. Lower --box_thr.')
    partial.rename(out)
    lost = sum(len(by_file[raw_file]) for raw_file in absent)
    for count, text in (
        (len(absent), f'kpfiles ({lost:,} clips) are not in {kpfiles}'),
        (counts['without'], 'clips are not in their kpfile'),
        (counts['empty'], f'clips have no box score of at least {box_thr:g}'),
    ):
        if count:
            warnings.warn(f'{index}: {count:,} {text} and are skipped.', stacklevel=2)
    return f'{out}: {counts["clips"]:,} clips in {counts["files"]:,} pickles'


def decompress(annotation: Mapping[str, Any], entry: Any, box_thr: float, where: str) -> dict[str, Any] | None:
    """The ordinary annotation of a clip, or None without skeletons. entry: its content in the kpfile.

    Frames without a skeleton are dropped and the others renumbered. The skeletons of a frame become persons 0, 1, ...;
    if there are more than ten, the ten with the largest sums of scores in descending order.
    """
    place = f'{where}: {shown_text(str(annotation["frame_dir"]))}'
    frame, box_score = np.asarray(annotation.get('frame_inds')), np.asarray(annotation.get('box_score'))
    keypoint = entry.get('keypoint') if isinstance(entry, dict) else None
    is_array = isinstance(keypoint, np.ndarray) and keypoint.dtype.kind == 'f'
    if not is_array or keypoint.ndim != 3 or keypoint.shape[2] != 3:
        raise UserError(f'{place}: keypoint must be an array of x, y and score (S, V, 3), found {shown(keypoint)}.')
    are_numbers = frame.dtype.kind in 'iu' and box_score.dtype.kind == 'f'
    if not are_numbers or not frame.shape == box_score.shape == keypoint.shape[:1]:
        raise UserError(
            f'{place}: frame_inds, box_score and keypoint must have one entry per skeleton, found shapes '
            f'{frame.shape}, {box_score.shape} and {keypoint.shape}. Index and kpfile are of different releases.'
        )
    kept = box_score >= box_thr
    if not kept.any():
        return None
    _, frame = np.unique(frame[kept], return_inverse=True)
    skeletons = keypoint[kept]
    rows = []  # (person, frame, skeleton)
    for t in range(frame.max() + 1):
        here = np.flatnonzero(frame == t)
        if len(here) > MOST_PERSONS:
            total = skeletons[here, :, 2].sum(axis=1, dtype=np.float64)
            here = here[np.argsort(-total, kind='stable')[:MOST_PERSONS]]
        rows += [(person, t, i) for person, i in enumerate(here)]
    person, time, chosen = np.array(rows).T
    joints = np.zeros((person.max() + 1, time.max() + 1, *skeletons.shape[1:]), skeletons.dtype)
    joints[person, time] = skeletons[chosen]
    clip = {key: value for key, value in annotation.items() if key not in INDEX_KEYS}
    clip |= {'total_frames': joints.shape[1], 'keypoint': joints[..., :2], 'keypoint_score': joints[..., 2]}
    return check_annotation(clip, where)


def _read_index(index: Path) -> tuple[dict[str, list[str]], dict[str, list[dict[str, Any]]]]:
    """The splits of each clip, and the annotations by raw_file."""
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
    by_file, splits_of = defaultdict(list), defaultdict(list)
    for i, annotation in enumerate(annotations):
        if not isinstance(annotation['raw_file'], str) or not isinstance(annotation.get('frame_dir'), str):
            raise UserError(f'{index}: annotation {i}: raw_file and frame_dir must be text.')
        by_file[annotation['raw_file']].append(annotation)
    for name, ids in splits.items():
        for frame_dir in dict.fromkeys(map(str, ids)):
            splits_of[frame_dir].append(str(name))
    return splits_of, by_file


def _file_in(folder: Path, raw_file: str) -> Path | None:
    """The file in the folder whose path matches the longest end of raw_file. None if there is none."""
    parts = [part for part in PurePosixPath(raw_file.replace('\\', '/')).parts if part != '/']
    for start in range(len(parts)) if '\0' not in raw_file else ():
        file = folder.joinpath(*parts[start:])
        if file.is_file() and file.resolve().is_relative_to(folder.resolve()):
            return file
    return None
