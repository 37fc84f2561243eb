"""The parts of the benchmark: rendering, loading and training, against a reference."""

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from easydict import EasyDict

from lib.data.augmentation import Augmentation
from lib.data.clips import Clips
from lib.models import MODELS
from lib.tools.benchmark import steps
from lib.tools.benchmark.steps import Step, compare, in_new_process, make_step, make_world

AUGMENTATION = {'rotation': 0.3, 'joint_noise': 0.01, 'temporal_shift': 5}


def render(kind: str, batch: int, device: str, rounds: int) -> dict[str, Any]:
    """The compiled renderer against filling a volume, which each call allocates as in a training step."""
    import torch

    renderer, inputs = steps.make_renderer(kind, batch, device)
    shape = (batch, steps.FRAMES, renderer.num_maps(steps.JOINTS), steps.SIZE, steps.SIZE)
    ours = partial(torch.compile(renderer, fullgraph=True), *inputs)
    fill = partial(torch.full, shape, 0.5, device=device)
    with torch.inference_mode():
        return compare(steps.waiting(ours, device), steps.waiting(fill, device), rounds, batch)


def data(batch: int, rounds: int) -> dict[str, Any]:
    """Training batches with more augmentation against the default crop and flip alone, on one core."""
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        ann_file = Path(folder) / 'generated.pkl'
        steps.write_pickle(ann_file, max(4000, 2 * batch))
        options = {
            'ann_file': str(ann_file),
            'benchmark': 'xsub',
            'clip_len': steps.FRAMES,
            'batch_size': batch,
            'seed': 0,
        }
        default, augmented = Clips('train', **options), Clips('train', Augmentation(**AUGMENTATION), **options)
        count = min(64, len(default))

        def load(clips: Clips) -> Step:
            return lambda: [clips[0, b] for b in range(count)]

        return compare(load(augmented), load(default), rounds, sum(default.batch_sizes[:count]))


def train(config: EasyDict, device: str, rounds: int) -> dict[str, Any]:
    """Training steps from keypoints in memory: rendering, forward, backward, optimizer."""
    heatmap = config.get('heatmap', {})
    kind, per_person = heatmap.get('kind', 'joint'), heatmap.get('per_person', False)
    has_reference = MODELS[config.script].framework == 'pytorch' and kind == 'joint' and not per_person
    sides = [False, True] if has_reference else [False]
    row = in_new_process(time_of_steps, has_reference, config, device, rounds)
    return row | {'peak memory': [in_new_process(memory_of_step, side, config, device) for side in sides]}


def time_of_steps(has_reference: bool, config: EasyDict, device: str, rounds: int) -> dict[str, Any]:
    world = make_world(config.script, device)
    ours = make_step(config, world)
    reference = make_step(config, world, is_reference=True) if has_reference else None
    return compare(ours, reference, rounds, config.data.batch_size)


def memory_of_step(is_reference: bool, config: EasyDict, device: str) -> int:
    """Peak memory of two training steps in bytes: of tensors on a GPU, of this process on a CPU."""
    world = make_world(config.script, device)
    step = make_step(config, world, is_reference)
    step(), step()
    return world.peak_memory()
