"""Full-size training steps of MotionBERT or the vanilla transformer, against a straightforward implementation."""

import argparse
import copy
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from types import MethodType

import numpy as np

from lib.tools.benchmark.common import (
    MATRIX,
    peak_resident_bytes,
    positive,
    summary,
    time_in_turn,
    torch_setting,
    walking_skeletons,
)

CONFIGS = Path(__file__).parents[3] / 'configs' / 'action'
ROWS = ('MB_train', 'MB_train_aug', 'vanilla', 'vanilla_big', 'vanilla_big_aug')  # of heatmaps, in PyTorch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--row', choices=ROWS, default='MB_train', help='config of the model (default: %(default)s)')
    parser.add_argument('--batch', type=positive, default=4, help='clips per step (default: %(default)s)')
    parser.add_argument('--precision', choices=('fp32', 'bf16'), default='fp32', help='(default: %(default)s)')
    parser.add_argument('--compile', action='store_true', help='compile ours; the straightforward one stays eager')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1 ... (default: %(default)s)')
    parser.add_argument('--rounds', type=positive, default=7, help='timed steps of each (default: %(default)s)')


def run(args: argparse.Namespace) -> dict:
    """Clips/s of training steps (draw, forward, backward, AdamW) from keypoints in memory, and their peak memory.

    straightforward: the same model with explicit softmax attention, torch's own layers, the plain formula of the maps
    and AdamW one parameter after the other. draw: our maps alone. The peak is that of a large matrix product.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from lib.pytorch.layers import linear

    device = torch.device(args.device)
    # Each in a process of its own, and first: what this one has allocated would count.
    with multiprocessing.get_context('spawn').Pool(1, maxtasksperchild=1) as pool:
        memory = {name: pool.apply(peak_memory, (name, args)) for name in ('ours', 'straightforward')}
    model, draw = make_parts(args)
    steps = {name: make_step(name, copy.deepcopy(model), draw, args) for name in memory}
    matrix = torch.randn(MATRIX, MATRIX, device=device).to(torch.bfloat16 if args.precision == 'bf16' else None)
    batch = make_batch(args)

    def in_inference(run: Callable[[], object]) -> Callable[[], None]:
        def call() -> None:
            with torch.inference_mode():
                run()

        return call

    candidates = {
        **steps,
        'draw': in_inference(lambda: draw(*batch[:2])),
        'product': in_inference(lambda: linear(matrix, matrix, None)),
    }
    with FlopCounterMode(display=False) as counter:
        steps['straightforward']()
    synchronize = torch.cuda.synchronize if device.type == 'cuda' else lambda: None
    seconds = {name: np.array(times) for name, times in time_in_turn(candidates, args.rounds, synchronize).items()}
    peak, flops = 2 * MATRIX**3 / seconds['product'], counter.get_total_flops()
    return {
        'title': f'steps {args.row}: training steps of {args.batch} clips, {flops / 1e9:,.0f} GFLOP',
        'unit': 'clips/s',
        'setting': {
            **torch_setting(args.device),
            'precision': args.precision,
            'compiled': args.compile,
            'peak GFLOP/s': round(float(np.median(peak)) / 1e9),
            'rounds': args.rounds,
        },
        'rates': {name: summary(args.batch / seconds[name]) for name in (*steps, 'draw')},
        'ratios': {
            'time ours/straightforward': summary(seconds['ours'] / seconds['straightforward']),
            'memory ours/straightforward': summary(np.array([memory['ours'] / max(memory['straightforward'], 1)])),
            'draw/ours': summary(seconds['draw'] / seconds['ours']),
            **{f'{name}/peak': summary(flops / seconds[name] / peak) for name in steps},
        },
        'memory': {name: summary(np.array([size / 1e6])) for name, size in memory.items()},
    }


def make_parts(args: argparse.Namespace):
    """The row's model, in training mode, and its renderer, on the device."""
    import torch
    import yaml

    from lib.pytorch.heatmap import HeatmapRenderer
    from lib.pytorch.mbert import MotionBERT
    from lib.pytorch.vanilla import VanillaTransformer

    config = yaml.safe_load((CONFIGS / f'{args.row}.yaml').read_text())
    torch.manual_seed(0)
    model = (MotionBERT if args.row.startswith('MB') else VanillaTransformer)(**config['model'])
    return model.train().to(args.device), HeatmapRenderer(**config['heatmap']).to(args.device)


def make_batch(args: argparse.Namespace) -> tuple:
    """keypoint, score and label of `args.batch` clips of two persons, on the device."""
    import torch

    label = np.arange(args.batch) % 60
    return tuple(torch.from_numpy(array).to(args.device) for array in (*walking_skeletons(args.batch, 2), label))


def make_step(name: str, model, draw, args: argparse.Namespace) -> Callable[[], float]:
    """A function that trains `model`, which it may change, by one step and returns the loss; 'ours' as the scripts."""
    import torch
    import torch.nn.functional as F

    from lib.pytorch import training

    bf16 = args.precision == 'bf16'
    if name == 'ours':
        optimizer = training.make_optimizer(model, lr_backbone=1e-4, lr_head=1e-4, weight_decay=0.01)
        dtype = torch.bfloat16 if bf16 else torch.float32
    else:
        make_straightforward(model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01, foreach=False, fused=False)
    keypoint, score, label = make_batch(args)

    def forward() -> torch.Tensor:
        if name == 'ours':
            return model(draw(keypoint, score, dtype=dtype)).float()
        return model(straightforward_maps(keypoint, score, draw.size, draw.sigma)).float()

    if args.compile and name == 'ours':
        forward = torch.compile(forward)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast(keypoint.device.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(forward(), label)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def straightforward_maps(keypoint, score, size: int, sigma: float):
    """Joint maps (N,T,V,H,W): the maximum over persons of outer products of two windowed Gaussians.

    keypoint: (N,M,T,V,2), score: (N,M,T,V). See lib.data.heatmap.joint_heatmaps.
    """
    import torch

    from lib.data.heatmap import MIN_SCORE

    pixel, centre = torch.arange(size, device=keypoint.device), keypoint[..., None]  # (N,M,T,V,2,1)
    inside = (pixel >= (centre - 3 * sigma).trunc()) & (pixel <= (centre + 3 * sigma).trunc())
    x, y = (torch.exp((pixel - centre) ** 2 / (-2 * sigma**2)) * inside).unbind(-2)
    shown = torch.where(score >= MIN_SCORE, score, 0)[..., None, None]
    return (shown * y[..., :, None] * x[..., None, :]).amax(1)


def make_straightforward(model) -> None:
    """Replaces, in place, what our layers compute in a way of their own by torch's modules and explicit formulas."""
    from einops import rearrange
    from torch import nn

    from lib.pytorch.layers import Attention, Linear
    from lib.pytorch.vanilla import SkeleEmbed

    def attend(self, x):
        q, k, v = rearrange(self.qkv(x), 'n l (qkv h d) -> qkv n h l d', qkv=3, h=self.num_heads).unbind()
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.proj(rearrange(weights @ v, 'n h l d -> n l (h d)'))

    def embed(self, x):
        return rearrange(self.proj(x), 'n d t v -> n t v d')

    plain = {Attention: attend, Linear: nn.Linear.forward, SkeleEmbed: embed}
    for module in model.modules():
        if type(module) in plain:
            module.forward = MethodType(plain[type(module)], module)


def peak_memory(name: str, args: argparse.Namespace) -> int:
    """Bytes that two steps take at their peak, model included. 0 where the system does not tell."""
    import torch

    from lib.pytorch import training  # noqa: F401  what is imported does not count

    if torch.device(args.device).type == 'cuda':
        model, draw = make_parts(args)
        step = make_step(name, model, draw, args)
        torch.cuda.reset_peak_memory_stats(args.device)
        step(), step()
        return torch.cuda.max_memory_allocated(args.device)
    before = peak_resident_bytes()
    step = make_step(name, *make_parts(args), args)
    step(), step()
    return peak_resident_bytes() - before
