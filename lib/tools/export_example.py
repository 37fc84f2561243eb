"""Predict the actions of clips with an exported model. Needs NumPy, and ONNX Runtime, PyTorch or TensorFlow.

    python export_example.py MODEL clips.pkl

MODEL: file.onnx, file.pt2, or the folder of a SavedModel. clips.pkl: a PYSKL pickle; an annotation has keypoint
(M, T, V, 2) in pixels, keypoint_score (M, T, V) and img_shape (h, w). Missing joints are zeros.
"""

import json
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def prepare(annotation: Mapping[str, Any], about: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """keypoint (1, M, T, V, 2) in pixels of the heatmap and score (1, M, T, V), as in the validation of the model."""
    (_, num_persons, T, *_), size = about['inputs']['keypoint']['shape'], about['config']['heatmap']['size']
    keypoint, score = (np.float32(annotation[key][:num_persons]) for key in ('keypoint', 'keypoint_score'))

    # Sample T frames: one at random from each of T equal parts, all or most of a shorter clip, always the same ones.
    length, part, random = keypoint.shape[1], np.arange(T), np.random.RandomState(255)
    random.rand()
    if length < T:
        frames = part % length
    elif length < 2 * T:
        frames = part + np.cumsum(np.isin(np.arange(T), random.choice(T + 1, length - T, replace=False)))
    else:
        frames = part * length // T + random.randint((part + 1) * length // T - part * length // T)
    keypoint, score = keypoint[:, frames], score[:, frames]
    missing = ~np.isfinite([*np.moveaxis(keypoint, -1, 0), score]).all(axis=0)
    keypoint[missing], score[missing] = 0, 0

    # Crop to a square around the joints of these frames, with a margin of a quarter; a coordinate of 0 is missing.
    low = np.where(keypoint == 0, np.float32(np.inf), keypoint).min(axis=(0, 1, 2))
    high = np.where(keypoint == 0, np.float32(-np.inf), keypoint).max(axis=(0, 1, 2))
    if (high - low < 10).any():
        start, end = np.zeros(2, int), np.array(annotation['img_shape'])[::-1]
    else:
        centre, half = np.float64(low + high) / 2, np.float64(high - low).max() / 2 * 1.25
        start, end = (centre - half).astype(int), (centre + half).astype(int)
    keypoint = np.where(keypoint == 0, 0, (keypoint - start) * (size / (end - start))).astype(np.float32)

    absent = (0, num_persons - len(score)), (0, 0), (0, 0)
    return np.pad(keypoint, (*absent, (0, 0)))[None], np.pad(score, absent)[None]


def load(path: Path) -> tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], dict[str, Any]]:
    """The model as a function of keypoint and score that returns logits (N, num_classes), and its description."""
    if path.suffix == '.onnx':
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
        about = session.get_modelmeta().custom_metadata_map
        about = {key: json.loads(about[key]) for key in ('inputs', 'class_names', 'config')}
        return lambda keypoint, score: session.run(['logits'], {'keypoint': keypoint, 'score': score})[0], about
    if path.suffix == '.pt2':
        import torch

        files = {'about.json': ''}
        model = torch.export.load(path, extra_files=files).module()
        return lambda *inputs: model(*map(torch.from_numpy, inputs)).detach().numpy(), json.loads(files['about.json'])
    import tensorflow as tf

    model = tf.saved_model.load(str(path)).signatures['serving_default']
    about = json.loads((path / 'about.json').read_text())
    return lambda keypoint, score: model(keypoint=keypoint, score=score)['logits'].numpy(), about


if __name__ == '__main__':
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    model, about = load(Path(sys.argv[1]))
    with open(sys.argv[2], 'rb') as file:
        annotations = pickle.load(file)['annotations']  # runs code in it: only for files of your own
    for annotation in annotations:
        logits = model(*prepare(annotation, about))[0]
        best = logits.argmax()
        probability = 1 / np.exp(logits - logits[best]).sum()
        print(f'{annotation["frame_dir"]}: {about["class_names"][best]} ({probability:.1%})')
