"""An interpreter of pickles that builds plain data, numbers and NumPy arrays, and runs nothing.

Python's own unpickler, however few globals it may find, reserves what a file announces, hashes what it nests and sets
attributes: ten bytes can take all memory, a thousand hang the process, a million overflow its stack. Here no byte is
announced that is not there, keys are text, and nothing has attributes.
"""

import math
import pickle
import re
import reprlib
import struct
import types
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import numpy as np

_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxdict, _repr.maxstring, _repr.maxother = 2, 4, 100, 100


def shown(value: Any) -> str:
    """A value for a message: short, on one line, in printable characters, however large or nested it is."""
    return ' '.join(_repr.repr(value).encode('ascii', 'backslashreplace').decode().split())


def shown_text(text: str) -> str:
    """The same for text that needs no quotes where it is a name."""
    return text if len(text) <= 100 and text.isprintable() else shown(text)


class RefusedError(Exception):
    """What a file does that no plain data does."""


class Name:
    """A global that a pickle may ask for. make: what stands for calling it, None for a type that is only named."""

    __slots__ = ('make',)

    def __init__(self, make: Callable[..., Any] | None = None) -> None:
        self.make = make


class _Dtype:
    """Stands in for numpy.dtype while a pickle is read: plain numbers and text, no objects, fields, subarrays."""

    __slots__ = ('dtype',)

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if type(code) is not str or not re.fullmatch(r'[<>|=]?([?biuf][1-8]?|[SU][1-9]\d{0,3})', code):
            raise RefusedError(f'holds an array of type {shown(code)}, which is not plain numbers or text')
        self.dtype = np.dtype(code)

    def build(self, state: tuple) -> None:
        _, byte_order, *structure = state
        if structure[:3] != [None, None, None] or len(structure) > 6:
            raise RefusedError('holds an array of a type with fields, which is not plain numbers or text')
        if byte_order in ('<', '>'):
            self.dtype = self.dtype.newbyteorder(byte_order)


def _reconstruct(subtype: Name, shape: tuple, typecode: bytes) -> np.ndarray:
    if subtype is not _NDARRAY:
        raise RefusedError('holds an array of a class of its own')
    return np.empty(0, np.int8)  # BUILD fills it in


def _fill_in(array: np.ndarray, state: tuple) -> None:
    """The state that NumPy would trust is checked first."""
    _, shape, dtype, is_fortran, content = state
    _require_fit(shape, dtype, content)
    if array.shape != (0,):
        raise RefusedError('fills in an array twice')
    array.__setstate__((1, shape, dtype.dtype, bool(is_fortran), content))


def _from_buffer(
    content: bytes | bytearray, dtype: _Dtype, shape: tuple, order: str, axis_order: tuple | None = None
) -> np.ndarray:
    _require_fit(shape, dtype, content)
    array = np.frombuffer(content, dtype.dtype)
    return array.reshape(shape).transpose(axis_order) if order == 'K' else array.reshape(shape, order=order)


def _scalar(dtype: _Dtype, content: bytes) -> np.generic:
    _require_fit((1,), dtype, content)
    return np.frombuffer(content, dtype.dtype)[0]


def _require_fit(shape: tuple, dtype: _Dtype, content: bytes | bytearray) -> None:
    if type(dtype) is not _Dtype or type(content) not in (bytes, bytearray):
        raise RefusedError('holds an array that is not plain numbers or text')
    if type(shape) is not tuple or len(shape) > 8 or not all(type(n) is int and n >= 0 for n in shape):
        raise RefusedError(f'holds an array of the shape {shown(shape)}')
    if math.prod(shape) * dtype.dtype.itemsize != len(content):
        raise RefusedError(f'holds an array of shape {shape} that announces more or less than its content')


def latin1(text: str, encoding: str) -> bytes:
    if encoding != 'latin1':
        raise RefusedError(f'holds text encoded as {shown(encoding)}')
    return text.encode('latin1')  # how protocols below 3 write bytes


def no_bytes() -> bytes:
    return b''  # how protocols below 3 write that


_NDARRAY = Name()
_NAMES = {
    ('__builtin__', 'bytes'): Name(no_bytes),
    ('_codecs', 'encode'): Name(latin1),
    ('numpy', 'dtype'): Name(_Dtype),
    ('numpy', 'ndarray'): _NDARRAY,
}
for _core in ('numpy.core', 'numpy._core'):  # NumPy 1 and 2
    _NAMES[f'{_core}.multiarray', '_reconstruct'] = Name(_reconstruct)
    _NAMES[f'{_core}.multiarray', 'scalar'] = Name(_scalar)
    _NAMES[f'{_core}.numeric', '_frombuffer'] = Name(_from_buffer)

CHUNK = 2**18  # bytes read at once
_LONGEST_NUMBER = 9  # bytes, with the opcode more than any opcode's fixed part has
_MOST_MARKS = 64  # open at once
_DEEPEST = 8  # containers in containers; PYSKL's have 4
_LEAST_BYTES = 8  # of a file for each container in it; PYSKL's have over 20
LEAF_TYPES = (str, int, float, bool, bytes, bytearray, types.NoneType, np.ndarray, np.generic)
_UINT16, _UINT32, _UINT64, _INT32, _FLOAT64 = map(struct.Struct, ('<H', '<I', '<Q', '<i', '>d'))


class DataUnpickler:
    """An interpreter of those opcodes that plain data and NumPy arrays need.

    file: opened for reading, at its start. size: its bytes. names: the globals that it may ask for.
    """

    UNKNOWN_NAME: ClassVar = 'asks for {}'

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.unread = file, size
        self.names = _NAMES
        self.data, self.pos, self.safe = b'', 0, -1  # beyond `safe` an opcode may be cut at the end of `data`
        self.frame_end, self.past = 0, 0  # in bytes of the file; `past` of them came before `data`
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks under each open mark
        self.memo: list[Any] = []
        self.containers = size // _LEAST_BYTES + 1000  # that may still be made
        self.copies = size  # bytes that calls may still make
        self.stopped = False

    def load(self) -> Any:
        """The object in the file. Raises RefusedError, or whatever a damaged file leads to."""
        handlers = [self.unknown] * 256
        for opcode, handler in self.HANDLERS.items():
            handlers[opcode[0]] = handler.__get__(self)
        while not self.stopped:
            if self.pos > self.safe:
                self.read_on()
            opcode = self.data[self.pos]
            self.pos += 1
            handlers[opcode]()
        if self.below or self.pos + self.past < self.frame_end:
            raise EOFError('it stops within a mark or a frame')
        (content,) = self.stack
        self.require_plain(content)
        return content

    def unknown(self) -> None:
        opcode = self.data[self.pos - 1 : self.pos]
        names = {getattr(pickle, name): name for name in dir(pickle) if re.fullmatch('[A-Z][A-Z0-9_]+', name)}
        if opcode not in names:
            raise ValueError(f'there is no opcode {opcode!r}')
        if opcode in (pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING):
            raise RefusedError('holds text as Python 2 writes it (with Python 3 it would have to be saved anew)')
        raise RefusedError(f'uses the opcode {names[opcode]}')

    # Bytes of the file.

    def read_on(self) -> None:
        """Brings more of the file into `data`."""
        self.past += self.pos
        rest = self.data[self.pos :]
        more = self.file.read(min(self.unread, max(CHUNK, len(rest))))  # doubled: a long line is read in linear time
        self.unread -= len(more)
        if not more:
            self.unread = 0
        self.data, self.pos = rest + more, 0
        self.safe = len(self.data) - _LONGEST_NUMBER if self.unread else len(self.data)

    def take(self, count: int) -> bytes:
        end = self.pos + count
        if end <= len(self.data):
            taken = self.data[self.pos : end]
            self.pos = end
            return taken
        rest = end - len(self.data)
        if rest > self.unread:
            raise EOFError(f'{count:,} bytes are announced, {count - rest + self.unread:,} are there')
        taken = self.data[self.pos :] + self.file.read(rest)
        if len(taken) < count:
            raise EOFError('it became shorter while it was read')
        self.unread -= rest
        self.past += end
        self.data, self.pos, self.safe = b'', 0, -1
        return taken

    def line(self) -> bytes:
        while (end := self.data.find(b'\n', self.pos)) < 0:
            if not self.unread:
                raise EOFError('a line does not end')
            self.read_on()
        taken = self.data[self.pos : end]
        self.pos = end + 1
        return taken

    def uint8(self) -> int:
        value = self.data[self.pos]
        self.pos += 1
        return value

    def number(self, form: struct.Struct) -> Any:
        value = form.unpack_from(self.data, self.pos)[0]
        self.pos += form.size
        return value

    def uint32(self) -> int:  # the same, as there are so many
        value = _UINT32.unpack_from(self.data, self.pos)[0]
        self.pos += 4
        return value

    def decimal(self, text: bytes) -> int:
        if not re.fullmatch(rb'-?\d{1,20}L?', text):
            raise ValueError(f'{shown(text)} is no number')
        return int(text.rstrip(b'L'))

    # Opcodes. What they do is told in pickletools.

    def proto(self) -> None:
        if self.uint8() > 5:
            raise ValueError('its protocol is newer than 5')

    def frame(self) -> None:
        start = self.pos - 1 + self.past
        end = self.number(_UINT64) + start + 9
        if start < self.frame_end or end > self.past + len(self.data) + self.unread:
            raise EOFError('a frame does not fit into it')
        self.frame_end = end

    def stop(self) -> None:
        self.stopped = True

    def mark(self) -> None:
        if len(self.below) == _MOST_MARKS:
            raise RefusedError(f'nests more than {_MOST_MARKS} deep')
        self.below.append(self.stack)
        self.stack = []

    def items(self) -> list[Any]:
        """What lies above the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def push_container(self, container: list | tuple | dict) -> None:
        self.containers -= 1
        if self.containers < 0:
            raise RefusedError('holds more lists, tuples and dicts than its size has room for')
        self.stack.append(container)

    def int_line(self) -> None:
        text = self.line()
        self.stack.append(text == b'01' if text in (b'00', b'01') else self.decimal(text))

    def long1(self) -> None:
        count = self.uint8()
        if count > _LONGEST_NUMBER:
            raise RefusedError(f'holds a number of {count} bytes')
        self.stack.append(int.from_bytes(self.take(count), 'little', signed=True))

    def unicode_line(self) -> None:
        text = self.line().decode('raw-unicode-escape')
        text.encode()  # no half characters
        self.stack.append(text)

    def append(self) -> None:
        item = self.stack.pop()
        self.list_below().append(item)

    def appends(self) -> None:
        items = self.items()
        self.list_below().extend(items)

    def list_below(self) -> list[Any]:
        if type(self.stack[-1]) is not list:
            raise RefusedError('appends to what is no list')
        return self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        keys, target = items[::2], self.stack[-1]
        if type(target) is not dict:
            raise RefusedError('sets items of what is no dict')
        if not all(type(key) is str for key in keys):  # only these are hashed in no time
            raise RefusedError('holds a key that is not text')
        target.update(zip(keys, items[1::2], strict=True))

    def setitem(self) -> None:
        items = self.stack[-2:]
        del self.stack[-2:]
        self.set_items(items)

    def last(self, count: int) -> tuple:
        """The last items as one tuple."""
        if len(self.stack) < count:
            raise EOFError('a tuple has too few items')
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        return items

    def dict_of_items(self) -> None:
        items = self.items()
        self.push_container({})
        self.set_items(items)

    def push_name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise RefusedError('asks for a thing whose name is not text')
        if (module, name) not in self.names:
            raise RefusedError(self.UNKNOWN_NAME.format(shown_text(f'{module}.{name}')))
        self.stack.append(self.names[module, name])

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push_name(module, name)

    def reduce(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if type(called) is not Name or called.make is None or type(arguments) is not tuple:
            raise RefusedError('calls what cannot be called')
        made = called.make(*arguments)
        if isinstance(made, bytes | np.generic):  # copies of content, which the memo could repeat
            self.copies -= len(made) if isinstance(made, bytes) else made.nbytes
            if self.copies < 0:
                raise RefusedError('makes more text and numbers than its size has room for')
        self.stack.append(made)

    def build(self) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if type(state) is not tuple or type(built) not in (np.ndarray, _Dtype):
            raise RefusedError('changes the inside of an object')
        built.build(state) if type(built) is _Dtype else _fill_in(built, state)

    def get(self, index: int) -> None:
        item = self.memo[index] if index >= 0 else None
        if item is _NOTHING:
            raise IndexError(index)
        self.stack.append(item)

    def put(self, index: int) -> None:
        place = index - len(self.memo)
        if not 0 <= index <= len(self.memo) + 1:  # some count from 1
            raise RefusedError(f'keeps place {index} for an object after {len(self.memo)}')
        if place < 0:
            self.memo[index] = self.stack[-1]
        else:
            self.memo += [_NOTHING] * place + [self.stack[-1]]

    def require_plain(self, content: Any) -> None:
        """Raises RefusedError for what is nested too deep or is no plain data; visits each container once a level."""
        level = [content]
        for _ in range(_DEEPEST):
            containers = {id(item): item for item in level if type(item) in (dict, list, tuple)}.values()
            level = [item for parent in containers for item in (parent.values() if type(parent) is dict else parent)]
            if not all(type(item) in (dict, list, tuple) or isinstance(item, LEAF_TYPES) for item in level):
                raise RefusedError('holds more than data: a function or a type')
        if any(type(item) in (dict, list, tuple) for item in level):
            raise RefusedError(f'nests more than {_DEEPEST} deep')

    HANDLERS: ClassVar = {
        pickle.PROTO: proto,
        pickle.FRAME: frame,
        pickle.STOP: stop,
        pickle.MARK: mark,
        pickle.NONE: lambda self: self.stack.append(None),
        pickle.NEWTRUE: lambda self: self.stack.append(True),
        pickle.NEWFALSE: lambda self: self.stack.append(False),
        pickle.INT: int_line,
        pickle.LONG: lambda self: self.stack.append(self.decimal(self.line())),
        pickle.BININT: lambda self: self.stack.append(self.number(_INT32)),
        pickle.BININT1: lambda self: self.stack.append(self.uint8()),
        pickle.BININT2: lambda self: self.stack.append(self.number(_UINT16)),
        pickle.LONG1: long1,
        pickle.FLOAT: lambda self: self.stack.append(float(self.line())),
        pickle.BINFLOAT: lambda self: self.stack.append(self.number(_FLOAT64)),
        pickle.UNICODE: unicode_line,
        pickle.SHORT_BINUNICODE: lambda self: self.stack.append(self.take(self.uint8()).decode()),
        pickle.BINUNICODE: lambda self: self.stack.append(self.take(self.uint32()).decode()),
        pickle.BINUNICODE8: lambda self: self.stack.append(self.take(self.number(_UINT64)).decode()),
        pickle.SHORT_BINBYTES: lambda self: self.stack.append(self.take(self.uint8())),
        pickle.BINBYTES: lambda self: self.stack.append(self.take(self.uint32())),
        pickle.BINBYTES8: lambda self: self.stack.append(self.take(self.number(_UINT64))),
        pickle.BYTEARRAY8: lambda self: self.stack.append(bytearray(self.take(self.number(_UINT64)))),
        pickle.EMPTY_LIST: lambda self: self.push_container([]),
        pickle.EMPTY_DICT: lambda self: self.push_container({}),
        pickle.EMPTY_TUPLE: lambda self: self.push_container(()),
        pickle.LIST: lambda self: self.push_container(self.items()),
        pickle.DICT: dict_of_items,
        pickle.TUPLE: lambda self: self.push_container(tuple(self.items())),
        pickle.TUPLE1: lambda self: self.push_container(self.last(1)),
        pickle.TUPLE2: lambda self: self.push_container(self.last(2)),
        pickle.TUPLE3: lambda self: self.push_container(self.last(3)),
        pickle.APPEND: append,
        pickle.APPENDS: appends,
        pickle.SETITEM: setitem,
        pickle.SETITEMS: lambda self: self.set_items(self.items()),
        pickle.GLOBAL: lambda self: self.push_name(self.line().decode(), self.line().decode()),
        pickle.STACK_GLOBAL: stack_global,
        pickle.REDUCE: reduce,
        pickle.BUILD: build,
        pickle.GET: lambda self: self.get(self.decimal(self.line())),
        pickle.BINGET: lambda self: self.get(self.uint8()),
        pickle.LONG_BINGET: lambda self: self.get(self.uint32()),
        pickle.PUT: lambda self: self.put(self.decimal(self.line())),
        pickle.BINPUT: lambda self: self.put(self.uint8()),
        pickle.LONG_BINPUT: lambda self: self.put(self.uint32()),
        pickle.MEMOIZE: lambda self: self.memo.append(self.stack[-1]),
    }


_NOTHING = object()  # in a place of the memo that was passed over
