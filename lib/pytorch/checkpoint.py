"""Checkpoints and runs of PyTorch models."""

import argparse
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

# NumPy scalars, such as min_loss in MotionBERT's checkpoints, and the command line in MAMP's.
SAFE_GLOBALS = [
    argparse.Namespace,
    (Dtype, 'numpy.dtype'),
    (scalar, 'numpy.core.multiarray.scalar'),  # NumPy 1
    (scalar, 'numpy._core.multiarray.scalar'),
]


def write(file: BinaryIO, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint into an open file. Raises OSError if that fails."""
    try:
        torch.save(content, file)
    except RuntimeError as error:  # PyTorch's writer hides the OSError
        raise error.__context__ or error from None


def read(path: str | Path) -> Any:
    """Reads a file written by torch.save: tensors, on the CPU, and plain data.

    Raises UserError if the file is damaged or holds anything else.
    """
    path = Path(path)
    require_file(path)
    with user_file(path), path.open('rb') as file, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # errors are reported below
        try:
            if zipfile.is_zipfile(file):  # since PyTorch 1.6; torch.load does not verify checksums
                check_zip(file)
            file.seek(0)
            with torch.serialization.safe_globals(SAFE_GLOBALS):
                return torch.load(file, map_location='cpu', weights_only=True)
        except Exception as error:  # a damaged file may raise anything
            unsafe = re.search(r'GLOBAL (\S+)', str(error))
            if unsafe or isinstance(error, UserError):
                reason = f'refers to {shown_text(unsafe[1])}' if unsafe else str(error)
                raise UserError(
                    f'{path} holds more than weights: it {reason}. No code in it was run. Use weights from another '
                    'source or, if you trust the file, load it in its own project and save only its state_dict().'
                ) from None
            raise UserError(
                f'{path} ({path.stat().st_size:,} bytes) cannot be read as a PyTorch checkpoint '
                f'({type(error).__name__}): it is truncated, damaged or in another format, such as TorchScript. Copy '
                'or download it again.'
            ) from None


def load(path: Path, script: str) -> dict[str, Any]:
    """Reads a checkpoint for evaluation: {'config', 'epoch', 'model', ...}.

    config and epoch are None in other projects' checkpoints. script: name of the required model. Raises UserError
    naming the file.
    """
    content = read(path)
    if isinstance(content, dict) and 'config' in content:
        return run.check_checkpoint(content, script, path)
    return {'config': None, 'epoch': None, 'model': weights_of(content, path)}


def weights_of(content: object, path: str | Path) -> dict[str, Tensor]:
    """State dict in the content of a file: under 'model_pos', under 'model', or the content itself.

    Removes the prefix `module.` if all names have it. Raises UserError naming the file if there are no weights.
    """
    weights = content
    if isinstance(content, dict):
        weights = content.get('model_pos', content.get('model', content))
    if not _are_weights(weights):
        found = f'the keys {shown(list(content))}' if isinstance(content, dict) else f'a {type(content).__name__}'
        raise UserError(
            f"{path} holds no weights: found {found}, but expected a state dict, alone or under 'model_pos' or 'model'."
        )
    wrapped = all(name.startswith('module.') for name in weights)
    return {name.removeprefix('module.') if wrapped else name: weight for name, weight in weights.items()}


def _are_weights(content: object) -> bool:
    named = isinstance(content, dict) and content and all(isinstance(name, str) for name in content)
    return bool(named) and all(isinstance(weight, Tensor) for weight in content.values())


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Loads a complete state dict. Raises UserError if names or shapes differ."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = ' '.join(str(error).split())[:500]
        raise UserError(f'{path} does not fit the model of its config. {first}') from None


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], path: Path) -> None:
    """Loads moments and last learning rates, but not the weight decay, which comes from the config.

    Raises UserError if the moments are those of other parameters.
    """
    shapes = {i: p.shape for i, p in enumerate(p for group in optimizer.param_groups for p in group['params'])}
    if any(shapes.get(i) != moments['exp_avg'].shape for i, moments in saved['state'].items()):
        raise UserError(
            f'{path} holds the optimizer state of other parameters. Choose another folder for --checkpoint.'
        )
    optimizer.load_state_dict({**optimizer.state_dict(), 'state': saved['state']})
    for group, saved_group in zip(optimizer.param_groups, saved['param_groups'], strict=True):
        group['lr'] = saved_group['lr']


class Run(run.Run):
    """A run of a PyTorch model."""

    read, write = staticmethod(read), staticmethod(write)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Attaches model and optimizer, and loads their state if the run resumes from a checkpoint."""
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
    """Copies tensors to host memory."""
    return {name: tensor.detach().to('cpu', copy=True) for name, tensor in tensors.items()}
