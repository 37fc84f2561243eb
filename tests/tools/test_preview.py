from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lib import cli
from lib.data.clips import Clips
from lib.tools import preview
from tests.annotations import make_3d_annotations, make_annotations
from tests.oracle import joint_heatmaps, limb_heatmaps

AUGMENTED = ['augmentation.rotation=0.3', 'augmentation.joint_noise=0.01', 'augmentation.temporal_shift=3']


@pytest.fixture
def path(write_pickle):
    return write_pickle(make_annotations([20, 30, 40] * 4, persons=[1, 2, 3] * 4))


@pytest.fixture
def path_3d(write_pickle):
    return write_pickle(make_3d_annotations([20, 30, 40] * 4), '3d.pkl')


def subject_of(path: Path, *overrides: str, clip: str | None = None) -> preview.Subject:
    kind, config = preview.config_of(None, None, ['data.clip_len=8', *overrides])
    config.data.ann_file = str(path)
    return preview.find(config, kind, clip)


def first_view(batch: dict[str, np.ndarray], row: int) -> tuple[np.ndarray, np.ndarray]:
    return batch['keypoint'][row : row + 1], batch['score'][row : row + 1]


@pytest.mark.parametrize('kind', [None, 'vivit'])
def test_maps_equal_the_oracle(path, kind):
    subject = subject_of(path, 'heatmap.kind=both')
    batch = subject.test[0, 0]
    maps = [
        draw(batch['keypoint'][0], batch['score'][0], img_shape=(56, 56)) for draw in (joint_heatmaps, limb_heatmaps)
    ]
    draw = preview.renderer(kind, {'kind': 'both'})
    np.testing.assert_allclose(draw(*first_view(batch, 0))[0], np.concatenate(maps, axis=1), atol=1e-5)
    if kind is None:
        np.testing.assert_array_equal(subject.volume(), draw(*first_view(batch, 0))[0])


@pytest.mark.parametrize('overrides', [[], AUGMENTED])
def test_augmented_views_are_those_of_training(path, overrides):
    clip = 'S001C001P004R001A001'  # of xsub_train
    subject = subject_of(path, *overrides, clip=clip)
    settings = {key: yaml.safe_load(value) for key, value in (text[5:].split('=') for text in overrides)}
    train = Clips('train', ann_file=str(path), benchmark='xsub', clip_len=8, batch_size=3, seed=0, **settings)
    for epoch in (2, 3):
        places = [(b, train.names(epoch, b).index(clip)) for b in range(len(train)) if clip in train.names(epoch, b)]
        [(b, row)] = places
        np.testing.assert_array_equal(subject.volume(epoch), subject.draw(*first_view(train[epoch, b], row))[0])
    assert np.abs(subject.volume(2) - subject.volume(3)).max() > 0.1


@pytest.mark.parametrize('is_3d', [False, True])
def test_the_box_is_the_one_that_the_maps_show(path, path_3d, is_3d):
    subject = subject_of(path_3d if is_3d else path)
    left, top, right, bottom = subject.box
    moved = (subject.joints[0][0] - (left, top)) / (right - left, bottom - top) * 56
    np.testing.assert_allclose(subject.test[0, 0]['keypoint'][0, 0], moved, atol=0.01)


@pytest.mark.parametrize('arguments', [['--clip', 'S001C001P010R001A003', '--kind', 'both'], ['--show', 'pipeline']])
@pytest.mark.parametrize('is_3d', [False, True])
def test_pictures_are_written(path, path_3d, tmp_path, arguments, is_3d):
    file, out = path_3d if is_3d else path, tmp_path / 'new' / 'clip.png'
    assert preview.main([str(file), *arguments, '--out', str(out)]) == cli.DONE
    assert np.asarray(Image.open(out)).std() > 1


def test_a_gif_has_all_samples_and_the_pace_of_the_clip(write_pickle, tmp_path):
    total = 5  # fewer frames than samples: some are shown twice
    out, data = tmp_path / 'clip.gif', make_annotations([total] * 3)
    for annotation in data['annotations']:  # nobody moves, and still no sample may be dropped
        annotation['keypoint'][:] = annotation['keypoint'][:, :1]
        annotation['keypoint_score'][:] = 1
    path = write_pickle(data)
    assert preview.main([str(path), '--show', 'volume', '--clip_len', '8', '--out', str(out)]) == cli.DONE
    with Image.open(out) as gif:
        assert gif.n_frames == 8
        durations = []
        for t in range(8):
            gif.seek(t)
            durations.append(gif.info['duration'])
    assert sum(durations) == pytest.approx(1000 * total / 30, abs=10)


def test_an_mp4_has_all_samples_and_the_pace_of_the_clip(write_pickle, tmp_path):
    av = pytest.importorskip('av')
    out, path = tmp_path / 'clip.mp4', write_pickle(make_annotations([61] * 3))
    assert preview.main([str(path), '--show', 'augmentation', '--clip_len', '8', '--out', str(out)]) == cli.DONE
    with av.open(str(out)) as film:
        stream = film.streams.video[0]
        frames = [frame.to_ndarray(format='rgb24') for frame in film.decode(stream)]
        assert float(stream.average_rate) == pytest.approx(30 * 8 / 61, rel=0.01)
    sheets = list(preview.moving(subject_of(path), preview.panels_of('augmentation', subject_of(path), 0), 960))
    for frame, expected in zip(frames, sheets, strict=True):
        assert np.abs(frame.astype(float) - np.asarray(expected)).mean() < 4


def test_a_run_is_shown_with_its_settings(trained_once, tmp_path, capsys):
    folder = trained_once('vanilla')
    command = [str(folder / 'made_up.pkl'), '--checkpoint', str(folder / 'run'), '--out', str(tmp_path / 'clip.png')]
    assert preview.main(command) == cli.DONE
    assert '12x12 px' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--clip', 'nobody'], 'nobody'),
        (['--out', 'clip.jpg'], 'clip.jpg'),
        (['--out', 'clip.gif', '--show', 'pipeline'], 'pipeline'),
        (['--epoch', '0'], '--epoch 0'),
        (['--set', 'heatmap.sigma=-1'], 'sigma is -1'),
        (['--set', 'heatmap.sgima=1'], 'sgima'),
        (['--config', 'configs/action/MB_train_2d.yaml'], 'data.input is keypoint_2d'),
        (['--checkpoint', 'nowhere'], 'nowhere'),
    ],
)
def test_mistakes_are_reported(path, tmp_path, capsys, arguments, message):
    out = tmp_path / 'clip.png'
    assert preview.main([str(path), '--out', str(out), *arguments]) == cli.USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert message in error
    assert not out.exists()
