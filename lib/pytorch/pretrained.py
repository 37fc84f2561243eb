"""Pretrained weights: loading, adapting and freezing.

MotionBERT (https://github.com/Walter0807/MotionBERT) stores a pretrained DSTformer under 'model_pos' and action models
under 'model', with the prefix `module.`.
"""

import os
from collections.abc import Iterable

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lib.errors import UserError
from lib.pytorch.checkpoint import read, weights_of

# Smallest fraction of backbone parameters that must fit. MotionBERT-Lite, half as wide, matches in some biases only.
LEAST_SHARE = 0.1


def read_weights(path: str | os.PathLike) -> dict[str, Tensor]:
    """Reads the state dict in a file. Raises UserError if the file cannot be read or holds no weights."""
    return weights_of(read(path), path)


def load_backbone(model: nn.Module, path: str | os.PathLike) -> list[str]:
    """Loads all matching weights from a file; returns log lines about loaded and skipped tensors.

    If no name in the file begins with `backbone.`, the file holds only the backbone. Layers are loaded as a whole or
    not at all: a bias is useless without its weight. `temp_embed` is adapted to the model's length, see `fit_length`.
    Raises UserError, leaving the model unchanged, if the file cannot be read or holds another model.
    """
    weights, own = read_weights(path), model.state_dict()
    bare = hasattr(model, 'backbone') and not any(name.startswith('backbone.') for name in weights)
    prefix = 'backbone.' if bare else ''
    saved = {prefix + name: weight for name, weight in weights.items()}
    resized = []
    for name in own:
        if name.endswith('temp_embed') and name in saved:
            new, old = own[name].shape, saved[name].shape
            if new != old and new[:1] + new[2:] == old[:1] + old[2:]:
                saved[name] = fit_length(saved[name], new[1])
                how = 'truncated' if new[1] < old[1] else 'interpolated'
                resized.append(f'{name}: {how} from {old[1]} to {new[1]} steps')

    missing = [name for name in own if name not in saved]
    misshapen = [name for name in own if name in saved and saved[name].shape != own[name].shape]
    unfit = {*missing, *misshapen}
    layers = {name for name, module in model.named_modules() if not any(module.children())}
    new_layers = layers & {_parent(name) for name in unfit}
    same_layer = [name for name in own if _parent(name) in new_layers and name not in unfit]
    skipped = {*unfit, *same_layer}
    loaded = {name: saved[name] for name in own if name not in skipped}
    shapes = [f'{name} {tuple(saved[name].shape)} in the file, {tuple(own[name].shape)} here' for name in misshapen]
    unexpected = [name.removeprefix(prefix) for name in saved if name not in own]

    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    in_backbone = {name: size for name, size in sizes.items() if not name.startswith('head.')}
    fitting = sum(size for name, size in in_backbone.items() if name in loaded)
    if fitting < LEAST_SHARE * sum(in_backbone.values()):
        differing = shapes or [f'{name} is not in the model' for name in unexpected]
        raise UserError(
            f'{path} holds the weights of another model: {fitting:,} of the {sum(in_backbone.values()):,} parameters '
            f'of the backbone fit ({_listed(differing)}). Set the keys of section model to the sizes of the weights, '
            'or use other weights.'
        )
    model.load_state_dict(loaded, strict=False)
    num_loaded, total = sum(size for name, size in sizes.items() if name in loaded), sum(sizes.values())
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    useless = [name for name in own if name in skipped & frozen and not name.startswith('backbone.head.')]
    notes = {
        'missing in the file, initialised randomly': missing,
        'shape mismatch, initialised randomly': shapes,
        'in the same layers, initialised randomly': same_layer,
        'initialised randomly but frozen, add them to train.partial_train': useless,
        'not in this model, ignored': unexpected,
    }
    return [
        f'loaded {len(loaded)} of {len(own)} tensors ({num_loaded:,} of {total:,} parameters) from {path}',
        *resized,
        *(f'{note}: {_listed(names)}' for note, names in notes.items() if names),
    ]


def fit_length(temp_embed: Tensor, length: int) -> Tensor:
    """Truncates or linearly interpolates temporal embeddings: (1,T,1,D) -> (1,length,1,D).

    Interpolation keeps the first and last embedding (align_corners); without it, several steps at either end would get
    the same one.
    """
    if length <= temp_embed.shape[1]:
        return temp_embed[:, :length]
    table = rearrange(temp_embed.float(), '1 t 1 d -> 1 d t')
    return rearrange(F.interpolate(table, length, mode='linear', align_corners=True), '1 d t -> 1 t 1 d')


def freeze_backbone(model: nn.Module, partial_train: list[str] | None) -> None:
    """Freezes all backbone parameters whose names contain none of the substrings; None freezes nothing.

    The head, `head.*`, is not frozen. Raises UserError if no name contains a substring.
    """
    if partial_train is None:
        return
    backbone = {
        name.removeprefix('backbone.'): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not name.startswith('head.')
    }
    for part in partial_train:
        if not any(part in name for name in backbone):
            known = dict.fromkeys(name.split('.')[0] for name in backbone)
            raise UserError(
                f'train.partial_train: no parameter of the backbone has {part!r} in its name. The names begin with '
                f'{", ".join(known)}.'
            )
    for name, parameter in backbone.items():
        parameter.requires_grad_(any(part in name for part in partial_train))


def _parent(name: str) -> str:
    """Name of the module that owns a tensor."""
    return name.rpartition('.')[0]


def _listed(items: Iterable[str], most: int = 4) -> str:
    items = list(items)
    return ', '.join(items[:most]) + (f' and {len(items) - most} more' if len(items) > most else '')
