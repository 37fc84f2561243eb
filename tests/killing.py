"""Runs a training script and kills it with SIGKILL at a chosen point (see test_kills.py).

    python -m tests.killing mbert                   # server: JSON requests on stdin, JSON replies on stdout
    torchrun ... -m tests.killing mbert '{"operation": ...}' --config ...    # one run, all processes are killed

Every run needs a fresh process, but importing a framework takes seconds. The server therefore imports the script and
forks for each run, which is safe as long as it has no threads.

To be killed in the middle of a save, a process counts its file operations in the run folder: `open` and the functions
of `os` that create, write, sync, rename or remove files are replaced by counting versions. These are just above the
system calls, so data buffered by Python or a framework is lost, as in any kill.
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

from lib.models import MODELS
from tests.processes import children

ROOT = Path(__file__).parents[1]
SECONDS_AT_MOST = 120  # timeout of a tiny run
# One thread and no GPU, for bit-equal results.
ENVIRONMENT = {
    'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1',
    'TF_NUM_INTRAOP_THREADS': '1', 'TF_NUM_INTEROP_THREADS': '1', 'TF_CPP_MIN_LOG_LEVEL': '2',
}  # fmt: skip

# Functions of os that change files -> positions of arguments that are paths or descriptors.
PATHS_OF = {
    'write': (0,), 'pwrite': (0,), 'writev': (0,), 'sendfile': (0,), 'copy_file_range': (1,), 'fsync': (0,),
    'fdatasync': (0,), 'truncate': (0,), 'ftruncate': (0,), 'mkdir': (0,), 'rmdir': (0,), 'unlink': (0,),
    'remove': (0,), 'replace': (0, 1), 'rename': (0, 1), 'link': (0, 1), 'symlink': (1,),
}  # fmt: skip


@dataclass(frozen=True)
class Stop:
    """When to send SIGKILL: after `seconds`, or before, in or after (`moment`) a file operation.

    seconds: since the start of the process, or since the first operation named `since`.
    operation: kill at its `occurrence`-th occurrence (from 1); None: any operation. 'in' a write: after half the bytes.
    signal: sent after `seconds` instead of SIGKILL; operations are counted from then on.
    """

    seconds: float | None = None
    since: str | None = None
    operation: str | None = None
    occurrence: int = 0
    moment: str = 'after'
    signal: int | None = None


class Shared:
    """State shared by a process and its killer.

    has_begun: readable once the `seconds` of the stop have begun. counts: whether operations are counted.
    """

    def __init__(self, stop: Stop | None) -> None:
        self.has_begun, self._begin = os.pipe()
        self._counts = mmap.mmap(-1, 1)  # shared memory
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
    """Counts the file operations of this process in a folder, and kills it at `stop`.

    Ignores TensorBoard's files, which are written by a thread at arbitrary times. done: name and time since the start,
    in seconds, of each operation. kill: kills this process and those that train with it.
    """

    def __init__(self, folder: Path, stop: Stop | None, kill: Callable[[], None], shared: Shared) -> None:
        self.folder, self.stop, self.kill, self.shared = folder.resolve(), stop, kill, shared
        self.done: list[tuple[str, float]] = []
        self.count = 0  # of operations that match `stop`
        self.begin = time.monotonic()

    def watch(self) -> None:
        """Replaces all functions with which Python changes files."""
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
        """Performs an operation and kills the process if `stop` matches. half: performs its first half."""
        inside = [inner for path in paths if (inner := self.inner_path(path)) is not None]
        if not inside:
            return perform()
        name = f'{name} {" -> ".join(inside)}'
        self.done.append((name, time.monotonic() - self.begin))
        if self.stop and name == self.stop.since:
            self.shared.begin()
        if not self._matches(name):
            return perform()
        if self.stop.moment == 'in' and half:
            half()
        elif self.stop.moment == 'after':
            with contextlib.suppress(OSError):  # e.g. removal of a missing file
                perform()
        return self.kill()

    def _matches(self, name: str) -> bool:
        if not self.stop or not self.stop.occurrence or self.stop.operation not in (None, name):
            return False
        if not self.shared.counts:
            return False
        self.count += 1
        return self.count == self.stop.occurrence

    def inner_path(self, path: Any) -> str | None:
        """Path relative to the folder; None if outside or TensorBoard's. path: a path or a file descriptor."""
        whole = Path(os.readlink(f'/proc/self/fd/{path}') if isinstance(path, int) else os.fsdecode(path)).absolute()
        if whole != self.folder and self.folder not in whole.parents:
            return None
        inner = whole.relative_to(self.folder)
        return None if inner.parts[:1] == ('logs',) else str(inner)


class WatchedFile(io.FileIO):
    """Raw file below Python's buffers that counts writes."""

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
    """`open` with a WatchedFile as the raw file if a file in the folder is opened for writing."""
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
    """Kills this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_all() -> None:
    """Kills torchrun and all processes that it has started, including this one."""
    parent = os.getppid()
    for process in (*(child for child in children(parent) if child != os.getpid()), parent, os.getpid()):
        os.kill(process, signal.SIGKILL)


def train(
    script: ModuleType, argv: list[str], stop: Stop | None, kill: Callable[[], None], shared: Shared
) -> tuple[int, FileOperations]:
    """Runs a training script: (exit code, file operations), unless it is killed."""
    from lib import cli

    args = cli.parse_args(script.__doc__, script.SCRIPT, argv)
    operations = FileOperations(Path(args.checkpoint), stop, kill, shared)
    operations.watch()
    return cli.run(script.train, args), operations


def train_in_child(script: ModuleType, argv: list[str], output: Path, stop: Stop | None, shared: Shared) -> None:
    """Trains and exits. Prints to `output`; writes the file operations next to it as .json."""
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
    """Trains in a forked process: {'code': exit code, 'signal': signal that killed it}."""
    assert len(os.listdir('/proc/self/task')) == 1, 'forking needs a process without threads'
    stop = Stop(**stop) if stop else None
    shared = Shared(stop)
    process = os.fork()
    if process == 0:
        train_in_child(script, argv, Path(output), stop, shared)
    end = os.pidfd_open(process)  # readable when the process ends

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
    """Bitwise differences between two run folders, and leftover or damaged files in the second."""
    one, other, read = Path(one), Path(other), MODELS[script.SCRIPT].training.checkpoint.read
    found = [f'{path.name} is left over' for path in other.glob('*.tmp')]
    try:
        for path in sorted(other.glob('*_epoch*')):  # previous versions too, which may be of other steps
            read(path)
        suffix = MODELS[script.SCRIPT].suffix
        for name in (f'latest_epoch{suffix}', f'best_epoch{suffix}'):
            a, b = (read(folder / name) for folder in (one, other))
            del a['config'], b['config']  # num_workers and save_every may differ
            found += [f'{name}: {place}' for place in different(a, b)]
    except (ValueError, OSError) as error:
        found.append(str(error))
    lines = [(folder / 'metrics.jsonl').read_text() for folder in (one, other)]
    return found + ['metrics.jsonl'] * (lines[0] != lines[1])


def different(one: Any, other: Any, at: str = '') -> list[str]:
    """Paths of the bitwise differences between two nested structures."""
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
    """Subprocess that runs `serve` for a script."""

    def __init__(self, kind: str) -> None:
        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
        command = [sys.executable, '-m', 'tests.killing', kind]
        self.process = subprocess.Popen(command, cwd=ROOT, env=os.environ | ENVIRONMENT, **pipes)

    def train(self, argv: list[str], output: Path, stop: Stop | None = None) -> dict[str, Any]:
        """See `fork`."""
        return self._request(argv=argv, output=str(output), stop=asdict(stop) if stop else None)

    def differences(self, one: Path, other: Path) -> list[str]:
        """See the function of this name."""
        return self._request(one=str(one), other=str(other))

    def _request(self, **request: Any) -> Any:
        print(json.dumps(request), file=self.process.stdin, flush=True)
        reply = self.process.stdout.readline()
        assert reply, 'the server has failed, see stderr'
        return json.loads(reply)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()  # ends the server
        self.process.wait()
        self.process.stdout.close()


def serve(script: ModuleType, replies: IO[str]) -> None:
    """Replies to requests on stdin until it is closed."""
    for line in sys.stdin:
        request = json.loads(line)
        reply = fork(script, **request) if 'argv' in request else differences(script, **request)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == '__main__':
    kind, *rest = sys.argv[1:]
    if rest:
        os.environ |= ENVIRONMENT
    else:
        replies = os.fdopen(os.dup(1), 'w')
        os.dup2(2, 1)  # other output goes to stderr
    script = importlib.import_module('lib.tools.pretrain' if kind == 'pretrain' else f'train_action_{kind}')
    if rest:
        stop, argv = Stop(**json.loads(rest[0])), rest[1:]
        sys.exit(train(script, argv, stop, kill_all, Shared(stop))[0])
    serve(script, replies)
