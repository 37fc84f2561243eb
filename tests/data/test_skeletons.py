"""Joint layouts as written by their sources, left and right joints, and conversion by joint names."""

import numpy as np
import pytest

from lib.data.skeletons import COCO17, H36M17, LAYOUTS, NTU25, convert

# Names as the sources print them: OpenPose's doc/02_output.md, the README of Halpe-FullBody.
PRINTED = {
    'openpose18': 'Nose Neck RShoulder RElbow RWrist LShoulder LElbow LWrist RHip RKnee RAnkle LHip LKnee LAnkle REye '
    'LEye REar LEar',
    'body25': 'Nose Neck RShoulder RElbow RWrist LShoulder LElbow LWrist MidHip RHip RKnee RAnkle LHip LKnee LAnkle '
    'REye LEye REar LEar LBigToe LSmallToe LHeel RBigToe RSmallToe RHeel',
    'halpe26': 'Nose LEye REye LEar REar LShoulder RShoulder LElbow RElbow LWrist RWrist LHip RHip LKnee RKnee LAnkle '
    'RAnkle HeadTop Neck MidHip LBigToe RBigToe LSmallToe RSmallToe LHeel RHeel',
}
SIZES = {
    'coco17': 17, 'openpose18': 18, 'body25': 25, 'halpe26': 26, 'halpe136': 136, 'wholebody133': 133, 'ntu25': 25,
    'h36m17': 17, 'body25b': 25, 'blazepose33': 33,
}  # fmt: skip


def printed(name: str) -> str:
    """left_big_toe -> LBigToe."""
    parts = ''.join(part.capitalize() for part in name.split('_'))
    return parts.replace('Left', 'L').replace('Right', 'R')


@pytest.mark.parametrize('layout', PRINTED)
def test_joints_have_the_order_of_the_source(layout):
    assert [printed(name) for name in LAYOUTS[layout]] == PRINTED[layout].split()


def test_numbers_of_joints():
    assert {name: len(joints) for name, joints in LAYOUTS.items()} == SIZES
    assert all(len(set(joints)) == len(joints) for joints in LAYOUTS.values())
    assert (LAYOUTS['coco17'], LAYOUTS['ntu25'], LAYOUTS['h36m17']) == (COCO17.joints, NTU25.joints, H36M17.joints)


@pytest.mark.parametrize('skeleton', [COCO17, NTU25, H36M17], ids=lambda skeleton: skeleton.name)
def test_left_and_right_joints_and_limbs_correspond(skeleton):
    for left, right in zip(skeleton.left, skeleton.right, strict=True):
        assert skeleton.joints[left].replace('left', 'right') == skeleton.joints[right] != skeleton.joints[left]
    np.testing.assert_array_equal(skeleton.flip_order[skeleton.flip_order], np.arange(len(skeleton.joints)))
    mirrored = {frozenset(skeleton.flip_order[list(limb)].tolist()) for limb in skeleton.limbs}
    assert mirrored == set(map(frozenset, skeleton.limbs))


@pytest.mark.parametrize('source', LAYOUTS)
@pytest.mark.parametrize('target', ['coco17', 'body25', 'halpe136'])
def test_conversion_keeps_shared_joints_and_zeroes_the_others(source, target):
    joints = np.random.default_rng(0).uniform(1, 9, (2, 3, len(LAYOUTS[source]), 3)).astype(np.float32)
    there = convert(joints, source, target)
    assert there.shape == (2, 3, len(LAYOUTS[target]), 3)
    assert there.dtype == joints.dtype
    shared = np.array([name in LAYOUTS[target] for name in LAYOUTS[source]])
    back = convert(there, target, source)
    np.testing.assert_array_equal(back[:, :, shared], joints[:, :, shared])
    assert not back[:, :, ~shared].any()
    for i, name in enumerate(LAYOUTS[target]):
        if name in LAYOUTS[source]:
            np.testing.assert_array_equal(there[:, :, i], joints[:, :, LAYOUTS[source].index(name)])
        else:
            assert not there[:, :, i].any()
