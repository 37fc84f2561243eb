import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lib import cli
from lib.data.clips import Clips
from lib.data.heatmap import joint_heatmaps, limb_heatmaps
from lib.data.skeletons import COCO17
from lib.pictures import side_colour
from lib.tools import preview
from lib.tools.pipeline_figure import pipeline_figure
from tests import tiny
from tests.annotations import make_3d_annotations, make_annotations

SCRIPT = """
import sys
sys.modules['{blocked}'] = None
from lib.tools import preview
sys.exit(preview.main(sys.argv[1:]))
"""
AUGMENTED = ['data.rotation=0.3', 'data.joint_noise=0.01', 'data.temporal_shift=3']


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


# --- what is shown -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', [None, 'vivit'])
def test_maps_are_those_of_the_plain_loops(path, kind):
    subject = subject_of(path, 'heatmap.kind=both')
    batch = subject.test[0, 0]
    maps = [
        draw(batch['keypoint'][0], batch['score'][0], img_shape=(56, 56)) for draw in (joint_heatmaps, limb_heatmaps)
    ]
    draw = preview.renderer(kind, {'kind': 'both'})
    np.testing.assert_allclose(draw(*first_view(batch, 0))[0], np.concatenate(maps, axis=1), atol=1e-5)
    if kind is None:
        np.testing.assert_array_equal(subject.volume(), draw(*first_view(batch, 0))[0])


def test_every_map_is_shown_under_the_name_of_its_channel(path):
    subject = subject_of(path, 'heatmap.kind=both')
    panels = preview.panels_of('maps', subject, 0)
    assert len(panels) == 34
    assert panels[0].caption == 'nose'
    assert panels[17 + 16].caption == 'left hip to right hip'
    volume = subject.volume()
    for channel in (0, 5, 33):
        np.testing.assert_allclose(
            panels[channel].pictures.max(axis=1), volume[:, channel] * (0.91 if channel == 5 else 1), atol=1e-6
        )


@pytest.mark.parametrize('overrides', [[], AUGMENTED])
def test_augmented_views_are_those_that_training_has(path, overrides):
    clip = 'S001C001P004R001A001'  # of xsub_train
    subject = subject_of(path, *overrides, clip=clip)
    assert subject.test.list_name == 'xsub_train'
    settings = {key: yaml.safe_load(value) for key, value in (text[5:].split('=') for text in overrides)}
    train = Clips('train', ann_file=str(path), benchmark='xsub', clip_len=8, batch_size=3, seed=0, **settings)
    panels = preview.panels_of('augmentation', subject, 2)[1:]
    for epoch, panel in zip((2, 3, 4, 5, 6), panels, strict=True):
        places = [(b, train.names(epoch, b).index(clip)) for b in range(len(train)) if clip in train.names(epoch, b)]
        [(b, row)] = places
        expected = subject.draw(*first_view(train[epoch, b], row))[0]
        np.testing.assert_array_equal(subject.volume(epoch), expected)
        assert panel.caption == f'In training, epoch {epoch + 1}'
    for one, other in itertools.combinations(panels, 2):
        assert np.abs(one.pictures - other.pictures).max() > 0.1


def test_a_clip_to_validate_on_is_augmented_as_one_to_train_on(path):
    subject = subject_of(path)
    assert subject.test.list_name == 'xsub_val'
    assert np.abs(subject.volume(0) - subject.volume()).max() > 0.1


def test_of_several_views_the_first_is_shown(path):
    several, one = subject_of(path, 'data.test_clips=3', 'data.test_flip=true'), subject_of(path)
    assert several.volume().shape == one.volume().shape
    batch = several.test[0, 0]
    expected = several.draw(batch['keypoint'][:, 0], batch['score'][:, 0])
    np.testing.assert_array_equal(several.volume(), expected[0])


def test_skeleton_lies_where_the_joints_are(write_pickle):
    data = make_annotations([8] * 3)
    keypoint = np.stack([300 + 300 * (np.arange(17) % 5), 150 + 200 * (np.arange(17) // 5)], axis=1)
    for annotation in data['annotations']:
        annotation['keypoint'][:] = keypoint
        annotation['keypoint_score'][:] = np.where(np.arange(17) == 10, 0.5, 1)
        annotation['keypoint'][0, :, 16] = 0  # missing
    subject = subject_of(write_pickle(data))
    [panel] = preview.panels_of('skeleton', subject, 0)
    low, high = subject.region
    scale = panel.pictures.shape[-2:] / (high - low)[::-1]

    def pixel(x: float, y: float) -> np.ndarray:
        return panel.pictures[3, :, round((y - low[1]) * scale[0]), round((x - low[0]) * scale[1])]

    for joint in (0, 5, 7, 9, 10, 15):
        share = 0.5 if joint == 10 else 1
        expected = share * np.array(side_colour(COCO17, joint)) + (1 - share) * np.array(preview.BACKDROP)
        np.testing.assert_allclose(pixel(*keypoint[joint]), expected, atol=0.03)
    np.testing.assert_allclose(pixel(*keypoint[16]), preview.BACKDROP, atol=0.03)  # neither drawn there nor at (0, 0)
    np.testing.assert_allclose(pixel(4, 4), preview.BACKDROP, atol=0.03)
    x, y = ((keypoint[13] + keypoint[15]) / 2 - low) * scale[::-1]  # of a thin limb
    beside = panel.pictures[3, :, round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2]
    np.testing.assert_allclose(beside.max(axis=(1, 2)), side_colour(COCO17, 13), atol=0.1)
    np.testing.assert_allclose(pixel(subject.box[0], 500), preview.BOX, atol=0.05)


def test_box_is_the_one_that_the_maps_are_cut_out_by(path):
    subject = subject_of(path)
    left, top, right, bottom = subject.box
    moved = (subject.joints[0][0] - (left, top)) / (right - left, bottom - top) * 56
    np.testing.assert_allclose(subject.test[0, 0]['keypoint'][0, 0], moved, atol=0.01)


# --- files ---------------------------------------------------------------------------------------------------------


def test_a_clip_can_be_chosen(path, tmp_path, capsys):
    out = tmp_path / 'new' / 'clip.png'
    argv = [str(path), '--clip', 'S001C001P010R001A003', '--kind', 'both', '--out', str(out)]
    assert preview.main(argv) == cli.DONE
    told = capsys.readouterr().out
    assert 'S001C001P010R001A003, brush teeth (label 2)' in told
    assert '2 persons, 48 samples of 30 frames, joint and limb maps of 56x56 px' in told
    picture = np.asarray(Image.open(out))
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
    assert picture.std() > 1


def test_pictures_of_3d_pickles_show_what_is_drawn_of_them(path_3d, tmp_path):
    out = tmp_path / 'clip.png'
    assert preview.main([str(path_3d), '--kind', 'both', '--clip_len', '8', '--out', str(out)]) == cli.DONE
    subject = subject_of(path_3d)
    left, top, right, bottom = subject.box
    moved = (subject.joints[0][0] - (left, top)) / (right - left, bottom - top) * 56
    np.testing.assert_allclose(subject.test[0, 0]['keypoint'][0, 0], moved, atol=0.01)
    assert Image.open(out).size[0] > 1000


def test_a_file_of_one_clip_in_a_list_of_its_own(write_pickle, tmp_path):
    data = make_annotations([20])
    data['split'] = {'all': [data['annotations'][0]['frame_dir']]}
    out = tmp_path / 'one.png'
    assert preview.main([str(write_pickle(data)), '--clip_len', '8', '--out', str(out)]) == cli.DONE
    assert out.is_file()


@pytest.mark.parametrize('total', [5, 60])  # fewer frames than samples: some are shown twice
def test_a_gif_has_all_samples_and_the_pace_of_the_clip(write_pickle, tmp_path, total):
    out, data = tmp_path / 'clip.gif', make_annotations([total] * 3)
    for annotation in data['annotations']:  # nobody moves, and still no sample may go
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


@pytest.mark.parametrize('total', [5, 61])
def test_an_mp4_has_all_samples_and_the_pace_of_the_clip(write_pickle, tmp_path, total):
    av = pytest.importorskip('av')
    out = tmp_path / 'clip.mp4'
    path = write_pickle(make_annotations([total] * 3))
    assert preview.main([str(path), '--show', 'augmentation', '--clip_len', '8', '--out', str(out)]) == cli.DONE
    with av.open(str(out)) as film:
        stream = film.streams.video[0]
        frames = [frame.to_ndarray(format='rgb24') for frame in film.decode(stream)]
        assert stream.codec_context.pix_fmt == 'yuv420p'
        assert float(stream.average_rate) == pytest.approx(30 * 8 / total, rel=0.01)
    assert len(frames) == 8
    assert frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0
    sheets = list(preview.moving(subject_of(path), preview.panels_of('augmentation', subject_of(path), 0), 960))
    for frame, expected in zip(frames, sheets, strict=True):
        assert np.abs(frame.astype(float) - np.asarray(expected)).mean() < 4


@pytest.mark.parametrize('kind', list(tiny.SCRIPTS))
def test_configs_of_all_models(kind, tmp_path):
    config, out = tiny.write_config(kind, tmp_path), tmp_path / 'clip.png'
    argv = [str(tmp_path / 'made_up.pkl'), '--config', str(config), '--show', 'volume', '--out', str(out)]
    assert preview.main(argv) == cli.DONE
    cell = round(preview.HEIGHT / 12) * 12
    assert Image.open(out).size[0] >= 5 * cell


def test_a_run_is_shown_with_its_settings(tmp_path, capsys):
    call = tiny.caller(tiny.SCRIPTS['vanilla'])
    assert (
        call('--config', tiny.write_config('vanilla', tmp_path), '-c', tmp_path / 'run', '--set', 'train.epochs=1') == 0
    )
    capsys.readouterr()
    argv = [str(tmp_path / 'made_up.pkl'), '--checkpoint', str(tmp_path / 'run'), '--out', str(tmp_path / 'clip.png')]
    assert preview.main(argv) == cli.DONE
    assert (
        'class 0 (label 0). xsub_val, 1 person, 8 samples of 40 frames, joint maps of 12x12 px'
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(('kind', 'other'), [('vivit', 'torch'), ('vanilla', 'tensorflow')])
def test_a_model_needs_its_own_framework_alone(tmp_path, kind, other):
    config, out = tiny.write_config(kind, tmp_path), tmp_path / 'clip.png'
    argv = [str(tmp_path / 'made_up.pkl'), '--config', str(config), '--show', 'volume', '--out', str(out)]
    subprocess.run([sys.executable, '-c', SCRIPT.format(blocked=other), *argv], check=True, timeout=120)
    assert out.is_file()


# --- pipeline ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('joints', [17, 25])
def test_pipeline_has_no_text_over_text(path, path_3d, tmp_path, joints):
    file, out = {17: path, 25: path_3d}[joints], tmp_path / 'pipeline.png'
    assert preview.main([str(file), '--show', 'pipeline', '--out', str(out)]) == cli.DONE
    with Image.open(out) as picture:
        assert 1800 <= picture.size[0] <= 2000
    assert out.stat().st_size < 300_000

    subject = subject_of(file, 'data.clip_len=48')
    figure = pipeline_figure(
        subject, {'joint': subject.volume(), 'limb': subject_of(file, 'data.clip_len=48', 'heatmap.kind=limb').volume()}
    )
    figure.set_dpi(120)
    [axes] = figure.axes
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts if text.get_text()}
    assert f'{joints} joints x 48 frames = {joints * 48}' in boxes
    for name, box in boxes.items():
        assert box.x0 > 10, name
        assert box.x1 < 1910, name
        assert box.y0 > 10, name
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        assert not a.overlaps(b), (one, other)


# --- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('argv', 'told'),
    [
        (['--clip', 'nobody'], 'no clip nobody in xsub_val, xsub_train; the first has S001C001P008R001A001'),
        (['--out', 'clip.jpg'], '--out clip.jpg: its ending must be one of .png, .gif, .mp4'),
        (['--out', 'clip.gif', '--show', 'pipeline'], 'the pipeline is a still picture'),
        (['--epoch', '0'], '--epoch 0: epochs are counted from 1'),
        (['--set', 'heatmap.sigma=-1'], 'sigma is -1'),
        (['--set', 'heatmap.sgima=1'], 'sgima is not a known key'),
        (['--set', 'data.input=keypoint_2d'], 'draws nothing'),
        (
            ['--config', 'configs/action/MB_train_2d.yaml'],
            'data.input is keypoint_2d, so that its model sees no heatmap',
        ),
        (['--config', 'nowhere.yaml'], 'there is no such config'),
        (['--checkpoint', 'nowhere'], 'nowhere'),
    ],
)
def test_mistakes_are_told(path, tmp_path, capsys, argv, told):
    out = tmp_path / 'clip.png'
    assert preview.main([str(path), '--out', str(out), *argv]) == cli.USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert told in error
    assert not out.exists()


def test_without_pyav_it_says_what_to_install(path, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'av', None)
    assert preview.main([str(path), '--out', str(tmp_path / 'clip.mp4')]) == cli.USER_ERROR
    assert 'pip install av' in capsys.readouterr().err


def test_a_missing_pickle_is_told(tmp_path, capsys):
    assert preview.main([str(tmp_path / 'no.pkl'), '--out', str(tmp_path / 'clip.png')]) == cli.USER_ERROR
    assert 'no.pkl is not there' in capsys.readouterr().err
