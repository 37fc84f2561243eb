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
    rotate,
    short_edge_shape,
    view,
)
from lib.data.skeletons import COCO17, H36M17, NTU25

AREA, RATIO = (0.56, 1.0), (3 / 4, 4 / 3)


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
        num_persons = np.array([len(keypoint)])
        clip_of = np.zeros(len(keypoint), int)

        def check(affine, stage, keypoint=keypoint, clip_of=clip_of, recorded=recorded, i=i):
            np.testing.assert_array_equal(affine.shape[0], recorded[f'{stage}_img_shape'])
            moved = affine.apply(keypoint, clip_of)
            assert moved.dtype == np.float32
            np.testing.assert_allclose(
                moved, recorded[f'{stage}_keypoint'], rtol=1e-6, atol=1e-3, err_msg=f'{i} {stage}'
            )

        shape = recorded['in_img_shape'][None].astype(np.int64)
        box = compact_box(*extent(keypoint, num_persons), shape)
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
        check(flipped, 's4resize56')  # recorded after PYSKL had mirrored x in place, before it exchanged the joints
        flipped_keypoint = flipped.apply(keypoint, clip_of)[:, :, COCO17.flip_order]
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


def random_persons(count: int, joints: int = 17, frames: int = 5) -> np.ndarray:
    """(P, L, V, 2) float32 pixels of which a tenth of the joints, and one whole frame, are missing."""
    rng = np.random.default_rng(3)
    keypoint = rng.uniform(300, 900, (count, frames, joints, 2)).astype(np.float32)
    keypoint[rng.random(keypoint.shape[:3]) < 0.1] = 0
    keypoint[0, 0] = 0
    return keypoint


def mirror(keypoint: np.ndarray, width: int, **how: bool) -> np.ndarray:
    shape = np.full((1, 2), width)
    flip = AffineMap.identity(shape).flip(np.array([True]), **how)
    return flip.apply(keypoint, np.zeros(len(keypoint), int))[:, :, COCO17.flip_order]


def test_flipping_twice_is_the_identity():
    keypoint = random_persons(4)
    once = mirror(keypoint, 1024)
    assert not np.allclose(once, keypoint, atol=1)
    np.testing.assert_allclose(mirror(once, 1024), keypoint, rtol=1e-6)


def test_rotating_back_is_the_identity_and_missing_joints_stay_missing():
    keypoint = random_persons(4)
    angle, centre = np.array([0.3, -0.2, 1.5, 0.0]), np.array([[600, 500], [0, 0], [100, 900], [5, 5]])
    turned = rotate(keypoint, angle, centre)
    assert turned.dtype == np.float32
    np.testing.assert_array_equal((turned == 0).all(-1), (keypoint == 0).all(-1))
    np.testing.assert_array_equal(turned[3], keypoint[3])
    quarter, present = rotate(keypoint, np.full(4, np.pi / 2), centre), (keypoint[0] != 0).any(-1)
    # x towards y: right of the centre becomes below it.
    expected = centre[0] + (keypoint[0][present] - centre[0]) @ [[0, 1], [-1, 0]]
    np.testing.assert_allclose(quarter[0][present], expected, atol=1e-3)
    back = rotate(turned, -angle, centre)
    assert np.abs(back - keypoint).max() <= 1e-6 * np.abs(keypoint).max()


def test_joint_noise_has_the_given_size_and_all_directions():
    rng = np.random.default_rng(0)
    keypoint = np.tile(random_persons(2, frames=1), (1, 4000, 1, 1))
    keypoint[1] *= 3  # the person's own size counts
    moved = jitter(keypoint, 0.01, rng.random((*keypoint.shape[:3], 3)))
    there = (keypoint != 0).any(-1)
    np.testing.assert_array_equal((moved != 0).any(-1), there)
    offset = (moved - keypoint)[1]
    box = keypoint[1, 0][there[1, 0]]
    diagonal = np.linalg.norm(np.ptp(box, axis=0))
    distance = np.linalg.norm(offset[there[1]], axis=-1) / diagonal
    assert np.sqrt((distance**2).mean()) == pytest.approx(0.01, rel=0.02)
    assert np.median(distance) == pytest.approx(0.6745 * 0.01, rel=0.02)  # of |N(0, sigma)|
    direction = np.arctan2(offset[there[1]][:, 1], offset[there[1]][:, 0])
    np.testing.assert_allclose(np.histogram(direction, 8, (-np.pi, np.pi))[0] / len(direction), 1 / 8, atol=0.01)
    joints = np.flatnonzero(there[1, 0])[:2]  # each joint moves on its own
    assert abs(np.corrcoef(offset[:, joints[0], 0], offset[:, joints[1], 0])[0, 1]) < 0.05


def test_view_projects_metres_to_millimetres_from_the_given_side():
    joints = np.array([[0.5, 1.0, 2.0], [-0.5, -1.0, 3.0], [0, 0, 0], [0.0, 0.2, 0.0]], np.float16)
    seen = view(np.tile(joints, (3, 1, 1, 1)), np.array([0, np.pi / 2, np.pi]))
    front, side, back = seen[:, 0]
    np.testing.assert_allclose(front[:2], [[500, -1000], [-500, 1000]])
    np.testing.assert_allclose(side[:2], [[2000, -1000], [3000, 1000]], rtol=1e-6)
    np.testing.assert_allclose(back[:2], [[-500, -1000], [500, 1000]], rtol=1e-5)
    assert not seen[:, 0, 2].any()  # missing
    np.testing.assert_allclose(seen[:, 0, 3], [[0, -200]] * 3, atol=0.1)
    assert seen[:, 0, 3].all()  # on the axis, but there


@pytest.mark.parametrize('skeleton', [COCO17, NTU25, H36M17], ids=lambda s: s.name)
def test_left_and_right_joints_correspond(skeleton):
    for left, right in zip(skeleton.left, skeleton.right, strict=True):
        assert skeleton.joints[left].replace('left', 'right') == skeleton.joints[right]
        assert skeleton.joints[left] != skeleton.joints[right]
    np.testing.assert_array_equal(skeleton.flip_order[skeleton.flip_order], np.arange(len(skeleton.joints)))
    # Mirrored, the set of limbs is the same (COCO's nose-to-shoulder limbs included).
    mirrored = {frozenset(int(skeleton.flip_order[j]) for j in limb) for limb in skeleton.limbs}
    assert mirrored == {frozenset(limb) for limb in skeleton.limbs}
