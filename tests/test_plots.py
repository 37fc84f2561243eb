from functools import partial

import numpy as np
import pytest

from lib import pictures
from lib.data.clips import Clips
from lib.data.heatmap import joint_heatmaps, limb_heatmaps
from lib.data.skeletons import COCO17
from lib.pytorch.heatmap import HeatmapRenderer
from lib.pytorch.training import draw
from tests.annotations import make_annotations


@pytest.mark.parametrize(('kind', 'maps'), [('joint', joint_heatmaps), ('limb', limb_heatmaps)])
def test_pictures_show_the_maps_of_the_first_view_in_the_colours_of_their_sides(write_pickle, kind, maps):
    path = write_pickle(make_annotations([20, 30, 40] * 4))
    options = {'ann_file': str(path), 'benchmark': 'xsub', 'clip_len': 8, 'batch_size': 3, 'seed': 0}
    clips = Clips('val', **options, test_clips=2, test_flip=True)
    name, picture = pictures.draw_clip(clips, kind, partial(draw, HeatmapRenderer(kind=kind), 'cpu'), frames=3)
    assert clips.names(0, 0)[0] in name
    batch = clips[0, 0]
    volume = maps(batch['keypoint'][0, 0], batch['score'][0, 0], img_shape=(56, 56))
    colours = np.array(pictures.channel_colours(COCO17, kind))
    expected = [(volume[t, :, None] * colours[:, :, None, None]).max(0) for t in (0, 3, 7)]  # first to last of 8
    size = 56 * pictures.PIXEL
    cells = [picture[:, 4 : 4 + size, left : left + size] for left in range(4, 3 * (size + 4), size + 4)]
    for cell, wanted in zip(cells, expected, strict=True):
        np.testing.assert_allclose(cell[:, :: pictures.PIXEL, :: pictures.PIXEL] / 255, wanted, atol=0.005)
    if kind == 'joint':
        assert [tuple(colours[joint]) for joint in (0, COCO17.left[0], COCO17.right[0])] == [
            pictures.MIDDLE, pictures.LEFT, pictures.RIGHT
        ]  # fmt: skip
