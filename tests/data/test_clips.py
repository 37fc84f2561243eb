import tracemalloc

import numpy as np
import pytest
import torch

from lib.data.augmentation import Augmentation
from lib.data.clips import Clips
from lib.data.keypoints import MOVES_3D, random_move
from lib.data.sampling import ClipRandom, evaluation_frames
from lib.data.skeletons import COCO17
from tests.annotations import make_3d_annotations, make_annotations
from tests.oracle import heatmaps
from tests.stores import write_sparse_store

OPTIONS = {'benchmark': 'xsub', 'clip_len': 16, 'batch_size': 4, 'seed': 0}
# No random crop or flip. The box crop remains; missing joints move with it.
STILL = {'crop_area': (1.0, 1.0), 'crop_ratio': (1.0, 1.0), 'flip_ratio': 0.0}
AUG = {'rotation': 0.3, 'joint_noise': 0.01, 'temporal_shift': 5}


def clips(split, path, size=56, **changes):
    """changes: keys of the sections data and augmentation."""
    augmentation = {name: changes.pop(name) for name in vars(Augmentation()) if name in changes}
    return Clips(split, Augmentation(**augmentation), size, ann_file=str(path), **{**OPTIONS, **changes})


def whole_split(loaded, epoch=0):
    """All batches of a split, joined in the order of the clips' names."""
    names = [name for b in range(len(loaded)) for name in loaded.names(epoch, b)]
    batches = [loaded[epoch, b] for b in range(len(loaded))]
    return {key: np.concatenate([batch[key] for batch in batches])[np.argsort(names)] for key in batches[0]}


def copies(data, keypoint):
    """The same dataset with this keypoint in all clips."""
    for annotation in data['annotations']:
        annotation['keypoint'] = keypoint
    return data


@pytest.fixture
def mixed(write_pickle):
    """21 training and 11 validation clips of all three lengths, some with two persons."""
    lengths = [5, 16, 20, 31, 32, 100, 15] * 5
    return write_pickle(make_annotations(lengths[:32], persons=[1, 2, 1, 1] * 8))


def test_shapes_and_types_of_batches(mixed):
    for split, counts in {'train': [4] * 5, 'val': [4, 4, 3]}.items():
        loaded = clips(split, mixed)
        assert len(loaded) == len(counts)
        for b, count in enumerate(counts):
            batch = loaded[0, b]
            assert split == 'train' or (batch['keypoint'] == loaded[9, b]['keypoint']).all()  # each epoch is the same
            assert split == 'train' or ((batch['keypoint'] >= 0) & (batch['keypoint'] <= 56)).all()  # nobody is cut
            assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
                'keypoint': ((count, 2, 16, 17, 2), np.float32),
                'score': ((count, 2, 16, 17), np.float32),
                'label': ((count,), np.int64),
            }
            absent = loaded.store.num_persons[loaded.batch_indices(0, b)] == 1
            assert absent.any()
            assert not batch['keypoint'][absent, 1].any()
            assert not batch['score'][absent, 1].any()
            assert batch['score'][:, 0].all()
            assert batch['score'][~absent, 1].all()
    with pytest.raises(IndexError):
        loaded[0, len(loaded)]


def recorded_set(g, names):
    """A pickle's content: recorded clips, each in both splits."""
    annotations = [
        {'frame_dir': name, 'label': i, 'total_frames': g[f'{name}_score'].shape[1], 'keypoint': g[f'{name}_keypoint'],
         'keypoint_score': g[f'{name}_score'], 'img_shape': tuple(int(x) for x in g[f'{name}_img_shape'])}
        for i, name in enumerate(names)
    ]  # fmt: skip
    return {'split': {'xsub_train': names, 'xsub_val': names}, 'annotations': annotations}


def test_replays_the_test_pipeline_of_pyskl(golden, write_pickle):
    g, names = golden('end_to_end'), ['e0', 'e1', 'e2', 'e3']
    batch = clips('val', write_pickle(recorded_set(g, names)), clip_len=48)[0, 0]
    for i, name in enumerate(names):
        expected, frames = g[f'{name}_kp56'], g[f'{name}_frame_inds']
        np.testing.assert_array_equal(evaluation_frames(g[f'{name}_keypoint'].shape[1], 48), frames)
        np.testing.assert_allclose(batch['keypoint'][i, : len(expected)], expected, rtol=1e-6, atol=1e-3)
        score = g[f'{name}_score'][:, frames].astype(np.float32)
        np.testing.assert_array_equal(batch['score'][i, : len(expected)], score)


@pytest.mark.parametrize('case', ['tr0', 'tr1'])
def test_replays_the_train_pipeline_of_pyskl(golden, write_pickle, monkeypatch, case):
    data = recorded_set(golden('end_to_end'), [case])
    data['annotations'].append(data['annotations'][0] | {'frame_dir': 'other'})  # a batch of one clip is dropped
    data['split']['xsub_train'] = [case, 'other']
    g = {key.removeprefix(f'{case}_'): value for key, value in golden('end_to_end').items()}
    loaded = clips('train', write_pickle(data), clip_len=48, flip_ratio=float(g['flip']))
    monkeypatch.setattr(Clips, '_frames', lambda self, clip, random: np.tile(g['frame_inds'], (len(clip), 1)))
    monkeypatch.setattr(
        'lib.data.augmentation.random_crop_box', lambda shape, *_: np.tile(g['crop_box'], (len(shape), 1))
    )
    batch, persons = loaded[0, 0], len(g['kp56'])
    np.testing.assert_allclose(batch['keypoint'][0, :persons], g['kp56'], rtol=1e-6, atol=1e-3)
    np.testing.assert_array_equal(batch['score'][0, :persons], g['score56'])


@pytest.mark.parametrize('changes', [{}, AUG], ids=['plain', 'augmented'])
def test_a_clip_is_a_function_of_seed_epoch_and_clip(mixed, changes):
    def by_name(epoch, **more):
        loaded = clips('train', mixed, **changes, **more)
        asked = list(range(len(loaded)))[::-1]  # the order of requests does not matter
        return {
            name: keypoint
            for b in asked
            for name, keypoint in zip(loaded.names(epoch, b), loaded[epoch, b]['keypoint'], strict=True)
        }

    reference, other_batches = by_name(3), by_name(3, batch_size=7)
    assert len(reference) == 20  # 21 clips; the last batch would have one
    assert len(other_batches) == 21
    for name, keypoint in reference.items():
        np.testing.assert_array_equal(keypoint, other_batches[name])
    for other in (by_name(4), by_name(3, seed=1)):
        assert list(other) != list(reference)
        assert all((other[name] != reference[name]).any() for name in other.keys() & reference.keys())


def test_an_epoch_visits_every_clip_once(mixed):
    for split, epoch in (('train', 2), ('val', 0)):
        loaded = clips(split, mixed, batch_size=6)
        names = [name for b in range(len(loaded)) for name in loaded.names(epoch, b)]
        assert sorted(names) == sorted(loaded.store.name(i) for i in loaded.indices)


def test_training_draws_crops_and_mirrors_half_of_the_clips(write_pickle):
    # 400 copies of one clip: its left shoulder is left of the right one except in mirrored copies.
    data = make_annotations([40] * 603)
    keypoint = data['annotations'][0]['keypoint']
    keypoint[..., COCO17.left, 0] = 300 + keypoint[..., COCO17.left, 0] % 16
    keypoint[..., COCO17.right, 0] = 800 + keypoint[..., COCO17.right, 0] % 16
    path = write_pickle(copies(data, keypoint))

    def batch_of(**changes):
        return {key: value[:, 0] for key, value in clips('train', path, batch_size=402, **changes)[0, 0].items()
                if key != 'label'}  # fmt: skip

    def shoulder_width(keypoint):  # left and right joints are swapped too, so right stays right of left
        return keypoint[:, :, list(COCO17.right), 0].mean((1, 2)) - keypoint[:, :, list(COCO17.left), 0].mean((1, 2))

    batch, unflipped = batch_of(), batch_of(flip_ratio=0.0)
    mirrored = np.abs(unflipped['keypoint'] - batch['keypoint']).max((1, 2, 3)) > 1e-3
    assert 0.42 < mirrored.mean() < 0.58
    np.testing.assert_array_equal(batch['score'][mirrored], unflipped['score'][mirrored][:, :, COCO17.flip_order])
    np.testing.assert_array_equal(batch['score'][~mirrored], unflipped['score'][~mirrored])
    restored = 56 - batch['keypoint'][mirrored][:, :, list(COCO17.right), 0]
    np.testing.assert_allclose(unflipped['keypoint'][mirrored][:, :, list(COCO17.left), 0], restored, atol=1e-3)

    uncropped = batch_of(crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    magnified = shoulder_width(batch['keypoint']) / shoulder_width(uncropped['keypoint'])
    assert 1 <= magnified.min() < 1.1
    assert 1.4 < magnified.max() < 1.55  # 1 / sqrt(.56 * 3/4)


def test_max_persons_limits_the_persons(write_pickle):
    path = write_pickle(make_annotations([20] * 6, persons=[3] * 6))
    three, two = (clips('val', path, max_persons=m, flip_ratio=0)[0, 0] for m in (3, 2))
    assert three['keypoint'].shape[1] == 3
    assert two['score'].all()
    assert '2 have more than 2 persons' in clips('val', path).split_description


def test_index_and_shuffle_take_few_bytes_per_clip_and_a_batch_none(tmp_path):
    count = 300_000
    write_sparse_store(tmp_path / 'set.pkl', count)
    tracemalloc.start()
    try:
        loaded = clips('train', tmp_path / 'set.pkl')
        loaded.check_labels(60)
        loaded.batch_indices(0, 0)
        kept, _ = tracemalloc.get_traced_memory()
        loaded.batch_indices(1, 0)
        _, peak = tracemalloc.get_traced_memory()
        loaded[1, 0]  # imports and caches
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        loaded[1, 1]
        _, peak_of_batch = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 5 * count
    assert peak < 16 * count
    assert peak_of_batch - before < count


@pytest.mark.parametrize(
    'changes',
    [
        {'benchmark': 'xview'},
        {'benchmark': ['a']},
        {'clip_len': 0},
        {'batch_size': 0},
        {'flip_ratio': 1.5},
        {'crop_area': [0.9, 0.5]},
        {'rotation': -0.1},
        {'test_clips': 0},
        {'scale_range': [3.0, 1.0], 'input': 'keypoint_2d'},
        {'input': 'keypoints'},
    ],
)
def test_invalid_values_are_refused(mixed, changes):
    with pytest.raises(ValueError, match=rf'(data|augmentation)\.{next(iter(changes))}'):
        clips('val', mixed, **changes)


def test_benchmark_may_name_two_splits(write_pickle):
    data = make_annotations([20] * 6)
    names = [a['frame_dir'] for a in data['annotations']]
    data['split'] = {'train1': names[:4], 'test1': names[3:]}  # overlapping splits are allowed
    path = write_pickle(data)
    assert clips('train', path, benchmark=['train1', 'test1']).num_clips == 4
    assert clips('val', path, benchmark=['train1', 'test1']).num_clips == 3


def test_labels_beyond_the_model_are_refused(mixed):
    loaded = clips('train', mixed)
    loaded.check_labels(4)
    with pytest.raises(ValueError, match=r'S001C001P\d+R001A004 has label 3'):
        loaded.check_labels(3)


def test_pickles_that_do_not_fit_the_input_are_refused(write_pickle):
    with pytest.raises(ValueError, match='no skeleton with 9 joints'):
        clips('train', write_pickle(make_annotations([20] * 6, joints=9)))
    flat, deep = write_pickle(make_annotations([20] * 6)), write_pickle(make_3d_annotations([20] * 6), 'deep.pkl')
    for path, changes, message in (
        (deep, {'input': 'keypoint_2d'}, '2D pickle'),
        (flat, {'input': 'keypoint_3d'}, '3D pickle'),
    ):
        with pytest.raises(ValueError, match=message):
            clips('train', path, **changes)


# --- augmentation ----------------------------------------------------------------------------------------------------


def test_augmentation_leaves_missing_joints_missing(write_pickle):
    data = make_annotations([40] * 30, persons=[1, 2, 1] * 10)
    for annotation in data['annotations']:
        annotation['keypoint'][:, :, 3] = 0
        annotation['keypoint_score'][:, :, 3] = 0
        annotation['keypoint'][0, :5] = 0
    path = write_pickle(data)
    aug = {'rotation': 0.3, 'joint_noise': 0.01, **STILL}
    plain, augmented = (whole_split(clips('train', path, **changes)) for changes in (STILL, aug))
    missing = (plain['keypoint'] == 0).all(-1)
    assert missing[:, 0, :, 3].all()
    assert (missing[:, 0].all(-1)).any()
    np.testing.assert_array_equal((augmented['keypoint'] == 0).all(-1), missing)
    np.testing.assert_array_equal(augmented['score'], plain['score'])
    assert (augmented['keypoint'] != plain['keypoint'])[~missing].mean() > 0.99


def test_rotation_is_symmetric_about_the_middle_of_the_body(write_pickle):
    # The axis of a person standing upright is rotated by the drawn angle about its middle.
    person = np.random.default_rng(0).uniform([-60, -150], [60, 150], (17, 2))
    person[0], person[16] = (0, -150), (0, 150)
    keypoint = np.tile(np.add(person, (960, 540)).astype(np.float16), (1, 20, 1, 1))
    path = write_pickle(copies(make_annotations([20] * 600), keypoint))
    turned = whole_split(clips('train', path, rotation=0.3, batch_size=100, **STILL))['keypoint'][:, 0, 0]
    axis = turned[:, 16] - turned[:, 0]
    angle = np.arctan2(-axis[:, 0], axis[:, 1])
    assert 0.29 < np.abs(angle).max() < 0.305
    assert abs(angle.mean()) < 0.03
    np.testing.assert_allclose((turned[:, 16] + turned[:, 0]) / 2, 28, atol=3)
    still = whole_split(clips('val', path, rotation=0.3))['keypoint'][:, 0, 0]
    np.testing.assert_allclose(still[:, 16, 0], still[:, 0, 0], atol=0.01)  # no rotation in validation


def test_temporal_shift_rolls_time_and_keeps_every_frame_whole(write_pickle):
    path = write_pickle(make_annotations([16] * 300))  # as many frames as are sampled: each once, in order
    still, rolled = (
        whole_split(clips('train', path, temporal_shift=most, **STILL))['keypoint'][:, 0] for most in (0, 5)
    )
    shifts = []
    for before, after in zip(still, rolled, strict=True):
        found = [k for k in range(-5, 6) if np.array_equal(np.roll(before, k, axis=0), after)]
        assert len(found) == 1
        shifts += found
    assert set(shifts) == set(range(-5, 6))


# --- test-time views -------------------------------------------------------------------------------------------------


def test_ten_views_come_from_one_stream_of_the_seed(mixed):
    ten = clips('val', mixed, test_clips=10)
    for b in range(len(ten)):
        batch = ten[0, b]
        n = len(batch['label'])
        assert batch['keypoint'].shape == (n, 10, 2, 16, 17, 2)
        assert batch['score'].shape == (n, 10, 2, 16, 17)
        for i, clip in enumerate(ten.batch_indices(0, b)):
            frames = evaluation_frames(int(ten.store.total_frames[clip]), 16, 10).reshape(10, 16)
            score = ten.store.gather(ten.store.first_row[clip] + frames)[1].astype(np.float32)
            np.testing.assert_array_equal(batch['score'][i, :, 0], score)
    # In training nothing changes.
    plain, several = (clips('train', mixed, test_clips=count)[0, 0]['keypoint'] for count in (1, 10))
    np.testing.assert_array_equal(plain, several)


def test_the_flipped_view_draws_the_mirrored_volume(mixed):
    batch, plain = clips('val', mixed, test_flip=True)[0, 0], clips('val', mixed)[0, 0]
    assert batch['keypoint'].shape == (4, 2, 2, 16, 17, 2)
    for key in ('keypoint', 'score'):
        np.testing.assert_array_equal(batch[key][:, 0], plain[key])
    straight, flipped = (
        heatmaps(batch['keypoint'][1, k], batch['score'][1, k], img_shape=(56, 56), sigma=0.6) for k in (0, 1)
    )
    np.testing.assert_allclose(flipped, straight[:, COCO17.flip_order, :, ::-1], atol=0.012)
    assert straight.max() > 0.3


# --- keypoint inputs -------------------------------------------------------------------------------------------------


def test_2d_keypoints_equal_those_of_motionbert(golden, write_pickle):
    g = golden('mb_preprocess')
    names = [f'p{i}' for i in range(int(g['num_cases']))]
    path = write_pickle(recorded_set(g, names))
    batch = clips('val', path, input='keypoint_2d', clip_len=48, batch_size=6)[0, 0]
    assert batch.keys() == {'keypoint', 'label'}
    assert batch['keypoint'].dtype == np.float32
    for keypoint, name in zip(batch['keypoint'], names, strict=True):
        np.testing.assert_allclose(keypoint, g[f'{name}_final'], rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize('kind', ['keypoint_2d', 'keypoint_3d'])
def test_keypoint_inputs_are_a_function_of_epoch_and_clip(write_pickle, kind):
    make, joints = (make_annotations, 17) if kind == 'keypoint_2d' else (make_3d_annotations, 25)
    path = write_pickle(make([5, 16, 40] * 8, persons=[1, 2, 2] * 8))

    def keypoint(epoch=0, **changes):
        return whole_split(clips('train', path, input=kind, **changes), epoch)['keypoint']

    train = keypoint()
    assert (train.shape, train.dtype) == ((16, 2, 16, joints, 3), np.float32)
    np.testing.assert_array_equal(train, keypoint(batch_size=8))
    assert (keypoint(epoch=1) != train).any()
    assert np.abs(keypoint(random_move=False) - train)[:, 0].max() > 0.02
    val = clips('val', path, input=kind)
    np.testing.assert_array_equal(val[0, 0]['keypoint'], val[5, 0]['keypoint'])
    assert val.num_joints == joints


def test_2d_keypoints_fill_windows_of_one_to_three_boxes(write_pickle):
    data = make_annotations([20] * 300)
    path = write_pickle(copies(data, data['annotations'][0]['keypoint']))
    keypoint = whole_split(clips('train', path, input='keypoint_2d', random_move=False))['keypoint'][:, 0]
    ratio = 2 / np.ptp(keypoint[..., :2], axis=(1, 2)).max(-1)
    assert 1 <= ratio.min() < 1.05
    assert 2.9 < ratio.max() < 3.05
    shown = whole_split(clips('val', path, input='keypoint_2d'))['keypoint'][0, 0]
    assert 2 / np.ptp(shown[..., :2], axis=(0, 1)).max() == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize('case', range(4))
def test_3d_identities_are_the_recorded_ones_and_all_joints_are_kept(golden, write_pickle, case):
    g = golden('mb_preprocess')
    keypoint, tracked = g[f'q{case}_keypoint'], g[f'q{case}_tracked'].astype(np.float32)
    total = keypoint.shape[1]
    data = {'split': {'xsub_train': ['a'], 'xsub_val': ['a']},
            'annotations': [{'frame_dir': 'a', 'label': 0, 'total_frames': total, 'keypoint': keypoint}]}  # fmt: skip
    seen = clips('val', write_pickle(data), input='keypoint_3d', clip_len=total)[0, 0]['keypoint'][0]
    present = (tracked != 0).any(-1)
    side = (tracked[present].max(0) - tracked[present].min(0)).max()
    base = tracked[0, np.flatnonzero(present[0, :, 0])[0], 0]
    for person in range(len(tracked)):
        expected = np.where(present[person][..., None], (tracked[person] - base) / side, 0)
        np.testing.assert_allclose(seen[person], expected, atol=1e-5)
    assert not seen[len(tracked) :].any()


def test_all_3d_joints_but_missing_ones_are_moved_at_random(write_pickle):
    data = make_3d_annotations([5, 16, 40] * 8)
    for annotation in data['annotations']:
        annotation['keypoint'][:, :, 7] = 0
    path = write_pickle(data)
    loaded, still = (clips('train', path, input='keypoint_3d', random_move=moves) for moves in (True, False))
    random = ClipRandom(0, 0, loaded.batch_indices(0, 0))
    random.uniform(16)  # selects frames
    expected = random_move(still[0, 0]['keypoint'], random.uniform(MOVES_3D, 2))[:, 0]
    expected[:, :, 7] = 0
    np.testing.assert_array_equal(loaded[0, 0]['keypoint'][:, 0], expected)


# --- MAMP's preparation ----------------------------------------------------------------------------------------------

MAMP = {'input': 'keypoint_3d', 'preparation': 'mamp', 'clip_len': 120}


def mamp_sample(keypoint: np.ndarray, first: int, count: int, angles: np.ndarray) -> torch.Tensor:
    """One clip (M, T, 25, 3) as MAMP's feeder prepares it, with given random numbers: (M, 120, 25, 3).

    PyTorch computes positions in float32, which moves joints by about 1e-5 m.
    """
    clip = torch.tensor(keypoint.astype(np.float32))
    missing = (clip == 0).all(-1, keepdim=True)
    clip = (clip - clip[0, 0, 1]).masked_fill(missing, 0)[:, first : first + count]
    rows = clip.permute(3, 2, 0, 1).reshape(1, 1, -1, count)  # C V M, T
    rows = torch.nn.functional.interpolate(rows, (rows.shape[2], 120), mode='bilinear', align_corners=False)
    clip = rows.reshape(3, 25, len(keypoint), 120).permute(2, 3, 1, 0)
    for axis, angle in enumerate(torch.tensor(angles)):
        generator = torch.zeros(3, 3, dtype=torch.float64)
        generator[axis - 1, axis - 2], generator[axis - 2, axis - 1] = angle, -angle
        clip = clip @ torch.linalg.matrix_exp(generator).T.float()
    return clip


@pytest.fixture
def two_persons(write_pickle):
    """3D clips of all lengths; the second person is absent at first, a joint of the first one later."""
    data = make_3d_annotations([1, 5, 40, 70, 119, 120, 121, 300] * 3, persons=[1, 2, 2] * 8)
    for annotation in data['annotations']:
        keypoint = annotation['keypoint']
        keypoint[1:, :3] = 0
        keypoint[0, 2:4, 20] = 0
    return data, write_pickle(data)


def test_mamps_test_clips_are_those_of_its_feeder(two_persons):
    data, path = two_persons
    keypoint = whole_split(clips('val', path, **MAMP))['keypoint']
    assert (keypoint.shape, keypoint.dtype) == ((8, 2, 120, 25, 3), np.float32)
    for seen, annotation in zip(keypoint, data['annotations'][16:], strict=True):
        T, persons = annotation['total_frames'], len(annotation['keypoint'])
        cut = int((1 - 0.95) * T / 2)
        expected = mamp_sample(annotation['keypoint'], cut, T - 2 * cut, np.zeros(3))
        np.testing.assert_allclose(seen[:persons], expected, atol=1e-4)
        assert not seen[persons:].any()


@pytest.mark.parametrize('changes', [{}, {'time_crop': (0.6, 0.9)}])
def test_mamps_training_clips_are_those_of_its_feeder(two_persons, changes):
    data, path = two_persons
    loaded = clips('train', path, rotation=0.3, **MAMP, **changes)
    low, high = changes.get('time_crop', (0.5, 1.0))
    for b in range(len(loaded)):
        batch, index = loaded[2, b], loaded.batch_indices(2, b)
        assert batch['keypoint'].dtype == np.float32
        random = ClipRandom(0, 2, index)
        shares, places = low + (high - low) * random.uniform(), random.uniform()
        angles = 0.3 * (2 * random.uniform(3) - 1)
        for seen, name, share, place, angle in zip(
            batch['keypoint'], loaded.names(2, b), shares, places, angles, strict=True
        ):
            annotation = next(a for a in data['annotations'] if a['frame_dir'] == name)
            T, persons = annotation['total_frames'], len(annotation['keypoint'])
            count = min(max(int(share * T), 64), T)
            expected = mamp_sample(annotation['keypoint'], int(place * (T - count + 1)), count, angle)
            np.testing.assert_allclose(seen[:persons], expected, atol=1e-4)
            assert not seen[persons:].any()


RESIZED = {'preparation': 'mamp', 'clip_len': 16, **STILL}


def test_resized_heatmap_clips_move_evenly(write_pickle):
    """A body in steady motion: sampled frames are apart by different amounts, resized ones by the same."""
    data = make_annotations([23] * 20)
    body = np.random.default_rng(0).uniform(300, 600, (17, 2))
    moving = (body + 10 * np.arange(23)[:, None, None])[None].astype(np.float32)
    path = write_pickle(copies(data, moving))
    for split in ('train', 'val'):
        sampled, resized = (
            np.diff(whole_split(clips(split, path, **changes))['keypoint'][:, 0], axis=1)
            for changes in ({**RESIZED, 'preparation': 'default'}, RESIZED)
        )
        np.testing.assert_allclose(resized, resized[:, :1, :1].repeat(15, 1).repeat(17, 2), atol=0.01)
        assert np.ptp(sampled[..., 0], axis=1).min() > 0.5
    shares = resized[:, 0, 0, 0]
    np.testing.assert_allclose(shares, shares[0])  # in testing, the same part of each clip


def test_missing_joints_are_not_interpolated(write_pickle):
    data = make_annotations([23] * 20)
    for annotation in data['annotations']:
        annotation['keypoint'][:, 8:15, 3] = 0
        annotation['keypoint_score'][:, 8:15, 3] = 0
    batch = clips('val', write_pickle(data), **RESIZED)[0, 0]
    missing = (batch['keypoint'][:, 0, :, 3] == 0).all(-1)
    assert 3 <= missing.sum(1).min() <= missing.sum(1).max() <= 6
    assert not batch['score'][:, 0, :, 3][missing].any()
    body = batch['keypoint'][:, 0]
    box = np.ptp(np.delete(body, 3, axis=2), axis=2)
    moves = np.abs(np.diff(body[:, :, 3], axis=1))[~missing[:, 1:] & ~missing[:, :-1]]
    assert moves.max() < box.max()  # no joint on its way to the corner of the map


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'input': 'keypoint_2d'}, 'data.preparation is mamp; .* with keypoint_2d'),
        ({'random_move': False}, 'augmentation.random_move .* data.preparation mamp'),
        ({'input': 'heatmap', 'temporal_shift': 3}, 'augmentation.temporal_shift .* data.preparation mamp'),
        ({'preparation': 'default', 'rotation': 0.3}, 'augmentation.rotation .* data.preparation default'),
        ({'preparation': 'default', 'time_crop': (1.0, 1.0)}, 'augmentation.time_crop .* default'),
        ({'time_crop': (0.0, 1.0)}, 'augmentation.time_crop is'),
        ({'time_crop': (1.0, 0.5)}, 'augmentation.time_crop is'),
        ({'time_crop': (0.5, 1.1)}, 'augmentation.time_crop is'),
    ],
)
def test_keys_without_effect_on_mamps_preparation_are_refused(two_persons, changes, named):
    with pytest.raises(ValueError, match=named):
        clips('train', two_persons[1], **{**MAMP, **changes})


# --- heatmaps of 3D pickles ------------------------------------------------------------------------------------------


def test_a_3d_pickle_is_seen_from_the_front_in_validation_and_from_random_angles_in_training(write_pickle):
    person = np.zeros((25, 3))
    person[:, 1] = np.linspace(-1, 1, 25)  # upright,
    person[4], person[8] = (0.5, 0, 0), (-0.5, 0, 0)  # with shoulders a metre apart
    keypoint = np.tile(np.add(person, (0.2, 0.1, 3)).astype(np.float16), (1, 20, 1, 1))
    path = write_pickle(copies(make_3d_annotations([20] * 300), keypoint))

    def shoulders(loaded):
        seen = whole_split(loaded)
        assert seen['keypoint'].shape[1:] == (2, 16, 25, 2)
        np.testing.assert_array_equal(seen['score'][:, 0], 1)
        first = seen['keypoint'][:, 0, 0]
        assert (first[:, 24, 1] < first[:, 0, 1]).all()  # y points down
        return (first[:, 4, 0] - first[:, 8, 0]) / (first[:, 0, 1] - first[:, 24, 1])

    np.testing.assert_allclose(shoulders(clips('val', path)), 0.5, atol=0.01)
    turned = shoulders(clips('train', path, **STILL))
    assert turned.max() < 0.51
    assert 0.5 * np.cos(np.pi / 6) - 0.01 < turned.min() < 0.45  # 30 degrees
    np.testing.assert_array_equal(turned, shoulders(clips('train', path, view_angle=30.0, **STILL)))  # the default
    np.testing.assert_allclose(shoulders(clips('train', path, view_angle=0.0, **STILL)), 0.5, atol=0.01)


def test_the_view_angle_does_not_affect_2d_pickles(write_pickle):
    path = write_pickle(make_annotations([20] * 6))
    expected = clips('train', path)[0, 0]['keypoint']
    np.testing.assert_array_equal(clips('train', path, view_angle=80.0)[0, 0]['keypoint'], expected)


def test_an_empty_3d_clip_gives_an_empty_map(write_pickle):
    data = make_3d_annotations([20] * 6)
    for annotation in data['annotations']:
        annotation['keypoint'][:] = 0
    path = write_pickle(data)
    for split in ('train', 'val'):
        batch = clips(split, path, rotation=0.3, joint_noise=0.01)[0, 0]
        assert np.isfinite(batch['keypoint']).all()
        assert not batch['score'].any()
        assert not clips(split, path, input='keypoint_3d')[0, 0]['keypoint'].any()
        assert not clips(split, path, **MAMP)[0, 0]['keypoint'].any()


@pytest.mark.parametrize(('name', 'persons'), [('sbu', 2), ('cmu', 1)])
def test_real_motion(motion, tmp_path, name, persons):
    def first_batch(file, **changes):
        path, options = motion(f'{name}_{file}.pkl'), {'clip_len': 48, 'batch_size': 32, 'store_dir': str(tmp_path)}
        return clips('train', path, **options, **changes)[0, 0]

    flat = first_batch('hrnet')
    assert flat['keypoint'].shape == (32, 2, 48, 17, 2)
    assert (flat['score'][:, :persons].max((2, 3)) > 0.5).all()
    assert not flat['score'][:, persons:].any()
    drawn = first_batch('3danno')
    assert drawn['keypoint'].shape == (32, 2, 48, 25, 2)
    assert ((drawn['keypoint'] > -10) & (drawn['keypoint'] < 66))[:, :persons].mean() > 0.95
    keypoint = first_batch('3danno', input='keypoint_3d')['keypoint']
    assert np.isfinite(keypoint).all()
    assert np.abs(keypoint).max() < 2
    assert (np.abs(keypoint[:, :persons]).max((2, 3, 4)) > 0.1).all()


# --- several devices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'kind', ['heatmap', 'heatmap augmented', 'heatmap of 3D', 'keypoint_2d', 'keypoint_3d', 'keypoint_3d mamp']
)
@pytest.mark.parametrize('split', ['train', 'val'])
@pytest.mark.parametrize('world_size', [2, 4])
def test_shares_of_devices_are_rows_of_the_batch(write_pickle, kind, split, world_size):
    """Bit-identical, with the same draws, also if the last batch has fewer clips than there are processes."""
    changes = {'input': kind.split()[0]}
    if 'augmented' in kind:
        changes |= {**AUG, 'test_clips': 3, 'test_flip': True}
    if 'mamp' in kind:
        changes |= {'preparation': 'mamp', 'rotation': 0.3}
    make = make_3d_annotations if '3' in kind else make_annotations
    path = write_pickle(make([5, 20, 40] * 9, persons=[1, 2, 1] * 9))  # 18 training clips, 9 test clips
    loaded = clips(split, path, batch_size=4, **changes)
    sizes = set()
    for b in range(len(loaded)):
        whole = loaded[1, b]
        count = len(whole['label'])
        if split == 'train':  # a short batch is trimmed
            count -= count % world_size
        for rank in range(world_size):
            shared = loaded.for_rank(rank, world_size)
            assert shared.batch_sizes[b] == count
            share = shared[1, b]
            sizes.add(len(share['label']))
            for name, array in whole.items():
                np.testing.assert_array_equal(share[name], array[:count][rank::world_size], strict=True)
    assert sizes == {4 // world_size, *((1, 0) if split == 'val' else (2 // world_size,))}
