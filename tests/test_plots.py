from functools import partial

import numpy as np
import pytest

from lib import plots
from lib.data.clips import Clips
from lib.data.skeletons import COCO17
from lib.pytorch.heatmap import HeatmapRenderer
from lib.pytorch.training import draw
from tests.annotations import make_annotations
from tests.oracle import heatmaps


@pytest.mark.parametrize('kind', ['joint', 'limb'])
def test_a_clip_image_shows_the_first_view_in_the_colours_of_the_sides_of_the_body(write_pickle, kind):
    path = write_pickle(make_annotations([20, 30, 40] * 4))
    options = {'ann_file': str(path), 'benchmark': 'xsub', 'clip_len': 8, 'batch_size': 3, 'seed': 0}
    clips = Clips('val', **options, test_clips=2, test_flip=True)
    name, picture = plots.clip_image(clips, kind, partial(draw, HeatmapRenderer(kind=kind)), frames=3)
    assert clips.names(0, 0)[0] in name
    batch = clips[0, 0]
    volume = heatmaps(batch['keypoint'][0, 0], batch['score'][0, 0], kind=kind, img_shape=(56, 56))
    colours = np.array(plots.channel_colours(COCO17, kind))
    expected = [(volume[t, :, None] * colours[:, :, None, None]).max(0) for t in (0, 3, 7)]  # first to last of 8
    assert picture.shape == (3, 56 * 4 + 4, 3 * (56 * 4 + 4))
    for cell, wanted in zip(np.split(picture, 3, axis=2), expected, strict=True):
        np.testing.assert_allclose(cell[:, :-4:4, :-4:4] / 255, wanted, atol=0.005)
    if kind == 'joint':
        assert [tuple(colours[joint]) for joint in (0, COCO17.left[0], COCO17.right[0])] == [
            plots.MIDDLE, plots.LEFT, plots.RIGHT
        ]  # fmt: skip


def test_the_confusion_matrix_shows_percentages_of_the_classes_that_occur():
    matrix = np.array([[3, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 5]])
    axes = plots.confusion_figure(matrix, ['sit', 'stand', 'jump', 'wave']).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ['sit', 'stand', 'wave']
    numbers = {text.get_position(): text.get_text() for text in axes.texts}  # (predicted, label)
    assert numbers == {(0, 0): '75', (1, 0): '25', (2, 2): '100'}


def test_the_timeline_has_a_row_for_each_most_likely_action():
    probability = np.full((20, 30), 0.01)
    likeliest = [7, 7, *range(10, 25), 3, 3]  # the 15 in the middle do not all fit
    probability[np.arange(19), likeliest] = 0.7
    probability[19] = np.nan
    figure = plots.timeline_figure(range(0, 210, 10), probability, [f'action {n}' for n in range(30)], 'a clip')
    axes = figure.axes[0]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == [f'action {n}' for n in (7, *range(10, 20), 3)]
    assert '5 rarer actions not shown' in axes.get_xlabel()
    assert 'grey: no person' in axes.get_xlabel()
    mesh = axes.collections[0].get_array()
    assert mesh.shape == (12, 20)
    np.testing.assert_allclose(mesh[0, :3], [70, 70, 1])
    assert np.ma.getmaskarray(mesh)[:, 19].all()
