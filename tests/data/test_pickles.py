import collections
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lib.data.pickles import load_annotations, read_pickle
from tests.annotations import make_annotations


@pytest.mark.parametrize('protocol', range(6))
def test_reads_every_protocol(write_pickle, protocol):
    data = make_annotations([20, 30, 40], persons=[1, 2, 1])
    data['annotations'][0]['label'] = np.int64(3)  # some datasets contain NumPy numbers
    joints_first = data['annotations'][0]['keypoint'].swapaxes(1, 2).copy('C')
    data['annotations'][0]['keypoint'] = joints_first.swapaxes(1, 2)  # neither C nor Fortran order
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


def test_errors_about_a_missing_file_have_download_links(tmp_path):
    with pytest.raises(ValueError, match='does not exist') as error:
        load_annotations(tmp_path / 'ntu60_hrnet.pkl')
    for part in ('nturgbd/ntu60_hrnet.pkl', 'nturgbd/ntu60_3danno.pkl', 'python -m lib.tools.sample'):
        assert part in str(error.value)


@pytest.mark.parametrize('protocol', range(6))
def test_other_containers_are_read(write_pickle, protocol):
    data = make_annotations([20, 30, 40])
    data['split'] = collections.defaultdict(list, {name: tuple(ids) for name, ids in data['split'].items()})
    data['split']['array'] = np.array(data['split']['xsub_val'])
    data['annotations'] = tuple(map(collections.OrderedDict, data['annotations']))
    data['annotations'][0]['tags'] = collections.defaultdict(int, {2.5: {1, 2}})
    loaded = load_annotations(write_pickle(collections.defaultdict(dict, data), protocol=protocol))
    assert loaded['split'] == {name: list(ids) for name, ids in data['split'].items()}
    assert loaded['annotations'][0]['tags'] == {2.5: {1, 2}}
    assert [a['frame_dir'] for a in loaded['annotations']] == [a['frame_dir'] for a in data['annotations']]


@pytest.mark.parametrize('kind', ['JSON', '.npz', '.npy'])
def test_other_files_are_not_called_damaged(kind, tmp_path):
    path = tmp_path / 'file'
    with path.open('wb') as file:
        if kind == 'JSON':
            file.write(b'\xef\xbb\xbf [{"keypoints": []}]')
        else:
            (np.savez if kind == '.npz' else np.save)(file, np.ones(3))
    with pytest.raises(ValueError, match=rf'file is .*{kind}.*, not a pickle.*make_pickle FOLDER LABELS.csv'):
        load_annotations(path)


def updated(**changes):
    return lambda annotation, data: annotation.update(changes)


def changed(key, function):
    return lambda annotation, data: annotation.update({key: function(annotation[key])})


ANNOTATION = r'set\.pkl: annotation 1 \(S001C001P001R001A002\)'
INVALID = {  # name: (change of the second annotation and the dataset, part of the message)
    'zero frames': (updated(total_frames=0), f'{ANNOTATION}: total_frames is 0.* 30 frames'),
    'frames disagree': (updated(total_frames=31), f'{ANNOTATION}: total_frames is 31.* 30 frames'),
    'no person axis': (changed('keypoint', lambda a: a[0]), rf'{ANNOTATION}: keypoint must be .*\(30, 17, 2\)'),
    'score shape': (changed('keypoint_score', lambda a: a[:, :5]), f'{ANNOTATION}: keypoint_score has shape'),
    'label text': (updated(label='3'), f"{ANNOTATION}: label must be a whole number.*'3'"),
    'label array': (updated(label=np.array([3])), rf'{ANNOTATION}: label must be .* found array\(\[3\]\)'),
    'shape array': (
        updated(img_shape=np.array([[3]])),
        rf'{ANNOTATION}: img_shape must be .* array\(\[\[3\]\]\)',
    ),
    'label negative': (updated(label=-1), f'{ANNOTATION}: label must be .* found -1'),
    'no label': (lambda a, d: a.pop('label'), f'{ANNOTATION} lacks label'),
    'no shape': (lambda a, d: a.pop('img_shape'), f'{ANNOTATION}: img_shape must be'),
    'Kinetics': (updated(raw_file='x.pkl'), f'{ANNOTATION} refers to another keypoint file'),
    'joints differ': (
        lambda a, d: a.update(keypoint=a['keypoint'][:, :, :9], keypoint_score=None),
        r'annotation 1 .*\(9, 2\)',
    ),
    'name': (updated(frame_dir=7), 'annotation 1: frame_dir must be text'),
    'no annotations': (lambda a, d: d['annotations'].clear(), 'holds no annotations'),
    'no split': (lambda a, d: d.pop('split'), "a dict with 'split' and 'annotations'"),
    'split of numbers': (lambda a, d: d['split'].update(xsub_val=[1]), "split 'xsub_val' must be a list"),
}


@pytest.mark.parametrize('case', INVALID)
def test_invalid_content_is_refused_by_name(write_pickle, case):
    (change, message), data = INVALID[case], make_annotations([20, 30, 40])
    change(data['annotations'][1], data)
    with pytest.raises(ValueError, match=message):
        load_annotations(write_pickle(data))


numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
arrays = hnp.arrays(
    hnp.floating_dtypes(endianness='?') | hnp.integer_dtypes(endianness='?') | hnp.boolean_dtypes(),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
)
numpy_numbers = st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.int64, np.bool_]).map(lambda t: t(1))
plain_data = st.recursive(
    st.none() | st.booleans() | numbers | st.text() | st.binary(max_size=300) | arrays | numpy_numbers,
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def same(one, other):
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(same, one.values(), other.values()))
    return type(one) is type(other) and one == other


@given(data=plain_data, protocol=st.integers(0, 5))
def test_plain_data_is_read_like_pickle_load(tmp_path, data, protocol):
    path = tmp_path / 'set.pkl'
    content = pickle.dumps([data, data], protocol)  # the second one refers to the first
    path.write_bytes(content)
    assert same(read_pickle(path), pickle.loads(content))
