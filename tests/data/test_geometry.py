import random

import numpy as np
import pytest

from lib.data.geometry import CROP_ATTEMPTS, AffineMap, compact_box, crop_box, crop_size, extent, short_edge_shape
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


def test_a_crop_that_never_fits_is_the_largest_square_in_the_middle():
    shape = np.array([[10, 101]])
    size = crop_size(shape, np.zeros((1, CROP_ATTEMPTS)), np.full((1, CROP_ATTEMPTS), 0.99), AREA, RATIO)
    np.testing.assert_array_equal(crop_box(shape, size, np.zeros((1, 2))), [[45, 0, 55, 10]])


def test_crop_corners_cover_all_places_evenly():
    shape, size = np.full((50_000, 2), (20, 30)), np.full((50_000, 2), (28, 18))
    corner = crop_box(shape, size, np.random.default_rng(0).random((50_000, 2)))[:, :2]
    for axis in (0, 1):
        np.testing.assert_allclose(np.bincount(corner[:, axis], minlength=3) / 50_000, 1 / 3, atol=0.01)


def test_extent_ignores_missing_coordinates_and_joins_the_persons_of_a_clip():
    keypoint = np.zeros((3, 2, 4, 2), np.float32)  # clip 0 has persons 0 and 1, clip 1 person 2 (nothing there)
    keypoint[0, 0, 0], keypoint[0, 1, 3], keypoint[1, 1, 2] = (5, 0), (9, 7), (-2, 30)
    lowest, highest = extent(keypoint, np.array([2, 1]))
    np.testing.assert_array_equal(lowest, [[-2, 7], [np.inf, np.inf]])
    np.testing.assert_array_equal(highest, [[9, 30], [-np.inf, -np.inf]])


def test_stages_of_a_batch_do_not_mix_its_clips(golden):
    g = golden('geometry')
    cases = range(int(g['num_cases']))
    keypoints = [np.nan_to_num(g[f'c{i}_in_keypoint'].astype(np.float32)) for i in cases]
    num_persons = np.array([len(k) for k in keypoints])
    shape = np.stack([g[f'c{i}_in_img_shape'] for i in cases]).astype(np.int64)
    keypoint = np.concatenate(keypoints)
    compact = AffineMap.identity(shape).compact(compact_box(*extent(keypoint, num_persons), shape))
    moved = compact.resize((56, 56)).apply(keypoint, np.repeat(np.arange(len(num_persons)), num_persons))
    expected = np.concatenate([g[f'c{i}_t2resize56_keypoint'] for i in cases])
    np.testing.assert_allclose(moved, expected, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize('skeleton', [COCO17, NTU25, H36M17], ids=lambda s: s.name)
def test_left_and_right_are_partners(skeleton):
    for left, right in zip(skeleton.left, skeleton.right, strict=True):
        assert skeleton.joints[left].replace('left', 'right') == skeleton.joints[right]
        assert skeleton.joints[left] != skeleton.joints[right]
    np.testing.assert_array_equal(skeleton.flip_order[skeleton.flip_order], np.arange(len(skeleton.joints)))
    # Mirrored, the set of limbs is the same (COCO's nose-to-shoulder limbs included).
    mirrored = {frozenset(int(skeleton.flip_order[j]) for j in limb) for limb in skeleton.limbs}
    assert mirrored == {frozenset(limb) for limb in skeleton.limbs}
