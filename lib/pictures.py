"""Pictures of heatmap volumes as arrays, in colours that the colour-blind tell apart (Okabe and Ito, 2008).

T frames, V joints, C channels (maps of a frame), all values between 0 and 1.
"""

from collections.abc import Callable

import numpy as np

from lib.data.clips import Clips
from lib.data.skeletons import Skeleton

Colour = tuple[float, float, float]
LEFT, RIGHT, MIDDLE = (0.34, 0.71, 0.91), (0.90, 0.62, 0.0), (1.0, 1.0, 1.0)
PIXEL = 4  # edge of a heatmap pixel in the picture
BAR = 0.35  # grey between pictures


def draw_clip(
    clips: Clips, kind: str, draw: Callable[[np.ndarray, np.ndarray], np.ndarray], frames: int = 12
) -> tuple[str, np.ndarray]:
    """The volume of the split's first clip as a picture.

    draw: the renderer of maps of `kind`, (keypoint, score) -> (N, T, C, H, W). Returns 'heatmap/<frame_dir>' and the
    picture (3, H, W) uint8.
    """
    batch = clips[0, 0]
    shown = np.s_[:1] if clips.num_views == 1 else np.s_[:1, 0]
    volume = draw(batch['keypoint'][shown], batch['score'][shown])[0]
    pictures = coloured(volume[some_of(len(volume), frames)], channel_colours(clips.skeleton, kind))
    return f'heatmap/{clips.store.name(clips.batch_clips(0, 0)[0])}', as_grid(enlarged(pictures, PIXEL))


def some_of(count: int, most: int) -> np.ndarray:
    """At most `most` of the numbers 0 ... count - 1, evenly spread, the first and the last among them."""
    return np.linspace(0, count - 1, min(most, count)).astype(int)


def coloured(volume: np.ndarray, colours: list[Colour]) -> np.ndarray:
    """Maps (T, C, h, w) in the colours of their channels, all in one picture a frame: (T, 3, h, w) float32."""
    return (volume[:, :, None] * np.array(colours, np.float32)[None, :, :, None, None]).max(1)


def enlarged(pictures: np.ndarray, factor: int) -> np.ndarray:
    """Pictures (..., h, w), each pixel a square of factor * factor."""
    return pictures.repeat(factor, -2).repeat(factor, -1)


def as_grid(pictures: np.ndarray, columns: int = 6) -> np.ndarray:
    """Pictures (T, 3, h, w) side by side with grey bars between: (3, H, W) uint8."""
    count, _, h, w = pictures.shape
    columns = min(columns, count)
    grid = np.full((3, -(-count // columns) * (h + PIXEL) + PIXEL, columns * (w + PIXEL) + PIXEL), BAR, np.float32)
    for i, picture in enumerate(pictures):
        top, left = (i // columns) * (h + PIXEL) + PIXEL, (i % columns) * (w + PIXEL) + PIXEL
        grid[:, top : top + h, left : left + w] = picture
    return (grid.clip(0, 1) * 255).astype(np.uint8)


def channel_colours(skeleton: Skeleton, kind: str) -> list[Colour]:
    """A colour for each channel of a volume, by the side of the body: left blue, right orange, the middle white."""
    joints = [side_colour(skeleton, joint) for joint in range(len(skeleton.joints))]
    limbs = [side_colour(skeleton, *limb) for limb in skeleton.limbs]
    return {'joint': joints, 'limb': limbs, 'both': joints + limbs}[kind]


def side_colour(skeleton: Skeleton, *joints: int) -> Colour:
    """The colour of the side on which a joint lies, or a limb between two."""
    if any(joint in skeleton.left for joint in joints) == any(joint in skeleton.right for joint in joints):
        return MIDDLE
    return LEFT if any(joint in skeleton.left for joint in joints) else RIGHT
