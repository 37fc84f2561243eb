import numpy as np
import pytest

from lib.data.sampling import (
    ClipRandom,
    clip_frames,
    epoch_order,
    evaluation_frames,
    resampled_frames,
    train_frames,
)


def test_replays_every_recorded_case(golden):
    g = golden('sampling')
    for (clip_len, num_clips, total, test, seed, offset, length), probe in zip(g['cases'], g['probe'], strict=True):
        random = np.random.RandomState(seed)
        frames = clip_frames(total, clip_len, num_clips, random, bool(test))
        np.testing.assert_array_equal(frames, g['indices'][offset : offset + length])
        assert random.random_sample() == probe
        if test:
            np.testing.assert_array_equal(evaluation_frames(int(total), int(clip_len), int(num_clips)), frames)


@pytest.mark.parametrize('total', [1, 7, 47, 48, 60, 95, 96, 97, 300])
def test_batched_sampler_equals_the_single_one_for_equal_choices(total):
    L, random = 48, np.random.RandomState(total)
    expected = clip_frames(total, L, 1, np.random.RandomState(total), test=False)
    random.rand()
    draws = np.full((1, L + 1), 0.5)
    if total < L:
        draws[:, 0] = (random.randint(0, total) + 0.5) / total
    elif total < 2 * L:
        draws[:, random.choice(L + 1, total - L, replace=False)] = 0.1
    else:
        sizes = np.diff(np.arange(L + 1) * total // L)
        draws[0, :L] = (random.randint(sizes) + 0.5) / sizes
    np.testing.assert_array_equal(train_frames(np.array([total]), L, draws)[0], expected)


@pytest.mark.parametrize('total', [5, 12, 23])
def test_batched_sampler_has_the_distribution_of_the_single_one(total):
    L, count = 10, 20_000
    ours = train_frames(np.full(count, total), L, ClipRandom(0, 0, np.arange(count)).uniform(L + 1))
    random = np.random.RandomState(0)
    theirs = np.stack([clip_frames(total, L, 1, random, test=False) for _ in range(count)])
    for part in range(L):
        share, expected = (np.bincount(x[:, part], minlength=total) / count for x in (ours, theirs))
        np.testing.assert_allclose(share, expected, atol=0.02)  # over 4 standard errors


def test_frames_stay_inside_the_clip_for_extreme_draws():
    total = np.array([1, 30, 48, 70, 96, 300])
    for draw in (0.0, np.nextafter(1, 0)):
        frames = train_frames(total, 48, np.full((len(total), 49), draw))
        assert (frames >= 0).all()
        assert (frames < total[:, None]).all()


def test_draws_are_a_function_of_seed_epoch_and_clip():
    clips = np.array([5, 900, 17])
    draws = ClipRandom(1, 2, clips).uniform(8)
    random = ClipRandom(1, 2, clips[1:2])
    np.testing.assert_array_equal(np.hstack([random.uniform(3), random.uniform(5)])[0], draws[1])
    for seed, epoch in ((1, 3), (2, 2), (2, 1)):
        assert not np.intersect1d(ClipRandom(seed, epoch, clips).uniform(8), draws).size


def test_draws_are_uniform_and_independent():
    draws = ClipRandom(3, 4, np.arange(40_000)).uniform(6)
    for column in draws.T:
        np.testing.assert_allclose(np.histogram(column, 20, (0, 1))[0] / len(column), 1 / 20, atol=0.006)
    np.testing.assert_allclose(np.corrcoef(draws.T), np.eye(6), atol=0.025)
    along_clips = np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]
    along_epochs = np.corrcoef(draws[:, 0], ClipRandom(3, 5, np.arange(40_000)).uniform(1)[:, 0])[0, 1]
    assert abs(along_clips) < 0.025
    assert abs(along_epochs) < 0.025


def test_every_epoch_has_its_own_order():
    orders = [epoch_order(seed, epoch, 100) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    np.testing.assert_array_equal(epoch_order(0, 1, 100), orders[1])


def test_replays_every_recorded_resampling(golden):
    g = golden('mb_preprocess')
    for (total, clip_len), frames in zip(g['resample_test_cases'], g['resample_test_idx'], strict=True):
        np.testing.assert_array_equal(resampled_frames(np.array([total]), int(clip_len), None)[0], frames[:clip_len])
    for (total, clip_len, seed), frames in zip(g['resample_train_cases'], g['resample_train_idx'], strict=True):
        random = np.random.RandomState(seed)
        # randint(2) = 1 selects the frame before: a draw of at least .5
        draws = random.randint(2, size=clip_len) / 2 if total < clip_len else random.random_sample(clip_len)
        taken = resampled_frames(np.array([total]), int(clip_len), draws[None])[0]
        np.testing.assert_array_equal(taken, frames[:clip_len])


def test_resampling_a_batch_equals_resampling_its_clips():
    total, draws = np.array([1, 10, 47, 48, 49, 300]), np.random.default_rng(0).random((6, 48))
    for some in (draws, None):
        one_by_one = [
            resampled_frames(total[i : i + 1], 48, None if some is None else some[i : i + 1]) for i in range(6)
        ]
        np.testing.assert_array_equal(resampled_frames(total, 48, some), np.concatenate(one_by_one))


@pytest.mark.parametrize('clip_len', [1, 48, 243])
@pytest.mark.parametrize('draw', [0.0, 0.4, 0.5, np.nextafter(1, 0)])
def test_resampled_frames_rise_and_stay_inside_the_clip(clip_len, draw):
    total = np.array([1, 2, 47, 48, 49, 242, 243, 300])
    frames = resampled_frames(total, clip_len, np.full((len(total), clip_len), draw))
    assert frames.shape == (len(total), clip_len)
    assert frames.dtype == np.int64
    assert (frames >= 0).all()
    assert (frames < total[:, None]).all()
    assert (np.diff(frames, axis=1) >= 0).all()
