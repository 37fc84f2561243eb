"""Reading what torch.save wrote without trusting it: tensors and plain data, nothing of which is run.

torch.load, with weights_only too, can be made to hash without end, to give tensors of 10**10 elements from one, or to
take all memory, by a file of a few kilobytes.
"""

import io
import math
import os
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lib.files import require_file
from lib.npz import read_into, stored_members
from lib.unpickling import LEAF_TYPES, DataUnpickler, Name, RefusedError, latin1, no_bytes, shown

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

    It takes little more memory than the file has bytes. Where there is a checksum, as in our own checkpoints, it is
    verified. Raises OSError or ValueError naming the file.
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
    (module, name): Name(_Number)
    for module, name in (('numpy', 'dtype'), ('numpy.core.multiarray', 'scalar'), ('numpy._core.multiarray', 'scalar'))
}


class _CheckpointUnpickler(DataUnpickler):
    """An interpreter of those opcodes and names that plain data and tensors need.

    archive: members of one folder, of which `data.pkl` is the program and `data/KEY` are the numbers.
    file_size: the file's bytes.
    """

    UNKNOWN_NAME: ClassVar = 'holds more than weights: it asks for {}, which was not run'

    def __init__(self, archive: zipfile.ZipFile, file_size: int) -> None:
        names = archive.namelist()
        folders = [name.removesuffix('data.pkl') for name in names if re.fullmatch('[^/]+/data.pkl', name)]
        if len(folders) != 1 or not all(name.startswith(folders[0]) for name in names):
            raise RefusedError('does not hold one folder with one data.pkl, as torch.save writes it')
        self.archive, self.folder = archive, folders[0]
        if f'{self.folder}constants.pkl' in names:
            raise RefusedError('is an archive of TorchScript, a program')
        byte_order = f'{self.folder}byteorder'
        if byte_order in names and self.content('byteorder') != bytearray(sys.byteorder, 'ascii'):
            raise RefusedError('was written by a machine that orders bytes in another way')
        size = archive.getinfo(f'{self.folder}data.pkl').file_size
        if size > _LARGEST_PROGRAM:
            raise RefusedError(f'holds {size:,} bytes beside its tensors, more than any model needs')
        super().__init__(io.BytesIO(self.content('data.pkl')), size)
        self.tensors = size // _LEAST_BYTES_OF_TENSOR + 10  # that may still be made
        self.most_items, self.most_bytes = size + 1000, _MOST_REPEATED * file_size
        self.storages: dict[str, torch.UntypedStorage] = {}
        self.names = {
            **_STORAGES,
            **_NUMBERS,
            ('_codecs', 'encode'): Name(latin1),  # bytes, such as those of NumPy's numbers
            ('__builtin__', 'bytes'): Name(no_bytes),
            ('collections', 'OrderedDict'): Name(self.ordered_dict),
            ('torch._utils', '_rebuild_tensor_v2'): Name(self.tensor),
            ('torch._utils', '_rebuild_parameter'): Name(self.parameter),
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

    def ordered_dict(self) -> OrderedDict:
        self.push_container(OrderedDict())
        return self.stack.pop()

    def set_items(self, items: list) -> None:
        keys, target = items[::2], self.stack[-1]
        if type(target) not in (dict, OrderedDict):
            raise RefusedError('sets items of what is no dict')
        if not all(key.isprintable() if type(key) is str else _is_count(key) for key in keys):
            raise RefusedError('holds a key that is neither printable text nor a whole number')
        target.update(zip(keys, items[1::2], strict=True))

    def build(self) -> None:
        self.stack.pop()
        if type(self.stack[-1]) not in (_Number, OrderedDict):
            raise RefusedError('changes the inside of an object')
        # passed over: the state of a type, the versions that a state_dict notes of its layers

    def storage(self) -> None:
        stored = self.stack.pop()
        if type(stored) is not tuple or [*map(type, stored)] != [str, _StorageType, str, str, int]:
            raise RefusedError('refers to what are no numbers of a tensor')
        kind, storage_type, key, _, numel = stored
        if kind != 'storage':
            raise RefusedError('refers to what are no numbers of a tensor')
        member, itemsize = self.archive.getinfo(f'{self.folder}data/{key}'), storage_type.dtype.itemsize
        if member.file_size // itemsize != numel:
            raise RefusedError(f'announces {shown(numel)} numbers, where it holds {member.file_size // itemsize}')
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
            raise RefusedError('holds more tensors than its size has room for')
        if type(storage) is not _Storage or metadata is not None:
            raise RefusedError('holds a tensor that is more than numbers')
        if not type(size) is type(stride) is tuple or len(size) != len(stride) or len(size) > _MOST_AXES:
            raise RefusedError('holds a tensor without a sound shape')
        if not all(map(_is_count, (offset, *size, *stride))):
            raise RefusedError('holds a tensor without a sound shape')
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        numel = math.prod(size)
        if numel > storage.numel or (numel and last >= storage.numel) or offset > storage.numel:
            raise RefusedError(f'holds a tensor of shape {shown(size)} with only {storage.numel} numbers')
        tensor = torch.empty(0, dtype=storage.dtype).set_(storage.data, offset, size, stride)
        return tensor.requires_grad_(bool(requires_grad))

    def parameter(self, data: Tensor, requires_grad: bool, backward_hooks: OrderedDict) -> nn.Parameter:
        self.tensors -= 1
        if type(data) is not Tensor or self.tensors < 0:
            raise RefusedError('holds a parameter that is no tensor')
        return nn.Parameter(data, bool(requires_grad))

    def load(self) -> object:
        content = super().load()
        if self.unread or self.pos < len(self.data):
            raise RefusedError('goes on after its end')
        return content

    def require_plain(self, content: object) -> None:
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
                elif not isinstance(item, (*LEAF_TYPES, _Number)):
                    raise RefusedError('holds more than data: a function or a type')
                if items + len(below) > self.most_items or nbytes > self.most_bytes:
                    raise RefusedError('stands for much more than it holds, since it names things many times')
            level, items = below, items + len(below)
        if level:
            raise RefusedError(f'nests more than {_DEEPEST} deep')

    HANDLERS: ClassVar = {
        **DataUnpickler.HANDLERS,
        pickle.BUILD: build,
        pickle.BINPERSID: storage,
    }


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _LARGEST_NUMBER
