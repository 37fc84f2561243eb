import numpy as np
import pytest

from lib.data.keypoints import (
    MOVE_ANGLE,
    MOVE_SCALE,
    MOVE_SHIFT,
    MOVES_2D,
    MOVES_3D,
    centre,
    centre_and_scale,
    crop_scale,
    identity_swaps,
    random_move,
    to_camera,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def exchanged(keypoint: np.ndarray, swapped: np.ndarray) -> np.ndarray:
    """The two persons of keypoint (2, T, V, C), exchanged in the frames `swapped` (T,)."""
    return np.where(swapped[:, None, None], keypoint[::-1], keypoint)


def test_camera_coordinates_are_bit_identical_to_motionberts(golden):
    """The steps that follow are compared in test_clips.py."""
    g = golden('mb_preprocess')
    for i in range(int(g['num_cases'])):
        keypoint, img_shape = g[f'p{i}_keypoint'], g[f'p{i}_img_shape']
        found = to_camera(keypoint, np.tile(img_shape, (len(keypoint), 1)))
        np.testing.assert_array_equal(found, g[f'p{i}_cam'], strict=True)


def walks(rng: np.random.Generator, total_frames: int) -> np.ndarray:
    """Two persons far from each other who move little, (2, T, 17, 2)."""
    steps = 0.01 * rng.standard_normal((2, total_frames, 17, 2))
    return (np.cumsum(steps, axis=1) + np.array([-5, 5])[:, None, None, None]).astype(np.float32)


def test_mixed_up_identities_are_corrected_clip_by_clip(rng):
    total_frames = np.array([30, 1, 25, 2, 40])
    clips = [walks(rng, count) for count in total_frames]
    mixed_up = [rng.random(count) < 0.5 for count in total_frames]
    for mixed, first in zip(mixed_up, (False, True, True, False, True), strict=True):
        mixed[0] = first
    mixed_up[3][1] = True
    given = [exchanged(clip, mixed) for clip, mixed in zip(clips, mixed_up, strict=True)]
    swapped = identity_swaps(*np.concatenate(given, axis=1), total_frames)
    # The first frame of a clip defines the identities, independent of the previous clip.
    np.testing.assert_array_equal(swapped, np.concatenate([mixed ^ mixed[0] for mixed in mixed_up]))
    assert swapped.any()


def test_equal_motions_swap_no_identities():
    still = np.ones((5, 17, 2), np.float32)
    assert not identity_swaps(still, still, np.array([5])).any()


def random_motion(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 2, 6, 17, 3) float32, x and y within [-3, 4], some points without a score."""
    motion = rng.random((count, 2, 6, 17, 3), np.float32)
    motion[..., :2] = motion[..., :2] * 7 - 3
    motion[..., 2] *= rng.random(motion.shape[:-1]) < 0.5
    return motion


def test_a_clip_without_a_box_becomes_zeros_and_its_neighbours_do_not(rng):
    motion = random_motion(rng, 4)
    motion[0, ..., 2] = 0
    motion[0, 0, 0, :3, 2] = 0.9  # three points
    motion[1, ..., 2] = 0
    motion[1, 0, 0, :4, 2] = 0.9  # four
    motion[2, ..., :2] = (0.3, 0.4)
    motion[3, ..., 2] = 7
    cropped = crop_scale(motion, np.full(4, 2.0))
    assert [bool(clip.any()) for clip in cropped] == [False, True, False, True]
    assert (cropped[3, ..., 2] == 1).all()
    assert np.isfinite(cropped).all()


def clip_with(rng: np.random.Generator, C: int, L: int = 9) -> np.ndarray:
    return (2 * rng.random((3, 2, L, 17, C)) - 1).astype(np.float32)


@pytest.mark.parametrize('L', [1, 2, 9])
def test_2d_moves_equal_those_of_motionbert_frame_by_frame(rng, L):
    keypoint, draws = clip_with(rng, 2, L), rng.random((3, MOVES_2D, 2))
    moved = random_move(keypoint, draws)
    for i, (angle, scale, x, y) in enumerate(draws):
        a = np.deg2rad(np.linspace(*(20 * angle - 10), L))
        s = np.linspace(*(0.9 + 0.2 * scale), L)
        shift = np.stack([np.linspace(*(0.2 * x - 0.1), L), np.linspace(*(0.2 * y - 0.1), L)], 1)
        for t in range(L):
            theta = np.array([[np.cos(a[t]) * s[t], -np.sin(a[t]) * s[t]], [np.sin(a[t]) * s[t], np.cos(a[t]) * s[t]]])
            expected = keypoint[i, :, t] @ theta.T + shift[t]
            np.testing.assert_allclose(moved[i, :, t], expected, atol=1e-6)


@pytest.mark.parametrize(('axis', 'a', 'b'), [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_3d_rotations_keep_their_axis_and_all_lengths(rng, axis, a, b):
    keypoint = clip_with(rng, 3)
    draws = np.full((3, MOVES_3D, 2), 0.5)
    draws[:, axis] = (0, 1)  # from -10 to 10 degrees
    draws[:, 3] = 1
    moved = random_move(keypoint, draws) / MOVE_SCALE[1]
    np.testing.assert_allclose(np.linalg.norm(moved, axis=-1), np.linalg.norm(keypoint, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(moved[..., axis], keypoint[..., axis], atol=1e-6)
    turned = np.angle((moved[..., a] + 1j * moved[..., b]) / (keypoint[..., a] + 1j * keypoint[..., b]), deg=True)
    expected = np.linspace(-MOVE_ANGLE, MOVE_ANGLE, 9)[None, None, :, None]
    np.testing.assert_allclose(turned, np.broadcast_to(expected, turned.shape), atol=0.01)


def test_3d_moves_rotate_about_x_then_y_then_z_then_scale_and_shift(rng):
    keypoint, draws = clip_with(rng, 3), rng.random((3, MOVES_3D, 2))
    step_by_step = keypoint
    for parts in ([0], [1], [2], [3, 4, 5, 6]):
        one = np.full((3, MOVES_3D, 2), 0.5)  # the identity
        one[:, parts] = draws[:, parts]
        step_by_step = random_move(step_by_step, one)
    np.testing.assert_allclose(random_move(keypoint, draws), step_by_step, atol=1e-6)
    shift, scale = (MOVE_SHIFT * (2 * draws[..., -3:, 0] - 1), 0.9 + 0.2 * draws[:, 3, 0])
    draws[:, :3] = 0.5
    expected = keypoint[:, :, 0] * scale[:, None, None, None] + shift[:, None, None]
    np.testing.assert_allclose(random_move(keypoint, draws)[:, :, 0], expected, atol=1e-6)


def kinect_clips(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints (4, 2, 5, 25, 3) in metres, and the present joints.

    Person 0 has no spine base in frames 0, 1 and 3 of clip 1, and is absent from clip 2.
    """
    keypoint = (rng.random((4, 2, 5, 25, 3)) + np.array([0, 0, 3])).astype(np.float32)
    present = rng.random(keypoint.shape[:-1]) < 0.9
    present[:, 0, :, 0] = [[1] * 5, [0, 0, 1, 0, 1], [0] * 5, [1] * 5]
    present[2, 0] = False
    return keypoint * present[..., None], present


def test_kinect_clips_are_centred_on_the_spine_of_person_0_and_scaled_once(rng):
    keypoint, present = kinect_clips(rng)
    centred = centre_and_scale(keypoint, present)
    np.testing.assert_array_equal(centred[[0, 1, 3], 0, [0, 2, 0], 0], 0)
    for i, base in enumerate((keypoint[0, 0, 0, 0], keypoint[1, 0, 2, 0], np.zeros(3), keypoint[3, 0, 0, 0])):
        there = keypoint[i][present[i]]
        side = np.ptp(there, axis=0).max()
        np.testing.assert_allclose(centred[i][present[i]], (there - base) / side, atol=1e-6)
        np.testing.assert_allclose(np.ptp(centred[i][present[i]], axis=0).max(), 1, rtol=1e-5)


def test_missing_kinect_joints_stay_exactly_zero(rng):
    keypoint, present = kinect_clips(rng)
    keypoint[~present] = 1e6  # an arbitrary value
    centred = centre_and_scale(keypoint, present)
    np.testing.assert_array_equal(centred[~present], 0)
    np.testing.assert_array_equal(centred, centre_and_scale(keypoint * present[..., None], present))


def test_kinect_clips_without_extent_are_zeros_and_their_neighbours_are_not(rng):
    keypoint, present = kinect_clips(rng)
    present[0] = False
    present[3] = False
    present[3, 1, 4, 7] = True  # one joint
    centred = centre_and_scale(keypoint, present)
    assert [bool(clip.any()) for clip in centred] == [False, True, True, False]
    assert np.isfinite(centred).all()


# --- MAMP ------------------------------------------------------------------------------------------------------------


def test_mamp_centres_on_the_middle_of_the_spine_of_person_0_in_its_first_frame(rng):
    keypoint = kinect_clips(rng)[0]
    keypoint[:, 0, :, 1] = rng.random((4, 5, 3)) * np.array([[1] * 5, [0, 0, 1, 0, 1], [0] * 5, [1] * 5])[..., None]
    present = (keypoint != 0).any(-1)
    centred = centre(keypoint)
    for i, origin in enumerate((keypoint[0, 0, 0, 1], keypoint[1, 0, 2, 1], np.zeros(3), keypoint[3, 0, 0, 1])):
        np.testing.assert_array_equal(centred[i], np.where(present[i][..., None], keypoint[i] - origin, 0))
    assert centred.dtype == np.float32
