"""Checkpoints of PyTorch models, and the run that captures their state."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from lib import run
from lib.errors import UserError
from lib.pytorch.pretrained import weights_of
from lib.pytorch.reading import read_file


def write(file: BinaryIO, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint into an open file. Raises OSError if that fails."""
    try:
        torch.save(content, file)
    except RuntimeError as error:  # PyTorch's writer hides the error of the file
        raise error.__context__ or error from None


def read(path: Path) -> Any:
    """The content of a file that torch.save wrote, on the CPU. Raises UserError if it cannot be read."""
    return read_file(path)


def load(path: Path, kind: str) -> dict[str, Any]:
    """What is needed to evaluate a checkpoint of this project's `kind` of model ('mbert', ...), or weights of others.

    {'kind', 'config', 'epoch', 'model', ...}, of others with None for config and epoch. Raises UserError
    naming the file.
    """
    content = read_file(path)
    if isinstance(content, dict) and 'kind' in content:
        return run.check_checkpoint(content, kind, path)
    return {'config': None, 'epoch': None, 'model': weights_of(content, path)}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Loads all weights. Raises UserError if names or shapes differ."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = ' '.join(str(error).split())[:500]
        raise UserError(f'{path} does not fit the model of its config. {first}') from None


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], path: Path) -> None:
    """Loads the moments and the last learning rates; the weight decay stays that of the config.

    Raises UserError if the moments belong to other parameters.
    """
    shapes = {i: p.shape for i, p in enumerate(p for group in optimizer.param_groups for p in group['params'])}
    if any(shapes.get(i) != moments['exp_avg'].shape for i, moments in saved['state'].items()):
        raise UserError(f'{path} holds the optimizer state of other parameters. Name another folder as --checkpoint.')
    optimizer.load_state_dict({**optimizer.state_dict(), 'state': saved['state']})
    for group, saved_group in zip(optimizer.param_groups, saved['param_groups'], strict=True):
        group['lr'] = saved_group['lr']


class Run(run.Run):
    """A run of a PyTorch model."""

    SUFFIX = '.bin'
    read, write = staticmethod(read), staticmethod(write)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Takes charge of model and optimizer and loads the state of the checkpoint that the run resumes from."""
        self.model, self.optimizer = model, optimizer
        if self.saved:
            load_weights(model, self.saved['model'], self.source)
            load_optimizer(optimizer, self.saved['optimizer'], self.source)
            self.saved = None  # frees its memory

    def learning_rates(self) -> dict[str, float]:
        return {group['name']: group['lr'] for group in self.optimizer.param_groups}

    def state(self) -> dict[str, Any]:
        optimizer = self.optimizer.state_dict()
        optimizer['state'] = {i: on_host(moments) for i, moments in optimizer['state'].items()}
        return {'model': on_host(self.model.state_dict()), 'optimizer': optimizer}


def on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in host memory."""
    return {name: tensor.detach().to('cpu', copy=True) for name, tensor in tensors.items()}
