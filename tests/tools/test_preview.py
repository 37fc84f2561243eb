from pathlib import Path

import numpy as np
import pytest
from matplotlib import animation
from matplotlib.collections import LineCollection
from PIL import Image

from lib import cli
from lib.data.augmentation import Augmentation
from lib.data.clips import Clips
from lib.data.store import open_store
from lib.models import load_config
from lib.plots import LEFT, RIGHT, channel_colours, colour_channels, new_figure
from lib.tools import preview
from tests.annotations import make_3d_annotations, make_annotations
from tests.oracle import heatmaps

AUGMENTED = ['augmentation.rotation=0.3', 'augmentation.joint_noise=0.01', 'augmentation.temporal_shift=3']
TRAINED = 'S001C001P004R001A001'  # a clip of xsub_train


@pytest.fixture
def path(write_pickle):
    return write_pickle(make_annotations([20, 30, 40] * 4, persons=[1, 2, 3] * 4))


def views_of(path: Path, *overrides: str, clip: str | None = None, augmented: int = 0) -> list[preview.View]:
    config = load_config('configs/action/MB_train.yaml', ['data.clip_len=8', *overrides])
    config.data.ann_file = str(path)
    split, number = preview.find_clip(open_store(path), 'xsub', clip)
    config.data.benchmark = [split, split]
    return preview.make_views(config, preview.renderer(config.script, config.heatmap), number, augmented)


@pytest.mark.parametrize('kind', ['mbert', 'vivit'])
def test_heatmaps_equal_the_oracle(path, kind):
    batch = Clips('val', ann_file=str(path), benchmark='xsub', clip_len=8, batch_size=1, seed=0)[0, 0]
    point, score = batch['keypoint'], batch['score']
    expected = heatmaps(point[0], score[0], kind='both', img_shape=(56, 56))
    drawn = preview.renderer(kind, {'kind': 'both'})(point, score)[0]
    np.testing.assert_allclose(drawn, expected, atol=1e-5)
    if kind == 'mbert':
        skeleton, view = views_of(path, 'heatmap.kind=both')
        colours = channel_colours(skeleton.skeleton, 'both')
        np.testing.assert_array_equal(view.images, colour_channels(drawn, colours))
        np.testing.assert_array_equal(skeleton.keypoint, point[0])


@pytest.mark.parametrize('overrides', [[], AUGMENTED])
def test_augmented_views_are_those_of_training(path, overrides):
    config = load_config('configs/action/MB_train.yaml', ['data.clip_len=8', 'data.batch_size=3', *overrides])
    train = Clips('train', Augmentation(**config.augmentation), **config.data | {'ann_file': str(path)})
    views = views_of(path, *overrides, clip=TRAINED, augmented=2)[2:]
    for epoch, view in enumerate(views):
        [(b, row)] = [
            (b, names.index(TRAINED)) for b in range(len(train)) if TRAINED in (names := train.names(epoch, b))
        ]
        batch = {name: array[row] for name, array in train[epoch, b].items()}
        volume = heatmaps(batch['keypoint'], batch['score'], img_shape=(56, 56))
        wanted = colour_channels(volume, channel_colours(train.skeleton, 'joint'))
        np.testing.assert_allclose(view.images, wanted, atol=1e-5)
    assert np.abs(views[0].images - views[1].images).max() > 0.1


def test_skeletons_are_drawn_where_the_model_sees_them(path):
    view, _ = views_of(path, clip=TRAINED)  # two persons
    axes = new_figure(4, 2).subplots()
    view.score[1, 5] = 0
    view.draw(axes, [0, 5])
    first, second = (
        item for item in axes.collections if isinstance(item, LineCollection) and len(item.get_colors()) > 1
    )
    limb = view.skeleton.limbs.index((5, 7))  # left shoulder to elbow
    np.testing.assert_allclose(first.get_segments()[limb], view.keypoint[0, 0, [5, 7]])
    np.testing.assert_allclose(second.get_segments()[limb], view.keypoint[0, 5, [5, 7]] + (56, 0))
    np.testing.assert_allclose(first.get_colors()[limb, :3], LEFT)
    np.testing.assert_allclose(first.get_colors()[view.skeleton.limbs.index((6, 8)), :3], RIGHT)
    assert (second.get_colors()[17:, 3] == 0).all()  # the absent person
    assert (second.get_colors()[:17, 3] > 0).any()


@pytest.mark.parametrize('make', [make_annotations, make_3d_annotations])
def test_a_png_has_one_row_per_view(write_pickle, tmp_path, make, capsys):
    path, heights = write_pickle(make([20, 30, 40] * 4)), []
    for augmented in (0, 2):
        out = tmp_path / 'new' / f'{augmented}.png'
        assert preview.main([str(path), '--augmented', str(augmented), '--out', str(out)]) == cli.DONE
        image = np.asarray(Image.open(out))
        assert image.std() > 10
        heights.append(image.shape[0])
    assert heights[1] - heights[0] == pytest.approx(heights[0], rel=0.2)  # two rows more
    assert '48 samples of ' in capsys.readouterr().out


@pytest.mark.parametrize('suffix', ['gif', 'mp4'])
def test_an_animation_has_all_samples_and_the_speed_of_the_clip(write_pickle, tmp_path, suffix):
    if suffix == 'mp4' and not animation.FFMpegWriter.isAvailable():
        pytest.skip('ffmpeg is not installed')
    out = tmp_path / f'clip.{suffix}'
    command = [str(write_pickle(make_annotations([61] * 3))), '--set', 'data.clip_len=8', '--out', str(out)]
    assert preview.main(command) == cli.DONE
    if suffix == 'gif':
        with Image.open(out) as gif:
            assert gif.n_frames == 8
            assert gif.info['duration'] == pytest.approx(1000 * 61 / 30 / 8, abs=6)
    else:
        assert b'ftyp' in out.read_bytes()[:16]


def test_short_clips_are_slowed_down_to_the_maximum_rate_of_a_gif(write_pickle, tmp_path):
    out = tmp_path / 'clip.gif'
    command = [str(write_pickle(make_annotations([3] * 3))), '--set', 'data.clip_len=12', '--out', str(out)]
    assert preview.main(command) == cli.DONE
    with Image.open(out) as gif:
        assert gif.info['duration'] % 20 == 0 < gif.info['duration']  # equal frames are joined


def test_an_mp4_without_ffmpeg_is_refused(path, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(animation.FFMpegWriter, 'isAvailable', lambda: False)
    assert 'needs ffmpeg' in refused(preview.main, path, '--out', tmp_path / 'clip.mp4')


def test_a_run_is_shown_with_its_settings(trained_once, tmp_path, capsys):
    folder = trained_once('vanilla')
    command = [str(folder / 'generated.pkl'), '--config', str(folder / 'run'), '--out', str(tmp_path / 'clip.png')]
    assert preview.main(command) == cli.DONE
    assert ' 8 samples of ' in capsys.readouterr().out


def test_existing_files_are_not_overwritten(path, tmp_path, refused):
    out = tmp_path / 'clip.png'
    out.write_text('my own')
    assert f'{out} exists' in refused(preview.main, path, '--out', out)
    assert out.read_text() == 'my own'


def test_empty_splits_are_reported(write_pickle, tmp_path, refused):
    path = write_pickle(make_annotations([20]) | {'split': {'xsub_val': []}})
    assert 'splits have no clips' in refused(preview.main, path, '--out', tmp_path / 'clip.png')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--clip', 'nobody'], 'no clip nobody in its splits. xsub_val has S001C001P00'),
        (['--out', 'clip.jpg'], 'clip.jpg'),
        (['--set', 'heatmap.sigma=-1'], 'sigma is -1'),
        (['--set', 'heatmap.sgima=1'], 'sgima'),
        (['--config', 'configs/action/MB_train_2d.yaml'], 'data.input is keypoint_2d'),
        (['--config', 'nowhere'], 'nowhere'),
    ],
)
def test_mistakes_are_reported(path, tmp_path, refused, arguments, message):
    out = tmp_path / 'clip.png'
    assert message in refused(preview.main, path, '--out', out, *arguments)
    assert not out.exists()
