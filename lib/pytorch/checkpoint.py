"""Checkpoints: written so that a kill at any moment leaves a good one, read without running anything in them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from easydict import EasyDict
from torch import nn

from lib.config import Sections, differences, plain, resolve_config
from lib.pytorch.pretrained import read_file, weights_of

LATEST, BEST = 'latest_epoch.bin', 'best_epoch.bin'
# May change between two runs of one folder: where the data lies.
FREE_KEYS = ('data.ann_file', 'data.store_dir')
# May change for an evaluation: where the data lies, what changes speed alone, and how often a clip is looked at.
EVALUATION_KEYS = (*FREE_KEYS, 'data.batch_size', 'data.test_clips', 'data.test_flip', 'train.compile')


@dataclass
class Run:
    """A training run in its folder, as far as it has come.

    epoch: epochs done. best: {'top1', 'epoch'} of the best of them. history: a line for each (see RunLog). news: what
    the user should know about how it goes on.
    """

    folder: Path
    kind: str
    config: EasyDict
    epoch: int = 0
    best: dict[str, Any] = field(default_factory=lambda: {'top1': -1.0, 'epoch': 0})
    history: list[dict[str, Any]] = field(default_factory=list)
    news: list[str] = field(default_factory=list)
    _path: Path | None = None
    _saved: dict[str, Any] | None = None

    @classmethod
    def open(cls, folder: str, resume: str | None, kind: str, config: EasyDict, sections: Sections) -> Self:
        """A new run in `folder`, or the one that is there, or the one of the file `resume` (see `find`).

        Nothing is written yet. Raises OSError or ValueError where that run is of another model or other data.
        """
        run = cls(Path(folder), kind, config)
        path, saved = find(run.folder, resume, kind)
        if saved:
            changed = check_same_run(path, resolve_config(saved['config'], sections, (), str(path)), config)
            run.epoch, run.history = saved['epoch'], saved['history']
            if (run.folder / BEST).is_file():  # another folder, given a file to go on from, finds a best of its own
                run.best = saved['best']
            run.news = [f'goes on from {path}, after epoch {run.epoch}']
            run.news += [f'changed since: {key} was {before}, is {now}' for key, (before, now) in changed.items()]
            run._path, run._saved = path, saved
        return run

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Gives model and optimizer the state that the run has come to, if it has begun."""
        if self._saved:
            load_weights(model, self._saved['model'], self._path)
            load_optimizer(optimizer, self._saved['optimizer'])
            self._saved = None  # its memory is not needed any more

    def finish_epoch(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, train: dict[str, float], val: dict[str, float]
    ) -> None:
        """Notes the metrics of one more epoch and saves the run, as the best one too where it is."""
        self.epoch += 1
        lr = optimizer.param_groups[0]['lr']
        self.history.append({'epoch': self.epoch, 'lr': lr, 'train': train, 'val': val})
        is_best = val['top1'] > self.best['top1']
        if is_best:
            self.best = {'top1': val['top1'], 'epoch': self.epoch}
        content = {
            'kind': self.kind,
            'config': plain(self.config),
            'epoch': self.epoch,
            'best': self.best,
            'history': self.history,
            'model': model.state_dict(),
            'optimizer': optimizer.state_dict(),
        }
        if is_best:  # before the latest: a run killed in between repeats this epoch, and finds the same best
            save(self.folder / BEST, content)
        save(self.folder / LATEST, content)


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
    content = read_file(path)
    if not isinstance(content, dict) or not {'kind', 'config', 'epoch', 'model'} <= content.keys():
        raise ValueError(f'{path} is no checkpoint of this project: it holds no config and epoch beside the weights.')
    if content['kind'] != kind:
        raise ValueError(f'{path} is a checkpoint of {content["kind"]}: use train_action_{content["kind"]}.py for it.')
    return content


def load_any(path: Path, kind: str) -> dict[str, Any]:
    """As `load`, but the weights of others too: these come with None for config and epoch."""
    content = read_file(path)
    if isinstance(content, dict) and 'kind' in content:
        return load(path, kind)
    return {'config': None, 'epoch': None, 'model': weights_of(content, path)}


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
    fixed = [key for key in changed if key.split('.')[0] in ('data', 'heatmap', 'model') and key not in free]
    return fixed + [key for key in changed if key == 'train.partial_train']


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
