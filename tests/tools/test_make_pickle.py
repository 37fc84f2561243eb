"""make_pickle: from keypoint files and a table of labels to a trained model, and from other datasets."""

import copy
import json
import pickle
import shlex

import numpy as np
import pytest

import train_action_vanilla
from lib.cli import DONE, USER_ERROR
from lib.data.classes import NTU60
from lib.data.pickles import load_annotations
from lib.data.skeletons import convert
from lib.tools import check_data, make_pickle
from lib.tools.sample import dataset as sample
from tests.annotations import make_3d_annotations, make_annotations
from tests.tiny import caller, lines, write_config


@pytest.fixture(scope='module')
def sample_files(tmp_path_factory):
    """Files of one sample person per split, and the content of their 2D pickle."""
    folder = tmp_path_factory.mktemp('files')
    content = sample.make_sample(0, [1, 3])[0]
    sample.write_files(folder, content)
    return folder, content


@pytest.fixture
def files(tmp_path):
    """files(rows) -> a folder of a.npy to d.npy (shifted by 30 px each) and a table of the rows."""
    folder = tmp_path / 'files'
    folder.mkdir()
    keypoint = np.random.default_rng(0).uniform(100, 900, (6, 17, 2))
    for i, name in enumerate('abcd'):
        np.save(folder / f'{name}.npy', keypoint + 30 * i)

    def table(rows):
        (folder / 'labels.csv').write_text('\n'.join(['file,label,split', *rows]) + '\n')
        return folder

    return table


@pytest.fixture
def make(tmp_path, capsys):
    """make(folder, *flags) -> exit code, output, path of the pickle."""

    def run(folder, *flags, out='own.pkl'):
        code = make_pickle.main([str(folder), str(folder / 'labels.csv'), '--out', str(tmp_path / out), *flags])
        printed = capsys.readouterr()
        assert (code == DONE) == (not printed.err)
        return code, printed.out + printed.err, tmp_path / out

    return run


GOOD = ('a.npy,walk,train', 'b.npy,a jump,train', 'c.npy,walk,val', 'd.npy,a jump,val;test')


def test_files_become_clips_with_labels_in_alphabetical_order(files, make, tmp_path):
    code, text, out = make(files(GOOD), '--img_shape', '1080', '1920')
    assert code == DONE
    data = pickle.loads(out.read_bytes())
    assert data['split'] == {'train': ['a', 'b'], 'val': ['c', 'd'], 'test': ['d']}
    assert [(a['frame_dir'], a['label']) for a in data['annotations']] == [('a', 1), ('b', 0), ('c', 1), ('d', 0)]
    assert (tmp_path / 'own_classes.txt').read_text() == 'a jump\nwalk\n'
    for i, annotation in enumerate(data['annotations']):
        expected = np.load(tmp_path / 'files' / f'{"abcd"[i]}.npy')[None]
        np.testing.assert_array_equal(annotation['keypoint'], expected.astype(np.float16))
        assert annotation['keypoint'].dtype == annotation['keypoint_score'].dtype == np.float16
        assert annotation['img_shape'] == annotation['original_shape'] == (1080, 1920)
        assert set(annotation) == set(make_annotations([5])['annotations'][0])
    assert 'data.benchmark=[train,val]' in text


def test_tables_from_spreadsheets_are_read(files, make):
    folder = files([])
    rows = ['label,file,note,split', ' walk ,a.npy,"one, two",train', '', '"to  jump",./b.npy,,"val; test"']
    (folder / 'labels.csv').write_bytes('\r\n'.join(rows).encode('utf-8-sig'))
    code, _, out = make(folder)
    assert code == DONE
    assert load_annotations(out)['split'] == {'train': ['a'], 'val': ['b'], 'test': ['b']}
    assert out.with_name('own_classes.txt').read_text() == 'to jump\nwalk\n'
    (folder / 'labels.csv').write_text('file,label,split\na.npy,3,train\nb.npy,10,val\n')
    code, text, out = make(folder, out='numbers.pkl')
    assert [a['label'] for a in load_annotations(out)['annotations']] == [3, 10]
    assert 'model.num_classes=11' in text


def test_clips_in_folders_are_named_by_their_paths(files, make):
    folder = files(['a.npy,walk,train', 'day_2/a.json,walk,train', 'day_2/v.1,run,val'])
    (folder / 'day_2' / 'v.1').mkdir(parents=True)
    people = [{'pose_keypoints_2d': [100.0, 200, 0.5] * 25}]
    (folder / 'day_2' / 'v.1' / 'x_000_keypoints.json').write_text(json.dumps({'people': people}))
    instance = {'keypoints': [[100, 200]] * 17, 'keypoint_scores': [0.5] * 17}
    (folder / 'day_2' / 'a.json').write_text(json.dumps([{'frame_id': 0, 'instances': [instance]}]))
    code, _, out = make(folder)
    assert code == DONE
    assert [a['frame_dir'] for a in load_annotations(out)['annotations']] == ['a', 'day_2/a', 'day_2/v.1']


def test_kinect_clips_become_a_3d_pickle_without_2d_clips(files, make, write_pickle):
    folder = files(['a.npy,walk,train', 'b.npy,walk,val'])
    for name, annotation in zip('ab', make_3d_annotations([7, 8])['annotations'], strict=True):
        np.save(folder / f'{name}.npy', annotation['keypoint'])
    code, text, out = make(folder, '--layout', 'ntu25')
    assert code == DONE
    assert set(load_annotations(out)['annotations'][0]) == {'frame_dir', 'label', 'total_frames', 'keypoint'}
    assert 'model.num_joints=25' in text
    files(['c.npy,walk,train', 'd.pkl,walk,val'])
    write_pickle(make_3d_annotations([9])).rename(folder / 'd.pkl')
    code, text, out = make(folder, out='mixed.pkl')
    assert code == USER_ERROR
    assert 'd.pkl' in text
    assert not out.exists()


def test_all_invalid_rows_are_reported_before_any_file_is_read(files, make, tmp_path):
    rows = [
        'a.npy,walk,train', 'x.npy,walk,train', 'a.npy,run,val', 'b.npy,,train', ',walk,train', 'c.npy,walk,',
        'd.npy,walk,train val', 'b.npy,walk,train,more', 'labels.csv,7,val',
    ]  # fmt: skip
    folder = files(rows)
    (folder / 'a.npy').write_text('broken')
    code, text, out = make(folder)
    assert code == USER_ERROR
    for line in range(3, 11):
        assert f'line {line}: ' in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ['files']
    assert not out.exists()


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'file;label;split\na.npy;walk;train\n',
        b'file,label,split\n',
        b'file,label,split\n"a.npy,walk,train\n',
        b'file,label,split\n\xff\xfe,walk,train\n',
        b'file,label,split\na.npy,99999999999,train\n',
    ],
)
def test_invalid_tables_are_refused_in_a_few_lines(content, files, make):
    folder = files([])
    (folder / 'labels.csv').write_bytes(content)
    code, text, _ = make(folder)
    assert code == USER_ERROR
    assert 'labels.csv' in text
    assert len(text) < 500


def test_nothing_is_overwritten(files, make, tmp_path):
    folder = files(GOOD)
    for name in ('own.pkl', 'own_classes.txt'):
        (tmp_path / name).write_text('mine')
        code, text, _ = make(folder)
        assert code == USER_ERROR
        assert str(tmp_path / name) in text
        assert (tmp_path / name).read_text() == 'mine'
        (tmp_path / name).unlink()
    assert make(folder, out='own.txt')[0] == USER_ERROR
    assert make(folder)[0] == DONE


def test_missing_sources_and_unwritable_outputs_are_found_before_reading(files, tmp_path, refused):
    folder = files(GOOD)
    table = folder / 'labels.csv'
    for flags in ([], [table], ['--layout', 'body25'], ['--kpfiles', folder]):
        error = refused(make_pickle.main, tmp_path / 'none', *flags, '--out', tmp_path / 'x.pkl')
        assert 'none: there is no such file or folder' in error
    (folder / 'a.npy').write_text('broken')
    # Root may write to any folder but /proc.
    assert '/proc cannot be written' in refused(make_pickle.main, folder, table, '--out', '/proc/x.pkl')


def test_from_files_to_a_trained_model(sample_files, make, tmp_path, capsys):
    """With the commands printed by the tool."""
    folder, content = sample_files
    code, text, out = make(folder, '--img_shape', '1080', '1920')
    assert code == DONE
    clips = {a['frame_dir']: a for a in content['annotations']}
    names = out.with_name('own_classes.txt').read_text().splitlines()
    for annotation in load_annotations(out)['annotations']:
        clip = clips[annotation['frame_dir']]
        assert names[annotation['label']] == NTU60[clip['label']]
        assert annotation['keypoint'].shape == clip['keypoint'].shape
        one, other = (np.sort(a['keypoint'].astype(float), axis=0) for a in (annotation, clip))
        np.testing.assert_allclose(one, other, atol=0.6)  # rounded to .1 px, then float16 above 1024

    check, train = (shlex.split(line) for line in text.splitlines()[-2:])
    assert check[:3] == ['python', '-m', 'lib.tools.check_data']
    assert check_data.main(check[3:]) == DONE, capsys.readouterr().out
    assert train[:2] == ['python', 'train_action_vanilla.py']
    settings = train[train.index('--set') :]
    run = tmp_path / 'run'
    small = ['--set', 'train.epochs=1', '--set', f'data.store_dir={tmp_path}']
    assert f'model.num_classes={len(names)}' in settings
    call = caller(train_action_vanilla)
    assert call('--config', write_config('vanilla', tmp_path), '-c', run, *small, *settings) == DONE
    assert len(lines(run)) == 1


def skeleton_text(bodies: dict[str, np.ndarray], frames: int) -> str:
    """A .skeleton file of NTU RGB+D. bodies: joints (T, 25, 3) by body id, zeros if absent."""
    lines = [str(frames)]
    for t in range(frames):
        here = {body: joints[t] for body, joints in bodies.items() if joints[t].any()}
        lines.append(str(len(here)))
        for body, joints in here.items():
            lines += [f'{body} 0 1 1 1 1 0 0.02 0.05 2', '25']
            lines += [' '.join(map(str, [*point, *range(8), 2])) for point in joints.round(6).tolist()]
    return '\n'.join(lines) + '\n'


def test_raw_skeletons_become_a_3d_dataset_with_labels_and_splits_from_their_names(tmp_path, capsys):
    """The two of three bodies that move most are kept; ids exceed the precision of float64."""
    random = np.random.default_rng(0)
    poses = random.uniform(-1, 1, (3, 1, 25, 3)) + random.normal(0, 1, (3, 8, 25, 3)) * np.array([0.1, 0, 0.2]).reshape(
        3, 1, 1, 1
    )
    poses[2, :3] = 0
    bodies = dict(zip(('72057594037900001', '72057594037900002', '72057594037900003'), poses, strict=True))
    folder = tmp_path / 'raw' / 'nturgb+d_skeletons'
    folder.mkdir(parents=True)
    for name in ('S001C001P001R001A008', 'S002C002P003R002A050', 'S017C003P040R001A001'):
        (folder / f'{name}.skeleton').write_text(skeleton_text(bodies, 8))
    (folder / 'S001C001P002R001A001.skeleton').write_text('2\n0\n0\n')
    (folder / '._S001C001P001R001A008.skeleton').write_bytes(b'\0\5\x16\7')
    out = tmp_path / 'ntu.pkl'
    assert make_pickle.main([str(tmp_path / 'raw'), '--out', str(out)]) == DONE
    assert 'left out: 1 clip without a skeleton (S001C001P002R001A001)' in capsys.readouterr().out
    data = load_annotations(out)
    assert [(a['frame_dir'][-4:], a['label']) for a in data['annotations']] == [('A008', 7), ('A050', 49), ('A001', 0)]
    for annotation in data['annotations']:
        np.testing.assert_allclose(annotation['keypoint'], poses[[2, 0]], atol=1e-5)
    assert {name: [clip[:4] for clip in clips] for name, clips in data['split'].items()} == {
        'xsub_train': ['S001'],
        'xsub_val': ['S002', 'S017'],
        'xview_train': ['S002', 'S017'],
        'xview_val': ['S001'],
    }
    (folder / 'S018C001P001R001A061.skeleton').write_text(skeleton_text(bodies, 8))
    assert make_pickle.main([str(tmp_path / 'raw'), '--out', str(tmp_path / 'ntu120.pkl')]) == DONE
    split = load_annotations(tmp_path / 'ntu120.pkl')['split']
    assert [clip[:4] for clip in split['xset_train']] == ['S002', 'S018']
    (folder / 'other.skeleton').write_text('0\n')
    assert make_pickle.main([str(tmp_path / 'raw'), '--out', str(tmp_path / 'x.pkl')]) == USER_ERROR
    assert 'other.skeleton' in capsys.readouterr().err


def test_a_whole_pickle_is_converted_from_another_layout(tmp_path, write_pickle, refused):
    data = make_annotations([5, 9], persons=[1, 2])
    converted = copy.deepcopy(data)
    for annotation in converted['annotations']:
        for key in ('keypoint', 'keypoint_score'):
            shape = *annotation[key].shape[:2], 25, *annotation[key].shape[3:]
            values = annotation[key].reshape(*shape[:2], 17, -1)
            annotation[key] = convert(values, 'coco17', 'body25').reshape(shape)
    old, out = write_pickle(converted), tmp_path / 'new.pkl'
    assert make_pickle.main([str(old), '--layout', 'body25', '--out', str(out)]) == DONE
    loaded = load_annotations(out)
    assert loaded['split'] == data['split']
    for ours, theirs in zip(loaded['annotations'], data['annotations'], strict=True):
        np.testing.assert_array_equal(ours['keypoint'], theirs['keypoint'])
        np.testing.assert_array_equal(ours['keypoint_score'], theirs['keypoint_score'])
        assert (ours['label'], ours['frame_dir']) == (theirs['label'], theirs['frame_dir'])
    for arguments in ([old], [old, '--layout', 'halpe26'], [tmp_path / 'nothing.pkl', '--layout', 'body25']):
        refused(make_pickle.main, *arguments, '--out', tmp_path / 'x.pkl')


def test_a_table_adds_labels_and_splits_to_the_clips_of_a_pickle(files, make, write_pickle, tmp_path):
    annotations = make_annotations([5, 9, 7])['annotations']
    names = [annotation['frame_dir'] for annotation in annotations]
    source, labels = write_pickle(annotations, 'list.pkl'), tmp_path / 'labels.csv'
    labels.write_text(f'file,label,split\n{names[1]},walk,train\n{names[2]},run,val\n')
    assert make_pickle.main([str(source), str(labels), '--out', str(tmp_path / 'new.pkl')]) == DONE
    data = load_annotations(tmp_path / 'new.pkl')
    assert data['split'] == {'train': [names[1]], 'val': [names[2]]}
    assert [a['label'] for a in data['annotations']] == [1, 0]
    # In a folder, all clips of a pickle get the label of its row.
    folder = files(['list.pkl,walk,train', 'a.npy,run,val'])
    source.rename(folder / 'list.pkl')
    code, text, out = make(folder)
    assert code == DONE
    assert load_annotations(out)['split'] == {'train': [f'list/{name}' for name in names], 'val': ['a']}
    assert 'read as: 3 PYSKL, 1 array (coco17)' in text
