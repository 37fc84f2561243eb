"""Videos of two rectangles, found by small ONNX models that rtmlib runs like YOLOX and RTMPose."""

import signal
import struct
import sys
import urllib.error
import zipfile
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import rtmlib
from hypothesis import given
from hypothesis import strategies as st

from lib.data.pickles import load_annotations
from lib.tools import extract_keypoints
from lib.tools.extract_keypoints import resample
from tests.tools.test_predict import predicted

SIZE, BOX = 128, np.array([24, 48])  # of the pictures, and of a person (w, h), in px
PLACE = np.stack([24 + 3 * (np.arange(17) * 5 % 17), 20 + 5 * np.arange(17)], axis=-1)  # of the joints, in SimCC bins

# Boxes around the bright pixels in each channel of a BGR picture, the rightmost first: x1, y1, x2, y2, score.
DETECTOR = """
    <ir_version: 10, opset_import: ["" : 18]>
    detector (float[1, 3, 64, 64] picture) => (float[1, 3, 5] dets)
    <float bright = {128.0}, int64[1] x = {3}, int64[1] y = {2}, int64[1] last = {2}, int64[1] three = {3},
     float certain = {0.9}, int64[1] first = {0}>
    {
        mask = Greater(picture, bright)
        found = Cast <to = 1> (mask)
        across = ReduceMax <keepdims = 0> (found, y)
        down = ReduceMax <keepdims = 0> (found, x)
        left = ArgMax <axis = 2> (across)
        top = ArgMax <axis = 2> (down)
        right = ArgMax <axis = 2, select_last_index = 1> (across)
        bottom = ArgMax <axis = 2, select_last_index = 1> (down)
        inner = Concat <axis = 2> (left, top, right, bottom)
        box = Cast <to = 1> (inner)
        edge = Constant <value_floats = [0.0, 0.0, 1.0, 1.0]> ()
        outer = Add(box, edge)
        there = ReduceMax(across, last)
        score = Mul(there, certain)
        unsorted = Concat <axis = 2> (outer, score)
        flat = Squeeze(left, last)
        row = Squeeze(flat, first)
        values, order = TopK <axis = 0> (row, three)
        dets = Gather <axis = 1> (unsorted, order)
    }
"""
# The same joints in every RGB picture; the score is 0.9 for a red person and 0.6 for a blue one.
POSE = """
    <ir_version: 10, opset_import: ["" : 18]>
    pose (float[1, 3, 64, 48] picture) => (float[1, JOINTS, 96] simcc_x, float[1, JOINTS, 128] simcc_y)
    <int64[1, JOINTS] x = {XS}, int64[1, JOINTS] y = {YS}, int64[2] image = {2, 3}, int64 width = {96},
     int64 height = {128}, float[2] peak = {0.0, 1.0}, float[3] weight = {1.0, 0.0, -1.0}, float zero = {0.0},
     float high = {0.9}, float low = {0.6}>
    {
        channel = ReduceMax <keepdims = 0> (picture, image)
        difference = MatMul(channel, weight)
        is_red = Greater(difference, zero)
        score = Where(is_red, high, low)
        at_x = OneHot(x, width, peak)
        at_y = OneHot(y, height, peak)
        simcc_x = Mul(at_x, score)
        simcc_y = Mul(at_y, score)
    }
"""


def write_model(path: Path, text: str, joints: int = 17) -> Path:
    for name, value in {'JOINTS': joints, 'XS': PLACE[:, 0], 'YS': PLACE[:, 1]}.items():
        listed = str(value) if isinstance(value, int) else ', '.join(map(str, np.resize(value, joints)))
        text = text.replace(name, listed)
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp('weights')
    detector, pose = write_model(folder / 'detector.onnx', DETECTOR), write_model(folder / 'pose.onnx', POSE)
    return ['--weights', str(detector), str(pose)]


def walking(frames: int) -> np.ndarray:
    """(2, T, 2): the corners of two persons who pass each other, 2 px per frame; even, as the detector halves them."""
    t = 2 * np.arange(frames)
    return np.stack([np.stack([4 + t, 8 + 0 * t], axis=-1), np.stack([100 - t, 70 + 0 * t], axis=-1)])


def drawn(corner: np.ndarray) -> np.ndarray:
    """(T, H, W, 3) uint8, RGB: persons at corner (M, T, 2), negative if absent, the first red and the second blue."""
    pictures = np.zeros((corner.shape[1], SIZE, SIZE, 3), np.uint8)
    for person, t in np.ndindex(corner.shape[:2]):
        x, y = corner[person, t]
        if x >= 0:
            pictures[t, y : y + BOX[1], x : x + BOX[0], 2 * person] = 255
    return pictures


def joints(corner: np.ndarray) -> np.ndarray:
    """(M, T, 17, 2): where RTMPose finds the joints of persons at corner (M, T, 2); 0 if absent."""
    size = 1.25 * BOX[1] * np.array([0.75, 1])  # with RTMPose's margin and aspect ratio
    keypoint = (corner + BOX / 2)[:, :, None] + (PLACE / (96, 128) - 0.5) * size
    return np.where((corner[:, :, :1] < 0)[..., None], 0, keypoint)


def write_video(path: Path, pictures: np.ndarray, times: np.ndarray | None = None) -> Path:
    """A lossless video at 30 frames per second, or with the time stamps `times` in ms."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('png', rate=30)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], 'rgb24'
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for t, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format='rgb24')
            if times is not None:
                frame.pts, frame.time_base = int(times[t]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def extracted(out: Path, *arguments: object) -> list[dict]:
    assert extract_keypoints.main([*map(str, arguments), '--out', str(out)]) == 0
    return load_annotations(out)['annotations']


@pytest.fixture
def refused(refused):
    return partial(refused, extract_keypoints.main)


def test_two_persons_in_a_video_are_tracked_and_predicted(weights, trained_once, tmp_path, capsys):
    """They pass each other and are detected in changing order; one of them appears later."""
    corner = walking(40)
    corner[1, :5] = -1
    both = write_video(tmp_path / 'both.mov', drawn(corner))
    alone = write_video(tmp_path / 'alone.mov', drawn(corner[:1, :12]))
    out = tmp_path / 'new' / 'two.pkl'
    two, one = extracted(out, both, alone, *weights)
    text = capsys.readouterr().out
    assert 'both: 40 frames of 128 x 128 at 30 per second, 2 persons (in 40, 35 frames)\n' in text
    assert f'lib.tools.predict CHECKPOINT {out}' in text
    assert 'with onnxruntime' not in text  # rtmlib's own output
    assert [file.name for file in out.parent.iterdir()] == ['two.pkl']

    assert load_annotations(out)['split'] == {'all': ['both', 'alone']}
    assert (two['label'], two['total_frames'], two['img_shape']) == (0, 40, (SIZE, SIZE))
    np.testing.assert_allclose(two['keypoint'], joints(corner), atol=0.05)
    np.testing.assert_allclose(two['keypoint_score'][0], 0.9, atol=1e-3)
    np.testing.assert_allclose(two['keypoint_score'][1, 5:], 0.6, atol=1e-3)
    assert not two['keypoint_score'][1, :5].any()
    np.testing.assert_allclose(one['keypoint'], joints(corner[:1, :12]), atol=0.05)

    entries = predicted(tmp_path / 'predictions', trained_once('vanilla') / 'run', out)
    assert [(entry['name'], entry['persons']) for entry in entries] == [('both', 2), ('alone', 1)]
    assert [(window['start'], window['end']) for entry in entries for window in entry['windows']] == [(0, 40), (0, 12)]


def test_fps_takes_the_nearest_frames_by_their_time_stamps(weights, tmp_path, capsys):
    corner = walking(40)[:1]
    times = np.cumsum(np.random.default_rng(1).integers(5, 90, 40))  # no two frames are equally near
    video = write_video(tmp_path / 'varying.mov', drawn(corner), times)
    (annotation,) = extracted(tmp_path / 'out.pkl', video, '--fps', 30, *weights)
    moments = times[0] + np.arange((times[-1] - times[0]) * 30 // 1000 + 1) * 1000 / 30
    nearest = np.abs(times - moments[:, None]).argmin(axis=1)
    assert 40 < len(nearest) != len(set(nearest)) < 40  # frames are repeated and left out
    np.testing.assert_allclose(annotation['keypoint'], joints(corner[:, nearest]), atol=0.05)
    assert f'{len(nearest)} frames of 128 x 128 at 30 per second' in capsys.readouterr().out


@given(st.lists(st.floats(0.001, 0.5), max_size=40), st.floats(-5, 5), st.floats(1, 120))
def test_resampled_frames_are_the_nearest(gaps, start, fps):
    times = start + np.cumsum([0, *gaps])
    frames = [SimpleNamespace(time=time) for time in times.tolist()]
    chosen = [frame.time for frame, count in resample(frames, fps, Path('video')) for _ in range(count)]
    duration = (times[-1] - times[0]) * fps  # in frames
    assert duration - 0.75 <= len(chosen) - 1 + 1e-6
    assert len(chosen) - 1 <= duration + 0.25 + 1e-6
    for k, time in enumerate(chosen):
        moment = times[0] + k / fps
        assert abs(time - moment) <= np.abs(times - moment).min() + 1e-9


@pytest.mark.parametrize(('matrix', 'turns'), [((0, 1, -1, 0), 1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 3)])
def test_videos_of_a_rotated_camera_are_set_upright(weights, tmp_path, matrix, turns):
    """turns: clockwise quarter turns that the file asks a player to make."""
    corner = walking(6)
    path = write_video(tmp_path / 'turned.mov', np.rot90(drawn(corner)[:, :120], turns, axes=(1, 2)))
    content = path.read_bytes()
    start = content.index(b'tkhd') + 4 + 40  # of the matrix in the track's header
    a, b, c, d = (value << 16 for value in matrix)
    path.write_bytes(content[:start] + struct.pack('>9i', a, b, 0, c, d, 0, 0, 0, 1 << 30) + content[start + 36 :])
    (annotation,) = extracted(tmp_path / 'out.pkl', path, *weights)
    assert annotation['img_shape'] == (120, SIZE)
    np.testing.assert_allclose(annotation['keypoint'], joints(corner), atol=0.05)


def test_videos_that_cannot_be_read_are_reported_before_any_work(weights, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(extract_keypoints, 'extract', lambda *arguments: pytest.fail('work has begun'))
    good, out = write_video(tmp_path / 'good.mov', drawn(walking(4))), tmp_path / 'out.pkl'
    (tmp_path / 'junk.mp4').write_bytes(b'no video' * 100)
    (tmp_path / 'cut.mov').write_bytes(good.read_bytes()[:500])
    (tmp_path / 'other').mkdir()
    twin = tmp_path / 'other' / 'good.mov'
    twin.write_bytes(good.read_bytes())
    for name in ('junk.mp4', 'cut.mov', 'nothing.mp4'):
        assert name in refused(good, tmp_path / name, '--out', out, *weights)
    assert 'good' in refused(good, twin, '--out', out, *weights)  # two clips of one name
    assert '.pkl' in refused(good, '--out', tmp_path / 'new.npz', *weights)
    assert '--fps' in refused(good, '--out', out, '--fps', 0, *weights)
    assert not out.exists()
    out.write_text('mine')
    assert 'out.pkl' in refused(good, '--out', out, *weights)
    assert out.read_text() == 'mine'


def test_videos_without_persons_are_skipped(weights, tmp_path, refused):
    empty = write_video(tmp_path / 'empty.mov', np.zeros((4, SIZE, SIZE, 3), np.uint8))
    video, out = write_video(tmp_path / 'video.mov', drawn(walking(4))), tmp_path / 'out.pkl'
    assert 'no person was found' in refused(empty, '--out', out, *weights)
    assert not out.exists()
    extracted(out, empty, video, *weights)
    assert load_annotations(out)['split'] == {'all': ['video']}


@pytest.mark.parametrize('name', ['rtmlib', 'onnxruntime', 'av'])
def test_a_missing_package_is_named_with_the_command_that_installs_it(weights, tmp_path, refused, monkeypatch, name):
    video = write_video(tmp_path / 'video.mov', drawn(walking(4)))
    monkeypatch.setitem(sys.modules, name, None)
    text = refused(video, '--out', tmp_path / 'out.pkl', *weights)
    assert f'{name} cannot be imported' in text
    assert 'pip install rtmlib av' in text


def test_unusable_weights_are_named(weights, tmp_path, refused):
    video = write_video(tmp_path / 'video.mov', drawn(walking(4)))
    _, detector, pose = weights
    (tmp_path / 'junk.onnx').write_bytes(b'junk' * 100)
    halpe = write_model(tmp_path / 'halpe26.onnx', POSE, joints=26)
    for pair, wrong in (
        ((tmp_path / 'nothing.onnx', pose), 'nothing.onnx'),
        ((detector, tmp_path / 'junk.onnx'), 'junk.onnx'),
        ((pose, detector), 'pose.onnx'),
        ((detector, detector), 'detector.onnx'),
        ((detector, halpe), 'halpe26.onnx'),
    ):
        assert wrong in refused(video, '--out', tmp_path / 'out.pkl', '--weights', *pair)
    if 'CUDAExecutionProvider' not in onnxruntime.get_available_providers():
        assert 'onnxruntime-gpu' in refused(video, '--out', tmp_path / 'out.pkl', '--device', 'cuda', *weights)
    assert not (tmp_path / 'out.pkl').exists()


@pytest.mark.parametrize('mode', extract_keypoints.MODES)
def test_weights_are_downloaded_or_put_into_the_cache_by_hand(weights, tmp_path, capsys, monkeypatch, mode):
    """The files of each mode, as they are; without them and a network, the error names both."""

    def urlopen(*arguments, **options):
        raise urllib.error.URLError('no network')

    monkeypatch.setattr('rtmlib.tools.file.urlopen', urlopen)
    monkeypatch.delenv('TORCH_HOME', raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    video = write_video(tmp_path / 'video.mov', drawn(walking(4)))
    urls = [rtmlib.Body.MODE[mode][part] for part in ('det', 'pose')]
    assert extract_keypoints.main([str(video), '--out', str(tmp_path / 'out.pkl'), '--mode', mode]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith('error: ')
    assert all(url in last for url in urls)

    for url, file in zip(urls, weights[1:], strict=True):
        archive = tmp_path / 'cache' / 'rtmlib' / 'hub' / 'checkpoints' / url.rsplit('/', 1)[1]
        with zipfile.ZipFile(archive, 'w') as content:
            content.write(file, f'20230604/{archive.stem}/end2end.onnx')
    (annotation,) = extracted(tmp_path / 'out.pkl', video, '--mode', mode)
    np.testing.assert_allclose(annotation['keypoint'], joints(walking(4)), atol=0.05)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_files(monkeypatch, weights, tmp_path, number):
    monkeypatch.setattr(extract_keypoints, 'track', lambda frames: signal.raise_signal(number))
    video = write_video(tmp_path / 'video.mov', drawn(walking(4)))
    assert extract_keypoints.main([str(video), '--out', str(tmp_path / 'out.pkl'), *weights]) == 75
    assert [file.name for file in tmp_path.iterdir()] == ['video.mov']
