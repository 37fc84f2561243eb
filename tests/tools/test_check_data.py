import copy
import pickle
import re

import numpy as np
import pytest
import yaml

from lib.data.clips import Clips
from lib.data.pickles import load_annotations
from lib.data.skeletons import COCO17, NTU25
from lib.models import MODELS, load_config
from lib.tools import check_data
from tests import tiny
from tests.annotations import make_3d_annotations, make_annotations

CONFIG = {
    'script': 'mbert',
    'data': {'ann_file': 'x', 'benchmark': 'xsub', 'clip_len': 8, 'batch_size': 2, 'seed': 0},
    'heatmap': {'size': 12},
    'model': tiny.MODELS['mbert'],
    'optimizer': tiny.optimizer('mbert'),
    'train': {'epochs': 1},
}


def standing(data, skeleton, down):
    """The same clips with joints at the heights of a standing body."""
    level = {'nose': 0, 'eye': 0, 'ear': 0, 'head': 0, 'hip': 200, 'knee': 300, 'ankle': 400}
    for annotation in data['annotations']:
        for joint, name in enumerate(skeleton.joints):
            height = level.get(name.split('_')[-1], 100)
            annotation['keypoint'][..., joint, 1] = (300 + height if down else 1 - height / 400) + np.arange(
                annotation['total_frames'], dtype=np.float16
            ) / (1 if down else 1000)
    return data


@pytest.fixture(scope='module')
def good():
    return standing(make_annotations([20 + i for i in range(24)], persons=[1, 2] * 12), COCO17, down=True)


@pytest.fixture
def check(write_pickle, tmp_path, capsys):
    """check(data, config=None) -> exit code, output on one line, output."""

    def run(data, config=None):
        arguments = [str(write_pickle(data))]
        if config is not None:
            (tmp_path / 'c.yaml').write_text(yaml.safe_dump(config))
            arguments += ['--config', str(tmp_path / 'c.yaml')]
        code = check_data.main(arguments)
        out, err = capsys.readouterr()
        return code, ' '.join((out + err).split()), out

    return run


def test_a_valid_dataset_has_no_findings_and_fits_on_one_screen(good, check):
    code, text, screen = check(good, CONFIG)
    assert (code, text.endswith('0 faults, 0 warnings')) == (0, True), screen
    for part in (
        '24 clips',
        'COCO-17',
        '1080 x 1920',
        'xsub_train 16 4 4 (class 3) 4 (class 0)',
        'xsub_val 8 4 2 (class 3) 2 (class 0)',
    ):
        assert part in text
    assert len(screen.splitlines()) < 20
    assert max(map(len, screen.splitlines())) <= 120


def test_a_3d_dataset(check):
    data = standing(make_3d_annotations([20] * 12), NTU25, down=False)
    code, text, _ = check(data)
    assert (code, '0 faults' in text) == (0, True)
    assert 'NTU-25' in text
    data['annotations'][0]['keypoint'][..., 1] *= -50
    assert 'joints are not in the order of NTU-25' in check(data)[1]


def first(**changes):
    return lambda data: data['annotations'][0].update(changes)


def transpose(data):
    """Writes img_shape as (w, h); persons are on the right of the image."""
    for annotation in data['annotations'][:5]:
        annotation['keypoint'][..., 0] = 1700
        annotation['img_shape'] = (1920, 1080)


def copy_clip(data):
    data['annotations'][1] |= {k: data['annotations'][5][k].copy() for k in ('keypoint', 'keypoint_score')}
    data['annotations'][1]['total_frames'] = data['annotations'][5]['total_frames']


def change(key, index, value):
    def apply(data):
        data['annotations'][3][key][index] = value

    return apply


def to_splits(**more):
    return lambda data: [data['split'][name].extend(ids) for name, ids in more.items()]


def renamed(rename):
    return lambda data: data['split'].update(xsub_train=list(map(rename, data['split']['xsub_train'])))


DEFECTS = {  # name: (change, kind of finding and part of its text)
    'invalid': (first(total_frames=7), 'FAULT .*total_frames is 7'),
    'another layout': (first(keypoint=np.ones((1, 20, 25, 2), 'f2'), keypoint_score=None), r'FAULT .*\(25, 2\)'),
    'transposed images': (transpose, r'FAULT img_shape is \(w, h\)'),
    'not pixels': (
        lambda data: [a.update(keypoint=a['keypoint'] / np.float16(2000)) for a in data['annotations']],
        'FAULT .*coordinate',
    ),
    'NaN': (change('keypoint', (0, 0, slice(3)), np.nan), 'warning 3 joints not finite'),
    'scores': (change('keypoint_score', (0, 0, 0), 100), 'warning scores .* to 100'),
    'nobody': (change('keypoint', ..., 0), r'warning no joints .*S001C001P003R001A004'),
    'outside': (
        lambda data: [a['keypoint'].__setitem__((..., slice(4), 0), 2500) for a in data['annotations']],
        'warning .*outside',
    ),
    'another order': (
        lambda data: [a.update(keypoint=a['keypoint'][:, :, ::-1].copy()) for a in data['annotations']],
        'warning .*not in the order of COCO-17',
    ),
    'a name twice': (first(frame_dir='S001C001P001R001A002'), 'warning 1 frame_dir'),
    'content twice': (copy_clip, 'warning 1 group of clips with equal keypoints'),
    'content under two labels': (
        lambda data: [copy_clip(data), data['annotations'][1].update(label=0)],
        'warning .*different labels',
    ),
    'a label gap': (first(label=9), r'warning labels go up to 9.* 4, 5, 6, 7, 8 '),
    'unknown names': (to_splits(xsub_val=['a', 'b']), r'warning .*skipped: xsub_val 2 \(a, b\)'),
    'in no split': (lambda data: data['split']['xsub_val'].pop(), 'warning 1 clip .S001C001P023R001A004. in no split'),
    'in both splits': (
        to_splits(xsub_train=['S001C001P023R001A004']),
        r'warning 1 clip both in xsub_train and xsub_val',
    ),
    'an empty split': (lambda data: data['split'].update(xsub_val=[]), 'FAULT split xsub_val is empty'),
    'names with a suffix': (
        renamed(lambda name: f'{name}.mp4'),
        r'FAULT split xsub_train is empty: none of its 16 .*differ by suffix',
    ),
    'names in lower case': (renamed(str.lower), 'FAULT split xsub_train is empty.*differ by case'),
    'names with a space': (renamed(lambda name: f'{name} '), "FAULT .*differ by spaces: '.* ' in a split"),
    'names with an ending': (renamed(lambda name: f'{name}_rgb'), 'FAULT .*differ by ending'),
    'names of files': (renamed(lambda name: f'videos/{name}_rgb.avi'), 'FAULT .*differ by several parts'),
    'no splits': (lambda data: data['split'].clear(), 'FAULT there are no splits'),
    'untrained class': (
        lambda data: data['annotations'][23].update(label=4),
        'warning classes only in xsub_val, not in xsub_train: 4',
    ),
}


@pytest.mark.parametrize('what', DEFECTS)
def test_each_defect_is_found(good, check, what):
    data = copy.deepcopy(good)
    spoil, message = DEFECTS[what]
    spoil(data)
    code, text, screen = check(data)
    findings = text[: text.rindex(' fault')]
    assert re.search(message, findings), screen
    assert code == ('FAULT' in message)
    assert screen.count(' -> ') <= 3  # the defect and its consequences
    with_config = check(data, CONFIG | {'model': CONFIG['model'] | {'num_classes': 10}})
    assert with_config[2].count('FAULT') == code  # the config adds none


MISMATCHES = {
    'classes': ({'model': {'num_classes': 3}}, 'FAULT .*has label 3, but model.num_classes is 3'),
    'split': ({'data': {'benchmark': 'xview'}}, 'FAULT .*xview_train.*xview_val'),
    'splits': ({'data': {'benchmark': ['xsub_train', 'test1']}}, 'FAULT .*test1'),
    'joints': ({'model': {'num_joints': 25}}, 'FAULT .*set model.num_joints to 17'),
    'limbs': ({'heatmap': {'kind': 'both'}}, 'FAULT .*set model.num_joints to 34'),
    'length': ({'data': {'clip_len': 48}}, 'FAULT data.clip_len 48 exceeds model.maxlen 8'),
    'input': ({'data': {'input': 'keypoint_3d'}, 'heatmap': None}, 'FAULT .*data.input keypoint_3d needs 3D'),
    'leak': ({'data': {'benchmark': ['xsub_train', 'xsub_train']}}, 'warning 16 clips both in xsub_train'),
}


@pytest.mark.parametrize('what', MISMATCHES)
def test_mismatches_of_dataset_and_config_are_found(good, check, what):
    changes, message = MISMATCHES[what]
    config = {name: CONFIG[name] | (changes[name] or {}) if name in changes else CONFIG[name] for name in CONFIG}
    config = {name: keys for name, keys in config.items() if changes.get(name, {}) is not None}
    code, text, screen = check(good, config)
    assert re.search(message, text), screen
    assert code == ('FAULT' in message)


def test_datasets_with_clips_without_persons_are_compared_with_the_config(good, check):
    data = copy.deepcopy(good)
    data['annotations'][0]['keypoint'] = None
    assert 'model.num_classes is 3' in check(data, CONFIG | {'model': CONFIG['model'] | {'num_classes': 3}})[1]


@pytest.mark.parametrize('kind', tiny.SCRIPTS)
def test_the_resolved_config_is_checked(good, check, kind):
    """Including defaults: num_classes and the length of the model."""
    content = {'script': kind, 'data': CONFIG['data'], 'train': {'epochs': 1}, 'optimizer': tiny.optimizer(kind)}
    content['data'] = content['data'] | {'clip_len': load_config(MODELS[kind].default_config).data.clip_len}
    code, text, screen = check(good, content)
    assert code == 0, screen
    data = copy.deepcopy(good)
    data['annotations'][0]['label'] = 98
    content['data']['clip_len'] = 96
    code, text, screen = check(data, content)
    assert code == 1
    assert 'has label 98, but model.num_classes is 60' in text
    assert 'FAULT data.clip_len' in text, screen


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('what', [what for what, (_, message) in DEFECTS.items() if 'warning' in message])
def test_datasets_with_warnings_can_be_trained_on(good, write_pickle, what):
    data = copy.deepcopy(good)
    DEFECTS[what][0](data)
    path = write_pickle(data)
    assert load_annotations(path)
    clips = Clips('train', ann_file=str(path), benchmark='xsub', clip_len=8, batch_size=4, seed=0)
    assert np.isfinite(clips[0, 0]['keypoint']).all()


@pytest.mark.parametrize(
    'content',
    [None, b'', pickle.dumps(3), pickle.dumps({'split': {}, 'annotations': [1, 2]}), b'cos\nsystem\n(Vls\ntR.'],
    ids=['missing', 'empty', 'number', 'no clips', 'code'],
)
def test_unreadable_files_exit_with_code_2(tmp_path, capsys, content):
    path = tmp_path / 'set.pkl'
    if content is not None:
        path.write_bytes(content)
    assert check_data.main([str(path)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f'error: {path}')


def test_all_faults_are_reported_at_once_in_printable_characters(good, check):
    data = copy.deepcopy(good)
    data['annotations'][0]['total_frames'] = 3
    data['annotations'][1]['label'] = -1
    data['annotations'][2]['frame_dir'] = '\x1b[2J\x1b[31m' * 1000
    data['split']['xsub_val'].append('\x1b[2J')
    data['annotations'][4]['keypoint'] = data['annotations'][4]['keypoint'][..., :1]
    code, text, screen = check(data)
    assert code == 1
    assert text.count('invalid annotation') == 3
    assert '\x1b' not in screen
    assert len(screen) < 8000


def test_a_folder_is_one_dataset(good, tmp_path, capsys):
    for part in range(2):
        half = good['annotations'][part::2]
        names = {annotation['frame_dir'] for annotation in half}
        split = {name: [i for i in ids if i in names] for name, ids in good['split'].items()}
        (tmp_path / f'{part}.pkl').write_bytes(pickle.dumps({'split': split, 'annotations': half}))
    assert check_data.main([str(tmp_path)]) == 0
    assert '24 clips' in ' '.join(capsys.readouterr().out.split())
    (tmp_path / 'empty').mkdir()
    assert check_data.main([str(tmp_path / 'empty')]) == 2


@pytest.mark.parametrize('name', ['sbu_hrnet', 'sbu_3danno', 'cmu_hrnet', 'cmu_3danno'])
def test_real_motion_has_no_faults(motion, capsys, name):
    assert check_data.main([str(motion(f'{name}.pkl'))]) == 0
    screen = capsys.readouterr().out
    assert len(screen.splitlines()) <= 45
