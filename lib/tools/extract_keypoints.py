"""Extract the keypoints of persons in videos to a PYSKL pickle, for prediction, preview or training.

    python -m lib.tools.extract_keypoints video.mp4 --fps 30 --out clip.pkl        # pip install rtmlib av

YOLOX detects the persons and RTMPose their COCO-17 keypoints (rtmlib, on ONNX Runtime); persons are tracked by their
poses. Each video becomes a clip with its name, in the split `all` and with label 0.

rtmlib downloads the weights on first use. If that fails, the error names two files: put them unchanged into
~/.cache/rtmlib/hub/checkpoints, or unpack them and pass the models: --weights DETECTOR.onnx POSE.onnx.
"""

import argparse
import contextlib
import io
import math
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lib.data.pickles import save_annotations
from lib.errors import UserError, numbered, shown_text
from lib.files import require_file
from lib.formats.frame_numbers import MOST_FRAMES
from lib.formats.tracking import track
from lib.tools.make_pickle import compact
from lib.tools.running import (
    add_out,
    check_new,
    listed,
    log,
    make_parser,
    progress,
    require_package,
    run_tool,
)

SPLIT = 'all'
INSTALL = 'pip install rtmlib av'
MODES = ('performance', 'balanced', 'lightweight')  # of rtmlib
CUDA = 'CUDAExecutionProvider'

Poses = tuple[np.ndarray, np.ndarray]  # keypoint (P, 17, 2) in pixels and score (P, 17) of the P persons in a picture
Estimator = Callable[[np.ndarray], Poses]  # of a picture (H, W, 3) uint8, BGR


class Video(NamedTuple):
    """A readable file. shape: (height, width) of its pictures in pixels, before `turns` quarter turns counterclockwise.

    num_frames and rate (frames per second) are those of the file's header, 0 if unknown.
    """

    path: Path
    shape: tuple[int, int]
    turns: int
    num_frames: int
    rate: float


def open_video(path: Path) -> Video:
    """Decodes the first picture. Raises UserError if there is none."""
    av = require_package('av', INSTALL)
    require_file(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f'{path} has no video stream, only {container.format.long_name}.')
            stream = container.streams.video[0]
            frame = next(container.decode(stream), None)
            if frame is not None:
                turns, rate = round(frame.rotation / 90) % 4, float(stream.average_rate or 0)
                return Video(path, (frame.height, frame.width), turns, stream.frames, rate)
    except av.FFmpegError as error:
        raise UserError(
            f'{path} ({path.stat().st_size:,} bytes) cannot be read as a video ({error.strerror}). It is damaged or '
            'not a video: copy it again, or convert it with ffmpeg.'
        ) from None
    raise UserError(f'{path} is a video without a picture.')


def read_pictures(video: Video, fps: float | None) -> Iterator[tuple[np.ndarray, int]]:
    """Upright pictures (H, W, 3) uint8, BGR, each with the number of successive frames of the clip that show it."""
    height, width = video.shape
    frames = _decode(video.path)
    for frame, count in resample(frames, fps, video.path) if fps else zip(frames, repeat(1)):
        picture = frame.to_ndarray(format='bgr24', width=width, height=height)  # the size may change within a file
        yield np.ascontiguousarray(np.rot90(picture, video.turns)), count


def resample(frames: Iterable[Any], fps: float, path: Path) -> Iterator[tuple[Any, int]]:
    """Nearest frames at a constant rate: frame k of the clip is the one nearest to k / fps seconds after the first.

    frames: with their `time` in seconds, rising. Yields each frame that is used, and how often in succession.
    """
    previous, start, done = None, 0.0, 0
    for frame in chain(frames, [None]):  # None: the end
        if frame and frame.time is None:
            raise UserError(f'{path} has no time stamps, which --fps needs: convert it with ffmpeg, or omit --fps.')
        if previous:
            until = (previous.time + frame.time) / 2 if frame else previous.time + 0.25 / fps  # time stamps are rounded
            count = math.floor((until - start) * fps) + 1 - done
            if done + count > MOST_FRAMES:
                raise UserError(f'{path}: over {MOST_FRAMES:,} frames at {fps:g} per second. Cut it into parts.')
            if count > 0:
                yield previous, count
                done += count
        elif frame:
            start = frame.time
        previous = frame


def _decode(path: Path) -> Iterator[Any]:
    """The av.VideoFrames of a file; if it is damaged, those before the damage, with a warning."""
    av, count = require_package('av', INSTALL), 0
    with av.open(str(path)) as container:
        try:
            for frame in container.decode(container.streams.video[0]):
                yield frame
                count += 1
        except av.FFmpegError as error:
            warnings.warn(f'{path}: damaged after frame {count} ({error.strerror}); the rest is skipped.', stacklevel=2)


def load_estimator(mode: str, weights: Sequence[Path] | None, device: str) -> Estimator:
    """YOLOX and RTMPose, by default those of rtmlib's mode. weights: their ONNX files, of any input size."""
    rtmlib, onnxruntime = (require_package(name, INSTALL) for name in ('rtmlib', 'onnxruntime'))
    if device == 'cuda':
        onnxruntime.preload_dlls()  # of the CUDA packages that PyTorch installs
    preset = rtmlib.Body.MODE[mode]
    for path in weights or ():
        require_file(path)
    detector_file, pose_file = weights or _download(preset['det'], preset['pose'])
    detector, _ = _load_model(rtmlib.YOLOX, detector_file, preset['det_input_size'], device)
    pose, result = _load_model(rtmlib.RTMPose, pose_file, preset['pose_input_size'], device)
    if result[0].shape[1:] != (17, 2):
        raise UserError(f'{pose_file} finds {result[0].shape[1]} joints, not the 17 of COCO (body7).')

    def estimate(picture: np.ndarray) -> Poses:
        boxes = detector(picture)
        if not len(boxes):  # RTMPose would take the whole picture as a person
            return np.zeros((0, 17, 2)), np.zeros((0, 17))
        keypoint, score = pose(np.ascontiguousarray(picture[..., ::-1]), boxes)  # trained on RGB, YOLOX on BGR
        return keypoint, score.clip(0, 1)

    return estimate


def _download(*urls: str) -> list[str]:
    """The paths of files in rtmlib's cache."""
    from rtmlib.tools.file import download_checkpoint

    try:
        return [download_checkpoint(url) for url in urls]
    except Exception as error:  # of the network, the archive or the disk
        raise UserError(
            f'the weights cannot be downloaded ({shown_text(str(error))}). Get {" and ".join(urls)} elsewhere (or from '
            'https://huggingface.co/Tau-J/RTMPose) and put them into ~/.cache/rtmlib/hub/checkpoints.'
        ) from None


def _load_model(kind: Callable[..., Any], path: str | Path, size: tuple[int, int], device: str) -> tuple[Any, Any]:
    """A model of rtmlib, and its result for a black picture. size: (w, h) of its input if the file leaves it open."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action='ignore'):
            model = kind(str(path), size, backend='onnxruntime', device=device)
        height, width = model.session.get_inputs()[0].shape[2:]
        if isinstance(height, int) and isinstance(width, int):
            model.model_input_size = (width, height)
        result = model(np.zeros((64, 64, 3), np.uint8))
    except Exception as error:  # of ONNX Runtime or rtmlib, which raise many kinds
        reason = f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
        raise UserError(f'{path} cannot be used as weights of {kind.__name__} ({reason}).') from None
    if device == 'cuda' and CUDA not in model.session.get_providers():
        raise UserError(
            'ONNX Runtime finds no GPU: pip uninstall onnxruntime; pip install onnxruntime-gpu. Or use --device cpu.'
        )
    return model, result


def extract(video: Video, estimate: Estimator, fps: float | None) -> dict[str, Any] | None:
    """The annotation of a video, None if nobody is in it. Logs one line."""
    frames, total = [], None if fps else video.num_frames or None
    name, shape = shown_text(video.path.stem), video.shape[::-1] if video.turns % 2 else video.shape
    with progress(None, total=total, desc=name, unit='frame') as bar:
        for picture, count in read_pictures(video, fps):
            frames += [estimate(picture)] * count
            bar.update(count)
    tracks = track(frames)
    counts = [f'{count:,}' for count in tracks.score.any(axis=2).sum(axis=1)]
    found = f'{numbered(len(counts), "person")} (in {listed(counts, 10)} frames)' if counts else 'nobody found'
    found += f', {tracks.left_out:,} more left out' if tracks.left_out else ''
    rate = f' at {fps or video.rate:.4g} per second' if fps or video.rate else ''
    log.info('%s: %s of %d x %d%s, %s', name, numbered(len(frames), 'frame'), shape[1], shape[0], rate, found)
    if not counts:
        return None
    annotation = {
        'frame_dir': video.path.stem,
        'label': 0,
        'total_frames': len(frames),
        'img_shape': shape,
        'original_shape': shape,
        'keypoint': tracks.keypoint,
        'keypoint_score': tracks.score,
    }
    return compact(annotation)


def extract_videos(args: argparse.Namespace) -> None:
    if args.fps is not None and not 0 < args.fps <= 1000:
        raise UserError('--fps must be above 0 and at most 1000.')
    if args.out.suffix != '.pkl':
        raise UserError(f'{args.out} must end in .pkl.')
    check_new(args.out)
    videos, names = [open_video(path) for path in args.videos], {}
    for video in videos:
        if other := names.get(video.path.stem):
            raise UserError(f'{other} and {video.path} would both be the clip {video.path.stem!r}. Rename one.')
        names[video.path.stem] = video.path
    estimate = load_estimator(args.mode, args.weights, args.device)
    annotations = [annotation for video in videos if (annotation := extract(video, estimate, args.fps))]
    if not annotations:
        raise UserError(f'no person was found in {listed(list(map(str, args.videos)))}; nothing was written.')
    save_annotations(args.out, {SPLIT: [annotation['frame_dir'] for annotation in annotations]}, annotations)
    log.info('%s: %s in the split %s, all with label 0', args.out, numbered(len(annotations), 'clip'), SPLIT)
    log.info('Next: python -m lib.tools.predict CHECKPOINT %s', shlex.quote(str(args.out)))


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, 'extract_keypoints')
    parser.add_argument('videos', nargs='+', type=Path, metavar='VIDEO', help='files that ffmpeg can read')
    add_out(parser, 'FILE', text='new .pkl file', required=True)
    parser.add_argument('--fps', type=float, help="resample to this rate; NTU's is 30 (default: all frames)")
    parser.add_argument('--mode', choices=MODES, default='balanced', help='models of rtmlib (default: %(default)s)')
    parser.add_argument('--weights', nargs=2, type=Path, metavar=('DETECTOR', 'POSE'), help='other models (ONNX files)')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu', help='(default: %(default)s)')
    return run_tool(extract_videos, parser, argv)


if __name__ == '__main__':
    sys.exit(main())
