"""Speed on a GPU: rendering, training steps in every precision, and a run with loading, saving and validation."""

import contextlib
import gc
import itertools
import os
import tempfile
import time
from functools import partial
from pathlib import Path

from lib.errors import UserError
from lib.files import write_text
from lib.models import MODELS
from lib.tools.benchmark import steps
from lib.tools.benchmark.rows import ACTION, MEASURED, Setup, different_models, label, run_all
from lib.tools.benchmark.steps import compare, make_step, make_world

PRECISIONS = ('fp32', 'tf32', 'bf16', 'bf16 compiled')
NUM_CLIPS = 56578  # in NTU60's cross-subject splits


def measure_all(setup: Setup) -> None:
    measured, models = [ACTION / f'{name}.yaml' for name in MEASURED], different_models()
    # Compilation in parallel, into the compiler's cache on disk, takes a fraction of the time.
    run_all(setup, [(compile_step, f'{label(path)}, compiling', path) for path in models], min(8, os.cpu_count()))
    tasks = [(time_renderer, f'{kind} maps', kind) for kind in ('joint', 'limb')]
    tasks += [(time_precisions, label(path), path) for path in measured]
    tasks.append((time_run, 'run of MB_train', ACTION / 'MB_train.yaml'))
    tasks += [(time_largest_batch, label(path), path) for path in models if path not in measured]
    run_all(setup, tasks, 2 if setup.quick else 1)


def compile_step(setup: Setup, path: Path) -> None:
    timed_steps(setup, path, 'bf16 compiled', 2, rounds=0)  # the number of clips is dynamic


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


def time_precisions(setup: Setup, path: Path) -> None:
    for precision, batch in itertools.product(PRECISIONS, (2, 4) if setup.quick else (32, 128)):
        with setup.row(name := f'{label(path)}, {precision}, {batch} clips'):
            setup.add(name, **timed_steps(setup, path, precision, batch))


def time_largest_batch(setup: Setup, path: Path) -> None:
    """Compiled training steps in bfloat16 with the largest batch, up to 128, that fits into memory."""
    import torch

    for batch in (2,) if setup.quick else (128, 64, 32, 16):
        with contextlib.suppress(torch.OutOfMemoryError):
            row = timed_steps(setup, path, 'bf16 compiled', batch)
            setup.add(f'{label(path)}, bf16 compiled, {batch} clips', **row)
            return
    raise UserError('out of memory with 16 clips')


def timed_steps(setup: Setup, path: Path, precision: str, batch: int, rounds: int = 10) -> dict[str, float]:
    """Training steps on a batch in memory. With rounds=0, one step which is not timed."""
    changes = [f'data.batch_size={batch}', f'train.precision={precision.split()[0]}']
    config = setup.config(path, *changes, f'train.compile={str("compiled" in precision).lower()}')
    world = make_world(config.script, setup.device)
    release_memory(config.script)
    step = make_step(config, world)
    if not rounds:
        step()
        return {}
    row = compare(step, None, 1 if setup.quick else rounds, batch)
    return row | {'GB': world.peak_memory() / 1e9}


def release_memory(script: str) -> None:
    """Frees the memory of earlier models and resets the peak."""
    gc.collect()
    if MODELS[script].framework == 'pytorch':
        import torch

        torch._dynamo.reset()
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
