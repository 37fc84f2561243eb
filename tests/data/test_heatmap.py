import numpy as np
import pytest

from lib.data.heatmap import joint_heatmaps, limb_flip_order, limb_heatmaps, with_mirrored_copy
from lib.data.skeletons import COCO17


@pytest.mark.parametrize('case', range(25))
def test_maps_equal_the_recorded_ones(golden, case):
    recorded = golden('heatmaps')
    assert recorded['num_cases'] == 25
    inputs = {name: recorded[f'h{case}_{name}'] for name in ('keypoint', 'score', 'img_shape', 'sigma', 'use_score')}
    limb = recorded[f'h{case}_with_limb']
    draw, tolerance = (limb_heatmaps, 2e-5) if limb else (joint_heatmaps, 2e-6)
    volume = draw(
        inputs['keypoint'],
        inputs['score'],
        img_shape=tuple(inputs['img_shape']),
        sigma=float(inputs['sigma']),
        use_score=bool(inputs['use_score']),
    )
    if recorded[f'h{case}_double']:
        volume = with_mirrored_copy(volume, limb_flip_order(COCO17) if limb else COCO17.flip_order)
    assert volume.dtype == np.float32
    np.testing.assert_allclose(volume, recorded[f'h{case}_out'], rtol=0, atol=tolerance)


@pytest.mark.parametrize('clip', ['e0', 'e1', 'e2', 'e3', 'tr0', 'tr1'])
def test_volumes_equal_those_of_the_whole_pipeline(golden, clip):
    recorded = golden('end_to_end')
    keypoint = recorded[f'{clip}_kp56']
    score = recorded.get(f'{clip}_score56')
    if score is None:
        score = recorded[f'{clip}_score'][:, recorded[f'{clip}_frame_inds']]
    for kind, draw, tolerance in (('kp', joint_heatmaps, 2e-6), ('limb', limb_heatmaps, 2e-5)):
        if f'{clip}_{kind}_shape' in recorded:
            expected = np.zeros(recorded[f'{clip}_{kind}_shape'], np.float32)
            expected.flat[np.cumsum(recorded[f'{clip}_{kind}_nz_index_diff'])] = recorded[f'{clip}_{kind}_nz_value']
            volume = draw(keypoint, score, img_shape=(56, 56)).swapaxes(0, 1)  # the recorded one is (1,V,T,H,W)
            np.testing.assert_allclose(volume, expected[0], rtol=0, atol=tolerance)


def one_joint(x, y, size=8):
    keypoint = np.zeros((1, 1, 17, 2), np.float32)
    score = np.zeros((1, 1, 17), np.float32)
    keypoint[0, 0, 0] = x, y
    score[0, 0, 0] = 1
    return joint_heatmaps(keypoint, score, img_shape=(size, size))[0, 0]


def test_int_truncates_toward_zero_at_the_left_border():
    # -2.5 + 1.8 = -0.7 becomes 0, so that pixel 0 is drawn though it is more than 3 sigma away.
    assert one_joint(-2.5, 4)[4, 0] == pytest.approx(np.exp(-(2.5**2) / 0.72))
    assert not one_joint(-2.9, 4).any()


def test_huge_coordinates_draw_nothing():
    for x, y in [(1e30, 4), (-1e30, 4), (4, 1e30)]:
        assert not one_joint(x, y).any()


def test_unknown_limbs_are_refused():
    with pytest.raises(ValueError, match='no skeleton with 5 joints'):
        limb_heatmaps(np.zeros((1, 1, 5, 2)), np.zeros((1, 1, 5)), img_shape=(8, 8))
