"""A run that is killed at any point and resumed by the same command ends bit-identical to an uninterrupted run.

    KILL_POINTS=60 python -m pytest tests/test_kills.py -s      # points per script; prints a table

killing.py kills the processes.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import yaml

from lib.models import MODELS
from lib.stop import SIGNALS, STOPPED
from tests import tiny
from tests.killing import ENVIRONMENT, ROOT, Server, Stop
from tests.processes import torchrun

NUM_POINTS = int(os.environ.get('KILL_POINTS', '20'))  # per script; the quick tests use 5 for one script
TRIES = 5  # if a run ends before it is killed
SAVE_EVERY = (None, 1, 2)
NUM_WORKERS = (1, 2, 3)
Kill = tuple[int | None, tuple[Stop, ...]]  # train.save_every of the first process, and the stops (see Point)
METRICS = 'replace metrics.jsonl.tmp -> metrics.jsonl'  # at the start and after each epoch


@dataclass(frozen=True)
class Straight:
    """Uninterrupted run. operations: its file operations, in order; seconds: their times since the start."""

    operations: list[str]
    seconds: list[float]

    def stop_at(self, index: int, moment: str) -> Stop:
        """The stop at operation `index`."""
        name = self.operations[index]
        return Stop(operation=name, occurrence=self.operations[: index + 1].count(name), moment=moment)

    @property
    def first_save(self) -> int:
        """Index of the operation that first creates the latest checkpoint."""
        return next(i for i, name in enumerate(self.operations) if is_replaced(name, 'latest'))

    @property
    def operations_of_a_save(self) -> int:
        """Number of operations to save the latest checkpoint."""
        temporary = self.operations[self.first_save].split()[1]
        return self.first_save + 1 - self.operations.index(f'open {temporary}')

    @property
    def seconds_after_first_save(self) -> float:
        """Duration after the first save. Before it, most time is spent on tracing TensorFlow graphs."""
        return self.seconds[-1] - self.seconds[self.first_save]


@dataclass(frozen=True)
class Point:
    """Kill point of a run. stops: of its first process and, if killed twice, of the second one.

    options: (train.save_every, train.num_workers) of each process, including a last one that is not killed.
    """

    kind: str
    stops: tuple[Stop, ...]
    options: tuple[tuple[int | None, int], ...]


@dataclass(frozen=True)
class Outcome:
    """Result of a kill point. killed: whether all stops were reached. wrong: faults found."""

    point: Point
    killed: bool
    wrong: list[str]


def write_config(kind: str, folder: Path) -> Path:
    """Config of a tiny model: three epochs of three steps, with a short last batch."""
    content = tiny.content(kind, folder)
    if kind != 'pretrain':
        content['model'] |= {'drop_path_rate': 0.2} | ({} if kind == 'vivit' else {'depth': 2})  # of the second block
    content['train'] |= {'epochs': 3}
    path = folder / 'tiny.yaml'
    path.write_text(yaml.safe_dump(content))
    return path


def arguments(config: Path, folder: Path, save_every: int | None = None, num_workers: int = 1) -> list[str]:
    """Arguments of a training script."""
    options = [f'train.num_workers={num_workers}']
    if save_every:
        options.append(f'train.save_every={save_every}')
    return ['--config', str(config), '-c', str(folder), *tiny.overrides(*options)]


def run_straight(server: Server, config: Path, whole: Path, save_every: int | None) -> Straight:
    """Records an uninterrupted run and checks that it equals the one in the folder `whole`."""
    folder = whole.with_name(f'straight_{save_every}')
    output = folder.with_suffix('.txt')
    result = server.train(arguments(config, folder, save_every), output)
    assert result['code'] == 0, output.read_text()
    assert server.differences(whole, folder) == []
    operations, seconds = zip(*json.loads(output.with_suffix('.json').read_text()), strict=True)
    assert_nothing_escapes(folder, operations)
    return Straight(list(operations), list(seconds))


def assert_nothing_escapes(folder: Path, operations: Sequence[str]) -> None:
    """Asserts that every file of a run was created by counted operations."""
    known = set()
    for verb, *paths in (re.split(' -> | ', operation) for operation in operations):
        if verb == 'open':
            known.add(paths[0])
        elif len(paths) == 2:
            assert paths[0] in known
            known.add(paths[1])
    assert {path.name for path in folder.iterdir() if path.is_file()} <= known


def spread(items: Sequence, count: int) -> list:
    """Selects `count` evenly spaced items."""
    return [items[i * len(items) // count] for i in range(count)]


class Points:
    """Generates random kill points of each kind, spread over a run."""

    def __init__(self, straight: dict[int | None, Straight], seed: str) -> None:
        self.straight, self.random = straight, random.Random(seed)

    def make(self, count: int) -> list[Point]:
        """About `count` points of all kinds, at least one of each."""
        shares = {
            self.file_operation: 0.5,
            self.random_time: 0.2,
            self.twice: 0.1,
            self.epoch_boundary: 0.1,
            self.signal_then_kill: 0.1,
        }
        return [
            Point(make.__name__.replace('_', ' '), stops, self.options(save_every, len(stops)))
            for make, share in shares.items()
            for save_every, stops in make(max(1, round(count * share)))
        ]

    def options(self, save_every: int | None, num_stops: int) -> tuple[tuple[int | None, int], ...]:
        """Options of the processes of a point; each differs from the previous one."""
        options = [(save_every, self.random.choice(NUM_WORKERS))]
        for _ in range(num_stops):
            last_save_every, last_num_workers = options[-1]
            save_every = self.random.choice([every for every in SAVE_EVERY if every != last_save_every])
            options.append((save_every, self.random.choice([n for n in NUM_WORKERS if n != last_num_workers])))
        return tuple(options)

    def file_operation(self, count: int) -> list[Kill]:
        """At a random occurrence of each different operation."""
        places = [(every, i) for every, run in self.straight.items() for i in range(len(run.operations))]
        names = list(dict.fromkeys(self.straight[every].operations[i] for every, i in places))
        points = []
        for name in spread(names, count):
            every, i = self.random.choice([(e, i) for e, i in places if self.straight[e].operations[i] == name])
            moments = ['before', 'after'] + ['in'] * 2 * name.startswith('write')
            points.append((every, (self.straight[every].stop_at(i, self.random.choice(moments)),)))
        return points

    def random_time(self, count: int) -> list[Kill]:
        """After a random time, mostly after the first save."""
        points = []
        for i in range(count):
            if i % 4 == 3:
                every = self.random.choice(SAVE_EVERY)
                run = self.straight[every]
                points.append((every, (Stop(seconds=self.random.uniform(0, run.seconds[run.first_save])),)))
            else:
                points.append(self.after_first_save(i / count, (i + 1) / count))
        return points

    def after_first_save(self, begin: float, end: float) -> Kill:
        """Between two fractions of the time that remains after the first save."""
        every = self.random.choice(SAVE_EVERY)
        run = self.straight[every]
        seconds = self.random.uniform(begin, end) * run.seconds_after_first_save
        return every, (Stop(seconds=seconds, since=run.operations[run.first_save]),)

    def twice(self, count: int) -> list[Kill]:
        """Killed again at the first save after resuming, in the same epoch."""
        points = []
        for i in range(count):
            every, (first,) = self.after_first_save(0.7 * i / count, 0.7 * (i + 1) / count)
            run = self.straight[every]
            points.append((every, (first, run.stop_at(run.first_save, self.random.choice(['before', 'after'])))))
        return points

    def epoch_boundary(self, count: int) -> list[Kill]:
        """Around the replacement of the latest and the best checkpoint and of the metrics."""
        places = [
            (every, i, moment)
            for every, run in self.straight.items()
            for i, name in enumerate(run.operations)
            for moment in ('before', 'after')
            if name == METRICS or is_replaced(name, 'latest') or is_replaced(name, 'best')
        ]
        chosen = spread(self.random.sample(places, len(places)), count)
        return [(every, (self.straight[every].stop_at(i, moment),)) for every, i, moment in chosen]

    def signal_then_kill(self, count: int) -> list[Kill]:
        """Stopped by a signal, and killed while saving."""
        points = []
        for i in range(count):
            every, (first,) = self.after_first_save(0.8 * i / count, 0.8 * (i + 1) / count)
            stop = replace(
                first,
                signal=self.random.choice(SIGNALS),
                occurrence=self.random.randint(1, self.straight[every].operations_of_a_save),
                moment=self.random.choice(['before', 'in', 'after']),
            )
            points.append((every, (stop,)))
        return points


def is_replaced(operation: str, name: str) -> bool:
    """Whether an operation replaces the checkpoint 'latest' or 'best'."""
    return re.fullmatch(rf'replace ({name}_epoch\.\w+)\.tmp -> \1', operation) is not None


def try_point(server: Server, point: Point, config: Path, whole: Path, folder: Path) -> Outcome:
    """Kills a run in `folder`, resumes it to the end, and compares it with the run in the folder `whole`.

    If the run ends before it is killed, tries again in another folder at another time.
    """
    for i in range(TRIES):
        outcome, stopped = try_once(server, point, config, whole, folder.with_name(f'{folder.name}_{i}'))
        if outcome.killed or outcome.wrong:
            break
        point = replace(point, stops=tuple(another(stop, stopped) for stop in point.stops))
    return outcome


def another(stop: Stop, stopped: bool) -> Stop:
    """Stop for the next try. stopped: whether the run was stopped by the signal before it was killed."""
    if stopped:
        return replace(stop, occurrence=(stop.occurrence + 1) // 2)
    return stop if stop.seconds is None else replace(stop, seconds=0.6 * stop.seconds)


def try_once(server: Server, point: Point, config: Path, whole: Path, folder: Path) -> tuple[Outcome, bool]:
    """See `try_point`. Runs all processes even if one was not killed. Returns the outcome and whether one stopped."""
    killed, stopped, wrong = True, False, []
    for i, (stop, options) in enumerate(zip((*point.stops, None), point.options, strict=True)):
        output = folder.with_name(f'{folder.name}_{i}.txt')
        result = server.train(arguments(config, folder, *options), output, stop)
        is_stopped = stop is not None and stop.signal is not None and result['code'] == STOPPED
        stopped |= is_stopped
        if result['signal'] != signal.SIGKILL or not stop:
            killed &= not stop
            if result['code'] != 0 and not is_stopped:
                wrong.append(f'process {i + 1} ended with {result}: {output.read_text()[-2000:]}')
        if 'Traceback' in output.read_text():
            wrong.append(f'process {i + 1} printed a traceback: {output.read_text()[-2000:]}')
    return Outcome(point, killed, wrong or server.differences(whole, folder)), stopped


def table(kind: str, outcomes: Sequence[Outcome]) -> str:
    """Formats the results by kind of point, one per line."""
    lines = [f'{kind:<10}{"":<20}{"points":>8}{"killed":>8}{"correct":>10}']
    for name in (*dict.fromkeys(outcome.point.kind for outcome in outcomes), 'all'):
        of_kind = [outcome for outcome in outcomes if name in (outcome.point.kind, 'all')]
        correct = sum(not outcome.wrong for outcome in of_kind)
        killed = sum(outcome.killed for outcome in of_kind)
        lines.append(f'{"":<10}{name:<20}{len(of_kind):>8}{killed:>8}{correct:>10}')
    return '\n'.join(lines)


@pytest.mark.parametrize(
    ('kind', 'num_points'),
    [('vanilla', 5), *(pytest.param(kind, NUM_POINTS, marks=pytest.mark.slow) for kind in tiny.PROGRAMS)],
)
def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path, kind, num_points):
    config, whole = write_config(kind, tmp_path), tmp_path / 'whole'
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(kind)) for _ in range(2)]
        # The script as users start it, to check that forked runs are the same.
        command = [sys.executable, *MODELS[kind].program.removeprefix('python ').split(), *arguments(config, whole)]
        subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, check=True)
        straight = {every: run_straight(servers[0], config, whole, every) for every in SAVE_EVERY}
        points = Points(straight, kind).make(num_points)

        def try_share(share: int) -> list[Outcome]:
            return [
                try_point(servers[share], points[i], config, whole, tmp_path / f'point_{i}')
                for i in range(share, len(points), len(servers))
            ]

        with ThreadPoolExecutor(len(servers)) as pool:
            outcomes = [outcome for share in pool.map(try_share, range(len(servers))) for outcome in share]
    print(f'\n{table(kind, outcomes)}')
    names = {name for run in straight.values() for name in run.operations}
    hit = {stop.operation for outcome in outcomes if outcome.killed for stop in outcome.point.stops} & names
    print(f'{"":<10}killed at {len(hit)} of {len(names)} different file operations')
    wrong = [outcome for outcome in outcomes if outcome.wrong]
    assert not wrong, '\n'.join(map(str, wrong))
    assert sum(outcome.killed for outcome in outcomes) >= 0.9 * len(outcomes)


@pytest.mark.slow
def test_two_killed_processes_end_as_uninterrupted_ones(tmp_path):
    """Killed three times in one run, at ends of epochs, because starting two processes is slow."""
    kind, config, whole, folder = 'vanilla', write_config('vanilla', tmp_path), tmp_path / 'whole', tmp_path / 'run'
    options = {'cwd': ROOT, 'env': os.environ | ENVIRONMENT, 'capture_output': True, 'text': True}
    subprocess.run(torchrun(2, f'train_action_{kind}.py', *arguments(config, whole)), **options, check=True)
    latest = 'replace latest_epoch.bin.tmp -> latest_epoch.bin'
    for save_every, num_workers, stop in (
        (None, 1, Stop(operation=latest, occurrence=1, moment='after')),  # end of epoch 1
        (2, 2, Stop(operation=latest, occurrence=2, moment='before')),  # end of epoch 2, saved after its second step
        (1, 3, Stop(operation=METRICS, occurrence=2, moment='before')),  # end of epoch 2, saved
    ):
        argv = arguments(config, folder, save_every, num_workers)
        killed = torchrun(2, '-m', 'tests.killing', kind, json.dumps(asdict(stop)), *argv)
        ended = subprocess.run(killed, **options)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    subprocess.run(torchrun(2, f'train_action_{kind}.py', *arguments(config, folder)), **options, check=True)
    with Server(kind) as server:
        assert server.differences(whole, folder) == []
