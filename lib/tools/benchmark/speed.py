"""Speed on a GPU: rendering, training steps in every precision, and a run with loading, saving and validation."""

import contextlib
import gc
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from lib.files import write_text
from lib.models import MODELS
from lib.tools.benchmark import steps
from lib.tools.benchmark.rows import ACTION, MEASURED, Setup, different_models, is_out_of_memory, label, run_all
from lib.tools.benchmark.steps import compare, make_step, make_world

COMPILED = 'bf16 compiled'
PRECISIONS = ('bf16', 'tf32', 'fp32')
NUM_CLIPS = 56578  # in NTU60's cross-subject splits


def measure_all(setup: Setup) -> None:
    """Rendering and the run alone on the machine; then steps, which take turns on the device while others compile."""
    measured = [ACTION / f'{name}.yaml' for name in MEASURED]
    tasks = [(time_renderer, f'{kind} maps', kind) for kind in ('joint', 'limb')]
    tasks.append((time_run, 'run of MB_train', ACTION / 'MB_train.yaml'))
    run_all(setup, tasks, 2 if setup.quick else 1)
    compiled = [(path, COMPILED, path not in measured) for path in dict.fromkeys([*measured, *different_models()])]
    eager = [(path, precision, False) for precision in PRECISIONS for path in measured]
    tasks = [(time_steps, f'{label(task[0])}, {task[1]}', task) for task in [*compiled, *eager]]
    run_all(setup, tasks, 2 if setup.quick else max(1, min(8, os.cpu_count() // 3)))


def time_renderer(setup: Setup, kind: str) -> None:
    """Compiled rendering; `of copy bandwidth` compares the bytes written with those that a copy reads and writes."""
    import torch

    batch = 2 if setup.quick else 32
    renderer, inputs = steps.make_renderer(kind, batch, setup.device)
    compiled = torch.compile(renderer, fullgraph=True)
    with torch.inference_mode():
        for name in ('float32', 'bfloat16'):
            dtype = getattr(torch, name)
            source = renderer(*inputs, dtype)
            copy = partial(torch.empty_like(source).copy_, source)
            calls = 1 if setup.quick else 20  # while the device works, the host prepares the next one
            ours, copy = (steps.waiting(f, setup.device, calls) for f in (partial(compiled, *inputs, dtype), copy))
            row = compare(ours, copy, 1 if setup.quick else 10, batch * calls)
            values = {'clips/s': row['clips/s'], 'of copy bandwidth': 1 / (2 * row['ratio'])}
            setup.add(f'{kind} maps, {name}, {batch} clips', **values)


def time_steps(setup: Setup, task: tuple[Path, str, bool]) -> None:
    """Training steps on batches in memory. task: config, precision, whether only with the largest batch that fits.

    That is, into 90 % of the device's memory; processes that compile need the rest.
    """
    path, precision, largest_only = task
    sizes = (4, 2) if setup.quick else (128, 64, 32, 16) if largest_only else (128, 32)
    calls, rounds = (1, 1) if setup.quick else (3, 4)
    is_compiled = precision == COMPILED
    changes = [f'data.batch_size={sizes[0]}', f'train.precision={precision.split()[0]}']
    config = setup.config(path, *changes, f'train.compile={str(is_compiled).lower()}')
    is_pytorch = MODELS[config.script].framework == 'pytorch'
    compiles_first = is_compiled and is_pytorch and not setup.quick
    world = make_world(config.script, setup.device)
    if is_pytorch and setup.device == 'cuda':
        import torch

        torch.cuda.set_per_process_memory_fraction(0.9)
    if not compiles_first:
        setup.take_turn()
    with mock.patch('torch.compile', compile_before_turn(setup)) if compiles_first else contextlib.nullcontext():
        step = make_step(config, world, calls=calls)
    for size in sizes:
        name = f'{label(path)}, {precision}, {size} clips'
        release_memory(is_pytorch)
        try:
            row = compare(partial(step, size), None, rounds, size * calls)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            setup.add(name, skipped='out of memory')
            continue
        setup.add(name, **row, GB=world.peak_memory() / 1e9)
        if largest_only:
            return


def compile_before_turn(setup: Setup) -> Callable[..., Any]:
    """torch.compile whose code waits, when it is first run, until no other process measures."""
    import torch
    from torch._inductor import list_mode_options
    from torch._inductor.compile_fx import compile_fx

    def backend(graph: torch.fx.GraphModule, inputs: list[Any], mode: str = 'default') -> Callable[..., Any]:
        code = compile_fx(graph, inputs, config_patches=list_mode_options(mode))

        def run(*args: Any) -> Any:
            setup.take_turn()
            return code(*args)

        return run

    return partial(torch.compile, backend=backend)


def release_memory(is_pytorch: bool) -> None:
    """Frees unused memory and resets the peak."""
    gc.collect()
    if is_pytorch:
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    else:
        import tensorflow as tf

        if tf.config.list_logical_devices('GPU'):
            tf.config.experimental.reset_memory_stats('GPU:0')


def time_run(setup: Setup, path: Path) -> None:
    """Compiled training in bfloat16 with the data loader, saving and validation, on a dataset of the size of NTU60."""
    import torch

    from lib.data.batches import make_clips
    from lib.pytorch import checkpoint, training

    world = make_world('mbert', setup.device)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        steps.write_pickle(folder / 'generated.pkl', 60 if setup.quick else NUM_CLIPS)
        changes = [f'data.ann_file={folder / "generated.pkl"}', f'data.batch_size={4 if setup.quick else 128}']
        config = setup.config(path, *changes, 'train.precision=bf16', 'train.compile=true')
        options, size = training.TrainOptions(**config.train), config.data.batch_size
        options.set_precision(world.device)
        train_clips, val_clips = (make_clips(config, split) for split in ('train', 'val'))
        render, model = training.make_model(config, train_clips.num_joints, world.device)
        optimizer = training.make_optimizer(model, **config.optimizer)
        forward = training.make_forward(render, model, options, world)

        def train(count: int) -> tuple[float, float]:
            """Seconds of `count` steps, and those among them in which this process waited for data."""
            model.train()
            results, waited = [], 0.0
            begin = start = time.perf_counter()
            for _, batch in itertools.islice(training.load_batches(train_clips, 0, options, world), count):
                waited += time.perf_counter() - begin
                results.append(training.train_step(forward, optimizer, batch, options, size, 0))
                begin = time.perf_counter()
            world.reduce(results, False)  # waits for the device
            return time.perf_counter() - start, waited

        def validate() -> float:
            start = time.perf_counter()
            training.predict(forward, model, val_clips, options, world)
            return time.perf_counter() - start

        train(3), validate()  # compiles
        count = min(100, len(train_clips))
        seconds, waited = train(count)
        speed = sum(train_clips.batch_sizes[:count]) / seconds
        setup.add(
            f'training with the data loader, {size} clips', **{'clips/s': speed, 'waiting for data': waited / seconds}
        )
        run = checkpoint.Run(folder / 'run', config)
        run.folder.mkdir()
        run.restore(model, optimizer)
        start = time.perf_counter()
        run.save()
        blocked = time.perf_counter() - start
        run.wait()
        setup.add('saving', **{'seconds blocked': blocked, 'seconds until on disk': time.perf_counter() - start})
        validation = validate()
        setup.add(f'validation, {val_clips.num_clips} clips', seconds=validation)
        hours = options.epochs * (sum(train_clips.batch_sizes) / speed + blocked + validation) / 3600
        setup.add(f'{options.epochs} epochs, extrapolated', hours=hours)
        with torch.profiler.profile() as profile:
            train(3)
        table = profile.key_averages().table(sort_by=f'self_{setup.device}_time_total', row_limit=40)
        write_text(setup.file.with_name('profile.txt'), table)
