"""Correctness on a GPU: maps, logits and gradients against the CPU's, a resumed run against an uninterrupted one."""

import itertools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from easydict import EasyDict

from lib.tools.benchmark import steps
from lib.tools.benchmark.rows import ACTION, QUICK, Setup, different_models, label, run_all
from lib.tools.benchmark.steps import make_world

if TYPE_CHECKING:
    from torch import Tensor

LIMIT = 1e-4  # of the relative error in float32: rounding is about 1e-6, TF32 about 1e-3


def check_all(setup: Setup) -> None:
    tasks = [(check_resume, 'resume', ()), (check_resume, 'resume, compiled', ('train.compile=true',))]
    tasks += [(check_model, label(path), path) for path in different_models()]
    tasks += [(check_renderer, f'{kind} maps', kind) for kind in ('joint', 'limb', 'both')]
    tasks.append((check_tensorflow, 'TensorFlow', ACTION / 'vivit.yaml'))
    run_all(setup, tasks, min(8, os.cpu_count()))


def check_renderer(setup: Setup, kind: str) -> None:
    """Maps in float32 and bfloat16, eager and compiled, against float32 maps of the CPU."""
    import torch

    renderer, inputs = steps.make_renderer(kind, 2, 'cpu')
    expected = renderer(*inputs)
    renderer, inputs = steps.make_renderer(kind, 2, setup.device)
    for dtype, limit in {'float32': 1e-5, 'bfloat16': 2**-8}.items():  # bfloat16 has 8 significant bits
        for mode, render in {'eager': renderer, 'compiled': torch.compile(renderer, fullgraph=True)}.items():
            with setup.row(name := f'{kind} maps, {dtype}, {mode}'):
                error = (render(*inputs, getattr(torch, dtype)).cpu().float() - expected).abs().max().item()
                setup.add(name, error=error, limit=limit)


def check_model(setup: Setup, path: Path) -> None:
    """Logits and gradients of two clips in float32 against the CPU's, without dropout."""
    config = setup.config(path, 'data.batch_size=2')
    add_errors(setup, label(path), *(logits_and_gradients(config, device) for device in ('cpu', setup.device)))


def add_errors(setup: Setup, name: str, expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> None:
    """Adds the relative error of the logits, and that of the least accurate gradient."""
    norms = {key: np.linalg.norm(array) for key, array in expected.items()}
    least = 1e-3 * max(norms.values())  # some gradients are zero but for rounding
    errors = {key: float(np.linalg.norm(found[key] - a) / max(norms[key], least)) for key, a in expected.items()}
    setup.add(f'{name}, logits', error=errors.pop('logits'), limit=LIMIT)
    worst = max(errors, key=lambda key: np.nan_to_num(errors[key], nan=np.inf))
    setup.add(f'{name}, gradients', error=errors[worst], limit=LIMIT, parameter=worst)


def logits_and_gradients(config: EasyDict, device: str) -> dict[str, np.ndarray]:
    """{'logits', name of each parameter: its gradient}; weights that begin at zero are random."""
    import torch

    from lib.pytorch import training

    cpu = torch.device('cpu')
    render, model = training.make_model(config, steps.joints_of(config), cpu)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.02
    training.TrainOptions(**config.train).set_precision(torch.device(device))
    forward = training.RenderAndClassify(render, model.eval(), 'fp32').to(device)
    batch = steps.random_batch(config)
    del batch['label']
    with mock.patch('torch.rand_like', lambda x: torch.rand(x.shape, generator=generator).to(x.device)):  # equal masks
        logits = forward(**{name: torch.from_numpy(array).to(device) for name, array in batch.items()})
    logits.square().mean().backward()
    gradients = {name: p.grad.cpu().numpy() for name, p in model.named_parameters() if p.grad is not None}
    return {'logits': logits.detach().cpu().numpy()} | gradients


def check_resume(setup: Setup, options: Sequence[str]) -> None:
    """Two epochs of vanilla, uninterrupted and resumed within the second: the number of different tensors."""
    os.environ['CUBLAS_WORKSPACE_CONFIG'] = ':4096:8'
    import torch

    import train_action_vanilla
    from lib import cli, console
    from lib.pytorch import checkpoint

    console.silence()
    torch.use_deterministic_algorithms(True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        steps.write_pickle(folder / 'generated.pkl', 120)
        changes = [f'data.ann_file={folder / "generated.pkl"}', 'data.batch_size=16', 'train.save_every=4']
        changes += ['model.protocol=finetune', 'model.drop_path_rate=0.1']  # random numbers on the device
        changes += [*(QUICK if setup.quick else ()), *options, 'train.epochs=2']
        overrides = itertools.chain(*(('--set', change) for change in changes))
        command = ['--config', str(ACTION / 'vanilla.yaml'), *overrides]
        states = []
        for run, resume in (('whole', ()), ('resumed', ('-r', str(folder / 'whole' / 'latest_epoch.1.bin')))):
            args = cli.parse_args('', 'vanilla', [*command, '-c', str(folder / run), *resume])
            if code := cli.run(train_action_vanilla.train, args):
                raise ChildProcessError(f'the {run} run ended with exit code {code}')
            states.append(checkpoint.read(folder / run / 'latest_epoch.bin'))
        middle = checkpoint.read(folder / 'whole' / 'latest_epoch.1.bin')
    whole, resumed = ({**state['model'], **moments(state['optimizer'])} for state in states)
    differ = sum(not torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    name = ', '.join(['resume', *options, 'different tensors'])
    setup.add(name, error=differ, limit=0, tensors=len(whole), from_step=middle['step'])


def moments(optimizer: dict[str, Any]) -> dict[str, 'Tensor']:
    return {f'{i}.{name}': value for i, state in optimizer['state'].items() for name, value in state.items()}


def check_tensorflow(setup: Setup, path: Path) -> None:
    """Maps, logits and gradients of ViViT against the CPU's."""
    import tensorflow as tf

    from lib.tensorflow import training

    world = make_world('vivit', setup.device)
    config = setup.config(path, 'data.batch_size=2')
    training.TrainOptions(**config.train).set_precision()
    weights, found = [], []
    for device in ('CPU:0', 'GPU:0' if setup.device == 'cuda' else 'CPU:0'):
        with tf.device(device):
            render, model = training.make_model(config, steps.joints_of(config), world)
            rng, variables = np.random.default_rng(0), model.trainable_variables
            weights = weights or [v.numpy() if v.numpy().any() else rng.normal(0, 0.02, v.shape) for v in variables]
            for variable, weight in zip(variables, weights, strict=True):
                variable.assign(weight)
            batch = steps.random_batch(config)
            with tf.GradientTape() as tape:
                maps = render(batch['keypoint'], batch['score'])
                logits = model(maps, training=False)
                loss = tf.reduce_mean(tf.square(logits))
            gradients = zip(variables, tape.gradient(loss, variables), strict=True)
            found.append({'maps': maps.numpy(), 'logits': logits.numpy()} | {v.path: g.numpy() for v, g in gradients})
    maps = [arrays.pop('maps') for arrays in found]
    setup.add('TensorFlow, joint maps', error=float(np.abs(maps[1] - maps[0]).max()), limit=1e-5)
    add_errors(setup, label(path), *found)
