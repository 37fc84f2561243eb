"""Checkpoints and runs of Keras models. A checkpoint is an .npz file, read without pickle:

about          JSON: format, config, class_names, num_clips, epoch, step, loss_sum, num_correct, best, history
model/...      variables of the model, including states of random generators
optimizer/...  variables of the optimizer
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import keras
import numpy as np

from lib import run
from lib.errors import UserError
from lib.files import read_arrays

PARTS = ('model', 'optimizer')


def write(file: BinaryIO, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint into an open file. Raises OSError if that fails."""
    about = json.dumps({key: value for key, value in content.items() if key not in PARTS})
    arrays = {f'{part}/{name}': value for part in PARTS for name, value in content.get(part, {}).items()}
    np.savez(file, about=np.array(about), **arrays)


def read(path: Path) -> Any:
    """Reads a checkpoint. Raises UserError if the file is damaged or not a checkpoint."""
    arrays = read_arrays(path)
    try:
        content = dict(json.loads(str(arrays.pop('about'))))
    except (KeyError, ValueError, TypeError):
        raise UserError(f'{path} is not a checkpoint of this project.') from None
    for part in PARTS:
        if names := [name for name in arrays if name.startswith(f'{part}/')]:
            content[part] = {name.removeprefix(f'{part}/'): arrays[name] for name in names}
    return content


def load(path: Path, script: str) -> dict[str, Any]:
    """Reads a checkpoint for evaluation: {'config', 'epoch', 'model', ...}. script: name of the required model.

    Raises UserError naming the file.
    """
    return run.check_checkpoint(read(path), script, path)


def by_name(variables: Iterable[keras.Variable]) -> dict[str, keras.Variable]:
    """{path: variable}, without the process-wide numbers in the names of random generators."""
    variables = list(variables)
    named = {re.sub(r'/seed_generator_\d+/', '/seed_generator/', variable.path): variable for variable in variables}
    assert len(named) == len(variables), 'two variables have the same path'
    return named


def values(variables: Iterable[keras.Variable]) -> dict[str, np.ndarray]:
    """{path: value} of the variables."""
    return {name: variable.numpy() for name, variable in by_name(variables).items()}


def assign(variables: Iterable[keras.Variable], saved: Mapping[str, np.ndarray], path: Path) -> None:
    """Assigns saved values to variables. Raises UserError if names or shapes differ."""
    own = {name: tuple(variable.shape) for name, variable in by_name(variables).items()}
    found = {name: value.shape for name, value in saved.items()}
    if own != found:
        wrong = [
            f'{name}: {found.get(name, "missing")} in the file, {own.get(name, "missing")} in the model'
            for name in sorted(own.keys() | found.keys())
            if own.get(name) != found.get(name)
        ]
        raise UserError(f'{path} does not fit the model of its config ({len(wrong)} differences): {wrong[0]}.')
    for name, variable in by_name(variables).items():
        variable.assign(saved[name])


class Run(run.Run):
    """A run of a Keras model."""

    read, write = staticmethod(read), staticmethod(write)

    def restore(self, model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
        """Attaches model and optimizer, already built, and loads their state if the run resumes."""
        self.model, self.optimizer = model, optimizer
        if self.saved:
            assign(model.variables, self.saved['model'], self.source)
            assign(optimizer.variables, self.saved['optimizer'], self.source)
            self.saved = None  # frees its memory

    def learning_rates(self) -> dict[str, float]:
        return {'model': float(self.optimizer.learning_rate.numpy())}

    def state(self) -> dict[str, Any]:
        return {'model': values(self.model.variables), 'optimizer': values(self.optimizer.variables)}
