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
        for line in process.stdout:
            if line.startswith(beginning) and 'clips,' in line:
                process.send_signal(signal.SIGINT)
                break
        _, errors = process.communicate()
    return process.returncode, errors


def torchrun(count: int, script: str | Path, *argv: str | Path) -> list[str]:
    """Command that trains with `count` processes."""
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={count}']
    return [*launcher, *map(str, (script, *argv))]
