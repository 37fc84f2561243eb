"""Typical inputs written by other tools, most of them in cases/, and their outcomes."""

import collections
import json
import logging
import pickle
import re
import shutil
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch

from lib.data.pickles import load_annotations
from lib.data.store import open_store
from lib.errors import UserError
from lib.formats import read_keypoint_file
from lib.tools import check_data
from tests.formats.bodies import IMG_SHAPE, TWO, body, in_layout

CASES = Path(__file__).parent / 'cases'
ONE = body()[None]

READ = {  # file: (persons (M, T, 17, 3), arguments, first frame)
    'alphapose_idx_nested/a.json': (ONE, {}, 0),
    'alphapose_idx_nested/tracked.json': (TWO, {}, 0),
    'alphapose_image_names/a.json': (ONE, {}, 0),
    'alphapose_poseflow_and_tracked/poseflow.json': (TWO, {}, 0),
    'alphapose_poseflow_and_tracked/00_0001_alphapose_tracked_person.json': (TWO, {}, 0),
    'coco_annotations/a.json': (ONE, {}, 0),
    'mediapipe_blazepose/a.json': (ONE, {'img_shape': IMG_SHAPE}, 0),
    'mediapipe_blazepose/a.csv': (ONE, {'img_shape': IMG_SHAPE}, 0),
    'mmpose_inferencer_dump/a.json': (ONE, {}, 0),
    'mmpose_inferencer_dump/b.json': (ONE, {}, 0),
    'openpose_appledouble/vid': (ONE, {}, 0),
    'openpose_body25b/vid': (ONE, {'layout': 'body25b'}, 0),
    'ultralytics/video.json': (ONE, {}, 0),
    'ultralytics/image.json': (ONE[:, :1], {}, 0),
    'ultralytics/labels': (ONE, {'img_shape': IMG_SHAPE}, 1),
}


@pytest.mark.parametrize('name', READ)
def test_typical_files_are_read_with_their_persons_and_frames(name, caplog):
    expected, arguments, first = READ[name]
    caplog.set_level(logging.INFO)
    [found] = read_keypoint_file(CASES / name, **arguments)
    assert found['keypoint'].shape == expected[..., :2].shape
    np.testing.assert_allclose(found['keypoint'], expected[..., :2], atol=0.01 if name[-3:] != 'csv' else 0.02)
    assert found['keypoint_score'].min() > 0.79
    assert found['first_frame'] == first
    [line] = [record.getMessage() for record in caplog.records]
    for part in (name, found['source'], f'{len(expected)} person', f'{expected.shape[1]} frame', f'one is {first}'):
        assert part in line
    assert ('in the order of their names' in line) is ('image_names' in name)


def test_coco_annotations_have_the_size_of_the_images_and_score_1():
    [found] = read_keypoint_file(CASES / 'coco_annotations' / 'a.json')
    assert found['img_shape'] == IMG_SHAPE
    assert found['img_shape_known']
    assert (found['keypoint_score'] == 1).all()


def test_consecutive_persons_with_the_same_id_are_two():
    [found] = read_keypoint_file(CASES / 'alphapose_two_in_turn_idx0' / 'a.json')
    np.testing.assert_array_equal(found['keypoint_score'].any(axis=2), [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]])


def test_raw_skeletons_are_in_metres_with_the_label_in_their_name(tmp_path):
    [found] = read_keypoint_file(CASES / 'ntu_skeleton_raw' / 'S001C001P001R001A008.skeleton')
    assert (found['keypoint'].shape, found['label'], found['frame_dir']) == ((1, 6, 25, 3), 7, 'S001C001P001R001A008')
    np.testing.assert_allclose(found['keypoint'][0, 0, :2], [[0.1, 0.9, 3.2], [0.11, 0.85, 3.2]], rtol=1e-6)
    text = (CASES / 'ntu_skeleton_raw' / 'S001C001P001R001A008.skeleton').read_text()
    (tmp_path / 'S001C001P001R001A008.skeleton').write_text(text[:-300])
    with pytest.raises(UserError, match='truncated'):
        read_keypoint_file(tmp_path / 'S001C001P001R001A008.skeleton')


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('openpose_body25b/vid', '--layout body25b'),
        ('mediapipe_blazepose/a.csv', '--img_shape'),
        ('mediapipe_blazepose/a.json', '--img_shape'),
        ('ultralytics/labels', '--img_shape'),
    ],
)
def test_missing_options_are_named(name, message):
    with pytest.raises(UserError, match=message):
        read_keypoint_file(CASES / name)


# --- arrays --------------------------------------------------------------------------------------------------------


def test_compressed_arrays_are_read(tmp_path):
    path = tmp_path / 'a.npz'
    np.savez_compressed(path, keypoint=ONE[..., :2], keypoint_score=ONE[..., 2], img_shape=np.array(IMG_SHAPE))
    [found] = read_keypoint_file(path.rename(tmp_path / 'a.file'))  # recognised by its content
    np.testing.assert_allclose(found['keypoint'], ONE[..., :2], atol=1e-4)
    assert found['img_shape'] == IMG_SHAPE


LONG = np.stack([body(17, at=(200, 210)), body(17, at=(600, 210))])  # as many frames as joints
AXES = {
    'frames first': TWO.transpose(1, 0, 2, 3),
    'frames first, one person': ONE.transpose(1, 0, 2, 3),
    'channels first': TWO.transpose(3, 1, 2, 0),
    'channels first without scores': TWO[..., :2].transpose(3, 1, 2, 0),
    'persons last but one': TWO.transpose(1, 2, 0, 3),
    'joints and frames swapped': LONG.transpose(0, 2, 1, 3),
    'joints and frames swapped, other numbers': np.concatenate([LONG, LONG], axis=1).transpose(0, 2, 1, 3),
    'frames first, persons overlap': np.stack(
        [body(19, at=(300 + 40 * m, 210))[5 * m :][:3] for m in range(4)], axis=1
    ),
    'channels first, shares': (TWO / (1280, 720, 1)).transpose(3, 1, 2, 0),
    **{
        f'channels first, {layout}': in_layout(TWO, layout)[..., :2].transpose(3, 1, 2, 0)
        for layout in ('openpose18', 'body25', 'halpe26', 'blazepose33', 'wholebody133')
    },
}


@pytest.mark.parametrize('name', AXES)
def test_swapped_axes_are_refused_with_the_expected_order(name, tmp_path):
    layout = 'body25' if 'body25' in name else None
    np.save(tmp_path / 'a.npy', AXES[name])
    with pytest.raises(UserError, match=r'\(persons, frames, joints, 2 or 3\)'):
        read_keypoint_file(tmp_path / 'a.npy', layout, IMG_SHAPE)
    np.save(tmp_path / 'a.npy', LONG)
    assert read_keypoint_file(tmp_path / 'a.npy')[0]['keypoint'].shape == (2, 17, 17, 2)


@pytest.mark.parametrize('frames', [10, 17])  # 17: as many as joints
@pytest.mark.parametrize('value', [0, np.nan])
def test_arrays_with_gaps_and_of_fast_persons_are_read(frames, value, tmp_path):
    fast = np.stack([body(frames + m)[m:] for m in (0, 4)]) + 150 * np.arange(frames)[:, None, None] * (1, 0, 0)
    gaps = body(frames, at=(1500, 700))
    gaps[[2, 7]] = value
    for joints in (fast[0], gaps, fast):
        np.save(tmp_path / 'a.npy', joints)
        [found] = read_keypoint_file(tmp_path / 'a.npy')
        np.testing.assert_allclose(found['keypoint'].reshape(joints[..., :2].shape), np.nan_to_num(joints[..., :2]))


# --- pickles -------------------------------------------------------------------------------------------------------


def annotation(i: int) -> dict:
    size = {'total_frames': 6, 'img_shape': IMG_SHAPE, 'original_shape': IMG_SHAPE}
    keypoint, score = ((ONE[..., :2] + i).astype(np.float32), ONE[..., 2].astype(np.float32))
    return {'frame_dir': f'clip{i}', 'label': i % 2, **size, 'keypoint': keypoint, 'keypoint_score': score}


def annotations(count: int = 8) -> list[dict]:
    return [annotation(i) for i in range(count)]


def dataset(**changes) -> dict:
    """A dataset of eight clips. changes: to the first annotation."""
    data = {'split': {'train': [f'clip{i}' for i in range(5)], 'val': ['clip5', 'clip6', 'clip7']}}
    data['annotations'] = annotations()
    data['annotations'][0] |= changes
    return data


class Mine:
    pass


REFUSED = {  # name: (content of a pickle, part of the message)
    'path': (dataset(frame_dir=PurePosixPath('clip0')), r'str\(path\)'),
    'tensor': (dataset(keypoint=torch.ones(1, 6, 17, 2)), r'\.numpy\(\)'),
    'whole numbers': (dataset(keypoint=np.ones((1, 6, 17, 2), int)), r"keypoint\.astype\('float32'\)"),
    'list': (dataset(keypoint=np.ones((1, 6, 17, 2)).tolist()), r"np\.asarray\(keypoint, 'float32'\)"),
    'objects': (dataset() | {'split': {'train': np.array(['clip0'], object)}}, r'array\.tolist\(\)'),
    'own class': (dataset(extra=Mine()), 'dicts, lists, numbers'),
    'Counter': (dataset() | {'split': collections.Counter()}, r'dict\('),
    'Kinetics': (
        {'split': {}, 'annotations': [{'frame_dir': 'a', 'label': 0, 'raw_file': 'a.pkl', 'valid': {0.5: 6}}]},
        r'make_pickle .*set\.pkl --kpfiles FOLDER',
    ),
    'list of Kinetics': (
        [{'frame_dir': 'a', 'label': 0, 'raw_file': 'a.pkl', 'valid': {0.5: 6}}],
        r'a list of .*Kinetics.*make_pickle .*--kpfiles FOLDER',
    ),
    'kpfile': ({'a/b': {'keypoint': np.ones((9, 17, 3), np.float16)}}, 'kpfile.*make_pickle k400_hrnet.pkl --kpfiles'),
    'score as third': (dataset(keypoint=ONE.astype(np.float32)), 'keypoint_score'),
    'nobody': ({'split': {}, 'annotations': [annotations()[0] | {'keypoint': np.zeros((0, 6, 17, 2))}]}, 'person'),
}  # fmt: skip


@pytest.mark.parametrize('name', REFUSED)
def test_refusals_of_pickles_name_the_conversion(name, write_pickle, capsys):
    content, message = REFUSED[name]
    path = write_pickle(content)
    for read in (load_annotations, read_keypoint_file):
        with pytest.raises(UserError, match=rf'set\.pkl.*{message}') as error:
            read(path)
        assert 'original source' not in str(error.value)
    assert check_data.main([str(path)]) != 0
    printed = ' '.join(''.join(capsys.readouterr()).split())
    assert re.search(message, printed)


def test_refusals_of_code_advise_the_original_source(write_pickle):
    with pytest.raises(UserError, match='original source'):
        load_annotations(write_pickle(dataset(extra=shutil.rmtree)))


@pytest.mark.parametrize(
    'keypoint',
    [
        np.zeros((0, 6, 17, 2), np.float32),
        np.zeros((1, 0, 17, 2), np.float32),
        np.zeros((0, 3), object),
        None,
        [],
        [[], []],
    ],
)
def test_clips_without_persons_are_skipped_with_one_warning(keypoint, write_pickle, capsys):
    path = write_pickle(dataset(keypoint=keypoint, keypoint_score=None))
    with pytest.warns(UserWarning, match='1 of 8 clips') as warned:
        data = load_annotations(path)
    assert len(warned) == 1
    assert [a['frame_dir'] for a in data['annotations']] == [f'clip{i}' for i in range(1, 8)]
    assert data['split']['train'] == ['clip1', 'clip2', 'clip3', 'clip4']
    assert check_data.main([str(path)]) == 0
    assert '1 clip without persons, left out: clip0' in capsys.readouterr().out


@pytest.mark.parametrize('suffix', ['.mp4', '.avi'])
def test_names_that_differ_by_a_suffix_are_an_error(suffix, write_pickle, tmp_path, capsys):
    data = dataset()
    data['split'] = {name: [f'{i}{suffix}' for i in ids] for name, ids in data['split'].items()}
    assert check_data.main([str(write_pickle(data))]) == 1
    printed = ' '.join(capsys.readouterr().out.split())
    assert f'clip0{suffix} in a split, clip0 as frame_dir' in printed
    assert printed.count('FAULT') == 2  # one per split
    with pytest.raises(UserError, match=rf'clip0\{suffix} in a split, clip0 as frame_dir'):
        open_store(tmp_path / 'set.pkl')


def test_hidden_pickles_of_a_folder_are_skipped(write_pickle, tmp_path):
    write_pickle(dataset())
    (tmp_path / '._set.pkl').write_bytes(b'\0\5\x16\7')
    assert len(open_store(tmp_path).label) == 8


def test_pickles_without_splits_are_read_but_refused_for_training(write_pickle):
    one, several = write_pickle(annotations()[0], 'one.pkl'), write_pickle(annotations(), 'list.pkl')
    assert [a['frame_dir'] for a in read_keypoint_file(one)] == ['clip0']
    assert len(read_keypoint_file(several)) == 8
    for path in (one, several):
        with pytest.raises(UserError, match=r"{'split': {'train': \[frame_dir, ...\].*make_pickle"):
            load_annotations(path)


@pytest.mark.parametrize('scale', [(1, 1, 1), (1, 1, 100), (1, 1, -0.01), (1e-3, 1e-3, 1), (0.03, 0.03, 1), (1, 1, 7)])
def test_scores_as_a_third_number_are_a_fault(scale, write_pickle, capsys):
    data = dataset()
    for annotation in data['annotations']:
        annotation['keypoint'] = (ONE * scale).astype(np.float32)
        del annotation['keypoint_score']
    assert check_data.main([str(write_pickle(data))]) == 1
    assert re.search(r'FAULT .*keypoint_score', ' '.join(capsys.readouterr().out.split()))


def test_other_kinds_of_files_are_refused_with_a_conversion(tmp_path):
    for content, message in (
        (b'\0\0\0\x18ftypmp42', 'extract_keypoints'),
        (b'\x89PNG\r\n', 'pose estimator'),
        (b'\x89HDF\r\n', 'h5py'),
        (b'<?xml version="1.0"?><annotations/>', 'COCO'),
        (b'\x00\x05\x16\x07' + b'\0' * 9, 'macOS'),
        (b'hello\n', 'found'),
    ):
        (tmp_path / 'x').write_bytes(content)
        with pytest.raises(UserError, match=rf'{message}.*Supported: MMPose .*PYSKL'):
            read_keypoint_file(tmp_path / 'x')
    torch.save({'keypoint': torch.ones(2)}, tmp_path / 'x')
    with pytest.raises(UserError, match=r'tensor\.numpy\(\)'):
        read_keypoint_file(tmp_path / 'x')
    pickle.dump(3, (tmp_path / 'x.pkl').open('wb'))
    with pytest.raises(UserError, match='PYSKL pickle'):
        read_keypoint_file(tmp_path / 'x.pkl')
    (tmp_path / 'x.json').write_text(json.dumps({'shapes': []}))
    with pytest.raises(UserError, match='Supported'):
        read_keypoint_file(tmp_path / 'x.json')
