"""Draw the heatmap volume of a clip as a PNG: some of its frames side by side, all channels in one picture.

    python -m lib.tools.preview data/action/sample_hrnet.pkl --out heatmaps.png
    python -m lib.tools.preview data/action/sample_hrnet.pkl --clip S001C002P003R001A024 --kind limb --out kick.png

Left limbs are blue, right ones orange, the middle white. The maps are those that a model is given in evaluation.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import numpy as np

from lib.data.clips import Clips
from lib.data.skeletons import Skeleton, skeleton_of

if TYPE_CHECKING:
    from lib.pytorch.heatmap import HeatmapRenderer

LEFT, RIGHT, MIDDLE = (0.34, 0.71, 0.91), (0.90, 0.62, 0.0), (1.0, 1.0, 1.0)  # told apart by the colour-blind too
PIXEL = 4  # edge of a heatmap pixel in the picture


def draw_clip(
    clips: Clips, render: HeatmapRenderer, name: str | None = None, frames: int = 12
) -> tuple[str, np.ndarray]:
    """The volume of one clip (the split's first by default) as a picture.

    Returns 'heatmap/<frame_dir>' and the picture (3, H, W) uint8. Raises ValueError for a clip of another split.
    """
    import torch
    from torchvision.utils import make_grid

    names = [clips.store.name(clip) for clip in clips.clips]
    if name is not None and name not in names:
        raise ValueError(
            f'{clips.store.ann_file} has no clip {name} in {clips.list_name}; it has {", ".join(names[:3])}, ...'
        )
    b, place = divmod(names.index(name) if name else 0, clips.batch_size)
    batch = clips[0, b]
    shown = np.s_[place : place + 1] if clips.num_views == 1 else np.s_[place : place + 1, 0]
    keypoint, score = (torch.from_numpy(batch[key][shown]) for key in ('keypoint', 'score'))
    volume = render(keypoint, score)[0]  # (T, V, H, W)
    volume = volume[np.linspace(0, len(volume) - 1, min(frames, len(volume))).astype(int)]
    colours = torch.tensor(channel_colours(skeleton_of(clips.num_joints), render.kind))
    picture = (volume[:, :, None] * colours[None, :, :, None, None]).amax(1)  # (T, 3, H, W)
    picture = picture.repeat_interleave(PIXEL, dim=2).repeat_interleave(PIXEL, dim=3)
    grid = make_grid(picture, nrow=6, padding=PIXEL, pad_value=0.35)
    return f'heatmap/{names[b * clips.batch_size + place]}', (grid.clamp(0, 1) * 255).byte().numpy()


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

    from lib.pytorch.heatmap import HeatmapRenderer

    clips = Clips('val', ann_file=args.ann_file, benchmark=args.benchmark, clip_len=args.clip_len, batch_size=1, seed=0)
    name, picture = draw_clip(clips, HeatmapRenderer(kind=args.kind), args.clip)
    save_image(torch.from_numpy(picture) / 255, args.out)
    print(f'{args.out}: {name.removeprefix("heatmap/")}, {args.kind} maps')


if __name__ == '__main__':
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')
