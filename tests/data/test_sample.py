"""The generated sample set: the form of NTU60's pickles, its ids and splits, plausible movements."""

import csv
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lib.data import sample
from lib.data.classes import NTU60
from lib.data.skeletons import NTU25

PERSONS = (1, 2, 3, 6, 7, 8)  # three on each side of the cross-subject split
ROOT = Path(__file__).parents[2]
TWO_PERSON_ACTIONS = {50, 51, 58, 59}
ID = re.compile(r'S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})')


@pytest.fixture(scope='module')
def pickles():
    return sample.make_sample(0, PERSONS)


def clean(number: int, seed: int = 0, num_frames: int = 120) -> np.ndarray:
    """Points (M, T, 30, 3) of one performance without any noise, in metres."""
    rng = np.random.default_rng(seed)
    action = next(a for a in sample.ACTIONS if a.number == number)
    return sample.perform(action, [sample.make_person(rng), sample.make_person(rng)], num_frames, rng)


def ids(frame_dir: str) -> tuple[int, ...]:
    """(setup, camera, person, replication, action)."""
    match = ID.fullmatch(frame_dir)
    assert match, frame_dir
    return tuple(int(group) for group in match.groups())


def test_annotations_have_the_form_of_ntu60(pickles):
    two, three = pickles
    assert two['split'] == three['split']
    assert set(two['split']) == {'xsub_train', 'xsub_val', 'xview_train', 'xview_val'}
    for a in two['annotations']:
        assert set(a) == {
            'frame_dir', 'label', 'total_frames', 'img_shape', 'original_shape', 'keypoint', 'keypoint_score'
        }  # fmt: skip
        persons = a['keypoint'].shape[0]
        assert a['keypoint'].shape == (persons, a['total_frames'], 17, 2)
        assert a['keypoint_score'].shape == (persons, a['total_frames'], 17)
        assert a['img_shape'] == a['original_shape'] == (1080, 1920)
        assert type(a['img_shape']) is tuple
        assert a['keypoint'].dtype == a['keypoint_score'].dtype == np.float16
    for a in three['annotations']:
        assert set(a) == {'frame_dir', 'label', 'total_frames', 'keypoint'}
        assert a['keypoint'].shape == (a['keypoint'].shape[0], a['total_frames'], 25, 3)
        assert a['keypoint'].dtype == np.float16
    for a, b in zip(two['annotations'], three['annotations'], strict=True):
        assert all(a[key] == b[key] for key in ('frame_dir', 'label', 'total_frames'))
        assert len(a['keypoint']) == len(b['keypoint'])
        assert (type(a['frame_dir']), type(a['label']), type(a['total_frames'])) == (str, int, int)
        assert np.isfinite(a['keypoint']).all()


def test_2d_is_the_projection_of_3d(pickles):
    two, three = pickles
    errors = []
    for a, b in zip(two['annotations'], three['annotations'], strict=True):
        pixels = sample.project(np.maximum(b['keypoint'].astype(float), -9)[:, 0, [4, 8, 13, 17]])
        errors.append(np.abs(pixels - a['keypoint'].astype(float)[:, 0, [5, 6, 13, 14]]).max(-1).ravel())
    assert np.median(np.concatenate(errors)) < 10


def test_labels_and_persons_match_the_id(pickles):
    names = set()
    for a in pickles[0]['annotations']:
        _, camera, person, replication, action = ids(a['frame_dir'])
        assert a['label'] == action - 1
        assert camera in (1, 2, 3)
        assert person in PERSONS
        assert replication in (1, 2)
        assert len(a['keypoint']) == (2 if action in TWO_PERSON_ACTIONS else 1)
        names.add(a['frame_dir'])
    assert len(names) == len(pickles[0]['annotations'])
    assert {a['label'] + 1 for a in pickles[0]['annotations']} == {a.number for a in sample.ACTIONS}


def test_splits_follow_ntus_rules(pickles):
    split = pickles[0]['split']
    every = {a['frame_dir'] for a in pickles[0]['annotations']}
    train_persons = {1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38}
    assert set(split['xsub_train']) == {name for name in every if ids(name)[2] in train_persons}
    assert set(split['xview_train']) == {name for name in every if ids(name)[1] in (2, 3)}
    for benchmark in ('xsub', 'xview'):
        train, val = split[f'{benchmark}_train'], split[f'{benchmark}_val']
        assert train
        assert val
        assert sorted(train + val) == sorted(every)  # no clip twice, none left out


def test_clips_of_all_lengths_occur_in_every_split(pickles):
    frames = {a['frame_dir']: a['total_frames'] for a in pickles[0]['annotations']}
    for names in pickles[0]['split'].values():
        lengths = np.array([frames[name] for name in names])
        assert lengths.min() >= 20
        assert lengths.max() <= 200
        for regime in (lengths < 48, (lengths >= 48) & (lengths < 96), lengths >= 96):
            assert regime.mean() > 0.1


def test_clips_are_a_function_of_the_seed():
    first, again, other = (pickle.dumps(sample.make_sample(seed, PERSONS[:1])) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_missing_joints_are_zero_with_score_zero(pickles):
    lost_persons = 0
    for a in pickles[0]['annotations']:
        missing = a['keypoint_score'] == 0
        np.testing.assert_array_equal(missing, (a['keypoint'] == 0).all(-1))
        lost_persons += missing.all(-1).any()
        assert not missing[:, 0].all()
    assert lost_persons > 0


@pytest.mark.parametrize('number', [action.number for action in sample.ACTIONS])
def test_bones_keep_their_length(number):
    starts, ends = np.array(NTU25.limbs).T
    for seed in range(3):
        points = clean(number, seed)
        lengths = np.linalg.norm(points[:, :, starts] - points[:, :, ends], axis=-1)
        assert np.ptp(lengths, axis=1).max() < 1e-9
        assert lengths.min() > 0.02


def test_files_and_their_table_match_the_pickle(pickles, tmp_path):
    count = sample.write_files(tmp_path / 'files', pickles[0])
    with (tmp_path / 'files' / 'labels.csv').open() as file:
        rows = list(csv.DictReader(file))
    clips = {a['frame_dir']: a for a in pickles[0]['annotations']}
    assert count == len(rows) == 36  # 12 actions of the persons 1, 3 and 8
    for row in rows:
        name = Path(row['file']).stem
        assert row['label'] == NTU60[clips[name]['label']]
        assert name in pickles[0]['split'][f'xsub_{row["split"]}']
    assert {row['split'] for row in rows} == {'train', 'val'}
    names = {row['file'] for row in rows} | {'labels.csv'}
    assert {path.name for path in (tmp_path / 'files').iterdir()} == names


def test_files_hold_the_persons_found_in_each_frame():
    clip = next(a for a in sample.make_sample(0, PERSONS[:1])[0]['annotations'] if a['keypoint'].shape[0] == 2)
    clip['keypoint_score'][1, 3] = clip['keypoint'][1, 3] = 0
    frames = sample.mmpose_video(clip)
    assert [frame['frame_id'] for frame in frames] == list(range(clip['total_frames']))
    assert [len(frame['instances']) for frame in frames[2:5]].count(1) >= 1
    assert len(frames[3]['instances']) == 1
    for frame, points, scores in zip(
        frames, *(clip[key].swapaxes(0, 1) for key in ('keypoint', 'keypoint_score')), strict=True
    ):
        there = (scores > 0).any(axis=1)
        assert len(frame['instances']) == there.sum()
        for instance, xy, score in zip(frame['instances'], points[there], scores[there], strict=True):
            np.testing.assert_allclose(instance['keypoints'], xy, atol=0.051)
            np.testing.assert_allclose(instance['keypoint_scores'], score, atol=0.00051)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    result = subprocess.run(
        [sys.executable, '-m', 'lib.data.sample', '--out', tmp_path / 'file'], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert str(tmp_path / 'file') in result.stderr
