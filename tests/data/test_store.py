import multiprocessing
import os
import shutil
import warnings

import numpy as np
import pytest

from lib.data import store as store_module
from lib.data.store import StoreWriter, open_store
from tests.annotations import make_annotations


def clip_rows(store, i):
    start = store.first_row[i]
    shape = store.num_persons[i], store.total_frames[i]
    keypoint, score = store.gather(np.arange(start, start + shape[0] * shape[1]))
    return keypoint.reshape(*shape, *keypoint.shape[1:]), score.reshape(*shape, -1)


def test_holds_exactly_what_the_pickle_holds(write_pickle):
    data = make_annotations([20, 30, 40, 7, 300], persons=[1, 2, 1, 3, 2])
    store = open_store(write_pickle(data))
    for i, annotation in enumerate(data['annotations']):
        keypoint, score = clip_rows(store, i)
        np.testing.assert_array_equal(keypoint, annotation['keypoint'])
        np.testing.assert_array_equal(score, annotation['keypoint_score'])
        assert store.name(i) == annotation['frame_dir']
        assert store.label[i] == annotation['label']
        assert tuple(store.img_shape[i]) == annotation['img_shape']
    assert keypoint.dtype == score.dtype == np.float16
    assert {name: [store.name(i) for i in clips] for name, clips in store.splits.items()} == data['split']


def test_keeps_the_precision_of_float32_files(write_pickle):
    data = make_annotations([20, 30, 40])
    for annotation in data['annotations']:
        annotation['keypoint'] = annotation['keypoint'].astype(np.float32) + 1 / 3
    store = open_store(write_pickle(data))
    np.testing.assert_array_equal(clip_rows(store, 1)[0], data['annotations'][1]['keypoint'])


def test_score_of_a_3d_file_tells_missing_joints(write_pickle):
    data = make_annotations([20, 30, 40], joints=25)
    for annotation in data['annotations']:
        annotation['keypoint'] = np.concatenate([annotation['keypoint'] * 0 + 1] * 2, axis=3)[..., :3]
        for key in ('keypoint_score', 'img_shape', 'original_shape'):
            del annotation[key]
    data['annotations'][1]['keypoint'][0, 4, 9] = 0
    score = clip_rows(open_store(write_pickle(data)), 1)[1]
    assert score[0, 4, 9] == 0
    assert score.sum() == score.size - 1


def test_joints_that_are_not_finite_count_as_missing_with_one_warning(write_pickle):
    data = make_annotations([20, 30, 40])
    keypoint, score = data['annotations'][1]['keypoint'], data['annotations'][1]['keypoint_score']
    keypoint[0, 3, 4, 1] = np.nan
    keypoint[0, 3, 5] = np.inf
    score[0, 3, 6] = np.nan
    path = write_pickle(data)
    with pytest.warns(UserWarning, match='3 joints') as caught:
        store = open_store(path)
    assert len(caught) == 1
    packed, packed_score = clip_rows(store, 1)
    assert (packed[0, 3, 4:7] == 0).all()
    assert (packed_score[0, 3, 4:7] == 0).all()
    np.testing.assert_array_equal(packed[0, 3, 7:], keypoint[0, 3, 7:])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        open_store(path)


def test_is_packed_once_and_again_when_the_pickle_changes(write_pickle, monkeypatch):
    path = write_pickle(make_annotations([20, 30, 40]))
    open_store(path)
    with monkeypatch.context() as patch:
        patch.setattr(store_module, 'load_annotations', None)  # would fail if called
        before = open_store(path)
    write_pickle(make_annotations([20, 30, 41], seed=1))
    after = open_store(path)
    assert after.total_frames[2] == 41
    assert (clip_rows(before, 0)[0] != clip_rows(after, 0)[0]).any()  # an open store keeps what it had


def test_a_failed_packing_leaves_nothing_and_keeps_the_pickle(write_pickle, tmp_path, monkeypatch):
    path = write_pickle(make_annotations([20, 30, 40]))
    content = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, 'add_to_split', lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            open_store(path)
    assert {p.name for p in tmp_path.iterdir()} == {'set.pkl', 'set.lock'}
    assert path.read_bytes() == content
    open_store(path)


def test_store_dir_takes_the_store(write_pickle, tmp_path):
    path = write_pickle(make_annotations([20, 30, 40]))
    open_store(path, tmp_path / 'elsewhere')
    assert (tmp_path / 'elsewhere' / 'set.store' / 'meta.json').is_file()
    assert not (tmp_path / 'set.store').exists()


def test_a_folder_that_cannot_be_written_is_named(write_pickle, tmp_path):
    path = write_pickle(make_annotations([20, 30, 40]))
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match=r'data\.store_dir'):
        open_store(path, tmp_path / 'file' / 'folder')


def test_ids_without_annotation_are_counted(write_pickle):
    data = make_annotations([20, 30, 40])
    data['split']['xsub_val'] += ['nowhere', 'elsewhere']
    with pytest.warns(UserWarning, match='2 clips of split xsub_val have no annotation'):
        store = open_store(write_pickle(data))
    assert len(store.splits['xsub_val']) == 1


def _open_and_report(path, queue):
    packed = []
    original = store_module._pack
    store_module._pack = lambda *args: (packed.append(1), original(*args))
    open_store(path)
    queue.put(len(packed))


def test_of_many_processes_one_packs(write_pickle):
    path = write_pickle(make_annotations([200] * 300))
    context = multiprocessing.get_context('fork')
    queue = context.SimpleQueue()
    processes = [context.Process(target=_open_and_report, args=(path, queue)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]  # else the queue would wait forever
    assert sorted(queue.get() for _ in processes) == [0, 0, 0, 1]


@pytest.mark.skipif(not os.path.exists('/proc/self/smaps_rollup'), reason='needs Linux')
def test_an_open_store_is_shared_not_copied(write_pickle):
    path = write_pickle(make_annotations([300] * 1500, persons=[2] * 1500))
    open_store(path)

    def private_bytes() -> int:
        with open('/proc/self/smaps_rollup') as file:
            return 1024 * sum(int(line.split()[1]) for line in file if line.startswith(('Private_Dirty', 'Swap:')))

    before = private_bytes()
    store = open_store(path)
    assert np.isfinite(store.keypoints[0][::100]).all()
    assert store.nbytes > 75e6
    assert private_bytes() - before < 5e6
    shutil.rmtree(path.parent / 'set.store')  # 90 MB
