"""Small generated pickles in PYSKL format."""

import numpy as np


def make_annotations(
    lengths: list[int], *, persons: list[int] | None = None, num_classes: int = 4, joints: int = 17, seed: int = 0
) -> dict:
    """Content of a 2D PYSKL pickle with random joints; the first 2/3 of the clips are xsub_train."""
    random = np.random.default_rng(seed)
    annotations = []
    for i, frames in enumerate(lengths):
        count = persons[i] if persons else 1
        centre = random.uniform([500, 300], [1400, 700], (count, 1, 1, 2)) + random.normal(0, 8, (count, frames, 1, 2))
        keypoint = (
            centre + random.normal(0, 90, (count, 1, joints, 2)) + random.normal(0, 15, (count, frames, joints, 2))
        )
        annotations.append(
            {
                'frame_dir': f'S001C001P{i:03d}R001A{i % num_classes + 1:03d}',
                'label': i % num_classes,
                'total_frames': frames,
                'img_shape': (1080, 1920),
                'original_shape': (1080, 1920),
                'keypoint': keypoint.astype(np.float16),
                'keypoint_score': random.uniform(0.3, 1, (count, frames, joints)).astype(np.float16),
            }
        )
    names = [a['frame_dir'] for a in annotations]
    cut = len(names) * 2 // 3
    return {'split': {'xsub_train': names[:cut], 'xsub_val': names[cut:]}, 'annotations': annotations}


def make_3d_annotations(lengths: list[int], *, persons: list[int] | None = None, num_classes: int = 4) -> dict:
    """Like `make_annotations`, but 3D: 25 joints in metres, at a depth of about three metres."""
    data = make_annotations(lengths, persons=persons, num_classes=num_classes, joints=25)
    random = np.random.default_rng(1)
    for annotation in data['annotations']:
        keypoint = annotation['keypoint'].astype(np.float32)
        xy = (keypoint - [960, 540]) / [400, -400]
        z = 3 + random.normal(0, 0.3, (*xy.shape[:-1], 1))
        annotation['keypoint'] = np.concatenate([xy, z], axis=-1).astype(np.float16)
        for key in ('keypoint_score', 'img_shape', 'original_shape'):
            del annotation[key]
    return data
