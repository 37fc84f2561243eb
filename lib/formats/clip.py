"""The result of every reader, the persons in each frame, and its conversion to a PYSKL annotation.

M persons, P poses in all frames together, T frames, V joints, C coordinates.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lib.data.skeletons import COCO17, LAYOUTS, convert, convert_names
from lib.errors import UserError, numbered, shown
from lib.formats.frame_numbers import MOST_FRAMES, frame_numbers
from lib.formats.posture import require_posture
from lib.formats.tracking import track

LARGEST_COORDINATE = 10**5  # px
FARTHEST = 100  # m, beyond the range of a Kinect
NORMALISED = 2  # largest normalised coordinate
SAME_POINT = 1.5  # px, between points shared by two halves of a body
LEAST_NAMES = 6  # joint names of COCO needed to trust the joint names in a file
NOBODY = '{} has no person in any frame. Remove it from the input.'
LAYOUT_BY_NUMBER = {
    len(LAYOUTS[name]): name
    for name in ('coco17', 'openpose18', 'body25', 'halpe26', 'blazepose33', 'wholebody133', 'halpe136')
}
_SPELLINGS = {  # letters of a joint name: COCO's name
    spelling: name
    for name in COCO17.joints
    for side, _, part in [name.rpartition('_')]
    for spelling in (side + part, part + side, side[:1] + part, part + side[:1])
}

log = logging.getLogger(__name__)


class Person(NamedTuple):
    """joints (V, 3) float32: x, y and score, or x, y, z in metres. identity: None without tracking."""

    joints: np.ndarray
    identity: str | None = None


@dataclass(frozen=True)
class Clip:
    """The content of a file.

    source: name of the format. frames: persons by frame number. layout: of a format with only one. joint_names: if the
    file contains them. img_shape: (h, w) in pixels, None if unknown. is_certain: whether identities are reliable even
    if all are equal. is_3d: joints are in metres. by_motion: the persons that move most come first, not the most
    present ones. note: appended to the log message.
    """

    source: str
    frames: Mapping[int, Sequence[Person]]
    layout: str | None = None
    joint_names: Sequence[str] | None = None
    img_shape: tuple[int, int] | None = None
    label: int = 0
    is_certain: bool = False
    is_3d: bool = False
    by_motion: bool = False
    note: str = ''

    @property
    def num_frames(self) -> int:
        return max(self.frames) - min(self.frames) + 1


def number_frames(clip: Clip, by_name: Mapping[str, Sequence[Person]], where: str) -> Clip:
    """The clip with the persons of named images, numbered by their names."""
    numbers, note = frame_numbers(by_name, where)
    frames = {numbers[name]: persons for name, persons in by_name.items()}
    return replace(clip, frames=frames, note=note or clip.note)


def to_annotation(
    clip: Clip, path: Path, layout: str | None, img_shape: tuple[int, int] | None, max_persons: int
) -> dict[str, Any]:
    """The annotation of a clip (see lib.formats.read_keypoint_file). Logs one line about the file."""
    joints, frame, identity = _poses(clip, path)
    if clip.is_3d:
        joints, layout, known_shape = _metres(joints, path), layout or clip.layout, None
        require_joints(joints.shape[1], layout, path)
    else:
        known_shape = clip.img_shape or img_shape
        layout, joints = _in_coco(_joined(_pixels(joints, path, known_shape), clip), clip, layout, path)
    there = joints.any(axis=(1, 2))
    if not there.any():
        raise UserError(NOBODY.format(path))
    joints, frame, identity = joints[there], frame[there], list(compress(identity, there))
    if clip.is_certain or not _untracked(frame, identity):
        persons, left_out = _by_identity(joints, frame, identity, max_persons, clip)
    else:
        persons, left_out = _by_tracking(joints, frame, max_persons, clip)
    first = min(clip.frames)
    log.info(
        '%s: %s (%s), %s, %s, the first one is %d%s',
        path, clip.source, layout, numbered(len(persons) + left_out, 'person'), numbered(clip.num_frames, 'frame'),
        first, clip.note and f'; {clip.note}',
    )  # fmt: skip
    annotation = {
        'frame_dir': path.resolve().name if path.is_dir() else path.stem,
        'label': clip.label,
        'total_frames': clip.num_frames,
    }
    if clip.is_3d:
        annotation['keypoint'] = persons
    else:
        shape = known_shape or _smallest_image(joints[..., :2])
        annotation |= {
            'img_shape': shape,
            'original_shape': shape,
            'keypoint': np.ascontiguousarray(persons[..., :2]),
            'keypoint_score': np.ascontiguousarray(persons[..., 2]),
        }
    return annotation | {
        'persons_left_out': left_out,
        'img_shape_known': clip.is_3d or known_shape is not None,
        'first_frame': first,
        'source': f'{clip.source} ({layout})',
    }


def _poses(clip: Clip, path: Path) -> tuple[np.ndarray, np.ndarray, list[str | None]]:
    """Joints (P, V, 3) of all poses, ordered by frame; frame (P,) counted from the first; identities."""
    if not any(clip.frames.values()):
        raise UserError(NOBODY.format(path))
    first, last = min(clip.frames), max(clip.frames)
    if clip.num_frames > MOST_FRAMES:
        raise UserError(
            f'{path} spans frames {first} to {last}, more than {MOST_FRAMES:,}. Split the video, or correct the frame '
            'numbers.'
        )
    rows = [(number - first, *person) for number in sorted(clip.frames) for person in clip.frames[number]]
    frame, joints, identity = zip(*rows, strict=True)
    for t, pose in zip(frame, joints, strict=True):
        if len(pose) != len(joints[0]):
            raise UserError(
                f'{path}: frame {t + first} has a person with {len(pose)} joints, others have {len(joints[0])}.'
            )
    return np.stack(joints), np.array(frame), list(identity)


def _metres(joints: np.ndarray, path: Path) -> np.ndarray:
    joints = np.where(np.isfinite(joints).all(axis=-1, keepdims=True), joints, np.float32(0))
    if (largest := np.abs(joints).max()) > FARTHEST:
        raise UserError(f"{path} has a coordinate of {largest:.6g}. Kinect's joints must be in metres.")
    return joints


def _pixels(joints: np.ndarray, path: Path, img_shape: tuple[int, int] | None) -> np.ndarray:
    """Joints (P, V, 3) in pixels with scores of at most 1, missing joints zero."""
    found = np.isfinite(joints).all(axis=-1) & (joints[..., 2] > 0) & joints[..., :2].any(axis=-1)
    joints = np.where(found[..., None], joints, np.float32(0))
    joints[..., 2] = joints[..., 2].clip(max=1)
    points = joints[found][:, :2]
    largest = np.abs(points).max(initial=0)
    if largest > LARGEST_COORDINATE:
        raise UserError(f'{path} has a coordinate of {largest:.6g}, which is not in pixels.')
    if len(points) and largest <= NORMALISED:
        span = f'{path}: all coordinates are between {points.min():.3g} and {points.max():.3g}'
        if (points < 0).any(axis=1).mean() > 0.2:
            raise UserError(f'{span}. Convert them to pixels from the upper left corner.')
        if img_shape is None:
            raise UserError(
                f'{span}: they are normalised. Add --img_shape H W (in pixels), or multiply by the width and height of '
                'the image.'
            )
        joints[..., :2] *= np.float32(img_shape[::-1])
    return joints


def _in_coco(joints: np.ndarray, clip: Clip, layout: str | None, path: Path) -> tuple[str, np.ndarray]:
    """Name of the layout, and joints (P, 17, 3)."""
    if layout is None and clip.joint_names:
        names = [_plain(name) for name in clip.joint_names]
        if len(names) != joints.shape[1] or len(set(names) & set(COCO17.joints)) < LEAST_NAMES:
            raise UserError(
                f'{path} has {joints.shape[1]} joints with unknown names: {shown(list(clip.joint_names))}. Add '
                '--layout if they are in the order of a known layout, or rename them (left_hip).'
            )
        return 'joints by name', convert_names(joints, names, COCO17.joints)
    guessed = layout is None and clip.layout is None
    layout = layout or clip.layout or LAYOUT_BY_NUMBER.get(joints.shape[1])
    require_joints(joints.shape[1], layout, path)
    if guessed:
        require_posture(joints, layout, path, 'Add --layout {better} (or --layout {layout} if it is correct).')
    return layout, convert(joints, layout, 'coco17')


def _plain(name: object) -> str:
    """Converts 'Left Hip', 'leftHip', 'LHip', 'L_Hip' and 'hip_left' to left_hip."""
    letters = re.sub(r'[\W_]', '', str(name).lower())
    return _SPELLINGS.get(letters, letters)


def _joined(joints: np.ndarray, clip: Clip) -> np.ndarray:
    """Joints (P, V, 3) with the halves of a body merged into the first half; the second half becomes zeros.

    Two poses in a frame are halves if they share a point and have no common joint at different places.
    """
    if clip.is_certain:
        return joints
    row = 0
    for number in sorted(clip.frames):
        count = len(clip.frames[number])
        part = joints[row : row + count]
        row += count
        if count == 1:
            continue
        found = (part[..., 2] > 0).astype(np.float32)
        # With more common joints, a person was detected twice.
        most = np.minimum(found.sum(axis=1)[:, None], found.sum(axis=1)) / 2
        for a, b in np.argwhere(np.triu(found @ found.T <= most, k=1)):
            if _are_halves(part[a], part[b]):
                part[a] = np.where(part[a, :, 2:] > 0, part[a], part[b])
                part[b] = 0
    return joints


def _are_halves(a: np.ndarray, b: np.ndarray) -> bool:
    a_found, b_found = a[:, 2] > 0, b[:, 2] > 0
    if (both := a_found & b_found).any():
        return bool((np.linalg.norm(a[both, :2] - b[both, :2], axis=1) < SAME_POINT).all())
    return bool((np.linalg.norm(a[a_found, None, :2] - b[b_found, :2], axis=-1) < SAME_POINT).any())


def _untracked(frame: np.ndarray, identity: list[str | None]) -> bool:
    """Whether identities are useless: one is missing, all are equal, or two persons in a frame share one."""
    return (
        None in identity or len(set(identity)) == 1 or len(set(zip(frame.tolist(), identity, strict=True))) < len(frame)
    )


def _by_tracking(joints: np.ndarray, frame: np.ndarray, max_persons: int, clip: Clip) -> tuple[np.ndarray, int]:
    """Persons (M, T, V, 3) tracked by their poses, and the number left out.

    If only every n-th frame is listed, gaps between these frames do not count.
    """
    step = int(np.gcd.reduce([number - min(clip.frames) for number in clip.frames])) or 1
    ends = np.searchsorted(frame, np.arange(0, clip.num_frames + step, step))
    parts = [joints[start:end] for start, end in pairwise(ends)]
    tracks = track([(part[..., :2], part[..., 2]) for part in parts], max_persons)
    persons = np.zeros((len(tracks.keypoint), clip.num_frames, *joints.shape[1:]), np.float32)
    persons[:, ::step] = np.concatenate([tracks.keypoint, tracks.score[..., None]], axis=-1)
    return persons, tracks.left_out


def _by_identity(
    joints: np.ndarray, frame: np.ndarray, identity: list[str], max_persons: int, clip: Clip
) -> tuple[np.ndarray, int]:
    """Persons (M, T, V, 3), the most present first (or those that move most), and the number left out."""
    names, person = np.unique(identity, return_inverse=True)
    if clip.by_motion:  # the variance over time, summed over the joints
        weight = np.array([joints[person == m].astype(np.float64).var(axis=0).sum() for m in range(len(names))])
    else:
        presence = joints.any(axis=-1) if clip.is_3d else joints[..., 2]
        weight = np.bincount(person, presence.sum(axis=1))
    order = np.argsort(-weight, kind='stable')[:max_persons]
    persons = np.zeros((len(order), clip.num_frames, *joints.shape[1:]), np.float32)
    for m, number in enumerate(order):
        persons[m, frame[person == number]] = joints[person == number]
    return persons, len(names) - len(order)


def require_joints(num_joints: int, layout: str | None, path: Path) -> None:
    """Raises UserError if the number of joints is not that of the layout, or no layout has it (None)."""
    known = ', '.join(f'{name} ({len(joints)})' for name, joints in LAYOUTS.items())
    if layout is None:
        raise UserError(f'{path} has {num_joints} joints, unlike every known layout: {known}.')
    if len(LAYOUTS[layout]) != num_joints:
        raise UserError(f'{path} has {num_joints} joints, which are not those of {layout}. Layouts: {known}.')


def _smallest_image(points: np.ndarray) -> tuple[int, int]:
    """(h, w) of the smallest image that contains all points. Heatmaps do not depend on it."""
    width, height = np.maximum(points.max(axis=(0, 1)), 0).astype(int) + 1
    return int(height), int(width)
