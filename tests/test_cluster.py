"""The SLURM scripts, with stand-ins for the few commands of SLURM that they call; tiny models on made-up clips."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

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
            'SLURM_JOB_NODELIST': 'made-up',
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
    told, _ = slurm(script, nodes, gpus).communicate(timeout=120)
    assert 'on 2 x cpu' in told
    assert told.count('done: best top1') == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ('script', 'nodes', 'gpus', 'kind'),
    [('one_node.sbatch', 1, 2, 'vanilla'), ('many_nodes.sbatch', 2, 1, 'vanilla'), ('one_node.sbatch', 1, 1, 'vivit')],
)
def test_a_job_whose_time_is_nearly_over_saves_and_queues_again(slurm, tmp_path, script, nodes, gpus, kind):
    job = slurm(script, nodes, gpus, '--set train.epochs=10000', kind)
    for line in job.stdout:
        if line.startswith('epoch 2/'):
            break
    job.send_signal(signal.SIGUSR1)
    told, _ = job.communicate(timeout=120)
    latest = tmp_path / 'run' / f'latest_epoch.{"npz" if kind == "vivit" else "bin"}'
    assert f'The same command resumes from {latest}' in told
    assert told.count('requeued') == 1
    saved = tiny.latest(tmp_path / 'run')
    assert (saved['epoch'], saved['step']) > (1, 0)


@pytest.mark.slow
def test_a_job_that_is_done_or_fails_does_not_queue_again(slurm):
    for arguments, code in (('--set train.epochs=1', 0), ('--set model.depth=none', 1)):
        job = slurm('one_node.sbatch', 1, 1, arguments)
        told, _ = job.communicate(timeout=120)
        assert job.returncode == code, told
        assert 'requeued' not in told
