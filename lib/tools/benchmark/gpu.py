"""Check and measure all models on a GPU, and write the results into a folder as they arrive.

    python -m lib.tools.benchmark gpu --out out/gpu

correctness: heatmaps, logits and gradients against the CPU's; a resumed run against an uninterrupted one.
speed: rendering, training steps in every precision, a run of MotionBERT with loading, saving and validation.
Each takes a few minutes. FOLDER then has correctness.jsonl and speed.jsonl, a table results.md, and profile.txt.
"""

import argparse
import contextlib
import gc
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from easydict import EasyDict

from lib.config import read_config
from lib.errors import UserError
from lib.files import make_folder, write_text
from lib.models import MODELS, load_config
from lib.tools.benchmark import steps
from lib.tools.benchmark.steps import compare, in_new_process, make_step, make_world
from lib.tools.running import add_out, check_new, log, make_parser, progress, run_tool

if TYPE_CHECKING:
    from torch import Tensor

CONFIGS = Path(__file__).parents[3] / 'configs'
ACTION = CONFIGS / 'action'
PARTS = ('correctness', 'speed')
MEASURED = ('MB_train', 'vanilla', 'vivit')  # in all precisions
PRECISIONS = ('fp32', 'tf32', 'bf16', 'bf16 compiled')
NUM_CLIPS = 56578  # in NTU60's cross-subject splits
LIMIT = 1e-4  # of the relative error in float32: rounding is about 1e-6, TF32 about 1e-3
OUT_OF_MEMORY = ('OutOfMemoryError', 'ResourceExhaustedError')  # of PyTorch and TensorFlow
QUICK = ['data.clip_len=16', 'model.depth=1', 'train.epochs=2', 'train.warmup_epochs=0']


@dataclass(frozen=True)
class Setup:
    """What to measure on: 'cuda' or 'cpu'; whether models and data are small; the file of the results."""

    device: str
    quick: bool
    file: Path

    def add(self, name: str, **values: float | str) -> None:
        """Appends a row to the file. Several processes may do so at the same time."""
        with self.file.open('a') as file:
            file.write(json.dumps({'name': name} | values) + '\n')

    @contextlib.contextmanager
    def row(self, name: str) -> Iterator[None]:
        """Context manager that adds a row which says why the measurement failed, if it does."""
        try:
            yield
        except (UserError, ImportError) as error:  # a device or framework lacks something
            self.add(name, skipped=str(error))
        except Exception as error:  # must not affect other rows
            reason = 'skipped' if type(error).__name__ in OUT_OF_MEMORY else 'failed'
            self.add(name, **{reason: f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'})

    def config(self, path: Path, *changes: str) -> EasyDict:
        """A config with changes (--set); with `quick`, with one layer and 16 frames."""
        quick = [*QUICK, *(['model.clip_len=16'] if path.stem == 'vivit' else [])] if self.quick else []
        return load_config(path, [*quick, *changes])


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, 'benchmark gpu')
    add_out(parser, 'FOLDER', text='folder for the results', required=True)
    parser.add_argument('--part', choices=PARTS, help='default: both')
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda', help='device (default: %(default)s)')
    parser.add_argument('--quick', action='store_true', help='small models and few clips, to try out this tool')
    return run_tool(benchmark, parser, argv)


def benchmark(args: argparse.Namespace) -> int:
    """Runs the parts. Returns 1 if a measurement failed or a result is wrong."""
    parts = [args.part] if args.part else PARTS
    check_new(args.out, *(f'{part}.jsonl' for part in parts))
    if args.device == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    multiprocessing.set_forkserver_preload(['lib.pytorch.training'])  # its import takes seconds
    facts = in_new_process(describe, args.device)
    make_folder(args.out)
    try:
        for part in parts:
            setup = Setup(args.device, args.quick, args.out / f'{part}.jsonl')
            setup.add(**facts)
            {'correctness': check_all, 'speed': measure_all}[part](setup)
    finally:
        rows = {part: read(args.out / f'{part}.jsonl') for part in PARTS if (args.out / f'{part}.jsonl').exists()}
        table = '\n'.join(as_table(part, *found) for part, found in rows.items())
        write_text(args.out / 'results.md', table)
        log.info('%s', table.rstrip())
    return int(any('failed' in row or is_wrong(row) for found in rows.values() for row in found))


def describe(device: str) -> dict[str, str]:
    """The first row of a file: device and version of a framework. Raises UserError if none sees such a device."""
    with contextlib.suppress(ImportError, UserError):
        import torch

        make_world('vanilla', device)
        return {'name': torch.cuda.get_device_name() if device == 'cuda' else 'CPU', 'torch': torch.__version__}
    try:
        import tensorflow as tf
    except ImportError:
        raise UserError(f'--device {device}: pytorch sees no GPU.') from None
    make_world('vivit', device)
    gpus = tf.config.list_physical_devices('GPU')
    name = tf.config.experimental.get_device_details(gpus[0])['device_name'] if device == 'cuda' else 'CPU'
    return {'name': name, 'tensorflow': tf.__version__}


def is_wrong(row: dict[str, Any]) -> bool:
    """Whether the error of a row is above its limit, or NaN."""
    return 'limit' in row and not row['error'] <= row['limit']


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def as_table(part: str, facts: dict[str, str], *rows: dict[str, Any]) -> str:
    """A Markdown table of the rows of a part."""
    lines = [f'## {part}: {", ".join(f"{key} {value}" for key, value in facts.items())}', '', '| | |', '|---|---|']
    for row in rows:
        values = dict(row)
        name = values.pop('name')
        if 'limit' in row:
            values['verdict'] = 'WRONG' if is_wrong(row) else 'ok'
        cells = (
            f'{key} {value:.4g}' if isinstance(value, float) else f'{key} {value}' for key, value in values.items()
        )
        lines.append(f'| {name} | {", ".join(cells)} |')
    return '\n'.join([*lines, ''])


def run_all(setup: Setup, tasks: Iterable[tuple[Callable, str, Any]], workers: int) -> None:
    """Calls function(setup, argument) of each task (function, name, argument) in a new process, `workers` at a time."""
    tasks, stopped = list(tasks), []

    def run(task: tuple[Callable, str, Any]) -> None:
        with setup.row(task[1]) if not stopped else contextlib.suppress(ChildProcessError):
            in_new_process(measure, setup, *task, max(1, os.cpu_count() // workers))

    with ThreadPoolExecutor(workers) as pool:
        try:
            for _ in progress(pool.map(run, tasks), total=len(tasks), desc=setup.file.stem, unit='part'):
                pass
        except BaseException:  # Ctrl-C
            stopped.append(True)
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.kill()
            raise


def measure(setup: Setup, function: Callable, name: str, argument: Any, num_threads: int) -> None:
    """Calls function(setup, argument), and adds a row with the error if it raises one."""
    quickly = contextlib.nullcontext()
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(num_threads)
        torch._inductor.config.compile_threads = num_threads
        if setup.quick:
            quickly = mock.patch('torch.compile', partial(torch.compile, backend='eager'))  # only traces
    with setup.row(name), quickly:
        function(setup, argument)


def different_models() -> list[Path]:
    """The PyTorch configs, without those that have the same model and input as another."""
    paths = {}
    for path in sorted(CONFIGS.glob('*/*.yaml'), key=lambda path: (path.stem not in MEASURED, path)):
        config = read_config(path)
        if MODELS[config['script']].framework == 'pytorch' and path.parent.name != 'sample':
            data = {key: config['data'].get(key) for key in ('input', 'clip_len', 'max_persons')}
            paths.setdefault(json.dumps([config['script'], config['model'], data]), path)
    return list(paths.values())


def label(path: Path) -> str:
    return path.stem if path.parent == ACTION else f'{path.parent.name}/{path.stem}'


# Correctness


def check_all(setup: Setup) -> None:
    tasks = [(check_resume, 'resume', ACTION / 'vanilla.yaml')]
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
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 2**-8)):  # 8 bits of mantissa
        for compiled in (False, True):
            name = f'{kind} maps, {str(dtype).removeprefix("torch.")}, {"compiled" if compiled else "eager"}'
            with setup.row(name):
                render = torch.compile(renderer, fullgraph=True) if compiled else renderer
                error = (render(*inputs, dtype).cpu().float() - expected).abs().max().item()
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


def check_resume(setup: Setup, path: Path) -> None:
    """Two epochs, uninterrupted and resumed from a checkpoint within the second: the number of different tensors."""
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
        changes += [*(QUICK if setup.quick else ()), 'train.epochs=2']
        command = ['--config', str(path), *itertools.chain(*(('--set', change) for change in changes))]
        states = []
        for run, resume in (('whole', ()), ('resumed', ('-r', str(folder / 'whole' / 'latest_epoch.1.bin')))):
            args = cli.parse_args('', 'vanilla', [*command, '-c', str(folder / run), *resume])
            if code := cli.run(train_action_vanilla.train, args):
                raise ChildProcessError(f'the {run} run ended with exit code {code}')
            states.append(checkpoint.read(folder / run / 'latest_epoch.bin'))
        middle = checkpoint.read(folder / 'whole' / 'latest_epoch.1.bin')
    whole, resumed = ({**state['model'], **moments(state['optimizer'])} for state in states)
    differ = sum(not torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    setup.add('resume, different tensors', error=differ, limit=0, tensors=len(whole), from_step=middle['step'])


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


# Speed


def measure_all(setup: Setup) -> None:
    measured = [ACTION / f'{name}.yaml' for name in MEASURED]
    others = [path for path in different_models() if path not in measured]
    # Compilation in parallel, into the compiler's cache on disk, takes a fraction of the time.
    compiled = [(compile_step, f'{label(path)}, compiling', path) for path in different_models()]
    run_all(setup, compiled, min(8, os.cpu_count()))
    tasks = [(time_renderer, f'{kind} maps', kind) for kind in ('joint', 'limb')]
    tasks += [(time_precisions, label(path), path) for path in measured]
    tasks.append((time_run, 'run of MB_train', ACTION / 'MB_train.yaml'))
    tasks += [(time_largest_batch, label(path), path) for path in others]
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
        for dtype in (torch.float32, torch.bfloat16):
            source = renderer(*inputs, dtype)
            copy = partial(torch.empty_like(source).copy_, source)
            calls = 1 if setup.quick else 20  # while the device works, the host prepares the next one
            ours, copy = (steps.waiting(f, setup.device, calls) for f in (partial(compiled, *inputs, dtype), copy))
            row = compare(ours, copy, 1 if setup.quick else 10, batch * calls)
            name = f'{kind} maps, {str(dtype).removeprefix("torch.")}, {batch} clips'
            setup.add(name, **{'clips/s': row['clips/s'], 'of copy bandwidth': 1 / (2 * row['ratio'])})


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
        speed = count * size / seconds
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
