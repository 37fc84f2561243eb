"""Several devices that train as one: torchrun starts a process for each, DistributedDataParallel averages gradients.

    torchrun --nproc_per_node=8 train_action_mbert.py ...

Every process makes the same model and sees the same batches, and works on its share of each.
"""

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lib.errors import UserError
from lib.log import silence
from lib.run import check_same

TIMEOUT = timedelta(minutes=10)  # of an exchange; compiling takes some processes minutes longer than others


@dataclass(frozen=True)
class World:
    """The processes that train together: this one's rank among them, their number, and what this one computes on.

    cpu_group: the same processes, for what they tell each other without waiting for a device.
    """

    rank: int
    size: int
    device: torch.device
    cpu_group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether this process trains by itself."""
        return self.size == 1

    @property
    def description(self) -> str:
        """What is computed on, for the log."""
        device = self.device.type
        return device if self.size == 1 else f'{self.size} x {device}'

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, (size, ...)."""
        if self.size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    def vote(self) -> Callable[[bool], bool]:
        """A function that every process calls after each step, and that gives all the same answer.

        It is whether any of them had a yes in its call before (this process by itself: in this call). What they tell
        each other travels while a step is computed, so that none waits for it.
        """
        if self.is_alone:
            return lambda asked: asked
        under_way = []

        def ask(asked: bool) -> bool:
            mine = torch.tensor(float(asked))
            under_way.append((mine, dist.all_reduce(mine, dist.ReduceOp.MAX, self.cpu_group, async_op=True)))
            if len(under_way) == 1:
                return False
            answer, work = under_way.pop(0)
            work.wait()
            return bool(answer)

        return ask

    def wait_for_all(self) -> None:
        """Returns when all processes have come here."""
        if not self.is_alone:
            dist.barrier(self.cpu_group)

    def wrap(self, forward: nn.Module) -> nn.Module:
        """A module whose backward() averages gradients over all processes, and whose batch norm sees all clips."""
        if self.size == 1:
            return forward
        for module in forward.modules():
            if type(module) is nn.BatchNorm1d:
                module.__class__ = GlobalBatchNorm1d  # parameters, buffers and names stay
        return DistributedDataParallel(forward, forward_sync_buffers=False, gradient_as_bucket_view=True)

    def check_same(self, what: str, number: int) -> None:
        """Raises UserError where the processes have different numbers; what: what they count."""
        check_same('processes', what, self.gather(torch.tensor(number, device=self.device)).tolist())


def init() -> World:
    """Joins the processes that torchrun has started; without torchrun this one trains by itself, on the GPU if any.

    Raises UserError where torchrun has started more processes than there are GPUs.
    """
    on_gpu = torch.cuda.is_available()
    if not dist.is_torchelastic_launched():
        return World(0, 1, torch.device('cuda' if on_gpu else 'cpu'))
    local_rank, local_size = int(os.environ['LOCAL_RANK']), int(os.environ['LOCAL_WORLD_SIZE'])
    if on_gpu and local_size > torch.cuda.device_count():
        raise UserError(
            f'torchrun has started {local_size} processes here, one for each GPU, but there are only '
            f'{torch.cuda.device_count()}: give it --nproc_per_node={torch.cuda.device_count()}.'
        )
    device = torch.device('cuda', local_rank) if on_gpu else torch.device('cpu')
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group('nccl' if on_gpu else 'gloo', timeout=TIMEOUT)
    atexit.register(dist.destroy_process_group)
    cpu_group = dist.new_group(backend='gloo', timeout=TIMEOUT)
    world = World(dist.get_rank(), dist.get_world_size(), device, cpu_group)
    if not world.is_main:  # one tells for all
        silence()
    return world


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """Batch norm over the clips of all processes, (N,C) -> (N,C), however many each has.

    What nn.SyncBatchNorm is for GPUs; it refuses CPU tensors. Sums are taken in float64, so that the variance may be
    the difference of two of them. counted: whether the clips of this process are among those of the batch.
    """

    counted = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.double()
        clips = wide if self.counted else wide[:0]
        sums = torch.cat([wide.new_full((1,), len(clips)), clips.sum(0), (clips * clips).sum(0)])
        count, total, square_total = _GlobalSum.apply(sums).split([1, x.shape[1], x.shape[1]])
        mean = total / count
        variance = (square_total / count - mean * mean).clamp(min=0)
        with torch.no_grad():
            unbiased = variance * (count / (count - 1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked += 1
        normed = (wide - mean) * (variance + self.eps).rsqrt()
        return (normed * self.weight + self.bias).to(x.dtype)


class _GlobalSum(torch.autograd.Function):
    """The sum over all processes, with its gradient."""

    @staticmethod
    def forward(ctx: object, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    backward = forward  # what is added to one summand reaches the loss of every process
