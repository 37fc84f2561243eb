"""Trains with one of the scripts, and is stopped by SIGKILL at a moment that test_kills.py chooses.

    python -m tests.killing mbert                   # serves: a line of JSON on stdin asks, a line on stdout answers
    torchrun ... -m tests.killing mbert '{"operation": ...}' --config ...    # one training: all its processes die

Every training has to be a process that has trained nothing before, but importing a framework takes seconds. So the
server imports the script, computes nothing, and forks: a process without threads may be forked as often as one likes.

A kill from outside comes at some time. To be killed in the midst of a save, a process counts its own file operations in
its folder: whatever makes, fills, syncs, moves or removes a file there goes through `open` and functions of `os`, which
it replaces by ones that count. They stand right above the calls of the system, so that what Python or a framework
buffers is lost as in any kill.
"""

import builtins
import contextlib
import importlib
import io
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Self

import numpy as np

ROOT = Path(__file__).parents[1]
SECONDS_AT_MOST = 120  # of a tiny training: more is one that hangs
# One thread each and no GPU, where sums have an order of their own: what differs then is not what is tested here.
ENVIRONMENT = {
    'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1',
    'TF_NUM_INTRAOP_THREADS': '1', 'TF_NUM_INTEROP_THREADS': '1', 'TF_CPP_MIN_LOG_LEVEL': '2',
}  # fmt: skip

# Functions of os that change files -> which of their arguments are paths, or descriptors.
PATHS_OF = {
    'write': (0,), 'pwrite': (0,), 'writev': (0,), 'sendfile': (0,), 'copy_file_range': (1,), 'fsync': (0,),
    'fdatasync': (0,), 'truncate': (0,), 'ftruncate': (0,), 'mkdir': (0,), 'rmdir': (0,), 'unlink': (0,),
    'remove': (0,), 'replace': (0, 1), 'rename': (0, 1), 'link': (0, 1), 'symlink': (1,),
}  # fmt: skip


@dataclass(frozen=True)
class Stop:
    """When SIGKILL comes: after some `seconds`, or before, in or after (`moment`) a file operation.

    seconds: from the start of the process on, or from the first operation of the name `since`.
    operation: its name, of which the `occurrence`-th (from 1) counts; None for any name. In a write: half of its bytes
    are written.
    signal: what comes after those seconds instead; the operations are counted from there on.
    """

    seconds: float | None = None
    since: str | None = None
    operation: str | None = None
    occurrence: int = 0
    moment: str = 'after'
    signal: int | None = None


class Shared:
    """What a process and the one that kills it tell each other.

    has_begun: becomes readable when the seconds of the stop begin. counts: whether its operations are counted yet.
    """

    def __init__(self, stop: Stop | None) -> None:
        self.has_begun, self._begin = os.pipe()
        self._counts = mmap.mmap(-1, 1)  # seen by both
        if not stop or not stop.signal:
            self.count()
        if not stop or not stop.since:
            self.begin()

    def begin(self) -> None:
        os.write(self._begin, b'.')

    def count(self) -> None:
        self._counts[0] = 1

    @property
    def counts(self) -> bool:
        return bool(self._counts[0])

    def close(self) -> None:
        os.close(self.has_begun)
        os.close(self._begin)


class FileOperations:
    """Counts what this process does to the files of a folder, and kills it where `stop` says.

    TensorBoard's files are left out, for its thread writes whenever it likes.
    done: name and time since the start, in seconds, of each operation. kill: how this process, and those that train
    with it, are killed.
    """

    def __init__(self, folder: Path, stop: Stop | None, kill: Callable[[], None], shared: Shared) -> None:
        self.folder, self.stop, self.kill, self.shared = folder.resolve(), stop, kill, shared
        self.done: list[tuple[str, float]] = []
        self.count = 0  # of those that are the stop's
        self.begin = time.monotonic()

    def watch(self) -> None:
        """Replaces the functions by which Python changes files."""
        for name, places in PATHS_OF.items():
            setattr(os, name, self._watched(name, getattr(os, name), places))
        real_open = os.open

        def open_descriptor(path: Any, flags: int, *more: Any, **options: Any) -> int:
            perform = partial(real_open, path, flags, *more, **options)
            return self.perform('open', (path,), perform) if flags & (os.O_WRONLY | os.O_RDWR) else perform()

        os.open = open_descriptor
        io.open = builtins.open = partial(open_file, self, io.open)

    def _watched(self, name: str, function: Callable, places: tuple[int, ...]) -> Callable:
        def watched(*arguments: Any, **options: Any) -> Any:
            half = None
            if name == 'write':
                half = partial(function, arguments[0], first_half(arguments[1]))
            paths = [arguments[place] for place in places]
            return self.perform(name, paths, partial(function, *arguments, **options), half)

        return watched

    def perform(
        self, name: str, paths: Iterable[Any], perform: Callable[[], Any], half: Callable[[], Any] | None = None
    ) -> Any:
        """Performs an operation, and kills the process beside it where it is the one; half: the first half of it."""
        inside = [inner for path in paths if (inner := self.inner_path(path)) is not None]
        if not inside:
            return perform()
        name = f'{name} {" -> ".join(inside)}'
        self.done.append((name, time.monotonic() - self.begin))
        if self.stop and name == self.stop.since:
            self.shared.begin()
        if not self._is_the_one(name):
            return perform()
        if self.stop.moment == 'in' and half:
            half()
        elif self.stop.moment == 'after':
            with contextlib.suppress(OSError):  # as of a file to remove that is not there
                perform()
        return self.kill()

    def _is_the_one(self, name: str) -> bool:
        if not self.stop or not self.stop.occurrence or self.stop.operation not in (None, name):
            return False
        if not self.shared.counts:
            return False
        self.count += 1
        return self.count == self.stop.occurrence

    def inner_path(self, path: Any) -> str | None:
        """The path within the folder; None for one outside, and for TensorBoard's. path: a file descriptor too."""
        whole = Path(os.readlink(f'/proc/self/fd/{path}') if isinstance(path, int) else os.fsdecode(path)).absolute()
        if whole != self.folder and self.folder not in whole.parents:
            return None
        inner = whole.relative_to(self.folder)
        return None if inner.parts[:1] == ('logs',) else str(inner)


class WatchedFile(io.FileIO):
    """A file whose writing is counted: what Python's buffers write into."""

    operations: FileOperations

    def write(self, data: Any) -> int:
        write = super().write
        return self.operations.perform(
            'write', (self.fileno(),), partial(write, data), partial(write, first_half(data))
        )

    def truncate(self, size: int | None = None) -> int:
        return self.operations.perform('truncate', (self.fileno(),), partial(super().truncate, size))


def open_file(
    operations: FileOperations,
    real_open: Callable,
    file: Any,
    mode: str = 'r',
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Callable | None = None,
) -> IO:
    """What `open` does, with a WatchedFile below where a file of the folder is opened for writing."""
    reads_only = not set(mode) & set('wax+')
    if reads_only or operations.inner_path(file) is None:
        return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
    make = partial(WatchedFile, file, mode.replace('b', '').replace('t', ''), closefd, opener)
    raw = make() if isinstance(file, int) else operations.perform('open', (file,), make)
    raw.operations = operations
    if buffering == 0:
        return raw
    buffered = io.BufferedRandom(raw) if '+' in mode else io.BufferedWriter(raw)
    if 'b' in mode:
        return buffered
    return io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)


def first_half(data: Any) -> bytes:
    data = bytes(data)
    return data[: len(data) // 2]


def kill_this() -> None:
    """Ends this process, all threads of it, at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_all() -> None:
    """Ends, at once, the processes that torchrun has started, this one among them, and torchrun."""
    parent = os.getppid()
    children = map(int, Path(f'/proc/{parent}/task/{parent}/children').read_text().split())
    for process in (*(child for child in children if child != os.getpid()), parent, os.getpid()):
        os.kill(process, signal.SIGKILL)


def train(
    script: ModuleType, argv: list[str], stop: Stop | None, kill: Callable[[], None], shared: Shared
) -> tuple[int, FileOperations]:
    """Runs a script as its command does: (exit code, what it has done to files), unless it is killed."""
    from lib import cli

    args = cli.parse_args(script.__doc__, script.SCRIPT, argv)
    operations = FileOperations(Path(args.checkpoint), stop, kill, shared)
    operations.watch()
    return cli.run(script.train, args), operations


def train_in_child(script: ModuleType, argv: list[str], output: Path, stop: Stop | None, shared: Shared) -> None:
    """Trains and ends the process. What it prints goes to `output`, what it did to files in the end to .json there."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        code, operations = train(script, argv, stop, kill_this, shared)
        output.with_suffix('.json').write_text(json.dumps(operations.done))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def fork(script: ModuleType, argv: list[str], output: str, stop: dict | None) -> dict[str, Any]:
    """Trains in a forked process: {'code': its exit code, 'signal': the number of the one that ended it}."""
    assert len(os.listdir('/proc/self/task')) == 1, 'only a process without threads may be forked'
    stop = Stop(**stop) if stop else None
    shared = Shared(stop)
    process = os.fork()
    if process == 0:
        train_in_child(script, argv, Path(output), stop, shared)
    end = os.pidfd_open(process)  # becomes readable then

    if stop and stop.seconds is not None:
        select.select([shared.has_begun, end], [], [], SECONDS_AT_MOST)
        if not select.select([end], [], [], stop.seconds)[0]:
            if stop.signal:
                shared.count()
            os.kill(process, stop.signal or signal.SIGKILL)
    hangs = not select.select([end], [], [], SECONDS_AT_MOST)[0]
    if hangs:
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    os.close(end)
    shared.close()
    code = os.waitstatus_to_exitcode(status)
    if hangs:
        return {'code': 'hangs', 'signal': None}
    return {'code': code, 'signal': None} if code >= 0 else {'code': None, 'signal': -code}


def differences(script: ModuleType, one: str, other: str) -> list[str]:
    """In what the runs of two folders differ, to the bit; and what the other one has of files that are not sound."""
    one, other = Path(one), Path(other)
    found = [f'{path.name} is left over' for path in other.glob('*.tmp')]
    try:
        for path in sorted(other.glob('*_epoch*')):  # older ones too, which may be of other steps
            script.checkpoint.read(path)
        suffix = script.checkpoint.Run.SUFFIX
        for name in (f'latest_epoch{suffix}', f'best_epoch{suffix}'):
            a, b = (script.checkpoint.read(folder / name) for folder in (one, other))
            del a['config'], b['config']  # which have the num_workers and save_every of the last process
            found += [f'{name}: {place}' for place in different(a, b)]
    except (ValueError, OSError) as error:
        found.append(str(error))
    lines = [(folder / 'metrics.jsonl').read_text() for folder in (one, other)]
    return found + ['metrics.jsonl'] * (lines[0] != lines[1])


def different(one: Any, other: Any, at: str = '') -> list[str]:
    """The places at which two contents differ, to the bit."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [place for key in one for place in different(one[key], other[key], f'{at}/{key}')]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [place for i in range(len(one)) for place in different(one[i], other[i], f'{at}/{i}')]
    if hasattr(one, 'shape') and hasattr(other, 'shape'):
        one, other = np.asarray(one), np.asarray(other)
        same = one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    else:
        same = type(one) is type(other) and repr(one) == repr(other)
    return [] if same else [at]


class Server:
    """A process of this module that has imported a script and trains with it when asked."""

    def __init__(self, kind: str) -> None:
        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
        command = [sys.executable, '-m', 'tests.killing', kind]
        self.process = subprocess.Popen(command, cwd=ROOT, env=os.environ | ENVIRONMENT, **pipes)

    def train(self, argv: list[str], output: Path, stop: Stop | None = None) -> dict[str, Any]:
        """See `fork`."""
        return self._ask(argv=argv, output=str(output), stop=asdict(stop) if stop else None)

    def differences(self, one: Path, other: Path) -> list[str]:
        """See the function of this name."""
        return self._ask(one=str(one), other=str(other))

    def _ask(self, **question: Any) -> Any:
        print(json.dumps(question), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, 'the server has failed, see stderr'
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()  # which ends it
        self.process.wait()
        self.process.stdout.close()


def serve(script: ModuleType, answers: IO[str]) -> None:
    """Answers a Server's questions until there are no more."""
    for line in sys.stdin:
        question = json.loads(line)
        answer = fork(script, **question) if 'argv' in question else differences(script, **question)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
    kind, *rest = sys.argv[1:]
    if rest:
        os.environ |= ENVIRONMENT
    else:
        answers = os.fdopen(os.dup(1), 'w')
        os.dup2(2, 1)  # what a framework prints is no answer
    script = importlib.import_module(f'train_action_{kind}')
    if rest:
        stop, argv = Stop(**json.loads(rest[0])), rest[1:]
        sys.exit(train(script, argv, stop, kill_all, Shared(stop))[0])
    serve(script, answers)
