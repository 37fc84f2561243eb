"""Checkpoints of PyTorch models, and the run that captures their state."""

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from lib import run
from lib.data.pickles import Dtype, scalar
from lib.errors import UserError, shown, shown_text, user_file
from lib.files import check_zip, require_file

# Numbers of NumPy, such as the min_loss of MotionBERT's checkpoints.
SAFE_GLOBALS = [
    (Dtype, 'numpy.dtype'),
    (scalar, 'numpy.core.multiarray.scalar'),  # NumPy 1
    (scalar, 'numpy._core.multiarray.scalar'),
]


def write(file: BinaryIO, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint into an open file. Raises OSError if that fails."""
    try:
        torch.save(content, file)
    except RuntimeError as error:  # PyTorch's writer hides the error of the file
        raise error.__context__ or error from None


def read(path: str | Path) -> Any:
    """Returns the content of a file that torch.save wrote, on the CPU: tensors and plain data.

    Raises UserError if the file is damaged or holds anything else.
    """
    path = Path(path)
    require_file(path)
    with user_file(path), path.open('rb') as file, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # an error says more
        try:
            if zipfile.is_zipfile(file):  # the format since PyTorch 1.6; torch.load does not compare checksums
                check_zip(file)
            file.seek(0)
            with torch.serialization.safe_globals(SAFE_GLOBALS):
                return torch.load(file, map_location='cpu', weights_only=True)
        except Exception as error:  # a damaged file may raise anything
            asked = re.search(r'GLOBAL (\S+)', str(error))
            if asked or isinstance(error, UserError):
                refused = f'asks for {shown_text(asked[1])}' if asked else str(error)
                raise UserError(
                    f'{path} holds more than weights: it {refused}; nothing in it was run. Take the weights from '
                    'another source, or, if you trust it, load it where it comes from and save its state_dict() alone.'
                ) from None
            raise UserError(
                f'{path} ({path.stat().st_size:,} bytes) cannot be read as a PyTorch checkpoint '
                f'({type(error).__name__}): it is cut short, damaged or of another kind, such as TorchScript. Copy or '
                'download it again.'
            ) from None


def load(path: Path, script: str) -> dict[str, Any]:
    """Content for evaluation: {'config', 'epoch', 'model', ...}, config and epoch None for other projects' weights.

    script: the model it must be of. Raises UserError naming the file.
    """
    content = read(path)
    if isinstance(content, dict) and 'config' in content:
        return run.check_checkpoint(content, script, path)
    return {'config': None, 'epoch': None, 'model': weights_of(content, path)}


def weights_of(content: object, path: str | Path) -> dict[str, Tensor]:
    """The weights in the content of a file: its 'model_pos', else its 'model', else the content itself.

    `module.` before all names is taken off. Raises UserError, naming the file, if there are none.
    """
    weights = content
    if isinstance(content, dict):
        weights = content.get('model_pos', content.get('model', content))
    if not _are_weights(weights):
        found = f'the keys {shown(list(content))}' if isinstance(content, dict) else f'a {type(content).__name__}'
        raise UserError(
            f"{path} holds no weights: found {found}, but looked for tensors by name, under 'model_pos', under 'model' "
            'or alone.'
        )
    wrapped = all(name.startswith('module.') for name in weights)
    return {name.removeprefix('module.') if wrapped else name: weight for name, weight in weights.items()}


def _are_weights(content: object) -> bool:
    named = isinstance(content, dict) and content and all(isinstance(name, str) for name in content)
    return bool(named) and all(isinstance(weight, Tensor) for weight in content.values())


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
