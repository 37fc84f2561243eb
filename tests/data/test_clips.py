import numpy as np
import pytest

from lib.data.clips import Clips
from lib.data.sampling import evaluation_frames
from lib.data.skeletons import COCO17
from tests.annotations import make_annotations

OPTIONS = {'benchmark': 'xsub', 'clip_len': 16, 'batch_size': 4, 'seed': 0}


def clips(split, path, size=56, **changes):
    return Clips(split, size, ann_file=str(path), **{**OPTIONS, **changes})


@pytest.fixture
def mixed(write_pickle):
    """21 training and 11 validation clips of all three lengths, some with two persons."""
    lengths = [5, 16, 20, 31, 32, 100, 15] * 5
    return write_pickle(make_annotations(lengths[:32], persons=[1, 2, 1, 1] * 8))


def test_a_batch_has_the_promised_shapes_and_types(mixed):
    for split, counts in {'train': [4] * 5, 'val': [4, 4, 3]}.items():
        loaded = clips(split, mixed)
        assert len(loaded) == len(counts)
        for b, count in enumerate(counts):
            batch = loaded[0, b]
            assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
                'keypoint': ((count, 2, 16, 17, 2), np.float32),
                'score': ((count, 2, 16, 17), np.float32),
                'label': ((count,), np.int64),
            }
            absent = loaded.store.num_persons[loaded.batch_clips(0, b)] == 1
            assert absent.any()
            assert not batch['keypoint'][absent, 1].any()
            assert not batch['score'][absent, 1].any()
            assert batch['score'][:, 0].all()
            assert batch['score'][~absent, 1].all()


def test_the_test_pipeline_replays_pyskls(golden, write_pickle):
    g = golden('end_to_end')
    annotations = []
    for i in range(4):
        keypoint, score = g[f'e{i}_keypoint'], g[f'e{i}_score']
        annotations.append(
            {'frame_dir': f'e{i}', 'label': i, 'total_frames': keypoint.shape[1], 'keypoint': keypoint,
             'keypoint_score': score, 'img_shape': tuple(int(x) for x in g[f'e{i}_img_shape'])}
        )  # fmt: skip
    names = [a['frame_dir'] for a in annotations]
    path = write_pickle({'split': {'xsub_train': names, 'xsub_val': names}, 'annotations': annotations})
    batch = clips('val', path, clip_len=48)[0, 0]
    for i in range(4):
        expected = g[f'e{i}_kp56']
        frames = g[f'e{i}_frame_inds']
        np.testing.assert_array_equal(evaluation_frames(annotations[i]['total_frames'], 48), frames)
        np.testing.assert_allclose(batch['keypoint'][i, : len(expected)], expected, rtol=1e-6, atol=1e-3)
        np.testing.assert_array_equal(
            batch['score'][i, : len(expected)], g[f'e{i}_score'][:, frames].astype(np.float32)
        )


@pytest.mark.parametrize('case', ['tr0', 'tr1'])
def test_the_train_pipeline_replays_pyskls(golden, write_pickle, monkeypatch, case):
    g = {key.removeprefix(f'{case}_'): value for key, value in golden('end_to_end').items()}
    annotation = {'frame_dir': case, 'label': 0, 'total_frames': g['keypoint'].shape[1], 'keypoint': g['keypoint'],
                  'keypoint_score': g['score'], 'img_shape': tuple(int(x) for x in g['img_shape'])}  # fmt: skip
    path = write_pickle({'split': {'xsub_train': [case, 'other'], 'xsub_val': []},
                         'annotations': [annotation, {**annotation, 'frame_dir': 'other'}]})  # fmt: skip
    loaded = clips('train', path, clip_len=48, flip_ratio=float(g['flip']))
    monkeypatch.setattr(Clips, '_sample', lambda self, clip, random: np.tile(g['frame_inds'], (len(clip), 1)))
    monkeypatch.setattr('lib.data.clips.random_crop_box', lambda shape, *_: np.tile(g['crop_box'], (len(shape), 1)))
    batch = loaded[0, 0]
    persons = len(g['kp56'])
    np.testing.assert_allclose(batch['keypoint'][0, :persons], g['kp56'], rtol=1e-6, atol=1e-3)
    np.testing.assert_array_equal(batch['score'][0, :persons], g['score56'])


def test_what_a_clip_becomes_depends_on_seed_epoch_and_clip_alone(mixed):
    def by_name(epoch, **changes):
        loaded = clips('train', mixed, **changes)
        return {
            name: keypoint
            for b in range(len(loaded))
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


def test_batches_can_be_asked_for_in_any_order(mixed):
    loaded, again = clips('train', mixed), clips('train', mixed)
    asked = [(0, 1), (5, 0), (0, 0), (5, 2), (0, 1)]
    seen = [loaded[key]['keypoint'] for key in asked]
    for key, keypoint in reversed(list(zip(asked, seen, strict=True))):
        np.testing.assert_array_equal(again[key]['keypoint'], keypoint)


def test_an_epoch_visits_every_clip_once(mixed):
    for split, epoch in (('train', 2), ('val', 0)):
        loaded = clips(split, mixed, batch_size=6)
        names = [name for b in range(len(loaded)) for name in loaded.names(epoch, b)]
        assert sorted(names) == sorted(loaded.store.name(i) for i in loaded.clips)
    with pytest.raises(IndexError):
        loaded[0, len(loaded)]


def test_validation_is_the_same_each_epoch_and_takes_the_whole_person(mixed):
    loaded = clips('val', mixed)
    for b in range(len(loaded)):
        batch = loaded[0, b]
        np.testing.assert_array_equal(batch['keypoint'], loaded[9, b]['keypoint'])
        present = batch['keypoint'][batch['score'] > 0]
        assert (present >= 0).all()
        assert (present <= 56).all()


def test_training_draws_crops_and_mirrors_half_of_the_clips(write_pickle):
    # One clip, copied 400 times: its left shoulder is left of the right one but for mirrored copies.
    data = make_annotations([40] * 603)
    keypoint = data['annotations'][0]['keypoint']
    keypoint[..., COCO17.left, 0] = 300 + keypoint[..., COCO17.left, 0] % 16
    keypoint[..., COCO17.right, 0] = 800 + keypoint[..., COCO17.right, 0] % 16
    for annotation in data['annotations']:
        annotation['keypoint'] = keypoint
    path = write_pickle(data)

    def first_persons(**changes):
        return clips('train', path, batch_size=402, **changes)[0, 0]['keypoint'][:, 0]

    def shoulder_width(batch):  # exchanged names make up for the mirror: right stays right of left
        return batch[:, :, list(COCO17.right), 0].mean((1, 2)) - batch[:, :, list(COCO17.left), 0].mean((1, 2))

    batch, unflipped = first_persons(), first_persons(flip_ratio=0.0)
    mirrored = np.abs(unflipped - batch).max((1, 2, 3)) > 1e-3
    assert 0.42 < mirrored.mean() < 0.58
    scores = [clips('train', path, batch_size=402, flip_ratio=ratio)[0, 0]['score'][:, 0] for ratio in (0.5, 0.0)]
    np.testing.assert_array_equal(scores[0][mirrored], scores[1][mirrored][:, :, COCO17.flip_order])
    np.testing.assert_array_equal(scores[0][~mirrored], scores[1][~mirrored])
    restored = 56 - batch[mirrored][:, :, list(COCO17.right), 0]
    np.testing.assert_allclose(unflipped[mirrored][:, :, list(COCO17.left), 0], restored, atol=1e-3)

    uncropped = first_persons(crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    magnified = shoulder_width(batch) / shoulder_width(uncropped)
    assert 1 <= magnified.min() < 1.1
    assert 1.4 < magnified.max() < 1.55  # 1 / sqrt(.56 * 3/4)


def test_persons_beyond_the_limit_are_left_out(write_pickle):
    path = write_pickle(make_annotations([20] * 6, persons=[3] * 6))
    three, two = (clips('val', path, max_persons=m, flip_ratio=0)[0, 0] for m in (3, 2))
    assert three['keypoint'].shape[1] == 3
    assert two['score'].all()
    assert clips('val', path).split_description.endswith('; 2 have over 2 persons, of whom the first are taken')
    assert 'persons' not in clips('val', path, max_persons=3).split_description


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'benchmark': 'xview'}, r"no list 'xview_val'.*xsub_train, xsub_val"),
        ({'benchmark': ['a', 'b']}, r"no list 'b'"),
        ({'benchmark': ['a']}, r'two list names'),
        ({'clip_len': 0}, r'data\.clip_len is 0'),
        ({'batch_size': 0}, r'data\.batch_size is 0'),
        ({'flip_ratio': 1.5}, r'data\.flip_ratio is 1\.5'),
        ({'crop_area': [0.9, 0.5]}, r'data\.crop_area'),
    ],
)
def test_mistakes_are_named(mixed, changes, message):
    with pytest.raises(ValueError, match=message):
        clips('val', mixed, **changes)


def test_an_unknown_split_is_refused(mixed):
    with pytest.raises(ValueError, match="split is 'test'"):
        clips('test', mixed)


def test_lists_may_be_named(write_pickle):
    data = make_annotations([20] * 6)
    names = [a['frame_dir'] for a in data['annotations']]
    data['split'] = {'train1': names[:4], 'test1': names[3:]}  # overlapping lists are the set's own matter
    path = write_pickle(data)
    assert clips('train', path, benchmark=['train1', 'test1']).num_clips == 4
    assert clips('val', path, benchmark=['train1', 'test1']).num_clips == 3


def test_a_label_beyond_the_model_is_named(mixed):
    loaded = clips('train', mixed)
    loaded.check_labels(4)
    with pytest.raises(ValueError, match=r'clip S001C001P\d+R001A004 has label 3, but model\.num_classes is 3'):
        loaded.check_labels(3)


def test_unknown_joints_and_3d_are_refused(write_pickle):
    with pytest.raises(ValueError, match='no skeleton with 9 joints'):
        clips('train', write_pickle(make_annotations([20] * 6, joints=9)))
    data = make_annotations([20] * 6)
    for annotation in data['annotations']:
        annotation['keypoint'] = np.repeat(annotation['keypoint'], 2, axis=3)[..., :3]
    with pytest.raises(ValueError, match='3D keypoints'):
        clips('train', write_pickle(data, 'flat.pkl'))


@pytest.mark.parametrize(('name', 'persons'), [('sbu', 2), ('cmu', 1)])
def test_real_motion(motion, tmp_path, name, persons):
    loaded = clips('train', motion(f'{name}_hrnet.pkl'), clip_len=48, batch_size=32, store_dir=str(tmp_path))
    batch = loaded[0, 0]
    assert batch['keypoint'].shape == (32, 2, 48, 17, 2)
    assert (batch['score'][:, :persons].max((2, 3)) > 0.5).all()
    assert not batch['score'][:, persons:].any()
