"""Export a checkpoint: a graph from keypoints to logits that runs without this project, or the weights alone.

    python -m lib.tools.export checkpoint/action/mbert mbert.onnx          # ONNX; of vanilla too
    python -m lib.tools.export checkpoint/action/mbert mbert.pt2           # torch.export; of vanilla too
    python -m lib.tools.export checkpoint/action/vivit vivit_saved_model   # a folder: SavedModel of TensorFlow
    python -m lib.tools.export checkpoint/action/mbert mbert.bin           # weights alone; vivit.npz of ViViT

A graph draws the heatmaps itself, in float32, and takes batches of any number of clips. Before it gets its name it is
loaded back and must give the model's logits to 1e-4, on the CPU; else nothing is written, and the exit code is 1. With
it comes what one needs to feed it (inputs, joints, class names, config): in the metadata of ONNX, in the extra file
about.json of torch.export, in about.json in the folder of a SavedModel. ONNX takes three more packages:
pip install onnx onnxscript onnxruntime

Weights alone are a third of the checkpoint. They keep the config, so that a script's --evaluate takes them, and of
PyTorch models --pretrained and torch.load too. The optimizer and the history stay behind: no run can go on from them.
"""

import argparse
import importlib
import io
import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lib.cli import DONE, FAILED, USER_ERROR
from lib.config import plain
from lib.data.classes import class_names
from lib.data.heatmap import MIN_SCORE, num_maps
from lib.data.skeletons import H36M17, PICKLE_SKELETONS
from lib.errors import UserError
from lib.files import check_writable, make_folder, replacing
from lib.run import FORMAT
from lib.tools.checkpoints import Checkpoint, open_checkpoint

LARGEST_DIFFERENCE = 1e-4  # of a logit
BATCHES = (1, 2, 5)  # clips of the batches that a graph is checked with
ONNX_PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')
OPSET = 18  # of ONNX: the first that has all that the models take
# Of each framework's checkpoints the endings of what they become; a folder has none.
ENDINGS = {'.bin': ('.onnx', '.pt2', '.bin'), '.npz': ('', '.npz')}
ABOUT = 'about.json'

Batch = dict[str, np.ndarray]
Predict = Callable[[Batch], np.ndarray]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog='python -m lib.tools.export'
    )
    parser.add_argument('checkpoint', type=Path, metavar='CHECKPOINT', help="a run's folder, or a file in it")
    parser.add_argument('out', type=Path, metavar='OUT', help='what to write; its ending says what it is')
    parser.add_argument(
        '--set', action='append', default=[], metavar='SECTION.KEY=VALUE', help='as --evaluate takes it'
    )
    args = parser.parse_args(arguments)
    try:
        print(export(args.checkpoint, args.out, args.set))
    except FloatingPointError as error:
        print(f'error: {error}', file=sys.stderr)
        return FAILED
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return USER_ERROR
    return DONE


def export(path: Path, out: Path, overrides: list[str]) -> str:
    """Writes what the ending of `out` says; returns what was written, in words.

    Raises UserError, and FloatingPointError where a graph does not give the model's logits.
    """
    if out.exists():
        raise UserError(f'{out} is there already. Name a new one, or remove it.')
    check_writable(out.parent, 'Name another place.')
    if out.suffix == '.onnx':
        require_onnx()
    is_graph = out.suffix not in ENDINGS
    as_drawn = ['train.precision=fp32', 'train.compile=false'] if is_graph else []
    checkpoint = open_checkpoint(path, [*overrides, *as_drawn])
    endings = ENDINGS[checkpoint.path.suffix]
    if out.suffix not in endings:
        known = [ending or 'no ending (a folder)' for ending in endings]
        raise UserError(f'{out}: a checkpoint of {checkpoint.script} becomes a file with {", ".join(known)}.')
    make_folder(out.parent)
    told = export_graph(checkpoint, out) if is_graph else export_weights(checkpoint, out)
    count = sum(math.prod(weight.shape) for weight in checkpoint.weights.values())
    size = sum(file.stat().st_size for file in ([out] if out.is_file() else out.rglob('*')) if file.is_file())
    return f'{out}: {count:,} numbers of {checkpoint.script} after epoch {checkpoint.epoch}, {size / 1e6:,.1f} MB{told}'


def require_onnx() -> None:
    """Raises UserError, with the line that installs it, where a package is missing that ONNX takes."""
    for name in ONNX_PACKAGES:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            raise UserError(
                f'writing ONNX takes {", ".join(ONNX_PACKAGES)}, and {name} is not installed: pip install '
                f'{" ".join(ONNX_PACKAGES)}. Or name a .pt2 file.'
            ) from None


def export_weights(checkpoint: Checkpoint, out: Path) -> str:
    """Writes the weights with what an evaluation needs of the rest; returns what is to be said of the size."""
    content = {
        'format': FORMAT,
        'script': checkpoint.script,
        'config': plain(checkpoint.config),
        'epoch': checkpoint.epoch,
        'model': checkpoint.weights,
    }
    with replacing(out) as file:
        checkpoint.training.checkpoint.write(file, content)
    return f' of {checkpoint.path.stat().st_size / 1e6:,.1f} MB'


def export_graph(checkpoint: Checkpoint, out: Path) -> str:
    """Writes a graph from keypoints to logits; returns what is to be said of it."""
    shapes, names = input_shapes(checkpoint), class_names(checkpoint.config)
    about = {
        'script': checkpoint.script,
        'epoch': checkpoint.epoch,
        'inputs': {name: {'shape': ['N', *shape], 'type': 'float32'} for name, shape in shapes.items()},
        'output': {'logits': {'shape': ['N', len(names)], 'type': 'float32'}},
        'meaning': meaning(checkpoint.config),
        'joints': joint_names(checkpoint.config, shapes['keypoint'][-2]),
        'class_names': names,
        'config': plain(checkpoint.config),
    }
    batches = [made_up_clips(shapes, checkpoint.config, count) for count in BATCHES]
    write = {'.onnx': write_onnx, '.pt2': write_program, '': write_saved_model}[out.suffix]
    difference = write(checkpoint, out, about, batches)
    inputs = ', '.join(f'{name} (N,{",".join(map(str, shape))})' for name, shape in shapes.items())
    return (
        f"\n{inputs} -> logits (N,{len(names)}), all float32\nlogits differ from the model's by at most "
        f'{difference:.1e} in batches of {", ".join(map(str, BATCHES))} clips'
    )


def input_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """{'keypoint': (M,T,V,C), and of heatmaps 'score': (M,T,V)}: those of a clip, as Clips gives it.

    Raises UserError where no skeleton has as many maps as the model takes.
    """
    data, num_joints = checkpoint.config.data, checkpoint.config.model.num_joints
    if data.input != 'heatmap':
        return {'keypoint': (data.max_persons, data.clip_len, num_joints, 3)}
    if (kind := checkpoint.config.heatmap.kind) != 'joint':  # there the model counts limbs
        drawn = [v for v in PICKLE_SKELETONS if num_maps(kind, v) == num_joints]
        if not drawn:
            raise UserError(f'{checkpoint.path}: no skeleton has {num_joints} maps (model.num_joints) of kind {kind}.')
        (num_joints,) = drawn
    shape = (data.max_persons, data.clip_len, num_joints)
    return {'keypoint': (*shape, 2), 'score': shape}


def meaning(config: Mapping[str, Any]) -> str:
    """What the numbers of the inputs are."""
    axes = 'N clips, M persons, T frames, V joints'
    if config.data.input == 'heatmap':
        size = config.heatmap.size
        return (
            f'keypoint (N,M,T,V,2): {axes}, x to the right and y down in pixels of the map of {size} x {size}. score '
            f'(N,M,T,V): 0 to 1, below {MIN_SCORE} not drawn. Missing persons and joints are zeros. Prepared as by '
            'lib.data.clips.Clips of the config for the validation list, one view at a time.'
        )
    last = 'x and y between -1 and 1, score' if config.data.input == 'keypoint_2d' else 'x, y, z'
    return (
        f'keypoint (N,M,T,V,3): {axes}; {last}. Missing persons and joints are zeros. Prepared as by '
        'lib.data.clips.Clips of the config for the validation list, one view at a time.'
    )


def joint_names(config: Mapping[str, Any], num_joints: int) -> list[str] | None:
    """The names of V = num_joints joints in their order, None for a skeleton that has none."""
    skeleton = H36M17 if config.data.input == 'keypoint_2d' else PICKLE_SKELETONS.get(num_joints)
    return skeleton and list(skeleton.joints)


def made_up_clips(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], num_clips: int) -> Batch:
    """A batch of figures that wander at random, with all that a graph must treat as the model does.

    Joints are missing, outside the map or of a score that is not drawn, persons and the whole last clip of a larger
    batch are missing.
    """
    random = np.random.default_rng(num_clips)
    num_persons, num_frames, num_joints, channels = shapes['keypoint']
    body = random.uniform(-0.6, 0.6, (num_clips, num_persons, 1, num_joints, channels))
    steps = random.normal(0, 0.02, (num_clips, num_persons, num_frames, num_joints, channels))
    keypoint = body + steps.cumsum(axis=2)  # mostly within -1 to 1
    shape = keypoint.shape[:-1]
    keypoint[random.random(shape) < 0.05] *= 3  # many of them outside
    score = np.where(random.random(shape) < 0.05, MIN_SCORE / 2, random.uniform(0.2, 1, shape))
    missing = random.random(shape) < 0.05
    missing[:, 1:] |= random.random((num_clips, num_persons - 1, 1, 1)) < 0.5
    missing[2:][-1:] = True
    if config.data.input == 'heatmap':
        keypoint = (keypoint + 1) * config.heatmap.size / 2
    elif config.data.input == 'keypoint_2d':
        keypoint[..., 2] = score
    keypoint[missing], score[missing] = 0, 0
    batch = {'keypoint': keypoint, 'score': score}
    return {name: batch[name].astype(np.float32) for name in shapes}


def write_onnx(checkpoint: Checkpoint, out: Path, about: Mapping[str, Any], batches: list[Batch]) -> float:
    """Writes an ONNX model, weights inside; returns the largest difference of its logits."""
    import onnxruntime
    import torch
    from onnxscript import opset18

    def hypot(x: Any, y: Any) -> Any:  # which ONNX does not know; the limbs' lengths are no numbers that overflow
        return opset18.Sqrt(opset18.Add(opset18.Mul(x, x), opset18.Mul(y, y)))

    program, logits = traced(checkpoint, batches)
    names = list(batches[0])
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '# The axis name: N')  # is that of two inputs, as it should be
        model = torch.onnx.export(
            program,
            input_names=names,
            output_names=['logits'],
            dynamic_shapes={name: {0: 'N'} for name in names},
            opset_version=OPSET,
            external_data=False,
            custom_translation_table={torch.ops.aten.hypot.default: hypot},
            verbose=False,
        ).model_proto
    for key, value in about.items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    with replacing(out) as file:
        file.write(model.SerializeToString())
        file.flush()
        session = onnxruntime.InferenceSession(file.name, providers=['CPUExecutionProvider'])
        return largest_difference(out, lambda batch: session.run(['logits'], batch)[0], batches, logits)


def write_program(checkpoint: Checkpoint, out: Path, about: Mapping[str, Any], batches: list[Batch]) -> float:
    """Writes a program of torch.export; returns the largest difference of its logits."""
    import torch

    program, logits = traced(checkpoint, batches)
    written = io.BytesIO()
    torch.export.save(program, written, extra_files={ABOUT: json.dumps(about, indent=1)})
    with replacing(out) as file:
        file.write(written.getbuffer())
        file.flush()
        with open(file.name, 'rb') as copy:
            module = torch.export.load(copy).module()
        return largest_difference(out, torch_predict(module), batches, logits)


def traced(checkpoint: Checkpoint, batches: list[Batch]) -> tuple[Any, list[np.ndarray]]:
    """The program of renderer and model, a torch.export.ExportedProgram, and the model's logits of the batches."""
    import torch

    from lib.pytorch.training import RenderAndClassify

    num_joints = batches[0]['keypoint'].shape[-2]
    forward = RenderAndClassify(*checkpoint.model(num_joints), 'fp32').cpu().eval()
    logits = [torch_predict(forward)(batch) for batch in batches]
    example = next(batch for batch in batches if len(batch['keypoint']) > 1)  # of one clip N would become a constant
    num_clips = torch.export.Dim('N')
    program = torch.export.export(
        forward,
        tuple(map(torch.from_numpy, example.values())),
        dynamic_shapes={name: {0: num_clips} for name in example},
        strict=True,  # follows len() of a tensor, which otherwise would make N a constant
    )
    return program, logits


def torch_predict(module: Callable[..., Any]) -> Predict:
    """What a module of PyTorch predicts, from NumPy to NumPy."""
    import torch

    def predict(batch: Batch) -> np.ndarray:
        with torch.inference_mode():
            return module(*map(torch.from_numpy, batch.values())).numpy()

    return predict


def write_saved_model(checkpoint: Checkpoint, out: Path, about: Mapping[str, Any], batches: list[Batch]) -> float:
    """Writes a folder, TensorFlow's SavedModel; returns the largest difference of its logits."""
    import tensorflow as tf

    tf.config.set_visible_devices([], 'GPU')  # whose products differ by more than is allowed here
    render, model = checkpoint.model(batches[0]['keypoint'].shape[-2])
    signature = [tf.TensorSpec((None, *array.shape[1:]), name=name) for name, array in batches[0].items()]

    @tf.function(input_signature=signature, autograph=False)
    def serve(keypoint: tf.Tensor, score: tf.Tensor) -> dict[str, tf.Tensor]:
        return {'logits': model(render(keypoint, score), training=False)}

    logits = [model(render(**batch), training=False).numpy() for batch in batches]
    graph = tf.Module()
    graph.model, graph.serve = model, serve  # what holds no variable is not saved with it
    with tempfile.TemporaryDirectory(prefix=f'{out.name}.', dir=out.parent) as folder:
        written = Path(folder) / 'saved_model'
        tf.saved_model.save(graph, str(written), signatures={'serving_default': serve})
        (written / ABOUT).write_text(json.dumps(about, indent=1))
        loaded = tf.saved_model.load(str(written)).signatures['serving_default']
        difference = largest_difference(
            out,
            lambda batch: loaded(**{name: tf.constant(array) for name, array in batch.items()})['logits'].numpy(),
            batches,
            logits,
        )
        os.replace(written, out)
    return difference


def largest_difference(out: Path, predict: Predict, batches: list[Batch], logits: list[np.ndarray]) -> float:
    """Between what is predicted and the model's logits. Raises FloatingPointError where it is too large."""
    found = [np.abs(predict(batch) - own).max() for batch, own in zip(batches, logits, strict=True)]
    if not max(found) <= LARGEST_DIFFERENCE or not np.isfinite(found).all():
        raise FloatingPointError(
            f"{out} was not written: its logits differ from the model's by up to {np.max(found):.1e}, and "
            f'{LARGEST_DIFFERENCE:.0e} is allowed.'
        )
    return float(max(found))


if __name__ == '__main__':
    sys.exit(main())
