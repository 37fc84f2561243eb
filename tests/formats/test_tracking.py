import numpy as np
import pytest

from lib.data.pickles import load_annotations
from lib.formats.tracking import LONGEST_GAP, track

RANDOM = np.random.default_rng(0)
BODY = RANDOM.uniform([0, 0], [60, 200], (17, 2))


def walking(frames: int, start: float, speed: float, size: float = 1.0) -> np.ndarray:
    """A body (T, 17, 2) with swinging joints, from x = start at `speed` pixels per frame."""
    t = np.arange(frames)[:, None]
    swing = 8 * np.sin(t / 4 + np.arange(17)) * size
    return np.stack([size * BODY[:, 0] + start + speed * t + swing, size * BODY[:, 1] + 300 + 0 * t], axis=-1)


def seen(keypoint: np.ndarray, score: np.ndarray, present: np.ndarray, random: np.random.Generator) -> list:
    """Detections of persons (M, T, V, 2) that are present (M, T), in random order in each frame."""
    orders = [random.permutation(np.flatnonzero(there)) for there in present.T]
    return [(keypoint[order, t], score[order, t]) for t, order in enumerate(orders)]


def keeps_identities(keypoint: np.ndarray, score: np.ndarray, present: np.ndarray, random: np.random.Generator) -> bool:
    """Whether each track is exactly one person."""
    tracks = track(seen(keypoint, score, present, random))
    if len(tracks.keypoint) != len(keypoint) or tracks.left_out:
        return False
    expected = keypoint * present[..., None, None]
    is_of = (tracks.keypoint[:, None] == expected[None]).all(axis=(2, 3, 4))
    return bool((is_of.sum(axis=0) == 1).all() and (is_of.sum(axis=1) == 1).all())


def test_real_persons_keep_their_identities(motion):
    """With every tenth pose missing; 99.7 % of all 846 clips pass."""
    random, kept = np.random.default_rng(0), []
    for clip in load_annotations(motion('sbu_hrnet.pkl'))['annotations'][::8]:
        keypoint, score = (np.asarray(clip[key], np.float32) for key in ('keypoint', 'keypoint_score'))
        kept.append(keeps_identities(keypoint, score, random.random(keypoint.shape[:2]) >= 0.1, random))
    assert len(kept) > 100
    assert np.mean(kept) >= 0.97


@pytest.mark.parametrize('size', [0.2, 5.0])
def test_tracking_does_not_depend_on_the_distance(size):
    keypoint = np.stack([walking(30, 0, 4 * size, size), walking(30, 120 * size, -4 * size, size)]).astype(np.float32)
    keypoint[1, ..., 1] += 40 * size  # nearer to the camera: the bodies never coincide
    score = np.full(keypoint.shape[:3], 0.9, np.float32)
    assert keeps_identities(keypoint, score, np.ones((2, 30), bool), np.random.default_rng(1))


@pytest.mark.parametrize(('away', 'persons'), [(LONGEST_GAP - 1, 1), (LONGEST_GAP + 1, 2)])
def test_a_person_absent_for_long_is_a_new_one(away, persons):
    keypoint = walking(80, 100, 0)[None].astype(np.float32)
    present = np.ones((1, 80), bool)
    present[0, 20 : 20 + away] = False
    tracks = track(seen(keypoint, np.ones((1, 80, 17), np.float32), present, np.random.default_rng(0)))
    assert len(tracks.keypoint) == persons
    np.testing.assert_array_equal(tracks.score.any(axis=2).sum(axis=0), present[0])


@pytest.mark.parametrize(
    ('speed', 'away', 'back'),
    [(40, 3, 4 * 40), (20, 15, 30), (0, 25, 130)],
    ids=['ran on', 'walked, and stood behind something', 'went away, and came back beside it'],
)
def test_a_person_who_returns_elsewhere_is_the_same(speed, away, back):
    """speed: pixels per frame before. away: missed frames. back: pixels from the last position."""
    before, after = walking(20, 0, speed), walking(20, 19 * speed + back, 0)
    keypoint = np.concatenate([before, np.zeros((away, 17, 2)), after])[None].astype(np.float32)
    present = keypoint.any(axis=(2, 3))
    assert keeps_identities(keypoint, np.ones(keypoint.shape[:3], np.float32), present, np.random.default_rng(0))


def test_duplicate_detections_keep_the_better_pose():
    keypoint = walking(20, 100, 3).astype(np.float32)
    other = keypoint + RANDOM.normal(0, 4, keypoint.shape).astype(np.float32)
    score = np.full((20, 17), 0.8, np.float32)
    tracks = track([(np.stack([other[t], keypoint[t]]), np.stack([score[t] / 2, score[t]])) for t in range(20)])
    assert (len(tracks.keypoint), tracks.left_out) == (1, 0)
    np.testing.assert_array_equal(tracks.keypoint[0], keypoint)


def test_most_present_persons_come_first():
    keypoint = np.stack([walking(40, 500 * person, 1) for person in range(5)]).astype(np.float32)
    score = np.full(keypoint.shape[:3], 0.5, np.float32)
    score[3] = 0.9
    present = np.arange(40)[None] >= np.array([20, 0, 10, 5, 30])[:, None]
    frames = seen(keypoint, score, present, np.random.default_rng(0))
    tracks = track(frames, max_persons=3)
    assert tracks.left_out == 2
    for person, expected in zip(tracks.keypoint, (3, 1, 2), strict=True):
        np.testing.assert_array_equal(person, keypoint[expected] * present[expected, :, None, None])
    np.testing.assert_array_equal(tracks.score[0], score[3] * present[3, :, None])
    assert (len(track(frames).keypoint), track(frames).left_out) == (5, 0)


def test_missing_joints_do_not_matter():
    """Their coordinates are ignored and become zero."""
    keypoint = np.stack([walking(30, 0, 2), walking(30, 150, -2)]).astype(np.float32)
    score = (np.random.default_rng(2).random((2, 30, 17)) > 0.6).astype(np.float32)
    given = np.where(score[..., None] > 0, keypoint, 5000)
    frames = seen(given, score, np.ones((2, 30), bool), np.random.default_rng(0))
    tracks = track(frames)
    assert (len(tracks.keypoint), tracks.left_out) == (2, 0)
    np.testing.assert_array_equal(tracks.score.sum(), score.sum())
    assert {person.tobytes() for person in tracks.score} == {person.tobytes() for person in score}
    assert tracks.keypoint.max() < 5000


def test_frames_without_persons():
    nobody = (np.zeros((0, 17, 2), np.float32), np.zeros((0, 17), np.float32))
    unseen = (np.ones((1, 17, 2), np.float32), np.zeros((1, 17), np.float32))
    pose = walking(1, 100, 0)[:1].astype(np.float32)
    tracks = track([nobody, unseen, (pose, np.ones((1, 17))), nobody])
    assert tracks.keypoint.shape == (1, 4, 17, 2)
    assert (tracks.keypoint.dtype, tracks.score.dtype) == (np.float32, np.float32)
    np.testing.assert_array_equal(tracks.score.sum(axis=2), [[0, 0, 17, 0]])
    assert track([nobody] * 3).keypoint.shape == (0, 3, 17, 2)
    with pytest.raises(ValueError, match='no frames'):
        track([])
