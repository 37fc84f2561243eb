"""Summarise a config: parameters, multiply-adds, and differences from the published config.

    python -m lib.tools.summary configs/action/MB_train.yaml --set data.batch_size=8 --measure

Multiply-adds count matrix products and convolutions in the forward pass of one clip (in TensorFlow also elementwise
operations, about 1 %). --measure runs three training steps on random clips, on the GPU if there is one, and reports the
time of the third step and the peak memory.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from easydict import EasyDict

from lib.cli import add_set
from lib.config import differences, read_config
from lib.models import MODELS, load_config, resolve_config
from lib.run import FREE_KEYS
from lib.tools.benchmark.steps import joints_of, make_step
from lib.tools.checkpoints import build_model
from lib.tools.running import log, make_parser, run_tool

PUBLISHED = Path(__file__).parents[2] / 'configs' / 'action'


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, 'summary')
    parser.add_argument('config', type=Path, metavar='CONFIG', help='YAML config of any model')
    add_set(parser)
    parser.add_argument('--measure', action='store_true', help='run three training steps and report time and memory')
    return run_tool(summarise, parser, argv)


def summarise(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.set)
    MODELS[config.script].training.TrainOptions(**config.train).check_batch_size(config.data.batch_size, 1)
    total, trained, operations = COSTS[MODELS[config.script].framework](config)
    log.info('config         %s, for %s', args.config, MODELS[config.script].program)
    log.info('parameters     %s, %s trainable', f'{total:,}', f'{trained:,}')
    log.info('multiply-adds  %s million per clip', f'{operations / 1e6:,.0f}')
    for line in published_lines(args.config, config):
        log.info('%s', line)
    if args.measure:
        device, seconds, memory = measure(config)
        count = config.data.batch_size
        log.info(
            'training       %.2f s per step of %s clips (%.1f clips/s), peak memory %.2f GB, on %s',
            *(seconds, count, count / seconds, memory / 1e9, device),
        )


def pytorch_cost(config: EasyDict) -> tuple[int, int, int]:
    """Numbers of parameters, trained parameters and multiply-adds. Raises UserError if the config is inconsistent."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from lib.pytorch import training

    render, model = build_model(config, joints_of(config))
    shape = (1, config.data.max_persons, config.data.clip_len, joints_of(config))
    with torch.device('meta'):
        inputs = [torch.zeros(*shape, 3)] if render is None else [torch.zeros(*shape, 2), torch.zeros(shape)]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            training.RenderAndClassify(render, model.eval(), 'fp32')(*inputs)
    return *training.count_parameters(model), counter.get_total_flops() // 2


def tensorflow_cost(config: EasyDict) -> tuple[int, int, int]:
    """As pytorch_cost."""
    import tensorflow as tf
    from tensorflow.compat.v1 import profiler

    tf.get_logger().setLevel('ERROR')  # the profiler is deprecated without a replacement
    render, model = build_model(config, joints_of(config))
    size = config.heatmap.size
    volume = tf.TensorSpec((1, config.data.clip_len, size, size, render.num_maps(joints_of(config))))
    forward = tf.function(lambda volume: model(volume, training=False), autograph=False).get_concrete_function(volume)
    options = profiler.ProfileOptionBuilder(profiler.ProfileOptionBuilder.float_operation()).with_empty_output()
    flops = profiler.profile(forward.graph, options=options.build()).total_float_ops
    return *MODELS[config.script].training.count_parameters(model), flops // 2


COSTS = {'pytorch': pytorch_cost, 'tensorflow': tensorflow_cost}


def measure(config: EasyDict) -> tuple[str, float, int]:
    """Device, duration of the third training step in seconds, and peak memory in bytes."""
    world = MODELS[config.script].training.distributed.init()
    step = make_step(config, world)
    step(), step()  # compiles, and records CUDA graphs
    start = time.perf_counter()
    step()
    return world.description, time.perf_counter() - start, world.peak_memory()


def published_lines(path: Path, config: EasyDict) -> list[str]:
    """Lines on the published config nearest to a config and the settings in which they differ."""
    rows = {}  # {file: (line on the published result, config)}
    for file in sorted(PUBLISHED.glob('*.yaml')):
        content = read_config(file)
        if content['script'] != config.script:
            continue
        row = resolve_config(content, (), str(file))
        if row.data.input == config.data.input:
            published = re.search(r'^# (Published: .*)', file.read_text(), re.MULTILINE)
            rows[file] = published[1] if published else 'not published', row
    if not rows:
        return []
    nearest = path.resolve()
    if nearest not in rows:
        nearest = min(rows, key=lambda file: len(changes(rows[file][1], config)))
    line, row = rows[nearest]
    lines = [f'published      {nearest.name}: {line}']
    for key, values in changes(row, config).items():
        before, now = (json.dumps(value).strip('"') for value in values)
        lines.append(f'differs        {key}: {before} published, {now} here')
    return lines


def changes(published: Mapping[str, dict], config: Mapping[str, dict]) -> dict[str, tuple[Any, Any]]:
    """Differing settings {'section.key': (published, here)}; of paths, only the name of the pickle is compared."""
    found = {key: pair for key, pair in differences(published, config).items() if key not in FREE_KEYS}
    before, now = (Path(each['data']['ann_file']).name for each in (published, config))
    return ({'data.ann_file': (before, now)} if before != now else {}) | found


if __name__ == '__main__':
    sys.exit(main())
