import numpy as np
import pytest

from lib.data.skeletons import COCO17
from tests.heatmaps import CLIPS, TOLERANCE, recorded_cases, recorded_volumes
from tests.oracle import heatmaps, limb_flip_order, with_mirrored_copy


def test_maps_equal_the_recorded_ones(golden):
    for case, recorded in recorded_cases(golden):
        kind = 'limb' if recorded['with_limb'] else 'joint'
        volume = heatmaps(
            recorded['keypoint'],
            recorded['score'],
            kind=kind,
            img_shape=tuple(recorded['img_shape']),
            sigma=float(recorded['sigma']),
            use_score=bool(recorded['use_score']),
        )
        if recorded['double']:
            volume = with_mirrored_copy(volume, limb_flip_order(COCO17) if kind == 'limb' else COCO17.flip_order)
        assert volume.dtype == np.float32
        np.testing.assert_allclose(volume, recorded['out'], rtol=0, atol=TOLERANCE[kind], err_msg=f'case {case}')


@pytest.mark.parametrize('clip', CLIPS)
def test_volumes_equal_those_of_the_whole_pipeline(golden, clip):
    for kind, keypoint, score, expected in recorded_volumes(golden, clip):
        volume = heatmaps(keypoint, score, kind=kind, img_shape=(56, 56))
        np.testing.assert_allclose(volume, expected, rtol=0, atol=TOLERANCE[kind])


def one_joint(x: float, y: float, size: int = 8) -> np.ndarray:
    keypoint = np.zeros((1, 1, 17, 2), np.float32)
    score = np.zeros((1, 1, 17), np.float32)
    keypoint[0, 0, 0] = x, y
    score[0, 0, 0] = 1
    return heatmaps(keypoint, score, img_shape=(size, size))[0, 0]


def test_int_truncates_toward_zero_at_the_left_border():
    # -2.5 + 1.8 = -0.7 becomes 0: pixel 0 is drawn although it is more than 3 sigma away.
    assert one_joint(-2.5, 4)[4, 0] == pytest.approx(np.exp(-(2.5**2) / 0.72))
    assert not one_joint(-2.9, 4).any()


def test_huge_coordinates_draw_nothing():
    for x, y in [(1e30, 4), (-1e30, 4), (4, 1e30)]:
        assert not one_joint(x, y).any()


def test_unknown_limbs_are_refused():
    with pytest.raises(ValueError, match='no skeleton with 5 joints'):
        heatmaps(np.zeros((1, 1, 5, 2)), np.zeros((1, 1, 5)), kind='limb', img_shape=(8, 8))
