from functools import partial

import numpy as np
import pytest
from PIL import Image

from lib.data.clips import Clips
from lib.data.skeletons import COCO17
from lib.pytorch.engine import draw
from lib.pytorch.heatmap import HeatmapRenderer
from lib.tools import preview
from tests.annotations import make_annotations

DRAW = partial(draw, HeatmapRenderer(), 'cpu')


@pytest.fixture
def path(write_pickle):
    return write_pickle(make_annotations([20, 30, 40] * 4))


def test_draws_left_and_right_in_their_colours(write_pickle):
    data = make_annotations([20] * 3)
    for annotation in data['annotations']:  # joints on a grid, far from each other
        annotation['keypoint'][:] = np.stack(
            [600 + 180 * (np.arange(17) % 5), 200 + 180 * (np.arange(17) // 5)], axis=1
        )
    clips = Clips('val', ann_file=str(write_pickle(data)), benchmark='xsub', clip_len=8, batch_size=3, seed=0)
    name, picture = preview.draw_clip(clips, 'joint', DRAW, frames=4)
    assert name == f'heatmap/{clips.names(0, 0)[0]}'
    first_frame = picture[:, 4 : 4 + 224, 4 : 4 + 224].astype(float)
    for joint, colour in ((COCO17.left[4], preview.LEFT), (COCO17.right[4], preview.RIGHT), (0, preview.MIDDLE)):
        x, y = (clips[0, 0]['keypoint'][0, 0, 0, joint].round() * preview.PIXEL + 1).astype(int)
        pixel = first_frame[:, y, x]
        assert pixel.max() > 40
        np.testing.assert_allclose(pixel / pixel.max(), np.array(colour) / max(colour), atol=0.02)


def test_a_clip_can_be_chosen(path, tmp_path, capsys, monkeypatch):
    out = tmp_path / 'clip.png'
    argv = ['preview', str(path), '--clip', 'S001C001P010R001A003', '--kind', 'both', '--out', str(out)]
    monkeypatch.setattr('sys.argv', argv)
    preview.main()
    assert 'S001C001P010R001A003, both maps' in capsys.readouterr().out
    picture = np.asarray(Image.open(out))
    assert picture.shape == (2 * 228 + 4, 6 * 228 + 4, 3)
    assert picture.std() > 1


def test_a_clip_of_another_list_is_refused(path):
    clips = Clips('val', ann_file=str(path), benchmark='xsub', clip_len=8, batch_size=3, seed=0)
    with pytest.raises(ValueError, match='no clip nobody in xsub_val'):
        preview.draw_clip(clips, 'joint', DRAW, 'nobody')
