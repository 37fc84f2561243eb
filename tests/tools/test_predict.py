import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from lib.data.classes import NTU120
from lib.data.pickles import load_annotations
from lib.evaluation import read_predictions
from lib.tools.predict import draw_timeline, main, notes_of, presence, segments_of, subjects_of, windows_of
from tests.annotations import make_3d_annotations, make_annotations
from tests.tiny import MODELS, SCRIPTS, caller, write_config
from tests.tiny import content as tiny_content

MADE_UP = 30  # clips of a tiny run's set


@pytest.fixture(scope='session')
def trained(tmp_path_factory) -> Callable[[str], Path]:
    """trained(kind) -> the folder of a tiny run of one epoch, which --evaluate has evaluated; made_up.pkl beside it."""
    runs = {}

    def run(kind: str) -> Path:
        if kind not in runs:
            folder = tmp_path_factory.mktemp(kind)
            call, runs[kind] = caller(SCRIPTS[kind]), folder / 'run'
            assert call('--config', write_config(kind, folder), '-c', runs[kind], '--set', 'train.epochs=1') == 0
            assert call('--evaluate', next(runs[kind].glob('best_epoch.*'))) == 0
        return runs[kind]

    return run


def predicted(out: Path, *arguments: object) -> list[dict[str, Any]]:
    """'inputs' of the predictions.json that the command writes."""
    assert main([*map(str, arguments), '--out', str(out)]) == 0
    return json.loads((out / 'predictions.json').read_text())['inputs']


def write_array(path: Path, keypoint: np.ndarray, score: np.ndarray) -> Path:
    np.savez(path, keypoint=keypoint, keypoint_score=score, img_shape=np.array([1080, 1920]))
    return path


def persons(frames: int, count: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """keypoint (M, T, 17, 2) and score (M, T, 17) of wandering persons."""
    annotation = make_annotations([frames], persons=[count], seed=seed)['annotations'][0]
    return annotation['keypoint'].astype(np.float32), annotation['keypoint_score'].astype(np.float32)


def probabilities_of(entry: dict[str, Any], window: int = 0) -> list[float]:
    """By class, of a model of 4."""
    top = {action['class']: action['probability'] for action in entry['windows'][window]['top5']}
    return [top[number] for number in range(4)]


@pytest.mark.parametrize('kind', MODELS)
def test_clips_of_a_pickle_are_predicted_as_by_the_evaluation(trained, tmp_path, kind):
    """Those of a list in its order, and with them the same clips from a file of another form."""
    run = trained(kind)
    ann_file = run.parent / 'made_up.pkl'
    entries = predicted(tmp_path / 'out', run, ann_file, '--list', 'xsub_val')
    ids, _, logits = read_predictions(run / 'predictions.npz')
    wanted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert [entry['name'] for entry in entries] == ids.tolist()
    np.testing.assert_allclose([probabilities_of(entry) for entry in entries], wanted, atol=1e-5)
    for entry in entries:
        (window,), (segment,) = entry['windows'], entry['segments']
        assert (window['start'], window['end']) == (0, entry['frames'])
        found = [action['probability'] for action in window['top5']]
        assert found == sorted(found, reverse=True)
        assert len(found) == 4  # of a model of 4 classes
        assert segment.items() >= window['top5'][0].items()

    clip = next(a for a in load_annotations(ann_file)['annotations'] if a['frame_dir'] == ids[1])
    file = write_array(tmp_path / 'own.npz', clip['keypoint'], clip['keypoint_score'])
    (own,) = predicted(tmp_path / 'own', run, file)
    np.testing.assert_allclose(probabilities_of(own), wanted[1], atol=1e-5)
    everything = predicted(tmp_path / 'all', run, ann_file, file)
    assert len(everything) == MADE_UP + 1
    assert everything[-1] == own


@pytest.mark.parametrize(
    ('kind', 'before', 'after'),
    [
        ('vanilla', '', 'assert "tensorflow" not in sys.modules'),
        ('vivit', 'sys.modules["torch"] = None', ''),  # which TensorBoard's writer imports where it is there
    ],
    ids=['vanilla', 'vivit'],
)
def test_the_other_framework_is_not_needed(trained, tmp_path, kind, before, after):
    file = write_array(tmp_path / 'own.npz', *persons(20))
    lines = (
        'import sys',
        before,
        'from lib.tools.predict import main',
        f'assert main([{str(trained(kind))!r}, {str(file)!r}]) == 0',
        after,
    )
    assert subprocess.run([sys.executable, '-c', '\n'.join(lines)], capture_output=True).returncode == 0


def test_windows_of_a_long_clip_are_clips_of_their_own(trained, tmp_path, capsys):
    """Over 300 frames without being asked; a window's prediction is that of its frames in a file alone."""
    keypoint, score = persons(310)
    keypoint[:, 100:230], score[:, 100:230] = 0, 0
    (entry,) = predicted(tmp_path / 'out', trained('vanilla'), write_array(tmp_path / 'a.npz', keypoint, score))
    spans = [(window['start'], window['end']) for window in entry['windows']]
    assert spans == [(0, 120), (60, 180), (120, 240), (180, 300), (190, 310)]
    part = write_array(tmp_path / 'part.npz', keypoint[:, 60:180], score[:, 60:180])
    (alone,) = predicted(tmp_path / 'alone', trained('vanilla'), part)
    np.testing.assert_allclose(probabilities_of(entry, 1), probabilities_of(alone), atol=1e-5)
    assert (entry['frames_without_persons'], entry['persons']) == (130, 1)
    assert Image.open(tmp_path / 'out' / entry['timeline']).width == 1200
    told = capsys.readouterr().out
    assert '310 frames, 1 person, 5 windows of 120 frames' in told
    assert 'nobody in 130 of 310 frames' in told

    options = ('--window', 50, '--stride', 50)
    (entry,) = predicted(tmp_path / 'nobody', trained('vanilla'), tmp_path / 'a.npz', *options)
    nobody = [bool(window['top5']) for window in entry['windows']]
    assert nobody == [True, True, False, False, True, True, True]
    assert {'start': 100, 'end': 200, 'class': None, 'name': 'nobody', 'probability': None} in entry['segments']
    assert '100-200           nobody' in capsys.readouterr().out


def test_a_long_clip_of_a_pickle_is_one_unless_windows_are_asked_for(trained, tmp_path, write_pickle, capsys):
    file = write_pickle(make_annotations([400]))
    (entry,) = predicted(tmp_path / 'whole', trained('vanilla'), file)
    assert [(window['start'], window['end']) for window in entry['windows']] == [(0, 400)]
    assert 'looked at as one action; --window 120 cuts it' in capsys.readouterr().out
    (entry,) = predicted(tmp_path / 'cut', trained('vanilla'), file, '--window', 150)
    assert [window['start'] for window in entry['windows']] == [0, 75, 150, 225, 250]


def test_the_model_is_given_the_most_present_persons_of_a_window(trained, tmp_path, capsys):
    """Not those of the whole clip, nor the first ones; and it is said that there were more."""
    keypoint, score = persons(120, count=3)
    score[0, 60:] *= 0.1  # first of all in the whole clip, and last in the second window
    score[1] *= 0.9
    score[2, :60] *= 0.1
    (entry,) = predicted(
        tmp_path / 'out', trained('vanilla'), write_array(tmp_path / 'a.npz', keypoint, score), '--window', 60,
        '--stride', 60,
    )  # fmt: skip
    assert [window['persons'] for window in entry['windows']] == [3, 3]
    assert 'over 2 persons, up to 3, in 2 of 2 windows' in capsys.readouterr().out
    for window, (frames, two) in enumerate([(slice(0, 60), [0, 1]), (slice(60, 120), [1, 2])]):
        file = write_array(tmp_path / f'{window}.npz', keypoint[two, frames], score[two, frames])
        (pair,) = predicted(tmp_path / f'pair{window}', trained('vanilla'), file)
        np.testing.assert_allclose(probabilities_of(entry, window), probabilities_of(pair), atol=1e-5)


def test_each_person_alone(trained, tmp_path, capsys):
    """From when it appears, which may not be the first frame, to when it leaves."""
    keypoint, score = persons(100, count=2)
    keypoint[1, :30], score[1, :30] = 0, 0
    keypoint[:, 90:], score[:, 90:] = 0, 0
    file = write_array(tmp_path / 'a.npz', keypoint, score)
    entries = predicted(tmp_path / 'out', trained('vanilla'), file, '--per-person')
    assert [(entry['person'], entry['windows'][0]['start'], entry['windows'][0]['end']) for entry in entries] == [
        (1, 0, 90),
        (2, 30, 90),
    ]
    assert 'a, person 2: frames 30-90' in capsys.readouterr().out
    alone = write_array(tmp_path / 'second.npz', keypoint[1, 30:90], score[1, 30:90])
    (second,) = predicted(tmp_path / 'second', trained('vanilla'), alone)
    assert probabilities_of(entries[1]) == pytest.approx(probabilities_of(second), abs=1e-5)
    assert probabilities_of(entries[1]) != pytest.approx(probabilities_of(entries[0]), abs=1e-5)


def test_a_first_frame_without_a_person_and_a_clip_without_any(trained, tmp_path, write_pickle, capsys):
    data = make_annotations([40, 40])
    for annotation, empty in zip(data['annotations'], (1, 40), strict=True):
        annotation['keypoint'][:, :empty], annotation['keypoint_score'][:, :empty] = 0, 0
    file = write_pickle(data)
    there, nobody = predicted(tmp_path / 'out', trained('mbert'), file)
    assert sum(probabilities_of(there)) == pytest.approx(1, abs=1e-5)
    assert nobody['windows'][0]['top5'] == []
    assert 'nobody in 41 of 80 frames of 2 clips' in capsys.readouterr().out
    _, nobody = predicted(tmp_path / 'windows', trained('mbert'), file, '--window', 20)
    assert 'timeline' not in nobody


def test_labels_that_the_model_does_not_have_do_not_matter(trained, tmp_path, write_pickle):
    data = make_annotations([20])
    data['annotations'][0]['label'] = 99
    assert len(predicted(tmp_path / 'out', trained('vanilla'), write_pickle(data))) == 1


def test_names_of_the_classes(trained, tmp_path, capsys):
    names = tmp_path / 'names.txt'
    names.write_text('run\nwalk\nsit\nsnooze\n')
    file = write_array(tmp_path / 'a.npz', *persons(20))
    (entry,) = predicted(tmp_path / 'out', trained('vanilla'), file, '--set', f'data.class_names={names}')
    assert {action['class']: action['name'] for action in entry['windows'][0]['top5']} == dict(
        enumerate(['run', 'walk', 'sit', 'snooze'])
    )
    told = capsys.readouterr().out.splitlines()
    assert {line.split()[-1] for line in told if line.startswith('   ')} == {'run', 'walk', 'sit', 'snooze'}


def test_a_model_of_3d_keypoints_takes_those_alone(tmp_path, write_pickle, capsys):
    content = tiny_content('vanilla', tmp_path)
    del content['heatmap']
    content['data']['input'] = 'keypoint_3d'
    content['data']['ann_file'] = str(write_pickle(make_3d_annotations([5, 12, 40] * 4)))
    content['model'] |= {'num_joints': 25, 'dim_in': 3}
    config, run = tmp_path / '3d.yaml', tmp_path / 'run'
    config.write_text(yaml.safe_dump(content))
    assert caller(SCRIPTS['vanilla'])('--config', config, '-c', run, '--set', 'train.epochs=1') == 0

    keypoint = load_annotations(content['data']['ann_file'])['annotations'][2]['keypoint'].astype(np.float32)
    keypoint[:, 0] = 0
    np.save(tmp_path / 'kinect.npy', keypoint)
    (entry,) = predicted(tmp_path / 'out', run, tmp_path / 'kinect.npy', '--layout', 'ntu25')
    assert (entry['frames'], entry['frames_without_persons']) == (40, 1)
    assert sum(probabilities_of(entry)) == pytest.approx(1, abs=1e-5)
    capsys.readouterr()
    assert main([str(run), str(write_array(tmp_path / 'a.npz', *persons(20)))]) == 2
    told = capsys.readouterr().err
    assert 'a.npz holds 2D keypoints of 17 joints, and the model of ' in told
    assert 'was trained on 3D keypoints of 25 joints (NTU-25)' in told


def test_mistakes_are_told_before_anything_is_predicted(trained, tmp_path, write_pickle, capsys):
    run, out = trained('vanilla'), tmp_path / 'out'
    file = write_array(tmp_path / 'a.npz', *persons(20))

    def refused(*arguments: object) -> str:
        assert main([*map(str, arguments), '--out', str(out)]) == 2
        told = capsys.readouterr()
        assert told.err.count('\n') == 1
        assert told.out == ''
        return told.err

    three_d = write_pickle(make_3d_annotations([20, 20]), '3d.pkl')
    told = refused(run, three_d)
    assert '3d.pkl holds 3D keypoints of 25 joints, and the model of ' in told
    assert 'was trained on heatmaps of 17 joints (COCO-17)' in told
    assert str(run) in told
    assert 'has 17 joints, which are not those of body25' in refused(run, file, '--layout', 'body25')
    assert 'is no PYSKL pickle, and --list names a list of one' in refused(run, file, '--list', 'xsub_val')
    assert 'has no list test; its lists are xsub_train, xsub_val' in refused(
        run, run.parent / 'made_up.pkl', '--list', 'test'
    )
    assert 'there is no such file' in refused(run, tmp_path / 'nothing.json')
    assert 'holds no checkpoint' in refused(tmp_path, file)
    long = write_array(tmp_path / 'long.npz', *persons(3000, count=2))
    assert 'Give a larger --stride' in refused(run, long, '--window', 1500, '--stride', 1)
    assert not out.exists()

    predicted(out, run, file)
    before = (out / 'predictions.json').read_bytes()
    capsys.readouterr()
    assert 'predictions.json is there already' in refused(run, file)
    assert (out / 'predictions.json').read_bytes() == before
    for options in (['--window', '0'], ['--window', '10', '--stride', '11'], ['--img_shape', '0', '5']):
        with pytest.raises(SystemExit) as left:
            main([str(run), str(file), *options])
        assert left.value.code == 2


def test_many_clips_have_a_line_each(trained, capsys):
    assert main([str(trained('vanilla')), str(trained('vanilla').parent / 'made_up.pkl')]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('S001')]
    assert len(lines) == MADE_UP
    assert all('%  class ' in line and len(line) < 80 for line in lines)


def test_windows_cover_every_frame():
    for frames, window, stride in [(1, 1, 1), (10, 20, 5), (20, 20, 5), (21, 20, 20), (100, 30, 7), (120, 40, 40)]:
        windows = windows_of(frames, window, stride)
        assert windows[0][0] == 0
        assert windows[-1][1] == frames
        assert all(end - start == min(window, frames) for start, end in windows)
        assert all(0 < after[0] - before[0] <= stride for before, after in pairwise(windows))


def test_segments_join_windows_that_agree_and_share_no_frame():
    found = [np.array(values) for values in ([0.9, 0.1], [0.7, 0.3], [0.2, 0.8])] + [None, None, np.array([0.4, 0.6])]
    segments = segments_of(windows_of(140, 40, 20), found)
    assert [(s.start, s.end, s.action) for s in segments] == [(0, 50, 0), (50, 70, 1), (70, 110, None), (110, 140, 1)]
    assert [s.probability for s in segments] == [pytest.approx(0.8), 0.8, None, 0.6]


def test_who_is_there():
    """By score; in 3D, which has none, by coordinates. What is no number, or is below zero, is not there."""
    keypoint, score = persons(5, count=2)
    keypoint[0, 1], score[1, 2], score[1, 3], score[1, 4] = np.nan, 0, np.nan, -1
    amount = presence({'keypoint': keypoint, 'keypoint_score': score})
    assert (amount != 0).tolist() == [[True, False, True, True, True], [True, True, False, False, False]]
    assert amount[0, 0] == pytest.approx(score[0, 0].sum())
    points = np.zeros((1, 2, 25, 3), np.float16)
    points[0, 1, :5] = 1
    assert presence({'keypoint': points}).tolist() == [[0, 5]]


@pytest.mark.filterwarnings('error::UserWarning')  # as where texts leave no room
def test_a_timeline_of_many_actions_is_no_higher_than_a_screen(tmp_path):
    """The longest names, letters that mean something to matplotlib, and nobody at times."""
    random = np.random.default_rng(0)
    found = list(random.dirichlet(np.full(120, 0.01), 200))
    found[20:40] = [None] * 20
    names = [f'{name} $^^$ ' * 9 for name in NTU120]
    draw_timeline(windows_of(200 * 60 + 60, 120, 60), found, names, '$^^$ ' * 40, tmp_path / 'many.png')
    draw_timeline(windows_of(180, 120, 60), found[:2], names, 'two', tmp_path / 'two.png')
    (many, two) = (Image.open(tmp_path / f'{name}.png').size for name in ('many', 'two'))
    assert many[0] == two[0] == 1200
    assert two[1] < many[1] < 800


def test_a_guessed_image_size_is_told_where_it_matters():
    clip = {'frame_dir': 'clip', 'label': 0, 'total_frames': 5, 'keypoint': np.ones((1, 5, 17, 2)), 'img_shape': (9, 9)}
    clip |= {'keypoint_score': np.ones((1, 5, 17)), 'persons_left_out': 0, 'img_shape_known': False}
    subjects = subjects_of(Path('clip.json'), clip, 2, None, None, False)
    assert list(notes_of(subjects, 2, 'heatmap')) == []
    (note,) = notes_of(subjects, 2, 'keypoint_2d')
    assert note.startswith('image size of 1 clip unknown')
