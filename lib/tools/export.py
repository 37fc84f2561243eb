"""Export a checkpoint as a graph from keypoints to logits that runs without this project, or as weights alone.

    python -m lib.tools.export checkpoint/action/mbert out/mbert.onnx

The suffix of OUT selects the format: .onnx (pip install onnx onnxscript onnxruntime) or .pt2 (torch.export) for mbert
and vanilla, a folder (SavedModel) for vivit; .bin or .npz for weights that --evaluate and --pretrained can read.

A graph renders the heatmaps itself, in float32, and takes any number of clips. It is loaded back and compared with the
model on validation clips (--set data.ann_file=FILE selects others). Its metadata or about.json describe its inputs; for
heatmaps of 2D keypoints, OUT_example.py (SavedModel: example.py) prepares clips and predicts them.
"""

import argparse
import io
import json
import math
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lib.cli import add_set
from lib.config import plain
from lib.data.batches import make_clips
from lib.data.clips import Clips
from lib.data.heatmap import MIN_SCORE
from lib.errors import UserError
from lib.evaluation import Checkpoint
from lib.files import make_folder, replacing
from lib.run import FORMAT
from lib.tools.checkpoints import open_checkpoint
from lib.tools.running import add_checkpoint, check_new, log, make_parser, require_package, run_tool

TOLERANCE = 1e-4  # of the logits, relative to the largest one
BATCH_SIZES = (1, 2, 5)  # of the comparison
ONNX_PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')
OPSET = 18  # of ONNX: the first with all operators of the models
SUFFIXES = {'.bin': ('.onnx', '.pt2', '.bin'), '.npz': ('', '.npz')}  # of exports, by that of the checkpoint
ABOUT = 'about.json'
EXAMPLE = Path(__file__).with_name('export_example.py')

Batch = dict[str, np.ndarray]
Predict = Callable[[Batch], np.ndarray]


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, 'export')
    add_checkpoint(parser)
    parser.add_argument('out', type=Path, metavar='OUT', help='new file or folder')
    add_set(parser)
    return run_tool(export, parser, argv)


def export(args: argparse.Namespace) -> None:
    check_new(args.out)
    if args.out.suffix == '.onnx':
        for name in ONNX_PACKAGES:
            require_package(name, f'pip install {" ".join(ONNX_PACKAGES)}', 'Or export a .pt2 file.')
    is_graph = args.out.suffix not in SUFFIXES
    if is_graph:
        check_new(example_path(args.out))
    eager = ['train.precision=fp32', 'train.compile=false'] if is_graph else []
    checkpoint = open_checkpoint(args.checkpoint, [*args.set, *eager])
    if args.out.suffix not in SUFFIXES[checkpoint.path.suffix]:
        known = [suffix or 'no suffix (a folder)' for suffix in SUFFIXES[checkpoint.path.suffix]]
        raise UserError(f'{args.out}: a checkpoint of {checkpoint.script} is exported with {", ".join(known)}.')
    lines = (export_graph if is_graph else export_weights)(checkpoint, args.out)
    count = sum(math.prod(weight.shape) for weight in checkpoint.weights.values())
    size = sum(file.stat().st_size for file in [args.out, *args.out.rglob('*')] if file.is_file())
    log.info('%s: %s after epoch %s', args.out, checkpoint.script, checkpoint.epoch)
    log.info('%s values, %s MB', f'{count:,}', f'{size / 1e6:,.1f}')
    for line in lines:
        log.info('%s', line)


def export_weights(checkpoint: Checkpoint, out: Path) -> list[str]:
    """Writes the weights and the config; returns further lines of output."""
    content = {
        'format': FORMAT,
        'config': plain(checkpoint.config),
        'class_names': checkpoint.class_names,
        'epoch': checkpoint.epoch,
        'model': checkpoint.weights,
    }
    make_folder(out.parent)
    with replacing(out) as file:
        checkpoint.training.checkpoint.write(file, content)
    return ['without the optimizer: a run cannot resume from it']


def export_graph(checkpoint: Checkpoint, out: Path) -> list[str]:
    """Writes a graph from keypoints to logits; returns further lines of output.

    Raises FloatingPointError if its logits differ from those of the model.
    """
    clips, names, example = make_clips(checkpoint.config, 'val'), checkpoint.class_names, example_path(out)
    if clips.input != 'heatmap' or clips.is_3d:
        example = None
    batches = validation_batches(clips)
    shapes = {name: array.shape[1:] for name, array in batches[0].items()}
    about = {
        'script': checkpoint.script,
        'epoch': checkpoint.epoch,
        'inputs': {name: {'shape': ['N', *shape], 'type': 'float32'} for name, shape in shapes.items()},
        'output': {'logits': {'shape': ['N', len(names)], 'type': 'float32'}},
        'meaning': meaning(checkpoint.config, example),
        'example': example and example.name,
        'joints': list(clips.skeleton.joints),
        'class_names': names,
        'config': plain(checkpoint.config),
    }
    write = {'.onnx': write_onnx, '.pt2': write_program, '': write_saved_model}[out.suffix]
    make_folder(out.parent)
    difference = write(checkpoint, out, about, batches)
    if example:
        shutil.copyfile(EXAMPLE, example)
    inputs = ', '.join(f'{name} (N,{",".join(map(str, shape))})' for name, shape in shapes.items())
    return [
        f'{inputs} -> logits (N,{len(names)}), float32',
        f'logits equal those of the model up to {difference:.1e} of the largest one, on {sum(BATCH_SIZES)} clips of '
        f'{checkpoint.config.data.ann_file}',
        f'{example} prepares clips and predicts them' if example else 'no example prepares its inputs',
    ]


def example_path(out: Path) -> Path:
    """The file that shows how to use an exported graph."""
    return out.with_name(f'{out.stem}_example.py') if out.suffix else out / 'example.py'


def validation_batches(clips: Clips) -> list[Batch]:
    """Batches of BATCH_SIZES clips, one view of each: {'keypoint', 'score'}."""
    batch = clips[0, 0]
    del batch['label']
    if clips.num_views > 1:
        batch = {name: array[:, 0] for name, array in batch.items()}
    edges = np.cumsum([0, *BATCH_SIZES]).tolist()
    numbers = [range(*pair) for pair in pairwise(edges)]
    return [{name: array.take(part, axis=0, mode='wrap') for name, array in batch.items()} for part in numbers]


def meaning(config: Mapping[str, Any], example: Path | None) -> str:
    """The axes and units of the inputs, and what prepares them."""
    axes = 'N clips, M persons, T frames, V joints'
    prepared = 'Missing persons and joints are zeros. ' + (
        f'{example.name} prepares a clip.' if example else 'No example prepares a clip; lib.data.clips.Clips does.'
    )
    if config.data.input == 'heatmap':
        return (
            f'keypoint (N,M,T,V,2): {axes}, x to the right and y down in pixels of the heatmap, {config.heatmap.size} '
            f'by {config.heatmap.size}. score (N,M,T,V): 0 to 1, not rendered below {MIN_SCORE}. {prepared}'
        )
    last = 'x and y between -1 and 1, score' if config.data.input == 'keypoint_2d' else 'x, y, z'
    return f'keypoint (N,M,T,V,3): {axes}; {last}. {prepared}'


def write_onnx(checkpoint: Checkpoint, out: Path, about: Mapping[str, Any], batches: list[Batch]) -> float:
    """Writes an ONNX model with its weights; returns the largest difference of its logits."""
    import onnxruntime
    import torch
    from onnxscript import opset18

    def hypot(x: Any, y: Any) -> Any:  # not in ONNX; the lengths of limbs do not overflow
        return opset18.Sqrt(opset18.Add(opset18.Mul(x, x), opset18.Mul(y, y)))

    program, logits = traced(checkpoint, batches)
    names = list(batches[0])
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '# The axis name: N')  # two inputs share it
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
    """Writes a torch.export program; returns the largest difference of its logits."""
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
    """The torch.export.ExportedProgram of renderer and model, and the logits of the model for the batches."""
    import torch

    from lib.pytorch.training import RenderAndClassify

    num_joints = batches[0]['keypoint'].shape[-2]
    forward = RenderAndClassify(*checkpoint.model(num_joints), 'fp32').cpu().eval()
    logits = [torch_predict(forward)(batch) for batch in batches]
    example = next(batch for batch in batches if len(batch['keypoint']) > 1)  # one clip would make N a constant
    num_clips = torch.export.Dim('N')
    program = torch.export.export(
        forward,
        tuple(map(torch.from_numpy, example.values())),
        dynamic_shapes={name: {0: num_clips} for name in example},
        strict=True,  # otherwise len() of a tensor makes N a constant
    )
    return program, logits


def torch_predict(module: Callable[..., Any]) -> Predict:
    """A PyTorch module as a function of NumPy arrays."""
    import torch

    def predict(batch: Batch) -> np.ndarray:
        with torch.inference_mode():
            return module(*map(torch.from_numpy, batch.values())).numpy()

    return predict


def write_saved_model(checkpoint: Checkpoint, out: Path, about: Mapping[str, Any], batches: list[Batch]) -> float:
    """Writes the folder of a TensorFlow SavedModel; returns the largest difference of its logits."""
    import tensorflow as tf

    tf.config.set_visible_devices([], 'GPU')  # its TF32 products differ by more than TOLERANCE
    render, model = checkpoint.model(batches[0]['keypoint'].shape[-2])
    signature = [tf.TensorSpec((None, *array.shape[1:]), name=name) for name, array in batches[0].items()]

    @tf.function(input_signature=signature, autograph=False)
    def serve(keypoint: tf.Tensor, score: tf.Tensor) -> dict[str, tf.Tensor]:
        return {'logits': model(render(keypoint, score), training=False)}

    logits = [model(render(**batch), training=False).numpy() for batch in batches]
    graph = tf.Module()
    graph.model, graph.serve = model, serve  # only attributes with variables are saved
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
    """The largest difference between predicted logits and those of the model, relative to the largest one of the model.

    Raises FloatingPointError if it exceeds TOLERANCE or a logit is not finite.
    """
    largest = max(np.abs(own).max() for own in logits)
    differences = [np.abs(predict(batch) - own).max() for batch, own in zip(batches, logits, strict=True)]
    difference = float(np.max(differences) / max(largest, np.finfo(np.float32).tiny))
    if not difference <= TOLERANCE:  # also for NaN
        raise FloatingPointError(
            f'{out} was not written: its logits differ from those of the model by {difference:.1e} of the largest '
            f'one; {TOLERANCE:.0e} is allowed.'
        )
    return difference


if __name__ == '__main__':
    sys.exit(main())
