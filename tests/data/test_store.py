import errno
import multiprocessing
import os
import pickle
import shutil
import tracemalloc
import warnings

import numpy as np
import pytest

from lib.data import store as store_module
from lib.data.clips import Clips
from lib.data.store import NpyStream, StoreWriter, open_store
from tests.annotations import make_3d_annotations, make_annotations


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
    with pytest.raises(ValueError, match=r'data\.store_dir'):
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


# --- shards ----------------------------------------------------------------------------------------------------------


def batches(ann_file, **changes):
    """Everything that training and validation make of a set."""
    options = {'benchmark': 'xsub', 'clip_len': 16, 'batch_size': 5, 'seed': 0, **changes}
    for split in ('train', 'val'):
        clips = Clips(split, ann_file=str(ann_file), **options)
        for b in range(len(clips)):
            yield clips.names(1, b), clips[1, b]


def assert_same_batches(first, second):
    for (names, batch), (other_names, other) in zip(first, second, strict=True):
        assert names == other_names
        assert batch.keys() == other.keys()
        for key, array in batch.items():
            np.testing.assert_array_equal(array, other[key])
            assert array.dtype == other[key].dtype


@pytest.mark.parametrize('shard_bytes', [1, 20_000])
@pytest.mark.parametrize(
    ('make', 'changes'),
    [
        (make_annotations, {'rotation': 0.3, 'joint_noise': 0.01}),
        (make_annotations, {'input': 'keypoint_2d'}),
        (make_3d_annotations, {}),
        (make_3d_annotations, {'input': 'keypoint_3d'}),
    ],
)
def test_batches_do_not_depend_on_the_shards(write_pickle, tmp_path, monkeypatch, make, changes, shard_bytes):
    path = write_pickle(make([20, 30, 5, 40, 100] * 5, persons=[1, 2, 1, 3, 2] * 5))
    whole = list(batches(path, **changes))
    assert len(open_store(path).keypoints) == 1
    monkeypatch.setattr(StoreWriter.__init__, '__defaults__', (shard_bytes,))
    parts = {**changes, 'store_dir': str(tmp_path / 'parts')}
    assert_same_batches(whole, batches(path, **parts))
    shards = open_store(path, tmp_path / 'parts').keypoints
    assert len(shards) == 25 if shard_bytes == 1 else 3 < len(shards) < 25


def test_a_shard_has_one_type_and_what_is_gathered_too(write_pickle, tmp_path):
    half, single = make_annotations([20, 30, 40]), make_annotations([20, 30, 40], seed=1)
    for annotation in single['annotations']:
        annotation['keypoint'] = annotation['keypoint'].astype(np.float32) + 1 / 3
    (tmp_path / 'both').mkdir()
    for name, data in {'a': half, 'b': single, 'c': half}.items():
        write_pickle(data, f'both/{name}.pkl')
    store = open_store(tmp_path / 'both')
    assert [shard.dtype for shard in store.keypoints] == [np.float16, np.float32, np.float16]
    for i, annotation in enumerate([*half['annotations'], *single['annotations'], *half['annotations']]):
        keypoint, score = clip_rows(store, i)
        assert (keypoint.dtype, score.dtype) == (np.float32, np.float16)
        np.testing.assert_array_equal(keypoint, annotation['keypoint'])


def test_files_that_grow_are_plain_npy_files(tmp_path):
    stream = NpyStream(tmp_path / 'a.npy', np.float32, (3, 2))
    expected = np.arange(600, dtype=np.float32).reshape(-1, 3, 2)
    for part in np.split(expected, [0, 1, 40]):
        stream.append(part)
    stream.close()
    np.testing.assert_array_equal(np.load(tmp_path / 'a.npy'), expected)


def test_writing_keeps_no_clip_in_memory(tmp_path):
    annotation = make_annotations([20])['annotations'][0]

    def peak(name: str, count: int) -> int:
        (tmp_path / name).mkdir()
        tracemalloc.start()
        try:
            with StoreWriter(tmp_path / name, shard_bytes=2**20) as writer:
                for _ in range(count):
                    writer.add_to_split('xsub_train', [writer.add(annotation)])
            assert writer.num_clips == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak('few', 2000), peak('many', 20_000)
    assert many < few + 18_000 / 2  # half a byte a clip


# --- folders of pickles ----------------------------------------------------------------------------------------------


def write_folder(tmp_path, parts: dict[str, dict]):
    folder = tmp_path / 'set.v1'
    folder.mkdir(exist_ok=True)
    for name, data in parts.items():
        (folder / name).write_bytes(pickle.dumps(data))
    return folder


def numbered(data: dict, prefix: str) -> dict:
    for annotation in data['annotations']:
        annotation['frame_dir'] = prefix + annotation['frame_dir']
    data['split'] = {name: [prefix + i for i in ids] for name, ids in data['split'].items()}
    return data


def test_a_folder_of_pickles_is_the_joined_pickle(write_pickle, tmp_path):
    parts = [numbered(make_annotations([20, 30, 5, 40] * 3, seed=i), str(i)) for i in range(3)]
    parts[1]['split']['only_here'] = parts[1]['split']['xsub_val'][:2]
    # Written out of order, and beside files of other kinds.
    folder = write_folder(tmp_path, {f'{i}.pkl': parts[i] for i in (2, 0, 1)})
    (folder / 'README').write_text('')
    joined = {'split': {}, 'annotations': [a for part in parts for a in part['annotations']]}
    for part in parts:
        for name, ids in part['split'].items():
            joined['split'].setdefault(name, []).extend(ids)
    path = write_pickle(joined)
    assert_same_batches(batches(path), batches(folder))
    one, many = open_store(path), open_store(folder)
    assert {n: list(map(one.name, c)) for n, c in one.splits.items()} == {
        n: list(map(many.name, c)) for n, c in many.splits.items()
    }
    assert (tmp_path / 'set.v1.store' / 'meta.json').is_file()


def test_lists_of_a_folder_are_resolved_file_by_file(tmp_path):
    folder = write_folder(tmp_path, {name: make_annotations([20, 30, 40]) for name in ('a.pkl', 'b.pkl')})
    store = open_store(folder)  # of the same names, in both
    assert store.splits['xsub_train'].tolist() == [0, 1, 3, 4]
    assert store.splits['xsub_val'].tolist() == [2, 5]


def test_a_folder_is_packed_again_when_a_file_comes_or_changes(tmp_path):
    folder = write_folder(tmp_path, {'a.pkl': make_annotations([20, 30, 40])})
    assert len(open_store(folder).label) == 3
    write_folder(tmp_path, {'b.pkl': make_annotations([20, 30])})
    assert len(open_store(folder).label) == 5
    write_folder(tmp_path, {'a.pkl': make_annotations([20, 31, 40, 50])})
    assert len(open_store(folder).label) == 6


def test_what_a_folder_lacks_is_named(tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match=r'empty is a folder without a \*\.pkl file'):
        open_store(tmp_path / 'empty')
    folder = write_folder(tmp_path, {'a.pkl': make_annotations([20]), 'b.pkl': make_3d_annotations([20])})
    with pytest.raises(ValueError, match=r'b\.pkl has .* = \(25, 3\), and the files .* before it \(17, 2\)'):
        open_store(folder)
    (folder / 'b.pkl').write_bytes(b'no pickle')
    with pytest.raises(ValueError, match=r'b\.pkl: cannot be read as a pickle'):
        open_store(folder)
    assert {path.name for path in tmp_path.iterdir()} == {'empty', 'set.v1', 'set.v1.lock'}


def test_a_full_disk_is_named_and_leaves_nothing(write_pickle, tmp_path, monkeypatch):
    path = write_pickle(make_annotations([20, 30, 40]))

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(NpyStream, 'append', fail)
    with pytest.raises(ValueError, match=r'is full, .*set\.pkl .*data\.store_dir'):
        open_store(path)
    assert {p.name for p in tmp_path.iterdir()} == {'set.pkl', 'set.lock'}
