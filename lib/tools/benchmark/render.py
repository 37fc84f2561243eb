"""Heatmap volumes drawn from keypoints: compiled, eager and in NumPy, against filling such a volume with a constant."""

import argparse

import numpy as np

from lib.tools.benchmark.common import FRAMES, JOINTS, SIGMA, SIZE, positive, summary, time_in_turn, walking_skeletons


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

    Both sides allocate their result on each call, as a training step does. The NumPy reference draws one clip.
    """
    import torch

    from lib.data.heatmap import joint_heatmaps, limb_heatmaps
    from lib.pytorch.heatmap import HeatmapRenderer

    device = torch.device(args.device)
    keypoint, score = walking_skeletons(args.batch, args.persons)
    inputs = torch.from_numpy(keypoint).to(device), torch.from_numpy(score).to(device)
    renderer = HeatmapRenderer(size=SIZE, sigma=SIGMA, kind=args.kind).to(device)
    compiled = torch.compile(renderer, fullgraph=True)
    shape = (args.batch, FRAMES, renderer.num_channels(JOINTS), SIZE, SIZE)
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
    with torch.inference_mode():
        seconds = time_in_turn(candidates, args.pairs, synchronize)
    clips = {name: 1 if name == 'oracle' else args.batch for name in candidates}
    rates = {name: clips[name] / np.array(times) for name, times in seconds.items()}
    return {
        'title': f'render {args.kind}: volumes {shape}, {args.persons} persons',
        'unit': 'clips/s',
        'setting': {
            'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else str(device),
            'threads': torch.get_num_threads(),
            'torch': torch.__version__,
            'pairs': args.pairs,
        },
        'rates': {name: summary(rate) for name, rate in rates.items()},
        'ratios': {
            'compiled/fill': summary(rates['compiled'] / rates['fill']),
            'eager/fill': summary(rates['eager'] / rates['fill']),
            'compiled/oracle': summary(rates['compiled'] / rates['oracle']),
        },
    }
