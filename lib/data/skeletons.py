"""Skeletons of PYSKL pickles and MotionBERT, joint orders of pose estimators, and conversion between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lib.errors import UserError


@dataclass(frozen=True)
class Skeleton:
    """A named joint layout.

    limbs: pairs (start, end) of joint indices, one limb heatmap each.
    left, right: corresponding joint indices, which a horizontal flip exchanges.
    """

    name: str
    joints: tuple[str, ...]
    limbs: tuple[tuple[int, int], ...]
    left: tuple[int, ...]
    right: tuple[int, ...]

    @cached_property
    def flip_order(self) -> np.ndarray:
        """Permutation (V,) int64 with left and right exchanged: `keypoint[..., flip_order, :]`."""
        order = np.arange(len(self.joints))
        order[[*self.left, *self.right]] = [*self.right, *self.left]
        return order


COCO17 = Skeleton(
    name='COCO-17',
    joints=(
        'nose', 'left_eye', 'right_eye', 'left_ear', 'right_ear', 'left_shoulder', 'right_shoulder', 'left_elbow',
        'right_elbow', 'left_wrist', 'right_wrist', 'left_hip', 'right_hip', 'left_knee', 'right_knee', 'left_ankle',
        'right_ankle',
    ),
    # PYSKL's order, the order of the limb channels.
    limbs=(
        (0, 1), (0, 2), (1, 3), (2, 4), (0, 5), (5, 7), (7, 9), (0, 6), (6, 8), (8, 10), (5, 11), (11, 13), (13, 15),
        (6, 12), (12, 14), (14, 16), (11, 12),
    ),
    left=(1, 3, 5, 7, 9, 11, 13, 15),
    right=(2, 4, 6, 8, 10, 12, 14, 16),
)  # fmt: skip

NTU25 = Skeleton(
    name='NTU-25',  # Kinect v2
    joints=(
        'spine_base', 'spine_mid', 'neck', 'head', 'left_shoulder', 'left_elbow', 'left_wrist', 'left_hand',
        'right_shoulder', 'right_elbow', 'right_wrist', 'right_hand', 'left_hip', 'left_knee', 'left_ankle',
        'left_foot', 'right_hip', 'right_knee', 'right_ankle', 'right_foot', 'spine_shoulder', 'left_hand_tip',
        'left_thumb', 'right_hand_tip', 'right_thumb',
    ),
    limbs=(
        (0, 1), (1, 20), (20, 2), (2, 3), (20, 4), (4, 5), (5, 6), (6, 7), (20, 8), (8, 9), (9, 10), (10, 11),
        (0, 12), (12, 13), (13, 14), (14, 15), (0, 16), (16, 17), (17, 18), (18, 19), (7, 21), (7, 22), (11, 23),
        (11, 24),
    ),
    left=(4, 5, 6, 7, 12, 13, 14, 15, 21, 22),
    right=(8, 9, 10, 11, 16, 17, 18, 19, 23, 24),
)  # fmt: skip

H36M17 = Skeleton(
    name='H36M-17',
    joints=(
        'root', 'right_hip', 'right_knee', 'right_ankle', 'left_hip', 'left_knee', 'left_ankle', 'belly', 'neck',
        'nose', 'head', 'left_shoulder', 'left_elbow', 'left_wrist', 'right_shoulder', 'right_elbow', 'right_wrist',
    ),
    limbs=(
        (0, 1), (1, 2), (2, 3), (0, 4), (4, 5), (5, 6), (0, 7), (7, 8), (8, 9), (9, 10), (8, 11), (11, 12), (12, 13),
        (8, 14), (14, 15), (15, 16),
    ),
    left=(4, 5, 6, 11, 12, 13),
    right=(1, 2, 3, 14, 15, 16),
)  # fmt: skip

PICKLE_SKELETONS = {17: COCO17, 25: NTU25}

_FACE = tuple(f'face_{i}' for i in range(68))
_HANDS = tuple(f'{side}_hand_{i}' for side in ('left', 'right') for i in range(21))
_HALPE26 = (
    *COCO17.joints, 'head_top', 'neck', 'mid_hip', 'left_big_toe', 'right_big_toe', 'left_small_toe',
    'right_small_toe', 'left_heel', 'right_heel',
)  # fmt: skip

# Joint orders by the values of --layout. Equal names mean the same joint, except for Kinect's neck, which is slightly
# above the others', the middle of the shoulders. Sources: OpenPose's doc/02_output.md (COCO-18, BODY-25)
# and its poseParameters.cpp (BODY-25B); Fang et al., TPAMI 2022 (Halpe, as AlphaPose and MMPose write it); Jin et al.,
# ECCV 2020 (COCO-WholeBody); Bazarevsky et al., 2020 (BlazePose, MediaPipe's landmarks).
LAYOUTS = {
    'coco17': COCO17.joints,
    'openpose18': (
        'nose', 'neck', 'right_shoulder', 'right_elbow', 'right_wrist', 'left_shoulder', 'left_elbow', 'left_wrist',
        'right_hip', 'right_knee', 'right_ankle', 'left_hip', 'left_knee', 'left_ankle', 'right_eye', 'left_eye',
        'right_ear', 'left_ear',
    ),
    'body25': (
        'nose', 'neck', 'right_shoulder', 'right_elbow', 'right_wrist', 'left_shoulder', 'left_elbow', 'left_wrist',
        'mid_hip', 'right_hip', 'right_knee', 'right_ankle', 'left_hip', 'left_knee', 'left_ankle', 'right_eye',
        'left_eye', 'right_ear', 'left_ear', 'left_big_toe', 'left_small_toe', 'left_heel', 'right_big_toe',
        'right_small_toe', 'right_heel',
    ),
    'body25b': (
        *COCO17.joints, 'neck', 'head_top', 'left_big_toe', 'left_small_toe', 'left_heel', 'right_big_toe',
        'right_small_toe', 'right_heel',
    ),
    'halpe26': _HALPE26,
    'halpe136': (*_HALPE26, *_FACE, *_HANDS),
    'wholebody133': (
        *COCO17.joints, 'left_big_toe', 'left_small_toe', 'left_heel', 'right_big_toe', 'right_small_toe',
        'right_heel', *_FACE, *_HANDS,
    ),
    'blazepose33': (
        'nose', 'left_eye_inner', 'left_eye', 'left_eye_outer', 'right_eye_inner', 'right_eye', 'right_eye_outer',
        'left_ear', 'right_ear', 'mouth_left', 'mouth_right', 'left_shoulder', 'right_shoulder', 'left_elbow',
        'right_elbow', 'left_wrist', 'right_wrist', 'left_pinky', 'right_pinky', 'left_index', 'right_index',
        'left_thumb', 'right_thumb', 'left_hip', 'right_hip', 'left_knee', 'right_knee', 'left_ankle', 'right_ankle',
        'left_heel', 'right_heel', 'left_foot_index', 'right_foot_index',
    ),
    'ntu25': NTU25.joints,
    'h36m17': H36M17.joints,
}  # fmt: skip


def skeleton_of(num_joints: int) -> Skeleton:
    """The skeleton with a number of joints. Raises UserError if it is unknown."""
    if num_joints not in PICKLE_SKELETONS:
        known = ', '.join(f'{s.name} ({v} joints)' for v, s in PICKLE_SKELETONS.items())
        raise UserError(f'no skeleton with {num_joints} joints is known; known are {known}')
    return PICKLE_SKELETONS[num_joints]


def convert(joints: np.ndarray, source: str, target: str) -> np.ndarray:
    """Converts joints (..., V, C) from one of LAYOUTS to another; see convert_names."""
    return convert_names(joints, LAYOUTS[source], LAYOUTS[target])


def convert_names(joints: np.ndarray, source: Sequence[str], target: Sequence[str]) -> np.ndarray:
    """Converts joints (..., V, C) from one order of joint names to another.

    Joints missing from the source become zeros: pass x, y and score together, so that their score is 0.
    """
    converted = np.zeros((*joints.shape[:-2], len(target), joints.shape[-1]), joints.dtype)
    shared = [name for name in target if name in source]
    at, of = ([names.index(name) for name in shared] for names in (target, source))
    converted[..., at, :] = joints[..., of, :]
    return converted
