"""Checkpoints of Keras models: every variable by name in an .npz, read without running anything in it.

about          JSON: kind, config, epoch, best, history
model/...      every variable of the model, the states of its random generators included
optimizer/...  every variable of the optimizer
"""

import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from lib import run
from lib.files import replacing, require_file

LATEST, BEST = 'latest_epoch.npz', 'best_epoch.npz'


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint in the place of the last one."""
    about = {key: value for key, value in content.items() if key not in ('model', 'optimizer')}
    arrays = {
        f'{part}/{name}': value for part in ('model', 'optimizer') for name, value in content[part].items()
    }  # '/' in names is kept as it is: an .npz is a zip file
    with replacing(path) as file:
        np.savez(file, about=np.array(json.dumps(about)), **arrays)


def load(path: str | Path, kind: str) -> dict[str, Any]:
    """Reads a checkpoint of this project's `kind` of model.

    {'kind', 'config', 'epoch', 'best', 'history', 'model', 'optimizer'}. Raises OSError or ValueError naming the file.
    """
    path = Path(path)
    require_file(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except OSError:
        raise
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile):
        raise ValueError(
            f'{path} ({path.stat().st_size:,} bytes) cannot be read as a checkpoint of Keras: it is cut short, damaged '
            'or of another kind. Copy it again.'
        ) from None
    try:
        content = json.loads(str(arrays.pop('about')))
        found = content['kind']
    except (KeyError, TypeError, ValueError):
        raise ValueError(f'{path} is no checkpoint of this project: it says nothing about config and epoch.') from None
    run.check_kind(found, kind, path)
    for part in ('model', 'optimizer'):
        names = [name for name in arrays if name.startswith(f'{part}/')]
        content[part] = {name.removeprefix(f'{part}/'): arrays.pop(name) for name in names}
    return content


def by_name(variables: Iterable[keras.Variable]) -> dict[str, keras.Variable]:
    """{path: variable}. Keras counts random generators through the process, and that number is left out."""
    variables = list(variables)
    named = {re.sub(r'/seed_generator_\d+/', '/seed_generator/', variable.path): variable for variable in variables}
    assert len(named) == len(variables), 'two variables of the same path'
    return named


def values(variables: Iterable[keras.Variable]) -> dict[str, np.ndarray]:
    """{path: value} of variables."""
    return {name: variable.numpy() for name, variable in by_name(variables).items()}


def assign(variables: Iterable[keras.Variable], saved: Mapping[str, np.ndarray], path: Path) -> None:
    """Gives variables their saved values. Raises ValueError, naming what does not fit, before anything is changed."""
    own = by_name(variables)
    run.check_weights(own, saved, path)
    for name, variable in own.items():
        variable.assign(saved[name])


class Run(run.Run):
    """A run of a Keras model."""

    LATEST, BEST = LATEST, BEST
    load, save = staticmethod(load), staticmethod(save)

    def restore(self, model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
        """Gives model and optimizer, both built, the state that the run has come to, if it has begun."""
        if self.saved:
            assign(model.variables, self.saved['model'], self.path)
            assign(optimizer.variables, self.saved['optimizer'], self.path)
            self.saved = None  # its memory is not needed any more

    def finish_epoch(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        train: dict[str, float],
        val: dict[str, float],
    ) -> None:
        """Notes the metrics of one more epoch and saves the run, as the best one too where it is."""
        state = {'model': values(model.variables), 'optimizer': values(optimizer.variables)}
        self.add_epoch(float(optimizer.learning_rate.numpy()), train, val, state)
