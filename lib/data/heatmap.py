"""Size and maps of a heatmap volume, for the renderers of both frameworks.

A joint map holds, for a joint and a frame, the maximum over persons of `score * exp(-distance**2 / (2 * sigma**2))`,
cut off 3 sigma from the joint; a limb map likewise, with the lower of two scores and the distance to the segment
between two joints. After GeneratePoseTarget of PYSKL (Duan et al., CVPR 2022, Apache-2.0).
"""

from typing import Literal, get_args

from lib.data.skeletons import skeleton_of
from lib.errors import check_values

Kind = Literal['joint', 'limb', 'both']  # of a volume's maps

MIN_SCORE = 1e-3  # points with less are not drawn


def check_maps(size: int, sigma: float, kind: str) -> None:
    """Raises UserError for arguments out of range; they are those of the renderers."""
    rules = {
        'size': (size >= 1, 'at least 1'),
        'sigma': (sigma > 0, 'above 0'),
        'kind': (kind in get_args(Kind), f'one of {", ".join(get_args(Kind))}'),
    }
    check_values('heatmap', {'size': size, 'sigma': sigma, 'kind': kind}, rules)


def num_maps(kind: Kind, num_joints: int) -> int:
    """Maps per frame for a skeleton with V = num_joints. Raises UserError if its limbs are not known."""
    joints = 0 if kind == 'limb' else num_joints
    limbs = 0 if kind == 'joint' else len(skeleton_of(num_joints).limbs)
    return joints + limbs
