"""Coordinate transforms from the pickle to the heatmap, vectorised over a batch of clips.

PYSKL's pipeline (Duan et al., CVPR 2022): crop to the box around the persons, resize, random resized crop, resize,
flip. All stages are composed into one affine map per clip and axis, which is applied to the keypoints once.

As in PYSKL, `AffineMap` and `extent` treat each coordinate that is exactly zero as missing. `project`, `rotate` and
`jitter`, which act before this map, treat a joint as missing if all its coordinates are zero; it stays zero.

N clips, M persons, T frames, V joints. Points are xy (2, N, M, T, V) in pixels, one plane per coordinate, so that NumPy
works on long rows. Image shapes are (h, w).
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from lib.data.sampling import ClipRandom

BOX_PADDING = 0.25  # fraction of the box, on each side
BOX_MINIMUM = 10  # px; smaller boxes are not used for cropping
SHORT_EDGE = 64  # px before the random crop
CROP_ATTEMPTS = 10


@dataclass
class AffineMap:
    """x -> scale * x + shift for coordinates other than zero, x -> missing for a coordinate of zero.

    scale, shift, missing: (N, 2) float64, (x, y). shape: (N, 2) int64, image shape after the map, (h, w).
    """

    scale: np.ndarray
    shift: np.ndarray
    missing: np.ndarray
    shape: np.ndarray

    @classmethod
    def identity(cls, shape: np.ndarray) -> Self:
        return cls(np.ones(shape.shape), np.zeros(shape.shape), np.zeros(shape.shape), shape)

    def compact(self, box: np.ndarray) -> Self:
        """Crops the image to `box` (N, 4) int, x1 y1 x2 y2. Missing coordinates do not move."""
        return AffineMap(self.scale, self.shift - box[:, :2], self.missing, _box_shape(box))

    def crop(self, box: np.ndarray) -> Self:
        """Like `compact`, but also moves missing coordinates, as PYSKL's random crop does."""
        return AffineMap(self.scale, self.shift - box[:, :2], self.missing - box[:, :2], _box_shape(box))

    def resize(self, shape: np.ndarray | tuple[int, int]) -> Self:
        """Scales the image to `shape` (N, 2) or (2,), (h, w)."""
        shape = np.broadcast_to(shape, self.shape.shape)
        factor = (shape / self.shape).astype(np.float32)[:, ::-1]
        return AffineMap(self.scale * factor, self.shift * factor, self.missing * factor, shape)

    def flip(self, flipped: np.ndarray, of_pixels: bool = False) -> Self:
        """Mirrors x in the clips selected by `flipped` (N,) bool. Does not swap left and right joints.

        x becomes width - x, as in PYSKL's training. of_pixels: width - 1 - x, which mirrors the heatmap itself, as in
        PoseC3D's flip test.
        """
        width = np.where(flipped, self.shape[:, 1] - of_pixels, 0.0)
        sign = np.where(flipped, -1.0, 1.0)
        missing_x = np.where(self.missing[:, 0] != 0, width + sign * self.missing[:, 0], 0.0)
        return AffineMap(
            np.stack([self.scale[:, 0] * sign, self.scale[:, 1]], 1),
            np.stack([self.shift[:, 0] * sign + width, self.shift[:, 1]], 1),
            np.stack([missing_x, self.missing[:, 1]], 1),
            self.shape,
        )

    def apply(self, xy: np.ndarray) -> np.ndarray:
        """Maps points xy (2, N, M, T, V) float32 to a new array."""
        scale, shift, missing = (
            part.T.astype(np.float32)[..., None, None, None] for part in (self.scale, self.shift, self.missing)
        )
        moved = xy * scale
        moved += shift
        np.copyto(moved, missing, where=xy == 0)
        return moved


def _box_shape(box: np.ndarray) -> np.ndarray:
    return np.stack([box[:, 3] - box[:, 1], box[:, 2] - box[:, 0]], 1)


def extent(xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest nonzero coordinates of each clip, (N, 2) float32 each; (inf, -inf) if there are none."""
    axes, missing = (2, 3, 4), xy == 0
    lowest = np.where(missing, np.float32(np.inf), xy).min(axes)
    highest = np.where(missing, np.float32(-np.inf), xy).max(axes)
    return lowest.T, highest.T


def compact_box(lowest: np.ndarray, highest: np.ndarray, img_shape: np.ndarray) -> np.ndarray:
    """Padded square box around `lowest`..`highest` (N, 2), as in PYSKL's PoseCompact: (N, 4) int64, x1 y1 x2 y2.

    May extend beyond the image. If the points span less than BOX_MINIMUM on an axis, the box is the whole image.
    """
    too_small = (highest - lowest < BOX_MINIMUM).any(axis=1)
    lowest, highest = (np.where(too_small[:, None], 0, edge) for edge in (lowest, highest))
    # Sum and difference in float32, the rest in float64, as NumPy 1 computed PYSKL's scalars.
    centre = (highest + lowest).astype(np.float64) / 2
    half = ((highest - lowest).astype(np.float64) / 2 * (1 + BOX_PADDING)).max(axis=1, keepdims=True)
    box = np.concatenate([centre - half, centre + half], axis=1).astype(np.int64)  # truncates toward zero
    whole_image = np.concatenate([np.zeros_like(img_shape), img_shape[:, ::-1]], axis=1)
    return np.where(too_small[:, None], whole_image, box)


def short_edge_shape(shape: np.ndarray, short_edge: int = SHORT_EDGE) -> np.ndarray:
    """Image shape (N, 2) after scaling the short edge to `short_edge`, in whole pixels."""
    factor = short_edge / shape.min(axis=1, keepdims=True)
    return (shape * factor + 0.5).astype(np.int64)


def crop_size(
    shape: np.ndarray,
    ratio_draws: np.ndarray,
    area_draws: np.ndarray,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    """Width and height (N, 2) int64 of PYSKL's random resized crop: the first attempt that fits the image.

    ratio_draws, area_draws: (N, CROP_ATTEMPTS) in [0, 1). Returns zero if none fits; `crop_box` then uses the centre.
    """
    low, high = np.log(ratio)
    aspect = np.exp(low + (high - low) * ratio_draws)
    pixels = (area[0] + (area[1] - area[0]) * area_draws) * shape.prod(axis=1, keepdims=True)
    size = np.round(np.sqrt(np.stack([pixels * aspect, pixels / aspect], axis=2))).astype(np.int64)  # (N, attempts, 2)
    fits = (size <= shape[:, None, ::-1]).all(axis=2)
    chosen = np.take_along_axis(size, fits.argmax(axis=1)[:, None, None], axis=1)[:, 0]
    return np.where(fits.any(axis=1, keepdims=True), chosen, 0)


def crop_box(shape: np.ndarray, size: np.ndarray, offset_draws: np.ndarray) -> np.ndarray:
    """Places crops of `size` (N, 2), (w, h), at random in the images: (N, 4) int64, x1 y1 x2 y2.

    offset_draws: (N, 2) in [0, 1). A size of zero gives the largest centred square, PYSKL's fallback.
    """
    free = shape[:, ::-1] - size
    corner = (offset_draws * (free + 1)).astype(np.int64)
    square = np.broadcast_to(shape.min(axis=1, keepdims=True), size.shape)
    has_size = (size > 0).all(axis=1, keepdims=True)
    corner = np.where(has_size, corner, (shape[:, ::-1] - square) // 2)
    return np.concatenate([corner, corner + np.where(has_size, size, square)], axis=1)


def random_crop_box(
    shape: np.ndarray, random: ClipRandom, area: tuple[float, float], ratio: tuple[float, float]
) -> np.ndarray:
    """Random resized crop boxes (N, 4) int64 for images of `shape` (N, 2), see `crop_size` and `crop_box`."""
    draws = random.uniform(2 * CROP_ATTEMPTS + 2)
    size = crop_size(shape, draws[:, :CROP_ATTEMPTS], draws[:, CROP_ATTEMPTS:-2], area, ratio)
    return crop_box(shape, size, draws[:, -2:])


def project(xyz: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Orthographic projection of 3D joints in metres, y up: (3, N, M, T, V) -> xy (2, N, M, T, V) in mm, y down.

    angle: (N,) rad, rotation of the camera about the vertical axis. Joints at (0, 0, 0) are missing and stay zero;
    coordinates of other joints that would be zero become 1e-3 mm, because AffineMap takes zero as missing.
    """
    x, y, z = xyz.astype(np.float32)
    cos, sin = _cos_sin(angle)
    xy = np.stack([x * cos + z * sin, -y]) * np.float32(1000)
    present = (xyz != 0).any(axis=0)
    return np.where(present & (xy == 0), np.float32(1e-3), xy * present)


def rotate(xy: np.ndarray, angle: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Rotates points xy (2, N, M, T, V) by angle (N,) rad about centre (N, 2), from x towards y.

    Joints at (0, 0) are missing and stay there.
    """
    cos, sin = _cos_sin(angle)
    centre = centre.T.astype(np.float32)[..., None, None, None]
    x, y = xy - centre
    rotated = np.stack([x * cos - y * sin, x * sin + y * cos]) + centre
    return np.where((xy == 0).all(axis=0), np.float32(0), rotated)


def jitter(xy: np.ndarray, sigma: float, draws: np.ndarray) -> np.ndarray:
    """Moves each joint of xy (2, N, M, T, V) by a normally distributed distance in a random direction.

    sigma: standard deviation in diagonals of the box around the person in the frame. draws: (3, N, M, T, V) in [0, 1).
    Joints at (0, 0) are missing and stay there.
    """
    missing = (xy == 0).all(axis=0)
    lowest = np.where(missing, np.float32(np.inf), xy).min(-1, keepdims=True)
    highest = np.where(missing, np.float32(-np.inf), xy).max(-1, keepdims=True)
    diagonal = np.hypot(*np.where(lowest <= highest, highest - lowest, np.float32(0)))  # (N, M, T, 1)
    # float32 sine and cosine are far faster. 1 - draw is never 0, so the logarithm is finite.
    first, second, direction = (1 - draws[0]).astype(np.float32), *(2 * np.pi * draws[1:]).astype(np.float32)
    distance = np.float32(sigma) * diagonal * np.sqrt(-2 * np.log(first)) * np.cos(second)  # Box-Muller
    moved = xy + distance * np.stack([np.cos(direction), np.sin(direction)])
    return np.where(missing, np.float32(0), moved)


def _cos_sin(angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of angle (N,), float32, broadcastable to (N, M, T, V)."""
    return tuple(f(angle).astype(np.float32)[:, None, None, None] for f in (np.cos, np.sin))
