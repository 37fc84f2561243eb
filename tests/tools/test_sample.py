"""The generated dataset: pickle format, ids and splits of NTU60, and plausible bodies."""

import csv
import pickle
from pathlib import Path

import numpy as np
import pytest

from lib.data.classes import NTU60
from lib.data.pickles import load_annotations
from lib.data.skeletons import NTU25
from lib.tools.sample import __main__ as tool
from lib.tools.sample import dataset as sample

PERSONS = (1, 2, 3, 6, 7, 8)  # three in each cross-subject split


@pytest.fixture(scope='module')
def pickles():
    return sample.make_sample(0, PERSONS)


def test_both_pickles_have_the_form_of_ntu60(pickles, write_pickle):
    two, three = pickles
    assert two['split'] == three['split']
    assert set(two['split']) == {'xsub_train', 'xsub_val', 'xview_train', 'xview_val'}
    assert len(load_annotations(write_pickle(two))['annotations']) == len(two['annotations'])  # it is valid
    for a, b in zip(two['annotations'], three['annotations'], strict=True):
        assert all(a[key] == b[key] for key in ('frame_dir', 'label', 'total_frames'))
        persons, frames = len(a['keypoint']), a['total_frames']
        assert persons == (2 if a['label'] + 1 in (50, 51, 58, 59) else 1)
        assert (a['keypoint'].shape, a['keypoint_score'].shape) == ((persons, frames, 17, 2), (persons, frames, 17))
        assert b['keypoint'].shape == (persons, frames, 25, 3)
        assert a['keypoint'].dtype == a['keypoint_score'].dtype == b['keypoint'].dtype == np.float16
        assert a['img_shape'] == a['original_shape'] == (1080, 1920)
        missing = a['keypoint_score'] == 0
        np.testing.assert_array_equal(missing, (a['keypoint'] == 0).all(-1))


def test_2d_is_the_projection_of_3d(pickles):
    errors = []
    for a, b in zip(*(content['annotations'] for content in pickles), strict=True):
        pixels = sample.project(np.maximum(b['keypoint'].astype(float), -9)[:, 0, [4, 8, 13, 17]])
        errors.append(np.abs(pixels - a['keypoint'].astype(float)[:, 0, [5, 6, 13, 14]]).max(-1).ravel())
    assert np.median(np.concatenate(errors)) < 10


def test_ids_and_splits_follow_ntus_rules(pickles):
    """SsssCcccPpppRrrrAaaa: setup, camera, person, repetition, action."""
    annotations, split = pickles[0]['annotations'], pickles[0]['split']
    label = {a['frame_dir']: a['label'] for a in annotations}
    assert len(label) == len(annotations)
    assert {number + 1 for number in label.values()} == {action.number for action in sample.ACTIONS}
    assert all(int(name[17:20]) == label[name] + 1 for name in label)
    train_persons = {1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38}
    assert set(split['xsub_train']) == {name for name in label if int(name[9:12]) in train_persons}
    assert set(split['xview_train']) == {name for name in label if name[5:8] in ('002', '003')}
    for benchmark in ('xsub', 'xview'):
        assert sorted(split[f'{benchmark}_train'] + split[f'{benchmark}_val']) == sorted(label)
        assert split[f'{benchmark}_val']


def test_clips_are_a_function_of_the_seed():
    first, again, other = (pickle.dumps(sample.make_sample(seed, PERSONS[:1])) for seed in (3, 3, 4))
    assert first == again
    assert first != other


@pytest.mark.parametrize('seed', [-1, 2**16])
def test_a_seed_out_of_range_is_refused(tmp_path, refused, seed):
    assert f'--seed {seed}' in refused(tool.main, '--out', tmp_path / 'out', '--seed', seed)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('action', sample.ACTIONS, ids=lambda action: action.number)
def test_bones_keep_their_length(action):
    starts, ends = np.array(NTU25.limbs).T
    rng = np.random.default_rng(0)
    points = sample.perform(action, [sample.make_person(rng), sample.make_person(rng)], 120, rng)
    lengths = np.linalg.norm(points[:, :, starts] - points[:, :, ends], axis=-1)
    assert np.ptp(lengths, axis=1).max() < 1e-9
    assert lengths.min() > 0.02


def test_files_and_their_table_match_the_pickle(pickles, tmp_path):
    count = sample.write_files(tmp_path, pickles[0])
    with (tmp_path / 'labels.csv').open() as file:
        rows = list(csv.DictReader(file))
    label = {a['frame_dir']: a['label'] for a in pickles[0]['annotations']}
    assert count == len(rows) == 36  # 12 actions of the persons 1, 3 and 8
    for row in rows:
        name = Path(row['file']).stem
        assert row['label'] == NTU60[label[name]]
        assert name in pickles[0]['split'][f'xsub_{row["split"]}']
        assert (tmp_path / row['file']).is_file()
    assert {row['split'] for row in rows} == {'train', 'val'}
