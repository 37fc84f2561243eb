"""The SLURM scripts, with substitutes for the SLURM commands that they call."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.processes import wait_for_line

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / 'configs' / 'cluster'
SRUN = """#!/bin/bash
# Starts the command for every node of the job.
while [[ $1 == --* ]]; do shift; done
for ((node = 0; node < SLURM_NNODES; node++)); do
    SLURM_NODEID=$node SLURM_PROCID=$node "$@" &
    children+=($!)
done
for signal in TERM USR1; do trap "kill -$signal ${children[*]}" $signal; done
for child in "${children[@]}"; do
    wait "$child"
    while kill -0 "$child" 2>/dev/null; do wait "$child"; done # a signal ends a wait
    wait "$child" || code=$?
done
exit $code
"""
SCONTROL = """#!/bin/bash
case "$1 $2" in
    'show hostnames') for ((node = 0; node < SLURM_NNODES; node++)); do echo localhost; done ;;
    requeue*) echo "requeued $2" ;;
esac
"""


@pytest.fixture
def slurm(tmp_path):
    """slurm(script, nodes, gpus, arguments, kind of model) -> the started job."""
    commands = tmp_path / 'bin'
    commands.mkdir()
    for name, content in (('srun', SRUN), ('scontrol', SCONTROL), ('activate', '')):
        (commands / name).write_text(content)
        (commands / name).chmod(0o755)

    def start(script: str, nodes: int, gpus: int, arguments: str = '', kind: str = 'vanilla') -> subprocess.Popen:
        config = tiny.write_config(kind, tmp_path)
        with socket.socket() as unused:
            unused.bind(('', 0))
            job = unused.getsockname()[1]
        environment = {
            **os.environ,
            'PATH': f'{commands}:{Path(sys.executable).parent}:{os.environ["PATH"]}',
            'VENV': str(tmp_path),
            'COMMAND': f'train_action_{kind}.py --config {config} -c {tmp_path}/run -freq 1 {arguments}',
            'SLURM_JOB_ID': str(job),
            'SLURM_NNODES': str(nodes),
            'SLURM_GPUS_ON_NODE': str(gpus),
            'SLURM_JOB_NODELIST': 'node[0-1]',
            'PYTHONUNBUFFERED': '1',
        }
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
        return subprocess.Popen(['bash', CLUSTER / script], cwd=ROOT, env=environment, start_new_session=True, **pipes)

    return start


@pytest.mark.parametrize(
    ('script', 'nodes', 'gpus'),
    [('one_node.sbatch', 1, 2), pytest.param('many_nodes.sbatch', 2, 1, marks=pytest.mark.slow)],
)
def test_a_job_trains_on_all_its_processes(slurm, script, nodes, gpus):
    output, _ = slurm(script, nodes, gpus).communicate(timeout=120)
    assert 'on 2 x cpu' in output
    assert output.count('done: best top1') == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ('script', 'nodes', 'gpus', 'kind'),
    [('one_node.sbatch', 1, 2, 'vanilla'), ('many_nodes.sbatch', 2, 1, 'vanilla'), ('one_node.sbatch', 1, 1, 'vivit')],
)
def test_a_job_near_its_time_limit_saves_and_is_requeued(slurm, tmp_path, script, nodes, gpus, kind):
    job = slurm(script, nodes, gpus, '--set train.epochs=10000', kind)
    wait_for_line(job, 'epoch 2/')
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=120)
    latest = tmp_path / 'run' / f'latest_epoch.{"npz" if kind == "vivit" else "bin"}'
    assert f'The same command resumes from {latest}' in output
    assert output.count('requeued') == 1
    saved = tiny.latest(tmp_path / 'run')
    assert (saved['epoch'], saved['step']) > (1, 0)


@pytest.mark.slow
def test_a_finished_or_failed_job_is_not_requeued(slurm):
    for arguments, code in (('--set train.epochs=1', 0), ('--set model.depth=none', 1)):
        job = slurm('one_node.sbatch', 1, 1, arguments)
        output, _ = job.communicate(timeout=120)
        assert job.returncode == code, output
        assert 'requeued' not in output
