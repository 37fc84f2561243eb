import ast
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lib import pictures
from lib.data.clips import Clips
from lib.data.heatmap import joint_heatmaps, limb_heatmaps
from lib.data.skeletons import COCO17
from lib.data.store import Store
from lib.pytorch.engine import draw
from lib.pytorch.heatmap import HeatmapRenderer
from tests.annotations import make_annotations

LIBRARY = Path(pictures.__file__).parent


def clips_of(path: Path, **settings) -> Clips:
    return Clips('val', ann_file=str(path), benchmark='xsub', clip_len=8, batch_size=3, seed=0, **settings)


@pytest.fixture
def clips(write_pickle):
    return clips_of(write_pickle(make_annotations([20, 30, 40] * 4)))


def cell(picture: np.ndarray, column: int) -> np.ndarray:
    """A picture of the first row of a grid of 56x56 px maps, each pixel 4 x 4: (3, 224, 224)."""
    left = 4 + column * 228
    return picture[:, 4 : 4 + 224, left : left + 224]


def test_left_and_right_have_their_colours(write_pickle):
    data = make_annotations([20] * 3)
    for annotation in data['annotations']:  # joints on a grid, far from each other
        annotation['keypoint'][:] = np.stack(
            [600 + 180 * (np.arange(17) % 5), 200 + 180 * (np.arange(17) // 5)], axis=1
        )
    clips = clips_of(write_pickle(data))
    _, picture = pictures.draw_clip(clips, 'joint', partial(draw, HeatmapRenderer(), 'cpu'), frames=4)
    first = cell(picture, 0).astype(float)
    for joint, colour in ((COCO17.left[4], pictures.LEFT), (COCO17.right[4], pictures.RIGHT), (0, pictures.MIDDLE)):
        x, y = (clips[0, 0]['keypoint'][0, 0, 0, joint].round() * pictures.PIXEL + 1).astype(int)
        pixel = first[:, y, x]
        assert pixel.max() > 40
        np.testing.assert_allclose(pixel / pixel.max(), np.array(colour) / max(colour), atol=0.02)


@pytest.mark.parametrize(('kind', 'maps'), [('joint', joint_heatmaps), ('limb', limb_heatmaps)])
def test_pictures_of_a_clip_are_the_plain_loops_maps(clips, kind, maps):
    name, picture = pictures.draw_clip(clips, kind, partial(draw, HeatmapRenderer(kind=kind), 'cpu'), frames=3)
    assert name == f'heatmap/{clips.names(0, 0)[0]}'
    batch = clips[0, 0]
    volume = maps(batch['keypoint'][0], batch['score'][0], img_shape=(56, 56))
    colours = np.array(pictures.channel_colours(COCO17, kind))
    for column, t in enumerate((0, 3, 7)):  # of 8
        expected = (volume[t, :, None] * colours[:, :, None, None]).max(0)
        seen = cell(picture, column)[:, ::4, ::4] / 255
        np.testing.assert_allclose(seen, expected, atol=0.005)


def test_of_a_clip_with_several_views_the_first_is_drawn(write_pickle):
    path = write_pickle(make_annotations([20, 30, 40] * 4))
    render = partial(draw, HeatmapRenderer(), 'cpu')
    clips = clips_of(path, test_clips=2, test_flip=True)
    batch = clips[0, 0]
    expected = pictures.coloured(
        render(batch['keypoint'][:1, 0], batch['score'][:1, 0])[0], pictures.channel_colours(COCO17, 'joint')
    )
    picture = pictures.draw_clip(clips, 'joint', render, frames=8)[1]
    for t in range(6):
        np.testing.assert_allclose(cell(picture, t)[:, ::4, ::4] / 255, expected[t], atol=0.005)


def test_one_name_is_looked_up_however_many_clips_there_are(clips, monkeypatch):
    asked = []
    name = Store.name
    monkeypatch.setattr(Store, 'name', lambda store, clip: asked.append(clip) or name(store, clip))
    pictures.draw_clip(clips, 'joint', partial(draw, HeatmapRenderer(), 'cpu'))
    assert asked == [clips.clips[0]]


def test_frames_are_spread_from_first_to_last():
    assert pictures.some_of(48, 4).tolist() == [0, 15, 31, 47]
    assert pictures.some_of(3, 12).tolist() == [0, 1, 2]


def test_what_tools_use_does_not_use_tools():
    """Also what no framework may be imported by, as lib/pictures.py, is read here: imports at its top count."""
    for path in LIBRARY.rglob('*.py'):
        if 'tools' in path.relative_to(LIBRARY).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith('lib.tools')], path
            if path == LIBRARY / 'pictures.py':
                assert not [name for name in names if name.split('.')[0] in ('torch', 'tensorflow', 'matplotlib')]
