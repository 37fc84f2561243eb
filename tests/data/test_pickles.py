import collections
import copy
import os
import pickle
import re

import numpy as np
import pytest

from lib.data.pickles import load_annotations
from tests.annotations import make_annotations


@pytest.mark.parametrize('protocol', range(6))
def test_reads_what_every_protocol_writes(write_pickle, protocol):
    data = make_annotations([20, 30, 40], persons=[1, 2, 1])
    data['annotations'][0]['label'] = np.int64(3)  # some sets hold NumPy numbers
    data['annotations'][1]['keypoint'] = np.asfortranarray(data['annotations'][1]['keypoint'])
    data['annotations'][2]['keypoint'] = data['annotations'][2]['keypoint'].astype('>f4')
    loaded = load_annotations(write_pickle(data, protocol=protocol))
    assert loaded['split'] == data['split']
    for ours, theirs in zip(loaded['annotations'], data['annotations'], strict=True):
        assert ours.keys() == theirs.keys()
        assert type(ours['keypoint']) is np.ndarray
        np.testing.assert_array_equal(ours['keypoint'], theirs['keypoint'])
        np.testing.assert_array_equal(ours['keypoint_score'], theirs['keypoint_score'])
        assert (ours['label'], type(ours['label'])) == (theirs['label'], int)


def test_reads_the_numpy_1_spelling(write_pickle):
    path = write_pickle(make_annotations([20, 30, 40]), protocol=2)
    content = path.read_bytes()
    assert b'numpy._core' in content
    path.write_bytes(content.replace(b'cnumpy._core.', b'cnumpy.core.'))
    assert len(load_annotations(path)['annotations']) == 3


@pytest.mark.parametrize('name', ['sbu_hrnet', 'sbu_3danno', 'cmu_hrnet', 'cmu_3danno'])
def test_reads_real_motion(motion, name):
    path = motion(f'{name}.pkl')
    loaded = load_annotations(path)
    theirs = pickle.loads(path.read_bytes())
    assert loaded['split'] == theirs['split']
    for a, b in zip(loaded['annotations'], theirs['annotations'], strict=True):
        np.testing.assert_array_equal(a['keypoint'], b['keypoint'])


def test_a_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match='not there') as error:
        load_annotations(tmp_path / 'ntu60_hrnet.pkl')
    for part in ('ntu60_hrnet.pkl', 'nturgbd/ntu60_hrnet.pkl', 'nturgbd/ntu60_3danno.pkl', 'python -m lib.data.sample'):
        assert part in str(error.value)


class Exploit:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('function', [os.system, eval, exec, getattr, pickle.loads, np.load, collections.OrderedDict])
def test_code_in_a_pickle_is_refused_and_not_run(write_pickle, tmp_path, function):
    marker = tmp_path / 'marker'
    data = make_annotations([20, 30, 40])
    data['annotations'][1]['keypoint'] = Exploit(function, f'touch {marker}')
    with pytest.raises(ValueError, match=rf'set\.pkl: refused.*{re.escape(function.__name__)}'):
        load_annotations(write_pickle(data))
    assert not marker.exists()


def test_object_arrays_are_refused(write_pickle):
    data = make_annotations([20, 30, 40])
    data['annotations'][1]['keypoint'] = np.array([{}, []], object)
    with pytest.raises(ValueError, match='not plain numbers'):
        load_annotations(write_pickle(data))


@pytest.mark.parametrize('share', [0, 0.01, 0.5, 0.999])
def test_a_cut_file_is_refused(write_pickle, share):
    path = write_pickle(make_annotations([20, 30, 40]))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r'set\.pkl: cannot be read.*cut short'):
        load_annotations(path)


def broken(change):
    data = copy.deepcopy(make_annotations([20, 30, 40]))
    change(data['annotations'][1], data)
    return data


ANNOTATION = r'set\.pkl: annotation 1 \(S001C001P001R001A002\)'
MISTAKES = {
    'zero frames': (
        lambda a, d: a.update(total_frames=0, keypoint=a['keypoint'][:, :0], keypoint_score=None),
        f'{ANNOTATION} has zero frames',
    ),
    'frames disagree': (lambda a, d: a.update(total_frames=31), f'{ANNOTATION}: total_frames is 31.* 30 frames'),
    'no person': (
        lambda a, d: a.update(keypoint=a['keypoint'][:0], keypoint_score=None),
        f'{ANNOTATION} holds no person',
    ),
    'no person axis': (
        lambda a, d: a.update(keypoint=a['keypoint'][0]),
        rf'{ANNOTATION}: keypoint must be .*\(30, 17, 2\)',
    ),
    'score shape': (
        lambda a, d: a.update(keypoint_score=a['keypoint_score'][:, :5]),
        f'{ANNOTATION}: keypoint_score has shape',
    ),
    'whole numbers': (
        lambda a, d: a.update(keypoint=a['keypoint'].astype(int)),
        f'{ANNOTATION}: keypoint must be .* int64',
    ),
    'a list': (lambda a, d: a.update(keypoint=[1]), f'{ANNOTATION}: keypoint must be .* found a list'),
    'label text': (lambda a, d: a.update(label='3'), f"{ANNOTATION}: label must be a whole number.*'3'"),
    'label negative': (lambda a, d: a.update(label=-1), f'{ANNOTATION}: label must be .* found -1'),
    'no label': (lambda a, d: a.pop('label'), f'{ANNOTATION} lacks label'),
    'no shape': (lambda a, d: a.pop('img_shape'), f'{ANNOTATION}: img_shape must be'),
    'Kinetics': (lambda a, d: a.update(raw_file='x.pkl'), f'{ANNOTATION} points to a keypoint file'),
    'joints differ': (
        lambda a, d: a.update(keypoint=a['keypoint'][:, :, :9], keypoint_score=None),
        r'annotation 1 .*\(9, 2\)',
    ),
    'name': (lambda a, d: a.update(frame_dir=7), 'annotation 1: frame_dir must be text'),
    'no annotations': (lambda a, d: d['annotations'].clear(), 'holds no annotations'),
    'no split': (lambda a, d: d.pop('split'), "a dict with 'split' and 'annotations'"),
    'split of numbers': (lambda a, d: d['split'].update(xsub_val=[1]), "split 'xsub_val' must be a list"),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_unsound_content_is_refused_by_name(write_pickle, mistake):
    change, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        load_annotations(write_pickle(broken(change)))
