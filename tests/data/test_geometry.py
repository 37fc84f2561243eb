import random

import numpy as np
import pytest

from lib.data.geometry import (
    CROP_ATTEMPTS,
    AffineMap,
    compact_box,
    crop_box,
    crop_size,
    extent,
    jitter,
    project,
    rotate,
    short_edge_shape,
)
from lib.data.skeletons import COCO17

AREA, RATIO = (0.56, 1.0), (3 / 4, 4 / 3)


def planes(keypoint: np.ndarray) -> np.ndarray:
    """Persons (M, T, V, C) of one clip -> (C, 1, M, T, V)."""
    return np.moveaxis(keypoint, -1, 0)[:, None]


def points(planes: np.ndarray) -> np.ndarray:
    """(C, 1, M, T, V) -> (M, T, V, C)."""
    return np.moveaxis(planes[:, 0], 0, -1)


def recorded_draws(np_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The draws behind a recorded crop: (1, attempts) each."""
    state = np.random.RandomState(np_seed)
    return state.random_sample(CROP_ATTEMPTS)[None], state.random_sample(CROP_ATTEMPTS)[None]


def replayed_crop_box(shape: np.ndarray, np_seed: int, py_seed: int) -> np.ndarray:
    size = crop_size(shape, *recorded_draws(np_seed), AREA, RATIO)
    (w, h), (image_h, image_w) = size[0], shape[0]
    generator = random.Random(py_seed)
    offset = [generator.randint(0, int(image_w - w)), generator.randint(0, int(image_h - h))]
    return crop_box(shape, size, (np.array([offset]) + 0.5) / (shape[:, ::-1] - size + 1))


def test_replays_every_recorded_stage(golden):
    g = golden('geometry')
    for i in range(int(g['num_cases'])):
        recorded = {key.removeprefix(f'c{i}_'): value for key, value in g.items() if key.startswith(f'c{i}_')}
        keypoint = np.nan_to_num(recorded['in_keypoint'].astype(np.float32))

        def check(affine, stage, keypoint=keypoint, recorded=recorded, i=i):
            np.testing.assert_array_equal(affine.shape[0], recorded[f'{stage}_img_shape'])
            moved = points(affine.apply(planes(keypoint)))
            assert moved.dtype == np.float32
            np.testing.assert_allclose(
                moved, recorded[f'{stage}_keypoint'], rtol=1e-6, atol=1e-3, err_msg=f'{i} {stage}'
            )

        shape = recorded['in_img_shape'][None].astype(np.int64)
        box = compact_box(*extent(planes(keypoint)), shape)
        h, w = shape[0]
        x1, y1, x2, y2 = box[0]
        np.testing.assert_allclose((x1 / w, y1 / h, (x2 - x1) / w, (y2 - y1) / h), recorded['s1compact_quadruple'])
        compact = AffineMap.identity(shape).compact(box)
        check(compact, 's1compact')
        check(compact.resize((56, 56)), 't2resize56')
        resized = compact.resize(short_edge_shape(compact.shape))
        check(resized, 's2resize64')
        crop = replayed_crop_box(resized.shape, int(recorded['crop_np_seed']), int(recorded['crop_py_seed']))
        np.testing.assert_array_equal(crop[0], recorded['crop_box'])
        cropped = resized.crop(crop)
        check(cropped, 's3crop')
        flipped = cropped.resize((56, 56)).flip(np.array([True]))
        check(flipped, 's4resize56')  # recorded after PYSKL mirrored x in place, before it swapped the joints
        flipped_keypoint = points(flipped.apply(planes(keypoint)))[:, :, COCO17.flip_order]
        np.testing.assert_allclose(flipped_keypoint, recorded['s5flip_keypoint'], rtol=1e-6, atol=1e-3)
        score = recorded['in_score'].astype(np.float32)[:, :, COCO17.flip_order]
        np.testing.assert_array_equal(score, recorded['s5flip_score'])


def test_replays_every_recorded_crop_box(golden):
    g = golden('geometry')
    for shape, box, seed in zip(g['box_img_shape'], g['box_xyxy'], g['box_seed'], strict=True):
        np.testing.assert_array_equal(replayed_crop_box(shape[None], int(seed), int(seed))[0], box)


def test_a_crop_that_never_fits_is_the_largest_centred_square():
    shape = np.array([[10, 101]])
    size = crop_size(shape, np.zeros((1, CROP_ATTEMPTS)), np.full((1, CROP_ATTEMPTS), 0.99), AREA, RATIO)
    np.testing.assert_array_equal(crop_box(shape, size, np.zeros((1, 2))), [[45, 0, 55, 10]])


def test_crop_corners_cover_all_places_evenly():
    shape, size = np.full((50_000, 2), (20, 30)), np.full((50_000, 2), (28, 18))
    corner = crop_box(shape, size, np.random.default_rng(0).random((50_000, 2)))[:, :2]
    for axis in (0, 1):
        np.testing.assert_allclose(np.bincount(corner[:, axis], minlength=3) / 50_000, 1 / 3, atol=0.01)


def random_clips(count: int, frames: int = 5) -> np.ndarray:
    """xy (2, N, 1, T, 17) float32 pixels; a tenth of the joints, and one whole frame, are missing."""
    rng = np.random.default_rng(3)
    xy = rng.uniform(300, 900, (2, count, 1, frames, 17)).astype(np.float32)
    xy[:, rng.random(xy.shape[1:]) < 0.1] = 0
    xy[:, 0, :, 0] = 0
    return xy


def test_rotating_back_is_the_identity_and_missing_joints_stay_missing():
    xy = random_clips(4)
    angle, centre = np.array([0.3, -0.2, 1.5, 0.0]), np.array([[600, 500], [0, 0], [100, 900], [5, 5]])
    turned = rotate(xy, angle, centre)
    assert turned.dtype == np.float32
    np.testing.assert_array_equal((turned == 0).all(0), (xy == 0).all(0))
    np.testing.assert_array_equal(turned[:, 3], xy[:, 3])
    quarter, present = rotate(xy, np.full(4, np.pi / 2), centre), (xy[:, 0] != 0).any(0)
    # From x towards y: a point right of the centre moves below it.
    x, y = xy[:, 0][:, present] - centre[0][:, None]
    np.testing.assert_allclose(quarter[:, 0][:, present], centre[0][:, None] + np.stack([-y, x]), atol=1e-3)
    back = rotate(turned, -angle, centre)
    assert np.abs(back - xy).max() <= 1e-6 * np.abs(xy).max()


def test_joint_noise_has_the_given_size_and_all_directions():
    xy = np.tile(random_clips(2, frames=1), (1, 1, 1, 4000, 1))
    xy[:, 0] = random_clips(1, frames=2)[:, :, :, 1:][:, 0]
    xy[:, 1] *= 3  # noise is relative to the size of the person
    moved = jitter(xy, 0.01, np.random.default_rng(0).random((3, *xy.shape[1:])))
    present = (xy != 0).any(0)
    np.testing.assert_array_equal((moved != 0).any(0), present)
    offset, joints = (moved - xy)[:, 1, 0], np.flatnonzero(present[1, 0, 0])  # (2, 4000, 17)
    diagonal = np.linalg.norm(np.ptp(xy[:, 1, 0, 0, joints], axis=1))
    distance = np.linalg.norm(offset[..., joints], axis=0) / diagonal
    assert np.sqrt((distance**2).mean()) == pytest.approx(0.01, rel=0.02)
    assert np.median(distance) == pytest.approx(0.6745 * 0.01, rel=0.02)  # of |N(0, sigma)|
    direction = np.arctan2(*offset[..., joints]).ravel()
    np.testing.assert_allclose(np.histogram(direction, 8, (-np.pi, np.pi))[0] / len(direction), 1 / 8, atol=0.01)
    one, other = joints[:2]  # each joint moves on its own
    assert abs(np.corrcoef(offset[0, :, one], offset[0, :, other])[0, 1]) < 0.05


def test_metres_are_projected_to_millimetres_from_the_given_side():
    joints = np.array([[0.5, 1.0, 2.0], [-0.5, -1.0, 3.0], [0, 0, 0], [0.0, 0.2, 0.0]], np.float16)
    xyz = np.tile(joints.T[:, None, None, None], (1, 3, 1, 1, 1))
    front, side, back = np.moveaxis(project(xyz, np.array([0, np.pi / 2, np.pi]))[:, :, 0, 0], 0, -1)
    np.testing.assert_allclose(front[:2], [[500, -1000], [-500, 1000]])
    np.testing.assert_allclose(side[:2], [[2000, -1000], [3000, 1000]], rtol=1e-6)
    np.testing.assert_allclose(back[:2], [[-500, -1000], [500, 1000]], rtol=1e-5)
    for seen in (front, side, back):
        assert not seen[2].any()  # missing
        np.testing.assert_allclose(seen[3], [0, -200], atol=0.1)
        assert seen[3].all()  # on the axis, but present
