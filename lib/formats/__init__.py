"""Reading the keypoint files of other tools as annotations in the PYSKL form. data/README.md lists the formats.

A module for each source: `recognises(content)` says whether it wrote a file, `read(content, where)` returns its persons
by frame as a `Clip`. To support another source, write such a module and a test, and add it to FORMATS.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

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
from lib.formats.clip import NOBODY, Clip, merged, to_annotation
from lib.formats.content import Arrays, Pickled, read_content
from lib.formats.frame_numbers import frame_numbers
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
)  # tried in turn
SUPPORTED = ', '.join(f'{module.NAME} ({module.FILES})' for module in (*FORMATS, pyskl))
FILES = ('.json', '.txt', '.skeleton')  # of a folder with a file for each frame, or a clip in each .skeleton


def read_keypoint_file(
    path: Path, layout: str | None = None, img_shape: tuple[int, int] | None = None, max_persons: int = 10
) -> list[dict[str, Any]]:
    """PYSKL annotations of a file or folder: one, or all those of a pickle or of a folder of .skeleton files.

    keypoint (M, T, V, C) is float32: 17 COCO joints in pixels with keypoint_score and img_shape, or 25 Kinect joints in
    metres. frame_dir is the name of the file; label is 0 unless the file has one. T counts from the first listed frame
    to the last; frames between them that are not listed have no persons. Missing joints (in these formats, also those
    at exactly (0, 0)) are zero with score 0. A pickle's clips stay as they are, except for their order of joints.

    layout: a name of LAYOUTS; by default that of the format or of the number of joints, if the posture agrees.
    img_shape: (h, w) in pixels, if the file does not have it; without it the smallest image that holds all points.
    max_persons: the most present ones are kept (of NTU's files, those that move most).
    Annotations that are not a pickle's have further keys: persons_left_out, their number beyond max_persons;
    img_shape_known, False if it was guessed; first_frame, the number of the first frame in the file; source, the format
    and layout.

    Raises UserError that names the file, the place in it, what was found and what to do.
    """
    path = Path(path)
    if layout is not None and layout not in LAYOUTS:
        raise UserError(f'there is no layout {shown_text(str(layout))}; there are {", ".join(LAYOUTS)}.')
    if path.is_dir():
        files = _files_of(path)
        if files[0].suffix != '.skeleton':
            return [to_annotation(_read_frames(files, path, layout), path, layout, img_shape, max_persons)]
    else:
        files = [path]
    annotations, empty = [], []
    for file in files:
        content = read_content(file, SUPPORTED)
        if isinstance(content, Pickled) and isinstance(content.data, np.ndarray):
            content = Arrays({'keypoint': content.data})
        if isinstance(content, Pickled):
            annotations += pyskl.read(content.data, file, layout)
            continue
        clip = _clip_of(content, file, layout)
        if len(files) > 1 and not any(clip.frames.values()):
            empty.append(file)
        else:
            annotations.append(to_annotation(clip, file, layout, img_shape, max_persons))
    if not annotations:
        raise UserError(NOBODY.format(path))
    if empty:
        log.warning(
            '%s: %d of %d files have no person and are left out (%s)', path, len(empty), len(files), empty[0].name
        )
    return annotations


def _clip_of(content: Any, path: Path, layout: str | None) -> Clip:
    if clip := _recognised(content, path, layout):
        return clip
    names, results = by_frame(content) or ([], None)
    clip = _recognised(results, path, layout)
    if clip and list(clip.frames) == list(range(len(names))):
        numbers, note = frame_numbers(names, str(path))
        frames = {numbers[name]: clip.frames[i] for i, name in enumerate(names)}
        return replace(clip, frames=frames, note=note or clip.note)
    _, item = first_item(content)
    if item is None or item == {}:
        raise UserError(NOBODY.format(path))
    found = f'the keys {shown(list(item))}' if isinstance(item, dict) else f'{shown(item)}'
    raise UserError(f'{path} is in no supported format: found {found}. Supported: {SUPPORTED}.')


def _recognised(content: Any, path: Path, layout: str | None) -> Clip | None:
    for module in FORMATS:
        if module.recognises(content):
            return arrays.read(content, str(path), layout) if module is arrays else module.read(content, str(path))
    return None


def _files_of(folder: Path) -> list[Path]:
    """The files of a folder that have the most frequent of the endings, sorted by name; hidden ones are skipped."""
    found = [file for file in folder.iterdir() if file.is_file() and not file.name.startswith('.')]
    by_ending = {ending: sorted(file for file in found if file.suffix == ending) for ending in FILES}
    files = max(by_ending.values(), key=len)
    if not files:
        raise UserError(
            f'{folder} holds no {", ".join(FILES[:-1])} or {FILES[-1]} files. Name a folder with a file for each '
            f'frame, as OpenPose writes it, or a file. Supported: {SUPPORTED}.'
        )
    return files


def _read_frames(files: list[Path], folder: Path, layout: str | None) -> Clip:
    """The clip of a folder with a file for each frame."""
    names = {file: file.name.removesuffix(file.suffix).removesuffix('_keypoints') for file in files}
    numbers, note = frame_numbers(names.values(), str(folder))
    clips: dict[int, Clip] = {}
    for file, name in names.items():
        if file.stat().st_size == 0 and file.suffix == '.txt':  # nobody in it
            continue
        content = read_content(file, SUPPORTED)
        clip = Clip('', {0: []}) if content in ([], {}) else _clip_of(content, file, layout)
        if len(clip.frames) != 1:
            raise UserError(
                f'{file} holds {len(clip.frames)} frames, and in a folder a file is one frame. Name it alone.'
            )
        clips[numbers[name]] = clip
    if not clips:
        raise UserError(NOBODY.format(folder))
    return merged(clips, note)
