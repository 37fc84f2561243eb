"""From a folder of keypoint files and a table of labels to a pickle, and to a model trained on it."""

import json
import pickle
import shlex

import numpy as np
import pytest

import train_action_vanilla
from lib.cli import DONE, USER_ERROR
from lib.data import sample
from lib.data.classes import NTU60
from lib.data.pickles import load_annotations
from lib.tools import check_data, make_pickle
from tests.annotations import make_3d_annotations, make_annotations
from tests.tiny import MODELS, caller, lines, write_config


@pytest.fixture(scope='module')
def sample_files(tmp_path_factory):
    """Files of the sample set, of a person of either list, and the 2D pickle that they are of."""
    folder = tmp_path_factory.mktemp('files')
    content = sample.make_sample(0, [1, 3])[0]
    sample.write_files(folder, content)
    return folder, content


@pytest.fixture
def files(tmp_path):
    """files(rows, header) -> a folder of a.npy to d.npy (30 px larger each), and a table of the rows."""
    folder = tmp_path / 'files'
    folder.mkdir()
    keypoint = np.random.default_rng(0).uniform(100, 900, (6, 17, 2))
    for i, name in enumerate('abcd'):
        np.save(folder / f'{name}.npy', keypoint + 30 * i)

    def table(rows, header='file,label,split'):
        (folder / 'labels.csv').write_text('\n'.join([header, *rows]) + '\n')
        return folder

    return table


@pytest.fixture
def make(tmp_path, capsys):
    """make(folder, *flags) -> exit code, what was printed, the pickle's path."""

    def run(folder, *flags, out='own.pkl'):
        code = make_pickle.main([str(folder), str(folder / 'labels.csv'), '--out', str(tmp_path / out), *flags])
        printed = capsys.readouterr()
        assert (code == DONE) == (not printed.err)
        return code, printed.out + printed.err, tmp_path / out

    return run


GOOD = ('a.npy,walk,train', 'b.npy,a jump,train', 'c.npy,walk,val', 'd.npy,a jump,val;test')


def test_files_become_clips_with_numbers_for_names_in_alphabetical_order(files, make, tmp_path):
    code, text, out = make(files(GOOD), '--img_shape', '1080', '1920')
    assert code == DONE
    data = load_annotations(out)
    assert data['split'] == {'train': ['a', 'b'], 'val': ['c', 'd'], 'test': ['d']}
    assert [(a['frame_dir'], a['label']) for a in data['annotations']] == [('a', 1), ('b', 0), ('c', 1), ('d', 0)]
    assert (tmp_path / 'own_classes.txt').read_text() == 'a jump\nwalk\n'
    for i, annotation in enumerate(data['annotations']):
        expected = np.load(tmp_path / 'files' / f'{"abcd"[i]}.npy')[None]
        np.testing.assert_array_equal(annotation['keypoint'], expected.astype(np.float16))
        assert annotation['keypoint'].dtype == annotation['keypoint_score'].dtype == np.float16
        assert annotation['img_shape'] == annotation['original_shape'] == (1080, 1920)
        assert set(annotation) == set(make_annotations([5])['annotations'][0])
    assert '4 clips of 2 classes' in text
    assert 'list train: 2 clips of 2 classes, 1 of each' in text
    assert 'image size' not in text
    assert 'data.benchmark=[train,val]' in text


def test_labels_may_be_numbers(files, make, tmp_path):
    code, text, out = make(files(['a.npy,3,train', 'b.npy,0,train', 'c.npy,10,val']))
    assert code == DONE
    assert [a['label'] for a in load_annotations(out)['annotations']] == [3, 0, 10]
    assert not (tmp_path / 'own_classes.txt').exists()
    assert 'model.num_classes=11' in text
    assert 'class_names' not in text
    assert 'image size: unknown of 3 clips' in text


def test_tables_of_spreadsheets_are_read(files, make):
    folder = files([])
    rows = ['label,file,note,split', ' walk ,a.npy,"one, two",train', '', '"to  jump",./b.npy,,"val; test"']
    (folder / 'labels.csv').write_bytes('\r\n'.join(rows).encode('utf-8-sig'))
    code, _, out = make(folder)
    assert code == DONE
    assert load_annotations(out)['split'] == {'train': ['a'], 'val': ['b'], 'test': ['b']}
    assert out.with_name('own_classes.txt').read_text() == 'to jump\nwalk\n'


def test_files_in_folders_and_openpose_folders_are_clips_named_by_their_paths(files, make):
    folder = files(['a.npy,walk,train', 'day_2/a.json,walk,train', 'day_2/v.1,run,val'])
    (folder / 'day_2' / 'v.1').mkdir(parents=True)
    people = [{'pose_keypoints_2d': [100.0, 200, 0.5] * 25}]
    (folder / 'day_2' / 'v.1' / 'x_000_keypoints.json').write_text(json.dumps({'people': people}))
    instance = {'keypoints': [[100, 200]] * 17, 'keypoint_scores': [0.5] * 17}
    (folder / 'day_2' / 'a.json').write_text(json.dumps([{'frame_id': 0, 'instances': [instance]}]))
    code, _, out = make(folder)
    assert code == DONE
    assert [a['frame_dir'] for a in load_annotations(out)['annotations']] == ['a', 'day_2/a', 'day_2/v.1']


def test_coordinates_that_float16_blurs_stay_float32(files, make):
    folder = files(GOOD)
    np.save(folder / 'c.npy', np.full((6, 17, 2), 2047.5))
    np.save(folder / 'd.npy', np.full((6, 17, 2), 3001.25))
    _, text, out = make(folder)
    found = [a['keypoint'] for a in load_annotations(out)['annotations']]
    assert [keypoint.dtype.name for keypoint in found] == ['float16'] * 3 + ['float32']
    for keypoint, wanted in zip(found[2:], (2047.5, 3001.25), strict=True):
        assert np.abs(keypoint - wanted).max() < 0.51
    assert 'float32: 1 clip with' in text


def test_kinect_clips_become_a_3d_pickle(files, make):
    folder = files(GOOD)
    for name, annotation in zip('abcd', make_3d_annotations([7, 8, 9, 10])['annotations'], strict=True):
        np.save(folder / f'{name}.npy', annotation['keypoint'])
    code, text, out = make(folder, '--layout', 'ntu25')
    assert code == DONE
    assert set(load_annotations(out)['annotations'][0]) == {'frame_dir', 'label', 'total_frames', 'keypoint'}
    assert '3D of 25 joints' in text
    assert 'model.num_joints=25' in text


def test_clips_of_pickles_and_persons_left_out(files, make, write_pickle):
    folder = files(['a.pkl,walk,train', 'b.npy,walk,val'])
    write_pickle(make_annotations([9])).rename(folder / 'a.pkl')
    crowd = np.random.default_rng(0).uniform(100, 900, (13, 6, 17, 2))
    np.save(folder / 'b.npy', crowd)
    code, text, out = make(folder)
    assert code == DONE
    assert [len(a['keypoint']) for a in load_annotations(out)['annotations']] == [1, 10]
    assert 'left out: 3 persons' in text


# --- mistakes ------------------------------------------------------------------------------------------------------


def test_all_wrong_rows_are_told_before_any_file_is_read(files, make, tmp_path):
    rows = [
        'a.npy,walk,train', 'x.npy,walk,train', 'a.npy,run,val', 'b.npy,,train', ',walk,train', 'c.npy,walk,',
        'd.npy,walk,train val', 'b.npy,walk,train,more', 'labels.csv,7,val',
    ]  # fmt: skip
    folder = files(rows)
    (folder / 'a.npy').write_text('broken')
    code, text, out = make(folder)
    assert code == USER_ERROR
    for told in (
        'labels.csv: 8 mistakes', f'line 3: {folder / "x.npy"} is not there', 'line 4: a stands in line 2 too',
        'line 5: it has no label', 'line 6: it has no file', "line 7: split '' is no name", "line 8: split 'train val'",
        'line 9: it has more cells', "line 10: label '7' is a number",
    ):  # fmt: skip
        assert told in text
    assert 'cannot be read' not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ['files']
    assert not out.exists()


def test_all_wrong_files_are_told_ten_of_them_by_name(files, make, tmp_path):
    folder = files([f'{i}.npy,walk,train' for i in range(12)] + ['a.npy,walk,train', 'b.npy,walk,val'])
    for i in range(12):
        np.save(folder / f'{i}.npy', np.zeros((4, 19, 2)))
    np.save(folder / 'b.npy', np.full((1, 4, 25, 3), 2.0))
    code, text, _ = make(folder)
    assert code == USER_ERROR
    assert 'files: 13 mistakes, so nothing was written' in text
    assert text.count('has 19 joints') == 10
    assert 'and 3 more' in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ['files']


def test_2d_and_3d_do_not_mix(files, make, write_pickle):
    folder = files(['a.npy,walk,train', 'b.pkl,walk,val'])
    write_pickle(make_3d_annotations([9])).rename(folder / 'b.pkl')
    code, text, _ = make(folder)
    assert code == USER_ERROR
    assert 'b.pkl is 3D of 25 joints, and files before it 2D of 17 joints' in text


def test_a_pickle_of_many_clips_is_no_clip(files, make, write_pickle):
    folder = files(['a.pkl,walk,train'])
    write_pickle(make_annotations([9, 9])).rename(folder / 'a.pkl')
    code, text, _ = make(folder)
    assert code == USER_ERROR
    assert 'a.pkl holds 2 clips, and a row is one clip' in text


@pytest.mark.parametrize(
    ('content', 'told'),
    [
        (b'', 'must begin with the line file,label,split, found None'),
        (b'file;label;split\na.npy;walk;train\n', "found ['file;label;split']. Columns are separated by commas"),
        (b'file,label,split\n', 'has no rows'),
        (b'file,label,split\n"a.npy,walk,train\n', 'cannot be read as a CSV table'),
        (b'file,label,split\n\xff\xfe,walk,train\n', 'cannot be read as a CSV table in UTF-8'),
        (b'file,label,split\n"' + b'a' * 200_000 + b'",walk,train\n', 'cannot be read as a CSV table'),
        (b'file,label,split\na.npy,99999999999,train\n', "label '99999999999' is no name, nor a number below 10,000"),
        (b'file,label,split\n\0.npy,walk,train\n', 'is not there'),
    ],
)  # fmt: skip
def test_what_is_no_table_is_told_in_a_few_lines(content, told, files, make):
    folder = files([])
    (folder / 'labels.csv').write_bytes(content)
    code, text, _ = make(folder)
    assert code == USER_ERROR
    assert told in text
    assert len(text) < 500


def test_nothing_is_overwritten(files, make, tmp_path):
    folder = files(GOOD)
    for name in ('own.pkl', 'own_classes.txt'):
        (tmp_path / name).write_text('mine')
        code, text, _ = make(folder)
        assert code == USER_ERROR
        assert f'{tmp_path / name} is there already' in text
        assert (tmp_path / name).read_text() == 'mine'
        (tmp_path / name).unlink()
    assert make(folder, out='own.txt')[0] == USER_ERROR
    assert make(folder)[0] == DONE


def test_folders_that_are_not_there_are_told(files, make, tmp_path, capsys):
    folder = files(GOOD)
    (tmp_path / 'file').write_text('')
    code, text, _ = make(folder, out='file/own.pkl')
    assert code == USER_ERROR
    assert 'is a file' in text
    assert make_pickle.main([str(tmp_path / 'none'), str(folder / 'labels.csv'), '--out', str(tmp_path / 'o.pkl')]) == 2
    assert 'none is no folder' in capsys.readouterr().err
    assert make_pickle.main([str(folder), str(folder / 'none.csv'), '--out', str(tmp_path / 'o.pkl')]) == 2
    assert 'none.csv: there is no such file' in capsys.readouterr().err
    assert make(folder, out='new/own.pkl')[0] == DONE


# --- the whole way -------------------------------------------------------------------------------------------------


def test_ones_own_data_from_files_to_a_trained_model(sample_files, make, tmp_path, capsys):
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
        np.testing.assert_allclose(one, other, atol=0.6)  # a decimal, then float16 above 1024

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
    [line] = lines(run)
    assert line['epoch'] == 1
    assert MODELS['vanilla']['num_classes'] != len(names)


def test_the_pickle_is_as_others_and_is_read_by_pickle_too(files, make):
    _, _, out = make(files(GOOD))
    data = pickle.loads(out.read_bytes())
    assert set(data) == {'split', 'annotations'}
    assert type(data['annotations'][0]['label']) is int
