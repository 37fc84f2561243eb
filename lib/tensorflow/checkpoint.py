"""Checkpoints of Keras models: every variable by name in an .npz, read without running anything in it.

about          JSON: kind, config, epoch, step, loss_sum, hits, best, history, checksum
model/...      every variable of the model, the states of its random generators included
optimizer/...  every variable of the optimizer
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from lib import run
from lib.errors import UserError
from lib.files import replacing
from lib.npz import read_arrays

LATEST, BEST = 'latest_epoch.npz', 'best_epoch.npz'
PARTS = ('model', 'optimizer')


def write(path: Path, content: Mapping[str, Any], older: Sequence[Path] = ()) -> None:
    """Writes a checkpoint, with its checksum, in the place of the last one, which goes to the first name of `older`.

    Raises UserError where it cannot be written; what was there before is still there then.
    """
    about = {key: value for key, value in content.items() if key not in PARTS} | {'checksum': run.digest(content)}
    arrays = {
        f'{part}/{name}': value for part in PARTS for name, value in content.get(part, {}).items()
    }  # '/' in names is kept as it is: an .npz is a zip file
    with replacing(path, older) as file:
        np.savez(file, about=np.array(json.dumps(about)), **arrays)


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote, the checksum verified. Raises UserError naming the file."""
    arrays = read_arrays(path)
    try:
        content = json.loads(str(arrays.pop('about')))
        content['checksum']
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UserError(f'{path} is no checkpoint of this project: it says nothing about config and epoch.') from None
    for part in PARTS:
        if names := [name for name in arrays if name.startswith(f'{part}/')]:
            content[part] = {name.removeprefix(f'{part}/'): arrays.pop(name) for name in names}
    run.check_digest(content, path)
    del content['checksum']
    return content


def load(path: Path, kind: str) -> dict[str, Any]:
    """What is needed to evaluate a checkpoint of this project's `kind` of model: {'config', 'epoch', 'model', ...}.

    Raises UserError naming the file.
    """
    return run.check_content(read(path), kind, path, run.TO_EVALUATE)


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
    """Gives variables their saved values. Raises UserError, naming what does not fit, before anything is changed."""
    own = by_name(variables)
    run.check_weights(own, saved, path)
    for name, variable in own.items():
        variable.assign(saved[name])


class Run(run.Run):
    """A run of a Keras model."""

    LATEST, BEST = LATEST, BEST
    read, write = staticmethod(read), staticmethod(write)

    def restore(self, model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
        """Takes charge of both, already built, and gives them the state that the run has come to, if it has begun."""
        self.model, self.optimizer = model, optimizer
        if self.saved:
            assign(model.variables, self.saved['model'], self.path)
            assign(optimizer.variables, self.saved['optimizer'], self.path)
            self.saved = None  # its memory is not needed any more

    def learning_rate(self) -> float:
        return float(self.optimizer.learning_rate.numpy())

    def state(self) -> dict[str, Any]:
        return {'model': values(self.model.variables), 'optimizer': values(self.optimizer.variables)}
