"""Extract the keypoints of the persons in videos into a PYSKL pickle, to predict, look at or train on.

    python -m lib.tools.extract_keypoints video.mp4 --out clip.pkl

Each video becomes a clip with its name, in the split `all` and with label 0. torchvision's Keypoint R-CNN detects the
persons (a CPU takes seconds per frame); they are tracked by their poses. Its weights (226 MB) are downloaded on first
use, or named by --weights: https://download.pytorch.org/models/keypointrcnn_resnet50_fpn_coco-fc266e95.pth

PyAV reads the videos (pip install av). All frames are used; the models were trained on 30 frames per second.
"""

import argparse
import pickle
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lib.errors import UserError, shown_text, user_file
from lib.files import make_folder, replacing, require_file
from lib.formats.tracking import track
from lib.tools.make_pickle import FLOAT16_KEEPS
from lib.tools.running import add_out, check_new, listed, log, make_parser, numbered, progress, run_tool

if TYPE_CHECKING:
    from torch import Tensor, nn

    # (B, H, W, 3) uint8, RGB -> for each image keypoint (P, 17, 2) in its pixels and score (P, 17), of all it finds
    Detector = Callable[[np.ndarray], list[tuple[np.ndarray, np.ndarray]]]

LIST = 'all'
MOST_FOUND = 20  # persons of a frame
HRNET_SIGMA = 2 / 64 * 1.25  # of the person's box: 2 px of a heatmap 64 px high, which shows the box and a margin
HRNET_ASPECT = 0.75  # width by height of the box that HRNet is given


class Video(NamedTuple):
    """A file that can be read. turns: quarter turns, counterclockwise, that set its pictures upright.

    shape: (height, width) in pixels before them. num_frames: what the file says, 0 where it says nothing.
    """

    path: Path
    name: str
    shape: tuple[int, int]
    turns: int
    num_frames: int


def open_video(path: Path) -> Video:
    """Reads the first picture of a video. Raises UserError, naming the file, where there is none."""
    av = _pyav()
    require_file(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f'{path} has no video in it, only {container.format.long_name}.')
            stream = container.streams.video[0]
            frame = next(container.decode(stream), None)
            if frame is not None:
                turns = round(frame.rotation / 90) % 4
                return Video(path, path.stem, (frame.height, frame.width), turns, stream.frames)
    except av.FFmpegError as error:
        raise UserError(
            f'{path} ({path.stat().st_size:,} bytes) cannot be read as a video ({error.strerror}). It is cut short, '
            'damaged, or something else: copy it again, or convert it with ffmpeg.'
        ) from None
    raise UserError(f'{path} is a video without a single picture.')


def read_batches(video: Video, batch_size: int) -> Iterator[np.ndarray]:
    """The pictures of a video one after the other, upright: (B, H, W, 3) uint8, RGB, B = batch_size but for the last.

    Where the file is damaged they end, with a warning.
    """
    av = _pyav()
    height, width = video.shape
    with av.open(str(video.path)) as container:
        batch, count = [], 0
        try:
            for frame in container.decode(container.streams.video[0]):
                picture = frame.to_ndarray(format='rgb24', width=width, height=height)  # some change within a file
                batch.append(np.rot90(picture, video.turns))
                count += 1
                if len(batch) == batch_size:
                    yield np.stack(batch)
                    batch = []
        except av.FFmpegError as error:
            warnings.warn(
                f'{video.path} is damaged behind frame {count} ({error.strerror}); the rest of it is left out.',
                stacklevel=2,
            )
        if batch:
            yield np.stack(batch)


def _pyav() -> Any:
    try:
        import av
    except ModuleNotFoundError:
        raise UserError('reading videos takes PyAV, which is not installed: pip install av') from None
    return av


def load_model(weights: Path | None, score: float) -> 'nn.Module':
    """torchvision's Keypoint R-CNN in evaluation mode, on a GPU where there is one.

    weights: file of its state dict, by default the one that torchvision fetches. score: probability that a person must
    have. Raises UserError where there are no weights.
    """
    import torch
    from torchvision.models.detection import KeypointRCNN_ResNet50_FPN_Weights, keypointrcnn_resnet50_fpn

    pretrained = KeypointRCNN_ResNet50_FPN_Weights.DEFAULT
    if weights is None:
        try:
            state = pretrained.get_state_dict(progress=True, check_hash=True, weights_only=True, map_location='cpu')
        except (OSError, RuntimeError) as error:  # no network, a server's answer, another content
            raise UserError(
                f'the weights cannot be fetched ({error}). Get {pretrained.url} elsewhere and name the file: '
                '--weights FILE.'
            ) from None
    else:
        state = _read_weights(weights, pretrained.url)
    model = keypointrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, box_score_thresh=score, box_detections_per_img=MOST_FOUND
    )
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.0  # with which these weights were trained, as torchvision knows
    shapes = {key: value.shape for key, value in model.state_dict().items() if not key.endswith('num_batches_tracked')}
    found = {key: getattr(value, 'shape', None) for key, value in state.items() if key in shapes}
    if wrong := [key for key, shape in shapes.items() if found.get(key) != shape]:
        raise UserError(
            f'{weights or pretrained.url} holds other weights than those of keypointrcnn_resnet50_fpn: {len(wrong)} of '
            f'its {len(shapes)} tensors are missing or of another shape, first {wrong[0]}. Take {pretrained.url}.'
        )
    model.load_state_dict(state, strict=False)  # which counts of batches are in a file does not matter
    return model.eval().to('cuda' if torch.cuda.is_available() else 'cpu')


def _read_weights(path: Path, url: str) -> Mapping[str, Any]:
    """A state dict, of PyTorch's old format too, which torchvision's file is in. Nothing that is in it is run."""
    import torch

    require_file(path)
    try:
        with user_file(path):
            state = torch.load(path, map_location='cpu', weights_only=True)
    except UserError:
        raise
    except Exception as error:  # a broken file may raise anything
        raise UserError(
            f'{path} ({path.stat().st_size:,} bytes) cannot be read as weights ({type(error).__name__}). It is cut '
            f'short, damaged or something else. Take {url}.'
        ) from None
    if not isinstance(state, Mapping):
        raise UserError(f'{path} holds a {type(state).__name__}, not the weights of a model. Take {url}.')
    return state


def make_detector(model: 'nn.Module') -> 'Detector':
    """What finds the persons in pictures, by a Keypoint R-CNN."""
    import torch

    maps = []
    model.roi_heads.keypoint_predictor.register_forward_hook(lambda module, given, result: maps.append(result))
    device = next(model.parameters()).device

    @torch.inference_mode()
    def detect(pictures: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        maps.clear()
        try:
            found = model(list(torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2) / 255))
        except torch.OutOfMemoryError:
            raise UserError(
                f'the memory of {torch.cuda.get_device_name(device)} does not hold {len(pictures)} pictures of '
                f'{pictures.shape[2]} x {pictures.shape[1]}: lower --batch_size.'
            ) from None
        scores = joint_scores(maps[0], torch.cat([persons['boxes'] for persons in found]))
        scores = scores.split([len(persons['boxes']) for persons in found])
        return [
            (persons['keypoints'][..., :2].cpu().numpy(), score.cpu().numpy())
            for persons, score in zip(found, scores, strict=True)
        ]

    return detect


def joint_scores(maps: 'Tensor', boxes: 'Tensor') -> 'Tensor':
    """(P, V), between 0 and 1: what HRNet's scores would be, of the logits maps (P, V, 56, 56) over boxes (P, 4).

    Keypoint R-CNN is trained by the cross-entropy of where a joint is in the box, so that its logits are a distribution
    over places and say nothing by their height, which torchvision gives as score. HRNet is trained to draw a Gaussian
    of height 1 about the joint; the best it can draw where it is not sure is that Gaussian blurred by the distribution
    of places, and its score is the height at the highest place. The same is taken here: the expected height at the
    likeliest place, with the width of HRNet's Gaussian (sigma 2 px on 64 x 48, the box widened by 1/4 and to 3:4).
    """
    import torch

    height, width = maps.shape[-2:]
    places = maps.flatten(2)
    probability, peak = places.softmax(dim=-1).view_as(maps), places.argmax(dim=-1)
    box_width, box_height = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1).unbind(dim=1)
    sigma = HRNET_SIGMA * torch.maximum(box_height, box_width / HRNET_ASPECT)

    def gaussian(at: 'Tensor', count: int, step: 'Tensor') -> 'Tensor':
        """(P, V, count) of cells that are step (P,) sigmas wide, about cell `at` (P, V)."""
        away = torch.arange(count, device=maps.device) - at[..., None]
        return torch.exp(-((away * step[:, None, None]) ** 2) / 2)

    down = gaussian(peak // width, height, box_height / height / sigma)
    across = gaussian(peak % width, width, box_width / width / sigma)
    return torch.einsum('pvhw,pvh,pvw->pv', probability, down, across)


def extract(video: Video, detect: 'Detector', batch_size: int) -> tuple[dict[str, Any] | None, str]:
    """The annotation of a video, None where nobody is in it, and what was found, in words."""
    began, frames = time.monotonic(), []
    with progress(None, total=video.num_frames or None, desc=shown_text(video.name), unit='frame') as bar:
        for pictures in read_batches(video, batch_size):
            frames += detect(pictures)
            bar.update(len(pictures))
    tracks = track(frames)
    seconds = time.monotonic() - began
    shape = video.shape[::-1] if video.turns % 2 else video.shape
    told = f'{shown_text(video.name)}: {numbered(len(frames), "frame")} of {shape[1]} x {shape[0]}, '
    speed = f'{seconds:,.1f} s, {len(frames) / max(seconds, 1e-9):,.1f} frames/s'
    if not len(tracks.keypoint):
        return None, f'{told}nobody found, {speed}'
    present = tracks.score.any(axis=2).sum(axis=1)
    told += f'{numbered(len(present), "person")} (in {listed([f"{count:,}" for count in present], 10)} of them), '
    if tracks.left_out:
        told += f'{tracks.left_out:,} more left out, '
    annotation = {
        'frame_dir': video.name,
        'label': 0,
        'total_frames': len(frames),
        'img_shape': shape,
        'original_shape': shape,
        'keypoint': tracks.keypoint.astype(np.float16 if max(shape) <= FLOAT16_KEEPS else np.float32),
        'keypoint_score': tracks.score.astype(np.float16),
    }
    return annotation, told + speed


def extract_videos(args: argparse.Namespace) -> None:
    """Writes the pickle."""
    if args.batch_size < 1 or not 0 <= args.score < 1:
        raise UserError('--batch_size must be at least 1, and --score at least 0 and below 1.')
    if args.out.suffix != '.pkl':
        raise UserError(f'{args.out} must end in .pkl.')
    check_new(args.out)
    videos, names = [open_video(file) for file in args.videos], {}
    for video in videos:
        if video.name in names:
            raise UserError(
                f'{names[video.name]} and {video.path} would both be the clip {shown_text(video.name)}. Rename one.'
            )
        names[video.name] = video.path
    detect = make_detector(load_model(args.weights, args.score))

    annotations = []
    for video in videos:
        annotation, text = extract(video, detect, args.batch_size)
        log.info('%s', text)
        if annotation:
            annotations.append(annotation)
    if not annotations:
        raise UserError(
            f'nobody was found in {listed(list(map(str, args.videos)))}, so nothing was written. A lower --score than '
            f'{args.score:g} finds persons who are small, dark or half hidden.'
        )
    make_folder(args.out.parent)
    with replacing(args.out) as file:
        split = {LIST: [annotation['frame_dir'] for annotation in annotations]}
        pickle.dump({'split': split, 'annotations': annotations}, file, protocol=4)
    log.info('%s: %s in the split %s, all with label 0', args.out, numbered(len(annotations), 'clip'), LIST)
    log.info('Next: python -m lib.tools.predict CHECKPOINT %s', shlex.quote(str(args.out)))


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, 'extract_keypoints')
    parser.add_argument('videos', nargs='+', type=Path, metavar='VIDEO', help='files that ffmpeg can read')
    add_out(parser, 'FILE', text='new .pkl file', required=True)
    parser.add_argument('--weights', type=Path, metavar='FILE', help='of the detector (default: downloaded)')
    parser.add_argument('--batch_size', type=int, default=4, metavar='FRAMES', help='(default: %(default)s)')
    parser.add_argument('--score', type=float, default=0.7, help='least probability of a person (default: %(default)s)')
    return run_tool(extract_videos, parser, argv)


if __name__ == '__main__':
    sys.exit(main())
