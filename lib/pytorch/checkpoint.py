"""Checkpoints: written so that a kill at any moment leaves a good one, read without running anything in them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib import run
from lib.files import replacing
from lib.pytorch.pretrained import read_file, weights_of

LATEST, BEST = 'latest_epoch.bin', 'best_epoch.bin'


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint in the place of the last one."""
    with replacing(path) as file:
        torch.save(dict(content), file)


def load(path: str | os.PathLike, kind: str) -> dict[str, Any]:
    """Reads a checkpoint of this project's `kind` of model ('mbert', ...), on the CPU.

    {'kind', 'config', 'epoch', 'best', 'history', 'model', 'optimizer'}. Raises OSError or ValueError naming the file.
    """
    return _checked(read_file(path), path, kind)


def load_any(path: Path, kind: str) -> dict[str, Any]:
    """As `load`, but the weights of others too: these come with None for config and epoch."""
    content = read_file(path)
    if isinstance(content, dict) and 'kind' in content:
        return _checked(content, path, kind)
    return {'config': None, 'epoch': None, 'model': weights_of(content, path)}


def _checked(content: object, path: str | os.PathLike, kind: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not {'kind', 'config', 'epoch', 'model'} <= content.keys():
        raise ValueError(f'{path} is no checkpoint of this project: it holds no config and epoch beside the weights.')
    run.check_kind(content['kind'], kind, path)
    return content


def load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Loads all weights, strictly. Raises ValueError, naming what does not fit, before anything is changed."""
    run.check_weights(model.state_dict(), weights, path)
    model.load_state_dict(weights)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Loads the optimizer's moments; rates and decay stay as the config has them now."""
    given = [{k: v for k, v in group.items() if k != 'params'} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, given, strict=True):
        group.update(settings)


class Run(run.Run):
    """A run of a PyTorch model."""

    LATEST, BEST = LATEST, BEST
    load, save = staticmethod(load), staticmethod(save)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Gives model and optimizer the state that the run has come to, if it has begun."""
        if self.saved:
            load_weights(model, self.saved['model'], self.path)
            load_optimizer(optimizer, self.saved['optimizer'])
            self.saved = None  # its memory is not needed any more

    def finish_epoch(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, train: dict[str, float], val: dict[str, float]
    ) -> None:
        """Notes the metrics of one more epoch and saves the run, as the best one too where it is."""
        state = {'model': model.state_dict(), 'optimizer': optimizer.state_dict()}
        self.add_epoch(optimizer.param_groups[0]['lr'], train, val, state)
