"""Converts keypoint files of other tools to PYSKL annotations. data/README.md lists the formats.

Each source has a module: `recognises(content)` tests whether it wrote a file, `read(content, where)` returns a `Clip`.
To support another source, add such a module to FORMATS and a test.
"""

import logging
from pathlib import Path
from typing import Any

from lib.data.skeletons import LAYOUTS
from lib.errors import UserError, shown, shown_text
from lib.formats import (
    alphapose,
    arrays,
    coco,
    kinetics,
    landmark_csv,
    mediapipe,
    mmpose,
    ntu_skeleton,
    openpose,
    pyskl,
    ultralytics,
)
from lib.formats.by_frame import by_frame
from lib.formats.clip import NOBODY, Clip, number_frames, to_annotation
from lib.formats.content import Pickled, read_content
from lib.formats.frame_numbers import SAME_NUMBER
from lib.formats.values import first_item

log = logging.getLogger(__name__)

FORMATS = (
    mmpose,
    openpose,
    alphapose,
    ultralytics,
    coco,
    kinetics,
    mediapipe,
    landmark_csv,
    ntu_skeleton,
    arrays,
)  # tried in this order
SUPPORTED = ', '.join(f'{module.NAME} ({module.FILES})' for module in (*FORMATS, pyskl))
SUFFIXES = ('.json', '.txt', '.skeleton')  # of a folder with one file per frame, or one .skeleton file per clip


def read_keypoint_file(
    path: Path, layout: str | None = None, img_shape: tuple[int, int] | None = None, max_persons: int = 10
) -> list[dict[str, Any]]:
    """PYSKL annotations of a file or folder: one, or all those in a pickle or a folder of .skeleton files.

    keypoint (M, T, V, C) is float32: 17 COCO joints in pixels with keypoint_score and img_shape, or 25 Kinect joints in
    metres. frame_dir is the file name; label is 0 unless the file contains one. T counts from the first to the last
    listed frame; frames that are not listed have no persons. Missing joints are zero with score 0, as are joints at
    exactly (0, 0). Clips in a pickle are unchanged, except for the order of their joints.

    layout: a name in LAYOUTS; by default that of the format, or of the number of joints if the posture agrees.
    img_shape: (h, w) in pixels for files without it; by default the smallest image that contains all points.
    max_persons: the most present persons are kept (in NTU's files, those that move most).
    Annotations that are not from a pickle have further keys: persons_left_out, the number of persons beyond
    max_persons; img_shape_known; first_frame, the number of the first frame in the file; source, format and layout.

    Raises UserError that names the file and the place in it.
    """
    path = Path(path)
    if layout is not None and layout not in LAYOUTS:
        raise UserError(f'unknown layout {shown_text(str(layout))}; there are {", ".join(LAYOUTS)}.')
    files = _files_in(path) if path.is_dir() else [path]
    if path.is_dir() and files[0].suffix != '.skeleton':
        return [to_annotation(_read_frames(files, path, layout), path, layout, img_shape, max_persons)]
    annotations, empty = [], []
    for file in files:
        content = read_content(file, SUPPORTED)
        if isinstance(content, Pickled):
            return pyskl.read(content.data, file, layout)
        clip = _read_clip(content, file, layout)
        if clip is None:
            raise _unsupported(content, file)
        if len(files) > 1 and not any(clip.frames.values()):
            empty.append(file)
        else:
            annotations.append(to_annotation(clip, file, layout, img_shape, max_persons))
    if not annotations:
        raise UserError(NOBODY.format(path))
    if empty:
        log.warning('%s: %d of %d files have no persons and are skipped (%s)', path, len(empty), len(files), empty[0])
    return annotations


def _read_clip(content: Any, path: Path, layout: str | None) -> Clip | None:
    """The clip in a file; None if no format has such content."""
    if clip := _recognised(content, path, layout):
        return clip
    names, results = by_frame(content) or ([], None)
    clip = _recognised(results, path, layout)
    if clip and list(clip.frames) == list(range(len(names))):
        return number_frames(clip, dict(zip(names, clip.frames.values(), strict=True)), str(path))
    return None


def _unsupported(content: Any, path: Path) -> UserError:
    _, item = first_item(content)
    if item is None or item == {}:
        return UserError(NOBODY.format(path))
    found = f'the keys {shown(list(item))}' if isinstance(item, dict) else shown(item)
    return UserError(f'{path} is in no supported format: found {found}. Supported: {SUPPORTED}.')


def _recognised(content: Any, path: Path, layout: str | None) -> Clip | None:
    for module in FORMATS:
        if module.recognises(content):
            return arrays.read(content, str(path), layout) if module is arrays else module.read(content, str(path))
    return None


def _files_in(folder: Path) -> list[Path]:
    """Files in a folder with the most frequent of SUFFIXES, sorted by name, without hidden files."""
    found = [file for file in folder.iterdir() if file.is_file() and not file.name.startswith('.')]
    files = max((sorted(file for file in found if file.suffix == suffix) for suffix in SUFFIXES), key=len)
    if not files:
        raise UserError(
            f'{folder} holds no {", ".join(SUFFIXES[:-1])} or {SUFFIXES[-1]} files. Give a file, or a folder with one '
            f'file per frame, as OpenPose writes it. Supported: {SUPPORTED}.'
        )
    return files


def _read_frames(files: list[Path], folder: Path, layout: str | None) -> Clip:
    """The clip in a folder with one file per frame. Unrecognised files without a digit in their names are skipped."""
    frames, clip, others = {}, Clip('', {}), []
    for file in files:
        name = file.name.removesuffix(file.suffix).removesuffix('_keypoints')
        is_empty = file.suffix == '.txt' and file.stat().st_size == 0
        content = [] if is_empty else read_content(file, SUPPORTED)
        found = Clip('', {0: []}) if content in ([], {}) else _read_clip(content, file, layout)
        if found is None and not any(map(str.isdigit, name)):  # such as classes.txt
            others.append((file, _unsupported(content, file)))
            continue
        if found is None:
            raise UserError(f'{_unsupported(content, file)} If it is not a frame, move it out of the folder.')
        if len(found.frames) != 1:
            raise UserError(
                f'{file} holds {len(found.frames)} frames, but in a folder each file is one frame. '
                'Move other files out of the folder.'
            )
        if name in frames:
            raise UserError(SAME_NUMBER.format(folder))
        if not clip.source:
            clip = found
        (frames[name],) = found.frames.values()
    if others and not frames:
        raise others[0][1]
    for file, _ in others:
        log.warning('%s is not a frame and is skipped', file)
    return number_frames(clip, frames, str(folder))
