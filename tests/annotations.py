"""Small made-up pickles in the PYSKL form."""

import numpy as np


def make_annotations(
    lengths: list[int], *, persons: list[int] | None = None, num_classes: int = 4, joints: int = 17, seed: int = 0
) -> dict:
    """A PYSKL pickle's content in the 2D form: a wandering cloud of joints a clip; the first 2/3 are xsub_train."""
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
