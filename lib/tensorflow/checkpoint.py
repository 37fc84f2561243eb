"""Checkpoints of Keras models: every variable by name in an .npz, read without running anything in it.

about          JSON: format, config, epoch, step, loss_sum, num_correct, best, history
model/...      every variable of the model, the states of its random generators included
optimizer/...  every variable of the optimizer
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
    """What `write` wrote. Raises UserError if it cannot be read."""
    arrays = read_arrays(path)
    try:
        content = json.loads(str(arrays.pop('about')))
    except (KeyError, ValueError):
        raise UserError(f'{path} is not a checkpoint of this project.') from None
    for part in PARTS:
        if names := [name for name in arrays if name.startswith(f'{part}/')]:
            content[part] = {name.removeprefix(f'{part}/'): arrays[name] for name in names}
    return content


def load(path: Path, script: str) -> dict[str, Any]:
    """Content for evaluation: {'config', 'epoch', 'model', ...}. script: the model it must be of.

    Raises UserError naming the file.
    """
    return run.check_checkpoint(read(path), script, path)


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
    """Gives variables their saved values. Raises UserError if names or shapes differ."""
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

    SUFFIX = '.npz'
    read, write = staticmethod(read), staticmethod(write)

    def restore(self, model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
        """Takes charge of both, already built, and loads the state of the checkpoint that the run resumes from."""
        self.model, self.optimizer = model, optimizer
        if self.saved:
            assign(model.variables, self.saved['model'], self.source)
            assign(optimizer.variables, self.saved['optimizer'], self.source)
            self.saved = None  # frees its memory

    def learning_rates(self) -> dict[str, float]:
        return {'model': float(self.optimizer.learning_rate.numpy())}

    def state(self) -> dict[str, Any]:
        return {'model': values(self.model.variables), 'optimizer': values(self.optimizer.variables)}
