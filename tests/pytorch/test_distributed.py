"""One process; test_training.py trains with several."""

import pytest
import torch
import torch.distributed as dist

from lib.pytorch import distributed


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(dist, 'is_torchelastic_launched', lambda: True)
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
    with pytest.raises(ValueError, match='--nproc_per_node=2'):
        distributed.init()
    assert not dist.is_initialized()


def test_a_single_process_exchanges_nothing():
    world, model = distributed.init(), torch.nn.BatchNorm1d(2)
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    assert world.wrap(model) is model
    assert type(model) is torch.nn.BatchNorm1d
    numbers = torch.arange(3.0)
    assert world.reduce([torch.tensor([0.5, 3.0]), torch.tensor([0.25, 1.0])], stop=True) == ([0.5, 0.25], 4, True)
    assert torch.equal(world.gather(numbers), numbers[None])


@pytest.mark.gpu
def test_a_gpu_is_used_if_there_is_one():
    assert distributed.init().device.type == 'cuda'
