"""Definition of heatmap volumes, shared by the renderers of both frameworks.

A joint map is the maximum over persons of `score * exp(-distance**2 / (2 * sigma**2))`, cut off 3 sigma from the joint.
A limb map uses the lower score of its two joints and the distance to the segment between them. After GeneratePoseTarget
of PYSKL (Duan et al., CVPR 2022, Apache-2.0).
"""

import math
from typing import Literal, get_args

from lib.data.skeletons import PICKLE_SKELETONS, skeleton_of
from lib.errors import check_values

Kind = Literal['joint', 'limb', 'both']  # kinds of maps in a volume

MIN_SCORE = 1e-3  # joints with a lower score are not drawn


def check_maps(size: int, sigma: float, kind: str) -> None:
    """Raises UserError if arguments of a renderer are out of range."""
    rules = {
        'size': (size >= 1, 'at least 1'),
        'sigma': (sigma > 0, 'above 0'),
        'kind': (kind in get_args(Kind), f'one of {", ".join(get_args(Kind))}'),
    }
    check_values('heatmap', {'size': size, 'sigma': sigma, 'kind': kind}, rules)


def window_width(size: int, sigma: float) -> int:
    """Largest width of a joint's window in pixels. Rounding may add one if 6 sigma is nearly an integer."""
    return min(math.floor(6 * sigma + 1e-3) + 2, size)


def num_maps(kind: Kind, num_joints: int) -> int:
    """Number of maps per frame for V = num_joints. Raises UserError if limbs are needed but unknown."""
    joints = 0 if kind == 'limb' else num_joints
    limbs = 0 if kind == 'joint' else len(skeleton_of(num_joints).limbs)
    return joints + limbs


def joints_with(kind: Kind, maps: int) -> list[int]:
    """Numbers of joints of the skeletons that have `maps` maps per frame."""
    return [v for v in PICKLE_SKELETONS if num_maps(kind, v) == maps]
