"""Renders heatmap volumes from keypoints, on the device of the keypoints.

lib/data/heatmap.py defines the maps (PYSKL's GeneratePoseTarget). Channels are last.
Axes: N clips, M persons, T frames, V joints, L limbs, H = W = size, C channels; all lengths in pixels of the map.
"""

import math

import numpy as np
import tensorflow as tf

from lib.data.heatmap import MIN_SCORE, Kind, check_maps, num_maps, window_width
from lib.data.skeletons import skeleton_of
from lib.errors import UserError


class HeatmapRenderer:
    """Renders 3D heatmap volumes: one Gaussian map per joint (or limb) and frame.

    Without variables; usable eagerly, in a tf.function and with XLA.
    size: H = W in pixels. sigma: standard deviation in pixels.
    kind: 'joint' (V channels), 'limb' (one channel per limb of the skeleton) or 'both' (joints, then limbs).
    Raises UserError for values out of range.
    """

    def __init__(self, *, size: int = 56, sigma: float = 0.6, kind: Kind = 'joint'):
        check_maps(size, sigma, kind)
        self.size = size
        self.sigma = float(sigma)
        self.kind = kind

    def num_maps(self, num_joints: int) -> int:
        """Number of channels for V = num_joints (see lib.data.heatmap.num_maps)."""
        return num_maps(self.kind, num_joints)

    def __call__(self, keypoint: tf.Tensor, score: tf.Tensor) -> tf.Tensor:
        """keypoint (N,M,T,V,2) float32, x right and y down, score (N,M,T,V) float32 -> (N,T,H,W,C) float32.

        Raises UserError if the shapes do not match.
        """
        keypoint, score = tf.convert_to_tensor(keypoint, tf.float32), tf.convert_to_tensor(score, tf.float32)
        if (
            keypoint.shape.rank != 5
            or keypoint.shape[-1] != 2
            or not score.shape.is_compatible_with(keypoint.shape[:-1])
        ):
            raise UserError(
                f'keypoint is {keypoint.shape} and score {score.shape}; '
                'expected (N,M,T,V,2) and (N,M,T,V): clips, persons, frames, joints, (x,y)'
            )
        num_joints = keypoint.shape[3]
        channels = self.num_maps(num_joints)  # raises if limbs are needed but unknown
        if self.kind == 'limb':
            return self._limbs(keypoint, score)
        if self.kind == 'both':
            volume = tf.pad(self._limbs(keypoint, score), [[0, 0]] * 4 + [[num_joints, 0]])
        else:
            num_clips, _, num_frames, _, _ = tf.unstack(tf.shape(keypoint))
            volume = tf.zeros((num_clips, num_frames, self.size, self.size, channels))
        return self._with_joints(volume, keypoint, score)

    def _with_joints(self, volume: tf.Tensor, keypoint: tf.Tensor, score: tf.Tensor) -> tf.Tensor:
        """Draws joints into the first V channels of volume (N,T,H,W,C), initially zero.

        Only the K * K pixels near each joint are computed and written, which is cheap compared with zeroing the volume
        and needs no temporary of its size.
        """
        first, last = self._window(keypoint, keypoint)
        pixel = first[..., None] + tf.range(window_width(self.size, self.sigma))  # (N,M,T,V,2,K)
        gaussian = tf.exp((tf.cast(pixel, tf.float32) - keypoint[..., None]) ** 2 * (-0.5 / self.sigma**2))
        gaussian = tf.where(pixel <= last[..., None], gaussian, 0.0)
        score = tf.where(score >= MIN_SCORE, score, 0.0)[..., None, None]
        value = score * gaussian[..., 1, :, None] * gaussian[..., 0, None, :]  # (N,M,T,V,K,K)

        # Pixels outside the window have the value 0, which has no effect at the clamped index.
        pixel = tf.cast(tf.minimum(pixel, self.size - 1), tf.int64)
        num_clips, num_frames, _, _, channels = tf.unstack(tf.shape(volume, tf.int64))
        frame = tf.reshape(tf.range(num_clips * num_frames), (num_clips, 1, num_frames, 1, 1, 1))
        joint = tf.range(keypoint.shape[3], dtype=tf.int64)[:, None, None]
        index = (frame * self.size + pixel[..., 1, :, None]) * self.size + pixel[..., 0, None, :]
        index = index * channels + joint
        drawn = tf.tensor_scatter_nd_max(tf.reshape(volume, [-1]), tf.reshape(index, (-1, 1)), tf.reshape(value, [-1]))
        return tf.reshape(drawn, tf.shape(volume))

    def _limbs(self, keypoint: tf.Tensor, score: tf.Tensor) -> tf.Tensor:
        """Limb channels (N,T,H,W,L)."""
        limbs = np.array(skeleton_of(keypoint.shape[3]).limbs)
        start, end = (tf.gather(keypoint, limbs[:, i], axis=3) for i in (0, 1))  # (N,M,T,L,2)
        start_score, end_score = (tf.gather(score, limbs[:, i], axis=3) for i in (0, 1))
        value = tf.minimum(start_score, end_score)
        shown = value >= MIN_SCORE

        # A limb shorter than a pixel is drawn as its start joint: length 0, any direction, the score of the start.
        short = tf.reduce_sum((end - start) ** 2, -1) < 1
        end = tf.where(short[..., None], start, end)
        # The maximum over persons is taken over logarithms: one exp() per pixel.
        log_value = tf.where(shown, tf.math.log(tf.where(short, start_score, value)), -math.inf)
        first, last = self._window(tf.minimum(start, end), tf.maximum(start, end))

        # The limb in rotated coordinates (along, across) about the map's corner, in units of sqrt(2) sigma. In float64:
        # differences of large float32 numbers are too coarse for a Gaussian.
        start, end = tf.cast(start, tf.float64), tf.cast(end, tf.float64)
        step = tf.where(short[..., None], tf.constant([1.0, 0.0], tf.float64), end - start)
        unit = math.sqrt(0.5) / self.sigma
        direction = step * (unit / tf.norm(step, axis=-1, keepdims=True))
        ux, uy = tf.unstack(direction, axis=-1)
        begin = start[..., 0] * ux + start[..., 1] * uy
        stop = end[..., 0] * ux + end[..., 1] * uy
        level = start[..., 1] * ux - start[..., 0] * uy
        # All parameters of a limb in one tensor, so that XLA computes them once, not per pixel.
        limb = (ux, uy, begin, stop, level, log_value, *tf.unstack(first, axis=-1), *tf.unstack(last, axis=-1))
        limb = tf.stack([tf.cast(number, tf.float32) for number in limb])
        # Persons next to limbs, where the maximum over them is cheapest: (N,T,1,1,M,L).
        limb = tf.transpose(limb, (0, 1, 3, 2, 4))[:, :, :, None, None]
        ux, uy, begin, stop, level, log_value, left, top, right, bottom = tf.unstack(limb)

        x = tf.range(self.size, dtype=tf.float32)[:, None, None]
        y = x[:, None]
        along = x * ux + y * uy
        # Distance to the segment: beyond its ends, and perpendicular to it.
        beyond = along - tf.clip_by_value(along, begin, stop)
        aside = (y * ux - level) - x * uy
        cols = tf.where((left <= x) & (x <= right), log_value, -math.inf)
        rows = tf.where((top <= y) & (y <= bottom), 0.0, -math.inf)
        log_maps = cols + rows - (beyond**2 + aside**2)
        return tf.exp(tf.reduce_max(log_maps, -2))

    def _window(self, low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """First and last pixel, int32, within 3 sigma of [low, high] along an axis, by truncation in float32.

        Outside the map, last < first.
        """
        first = tf.clip_by_value(low - 3 * self.sigma, 0, self.size)
        last = tf.clip_by_value(high + 3 * self.sigma, -1, self.size - 1)
        return tf.cast(first, tf.int32), tf.cast(last, tf.int32)
