"""Draws heatmap volumes from keypoints, on the keypoints' device.

The maps are those of lib/data/heatmap.py (PYSKL's GeneratePoseTarget), which says what a map is; channels are last.
Axes: N clips, M persons, T frames, V joints, L limbs, H = W = size, C channels; all lengths in pixels of the map.
"""

import math

import numpy as np
import tensorflow as tf

from lib.data.heatmap import MIN_SCORE, Kind, check_maps, num_maps
from lib.data.skeletons import skeleton_of
from lib.errors import UserError


class HeatmapRenderer:
    """Keypoints to 3D heatmap volumes: one Gaussian map per joint and frame, or per limb and frame.

    Has no variables: call it eagerly or in a tf.function, compiled by XLA or not.
    size: H = W in pixels. sigma: of the Gaussian, in pixels.
    kind: 'joint' gives V channels, 'limb' one per limb of the skeleton with V joints, 'both' joints, then limbs.
    Raises UserError for values out of range.
    """

    def __init__(self, *, size: int = 56, sigma: float = 0.6, kind: Kind = 'joint'):
        check_maps(size, sigma, kind)
        self.size = size
        self.sigma = float(sigma)
        self.kind = kind

    def num_maps(self, num_joints: int) -> int:
        """Channels of the volume of a skeleton with V = num_joints (see lib.data.heatmap.num_maps)."""
        return num_maps(self.kind, num_joints)

    def __call__(self, keypoint: tf.Tensor, score: tf.Tensor) -> tf.Tensor:
        """keypoint (N,M,T,V,2) float32, x right and y down, and score (N,M,T,V) float32 to (N,T,H,W,C) float32.

        Raises UserError where the shapes do not fit.
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
        channels = self.num_maps(num_joints)  # raises where limbs are asked for and not known
        if self.kind == 'limb':
            return self._limbs(keypoint, score)
        if self.kind == 'both':
            volume = tf.pad(self._limbs(keypoint, score), [[0, 0]] * 4 + [[num_joints, 0]])
        else:
            num_clips, _, num_frames, _, _ = tf.unstack(tf.shape(keypoint))
            volume = tf.zeros((num_clips, num_frames, self.size, self.size, channels))
        return self._with_joints(volume, keypoint, score)

    def _with_joints(self, volume: tf.Tensor, keypoint: tf.Tensor, score: tf.Tensor) -> tf.Tensor:
        """volume (N,T,H,W,C), whose first V channels are zero, with the joints drawn into them.

        Only the K * K pixels in reach of a joint are computed and written: beside the pass over the volume that sets
        it to zero they cost little, and no temporary is as large as the volume.
        """
        # K, the most pixels that a joint's window has along an axis. Rounding adds one where 6 sigma is nearly whole.
        reach = min(math.floor(6 * self.sigma + 1e-3) + 2, self.size)
        first, last = self._window(keypoint, keypoint)
        pixel = first[..., None] + tf.range(reach)  # (N,M,T,V,2,K)
        gaussian = tf.exp((tf.cast(pixel, tf.float32) - keypoint[..., None]) ** 2 * (-0.5 / self.sigma**2))
        gaussian = tf.where(pixel <= last[..., None], gaussian, 0.0)
        score = tf.where(score >= MIN_SCORE, score, 0.0)[..., None, None]
        value = score * gaussian[..., 1, :, None] * gaussian[..., 0, None, :]  # (N,M,T,V,K,K)

        # A pixel outside the window has the value 0, which changes nothing wherever in the map it is put.
        pixel = tf.cast(tf.minimum(pixel, self.size - 1), tf.int64)
        num_clips, num_frames, _, _, channels = tf.unstack(tf.shape(volume, tf.int64))
        frame = tf.reshape(tf.range(num_clips * num_frames), (num_clips, 1, num_frames, 1, 1, 1))
        joint = tf.range(keypoint.shape[3], dtype=tf.int64)[:, None, None]
        index = (frame * self.size + pixel[..., 1, :, None]) * self.size + pixel[..., 0, None, :]
        index = index * channels + joint
        drawn = tf.tensor_scatter_nd_max(tf.reshape(volume, [-1]), tf.reshape(index, (-1, 1)), tf.reshape(value, [-1]))
        return tf.reshape(drawn, tf.shape(volume))

    def _limbs(self, keypoint: tf.Tensor, score: tf.Tensor) -> tf.Tensor:
        """The limb channels (N,T,H,W,L)."""
        limbs = np.array(skeleton_of(keypoint.shape[3]).limbs)
        start, end = (tf.gather(keypoint, limbs[:, i], axis=3) for i in (0, 1))  # (N,M,T,L,2)
        start_score, end_score = (tf.gather(score, limbs[:, i], axis=3) for i in (0, 1))
        value = tf.minimum(start_score, end_score)
        shown = value >= MIN_SCORE

        # A limb shorter than a pixel is drawn as its start: a limb of length 0, in any direction, with start's score.
        short = tf.reduce_sum((end - start) ** 2, -1) < 1
        end = tf.where(short[..., None], start, end)
        # The maximum over persons is taken of logarithms, so that a pixel costs one exp().
        log_value = tf.where(shown, tf.math.log(tf.where(short, start_score, value)), -math.inf)
        first, last = self._window(tf.minimum(start, end), tf.maximum(start, end))

        # The limb's line in the coordinates (along it, across it), turned about the map's corner, in units of
        # sqrt(2) sigma. In float64, for what is left of the difference of two large float32 numbers is too coarse
        # for a Gaussian.
        start, end = tf.cast(start, tf.float64), tf.cast(end, tf.float64)
        step = tf.where(short[..., None], tf.constant([1.0, 0.0], tf.float64), end - start)
        unit = math.sqrt(0.5) / self.sigma
        direction = step * (unit / tf.norm(step, axis=-1, keepdims=True))
        ux, uy = tf.unstack(direction, axis=-1)
        begin = start[..., 0] * ux + start[..., 1] * uy
        stop = end[..., 0] * ux + end[..., 1] * uy
        level = start[..., 1] * ux - start[..., 0] * uy
        # One tensor of all that describes a limb, so that XLA computes it once and not for every pixel.
        limb = (ux, uy, begin, stop, level, log_value, *tf.unstack(first, axis=-1), *tf.unstack(last, axis=-1))
        limb = tf.stack([tf.cast(number, tf.float32) for number in limb])
        # Persons go beside the limbs, where taking their maximum costs least: (N,T,1,1,M,L).
        limb = tf.transpose(limb, (0, 1, 3, 2, 4))[:, :, :, None, None]
        ux, uy, begin, stop, level, log_value, left, top, right, bottom = tf.unstack(limb)

        x = tf.range(self.size, dtype=tf.float32)[:, None, None]
        y = x[:, None]
        along = x * ux + y * uy
        # Distance to the segment: how far before its begin or past its stop, and how far aside.
        beyond = along - tf.clip_by_value(along, begin, stop)
        aside = (y * ux - level) - x * uy
        cols = tf.where((left <= x) & (x <= right), log_value, -math.inf)
        rows = tf.where((top <= y) & (y <= bottom), 0.0, -math.inf)
        log_maps = cols + rows - (beyond**2 + aside**2)
        return tf.exp(tf.reduce_max(log_maps, -2))

    def _window(self, low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The first and the last pixel, int32, within 3 sigma of [low, high] along an axis.

        Decided in float32, cut off toward zero. Outside the map the last is below the first.
        """
        first = tf.clip_by_value(low - 3 * self.sigma, 0, self.size)
        last = tf.clip_by_value(high + 3 * self.sigma, -1, self.size - 1)
        return tf.cast(first, tf.int32), tf.cast(last, tf.int32)
