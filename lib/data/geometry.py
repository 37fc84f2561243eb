"""What happens to coordinates between the pickle and the heatmap, vectorised over a batch of clips.

PYSKL's pipeline (Duan et al., CVPR 2022): compaction to the box around the person, resize, random resized crop, resize,
flip. All of it is one affine map per clip and axis, so only the map is composed stage by stage, and the keypoints are
touched once. A coordinate of exactly zero means "missing", x and y apart, and takes a path of its own.

What comes before the map moves joints themselves: the view of a 3D pickle, rotation, joint noise. A joint that is all
zero is missing, and stays so.

N clips, P persons of all clips together (person rows), L frames, V joints. Images are (h, w), points (x, y), in pixels.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from lib.data.sampling import ClipRandom

BOX_PADDING = 0.25  # of the box, all around
BOX_MINIMUM = 10  # px; a smaller box is left alone
SHORT_EDGE = 64  # px before the random crop
CROP_ATTEMPTS = 10


@dataclass
class AffineMap:
    """x -> scale * x + shift for coordinates that are there, x -> missing for those that are zero.

    scale, shift, missing: (N, 2) float64, (x, y). shape: (N, 2) int64, the image after the map, (h, w).
    """

    scale: np.ndarray
    shift: np.ndarray
    missing: np.ndarray
    shape: np.ndarray

    @classmethod
    def identity(cls, shape: np.ndarray) -> Self:
        return cls(np.ones(shape.shape), np.zeros(shape.shape), np.zeros(shape.shape), shape)

    def compact(self, box: np.ndarray) -> Self:
        """Cuts the image down to `box` (N, 4) int, x1 y1 x2 y2. Missing coordinates stay where they are."""
        return AffineMap(self.scale, self.shift - box[:, :2], self.missing, _box_shape(box))

    def crop(self, box: np.ndarray) -> Self:
        """As `compact`, but missing coordinates move too, as PYSKL's random crop has it."""
        return AffineMap(self.scale, self.shift - box[:, :2], self.missing - box[:, :2], _box_shape(box))

    def resize(self, shape: np.ndarray) -> Self:
        """Scales the image to `shape` (N, 2) or (2,), (h, w)."""
        shape = np.broadcast_to(shape, self.shape.shape)
        factor = (shape / self.shape).astype(np.float32)[:, ::-1]
        return AffineMap(self.scale * factor, self.shift * factor, self.missing * factor, shape)

    def flip(self, flipped: np.ndarray, of_pixels: bool = False) -> Self:
        """Mirrors x of the clips chosen by `flipped` (N,) bool. Left and right joints are not exchanged here.

        x becomes width - x, as PYSKL has it in training. of_pixels: width - 1 - x, which is where a joint lies in a
        mirrored map, as PoseC3D's flip test has it.
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

    def apply(self, keypoint: np.ndarray, clip_of: np.ndarray) -> np.ndarray:
        """Moves keypoint (P, L, V, 2); person row p belongs to clip clip_of[p]. Returns float32."""
        scale, shift, missing = (
            np.tile(part.astype(np.float32)[clip_of], keypoint.shape[2])[:, None]  # (P, 1, V * 2): long inner loops
            for part in (self.scale, self.shift, self.missing)
        )
        flat = keypoint.reshape(*keypoint.shape[:2], -1)
        moved = flat * scale
        moved += shift
        np.copyto(moved, missing, where=flat == 0)
        return moved.reshape(keypoint.shape)


def _box_shape(box: np.ndarray) -> np.ndarray:
    return np.stack([box[:, 3] - box[:, 1], box[:, 2] - box[:, 0]], 1)


def extent(keypoint: np.ndarray, num_persons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest coordinate of each clip that is not missing, (N, 2) float32 each.

    keypoint: (P, L, V, 2) float32, the persons of a clip one after the other. num_persons: (N,), at least 1.
    Where nothing is there: (inf, -inf).
    """
    persons, frames, joints, _ = keypoint.shape
    absent = keypoint == 0
    first_row = np.cumsum(num_persons) - num_persons
    group = math.gcd(frames, 8)  # reduced in two steps, which makes for long inner loops

    def reduced(ufunc: np.ufunc, nothing: float) -> np.ndarray:
        edge = keypoint.copy()
        np.copyto(edge, nothing, where=absent)
        edge = ufunc.reduce(edge.reshape(persons, -1, group * joints * 2), axis=1)
        edge = ufunc.reduce(edge.reshape(persons, group, joints * 2), axis=1)
        edge = ufunc.reduce(edge.reshape(persons, joints, 2), axis=1)
        return ufunc.reduceat(edge, first_row, axis=0)

    return reduced(np.minimum, np.inf), reduced(np.maximum, -np.inf)


def compact_box(lowest: np.ndarray, highest: np.ndarray, img_shape: np.ndarray) -> np.ndarray:
    """PYSKL's PoseCompact: the square box around `lowest`..`highest` (N, 2), padded, (N, 4) int64, x1 y1 x2 y2.

    It may reach over the border of the image. Where the points span less than BOX_MINIMUM on an axis: the image itself.
    """
    too_small = (highest - lowest < BOX_MINIMUM).any(axis=1)
    lowest, highest = (np.where(too_small[:, None], 0, edge) for edge in (lowest, highest))
    # The sum and difference in float32, the rest in float64: what NumPy 1 made of PYSKL's scalars.
    centre = (highest + lowest).astype(np.float64) / 2
    half = ((highest - lowest).astype(np.float64) / 2 * (1 + BOX_PADDING)).max(axis=1, keepdims=True)
    box = np.concatenate([centre - half, centre + half], axis=1).astype(np.int64)  # truncates toward zero, as int()
    whole_image = np.concatenate([np.zeros_like(img_shape), img_shape[:, ::-1]], axis=1)
    return np.where(too_small[:, None], whole_image, box)


def short_edge_shape(shape: np.ndarray, short_edge: int = SHORT_EDGE) -> np.ndarray:
    """The image shape (N, 2) after scaling its short edge to `short_edge`, in whole pixels."""
    factor = short_edge / shape.min(axis=1, keepdims=True)
    return (shape * factor + 0.5).astype(np.int64)


def crop_size(
    shape: np.ndarray,
    ratio_draws: np.ndarray,
    area_draws: np.ndarray,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    """Width and height (N, 2) int64 of PYSKL's random resized crop: the first of the attempts that fits the image.

    ratio_draws, area_draws: (N, CROP_ATTEMPTS) in [0, 1). Zero where none fits (`crop_box` then takes the middle).
    """
    low, high = np.log(ratio)
    aspect = np.exp(low + (high - low) * ratio_draws)
    wanted = (area[0] + (area[1] - area[0]) * area_draws) * shape.prod(axis=1, keepdims=True)
    size = np.round(np.sqrt(np.stack([wanted * aspect, wanted / aspect], axis=2))).astype(np.int64)  # (N, attempts, 2)
    fits = (size <= shape[:, None, ::-1]).all(axis=2)
    chosen = np.take_along_axis(size, fits.argmax(axis=1)[:, None, None], axis=1)[:, 0]
    return np.where(fits.any(axis=1, keepdims=True), chosen, 0)


def crop_box(shape: np.ndarray, size: np.ndarray, offset_draws: np.ndarray) -> np.ndarray:
    """Places crops of `size` (N, 2), (w, h), anywhere in the images; (N, 4) int64, x1 y1 x2 y2.

    offset_draws: (N, 2) in [0, 1). Where size is zero: the largest square in the middle, as PYSKL falls back.
    """
    free = shape[:, ::-1] - size
    corner = (offset_draws * (free + 1)).astype(np.int64)
    square = np.broadcast_to(shape.min(axis=1, keepdims=True), size.shape)
    found = (size > 0).all(axis=1, keepdims=True)
    corner = np.where(found, corner, (shape[:, ::-1] - square) // 2)
    return np.concatenate([corner, corner + np.where(found, size, square)], axis=1)


def random_crop_box(
    shape: np.ndarray, random: ClipRandom, area: tuple[float, float], ratio: tuple[float, float]
) -> np.ndarray:
    """Random resized crop boxes (N, 4) int64 for images of `shape` (N, 2); see `crop_size` and `crop_box`."""
    draws = random.uniform(2 * CROP_ATTEMPTS + 2)
    size = crop_size(shape, draws[:, :CROP_ATTEMPTS], draws[:, CROP_ATTEMPTS:-2], area, ratio)
    return crop_box(shape, size, draws[:, -2:])


def as_complex(points: np.ndarray) -> np.ndarray:
    """Points (..., 2) as numbers x + iy, (...,): a view that lets NumPy handle a point as one item, not two."""
    return points.view(np.result_type(points.dtype, np.complex64))[..., 0]


def view(keypoint: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """A parallel projection of 3D joints (P, L, V, 3), metres, y up: (P, L, V, 2) float32, millimetres, y down.

    angle: (P,) rad, by which the camera has gone around the vertical axis. Missing joints stay zero; a joint that falls
    on an axis is moved off it by a thousandth of a millimetre, since zero means missing.
    """
    x, y, z = np.moveaxis(keypoint.astype(np.float32), -1, 0)
    cos, sin = (f(angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    seen = np.stack([x * cos + z * sin, -y], axis=-1) * np.float32(1000)
    there = (keypoint != 0).any(axis=-1, keepdims=True)
    return np.where(there & (seen == 0), np.float32(1e-3), seen * there)


def rotate(keypoint: np.ndarray, angle: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Turns the joints (P, L, V, 2) by angle (P,) rad about centre (P, 2), x towards y."""
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], -2).astype(keypoint.dtype)  # (P, 2, 2)
    centre = centre.astype(keypoint.dtype)[:, None, None]
    turned = ((keypoint - centre).reshape(len(keypoint), -1, 2) @ matrix).reshape(keypoint.shape) + centre
    np.copyto(as_complex(turned), 0, where=as_complex(keypoint) == 0)
    return turned


def jitter(keypoint: np.ndarray, sigma: float, draws: np.ndarray) -> np.ndarray:
    """Moves every joint (P, L, V, 2) on its own, in a direction of its own.

    The distance is normally distributed; its deviation is sigma times the diagonal of the person's box in that frame.
    draws: (P, L, V, 3) in [0, 1).
    """
    missing = as_complex(keypoint) == 0  # (P, L, V)
    joint_first = np.ascontiguousarray(np.moveaxis(keypoint, 2, 0))  # (V, P, L, 2): long inner loops
    absent = np.ascontiguousarray(np.moveaxis(missing, 2, 0))
    lowest, highest = joint_first.copy(), joint_first
    np.copyto(as_complex(lowest), complex(np.inf, np.inf), where=absent)
    np.copyto(as_complex(highest), complex(-np.inf, -np.inf), where=absent)
    lowest, highest = lowest.min(axis=0), highest.max(axis=0)
    diagonal = np.linalg.norm(np.where(lowest <= highest, highest - lowest, 0), axis=-1)[..., None]  # (P, L, 1)

    # In float32: its sines and cosines take a twentieth of the time. 1 - draw is never 0, which the logarithm needs.
    draws, turn = (1 - draws[..., 0]).astype(np.float32), (2 * np.pi * draws[..., 1:]).astype(np.float32)
    distance = np.float32(sigma) * diagonal * np.sqrt(-2 * np.log(draws)) * np.cos(turn[..., 0])  # Box and Muller
    moved = np.stack([np.cos(turn[..., 1]), np.sin(turn[..., 1])], axis=-1)
    as_complex(moved)[:] *= distance
    moved += keypoint
    np.copyto(as_complex(moved), 0, where=missing)
    return moved
