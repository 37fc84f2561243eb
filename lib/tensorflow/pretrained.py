"""Pretrained weights for ViViT: those of another run, adapted to other clips and classes."""

import math
from pathlib import Path

import keras
import numpy as np

from lib.errors import UserError
from lib.tensorflow.checkpoint import by_name, read


def load_backbone(model: keras.Model, path: Path) -> list[str]:
    """Loads all weights of a checkpoint but those of a head with other classes; returns log lines.

    Position embeddings are resized to the model's grid (see resize_positions). Raises UserError, leaving the model
    unchanged, if the file cannot be read or another weight is missing or has another shape.
    """
    saved = read(path).get('model', {})
    own = by_name(model.trainable_variables)
    values, lines = {}, []
    for name, variable in own.items():
        shape, value = tuple(variable.shape), saved.get(name)
        if value is not None and value.shape != shape and name.endswith('positions/embedding'):
            value = resize_positions(value, shape)
            lines.append(f'{name}: resized from {saved[name].shape} to {shape}')
        if value is not None and value.shape == shape:
            values[name] = value
        elif '/head/' not in f'/{name}':
            found = 'is missing' if value is None else f'has shape {value.shape} instead of {shape}'
            raise UserError(
                f'{path} holds the weights of another model: {name} {found}. Set the keys of section model to the '
                'sizes of the weights, or use other weights.'
            )
    skipped = [name for name in own if name not in values]
    for name, value in values.items():
        own[name].assign(value)
    count = sum(math.prod(value.shape) for value in values.values())
    lines.insert(0, f'loaded {len(values)} of {len(own)} weights ({count:,} parameters) from {path}')
    return lines + ([f'shape mismatch, reinitialised: {", ".join(skipped)}'] if skipped else [])


def resize_positions(table: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Interpolates positions linearly in time and space: (T,S,D) -> `shape`, whose S places form a square as before.

    The first and last step, and the corners, keep their embedding. Returns `table` unchanged if a grid is not square or
    D differs.
    """
    steps, places, dim = table.shape
    edge, new_edge = math.isqrt(places), math.isqrt(shape[1])
    if dim != shape[2] or (places != shape[1] and (edge**2 != places or new_edge**2 != shape[1])):
        return table
    if places == shape[1]:
        return _interpolate(table, 0, shape[0])
    grid = table.reshape(steps, edge, edge, dim)
    for axis, length in enumerate((shape[0], new_edge, new_edge)):
        grid = _interpolate(grid, axis, length)
    return grid.reshape(shape)


def _interpolate(array: np.ndarray, axis: int, length: int) -> np.ndarray:
    position = np.linspace(0, array.shape[axis] - 1, length)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, array.shape[axis] - 1)
    share = (position - low).astype(array.dtype).reshape(-1, *[1] * (array.ndim - axis - 1))
    return array.take(low, axis) * (1 - share) + array.take(high, axis) * share
