"""Rows of the GPU benchmark: what to measure on, processes that add rows to a file, and their table."""

import contextlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

from easydict import EasyDict

from lib.config import read_config
from lib.errors import UserError
from lib.files import hold_lock
from lib.models import MODELS, load_config
from lib.tools.benchmark.steps import in_new_process
from lib.tools.running import progress

CONFIGS = Path(__file__).parents[3] / 'configs'
ACTION = CONFIGS / 'action'
MEASURED = ('MB_train', 'vanilla', 'vivit')  # in all precisions
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
            reason = 'skipped' if is_out_of_memory(error) else 'failed'
            self.add(name, **{reason: f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'})

    def take_turn(self) -> None:
        """Waits until no other process measures; from then on this one does, until it ends."""
        lock_until_exit(self.file.with_suffix('.lock'))

    def config(self, path: Path, *changes: str) -> EasyDict:
        """A config with changes (--set); with `quick`, with one layer and 16 frames."""
        quick = [*QUICK, *(['model.clip_len=16'] if path.stem == 'vivit' else [])] if self.quick else []
        return load_config(path, [*quick, *changes])


@cache
def lock_until_exit(path: Path) -> BinaryIO:
    return hold_lock(path, 'the device', wait=True)


def is_out_of_memory(error: Exception) -> bool:
    return type(error).__name__ in ('OutOfMemoryError', 'ResourceExhaustedError')  # of PyTorch and TensorFlow


def is_wrong(row: dict[str, Any]) -> bool:
    """Whether the error of a row is above its limit, or NaN."""
    return 'limit' in row and not row['error'] <= row['limit']


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def as_table(part: str, facts: dict[str, str], *rows: dict[str, Any]) -> str:
    """A Markdown table of the rows of a part."""
    lines = [f'## {part}: {", ".join(f"{key} {value}" for key, value in facts.items())}', '', '| | |', '|---|---|']
    for row in sorted(rows, key=lambda row: row['name']):
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
        with setup.row(task[1]):
            try:
                in_new_process(measure, setup, *task, max(1, os.cpu_count() // workers))
            except ChildProcessError:
                if not stopped:
                    raise

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
