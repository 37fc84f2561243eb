"""Checkpoints: written so that a kill at any moment leaves a good one, read without running anything in them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib.config import differences

LATEST, BEST = 'latest_epoch.bin', 'best_epoch.bin'
# May change between two runs of one folder: where the data lies.
FREE_KEYS = ('data.ann_file', 'data.store_dir')
# May change for an evaluation: where the data lies, and what changes speed alone.
EVALUATION_KEYS = (*FREE_KEYS, 'data.batch_size', 'train.compile')


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint: to a temporary file beside it, synced, then renamed."""
    temporary = path.with_name(f'{path.name}.tmp')
    with temporary.open('wb') as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: str | os.PathLike, kind: str) -> dict[str, Any]:
    """Reads a checkpoint of this project's `kind` of model ('mbert', ...), on the CPU.

    {'kind', 'config', 'epoch', 'best', 'history', 'model', 'optimizer'}. Raises OSError or ValueError naming the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: there is no such checkpoint.')
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # a broken file may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f'{path} cannot be read as a checkpoint: it is cut short, damaged or of another kind ({reason}).'
        ) from None
    if not isinstance(content, dict) or not {'kind', 'config', 'epoch', 'model'} <= content.keys():
        raise ValueError(f'{path} is no checkpoint of this project: it holds no config and epoch beside the weights.')
    if content['kind'] != kind:
        raise ValueError(f'{path} is a checkpoint of {content["kind"]}: use train_action_{content["kind"]}.py for it.')
    return content


def find(folder: Path, resume: str | None, kind: str) -> tuple[Path, dict[str, Any]] | tuple[None, None]:
    """The checkpoint that a run in `folder` goes on from: the folder's latest, or `resume` for an empty folder."""
    latest = folder / LATEST
    if latest.is_file():
        if resume and not latest.samefile(resume):
            raise ValueError(
                f'{folder} holds a run of its own ({latest}), which goes on by itself. To go on from {resume}, name '
                'another, empty folder as --checkpoint.'
            )
        return latest, load(latest, kind)
    return (Path(resume), load(resume, kind)) if resume else (None, None)


def check_same_run(path: Path, saved: Mapping[str, dict], given: Mapping[str, dict]) -> dict[str, tuple[Any, Any]]:
    """Raises ValueError where `given` describes another model or other data than the checkpoint's config `saved`.

    Returns what else differs, {'section.key': (saved, given)}.
    """
    changed = differences(saved, given)
    if fixed := _fixed(changed, FREE_KEYS):
        listed = '; '.join(f'{key}: {changed[key][0]} there, {changed[key][1]} in this command' for key in fixed)
        raise ValueError(f'{path} is of another model or other data ({listed}). Name another folder as --checkpoint.')
    return {key: pair for key, pair in changed.items() if key not in FREE_KEYS}


def check_evaluation(path: Path, saved: Mapping[str, dict], given: Mapping[str, dict]) -> None:
    """Raises ValueError where an evaluation of the checkpoint is asked for under another model or other data."""
    if fixed := _fixed(differences(saved, given), EVALUATION_KEYS):
        raise ValueError(
            f'{path} was trained with other values of {", ".join(fixed)}, and is evaluated with its own config. Leave '
            f'--config away; --set may change {", ".join(EVALUATION_KEYS)}.'
        )


def _fixed(changed: Mapping[str, Any], free: tuple[str, ...]) -> list[str]:
    """Those of the changed keys that make it another model or other data."""
    return [key for key in changed if key.split('.')[0] in ('data', 'heatmap', 'model') and key not in free]


def load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Loads all weights, strictly. Raises ValueError, naming what does not fit, before anything is changed."""
    own = model.state_dict()
    wrong = [f'{name} is missing' for name in own if name not in weights]
    wrong += [f'{name} is not in the model' for name in weights if name not in own]
    wrong += [
        f'{name} has shape {tuple(weights[name].shape)}, not {tuple(value.shape)}'
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if wrong:
        more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
        raise ValueError(f'{path} is a checkpoint of another model: {"; ".join(wrong[:3])}{more}.')
    model.load_state_dict(weights)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Loads the optimizer's moments; rates and decay stay as the config has them now."""
    given = [{k: v for k, v in group.items() if k != 'params'} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, given, strict=True):
        group.update(settings)
