"""Draw the heatmap volume of a clip as a PNG: some of its frames side by side, all channels in one picture.

    python -m lib.tools.preview data/action/sample_hrnet.pkl --out heatmaps.png
    python -m lib.tools.preview data/action/sample_hrnet.pkl --clip S001C002P003R001A024 --kind limb --out kick.png

Left limbs are blue, right ones orange, the middle white. The maps are those that a model is given in evaluation.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial

import numpy as np

from lib.data.clips import Clips
from lib.data.skeletons import Skeleton, skeleton_of

LEFT, RIGHT, MIDDLE = (0.34, 0.71, 0.91), (0.90, 0.62, 0.0), (1.0, 1.0, 1.0)  # told apart by the colour-blind too
PIXEL = 4  # edge of a heatmap pixel in the picture


def draw_clip(
    clips: Clips,
    kind: str,
    draw: Callable[[np.ndarray, np.ndarray], np.ndarray],
    name: str | None = None,
    frames: int = 12,
) -> tuple[str, np.ndarray]:
    """The volume of one clip (the split's first by default) as a picture.

    draw: the renderer of maps of `kind`, (keypoint, score) -> (N, T, V, H, W). Returns 'heatmap/<frame_dir>' and the
    picture (3, H, W) uint8. Raises ValueError for a clip of another split.
    """
    names = [clips.store.name(clip) for clip in clips.clips]
    if name is not None and name not in names:
        raise ValueError(
            f'{clips.store.ann_file} has no clip {name} in {clips.list_name}; it has {", ".join(names[:3])}, ...'
        )
    b, place = divmod(names.index(name) if name else 0, clips.batch_size)
    batch = clips[0, b]
    shown = np.s_[place : place + 1] if clips.num_views == 1 else np.s_[place : place + 1, 0]
    volume = draw(batch['keypoint'][shown], batch['score'][shown])[0]  # (T, V, H, W)
    volume = volume[np.linspace(0, len(volume) - 1, min(frames, len(volume))).astype(int)]
    colours = np.array(channel_colours(skeleton_of(clips.num_joints), kind), np.float32)
    pictures = (volume[:, :, None] * colours[None, :, :, None, None]).max(1)  # (T, 3, H, W)
    return f'heatmap/{names[b * clips.batch_size + place]}', as_grid(pictures.repeat(PIXEL, 2).repeat(PIXEL, 3))


def as_grid(pictures: np.ndarray, columns: int = 6) -> np.ndarray:
    """Pictures (T, 3, h, w), 0 to 1, side by side with grey bars between: (3, H, W) uint8."""
    count, _, h, w = pictures.shape
    columns = min(columns, count)
    grid = np.full((3, -(-count // columns) * (h + PIXEL) + PIXEL, columns * (w + PIXEL) + PIXEL), 0.35, np.float32)
    for i, picture in enumerate(pictures):
        top, left = (i // columns) * (h + PIXEL) + PIXEL, (i % columns) * (w + PIXEL) + PIXEL
        grid[:, top : top + h, left : left + w] = picture
    return (grid.clip(0, 1) * 255).astype(np.uint8)


def channel_colours(skeleton: Skeleton, kind: str) -> list[tuple[float, float, float]]:
    """A colour for each channel of a volume, by the side of the body."""

    def side(*joints: int) -> tuple[float, float, float]:
        if any(joint in skeleton.left for joint in joints) == any(joint in skeleton.right for joint in joints):
            return MIDDLE
        return LEFT if any(joint in skeleton.left for joint in joints) else RIGHT

    joints = [side(joint) for joint in range(len(skeleton.joints))]
    limbs = [side(*limb) for limb in skeleton.limbs]
    return {'joint': joints, 'limb': limbs, 'both': joints + limbs}[kind]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('ann_file', help='PYSKL pickle')
    parser.add_argument('--out', required=True, help='PNG to write')
    parser.add_argument('--clip', help='frame_dir of a clip of the validation list (default: the first)')
    parser.add_argument('--benchmark', default='xsub', help='(default: %(default)s)')
    parser.add_argument('--kind', default='joint', choices=('joint', 'limb', 'both'), help='(default: %(default)s)')
    parser.add_argument('--clip_len', type=int, default=48, help='(default: %(default)s)')
    args = parser.parse_args()

    import torch
    from torchvision.utils import save_image

    from lib.pytorch.engine import draw
    from lib.pytorch.heatmap import HeatmapRenderer

    clips = Clips('val', ann_file=args.ann_file, benchmark=args.benchmark, clip_len=args.clip_len, batch_size=1, seed=0)
    name, picture = draw_clip(clips, args.kind, partial(draw, HeatmapRenderer(kind=args.kind), 'cpu'), args.clip)
    save_image(torch.from_numpy(picture) / 255, args.out)
    print(f'{args.out}: {name.removeprefix("heatmap/")}, {args.kind} maps')


if __name__ == '__main__':
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')
