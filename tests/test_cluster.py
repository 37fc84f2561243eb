"""The SLURM scripts, with stand-ins for the few commands of SLURM that they call; tiny models on made-up clips."""

import itertools
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.annotations import make_annotations

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / 'configs' / 'cluster'
SRUN = """#!/bin/bash
# Starts the command for every node of the job.
while [[ $1 == --* ]]; do shift; done
for ((node = 0; node < SLURM_NNODES; node++)); do
    SLURM_NODEID=$node SLURM_PROCID=$node "$@" &
    children+=($!)
done
trap 'kill "${children[@]}"' TERM
for child in "${children[@]}"; do wait "$child" || exit 1; done
"""
SCONTROL = """#!/bin/bash
case "$1 $2" in
    'show hostnames') for ((node = 0; node < SLURM_NNODES; node++)); do echo localhost; done ;;
    requeue*) echo "requeued $2" ;;
esac
"""


@pytest.fixture
def slurm(tmp_path):
    """slurm(script, nodes, gpus, *arguments of the vanilla script) -> the started job."""
    commands = tmp_path / 'bin'
    commands.mkdir()
    for name, content in (('srun', SRUN), ('scontrol', SCONTROL), ('activate', '')):
        (commands / name).write_text(content)
        (commands / name).chmod(0o755)
    (tmp_path / 'made_up.pkl').write_bytes(pickle.dumps(make_annotations([12, 20] * 9)))
    config = {
        'data': {'ann_file': f'{tmp_path}/made_up.pkl', 'benchmark': 'xsub', 'clip_len': 8, 'batch_size': 4, 'seed': 0},
        'heatmap': {'size': 12},
        'model': {'num_frames': 8, 'dim_in': 144, 'dim_feat': 16, 'depth': 1, 'num_heads': 2, 'num_classes': 4},
        'optimizer': {'lr_backbone': 1e-3, 'lr_head': 1e-3, 'weight_decay': 0.01},
        'train': {'epochs': 1},
    }  # fmt: skip
    (tmp_path / 'tiny.yaml').write_text(yaml.safe_dump(config))

    def start(script: str, nodes: int, gpus: int, arguments: str = '') -> subprocess.Popen:
        with socket.socket() as unused:
            unused.bind(('', 0))
            job = unused.getsockname()[1]
        environment = {
            **os.environ,
            'PATH': f'{commands}:{Path(sys.executable).parent}:{os.environ["PATH"]}',
            'VENV': str(tmp_path),
            'COMMAND': f'train_action_vanilla.py --config {tmp_path}/tiny.yaml -c {tmp_path}/run -freq 1 {arguments}',
            'SLURM_JOB_ID': str(job),
            'SLURM_NNODES': str(nodes),
            'SLURM_GPUS_ON_NODE': str(gpus),
            'SLURM_JOB_NODELIST': 'made-up',
            'PYTHONUNBUFFERED': '1',
        }
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
        return subprocess.Popen(['bash', CLUSTER / script], cwd=ROOT, env=environment, start_new_session=True, **pipes)

    return start


@pytest.mark.parametrize(('script', 'nodes', 'gpus'), [('one_node.sbatch', 1, 2), ('many_nodes.sbatch', 2, 1)])
def test_a_job_trains_on_all_its_processes(slurm, script, nodes, gpus):
    told, _ = slurm(script, nodes, gpus).communicate(timeout=120)
    assert 'on 2 x cpu' in told
    assert told.count('done: best top1') == 1


def test_a_job_whose_time_is_nearly_over_queues_again(slurm):
    job, deadline = slurm('one_node.sbatch', 1, 1, '--set train.epochs=10000'), time.monotonic() + 60
    for line in job.stdout:
        if line.startswith('epoch 2/'):
            break
    job.send_signal(signal.SIGUSR1)
    in_time = itertools.takewhile(lambda _: time.monotonic() < deadline, job.stdout)
    requeued = any('requeued' in line for line in in_time)  # perhaps within another's line
    os.killpg(job.pid, signal.SIGKILL)
    assert requeued
