"""Weights to begin with: MotionBERT's, the original project's or our own, and what of them a model takes over.

MotionBERT (https://github.com/Walter0807/MotionBERT) keeps a pretrained DSTformer under 'model_pos' and action models
under 'model', with `module.` before every name.
"""

import os
from collections.abc import Iterable

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lib.errors import UserError
from lib.pytorch.checkpoint import read, weights_of

# Weights of which less fits belong to another model. Of those of MotionBERT-Lite, half as wide, only biases fit.
LEAST_SHARE = 0.1


def read_weights(path: str | os.PathLike) -> dict[str, Tensor]:
    """The weights in a file, {name: tensor}. Raises UserError if it cannot be read or holds none."""
    return weights_of(read(path), path)


def load_backbone(model: nn.Module, path: str | os.PathLike) -> list[str]:
    """Takes over what fits of the weights in a file; returns lines on what was loaded, what not and why.

    A file that knows no `backbone.` is the backbone alone of a model that has one. A layer is taken over whole or not
    at all: a bias says nothing beside new weights. `temp_embed` may be of another length, see `fit_length`. Raises
    UserError, before anything is changed, where the file cannot be read or suits another model.
    """
    weights, own = read_weights(path), model.state_dict()
    bare = hasattr(model, 'backbone') and not any(name.startswith('backbone.') for name in weights)
    prefix = 'backbone.' if bare else ''
    given = {prefix + name: weight for name, weight in weights.items()}
    resized = []
    for name in own:
        if name.endswith('temp_embed') and name in given:
            here, there = own[name].shape, given[name].shape
            if here != there and here[:1] + here[2:] == there[:1] + there[2:]:
                given[name] = fit_length(given[name], here[1])
                how = 'cut' if here[1] < there[1] else 'interpolated'
                resized.append(f'{name}: {how} from {there[1]} to {here[1]} steps')

    missing = [name for name in own if name not in given]
    misshapen = [name for name in own if name in given and given[name].shape != own[name].shape]
    layers = {name for name, module in model.named_modules() if not any(module.children())}
    fresh_layers = layers & {_parent(name) for name in missing + misshapen}
    beside = [name for name in own if _parent(name) in fresh_layers and name not in missing + misshapen]
    fresh = {*missing, *misshapen, *beside}
    loaded = {name: given[name] for name in own if name not in fresh}
    shapes = [f'{name} {tuple(own[name].shape)} here, {tuple(given[name].shape)} there' for name in misshapen]
    unplaced = [name.removeprefix(prefix) for name in given if name not in own]

    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    in_backbone = {name: size for name, size in sizes.items() if not name.startswith('head.')}
    fitting = sum(size for name, size in in_backbone.items() if name in loaded)
    if fitting < LEAST_SHARE * sum(in_backbone.values()):
        differing = shapes or [f'{name} is not in the model' for name in unplaced]
        raise UserError(
            f'{path} holds the weights of another model: {fitting:,} of the {sum(in_backbone.values()):,} parameters '
            f'of the backbone fit ({_listed(differing)}). Give section model the sizes that the weights were trained '
            'with, or name other weights.'
        )
    model.load_state_dict(loaded, strict=False)
    num_loaded, total = sum(size for name, size in sizes.items() if name in loaded), sum(sizes.values())
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    useless = [name for name in own if name in fresh & frozen and not name.startswith('backbone.head.')]
    lists = {
        'not in the file, start fresh': missing,
        'of another shape, start fresh': shapes,
        'of the same layers, start fresh with them': beside,
        'fresh, yet frozen by train.partial_train: name them there, or they stay random': useless,
        'in the file, without a place in this model': unplaced,
    }
    return [
        f'loaded {len(loaded)} of {len(own)} tensors ({num_loaded:,} of {total:,} parameters) from {path}',
        *resized,
        *(f'{reason}: {_listed(names)}' for reason, names in lists.items() if names),
    ]


def fit_length(temp_embed: Tensor, length: int) -> Tensor:
    """(1,T,1,D) -> (1,length,1,D): the first steps of a longer table, or a shorter one stretched linearly in time.

    The first and the last step keep their rows (align_corners): every step gets a row of its own, where sampling at
    centres would give several steps at either end the same one.
    """
    if length <= temp_embed.shape[1]:
        return temp_embed[:, :length]
    table = rearrange(temp_embed.float(), '1 t 1 d -> 1 d t')
    return rearrange(F.interpolate(table, length, mode='linear', align_corners=True), '1 d t -> 1 t 1 d')


def freeze_backbone(model: nn.Module, partial_train: list[str] | None) -> None:
    """Freezes the parameters of the backbone whose names hold none of the parts; [] all of them, None none.

    The head, `head.*`, trains whole, and what is frozen already stays frozen. Raises UserError for an unknown part.
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
    """The module that a tensor belongs to."""
    return name.rpartition('.')[0]


def _listed(items: Iterable[str], most: int = 4) -> str:
    items = list(items)
    return ', '.join(items[:most]) + (f' and {len(items) - most} more' if len(items) > most else '')
