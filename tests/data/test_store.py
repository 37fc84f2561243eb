"""The store of a pickle always has the content of the pickle, whatever happened before."""

import dataclasses
import multiprocessing
import os
import pickle
import resource
import signal
from functools import partial

import numpy as np
import pytest

from lib import files
from lib.data import store as store_module
from lib.data.clips import Clips
from lib.data.pickles import load_annotations
from lib.data.store import Joined, open_store
from tests.annotations import make_3d_annotations, make_annotations


def joints(store, clip):
    """Keypoints (M, T, V, C) and scores (M, T, V) of a clip."""
    shape = int(store.num_persons[clip]), int(store.total_frames[clip])
    return store.gather(store.first_row[clip] + np.arange(shape[0] * shape[1]).reshape(shape))


def assert_holds(store, *datas):
    """Asserts that the store has the content of these pickles, in this order."""
    annotations = [annotation for data in datas for annotation in data['annotations']]
    assert len(store.label) == len(annotations)
    for clip, annotation in enumerate(annotations):
        keypoint, score = joints(store, clip)
        np.testing.assert_array_equal(keypoint, annotation['keypoint'])
        np.testing.assert_array_equal(score, annotation.get('keypoint_score', (keypoint != 0).any(-1)))
        assert store.name(clip) == annotation['frame_dir']
        assert store.label[clip] == annotation['label']
        assert tuple(store.img_shape[clip]) == annotation.get('img_shape', (0, 0))
    splits = {}
    for data in datas:
        for name, ids in data['split'].items():
            splits.setdefault(name, []).extend(ids)
    assert {name: [store.name(clip) for clip in clips] for name, clips in store.splits.items()} == splits


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def load_after(*actions):
    """Returns a load_annotations that first calls each action with the file."""
    return lambda file: [action(file) for action in actions] and load_annotations(file)


def in_process(function, *args):
    process = multiprocessing.get_context('fork').Process(target=function, args=args)
    process.start()
    return process


@pytest.fixture
def data():
    return make_annotations([20, 30, 40, 7, 100], persons=[1, 2, 1, 3, 2])


@pytest.fixture
def path(write_pickle, data):
    return write_pickle(data)


def test_has_the_content_of_the_pickle(data, write_pickle):
    data['annotations'][1]['frame_dir'] = data['split']['xsub_train'][1] = 'Ünïcode/名前'
    data['split']['empty'] = []
    store = open_store(write_pickle(data))
    assert_holds(store, data)
    assert (store.keypoint.dtype, store.score.dtype) == (np.float16, np.float16)


@pytest.mark.parametrize('key', ['keypoint', 'keypoint_score'])
def test_keeps_single_precision(data, write_pickle, key):
    data['annotations'][1][key] = data['annotations'][1][key] + np.float32(1 / 3)  # the others have half
    store = open_store(write_pickle(data))
    assert_holds(store, data)
    assert {store.keypoint.dtype.name, store.score.dtype.name} == {'float16', 'float32'}


def test_score_of_a_3d_pickle_is_zero_for_missing_joints(write_pickle):
    data = make_3d_annotations([20, 30, 40])
    data['annotations'][1]['keypoint'][0, 4, 9] = 0
    store = open_store(write_pickle(data))
    assert_holds(store, data)
    assert joints(store, 1)[1].sum() == 30 * 25 - 1


@pytest.mark.parametrize('name', ['sbu_hrnet', 'sbu_3danno', 'cmu_hrnet', 'cmu_3danno'])
def test_has_the_content_of_real_motion(motion, tmp_path, name):
    path = motion(f'{name}.pkl')
    assert_holds(open_store(path, tmp_path), pickle.loads(path.read_bytes()))


def test_joints_that_are_not_finite_are_missing_with_one_warning(data, write_pickle):
    keypoint, score = data['annotations'][1]['keypoint'], data['annotations'][1]['keypoint_score']
    keypoint[0, 3, 4, 1], keypoint[0, 3, 5], score[0, 3, 6] = np.nan, np.inf, np.nan
    path = write_pickle(data)
    with pytest.warns(UserWarning, match=r'set\.pkl: 3 joints') as caught:
        store = open_store(path)
    assert len(caught) == 1
    keypoint[0, 3, 4:7] = score[0, 3, 4:7] = 0
    assert_holds(store, data)


def test_ids_without_annotation_are_dropped_with_a_warning(data, write_pickle):
    more = {**data['split'], 'xsub_val': [*data['split']['xsub_val'], 'a', 'b']}
    with pytest.warns(UserWarning, match='2 clips of split xsub_val have no annotation'):
        assert_holds(open_store(write_pickle({**data, 'split': more})), data)


def test_is_built_once_and_then_only_read(path, data, monkeypatch):
    open_store(path)
    monkeypatch.setattr(store_module, '_open_or_build', store_module._open)
    assert_holds(open_store(path), data)


@pytest.mark.parametrize('changed', ['st_size', 'st_mtime_ns'])
def test_is_rebuilt_when_the_pickle_changes(path, data, write_pickle, changed):
    before, store = path.stat(), open_store(path)
    other = make_annotations([20, 30, 40, 7, 100], persons=[1, 2, 1, 3, 2 + (changed == 'st_size')], seed=1)
    write_pickle(other)  # in place of the first
    os.utime(path, ns=(0, before.st_mtime_ns + (changed == 'st_mtime_ns')))
    assert [key for key in ('st_size', 'st_mtime_ns') if getattr(path.stat(), key) != getattr(before, key)] == [changed]
    assert_holds(open_store(path), other)
    assert_holds(store, data)  # an open store keeps its content


@pytest.mark.parametrize('keep', [None, 0, 0.5])
@pytest.mark.parametrize('name', ['meta.json', *(f'{name}.npy' for name in ('clips', 'frame_dir', 'score', 'split_1'))])
def test_is_rebuilt_when_a_file_is_missing_or_truncated(path, data, name, keep, monkeypatch):
    open_store(path)
    file = path.with_suffix('.store') / name
    file.unlink() if keep is None else os.truncate(file, int(keep * file.stat().st_size))
    assert_holds(open_store(path), data)
    monkeypatch.setattr(store_module, '_open_or_build', store_module._open)
    assert_holds(open_store(path), data)


def test_pickles_of_one_name_may_share_a_store_dir(path, data, write_pickle, tmp_path, monkeypatch):
    (tmp_path / 'other').mkdir()
    other = make_annotations([20, 30, 40], seed=1)
    paths, datas = [path, write_pickle(other, 'other/set.pkl')], [data, other]
    open_either = [partial(open_store, each, tmp_path / 'stores') for each in paths]
    for i in (0, 1, 0, 1):
        assert_holds(open_either[i](), datas[i])
    assert names_in(tmp_path / 'other') == {'set.pkl'}
    with monkeypatch.context() as patch:  # the store is replaced while it is opened
        patch.setattr(np, 'load', lambda *args, **key: (patch.undo(), open_either[0](), np.load(*args, **key))[-1])
        assert_holds(open_either[1](), other)


def test_a_pickle_that_changes_while_it_is_packed_is_reported(path, monkeypatch):
    monkeypatch.setattr(store_module, 'load_annotations', load_after(os.utime))
    with pytest.raises(ValueError, match=r'set\.pkl was changed'):
        open_store(path)


def test_of_two_processes_one_builds_and_the_other_waits(path, data, monkeypatch):
    reached, go_on, logged = multiprocessing.Event(), multiprocessing.Event(), []
    load = load_after(lambda _: reached.set(), lambda _: go_on.wait(60))
    monkeypatch.setattr(store_module, 'load_annotations', load)
    builder = in_process(open_store, path)
    assert reached.wait(60)
    monkeypatch.setattr(store_module, 'load_annotations', None)  # would fail if called
    monkeypatch.setattr(files.log, 'info', lambda *line: (logged.append(line), go_on.set()))
    assert_holds(open_store(path), data)
    builder.join()
    assert builder.exitcode == 0
    assert [f'process {builder.pid} ' in line[1] for line in logged] == [True]


def test_files_of_a_killed_process_are_cleaned_up(path, data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', lambda _: os.kill(os.getpid(), signal.SIGKILL))
        in_process(open_store, path).join()
    assert (tmp_path / 'set.packing' / 'keypoint.npy').exists()
    assert_holds(open_store(path), data)
    assert names_in(tmp_path) == {'set.pkl', 'set.store', 'set.lock'}


@pytest.mark.parametrize('room', [0, 300, 10_000])
def test_a_full_disk_is_reported_and_leaves_no_files(path, tmp_path, room):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))  # bytes of a file that can be written
    try:
        with pytest.raises(ValueError, match=r'set\.store cannot be written .*data\.store_dir'):
            open_store(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names_in(tmp_path) == {'set.pkl', 'set.lock'}


def test_a_read_only_folder_is_reported(path, data, tmp_path, monkeypatch):
    (elsewhere := tmp_path / 'elsewhere').mkdir()
    access = os.access  # root may write anywhere
    monkeypatch.setattr(os, 'access', lambda place, mode: access(place, mode) and place != tmp_path)
    with pytest.raises(ValueError, match=r'data\.store_dir'):
        open_store(path)
    assert names_in(tmp_path) == {'set.pkl', 'elsewhere'}
    assert_holds(open_store(path, elsewhere / 'new'), data)


def test_joined_arrays_are_indexed_as_one():
    arrays = [np.arange(6, dtype=np.float16).reshape(3, 2), np.ones((1, 2), np.float32) / 3, np.zeros((2, 2))]
    whole, joined = np.concatenate(arrays), Joined(arrays)
    assert (len(joined), joined.shape, joined.dtype) == (6, whole.shape, whole.dtype)
    for rows in (0, 3, np.int32(5), np.array([], int), np.array([5, 0, 3, 3]), np.arange(6).reshape(2, 3)):
        np.testing.assert_array_equal(joined[rows], whole[rows])
    with pytest.raises(IndexError):
        joined[6]


@pytest.fixture
def folder(write_pickle, tmp_path):
    """A folder of three pickles, the second with single precision and a split of its own, and their contents."""
    (tmp_path / 'sets').mkdir()
    datas = [make_annotations([20, 30, 5, 40] * 3, persons=[1, 2, 1, 3] * 3, seed=seed) for seed in range(3)]
    for annotation in datas[1]['annotations']:
        annotation['keypoint'] = annotation['keypoint'] + np.float32(1 / 3)
    datas[1]['split']['only_here'] = datas[1]['split']['xsub_val'][:2]
    paths = [write_pickle(datas[i], f'sets/{i}.pkl') for i in (2, 0, 1)]  # not in the order of their names
    return paths[0].parent, datas


def test_a_folder_is_one_dataset(folder, write_pickle):
    path, datas = folder
    store = open_store(path)
    assert_holds(store, *datas)
    assert store.splits['xsub_val'].tolist() == [*range(8, 12), *range(20, 24), *range(32, 36)]
    assert (store.keypoint.dtype, store.score.dtype) == (np.float32, np.float16)
    joined = {name: array for name, array in vars(store).items() if isinstance(array, Joined)}
    whole = dataclasses.replace(store, **{name: array[np.arange(len(array))] for name, array in joined.items()})
    for split in ('train', 'val'):
        clips = Clips(split, ann_file=str(path), benchmark='xsub', clip_len=16, batch_size=50, seed=0)
        batch, clips.store = clips[1, 0], whole
        for key, array in clips[1, 0].items():
            np.testing.assert_array_equal(batch[key], array)


def test_only_the_new_pickle_of_a_folder_is_packed(folder, write_pickle, monkeypatch):
    path, datas = folder
    open_store(path)
    more, packed = make_annotations([20, 30, 40], seed=4), []
    write_pickle(more, 'sets/3.pkl')
    monkeypatch.setattr(store_module, 'load_annotations', load_after(lambda file: packed.append(file.name)))
    assert_holds(open_store(path), *datas, more)
    assert packed == ['3.pkl']


def test_folders_that_are_not_a_dataset_are_reported(folder, write_pickle, tmp_path):
    write_pickle(make_3d_annotations([20]), 'sets/3.pkl')
    with pytest.raises(ValueError, match=r'3\.pkl .*\(25, 3\).*0\.pkl .*\(17, 2\)'):
        open_store(folder[0])
    with pytest.raises(ValueError, match=r'is a folder without a \*\.pkl file'):
        open_store(tmp_path)
