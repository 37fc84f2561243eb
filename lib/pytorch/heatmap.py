"""Renders heatmap volumes from keypoints.

lib/data/heatmap.py defines the maps (PYSKL's GeneratePoseTarget).
Axes: N clips, M persons, T frames, V joints, L limbs, H = W = size; all lengths in pixels of the map.
"""

import math
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.data.heatmap import MIN_SCORE, Kind, check_maps, num_maps, window_width
from lib.data.skeletons import PICKLE_SKELETONS
from lib.errors import UserError

LOG_TINY = -87.0  # smaller values become 0: exp() of them is denormal, 50 times as slow on a CPU


class HeatmapRenderer(nn.Module):
    """Renders 3D heatmap volumes: one Gaussian map per joint (or limb) and frame.

    The module must be on the device of the keypoints.
    size: H = W in pixels. sigma: standard deviation in pixels.
    kind: 'joint' (V channels), 'limb' (one channel per limb of the skeleton) or 'both' (joints, then limbs).
    per_person: a volume for each person, instead of one for all.
    Raises UserError for values out of range.
    """

    def __init__(self, *, size: int = 56, sigma: float = 0.6, kind: Kind = 'joint', per_person: bool = False):
        super().__init__()
        check_maps(size, sigma, kind)
        self.size = size
        self.sigma = float(sigma)
        self.kind = kind
        self.per_person = per_person
        taps = torch.arange(window_width(size, self.sigma))  # K
        row, col = torch.cartesian_prod(taps, taps).float().unbind(1)
        self.register_buffer('tap_row', row.contiguous(), persistent=False)
        self.register_buffer('tap_col', col.contiguous(), persistent=False)
        for num_joints, skeleton in PICKLE_SKELETONS.items():
            self.register_buffer(f'limbs_{num_joints}', torch.tensor(skeleton.limbs), persistent=False)

    def num_maps(self, num_joints: int) -> int:
        """Number of channels for V = num_joints (see lib.data.heatmap.num_maps)."""
        return num_maps(self.kind, num_joints)

    def forward(self, keypoint: Tensor, score: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """keypoint (N,M,T,V,2) float32, x right and y down, score (N,M,T,V) float32 -> (N,T,channels,H,W).

        With per_person (N,M,T,channels,H,W). dtype: of the volume, which is computed in float32. Raises UserError if
        the shapes do not match.
        """
        if keypoint.ndim != 5 or keypoint.shape[-1] != 2 or score.shape != keypoint.shape[:-1]:
            raise UserError(
                f'keypoint is {tuple(keypoint.shape)} and score {tuple(score.shape)}; '
                'expected (N,M,T,V,2) and (N,M,T,V): clips, persons, frames, joints, (x,y)'
            )
        if self.per_person:
            volume = self._draw(keypoint.flatten(0, 1)[:, None], score.flatten(0, 1)[:, None], dtype)
            return volume.unflatten(0, keypoint.shape[:2])
        return self._draw(keypoint, score, dtype)

    def _draw(self, keypoint: Tensor, score: Tensor, dtype: torch.dtype) -> Tensor:
        """The volume (N,T,channels,H,W) of all persons in a clip."""
        num_clips, _, num_frames, num_joints, _ = keypoint.shape
        self.num_maps(num_joints)  # raises if limbs are needed but unknown
        if torch.compiler.is_compiling():
            joints = self._joints(keypoint, score).to(dtype) if self.kind != 'limb' else None
            limbs = self._limbs(keypoint, score).to(dtype) if self.kind != 'joint' else None
            return torch.cat([joints, limbs], dim=2) if self.kind == 'both' else limbs if joints is None else joints
        if self.kind == 'joint':
            volume = keypoint.new_zeros(num_clips, num_frames, num_joints, self.size, self.size, dtype=dtype)
        else:
            volume = self._limbs(keypoint, score).to(dtype)
        if self.kind == 'both':
            volume = functional.pad(volume, (0, 0, 0, 0, num_joints, 0))
        if self.kind != 'limb':
            self._draw_joints(volume[:, :, :num_joints], keypoint, score)
        return volume

    def _joints(self, keypoint: Tensor, score: Tensor) -> Tensor:
        """Joint channels (N,T,V,H,W) as outer products of windowed 1D Gaussians.

        For torch.compile, which fuses this into one pass over the volume; eager mode would need several.
        """
        centre = keypoint[..., None]  # (N,M,T,V,2,1)
        first, last = self._window(centre, centre)
        pixel = torch.arange(self.size, device=keypoint.device, dtype=keypoint.dtype)
        inside = (pixel >= first) & (pixel <= last)
        # Multiplied here by the score, so that compiled code does it once per row, not per pixel.
        height = torch.stack([torch.ones_like(score), torch.where(score >= MIN_SCORE, score, 0)], dim=-1)[..., None]
        gaussian = torch.where(inside, height * torch.exp((pixel - centre) ** 2 * (-0.5 / self.sigma**2)), 0)
        x, y = gaussian.unbind(-2)  # (N,M,T,V,size)
        return (y[..., :, None] * x[..., None, :]).amax(1)

    def _draw_joints(self, volume: Tensor, keypoint: Tensor, score: Tensor) -> None:
        """Draws joints into volume (N,T,V,H,W), initially zero.

        Only the K * K pixels near each joint are computed and written, which is cheap compared with zeroing the volume
        and needs no temporary of its size.
        """
        keypoint = keypoint.permute(0, 2, 3, 1, 4).contiguous()[..., None]  # (N,T,V,M,2,1)
        score = score.permute(0, 2, 3, 1).contiguous()[..., None]  # (N,T,V,M,1)
        first, last = self._window(keypoint, keypoint)
        (x, y), (left, top), (right, bottom) = keypoint.unbind(-2), first.unbind(-2), last.unbind(-2)
        col, row = left + self.tap_col, top + self.tap_row  # (N,T,V,M,K*K)
        value = score * torch.exp(((col - x) ** 2 + (row - y) ** 2) * (-0.5 / self.sigma**2))
        # Pixels outside the window get the value 0, which has no effect at the clamped index.
        value = torch.where((col <= right) & (row <= bottom) & (score >= MIN_SCORE), value, 0)
        index = row.clamp(max=self.size - 1).long() * self.size + col.clamp(max=self.size - 1).long()
        volume.flatten(3).scatter_reduce_(3, index.flatten(3), value.flatten(3).to(volume.dtype), 'amax')

    def _limbs(self, keypoint: Tensor, score: Tensor) -> Tensor:
        """Limb channels (N,T,L,H,W)."""
        limbs = getattr(self, f'limbs_{keypoint.shape[-2]}')
        start, end = keypoint[..., limbs[:, 0], :], keypoint[..., limbs[:, 1], :]  # (N,M,T,L,2)
        start_score, end_score = score[..., limbs[:, 0]], score[..., limbs[:, 1]]
        value = torch.minimum(start_score, end_score)
        shown = value >= MIN_SCORE

        # A limb shorter than a pixel is drawn as its start joint: length 0, any direction, the score of the start.
        short = ((end - start) ** 2).sum(-1) < 1
        end = torch.where(short[..., None], start, end)
        # The maximum over persons is taken over logarithms: one exp() per pixel.
        log_value = torch.where(short, start_score, value).clamp(min=MIN_SCORE).log()
        log_value = torch.where(shown, log_value, -math.inf)
        first, last = self._window(torch.minimum(start, end), torch.maximum(start, end))

        # The limb in rotated coordinates (along, across) about the map's corner, in units of sqrt(2) sigma. In float64:
        # differences of large float32 numbers are too coarse for a Gaussian.
        unit = math.sqrt(2) * self.sigma
        start64, end64 = start.double() / unit, end.double() / unit
        step_x, step_y = (end64 - start64).unbind(-1)
        length = torch.hypot(step_x, step_y)
        ux = torch.where(short, 1, step_x / length)
        uy = torch.where(short, 0, step_y / length)
        middle = start64[..., 0] * ux + start64[..., 1] * uy + length / 2
        level = start64[..., 1] * ux - start64[..., 0] * uy
        # All parameters of a limb in one tensor, so that compiled code computes them once, not per pixel.
        limb = (ux / unit, uy / unit, middle, length / 2, level, log_value, *first.unbind(-1), *last.unbind(-1))
        limb = torch.stack([number.float() for number in limb])[..., None, None]  # (10,N,M,T,L,1,1)
        log_maps = reduce(torch.maximum, map(self._log_limbs, limb.unbind(2)))  # one person at a time, to save memory
        return torch.where(log_maps > LOG_TINY, log_maps.clamp(min=LOG_TINY).exp(), 0)

    def _log_limbs(self, limb: Tensor) -> Tensor:
        """Logarithms of the limb maps of one person in each clip, (N,T,L,H,W); limb: (10,N,T,L,1,1), see _limbs."""
        ux, uy, middle, half, level, log_value, left, top, right, bottom = limb.unbind()
        x = torch.arange(self.size, device=limb.device, dtype=limb.dtype)
        y = x[:, None]
        # Row-only terms first: they are cheap.
        log_value = torch.where((y >= top) & (y <= bottom), log_value, -math.inf)  # (N,T,L,H,1)
        # Distance to the segment: beyond its ends, and perpendicular to it.
        beyond = ((x * ux + (y * uy - middle)).abs() - half).relu()
        aside = (y * ux - level) - x * uy
        inside = (x - (left + right) / 2).abs() <= (right - left) / 2
        return torch.where(inside, log_value - (beyond**2 + aside**2), -math.inf)

    def _window(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """First and last pixel within 3 sigma of [low, high] along an axis, by truncation in float32.

        Outside the map, last < first.
        """
        first = (low - 3 * self.sigma).trunc().clamp(min=0)
        last = (high + 3 * self.sigma).trunc().clamp(max=self.size - 1)
        return first, last
