"""Scripts as processes of their own."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def interrupt(command: Sequence[str | Path], beginning: str) -> tuple[int, str]:
    """Runs a training and sends it Ctrl-C at the first progress line with this beginning: (exit code, stderr)."""
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    # A shell's background job ignores SIGINT, and so would its children.
    with subprocess.Popen(command, **pipes, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:
        for line in process.stdout:
            if line.startswith(beginning) and 'clips,' in line:
                process.send_signal(signal.SIGINT)
                break
        _, told = process.communicate()
    return process.returncode, told


def torchrun(count: int, script: str | Path, *argv: str | Path) -> list[str]:
    """The command by which `count` processes train together."""
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={count}']
    return [*launcher, *map(str, (script, *argv))]
