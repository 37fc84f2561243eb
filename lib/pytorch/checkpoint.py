"""Checkpoints: written so that a kill at any moment leaves a good one, read without running anything in them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib import run
from lib.errors import UserError
from lib.files import replacing
from lib.pytorch.pretrained import weights_of
from lib.pytorch.reading import as_array, read_file

LATEST, BEST = 'latest_epoch.bin', 'best_epoch.bin'


def write(path: Path, content: Mapping[str, Any], older: Sequence[Path] = ()) -> None:
    """Writes a checkpoint, with its checksum, in the place of the last one, which goes to the first name of `older`.

    Raises UserError where it cannot be written; what was there before is still there then.
    """
    with replacing(path, older) as file:
        try:
            torch.save({**content, 'checksum': run.digest(content, as_array)}, file)
        except RuntimeError as error:  # of PyTorch's writer, raised while it handles that of the file
            raise error.__context__ or error from None


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote, on the CPU, the checksum verified. Raises UserError naming the file."""
    content = read_file(path)
    if not isinstance(content, dict) or 'checksum' not in content:
        raise UserError(f'{path} is no checkpoint of this project: it has no checksum.')
    del content['checksum']
    return content


def load(path: Path, kind: str) -> dict[str, Any]:
    """What is needed to evaluate a checkpoint of this project's `kind` of model ('mbert', ...), or weights of others.

    {'kind', 'config', 'epoch', 'model', ...}, of others with None for config and epoch. Raises UserError
    naming the file.
    """
    content = read_file(path)
    if isinstance(content, dict) and 'kind' in content:
        return run.check_content(content, kind, path, run.TO_EVALUATE)
    return {'config': None, 'epoch': None, 'model': weights_of(content, path)}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Loads all weights, strictly. Raises UserError, naming what does not fit, before anything is changed."""
    run.check_weights(model.state_dict(), weights, path)
    model.load_state_dict(weights)


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], path: Path) -> None:
    """Loads the optimizer's moments; rates and decay stay as the config has them now.

    Raises UserError where they are not those of its parameters.
    """
    own = optimizer.state_dict()
    moments = saved.get('state')
    shapes = {i: p.shape for i, p in enumerate(p for group in optimizer.param_groups for p in group['params'])}
    fits = isinstance(moments, dict) and moments.keys() <= shapes.keys() and all(
        isinstance(state, dict) and state.keys() == {'step', 'exp_avg', 'exp_avg_sq'}
        and all(isinstance(state[name], Tensor) and state[name].shape == shape
                for name, shape in (('step', ()), ('exp_avg', shapes[i]), ('exp_avg_sq', shapes[i])))
        for i, state in moments.items()
    )  # fmt: skip
    if not fits:
        raise UserError(f'{path} has moments of another optimizer or of other parameters: no run can go on from it.')
    optimizer.load_state_dict({**own, 'state': moments})


class Run(run.Run):
    """A run of a PyTorch model."""

    LATEST, BEST = LATEST, BEST
    read, write = staticmethod(read), staticmethod(write)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Takes charge of model and optimizer, and gives them the state that the run has come to, if it has begun."""
        self.model, self.optimizer = model, optimizer
        if self.saved:
            load_weights(model, self.saved['model'], self.path)
            load_optimizer(optimizer, self.saved['optimizer'], self.path)
            self.saved = None  # its memory is not needed any more

    def learning_rate(self) -> float:
        return self.optimizer.param_groups[0]['lr']

    def state(self) -> dict[str, Any]:
        return {'model': self.model.state_dict(), 'optimizer': self.optimizer.state_dict()}
