"""Augmentation of training clips: the config section `augmentation` and its implementation.

configs/README.md explains how to add a key. N clips, M persons, T frames, V joints.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np

from lib.data.geometry import AffineMap, extent, jitter, random_crop_box, rotate, short_edge_shape
from lib.data.keypoints import MOVES_2D, MOVES_3D, random_move, rotate_3d
from lib.data.sampling import ClipRandom, crop_in_time, shifted_frames
from lib.errors import UserError, check_values

Input = Literal['heatmap', 'keypoint_2d', 'keypoint_3d']  # values of data.input
Preparation = Literal['default', 'mamp']  # values of data.preparation
HEATMAPS = ('heatmap', 'heatmap mamp')  # data.input, and data.preparation unless it is the default


def _key(default: Any, *pipelines: str) -> Any:
    return field(default=default, metadata={'pipelines': pipelines})


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Section `augmentation`. Defaults as in MB_train.yaml.

    With data.input heatmap
        crop_area, crop_ratio: ranges of area and aspect ratio of the random resized crop.
        flip_ratio: fraction of mirrored clips.
        rotation: largest angle in rad, in either direction, about the centre of the persons.
        joint_noise: standard deviation in diagonals of the box around the person.
        temporal_shift: largest shift in frames, in either direction; frames wrap around.
        view_angle: largest angle in degrees, in either direction, of the camera about the vertical axis (3D pickles).
    With data.input keypoint_2d or keypoint_3d
        random_move: whether to rotate, scale and shift, changing linearly over the clip.
        scale_range: size of the crop window relative to the box around all persons (keypoint_2d only).
    With data.preparation mamp
        time_crop: range of the fraction of frames to keep.
        rotation: largest angle in rad, in either direction, about each axis (keypoint_3d).

    Raises UserError, naming the key, for a value out of range.
    """

    crop_area: tuple[float, float] = _key((0.56, 1.0), *HEATMAPS)
    crop_ratio: tuple[float, float] = _key((3 / 4, 4 / 3), *HEATMAPS)
    flip_ratio: float = _key(0.5, *HEATMAPS)
    rotation: float = _key(0.0, *HEATMAPS, 'keypoint_3d mamp')
    joint_noise: float = _key(0.0, *HEATMAPS)
    temporal_shift: int = _key(0, 'heatmap')
    view_angle: float = _key(30.0, *HEATMAPS)
    random_move: bool = _key(True, 'keypoint_2d', 'keypoint_3d')
    scale_range: tuple[float, float] = _key((1.0, 3.0), 'keypoint_2d')
    time_crop: tuple[float, float] = _key((0.5, 1.0), 'heatmap mamp', 'keypoint_3d mamp')

    def __post_init__(self) -> None:
        (area_low, area_high), (ratio_low, ratio_high) = self.crop_area, self.crop_ratio
        scale_low, scale_high = self.scale_range
        time_low, time_high = self.time_crop
        rules = {
            'crop_area': (0 < area_low <= area_high <= 1, 'two rising shares of the area, at most 1'),
            'crop_ratio': (0 < ratio_low <= ratio_high, 'two rising positive ratios'),
            'flip_ratio': (0 <= self.flip_ratio <= 1, 'between 0 and 1'),
            'rotation': (self.rotation >= 0, '0 or more'),
            'joint_noise': (self.joint_noise >= 0, '0 or more'),
            'temporal_shift': (self.temporal_shift >= 0, '0 or more'),
            'view_angle': (self.view_angle >= 0, '0 or more'),
            'scale_range': (0 < scale_low <= scale_high, 'two rising positive lengths'),
            'time_crop': (0 < time_low <= time_high <= 1, 'two rising shares of the frames, at most 1'),
        }
        check_values('augmentation', vars(self), rules)

    def check_input(self, input: Input, preparation: Preparation = 'default') -> None:
        """Raises UserError if a key without effect on this input differs from its default."""
        pipeline = input if preparation == 'default' else f'{input} {preparation}'
        for key in fields(self):
            value, default = getattr(self, key.name), key.default
            changed = list(value) != list(default) if isinstance(default, tuple) else value != default
            if changed and pipeline not in key.metadata['pipelines']:
                setting = f'data.input {input} and data.preparation {preparation}'
                raise UserError(f'augmentation.{key.name} has no effect with {setting}. Omit it.')

    def shift_frames(self, frames: np.ndarray, random: ClipRandom) -> np.ndarray:
        """The sampled frames (N, T), shifted in time."""
        return shifted_frames(frames, self.temporal_shift, random.uniform(1)) if self.temporal_shift else frames

    def camera_angle(self, random: ClipRandom) -> np.ndarray:
        """Random camera angles for 3D clips, (N,) rad."""
        return random.symmetric(np.radians(self.view_angle))

    def move_joints(self, xy: np.ndarray, random: ClipRandom) -> np.ndarray:
        """Rotates and jitters joints xy (2, N, M, T, V) in image pixels. Missing joints stay zero."""
        if self.rotation:
            lowest, highest = (np.where(np.isfinite(edge), edge, 0) for edge in extent(xy))
            xy = rotate(xy, random.symmetric(self.rotation), (lowest + highest) / 2)
        if self.joint_noise:
            xy = jitter(xy, self.joint_noise, np.moveaxis(random.uniform(3, *xy.shape[2:]), 1, 0))
        return xy

    def crop_and_flip(self, affine: AffineMap, size: int, random: ClipRandom) -> tuple[AffineMap, np.ndarray]:
        """Random resized crop and flip to a heatmap of `size` px: the affine map, and the flipped clips (N,) bool."""
        affine = affine.resize(short_edge_shape(affine.shape))
        affine = affine.crop(random_crop_box(affine.shape, random, self.crop_area, self.crop_ratio))
        flipped = random.uniform() < self.flip_ratio
        return affine.resize((size, size)).flip(flipped), flipped

    def move_keypoints(self, keypoint: np.ndarray, random: ClipRandom) -> np.ndarray:
        """Applies random_move to keypoints (N, M, T, V, C), C = 2 or 3."""
        if not self.random_move:
            return keypoint
        return random_move(keypoint, random.uniform(MOVES_2D if keypoint.shape[-1] == 2 else MOVES_3D, 2))

    def window_scale(self, random: ClipRandom) -> np.ndarray:
        """Random window size of each clip relative to the box around all persons, (N,)."""
        low, high = self.scale_range
        return low + (high - low) * random.uniform()

    def crop_frames(self, total_frames: np.ndarray, random: ClipRandom, least: int) -> tuple[np.ndarray, np.ndarray]:
        """Random part of each clip of total_frames (N,), `least` frames or more: first frame and number, (N,) int."""
        low, high = self.time_crop
        return crop_in_time(total_frames, low + (high - low) * random.uniform(), random.uniform(), least)

    def rotate_keypoints(self, keypoint: np.ndarray, random: ClipRandom) -> np.ndarray:
        """Rotates the clips (N, M, T, V, 3) about the origin, each by one angle per axis."""
        return rotate_3d(keypoint, random.symmetric(self.rotation, 3)) if self.rotation else keypoint
