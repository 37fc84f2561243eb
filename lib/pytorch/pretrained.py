"""Weights to begin with: MotionBERT's, the original project's or our own, and what of them a model takes over.

MotionBERT (https://github.com/Walter0807/MotionBERT) keeps a pretrained DSTformer under 'model_pos' and action models
under 'model', with `module.` before every name.
"""

import io
import math
import os
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lib.data.pickles import _LEAF_TYPES, _DataUnpickler, _latin1, _Name, _no_bytes, _RefusedError, shown, shown_text
from lib.files import require_file
from lib.npz import read_into, stored_members
from lib.run import check_digest

# Weights of which less fits belong to another model. Of those of MotionBERT-Lite, half as wide, only biases fit.
LEAST_SHARE = 0.1


# --- reading a file -------------------------------------------------------------------------------------------------

_LARGEST_PROGRAM = 2**23  # bytes of what a file says beside its numbers; some 300 for each tensor
_LEAST_BYTES_OF_TENSOR = 32  # of these; torch.save needs over 60
_DEEPEST = 20  # containers in containers
_MOST_REPEATED = 4  # times a file's bytes that its tensors, named again, may stand for
_LARGEST_NUMBER = 2**60  # of a key or an axis; no two below it have one hash
_MOST_AXES = 16
_OLD_FORMAT = b'\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'
_ADVICE = (
    "Take the weights from another source, or, if you trust it, save the model's state_dict() alone where the file "
    'comes from.'
)


def read_file(path: str | os.PathLike) -> object:
    """What torch.save wrote into a file, on the CPU: tensors, plain containers, text, numbers and NumPy's numbers.

    Nothing in it is run, and it takes little more memory than the file has bytes. torch.load, with weights_only too,
    can be made to hash without end, to give tensors of 10**10 elements from one, or to crash the process. Where there
    is a checksum, as in our own checkpoints, it is verified. Raises OSError or ValueError naming the file.
    """
    path = Path(path)
    require_file(path)
    with path.open('rb') as file:
        if file.read(2 + len(_OLD_FORMAT))[2:] == _OLD_FORMAT:
            raise ValueError(
                f'{path} is in the format of PyTorch before 1.6, which is not read here. If you trust it, load it with '
                'torch.load and save its weights anew with torch.save.'
            )
    with stored_members(path, 'a checkpoint of PyTorch', _ADVICE) as archive:
        content = _CheckpointUnpickler(archive, path.stat().st_size).load()
    if isinstance(content, dict) and 'checksum' in content:
        check_digest(content, path, as_array)
    return content


def as_array(tensor: Tensor) -> np.ndarray:
    """A tensor's numbers, on the CPU."""
    return tensor.detach().cpu().numpy()


class _StorageType:
    """A name such as torch.FloatStorage."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class _Storage:
    """Numbers that tensors are views of; numel: how many of `dtype` the bytes of `data` are."""

    def __init__(self, data: torch.UntypedStorage, dtype: torch.dtype) -> None:
        self.data, self.dtype, self.numel = data, dtype, data.nbytes() // dtype.itemsize


_DTYPES = {
    'Double': torch.float64,
    'Float': torch.float32,
    'Half': torch.float16,
    'BFloat16': torch.bfloat16,
    'Long': torch.int64,
    'Int': torch.int32,
    'Short': torch.int16,
    'Char': torch.int8,
    'Byte': torch.uint8,
    'Bool': torch.bool,
    'ComplexDouble': torch.complex128,
    'ComplexFloat': torch.complex64,
}
_STORAGES = {('torch', f'{name}Storage'): _StorageType(dtype) for name, dtype in _DTYPES.items()}


class _Number:
    """Stands for NumPy's numbers in a file, such as MotionBERT's min_loss: they are passed over, not built."""

    def __init__(self, *_: object) -> None: ...


# NumPy 2 spells numpy._core what was numpy.core before.
_NUMBERS = {
    (module, name): _Name(_Number)
    for module, name in (('numpy', 'dtype'), ('numpy.core.multiarray', 'scalar'), ('numpy._core.multiarray', 'scalar'))
}


class _CheckpointUnpickler(_DataUnpickler):
    """An interpreter of those opcodes and names that plain data and tensors need.

    archive: members of one folder, of which `data.pkl` is the program and `data/KEY` are the numbers.
    file_size: the file's bytes.
    """

    def __init__(self, archive: zipfile.ZipFile, file_size: int) -> None:
        names = archive.namelist()
        folders = [name.removesuffix('data.pkl') for name in names if re.fullmatch('[^/]+/data.pkl', name)]
        if len(folders) != 1 or not all(name.startswith(folders[0]) for name in names):
            raise _RefusedError('does not hold one folder with one data.pkl, as torch.save writes it')
        self.archive, self.folder = archive, folders[0]
        if f'{self.folder}constants.pkl' in names:
            raise _RefusedError('is an archive of TorchScript, a program')
        byte_order = f'{self.folder}byteorder'
        if byte_order in names and self.content('byteorder') != bytearray(sys.byteorder, 'ascii'):
            raise _RefusedError('was written by a machine that orders bytes in another way')
        size = archive.getinfo(f'{self.folder}data.pkl').file_size
        if size > _LARGEST_PROGRAM:
            raise _RefusedError(f'holds {size:,} bytes beside its tensors, more than any model needs')
        super().__init__(io.BytesIO(self.content('data.pkl')), size)
        self.tensors = size // _LEAST_BYTES_OF_TENSOR + 10  # that may still be made
        self.most_items, self.most_bytes = size + 1000, _MOST_REPEATED * file_size
        self.storages: dict[str, torch.UntypedStorage] = {}
        self.names = {
            **_STORAGES,
            **_NUMBERS,
            ('_codecs', 'encode'): _Name(_latin1),  # bytes, such as those of NumPy's numbers
            ('__builtin__', 'bytes'): _Name(_no_bytes),
            ('collections', 'OrderedDict'): _Name(self.ordered_dict),
            ('torch._utils', '_rebuild_tensor_v2'): _Name(self.tensor),
            ('torch._utils', '_rebuild_parameter'): _Name(self.parameter),
        }

    def content(self, name: str) -> bytearray:
        member = self.archive.getinfo(f'{self.folder}{name}')
        content = bytearray(member.file_size)
        self.read_member(member, memoryview(content))
        return content

    def read_member(self, member: zipfile.ZipInfo, buffer: memoryview) -> None:
        if member.CRC == 0:  # torch.serialization.set_crc32_options(False) leaves them out
            del member.CRC
        with self.archive.open(member) as file:
            read_into(buffer, file)

    def push_name(self, module: object, name: object) -> None:
        if type(module) is not str or type(name) is not str:
            raise _RefusedError('asks for a thing whose name is not text')
        if (module, name) not in self.names:
            raise _RefusedError(
                f'holds more than weights: it asks for {shown_text(f"{module}.{name}")}, which was not run'
            )
        self.stack.append(self.names[module, name])

    def ordered_dict(self) -> OrderedDict:
        self.push_container(OrderedDict())
        return self.stack.pop()

    def set_items(self, items: list) -> None:
        keys, target = items[::2], self.stack[-1]
        if type(target) not in (dict, OrderedDict):
            raise _RefusedError('sets items of what is no dict')
        if not all(key.isprintable() if type(key) is str else _is_count(key) for key in keys):
            raise _RefusedError('holds a key that is neither printable text nor a whole number')
        target.update(zip(keys, items[1::2], strict=True))

    def build(self) -> None:
        self.stack.pop()
        if type(self.stack[-1]) not in (_Number, OrderedDict):
            raise _RefusedError('changes the inside of an object')
        # passed over: the state of a type, the versions that a state_dict notes of its layers

    def storage(self) -> None:
        stored = self.stack.pop()
        if type(stored) is not tuple or [*map(type, stored)] != [str, _StorageType, str, str, int]:
            raise _RefusedError('refers to what are no numbers of a tensor')
        kind, storage_type, key, _, numel = stored
        if kind != 'storage':
            raise _RefusedError('refers to what are no numbers of a tensor')
        member, itemsize = self.archive.getinfo(f'{self.folder}data/{key}'), storage_type.dtype.itemsize
        if member.file_size // itemsize != numel:
            raise _RefusedError(f'announces {shown(numel)} numbers, where it holds {member.file_size // itemsize}')
        if key not in self.storages:
            data = torch.empty(member.file_size, dtype=torch.uint8)
            self.read_member(member, memoryview(data.numpy()))
            self.storages[key] = data.untyped_storage()
        self.stack.append(_Storage(self.storages[key], storage_type.dtype))

    def tensor(
        self,
        storage: _Storage,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        requires_grad: bool,
        backward_hooks: OrderedDict,
        metadata: object = None,
    ) -> Tensor:
        self.tensors -= 1
        if self.tensors < 0:
            raise _RefusedError('holds more tensors than its size has room for')
        if type(storage) is not _Storage or metadata is not None:
            raise _RefusedError('holds a tensor that is more than numbers')
        if not type(size) is type(stride) is tuple or len(size) != len(stride) or len(size) > _MOST_AXES:
            raise _RefusedError('holds a tensor without a sound shape')
        if not all(map(_is_count, (offset, *size, *stride))):
            raise _RefusedError('holds a tensor without a sound shape')
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        numel = math.prod(size)
        if numel > storage.numel or (numel and last >= storage.numel) or offset > storage.numel:
            raise _RefusedError(f'holds a tensor of shape {shown(size)} with only {storage.numel} numbers')
        tensor = torch.empty(0, dtype=storage.dtype).set_(storage.data, offset, size, stride)
        return tensor.requires_grad_(bool(requires_grad))

    def parameter(self, data: Tensor, requires_grad: bool, backward_hooks: OrderedDict) -> nn.Parameter:
        self.tensors -= 1
        if type(data) is not Tensor or self.tensors < 0:
            raise _RefusedError('holds a parameter that is no tensor')
        return nn.Parameter(data, bool(requires_grad))

    def stop(self) -> None:
        (self.loaded,) = self.stack
        self.require_sound(self.loaded)
        self.stack, self.stopped = [None], True  # nothing is left for the checks of data without tensors

    def load(self) -> object:
        super().load()
        if self.unread or self.pos < len(self.data):
            raise _RefusedError('goes on after its end')
        return self.loaded

    def require_sound(self, content: object) -> None:
        """Refuses what is nested too deep, no plain data, or much more when all is followed than what is stored."""
        level, items, nbytes = [content], 0, 0
        for _ in range(_DEEPEST):
            below = []
            for item in level:
                if type(item) in (dict, OrderedDict):
                    below += item.values()
                elif type(item) in (list, tuple):
                    below += item
                elif isinstance(item, Tensor):
                    nbytes += item.nbytes
                elif not isinstance(item, (*_LEAF_TYPES, _Number)):
                    raise _RefusedError('holds more than data: a function or a type')
                if items + len(below) > self.most_items or nbytes > self.most_bytes:
                    raise _RefusedError('stands for much more than it holds, since it names things many times')
            level, items = below, items + len(below)
        if level:
            raise _RefusedError(f'nests more than {_DEEPEST} deep')

    HANDLERS: ClassVar = {
        **_DataUnpickler.HANDLERS,
        pickle.BUILD: build,
        pickle.BINPERSID: storage,
        pickle.STOP: stop,
    }


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _LARGEST_NUMBER


# --- what a model takes over ----------------------------------------------------------------------------------------


def read_weights(path: str | os.PathLike) -> dict[str, Tensor]:
    """The weights in a file, {name: tensor}; raises OSError or ValueError as `read_file` and `weights_of` do."""
    return weights_of(read_file(path), path)


def weights_of(content: object, path: str | os.PathLike) -> dict[str, Tensor]:
    """The weights in the content of a file: its 'model_pos', else its 'model', else the content itself.

    `module.` before all names is taken off. Raises ValueError, naming the file, where there are none.
    """
    weights = content
    if isinstance(content, dict):
        weights = content.get('model_pos', content.get('model', content))
    if not _are_weights(weights):
        found = f'the keys {_listed(map(str, content))}' if isinstance(content, dict) else f'a {type(content).__name__}'
        raise ValueError(
            f"{path} holds no weights: found {found}, but looked for tensors by name, under 'model_pos', under 'model' "
            'or alone.'
        )
    wrapped = all(name.startswith('module.') for name in weights)
    return {name.removeprefix('module.') if wrapped else name: weight for name, weight in weights.items()}


def load_backbone(model: nn.Module, path: str | os.PathLike) -> list[str]:
    """Takes over what fits of the weights in a file; returns lines on what was loaded, what not and why.

    A file that knows no `backbone.` is the backbone alone of a model that has one. A layer is taken over whole or not
    at all: a bias says nothing beside new weights. `temp_embed` may be of another length, see `fit_length`. Raises
    OSError or ValueError, before anything is changed, where the file cannot be read or suits another model.
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
        raise ValueError(
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

    The head, `head.*`, trains whole, and what is frozen already stays frozen. Raises ValueError for an unknown part.
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
            raise ValueError(
                f'train.partial_train: no parameter of the backbone has {part!r} in its name. The names begin with '
                f'{", ".join(known)}.'
            )
    for name, parameter in backbone.items():
        parameter.requires_grad_(any(part in name for part in partial_train))


def _are_weights(content: object) -> bool:
    named = isinstance(content, dict) and content and all(isinstance(name, str) for name in content)
    return bool(named) and all(isinstance(weight, Tensor) for weight in content.values())


def _parent(name: str) -> str:
    """The module that a tensor belongs to."""
    return name.rpartition('.')[0]


def _listed(items: Iterable[str], most: int = 4) -> str:
    items = list(items)
    return ', '.join(items[:most]) + (f' and {len(items) - most} more' if len(items) > most else '')
