"""Data-parallel training with torchrun and DistributedDataParallel, one process per device.

    torchrun --nproc_per_node=8 train_action_mbert.py ...

All processes iterate over the same batches; each computes its share of every batch.
"""

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lib.console import peak_process_memory, silence
from lib.errors import UserError
from lib.run import check_same

TIMEOUT = timedelta(minutes=10)  # of collectives: compile times differ by minutes between processes


@dataclass(frozen=True)
class World:
    """Process group: rank, number of processes, and device of this process."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes files."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether this is the only process."""
        return self.size == 1

    @property
    def description(self) -> str:
        """Devices, for the log."""
        device = self.device.type
        return device if self.size == 1 else f'{self.size} x {device}'

    def peak_memory(self) -> int:
        """Peak memory in bytes: of tensors on the GPU, or of this process on a CPU."""
        return torch.cuda.max_memory_allocated() if self.device.type == 'cuda' else peak_process_memory()

    def reduce(self, steps: Sequence[Tensor], stop: bool) -> tuple[list[float], int, bool]:
        """Reduces steps over all processes: mean losses, number of correct clips, whether any process was to stop.

        steps: [mean loss, correct clips] of this process, per step. Waits for the device.
        """
        table = torch.stack([*steps, torch.tensor([0.0, stop], device=self.device)])
        if self.size > 1:
            dist.all_reduce(table)
        *rows, (_, stops) = table.tolist()
        return [loss / self.size for loss, _ in rows], int(sum(correct for _, correct in rows)), stops > 0

    def gather(self, tensor: Tensor) -> Tensor:
        """Gathers a tensor from all processes, (size, ...)."""
        if self.size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    def wait_for_all(self) -> None:
        """Barrier over all processes."""
        if self.size > 1:
            dist.barrier()

    def wrap(self, forward: nn.Module) -> nn.Module:
        """Wraps a module in DistributedDataParallel if there are several processes.

        On GPUs batch norm is synchronised; on CPUs each process normalises its own clips.
        """
        if self.size == 1:
            return forward
        if self.device.type == 'cuda':
            forward = nn.SyncBatchNorm.convert_sync_batchnorm(forward)
        return DistributedDataParallel(forward, gradient_as_bucket_view=True)

    def check_same(self, what: str, number: int) -> None:
        """Raises UserError if the processes have different numbers. what: name of the number."""
        check_same('processes', what, self.gather(torch.tensor(number, device=self.device)).tolist())


def init() -> World:
    """Joins the process group of torchrun, or returns a single process without torchrun; uses GPUs if available.

    Raises UserError if torchrun has started more processes than there are GPUs.
    """
    on_gpu = torch.cuda.is_available()
    if not dist.is_torchelastic_launched():
        return World(0, 1, torch.device('cuda' if on_gpu else 'cpu'))
    local_rank, local_size = int(os.environ['LOCAL_RANK']), int(os.environ['LOCAL_WORLD_SIZE'])
    if on_gpu and local_size > torch.cuda.device_count():
        raise UserError(
            f'torchrun has started {local_size} processes on a host with {torch.cuda.device_count()} GPUs: '
            f'use --nproc_per_node={torch.cuda.device_count()}.'
        )
    device = torch.device('cuda', local_rank) if on_gpu else torch.device('cpu')
    if on_gpu:
        torch.cuda.set_device(device)
    device_id = device if on_gpu else None
    dist.init_process_group('nccl' if on_gpu else 'gloo', timeout=TIMEOUT, device_id=device_id)
    atexit.register(dist.destroy_process_group)
    world = World(dist.get_rank(), dist.get_world_size(), device)
    if not world.is_main:  # only the main process prints
        silence()
    return world
