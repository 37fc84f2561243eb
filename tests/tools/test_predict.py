import json
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lib.data.pickles import load_annotations
from lib.evaluation import read_predictions
from lib.tools.predict import main, segments_of, windows_of
from tests.annotations import make_3d_annotations, make_annotations
from tests.tiny import MODELS, SCRIPTS, caller, latest, write_checkpoint
from tests.tiny import content as tiny_content


@pytest.fixture
def run(trained_once) -> Path:
    """The folder of a trained and evaluated run, beside generated.pkl."""
    return trained_once('vanilla') / 'run'


def predicted(out: Path, *arguments: object) -> list[dict[str, Any]]:
    """Runs the command and returns 'inputs' of predictions.json."""
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
    """Probabilities of the 4 classes."""
    top = {action['class']: action['probability'] for action in entry['windows'][window]['top5']}
    return [top[number] for number in range(4)]


@pytest.mark.parametrize('kind', MODELS)
def test_predictions_equal_those_of_the_evaluation(trained_once, tmp_path, kind):
    """For the clips of a split in order, and for one clip in a file of another format."""
    run = trained_once(kind) / 'run'
    ann_file = run.parent / 'generated.pkl'
    entries = predicted(tmp_path / 'out', run, ann_file, '--split', 'xsub_val')
    ids, _, logits = read_predictions(run / 'predictions.npz')
    wanted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert [entry['name'] for entry in entries] == ids.tolist()
    np.testing.assert_allclose([probabilities_of(entry) for entry in entries], wanted, atol=1e-5)
    for entry in entries:
        (window,), (segment,) = entry['windows'], entry['segments']
        found = [action['probability'] for action in window['top5']]
        assert found == sorted(found, reverse=True)
        assert segment.items() >= window['top5'][0].items()

    clip = next(a for a in load_annotations(ann_file)['annotations'] if a['frame_dir'] == ids[1])
    file = write_array(tmp_path / 'own.npz', clip['keypoint'], clip['keypoint_score'])
    (own,) = predicted(tmp_path / 'own', run, file)
    np.testing.assert_allclose(probabilities_of(own), wanted[1], atol=1e-5)
    everything = predicted(tmp_path / 'all', run, ann_file, file)
    assert len(everything) == 30 + 1
    assert everything[-1] == own


def test_a_model_trained_with_compile_is_not_compiled_for_a_few_clips(trained, tmp_path, monkeypatch):
    run = trained('vanilla') / 'run'
    content = latest(run)
    content['config']['train']['compile'] = True
    write_checkpoint(run / 'best_epoch.bin', content)
    monkeypatch.setattr('torch.compile', None)
    assert predicted(tmp_path / 'out', run, run.parent / 'generated.pkl')


def test_long_files_are_predicted_in_windows(run, tmp_path):
    """From 301 frames; the prediction of a window equals that of a file with the same frames."""
    keypoint, score = persons(310)
    keypoint[:, 100:230], score[:, 100:230] = 0, 0
    (entry,) = predicted(tmp_path / 'out', run, write_array(tmp_path / 'a.npz', keypoint, score))
    spans = [(window['start'], window['end']) for window in entry['windows']]
    assert spans == [(0, 120), (60, 180), (120, 240), (180, 300), (190, 310)]
    part = write_array(tmp_path / 'part.npz', keypoint[:, 60:180], score[:, 60:180])
    (alone,) = predicted(tmp_path / 'alone', run, part)
    np.testing.assert_allclose(probabilities_of(entry, 1), probabilities_of(alone), atol=1e-5)
    assert (entry['frames_without_persons'], entry['persons']) == (130, 1)
    assert (tmp_path / 'out' / entry['timeline']).read_bytes().startswith(b'\x89PNG')

    options = ('--window', 50, '--stride', 50)
    (entry,) = predicted(tmp_path / 'nobody', run, tmp_path / 'a.npz', *options)
    nobody = [bool(window['top5']) for window in entry['windows']]
    assert nobody == [True, True, False, False, True, True, True]
    assert {'start': 100, 'end': 200, 'class': None, 'name': 'nobody', 'probability': None} in entry['segments']


def test_windows_have_the_frame_numbers_of_the_video(run, tmp_path, capsys):
    keypoint, score = persons(130)
    joints = np.concatenate([keypoint, score[..., None]], axis=-1)[0].astype(float)
    entries = [{'image_id': f'{t + 1000}.jpg', 'keypoints': pose.ravel().tolist()} for t, pose in enumerate(joints)]
    (tmp_path / 'clip.json').write_text(json.dumps(entries))
    (entry,) = predicted(tmp_path / 'out', run, tmp_path / 'clip.json', '--window', 100)
    assert [(w['start'], w['end']) for w in entry['windows']] == [(1000, 1100), (1030, 1130)]
    assert (entry['segments'][0]['start'], entry['segments'][-1]['end']) == (1000, 1130)
    assert '1000-1130' in capsys.readouterr().out
    (one,) = predicted(tmp_path / 'one', run, tmp_path / 'clip.json', '--per_person')
    assert (one['windows'][0]['start'], one['windows'][0]['end']) == (1000, 1130)
    write_array(tmp_path / 'a.npz', keypoint, score)
    (whole,) = predicted(tmp_path / 'whole', run, tmp_path / 'a.npz')
    assert probabilities_of(one) == pytest.approx(probabilities_of(whole), abs=1e-5)
    entries = [entries[t] | {'image_id': f'frame{t * 30 + 30}.jpg'} for t in range(4)]  # every 30th frame
    (tmp_path / 'clip.json').write_text(json.dumps(entries))
    (entry,) = predicted(tmp_path / 'every30', run, tmp_path / 'clip.json')
    assert (entry['segments'][0]['start'], entry['segments'][-1]['end']) == (30, 121)


def test_the_most_present_persons_of_a_window_are_used(run, tmp_path):
    """Not the most present persons of the clip, nor the first ones."""
    keypoint, score = persons(120, count=3)
    score[0, 60:] *= 0.1  # the most present person in the clip, the least in the second window
    score[1] *= 0.9
    score[2, :60] *= 0.1
    file = write_array(tmp_path / 'a.npz', keypoint, score)
    (entry,) = predicted(tmp_path / 'out', run, file, '--window', 60, '--stride', 60)
    assert [window['persons'] for window in entry['windows']] == [3, 3]
    for window, (frames, two) in enumerate([(slice(0, 60), [0, 1]), (slice(60, 120), [1, 2])]):
        file = write_array(tmp_path / f'{window}.npz', keypoint[two, frames], score[two, frames])
        (pair,) = predicted(tmp_path / f'pair{window}', run, file)
        np.testing.assert_allclose(probabilities_of(entry, window), probabilities_of(pair), atol=1e-5)


def test_persons_are_predicted_separately(run, tmp_path):
    """From their first to their last frame."""
    keypoint, score = persons(100, count=2)
    keypoint[1, :30], score[1, :30] = 0, 0
    keypoint[:, 90:], score[:, 90:] = 0, 0
    file = write_array(tmp_path / 'a.npz', keypoint, score)
    entries = predicted(tmp_path / 'out', run, file, '--per_person')
    assert [(e['person'], e['windows'][0]['start'], e['windows'][0]['end']) for e in entries] == [
        (1, 0, 90),
        (2, 30, 90),
    ]
    alone = write_array(tmp_path / 'second.npz', keypoint[1, 30:90], score[1, 30:90])
    (second,) = predicted(tmp_path / 'second', run, alone)
    assert probabilities_of(entries[1]) == pytest.approx(probabilities_of(second), abs=1e-5)
    assert probabilities_of(entries[1]) != pytest.approx(probabilities_of(entries[0]), abs=1e-5)


def test_frames_and_clips_without_persons(run, tmp_path, write_pickle):
    data = make_annotations([40, 40])
    for annotation, empty in zip(data['annotations'], (1, 40), strict=True):
        annotation['keypoint'][:, :empty], annotation['keypoint_score'][:, :empty] = 0, 0
    file = write_pickle(data)
    there, nobody = predicted(tmp_path / 'out', run, file)
    assert sum(probabilities_of(there)) == pytest.approx(1, abs=1e-5)
    assert nobody['windows'][0]['top5'] == []
    there, nobody = predicted(tmp_path / 'windows', run, file, '--window', 15)
    assert [window['start'] for window in there['windows']] == [0, 7, 14, 21, 25]  # pickles are split only on request
    assert 'timeline' not in nobody


def test_a_model_of_3d_keypoints_refuses_2d_keypoints(tmp_path, write_pickle, refused):
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
    error = refused(main, run, write_array(tmp_path / 'a.npz', *persons(20)))
    assert 'a.npz holds 2D keypoints of 17 joints' in error


def test_user_errors_are_reported_before_prediction(run, tmp_path, write_pickle, refused):
    out = tmp_path / 'out'
    file = write_array(tmp_path / 'a.npz', *persons(20))
    refused = partial(refused, main, '--out', out)
    body25 = make_annotations([20, 20], joints=25)
    assert '--layout body25 or body25b' in refused(run, write_pickle(body25, 'body25.pkl'))
    three_d = write_pickle(make_3d_annotations([20, 20]), '3d.pkl')
    assert '3d.pkl holds 3D keypoints of 25 joints' in refused(run, three_d)
    assert 'body25' in refused(run, file, '--layout', 'body25')
    assert 'omit --split' in refused(run, file, '--split', 'xsub_val')
    assert 'xsub_train, xsub_val' in refused(run, run.parent / 'generated.pkl', '--split', 'test')
    assert 'nothing.json' in refused(run, tmp_path / 'nothing.json')
    assert 'holds no checkpoint' in refused(tmp_path, file)
    long = write_array(tmp_path / 'long.npz', *persons(310))
    assert '--stride 5 has no effect' in refused(run, file, '--stride', 5)
    assert '--stride 121' in refused(run, long, '--stride', 121)
    assert '--window 0' in refused(run, long, '--window', 0)
    assert '--img_shape 0 5' in refused(run, long, '--img_shape', 0, 5)
    assert not out.exists()

    predicted(out, run, file)
    before = (out / 'predictions.json').read_bytes()
    assert 'predictions.json' in refused(run, file)
    assert (out / 'predictions.json').read_bytes() == before


def test_windows_cover_every_frame():
    for frames, window, stride in [(1, 1, 1), (10, 20, 5), (20, 20, 5), (21, 20, 20), (100, 30, 7), (120, 40, 40)]:
        windows = windows_of(frames, window, stride)
        assert windows[0][0] == 0
        assert windows[-1][1] == frames
        assert all(end - start == min(window, frames) for start, end in windows)
        assert all(0 < after[0] - before[0] <= stride for before, after in pairwise(windows))


def test_segments_join_windows_with_equal_actions_and_do_not_overlap():
    found = [np.array(values) for values in ([0.9, 0.1], [0.7, 0.3], [0.2, 0.8])] + [None, None, np.array([0.4, 0.6])]
    segments = segments_of(windows_of(140, 40, 20), found)
    assert [(s.start, s.end, s.action) for s in segments] == [(0, 50, 0), (50, 70, 1), (70, 110, None), (110, 140, 1)]
    assert [s.probability for s in segments] == [pytest.approx(0.8), 0.8, None, 0.6]
