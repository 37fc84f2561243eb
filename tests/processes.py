"""Training scripts as subprocesses."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def interrupt(command: Sequence[str | Path], beginning: str) -> tuple[int, str]:
    """Runs a training script and sends SIGINT at the first progress line that starts with `beginning`.

    Returns (exit code, stderr).
    """
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    # Background jobs of a shell ignore SIGINT, and so would their children.
    with subprocess.Popen(command, **pipes, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:
        wait_for_line(process, beginning, 'clips,')
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    return process.returncode, errors


def wait_for_line(process: subprocess.Popen, beginning: str, part: str = '') -> None:
    """Reads the output of a process up to the first line that starts with `beginning` and contains `part`."""
    next(line for line in process.stdout if line.startswith(beginning) and part in line)


def children(parent: int) -> list[int]:
    """Ids of the processes that a process has started."""
    return [int(child) for child in Path(f'/proc/{parent}/task/{parent}/children').read_text().split()]


def torchrun(count: int, script: str | Path, *argv: str | Path) -> list[str]:
    """Command that trains with `count` processes."""
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={count}']
    return [*launcher, *map(str, (script, *argv))]
