"""Arrays, pickles, images and persons in keypoint files, and reports of errors."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from lib.data.pickles import check_annotation, load_annotations
from lib.data.skeletons import COCO17, LAYOUTS
from lib.formats import read_keypoint_file
from tests.annotations import make_3d_annotations, make_annotations
from tests.formats.bodies import TWO, numbered


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


# --- arrays and pickles ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize('layout', ['openpose18', 'body25', 'halpe26', 'wholebody133', 'halpe136', 'h36m17'])
def test_arrays_in_a_given_layout_are_converted_by_joint_names(layout, tmp_path):
    joints = np.random.default_rng(0).uniform(100, 900, (1, 4, len(LAYOUTS[layout]), 3))
    joints[..., 2] = 0.5
    np.save(tmp_path / 'x.npy', joints)
    [found] = read_keypoint_file(tmp_path / 'x.npy', layout)
    for i, name in enumerate(COCO17.joints):
        known = name in LAYOUTS[layout]
        expected = joints[:, :, LAYOUTS[layout].index(name)] if known else np.zeros((1, 4, 3))
        np.testing.assert_allclose(found['keypoint'][:, :, i], expected[..., :2], rtol=1e-6)
        assert (found['keypoint_score'][:, :, i] == 0.5 * known).all()


def test_kinect_arrays_are_3d(tmp_path):
    annotation = make_3d_annotations([9], persons=[2])['annotations'][0]
    keypoint = annotation['keypoint'].astype(np.float32)
    keypoint[0, 3, 5] = np.nan
    np.save(tmp_path / 'x.npy', keypoint)
    [found] = read_keypoint_file(tmp_path / 'x.npy', 'ntu25')
    assert not {'keypoint_score', 'img_shape'} & found.keys()
    keypoint[0, 3, 5] = 0
    np.testing.assert_array_equal(found['keypoint'], keypoint[[1, 0]])  # person 1 has all its joints
    check_annotation(found, 'it')


def test_present_joints_without_scores_have_score_1(tmp_path):
    keypoint = np.random.default_rng(0).uniform(50, 900, (6, 17, 2))
    keypoint[2, 4] = 0
    keypoint[3, 5, 1] = np.nan
    np.save(tmp_path / 'x.npy', keypoint)
    [found] = read_keypoint_file((tmp_path / 'x.npy').rename(tmp_path / 'x.file'))  # recognised by its content
    expected = np.ones((1, 6, 17))
    expected[0, 2, 4] = expected[0, 3, 5] = 0
    np.testing.assert_array_equal(found['keypoint_score'], expected)
    assert not found['keypoint'][0, 3, 5].any()


def test_clips_of_a_pickle_are_unchanged(write_pickle):
    data = make_annotations([5, 9], persons=[1, 12])
    path = write_pickle(data)
    for layout in (None, 'coco17'):
        found = read_keypoint_file(path, layout, max_persons=2)
        assert len(found) == 2
        for one, other in zip(found, load_annotations(path)['annotations'], strict=True):
            assert one.keys() == other.keys()
            np.testing.assert_array_equal(one['keypoint'], other['keypoint'])
            assert one['keypoint'].dtype == np.float16


# --- frames and persons --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('key', ['track_id', 'no_track_id'])
def test_the_most_present_persons_are_kept(key, tmp_path):
    random = np.random.default_rng(0)
    joints = random.uniform(0, 60, (5, 30, 17, 3)) + np.arange(5).reshape(5, 1, 1, 1) * (300, 0, 0)
    joints[..., 2] = 0.9
    joints[..., :2] = joints[:, :1, :, :2] + random.normal(0, 1, joints[..., :2].shape)  # standing still
    for m, frames in enumerate((12, 30, 8, 25, 28)):
        joints[m, frames:] = 0
    (tmp_path / 'x.json').write_text(json.dumps(numbered(joints)).replace('track_id', key))
    np.save(tmp_path / 'x.npy', joints)
    for name in ('x.json', 'x.npy'):
        [found] = read_keypoint_file(tmp_path / name, max_persons=3)
        np.testing.assert_allclose(found['keypoint'], joints[[1, 4, 3], ..., :2], rtol=1e-6)
        np.testing.assert_allclose(found['keypoint_score'], joints[[1, 4, 3], ..., 2], rtol=1e-6)
        assert found['persons_left_out'] == 2


def test_scores_are_clipped_to_1_and_joints_that_are_not_finite_are_missing(tmp_path):
    joints = np.full((1, 3, 17, 3), 200.0)
    joints[..., 0] += np.arange(17)
    joints[..., 2] = 1.3
    joints[0, 1, 2, 0] = np.nan
    joints[0, 1, 3, 1] = np.inf
    joints[0, 1, 4, 2] = np.nan
    joints[0, 1, 5, 2] = -0.1
    joints[0, 1, 6, 0] = 1e300
    [found] = read_keypoint_file(write_json(tmp_path / 'x.json', numbered(joints)))
    score = np.ones((1, 3, 17))
    score[0, 1, 2:7] = 0
    np.testing.assert_array_equal(found['keypoint_score'], score)
    assert not found['keypoint'][0, 1, 2:7].any()


@pytest.mark.parametrize(
    ('content', 'persons'),
    [
        ({'people': [{'pose_keypoints_2d': [100.0, 200, 0.5] * 25}]}, 1),
        ({'people': [{'pose_keypoints': [100.0, 200, 0.5] * 18}, {'pose_keypoints': [300.0, 20, 0.5] * 18}]}, 2),
        ({'people': [{'pose_keypoints_2d': []}, {'pose_keypoints_2d': [100.0, 200, 0.5] * 25}]}, 1),
        ([{'keypoints': [[100, 200]] * 17, 'keypoint_scores': [0.5] * 17}], 1),
        ({'instance_info': [{'keypoints': [[100, 200]] * 133, 'keypoint_scores': [0.5] * 133}]}, 1),
        ([{'image_id': 7, 'keypoints': [100.0, 200, 0.5] * 26}], 1),
    ],
)
def test_a_file_of_one_image_is_a_clip_of_one_frame(content, persons, tmp_path):
    [found] = read_keypoint_file(write_json(tmp_path / 'x.json', content))
    assert found['keypoint'].shape == (persons, 1, 17, 2)
    assert (found['keypoint_score'] == 0.5).all()


# --- errors ------------------------------------------------------------------------------------------------------

SOUND = {'keypoints': [[100, 200]] * 17, 'keypoint_scores': [0.5] * 17}
OPENPOSE = {'people': [{'pose_keypoints_2d': [3] * 54}]}
JSON_ERRORS = {  # name: (content, part of the message)
    'empty': ([], 'no person'),
    'nobody': ([{'frame_id': 0, 'instances': []}], 'no person'),
    'text for numbers': ([SOUND | {'keypoints': [['1', '2']] * 17}], 'person 0: keypoints'),
    'ragged': ([SOUND, SOUND | {'keypoints': [[1, 2], [1]]}], 'person 1: keypoints'),
    'no scores': ([{'keypoints': [[1, 2]] * 17}], 'keypoint_scores'),
    '3d': ([SOUND | {'keypoints': [[1, 2, 3]] * 17}], 'keypoints'),
    'few scores': ([SOUND | {'keypoint_scores': [1] * 16}], '(16,)'),
    'large number': ([SOUND | {'keypoints': [[1e30, 2]] * 17}], '1e+30'),
    'normalised': ([SOUND | {'keypoints': [[0.5, 0.7]] * 17}], 'multiply by the width and height'),
    'frame twice': ([{'frame_id': 0, 'instances': [SOUND]}] * 2, 'frame_id'),
    'long': ([{'frame_id': t, 'instances': [SOUND]} for t in (0, 10**9)], '1000000000'),
    'joints': ([{'keypoints': [[1, 9]] * 19, 'keypoint_scores': [1] * 19}], '19 joints'),
    'two layouts': ({'people': [*OPENPOSE['people'], {'pose_keypoints_2d': [3] * 75}]}, '25 joints'),
    'no thirds': ({'people': [{'pose_keypoints_2d': [3] * 50}]}, '(50,)'),
    'no pose': ({'people': [{'hands': []}]}, 'pose_keypoints_2d'),
    'videos': ([{'image_id': f'{v}_1.jpg', 'keypoints': [9] * 51} for v in 'ab'], 'several videos'),
    'written twice': ([{'image_id': n, 'keypoints': [9] * 51} for n in ('1.jpg', '01.jpg')], 'same number'),
}


@pytest.mark.parametrize('name', JSON_ERRORS)
def test_errors_in_json_are_reported_with_their_place(name, tmp_path):
    content, message = JSON_ERRORS[name]
    path = write_json(tmp_path / 'x.json', content)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_keypoint_file(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    'content',
    [b'[' * 10**6, b'[1, 2', b'[\xff\xfe]', b'[' + b'1' * 10**5 + b']', b'', b'hello', b'\x89PNG\r\n', b'\x00' * 100],
    ids=['nested', 'cut', 'bytes', 'digits', 'empty', 'text', 'picture', 'zeros'],
)
def test_other_files_are_refused_in_one_line(content, tmp_path):
    (tmp_path / 'x.json').write_bytes(content)
    with pytest.raises(ValueError, match=r'x\.json') as error:
        read_keypoint_file(tmp_path / 'x.json')
    assert len(str(error.value)) < 500


def one(shape, value=100.0):
    return {'keypoint': np.full(shape, value)}


ARRAY_ERRORS = {
    'axes': (one((17, 2)), 'shape'),
    'no frame': (one((0, 17, 2)), 'shape'),
    'objects': ({'keypoint': np.array([{}], dtype=object)}, 'array keypoint holds Python objects'),
    'other objects': (one((4, 17, 2)) | {'meta': np.array({}, dtype=object)}, 'array meta holds Python objects'),
    'ambiguous': (one((4, 25, 3)), '--layout body25 (pixels) or --layout ntu25 (metres)'),
    'joints': (one((4, 19, 2)), '19 joints'),
    'third': (one((4, 17, 3)), 'between 0 and 1'),
    'scores': (one((4, 17, 2)) | {'keypoint_score': np.ones((4, 18))}, '(4, 18)'),
    'no keypoint': ({'arr_0': np.ones((4, 17, 2)), 'arr_1': np.ones(4)}, 'arr_0'),
    'nobody': (one((4, 17, 2), 0.0), 'no person'),
    'image': (one((4, 17, 2)) | {'img_shape': np.array([0, 9])}, 'img_shape'),
    'normalised': (one((4, 17, 2), 0.25), 'multiply by the width and height'),
}


@pytest.mark.parametrize('name', ARRAY_ERRORS)
def test_errors_in_arrays_are_reported(name, tmp_path):
    arrays, message = ARRAY_ERRORS[name]
    np.savez(tmp_path / 'x.npz', **arrays)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_keypoint_file(tmp_path / 'x.npz')
    assert 'x.npz' in str(error.value)


def test_invalid_layouts_and_units_are_refused(tmp_path, write_pickle):
    path, pickled = tmp_path / 'x.npy', write_pickle(make_annotations([5]))
    np.save(path, TWO)
    np.save(tmp_path / 'mm.npy', np.full((4, 25, 3), 3000.0))
    for file, layout, message in (
        (path, 'body25', 'not those of body25'),
        (path, 'coco', 'there are coco17'),
        (pickled, 'halpe26', 'not those of halpe26'),
        (tmp_path / 'mm.npy', 'ntu25', 'metres'),
    ):
        with pytest.raises(ValueError, match=message):
            read_keypoint_file(file, layout)


def test_damaged_arrays_and_pickles_that_run_code_are_refused(tmp_path):
    np.save(tmp_path / 'x.npy', np.zeros((4, 17, 2)))
    (tmp_path / 'x.npy').write_bytes((tmp_path / 'x.npy').read_bytes()[:-8])
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(Path))
    for name in ('x.npy', 'x.pkl'):
        with pytest.raises(ValueError, match=name):
            read_keypoint_file(tmp_path / name)


def test_errors_in_folders_are_reported(tmp_path):
    folder = tmp_path / 'x'
    folder.mkdir()
    for name, message in (
        (None, '.json'),
        ('x_2_keypoints.json', 'same number'),
        ('x_000000000002.json', 'same number'),
        ('other_000000000009_keypoints.json', 'several videos'),
        ('camera.json', 'camera'),
    ):
        if name:
            for file in (*(f'x_{t:012d}_keypoints.json' for t in range(3)), name):
                write_json(folder / file, {'people': []})
        with pytest.raises(ValueError, match=message):
            read_keypoint_file(folder)
        if name:
            (folder / name).unlink()
