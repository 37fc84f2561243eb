import signal
import struct

import numpy as np
import pytest
import torch

from lib.data.clips import Clips
from lib.data.pickles import load_annotations
from lib.tools import extract_keypoints
from lib.tools.extract_keypoints import joint_scores, load_model, make_detector

av = pytest.importorskip('av')

HEIGHT, WIDTH, JOINTS = 96, 160, 17


def dancing(frames: int, centre: float) -> np.ndarray:
    """(T, 17, 2): whole pixels of joints that sway about x = centre, none on another's."""
    t, joint = np.arange(frames)[:, None], np.arange(JOINTS)
    x = centre + 12 * np.sin(joint * 2.4) + 8 * np.sin(t / 5 + joint / 4)
    return np.rint(np.stack([x, 10 + 4.5 * joint + 2 * np.cos(t / 6)], axis=-1))


def drawn(keypoint: np.ndarray) -> np.ndarray:
    """(T, H, W, 3) uint8: persons (M, T, 17, 2), NaN where absent, as dots: red tells the person, green the joint."""
    pictures = np.full((keypoint.shape[1], HEIGHT, WIDTH, 3), 5, np.uint8)
    for person, t, joint in np.ndindex(keypoint.shape[:3]):
        if np.isfinite(keypoint[person, t, joint, 0]):
            x, y = keypoint[person, t, joint].astype(int)
            pictures[t, y - 1 : y + 2, x - 1 : x + 2] = 60 + 90 * person, 10 + 14 * joint, 0
    return pictures


def write_video(path, pictures: np.ndarray) -> None:
    """A lossless video."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('png', rate=30)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], 'rgb24'
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format='rgb24')))
        container.mux(stream.encode())


class Seer:
    """Finds the dots of `drawn`; like a detector, it changes the order of the persons."""

    def __init__(self) -> None:
        self.batches, self.random = [], np.random.default_rng(0)

    def __call__(self, pictures: np.ndarray) -> list:
        self.batches.append(len(pictures))
        return [self.find(picture) for picture in pictures]

    def find(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        keypoint, score = [], []
        for person in self.random.permutation(2):
            dots = [
                np.argwhere((picture == (60 + 90 * person, 10 + 14 * joint, 0)).all(axis=-1)) for joint in range(JOINTS)
            ]
            if any(map(len, dots)):
                keypoint.append([dot.mean(axis=0)[::-1] if len(dot) else (0, 0) for dot in dots])
                score.append([0.9 * bool(len(dot)) for dot in dots])
        return np.reshape(keypoint, (-1, JOINTS, 2)), np.reshape(score, (-1, JOINTS))


@pytest.fixture
def seer(monkeypatch):
    """Replaces the neural network."""
    seer = Seer()
    monkeypatch.setattr(extract_keypoints, 'load_model', lambda weights, score: None)
    monkeypatch.setattr(extract_keypoints, 'make_detector', lambda model: seer)
    return seer


def refused(capsys, *arguments: object) -> str:
    assert extract_keypoints.main([*map(str, arguments)]) == 2
    told = capsys.readouterr().err.strip()
    assert '\n' not in told
    return told


def test_from_a_video_to_clips(seer, tmp_path, capsys):
    """A model gets the joints that were drawn, and persons keep their identities."""
    keypoint = np.stack([dancing(30, 50), dancing(30, 110)])
    keypoint[0, :4] = np.nan
    write_video(tmp_path / 'dance.mov', drawn(keypoint))
    write_video(tmp_path / 'alone.mov', drawn(keypoint[1:, :12]))
    out = tmp_path / 'new' / 'two.pkl'
    videos = [str(tmp_path / 'dance.mov'), str(tmp_path / 'alone.mov')]
    assert extract_keypoints.main([*videos, '--out', str(out), '--batch_size', '8']) == 0
    assert seer.batches == [8, 8, 8, 6, 8, 4]
    assert f'lib.tools.predict CHECKPOINT {out}' in capsys.readouterr().out
    assert [file.name for file in out.parent.iterdir()] == ['two.pkl']

    data = load_annotations(out)
    assert data['split'] == {'all': ['dance', 'alone']}
    dance, alone = data['annotations']
    assert (dance['label'], dance['img_shape'], dance['keypoint'].dtype) == (0, (HEIGHT, WIDTH), np.float16)
    np.testing.assert_array_equal(dance['keypoint'], np.nan_to_num(keypoint[::-1]))
    np.testing.assert_array_equal(alone['keypoint'], keypoint[1:, :12])
    clips = Clips('val', ann_file=str(out), benchmark=['all', 'all'], clip_len=8, batch_size=2, seed=0)
    batch = clips[0, 0]
    assert batch['keypoint'].shape == (2, 2, 8, JOINTS, 2)
    assert (batch['score'][0, 0] > 0.8).all()
    assert not batch['score'][1, 1].any()


@pytest.mark.parametrize(('matrix', 'turns'), [((0, 1, -1, 0), 1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 3)])
def test_videos_of_a_rotated_camera_are_set_upright(seer, tmp_path, matrix, turns):
    """turns: clockwise quarter turns that the file asks a player to make."""
    keypoint = dancing(6, 80)[None]
    path = tmp_path / 'turned.mov'
    write_video(path, np.rot90(drawn(keypoint), turns, axes=(1, 2)))
    content = path.read_bytes()
    start = content.index(b'tkhd') + 4 + 40  # of the matrix in the track's header
    a, b, c, d = (value << 16 for value in matrix)
    path.write_bytes(content[:start] + struct.pack('>9i', a, b, 0, c, d, 0, 0, 0, 1 << 30) + content[start + 36 :])
    assert extract_keypoints.main([str(path), '--out', str(tmp_path / 'out.pkl')]) == 0
    annotation = load_annotations(tmp_path / 'out.pkl')['annotations'][0]
    assert annotation['img_shape'] == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(annotation['keypoint'], keypoint)


def test_mistakes_are_reported_before_any_work(seer, tmp_path, capsys):
    good, out = tmp_path / 'good.mov', tmp_path / 'out.pkl'
    write_video(good, drawn(dancing(4, 80)[None]))
    (tmp_path / 'junk.mp4').write_bytes(b'no video' * 100)
    (tmp_path / 'cut.mov').write_bytes(good.read_bytes()[:2000])
    (tmp_path / 'other').mkdir()
    twin = tmp_path / 'other' / 'good.mov'
    twin.write_bytes(good.read_bytes())
    for name in ('junk.mp4', 'cut.mov', 'nothing.mp4'):
        assert name in refused(capsys, good, tmp_path / name, '--out', out)
    assert 'good' in refused(capsys, good, twin, '--out', out)  # two clips of one name
    assert '.pkl' in refused(capsys, good, '--out', tmp_path / 'new.npz')
    assert not out.exists()
    out.write_text('mine')
    assert 'out.pkl' in refused(capsys, good, '--out', out)
    assert 'out.pkl' in refused(capsys, good, '--out', out / 'new.pkl')
    assert out.read_text() == 'mine'
    assert seer.batches == []


def test_videos_without_persons_are_left_out(seer, tmp_path, capsys):
    empty, video, out = tmp_path / 'empty.mov', tmp_path / 'video.mov', tmp_path / 'out.pkl'
    write_video(empty, np.zeros((4, HEIGHT, WIDTH, 3), np.uint8))
    write_video(video, drawn(dancing(4, 80)[None]))
    assert 'nobody' in refused(capsys, empty, '--out', out, '--score', 0.5)
    assert not out.exists()
    assert extract_keypoints.main([str(empty), str(video), '--out', str(out)]) == 0
    assert load_annotations(out)['split'] == {'all': ['video']}


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(monkeypatch, seer, tmp_path, capsys, number):
    def find(picture: np.ndarray) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr(seer, 'find', find)
    write_video(tmp_path / 'video.mov', drawn(dancing(4, 80)[None]))
    assert extract_keypoints.main([str(tmp_path / 'video.mov'), '--out', str(tmp_path / 'out.pkl')]) == 75
    assert [file.name for file in tmp_path.iterdir()] == ['video.mov']


@pytest.mark.slow
def test_the_detector_is_torchvisions(tmp_path, monkeypatch, capsys):
    """Loaded in torchvision's own way from the same file, with random weights, it finds the same keypoints."""
    from torchvision.models.detection import KeypointRCNN_ResNet50_FPN_Weights, keypointrcnn_resnet50_fpn

    torch.manual_seed(0)
    state = keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    file = tmp_path / 'hub' / 'checkpoints' / 'keypointrcnn_resnet50_fpn_coco-fc266e95.pth'
    file.parent.mkdir(parents=True)
    torch.save({k: v for k, v in state.items() if 'num_batches' not in k}, file)  # its batch norms are frozen
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))

    def quickened(model: torch.nn.Module) -> torch.nn.Module:
        model.transform.min_size = (64,)
        model.rpn._post_nms_top_n = {'training': 8, 'testing': 8}
        model.roi_heads.detections_per_img = 2
        return model

    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    downloaded = KeypointRCNN_ResNet50_FPN_Weights.DEFAULT
    reference = quickened(keypointrcnn_resnet50_fpn(weights=downloaded, box_score_thresh=0).eval())
    with torch.inference_mode():
        expected = reference([torch.from_numpy(picture).permute(2, 0, 1) / 255])[0]
    assert len(expected['keypoints']) > 1
    for weights in (None, file):
        keypoint, score = make_detector(quickened(load_model(weights, 0)))(np.stack([picture] * 2))[1]
        np.testing.assert_allclose(keypoint, expected['keypoints'][..., :2], atol=1e-3)
        assert ((score >= 0) & (score <= 1)).all()

    write_video(tmp_path / 'video.mov', drawn(dancing(3, 80)[None]))
    for content in ({'head': torch.zeros(3)}, [1], {'model': torch.nn.Linear}):
        torch.save(content, tmp_path / 'weights.pth')
        command = tmp_path / 'video.mov', '--out', tmp_path / 'out.pkl', '--weights', tmp_path / 'weights.pth'
        assert 'weights.pth' in refused(capsys, *command)


def test_scores_fall_with_the_uncertainty_of_the_place():
    """For a box in HRNet's aspect ratio: the height of the Gaussian that HRNet would draw."""
    boxes, sigma = torch.tensor([[10.0, 20.0, 310.0, 420.0]]), 2 / 64 * 1.25 * 56  # cells, downwards

    def score(*logits: tuple[int, int, float]) -> float:
        maps = torch.zeros(1, 1, 56, 56)
        for y, x, value in logits:
            maps[0, 0, y, x] = value
        return joint_scores(maps, boxes).item()

    assert score((20, 30, 100)) == pytest.approx(1)
    assert score((5, 5, 100), (50, 50, 100)) == pytest.approx(0.5, abs=1e-3)
    down, across = ((1 + np.exp(-((3 / sigma * share) ** 2) / 2)) / 2 for share in (1, 3 / 4))
    assert score((20, 30, 100), (20 + 3, 30, 100)) == pytest.approx(down, rel=1e-4)
    assert score((20, 30, 100), (20, 30 + 3, 100)) == pytest.approx(across, rel=1e-4)
    assert 0 < score() < 0.02  # anywhere
