"""Sampling and resizing of clips in time, and the random numbers of training.

N clips, T frames of a clip, L clip_len. Heatmap inputs use the uniform sampling of PoseC3D (Duan et al., CVPR 2022) as
implemented in PYSKL, keypoint inputs the resampling of MotionBERT (Zhu et al., ICCV 2023). With data.preparation mamp,
a part of the clip is resized linearly as in MAMP (Mao et al., ICCV 2023).
"""

import math
from functools import lru_cache

import numpy as np

TEST_SEED = 255  # as in PYSKL: test frames depend only on T, L and the number of clips
MAMP_MINIMUM = 64  # frames; MAMP does not crop training clips to fewer
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class ClipRandom:
    """Counter-based random numbers: a pure function of (seed, epoch, clip, index of the draw).

    The draws of a clip do not depend on the rest of its batch or on other batches, hence not on loader workers, ranks
    or interruptions. An augmentation that draws more shifts the later draws of the same clip. SplitMix64 (Steele et
    al., OOPSLA 2014) in counter mode.

    seed, epoch: any int. clip: (N,) int, indices of the clips in the store.
    """

    def __init__(self, seed: int, epoch: int, clip: np.ndarray) -> None:
        key = _mix(_mix(np.array([seed % 2**64], np.uint64)) + np.array([epoch % 2**64], np.uint64))
        self._start = _mix(key + clip.astype(np.uint64) * _GOLDEN)[:, None]
        self._drawn = 0

    def uniform(self, *shape: int) -> np.ndarray:
        """Next draws of each clip, (N, *shape) float64 in [0, 1)."""
        count = math.prod(shape)
        counter = np.arange(self._drawn + 1, self._drawn + count + 1, dtype=np.uint64)
        self._drawn += count
        bits = _mix(self._start + counter * _GOLDEN)
        bits >>= np.uint64(11)
        draws = bits.astype(np.float64)
        draws *= 2.0**-53
        return draws.reshape(-1, *shape)

    def symmetric(self, limit: float, *shape: int) -> np.ndarray:
        """Next draws of each clip, scaled to [-limit, limit): (N, *shape) float64."""
        return limit * (2 * self.uniform(*shape) - 1)


def _mix(bits: np.ndarray) -> np.ndarray:
    """Scrambles 64-bit numbers in place: allocating new arrays would cost more than the arithmetic."""
    shifted = bits >> np.uint64(30)
    bits ^= shifted
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= np.right_shift(bits, np.uint64(27), out=shifted)
    bits *= np.uint64(0x94D049BB133111EB)
    bits ^= np.right_shift(bits, np.uint64(31), out=shifted)
    return bits


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Random order of the clips in an epoch, (count,) int32, read-only."""
    order = np.arange(count, dtype=np.int32)  # the same order as `permutation`, with half the memory
    np.random.default_rng([seed % 2**64, epoch]).shuffle(order)
    order.flags.writeable = False
    return order


def train_frames(total_frames: np.ndarray, clip_len: int, draws: np.ndarray) -> np.ndarray:
    """Uniform sampling for training: one random frame from each of L equal parts of the clip.

    Clips shorter than 2 L skip T - L random frames; clips shorter than L start at a random frame and wrap around.
    total_frames: (N,) int. draws: (N, L + 1) in [0, 1). Returns (N, L) int64.
    """
    T, part = total_frames[:, None].astype(np.int64), np.arange(clip_len)
    start = (draws[:, :1] * T).astype(np.int64)
    wrapped = (start + part) % T

    # The T - L frames with the smallest draws.
    smallest_kept = np.take_along_axis(np.sort(draws, axis=1), np.clip(T - clip_len, 0, clip_len), axis=1)
    skipping = part + np.cumsum(draws < smallest_kept, axis=1)[:, :clip_len]

    first, last = part * T // clip_len, (part + 1) * T // clip_len
    one_per_part = first + (draws[:, :clip_len] * (last - first)).astype(np.int64)
    return np.where(clip_len > T, wrapped, np.where(2 * clip_len > T, skipping, one_per_part))


def shifted_frames(frames: np.ndarray, most: int, draws: np.ndarray) -> np.ndarray:
    """Rolls the frames (N, L) of each clip along time by up to `most` in either direction. draws: (N, 1) in [0, 1)."""
    shift = (draws * (2 * most + 1)).astype(np.int64) - most
    return np.take_along_axis(frames, (np.arange(frames.shape[1]) - shift) % frames.shape[1], axis=1)


def clip_frames(
    total_frames: int, clip_len: int, num_clips: int, random: np.random.RandomState, test: bool
) -> np.ndarray:
    """Uniform sampling of one annotation with exactly PYSKL's draws: (num_clips * L,) int64, clip by clip.

    In test mode PYSKL seeds the generator with TEST_SEED, see `evaluation_frames`.
    """
    T, L = total_frames, clip_len
    clips = []
    for i in range(num_clips):
        random.rand()  # PYSKL draws an interval ratio, without effect at p_interval = 1
        if T < L:
            start = (i if num_clips > T else i * T // num_clips) if test else random.randint(0, T)
            frames = start + np.arange(L)
        elif T < 2 * L:
            skipped = np.zeros(L + 1, np.int64)
            skipped[random.choice(L + 1, T - L, replace=False)] = 1
            frames = np.arange(L) + np.cumsum(skipped)[:L]
        else:
            edges = np.arange(L + 1) * T // L
            frames = edges[:L] + random.randint(np.diff(edges))
        clips.append(frames % T)
    return np.concatenate(clips)


@lru_cache(maxsize=4096)
def evaluation_frames(total_frames: int, clip_len: int, num_clips: int = 1) -> np.ndarray:
    """Frames of a test clip, (num_clips * L,) int64, cached and read-only."""
    frames = clip_frames(total_frames, clip_len, num_clips, np.random.RandomState(TEST_SEED), test=True)
    frames.flags.writeable = False
    return frames


def resampled_frames(total_frames: np.ndarray, clip_len: int, draws: np.ndarray | None) -> np.ndarray:
    """MotionBERT's resample: L frames at equally spaced positions of the clip, (N, L) int64.

    total_frames: (N,) int, at least 1. draws: None for testing, which rounds positions down; for training (N, L) in
    [0, 1), which select the frame before or after each position in clips shorter than L, and a random frame from each
    of L equal parts in all others.
    """
    T = total_frames[:, None].astype(np.int64)
    position = np.linspace(0, T[:, 0], clip_len, endpoint=False, axis=1)
    if draws is None:
        return position.astype(np.int64)
    either = np.sort(np.where(draws >= 0.5, np.floor(position), np.ceil(position)), axis=1)
    inside = position + draws * (T / clip_len)
    return np.minimum(np.where(clip_len > T, either, inside), T - 1).astype(np.int64)


def crop_in_time(
    total_frames: np.ndarray, share: np.ndarray | float, place: np.ndarray | None = None, least: int = MAMP_MINIMUM
) -> tuple[np.ndarray, np.ndarray]:
    """The part of each clip that MAMP keeps: its first frame and its number of frames, (N,) int64 each.

    total_frames: (N,) int. share: fraction to keep, (N,) or one for all. place: (N,) in [0, 1), where the part lies
    between the start and the end of the clip, for training; None: in the middle, for testing. least: frames that
    training keeps at least.
    """
    T = total_frames.astype(np.int64)
    if place is None:
        cut = ((1 - share) * T / 2).astype(np.int64)
        return cut, T - 2 * cut
    count = np.minimum(np.maximum((share * T).astype(np.int64), least), T)
    return (place * (T - count + 1)).astype(np.int64), count


def between_frames(first: np.ndarray, count: np.ndarray, clip_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Linear resampling of `count` frames from `first` on, (N,) int each, as by F.interpolate without align_corners.

    Returns the frames before and after each of the L new ones, (N, L) int64, and the weight of the latter, (N, L)
    float32.
    """
    first, last = first[:, None], (first + count - 1)[:, None]
    position = np.maximum((np.arange(clip_len) + 0.5) * (count / clip_len)[:, None] - 0.5, 0)
    before = position.astype(np.int64)
    weight = (position - before).astype(np.float32)
    return np.minimum(first + before, last), np.minimum(first + before + 1, last), weight


def interpolate(keypoint: np.ndarray, score: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints (N, M, L, V, C) and scores (N, M, L, V) between frames, float32.

    keypoint, score: those of the L frames before, then of the L frames after, (N, M, 2 * L, V, ...). weight: (N, L), of
    the latter. If a joint is missing in one of the two, those of the nearer frame.
    """
    (first, second), (score, second_score) = (np.split(a.astype(np.float32), 2, axis=2) for a in (keypoint, score))
    weight = np.broadcast_to(weight[:, None, :, None], score.shape)
    both = (first != 0).any(axis=-1) & (second != 0).any(axis=-1)
    weight = np.where(both, weight, weight >= 0.5).astype(np.float32)
    return first + (second - first) * weight[..., None], score + (second_score - score) * weight
