"""Draws heatmap volumes from keypoints, on the keypoints' device.

The maps are those of lib/data/heatmap.py (PYSKL's GeneratePoseTarget), which says what a map is.
Axes: N clips, M persons, T frames, V joints, L limbs, H = W = size; all lengths in pixels of the map.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lib.data.heatmap import MIN_SCORE
from lib.data.skeletons import skeleton_of

Kind = Literal['joint', 'limb', 'both']


class HeatmapRenderer(nn.Module):
    """Keypoints to 3D heatmap volumes: one Gaussian map per joint and frame, or per limb and frame.

    size: H = W in pixels. sigma: of the Gaussian, in pixels.
    kind: 'joint' gives V channels, 'limb' one per limb of the skeleton with V joints, 'both' joints, then limbs.
    Raises ValueError for values out of range.
    """

    def __init__(self, *, size: int = 56, sigma: float = 0.6, kind: Kind = 'joint'):
        super().__init__()
        if size < 1:
            raise ValueError(f'size is {size}; a map has at least 1 pixel')
        if not sigma > 0:
            raise ValueError(f'sigma is {sigma}; it must be above 0')
        if kind not in get_args(Kind):
            raise ValueError(f'kind is {kind!r}; choose one of {", ".join(get_args(Kind))}')
        self.size = size
        self.sigma = float(sigma)
        self.kind = kind

    def num_channels(self, num_joints: int) -> int:
        """Channels of the volume of a skeleton with V = num_joints. Raises ValueError where its limbs are not known."""
        joints = 0 if self.kind == 'limb' else num_joints
        limbs = 0 if self.kind == 'joint' else len(skeleton_of(num_joints).limbs)
        return joints + limbs

    def forward(self, keypoint: Tensor, score: Tensor) -> Tensor:
        """keypoint (N,M,T,V,2) float32, x right and y down, and score (N,M,T,V) float32 to (N,T,channels,H,W) float32.

        Raises ValueError where the shapes do not fit.
        """
        if keypoint.ndim != 5 or keypoint.shape[-1] != 2 or score.shape != keypoint.shape[:-1]:
            raise ValueError(
                f'keypoint is {tuple(keypoint.shape)} and score {tuple(score.shape)}; '
                'expected (N,M,T,V,2) and (N,M,T,V): clips, persons, frames, joints, (x,y)'
            )
        if self.kind == 'joint':
            return self._joints(keypoint, score)
        if self.kind == 'limb':
            return self._limbs(keypoint, score)
        return torch.cat([self._joints(keypoint, score), self._limbs(keypoint, score)], dim=2)

    def _joints(self, keypoint: Tensor, score: Tensor) -> Tensor:
        # A Gaussian around a joint is the outer product of one along x and one along y.
        pixels = self._pixels(keypoint)
        gaussian = torch.exp(-((pixels - keypoint[..., None]) ** 2) / (2 * self.sigma**2))
        profile = torch.where(self._inside(keypoint, keypoint), gaussian, 0)  # (N,M,T,V,2,size)
        along_x, along_y = profile.unbind(-2)
        along_y = along_y * torch.where(score < MIN_SCORE, 0, score)[..., None]
        return (along_y[..., :, None] * along_x[..., None, :]).amax(1)

    def _limbs(self, keypoint: Tensor, score: Tensor) -> Tensor:
        limbs = torch.tensor(skeleton_of(keypoint.shape[-2]).limbs, device=keypoint.device)
        start, end = keypoint[..., limbs[:, 0], :], keypoint[..., limbs[:, 1], :]  # (N,M,T,L,2)
        start_score, end_score = score[..., limbs[:, 0]], score[..., limbs[:, 1]]
        value = torch.minimum(start_score, end_score)
        shown = value >= MIN_SCORE

        # A limb shorter than a pixel is drawn as its start: a limb of length 0, in any direction, with start's score.
        short = ((end - start) ** 2).sum(-1) < 1
        end = torch.where(short[..., None], start, end)
        value = torch.where(shown, torch.where(short, start_score, value), 0)

        # Coordinates along and across the limb. Their origin is the map's, and what is far away is subtracted
        # in float64, for the difference of two large float32 is too coarse for a Gaussian.
        start64, end64 = start.double(), end.double()
        step = end64 - start64
        length = step.norm(dim=-1, keepdim=True)
        direction = torch.where(length > 0, step / length.clamp(min=1), step.new_tensor([1.0, 0.0]))
        across = torch.stack([-direction[..., 1], direction[..., 0]], dim=-1)
        begin = (start64 * direction).sum(-1).float()[..., None, None]
        stop = (end64 * direction).sum(-1).float()[..., None, None]
        level = (start64 * across).sum(-1).float()[..., None, None]

        x, y = self._pixels(keypoint), self._pixels(keypoint)[:, None]
        ux, uy = (u[..., None, None] for u in direction.float().unbind(-1))
        place = x * ux + y * uy
        beyond = torch.maximum(begin - place, place - stop).clamp(min=0)
        aside = y * ux - x * uy - level
        gaussian = torch.exp(-(beyond**2 + aside**2) / (2 * self.sigma**2))
        inside_x, inside_y = self._inside(torch.minimum(start, end), torch.maximum(start, end)).unbind(-2)
        inside = inside_y[..., :, None] & inside_x[..., None, :]
        return torch.where(inside, gaussian * value[..., None, None], 0).amax(1)

    def _pixels(self, like: Tensor) -> Tensor:
        return torch.arange(self.size, device=like.device, dtype=like.dtype)

    def _inside(self, low: Tensor, high: Tensor) -> Tensor:
        """(...) and (...) to (...,size): the pixels within 3 sigma of [low, high], as float32 and trunc() decide."""
        pixels = self._pixels(low)
        first, last = (low - 3 * self.sigma).trunc(), (high + 3 * self.sigma).trunc()
        return (pixels >= first[..., None]) & (pixels <= last[..., None])
