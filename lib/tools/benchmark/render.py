"""Heatmap volumes drawn from keypoints: compiled, eager and in NumPy, against filling such a volume with a constant."""

import argparse

import numpy as np

from lib.tools.benchmark.common import (
    FRAMES,
    JOINTS,
    SIGMA,
    SIZE,
    positive,
    summary,
    time_in_turn,
    torch_setting,
    walking_skeletons,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--batch', type=positive, default=16, help='clips per batch (default: %(default)s)')
    parser.add_argument('--persons', type=positive, default=2, help='persons per clip (default: %(default)s)')
    parser.add_argument('--kind', choices=('joint', 'limb', 'both'), default='joint')
    parser.add_argument(
        '--pairs', type=positive, default=15, help='timed runs of each candidate (default: %(default)s)'
    )
    parser.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1 ... (default: %(default)s)')


def run(args: argparse.Namespace) -> dict:
    """Clips/s of the torch renderer, and of filling the same volume with a constant: the limit that memory sets.

    Both sides allocate their result on each call, as a training step does. oracle: the NumPy reference, one clip.
    numpy, for limbs: the same formula without loops.
    """
    import torch

    from lib.data.heatmap import joint_heatmaps, limb_heatmaps
    from lib.pytorch.heatmap import HeatmapRenderer

    device = torch.device(args.device)
    keypoint, score = walking_skeletons(args.batch, args.persons)
    inputs = torch.from_numpy(keypoint).to(device), torch.from_numpy(score).to(device)
    renderer = HeatmapRenderer(size=SIZE, sigma=SIGMA, kind=args.kind).to(device)
    compiled = torch.compile(renderer, fullgraph=True)
    shape = (args.batch, FRAMES, renderer.num_maps(JOINTS), SIZE, SIZE)
    draw_in_numpy = {'joint': [joint_heatmaps], 'limb': [limb_heatmaps], 'both': [joint_heatmaps, limb_heatmaps]}

    def oracle() -> None:
        for draw in draw_in_numpy[args.kind]:
            draw(keypoint[0], score[0], img_shape=(SIZE, SIZE), sigma=SIGMA)

    synchronize = torch.cuda.synchronize if device.type == 'cuda' else lambda: None
    candidates = {
        'fill': lambda: torch.full(shape, 0.5, device=device),
        'compiled': lambda: compiled(*inputs),
        'eager': lambda: renderer(*inputs),
        'oracle': oracle,
    }
    if args.kind == 'limb':
        candidates['numpy'] = lambda: limbs_in_numpy(keypoint, score)
    with torch.inference_mode():
        seconds = time_in_turn(candidates, args.pairs, synchronize)
    clips = {name: 1 if name == 'oracle' else args.batch for name in candidates}
    rates = {name: clips[name] / np.array(times) for name, times in seconds.items()}
    return {
        'title': f'render {args.kind}: volumes {shape}, {args.persons} persons',
        'unit': 'clips/s',
        'setting': {
            **torch_setting(args.device),
            'pairs': args.pairs,
        },
        'rates': {name: summary(rate) for name, rate in rates.items()},
        'ratios': {
            'compiled/fill': summary(rates['compiled'] / rates['fill']),
            'eager/fill': summary(rates['eager'] / rates['fill']),
            **{
                f'compiled/{name}': summary(rates['compiled'] / rates[name])
                for name in ('oracle', 'numpy')
                if name in rates
            },
        },
    }


def limbs_in_numpy(keypoint: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Limb maps (N,T,L,H,W) of keypoint (N,M,T,V,2) and score (N,M,T,V), without a loop; see lib.data.heatmap."""
    from lib.data.heatmap import MIN_SCORE
    from lib.data.skeletons import skeleton_of

    limbs = np.array(skeleton_of(keypoint.shape[-2]).limbs)
    start, end = (keypoint[..., limbs[:, i], :][..., None, None, :] for i in (0, 1))  # (N,M,T,L,1,1,2)
    start_score, end_score = (score[..., limbs[:, i]][..., None, None] for i in (0, 1))
    lower = np.minimum(start_score, end_score)
    short = ((end - start) ** 2).sum(-1) < 1  # drawn as the joint at its start
    end = np.where(short[..., None], start, end)
    value = np.where(lower >= MIN_SCORE, np.where(short, start_score, lower), np.float32(0))
    reach = np.float32(3 * SIGMA)
    first, last = np.trunc(np.minimum(start, end) - reach), np.trunc(np.maximum(start, end) + reach)
    x, y = np.arange(SIZE, dtype=np.float32), np.arange(SIZE, dtype=np.float32)[:, None]
    step = end - start
    square = np.maximum((step**2).sum(-1), np.float32(1e-9))
    share = ((x - start[..., 0]) * step[..., 0] + (y - start[..., 1]) * step[..., 1]) / square
    share = np.clip(share, 0, 1)
    distance2 = (x - start[..., 0] - share * step[..., 0]) ** 2 + (y - start[..., 1] - share * step[..., 1]) ** 2
    inside = (x >= first[..., 0]) & (x <= last[..., 0]) & (y >= first[..., 1]) & (y <= last[..., 1])
    return np.where(inside, value * np.exp(distance2 * np.float32(-0.5 / SIGMA**2)), np.float32(0)).max(axis=1)
