"""Say what a config asks for, before it is trained: parameters, multiply-adds, memory, steps, learning rates, and the
settings that differ from the published row.

    python -m lib.tools.summary configs/action/MB_train.yaml
    python -m lib.tools.summary configs/action/MB_train.yaml --set data.batch_size=128 --out learning_rates.png

It needs no GPU, and without NTU60's pickle takes its known numbers of clips.

Multiply-adds are those of the matrix products and convolutions of a forward pass, counted on the model itself; norms,
softmax and other elementwise operations are left out. Memory is that of the tensors on one device: of PyTorch found by
going through a training step on tensors without content, of ViViT estimated from the graph of a step, where a tensor
lasts until it is last read. A process takes more: on a CPU, above 1 GB, 3 to 7 % more were measured of PyTorch, 25 %
with the gaps that malloc leaves, and 25 to 30 % of ViViT; below, up to 500 MB. Both are without train.compile, which
usually takes less.
"""

import argparse
import contextlib
import json
import re
import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from easydict import EasyDict

from lib.cli import DONE, USER_ERROR
from lib.config import differences, read_config
from lib.data.batches import make_clips
from lib.data.heatmap import num_maps
from lib.data.skeletons import PICKLE_SKELETONS
from lib.errors import UserError
from lib.files import check_writable, make_folder
from lib.plots import BLUE, GRID, INK, VERMILION, new_figure, save_figure
from lib.recipe import Recipe
from lib.tools.checkpoints import kind_of, load_config_file, script_of

if TYPE_CHECKING:
    import tensorflow as tf
    import torch
    from matplotlib.figure import Figure

PUBLISHED = Path(__file__).parents[2] / 'configs' / 'action'
# PYSKL's pickles of NTU60, which need not be there to be known: joints of each, and clips of xsub_train and xsub_val.
NTU60_JOINTS = {'ntu60_hrnet.pkl': 17, 'ntu60_3danno.pkl': 25}
NTU60_CLIPS = 40_091, 16_487
PLACES = ('data.ann_file', 'data.store_dir', 'data.class_names')  # where files lie: no setting of a row
UNKNOWN_STEPS = 1000  # of an epoch in the picture, where the clips are not known
POINTS = 2000  # of a curve, about
# Operations of a graph that take no memory of their own: they hand on what is there already.
SOURCES = ('Const', 'Placeholder', 'ReadVariableOp')
ALIASES = ('ExpandDims', 'Identity', 'Reshape', 'Squeeze', 'StopGradient')


@dataclass(frozen=True)
class Part:
    """A part of a model, as checkpoints name it. multiply_adds: of one clip."""

    name: str
    parameters: int
    multiply_adds: int
    is_trained: bool = True


@dataclass(frozen=True)
class Cost:
    """What a model costs; all but its parts in bytes, on one device.

    activations: what a batch leaves for the backward pass. training, inference: the most that is there at any moment,
    weights and moments included. Activations go while gradients come, so that `training` is below the sum of the four.
    """

    parts: list[Part]
    weights: int
    gradients: int
    moments: int
    activations: int
    training: int
    inference: int


@dataclass(frozen=True)
class Amount:
    """What there is to train on and to validate on, None where it is not known: clips, and steps of an epoch.

    num_joints: of a person in a batch.
    """

    description: str
    num_joints: int
    clips: tuple[int, int] | None = None
    steps: tuple[int, int] | None = None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog='python -m lib.tools.summary'
    )
    parser.add_argument('config', type=Path, metavar='CONFIG', help='YAML config of any of the three scripts')
    parser.add_argument(
        '--set', action='append', default=[], metavar='SECTION.KEY=VALUE', help='as the scripts take it'
    )
    parser.add_argument('--out', type=Path, metavar='PNG', help='new picture of the learning rates')
    args = parser.parse_args(arguments)
    try:
        if args.out:
            check_picture(args.out)
        kind, config = load_config_file(args.config, args.set)
        script = script_of(kind)
        recipe = script.training.TrainOptions(**config.train)
        recipe.check_batch_size(config.data.batch_size, num_devices=1)
        amount = amount_of(config)
        cost = (cost_in_tensorflow if kind == 'vivit' else cost_in_pytorch)(script, config, amount.num_joints)
        print(text(args.config, kind, config, recipe, amount, cost))
        if args.out:
            make_folder(args.out.parent)
            save_figure(curve(args.config.name, config, recipe, amount), args.out)
            print(f'{"picture":<10} {args.out}')
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return USER_ERROR
    return DONE


def check_picture(path: Path) -> None:
    """Raises UserError where no new PNG can be written."""
    if path.suffix != '.png':
        raise UserError(f'{path} must end in .png.')
    if path.exists():
        raise UserError(f'{path} is there already. Name a new file, or remove it.')
    check_writable(path.parent, 'Name a file in another folder.')


def amount_of(config: EasyDict) -> Amount:
    """Counts the clips of a config's set, or where the set is not there, takes those that are known of NTU60.

    Raises UserError as training does, but for a set that is not there.
    """
    data = config.data
    try:
        train, val = (make_clips(config, split) for split in ('train', 'val'))
    except UserError:
        if Path(data.ann_file).exists():
            raise
    else:
        described = f'{train.description}\n{train.split_description}\n{val.split_description}'
        return Amount(described, train.num_joints, (train.num_clips, val.num_clips), (len(train), len(val)))
    is_known = Path(data.ann_file).name in NTU60_JOINTS and data.benchmark == 'xsub'
    if not is_known:
        return Amount(f'{data.ann_file} is not there, so that clips and steps are not known', joints_of(config))
    described = f'{data.ann_file} is not there; the clips of its lists xsub_train and xsub_val are known'
    whole, rest = divmod(NTU60_CLIPS[0], data.batch_size)
    steps = whole + (rest > 1), -(-NTU60_CLIPS[1] // data.batch_size)  # as Clips has them
    return Amount(described, joints_of(config), NTU60_CLIPS, steps)


def joints_of(config: EasyDict) -> int:
    """The joints in a batch of a set that is not there: those of the pickle's name, else those that the model takes."""
    if config.data.input != 'heatmap':
        return {'keypoint_2d': 17, 'keypoint_3d': 25}[config.data.input]
    named = NTU60_JOINTS.get(Path(config.data.ann_file).name)
    taken = [v for v in PICKLE_SKELETONS if num_maps(config.heatmap.kind, v) == config.model.num_joints]
    return named or [*taken, *PICKLE_SKELETONS][0]


# --- PyTorch ---------------------------------------------------------------------------------------------------------


def cost_in_pytorch(script: ModuleType, config: EasyDict, num_joints: int) -> Cost:
    """What a model costs, found without computing anything. Raises UserError where it does not suit the clips."""
    import torch

    with torch.device('meta'):  # tensors without content
        render, model = script.training.make_model(script.SECTIONS['model'], config, num_joints, torch.device('meta'))
    options, world = (
        script.training.TrainOptions(**config.train),
        script.training.distributed.World(0, 1, torch.device('cpu')),
    )
    script.training.check_batch_norm(model, options, config.data.batch_size, world)
    parts = pytorch_parts(render, model, config, num_joints)
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    gradients = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    moments = 2 * gradients  # AdamW's
    activations, training, inference = pytorch_memory(script, config, render, model, num_joints)
    return Cost(parts, weights, gradients, moments, activations, weights + moments + training, weights + inference)


def pytorch_parts(render: Any, model: 'torch.nn.Module', config: EasyDict, num_joints: int) -> list[Part]:
    """The parts of a model on the meta device: its children, and those of its backbone."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device('meta'):
        batch = pytorch_batch(config, 1, num_joints)
        given = render(**batch) if render is not None else batch['keypoint']
    model.eval()  # in training, batch norm takes no single clip
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(given)
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}

    def part(name: str, piece: torch.nn.Module | torch.nn.Parameter) -> Part:
        # A list of blocks is not called itself.
        called = [f'{name}.{i}' for i in range(len(piece))] if isinstance(piece, torch.nn.ModuleList) else [name]
        parameters = [piece] if isinstance(piece, torch.nn.Parameter) else list(piece.parameters())
        return Part(
            name,
            sum(parameter.numel() for parameter in parameters),
            sum(flops.get(f'{type(model).__name__}.{module}', 0) for module in called) // 2,
            any(parameter.requires_grad for parameter in parameters),
        )

    parts = []
    for prefix, module in (('backbone.', getattr(model, 'backbone', None)), ('', model)):
        if module is not None:
            pieces = [*module.named_parameters(recurse=False), *module.named_children()]
            parts += [part(prefix + name, piece) for name, piece in pieces if name != 'backbone']
    assert sum(part.multiply_adds for part in parts) * 2 == counter.get_total_flops(), 'a part is not counted'
    return [part for part in parts if part.parameters]


def pytorch_batch(config: EasyDict, num_clips: int, num_joints: int) -> dict[str, 'torch.Tensor']:
    """What Clips gives of some clips, but zeros and no labels."""
    import torch

    shape = (num_clips, config.data.max_persons, config.data.clip_len, num_joints)
    if 'heatmap' not in config:
        return {'keypoint': torch.zeros(*shape, 3)}
    return {'keypoint': torch.zeros(*shape, 2), 'score': torch.zeros(shape)}


def pytorch_memory(
    script: ModuleType, config: EasyDict, render: Any, model: 'torch.nn.Module', num_joints: int
) -> tuple[int, int, int]:
    """Bytes beside weights and moments: (kept for backward, the most in a training step, the most in inference).

    Goes through both with tensors that know a device, and with it its kernels, but have no content. Changes the model.
    """
    import torch
    import torch.nn.functional as F
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.weak import WeakIdKeyDictionary

    class Allocations(TorchDispatchMode):
        """now: bytes of all tensors that operations have made and that are still there. most: at any moment."""

        def __init__(self, others: list[torch.Tensor]) -> None:
            super().__init__()
            self.storages = WeakIdKeyDictionary({tensor.untyped_storage(): None for tensor in others})
            self.now = self.most = 0

        def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            results = operation(*args, **(kwargs or {}))
            for tensor in tree_leaves(results):
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.storages:
                    storage = tensor.untyped_storage()
                    self.storages[storage] = None
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.release, storage.nbytes())
            self.most = max(self.most, self.now)
            return results

        def release(self, size: int) -> None:
            self.now -= size

    device = torch.device('cpu')
    options = replace(script.training.TrainOptions(**config.train), compile=False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device=device)
        if render is not None:
            render.to_empty(device=device)
        forward = script.training.make_forward(render, model, options, script.training.distributed.World(0, 1, device))
        with Allocations([*model.parameters(), *model.buffers()]) as training:
            model.train()
            for _ in range(min(options.accumulation_steps, 2)):  # the second finds the gradients of the first
                count = config.data.batch_size // options.accumulation_steps
                before = training.now
                batch = pytorch_batch(config, count, num_joints)
                loss = F.cross_entropy(forward(**batch), torch.zeros(count, dtype=torch.long), reduction='sum')
                activations = training.now - before
                loss.backward()
        model.zero_grad()
        model.eval()
        with Allocations([*model.parameters(), *model.buffers()]) as inference, torch.no_grad():
            forward(**pytorch_batch(config, config.data.batch_size, num_joints))
    return activations, training.most, inference.most


# --- TensorFlow ------------------------------------------------------------------------------------------------------


def cost_in_tensorflow(script: ModuleType, config: EasyDict, num_joints: int) -> Cost:
    """What a model costs, from the graphs of its steps. Raises UserError where it does not suit the clips."""
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # where TensorFlow has them already, it keeps them
        tf.config.set_visible_devices([], 'GPU')  # it would take all of their memory, for nothing
    world = script.training.distributed.World(tf.distribute.get_strategy())  # one device
    options = replace(script.training.TrainOptions(**config.train), compile=False, accumulation_steps=1)
    render, model = script.training.make_model(script.SECTIONS['model'], config, num_joints, world)
    optimizer = script.training.make_optimizer(model, **config.optimizer)
    train_step = script.training.make_train_step(render, model, optimizer, options, world)
    predict_step = script.training.make_predict_step(render, model, options, world)

    def graph_of(step: Any, num_clips: int, *names: str) -> tf.Graph:
        shape = (num_clips, config.data.max_persons, config.data.clip_len, num_joints)
        batch = {
            'keypoint': tf.TensorSpec((*shape, 2)),
            'score': tf.TensorSpec(shape),
            'label': tf.TensorSpec((num_clips,), tf.int64),
            'weight': tf.TensorSpec((num_clips,)),
            'seed': tf.TensorSpec((2,), tf.int64),
        }
        share = {name: batch[name] for name in names or batch}
        return tf.function(lambda share: step(share), autograph=False).get_concrete_function(share).graph

    tf.config.run_functions_eagerly(True)  # the steps' inner functions are traced into the outer one
    try:
        inference = graph_of(predict_step, config.data.batch_size, 'keypoint', 'score')
        training = graph_of(train_step, config.data.batch_size // config.train.accumulation_steps)
    finally:
        tf.config.run_functions_eagerly(False)
    counts = dict.fromkeys((layer.name for layer in model.layers), 0)
    for operation in inference.get_operations():
        if count := multiply_adds(operation):
            counts[layer_of(operation.name)] += count // config.data.batch_size
    parts = [Part(layer.name, layer.count_params(), counts[layer.name]) for layer in model.layers]
    weights, gradients, moments = (
        sum(variable.numpy().nbytes for variable in variables)
        for variables in (model.variables, model.trainable_variables, optimizer.variables)
    )
    activations, most = memory_of(training)
    most += gradients * (config.train.accumulation_steps > 1)  # of the parts before
    most_in_inference = memory_of(inference)[1]
    return Cost(parts, weights, gradients, moments, activations, weights + moments + most, weights + most_in_inference)


def layer_of(operation: str) -> str:
    """The layer of a model by the name of an operation in it, in which TensorFlow numbers names that come again."""
    return re.sub(r'_\d+$', '', operation.split('/')[1])


def multiply_adds(operation: 'tf.Operation') -> int:
    """Those of a matrix product or convolution; 0 of other operations."""
    shapes = [tensor.shape.as_list() for tensor in (*operation.inputs, *operation.outputs)]
    if operation.type in ('MatMul', 'BatchMatMulV2'):
        transposed = operation.get_attr('transpose_a' if operation.type == 'MatMul' else 'adj_x')
        return int(np.prod(shapes[-1])) * shapes[0][-2 if transposed else -1]
    if operation.type == 'Conv3D':
        return int(np.prod(shapes[-1])) * int(np.prod(shapes[1][:-1]))
    assert operation.type not in ('Einsum', 'BatchMatMul', 'BatchMatMulV3', 'Conv2D'), operation.type
    return 0


def memory_of(graph: 'tf.Graph') -> tuple[int, int]:
    """Bytes of a step beside weights and moments, estimated: (those that the backward pass finds, the most).

    An estimate, since TensorFlow runs operations as soon as they can be, not in the order of the graph, and joins some.
    """
    operations = graph.get_operations()
    origin: dict[Any, Any] = {}  # of a tensor: the one whose memory it is
    last_read: dict[Any, int] = {}
    for i, operation in enumerate(operations):
        read = [origin[tensor.ref()] for tensor in operation.inputs]
        last_read |= dict.fromkeys(read, i)
        for tensor in operation.outputs:
            origin[tensor.ref()] = read[0] if operation.type in ALIASES else tensor.ref()
    now = most = 0
    kept = None
    sizes: dict[Any, int] = {}
    for i, operation in enumerate(operations):
        if kept is None and 'gradient_tape' in operation.name:
            kept = now
        if operation.type not in (*SOURCES, *ALIASES):
            sizes |= {tensor.ref(): tensor.shape.num_elements() * tensor.dtype.size for tensor in operation.outputs}
            now += sum(sizes[tensor.ref()] for tensor in operation.outputs)
        most = max(most, now)
        touched = {origin[tensor.ref()] for tensor in (*operation.inputs, *operation.outputs)}
        now -= sum(sizes.pop(tensor, 0) for tensor in touched if last_read.get(tensor, i) <= i)
    return kept or 0, most


# --- what is printed and drawn ---------------------------------------------------------------------------------------


def text(path: Path, kind: str, config: EasyDict, recipe: Recipe, amount: Amount, cost: Cost) -> str:
    """The summary, one screen."""
    facts = {
        'config': f'{path}, for train_action_{kind}.py',
        'data': amount.description,
        'model': of_parts(cost.parts, config),
        'drawing': of_drawing(config, amount.num_joints),
        'memory': of_memory(kind, config, cost),
        'steps': of_steps(config, recipe, amount),
        'rates': of_rates(config, recipe, amount),
        'published': of_published(path, kind, config),
    }
    return '\n'.join(
        f'{name if i == 0 else "":<10} {line}'
        for name, lines in facts.items()
        for i, line in enumerate(lines.splitlines())
    )


def aligned(rows: list[tuple[str, ...]], sides: str) -> str:
    """Cells in columns, each to the left or right side of its own."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [zip(row, sides, widths, strict=True) for row in rows]
    return '\n'.join('  '.join(f'{cell:{side}{width}}' for cell, side, width in line).rstrip() for line in lines)


def of_parts(parts: list[Part], config: EasyDict) -> str:
    """A table of the parts and their sums."""
    persons = '' if 'heatmap' in config else f', max_persons {config.data.max_persons}'  # maps hold all persons
    everything = Part('all', sum(part.parameters for part in parts), sum(part.multiply_adds for part in parts))
    rows = [('', 'parameters', 'million multiply-adds', f'forward, of one clip{persons}')]
    for part in (*parts, everything):
        remark = '' if part.is_trained else 'not trained'
        rows.append((part.name, f'{part.parameters:,}', f'{part.multiply_adds / 1e6:,.1f}', remark))
    return aligned(rows, '<>><')


def of_drawing(config: EasyDict, num_joints: int) -> str:
    """What is drawn of a clip, apart from the model since it is no matrix product."""
    if 'heatmap' not in config:
        return 'none: the model is given keypoints'
    size, frames = config.heatmap.size, config.data.clip_len
    maps = num_maps(config.heatmap.kind, num_joints)
    limbs = 0 if config.heatmap.kind == 'joint' else num_maps('limb', num_joints)
    reach = min(int(6 * config.heatmap.sigma) + 2, size)  # pixels of a joint's window along an axis, at most
    values = config.data.max_persons * frames * ((maps - limbs) * reach**2 + limbs * size**2)
    return (
        f'{frames} x {maps} maps of {size}x{size} px, {frames * maps * size**2 / 1e6:,.2f} million pixels a clip, from '
        f'at most {values / 1e6:,.2f} million Gaussian values'
    )


def of_memory(kind: str, config: EasyDict, cost: Cost) -> str:
    """Of one device that works on whole batches."""
    batch_size, parts = config.data.batch_size, config.train.accumulation_steps
    batch = f'batch of {batch_size}' + (f' in {parts} parts' if parts > 1 else '')
    told = [batch, config.train.precision, 'on one device']
    told += ['activation checkpointing'] * config.train.get('activation_checkpointing', False)
    told += ['estimated from the graph'] * (kind == 'vivit') + ['without train.compile'] * config.train.compile
    rows = [
        (name, amount_of_memory(size), remark)
        for name, size, remark in (
            ('weights', cost.weights, ''),
            ('gradients', cost.gradients, ''),
            ("optimizer's moments", cost.moments, ''),
            ('activations', cost.activations, 'kept for the backward pass'),
            ('training, at most', cost.training, 'of all these at one moment, and what is passing'),
            ('inference, at most', cost.inference, 'weights included'),
        )
    ]
    return f'{", ".join(told)}\n{aligned(rows, "<><")}'


def amount_of_memory(size: int) -> str:
    return f'{size / 1e9:,.2f} GB' if size >= 1e9 else f'{size / 1e6:,.1f} MB'


def of_steps(config: EasyDict, recipe: Recipe, amount: Amount) -> str:
    if amount.steps is None:
        return f'{recipe.epochs} epochs of batches of {config.data.batch_size}'
    train, val = amount.steps
    return (
        f'{train:,} an epoch, {train * recipe.epochs:,} in {recipe.epochs} epochs of {amount.clips[0]:,} clips; '
        f'{val:,} of {amount.clips[1]:,} clips to validate each'
    )


def learning_rates(config: EasyDict) -> dict[str, float]:
    """{'learning rate': its base}, one for each that differs, as section `optimizer` has them."""
    rates = {key: rate for key, rate in config.optimizer.items() if key.startswith('lr')}
    return rates if len(set(rates.values())) > 1 else {'learning rate': next(iter(rates.values()))}


def of_rates(config: EasyDict, recipe: Recipe, amount: Amount) -> str:
    _, factors = schedule(recipe, amount)
    course = 'half a cosine' if recipe.lr_schedule == 'cosine' else f'times {recipe.lr_decay:g} after each epoch'
    if recipe.warmup_epochs:
        course = f'warm-up epochs: {recipe.warmup_epochs}, then {course}'
    return '\n'.join(
        f'{name}: first {rate * factors[0]:.2e}, highest {rate * max(factors):.2e}, last {rate * factors[-1]:.2e} '
        f'({course})'
        for name, rate in learning_rates(config).items()
    )


def schedule(recipe: Recipe, amount: Amount) -> tuple[list[float], list[float]]:
    """Some steps of a training, as epochs done before them, and what their learning rates are multiplied with."""
    steps = amount.steps[0] if amount.steps else UNKNOWN_STEPS
    count = min(steps, max(2, POINTS // recipe.epochs))
    places = np.linspace(0, steps - 1, count).astype(int).tolist()
    points = [(epoch, step) for epoch in range(recipe.epochs) for step in places]
    return (
        [epoch + step / steps for epoch, step in points],
        [recipe.lr_factor(epoch, step, steps) for epoch, step in points],
    )


def curve(name: str, config: EasyDict, recipe: Recipe, amount: Amount) -> 'Figure':
    """The learning rates over the epochs; name: of the config."""
    figure = new_figure(7, 3.5)
    axes = figure.subplots()
    epochs, factors = schedule(recipe, amount)
    rates = learning_rates(config)
    for (key, rate), colour, style in zip(rates.items(), (BLUE, VERMILION), ('-', '--'), strict=False):
        axes.plot(epochs, [rate * factor for factor in factors], style, color=colour, label=key)
    if len(rates) > 1:
        axes.legend(frameon=False)
    of = f' of {amount.steps[0]:,} steps' if amount.steps else ''
    axes.set_xlabel(f'epochs{of}')
    axes.set_ylabel('learning rate')
    axes.set_title(name, color=INK)
    axes.set_xlim(0, recipe.epochs)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis='y', style='sci', scilimits=(-2, 2))
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    return figure


def of_published(path: Path, kind: str, config: EasyDict) -> str:
    """The published row that a config is or is nearest to, and the settings in which they differ."""
    row = path.resolve()
    if row not in published_rows(kind):
        rows = {file: load_config_file(file)[1] for file in published_rows(kind)}
        same_input = [file for file in rows if rows[file].data.input == config.data.input]
        row = min(same_input, key=lambda file: len(changes(rows[file], config)))
    changed = changes(load_config_file(row)[1], config)
    which = 'this row' if row == path.resolve() else 'the nearest row'
    lines = [f'{row.name} is {which}. {published_rows(kind)[row]}', 'No setting differs.']
    if changed:
        lines[1] = 'These settings differ:'
        shown = [(key, *(json.dumps(value).strip('"') for value in pair)) for key, pair in changed.items()]
        lines.append(aligned([('', 'published', 'here'), *shown], '<>>'))
    return '\n'.join(lines)


def published_rows(kind: str) -> dict[Path, str]:
    """The configs of a kind of model that say what was published of them, each with that line."""
    rows = {}
    for file in sorted(PUBLISHED.glob('*.yaml')):
        told = [line for line in file.read_text().splitlines() if line.startswith(('# Published', '# Not published'))]
        if told and kind_of(read_config(file, ()), str(file)) == kind:
            rows[file] = told[0].removeprefix('# ')
    return rows


def changes(published: Mapping[str, dict], config: Mapping[str, dict]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, {'section.key': (published, here)}. Of places of files none but the set's name counts."""
    found = differences(published, config)
    before, now = (Path(each['data']['ann_file']).name for each in (published, config))
    kept = {key: values for key, values in found.items() if key not in PLACES}
    return ({'data.ann_file': (before, now)} if before != now else {}) | kept


if __name__ == '__main__':
    sys.exit(main())
