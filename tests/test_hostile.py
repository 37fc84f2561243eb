"""Malicious and damaged files: no code in them runs or changes the process, and an error names the file.

The readers are those of PYSKL pickles, PyTorch checkpoints and .npz files.
"""

import collections
import contextlib
import copyreg
import functools
import importlib
import io
import json
import operator
import os
import pickle
import re
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.data.pickles import load_annotations
from lib.errors import UserError
from lib.files import read_arrays
from lib.pytorch.pretrained import read_weights
from tests.annotations import make_annotations

READERS = {'.pkl': load_annotations, '.bin': read_weights, '.npz': read_arrays}

# --- A small assembler of pickles ----------------------------------------------------------------------------------


class Call:
    """Pickles as a function call with an optional state."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args, state)

    def __reduce__(self):
        return self.reduced


def text(value):
    return pickle.BINUNICODE + struct.pack('<I', len(value.encode())) + value.encode()


def number(value):
    return pickle.BININT + struct.pack('<i', value)


def data(value):
    """Bytes in the encoding of protocols below 3, the only one that PyTorch reads."""
    return call(name('_codecs', 'encode'), text(value.decode('latin1')), text('latin1'))


def name(module, attribute):
    return pickle.GLOBAL + f'{module}\n{attribute}\n'.encode()


def stack_name(module, attribute):
    return text(module) + text(attribute) + pickle.STACK_GLOBAL


def several(*parts):
    return pickle.MARK + b''.join(parts) + pickle.TUPLE


def call(function, *arguments):
    return function + several(*arguments) + pickle.REDUCE


def built(item, *state):
    return item + (several(*state) if len(state) > 1 else state[0]) + pickle.BUILD


def items(*pairs):
    """A dict."""
    return pickle.EMPTY_DICT + pickle.MARK + b''.join(text(key) + value for key, value in pairs) + pickle.SETITEMS


def attributes(item, **values):
    """Sets attributes with BUILD, as for slots: setattr on the item."""
    return built(item, several(pickle.NONE, items(*values.items())))


PROTO4 = pickle.PROTO + b'\x04'  # enables dotted names
NONE3 = pickle.NONE * 3
DTYPE, NDARRAY = name('numpy', 'dtype'), name('numpy', 'ndarray')
RECONSTRUCT = name('numpy.core.multiarray', '_reconstruct')
SCALAR = name('numpy._core.multiarray', 'scalar')
FROM_BUFFER = name('numpy.core.numeric', '_frombuffer')
REBUILD_TYPE = name('torch._tensor', '_rebuild_from_type_v2')


def dtype(code='f8', order='<', fields=NONE3, sizes=(-1, -1), flags=0, copy=pickle.NEWTRUE):
    made = call(DTYPE, text(code), pickle.NEWFALSE, copy)
    return built(made, number(3), text(order), fields, *map(number, sizes), number(flags))


def array(shape=(1,), content=bytes(8), of=None):
    """An array as pickled by NumPy. shape, content: values or opcodes."""
    shape = several(*map(number, shape)) if isinstance(shape, tuple) else shape
    content = data(content) if content[:1] == b'\0' else content
    empty = call(RECONSTRUCT, NDARRAY, several(number(0)), data(b'b'))
    return built(empty, number(1), shape, of or dtype(), pickle.NEWFALSE, content)


# A false type: NumPy skips the unpickling of objects and uses 8 bytes of the file as a pointer.
OBJECTS = dtype('O8', '|', sizes=(8, 8))
POINTER = data(b'A' * 8)


# --- The corpus ----------------------------------------------------------------------------------------------------


def calls(marker):
    """{name: object whose pickle calls a function that would, or could, create `marker`}."""
    shell, source = f'touch {marker}', f'open({str(marker)!r}, "w")'
    objects = np.empty(2, object)
    objects[:] = [Call(os.system, shell), 1]
    return {
        'os.system': Call(os.system, shell),
        'Popen': Call(subprocess.Popen, ['touch', str(marker)]),
        'eval': Call(eval, source),
        'a nested pickle': Call(pickle.loads, pickle.dumps(Call(os.system, shell), 2)),
        'partial': Call(functools.partial(os.system, shell)),
        'partial, rebuilt': functools.partial(os.system, shell),
        'methodcaller': Call(operator.methodcaller('write_text', 'x'), Path(marker)),
        'attrgetter': Call(operator.attrgetter('system'), Call(importlib.import_module, 'os')),
        'map': Call(list, map(os.system, [shell])),
        'a state': Call(dict, state={'a': Call(os.system, shell)}),
        'a factory': collections.defaultdict(os.system),
        'a path': Path(marker),
        'add_extension': Call(copyreg.add_extension, 'os', 'system', 7),
        'memmap': Call(np.memmap, str(marker), 'u1', 'w+', 0, (3,)),
        'tofile': Call(np.ndarray.tofile, np.zeros(3), str(marker)),
        'objects': objects,
        'metadata': np.zeros(3, np.dtype('f2', metadata={'a': Call(os.system, shell)})),
        'masked': np.ma.zeros(3),
        'from_file': Call(torch.UntypedStorage.from_file, str(marker), True, 3),
        '_load_from_bytes': Call(torch.storage._load_from_bytes, pickle.dumps(Call(os.system, shell), 2)),
        'a module': torch.nn.Linear(2, 2),
    }


def programs(marker):
    """{name: opcodes that leave one object on the stack}; some run code, others change existing objects."""
    shell = text(f'touch {marker}')
    run = [text(str(marker)), text('w')]
    os_module = call(name('builtins', '__import__'), text('os'))
    function = attributes(FROM_BUFFER, numpy=attributes(SCALAR, itemsize=number(8), dtype=text('O')))
    return {
        # Code: all ways to reach a function.
        'a name': call(name('posix', 'system'), shell),
        'a name of Python 2': call(name('__builtin__', 'open'), *run),
        'a name on the stack': call(stack_name('os', 'system'), shell),
        'a dotted name': PROTO4 + call(stack_name('builtins', 'open.__call__'), *run),
        'a dotted name of an allowed class': PROTO4 + call(stack_name('numpy', 'dtype.__base__.__subclasses__')),
        'a dotted name of an allowed module': PROTO4 + call(stack_name('numpy.core.multiarray', 'np.os.system'), shell),
        'a dotted name of our module': PROTO4 + call(stack_name('lib.data.pickles', 'os.system'), shell),
        'a method of an allowed container': PROTO4 + call(stack_name('collections', 'OrderedDict.fromkeys'), text('x')),
        'a name with a newline': call(stack_name('numpy', 'dtype\nos'), shell),
        'getattr': call(call(name('builtins', 'getattr'), os_module, text('system')), shell),
        'INST': pickle.MARK + shell + pickle.INST + b'os\nsystem\n',
        'OBJ': pickle.MARK + name('os', 'system') + shell + pickle.OBJ,
        'NEWOBJ': name('subprocess', 'Popen') + several(several(text('touch'), text(str(marker)))) + pickle.NEWOBJ,
        'NEWOBJ_EX': name('os', 'PathLike') + pickle.EMPTY_TUPLE + pickle.EMPTY_DICT + pickle.NEWOBJ_EX,
        'EXT1': call(pickle.EXT1 + b'\x01', shell),
        'EXT2, used before': call(pickle.EXT2 + b'\x02\0', shell),
        'PERSID': pickle.PERSID + b'os.system\n',
        'BINPERSID': text('os.system') + pickle.BINPERSID,
        'a codec': call(name('_codecs', 'encode'), text('x'), text('rot13')),
        'a codec that is a module': call(name('_codecs', 'encode'), text('x'), text('mbcs')),
        'str with a codec': call(name('builtins', 'str'), data(b'x'), text('undefined')),
        'bytes with a codec': call(name('__builtin__', 'bytes'), text('x'), text('undefined')),
        'text called': call(text('os.system'), shell),
        # Names that this program or a framework could trust by mistake.
        **{f'{module}.{attribute}': call(name(module, attribute), shell) for module, attribute in (
            ('numpy.testing', 'measure'), ('numpy.testing._private.utils', 'runstring'), ('numpy.f2py', 'compile'),
            ('numpy', 'memmap'), ('numpy.lib.npyio', 'load'), ('numpy.core.multiarray', 'fromfile'),
            ('torch._dynamo.utils', 'eval'), ('torch.jit', 'load'), ('torch.utils.cpp_extension', 'load_inline'),
            ('torch.serialization', 'torch.os.system'), ('types', 'FunctionType'), ('yaml', 'unsafe_load'),
            ('keras.models', 'load_model'), ('lib.pytorch.checkpoint', 'read'),
        )},
        # Attributes of existing objects.
        'the defaults of a function': attributes(FROM_BUFFER, __defaults__=several(number(1))),
        'the defaults of scalar': attributes(SCALAR, __defaults__=several(number(1)), __doc__=text('x')),
        'the dict of a function': built(SCALAR, items(('__wrapped__', number(1)))),
        'the class dtype': built(DTYPE, items(('__setstate__', NDARRAY))),
        'the class ndarray': attributes(NDARRAY, __setstate__=number(1)),
        'the class OrderedDict': attributes(name('collections', 'OrderedDict'), get=number(1)),
        'the class list': attributes(name('builtins', 'list'), append=number(1)),
        'the dict of an OrderedDict': built(call(name('collections', 'OrderedDict')), items(('keys', SCALAR))),
        'items of a class': DTYPE + text('a') + number(1) + pickle.SETITEM,
        'appending to a function': attributes(SCALAR, append=DTYPE, extend=DTYPE) + number(1) + pickle.APPEND,
        '__setstate__ of a function': built(built(SCALAR, items(('__setstate__', FROM_BUFFER))), number(1)),
        'a type of a subclass': call(REBUILD_TYPE, DTYPE, DTYPE, several(text('f8')), items(('code', text('O')))),
        'a type of a scalar': call(REBUILD_TYPE, SCALAR, DTYPE, several(dtype(), data(bytes(8))), items()),
        # Types and arrays that NumPy would trust.
        'the one f8': dtype('f8', '>', copy=pickle.NEWFALSE),
        'the one O8': dtype('O8', '|', sizes=(8, 8), flags=0, copy=pickle.NEWFALSE),
        'flags of f8': dtype('f8', flags=63),
        'fields of f8': dtype(fields=pickle.NONE + several(text('a')) + items(('a', several(dtype(), number(0))))),
        'metadata of f8': built(dtype(), number(4), text('<'), NONE3, *[number(0)] * 3, items(('a', SCALAR))),
        'several types in one': call(DTYPE, text('f8,O')),
        'a type that is a function': call(DTYPE, SCALAR),
        'a type that was not made': DTYPE + pickle.EMPTY_TUPLE + pickle.NEWOBJ,
        'objects of pointers': array(content=POINTER, of=OBJECTS),
        'a scalar of a pointer': call(SCALAR, OBJECTS, POINTER),
        'a function as a type': array(content=POINTER, of=function),
        'a function as the type of a scalar': call(SCALAR, function, POINTER),
        'a buffer beyond its end': call(FROM_BUFFER, data(bytes(8)), dtype(), several(number(10**9)), text('C')),
        'a scalar beyond its end': call(SCALAR, dtype('U99', sizes=(396, 4), flags=8), data(bytes(8))),
        'text of no characters': array((1,), data(b'\xff' * 4), dtype('U1', sizes=(4, 4), flags=8)),
        'a huge shape': array((2**31 - 1, 2**31 - 1, 2)),
        'a shape below zero': array((-1, -1)),
        'a shape of truth': array(several(pickle.NEWTRUE)),
        'objects in a list': array(content=pickle.EMPTY_LIST),
        'content that is an array': array(content=array()),
        'an array filled twice': built(array(), number(1), several(), dtype(), pickle.NEWFALSE, data(b'A' * 8)),
        'items of shared bytes': array((2**8,), bytes(2**11)) + number(0) + number(1) + pickle.SETITEM,
        'another class of arrays': call(RECONSTRUCT, name('numpy', 'memmap'), several(number(0)), data(b'b')),
    }  # fmt: skip


def program(opcodes):
    return pickle.PROTO + b'\x02' + opcodes + pickle.STOP


def pickles(marker):
    made = {what: pickle.dumps(value, 2) for what, value in calls(marker).items()}
    made |= {f'{what}, protocol 4': pickle.dumps(value, 4) for what, value in calls(marker).items()}
    return made | {what: program(opcodes) for what, opcodes in programs(marker).items()}


def zipped(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return file.getvalue()


def checkpoint(content, **more):
    """A file in the format of torch.save."""
    return zipped(**{'archive/data.pkl': content, 'archive/version': b'3\n', 'archive/data/0': bytes(16), **more})


def saved(save, *arguments, **options):
    file = io.BytesIO()
    save(*arguments, file, **options) if save is torch.save else save(file, *arguments, **options)
    return file.getvalue()


def npy(descr, content=bytes(16), shape='(2,)'):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b'\x93NUMPY\x01\0' + struct.pack('<H', len(header)) + header + content


def corpus(marker):
    """{file name: content}"""
    harm = calls(marker)['os.system']
    source = f'__import__("os").system("touch {marker}")'
    evil = pickle.dumps(harm, 2)
    plain = program(items(('w', number(1))))
    imports = 'a codec', 'a codec that is a module'  # PyTorch imports encodings only
    checkpoints = {what: checkpoint(content) for what, content in pickles(marker).items() if what not in imports} | {
        'the old format': saved(torch.save, {'w': harm}, _use_new_zipfile_serialization=False),
        'a pickle': evil,
        'TorchScript': checkpoint(plain, **{'archive/constants.pkl': evil, 'archive/code/x.py': b'import os'}),
        'two programs': checkpoint(plain, **{'other/data.pkl': evil}),
        'a program after the end': checkpoint(plain + evil),
        'no program': zipped(x=evil),
    }
    arrays = {
        'objects': saved(np.save, np.array([harm, 1], object), allow_pickle=True),
        'one object': saved(np.save, np.array(harm, object), allow_pickle=True),
        'fields of objects': saved(np.save, np.array([(1, harm)], [('a', 'f4'), ('b', 'O')]), allow_pickle=True),
        'pointers': npy("'|O'"),
        'pointers in a subarray': npy("('|O', (2,))", shape='(1,)'),
        'strings of NumPy 2': npy("'T'"),
        'a pickle as an array': evil,
        'a type of code': npy(source),
        'a shape of code': npy("'<f8'", shape=f'({source},)'),
        'more than there is': npy("'<f8'", shape='(1000000000000,)'),
        'text of no characters': npy("'<U1'", b'\xff' * 8),
    }
    archives = {what: zipped(**{'w.npy': content}) for what, content in arrays.items()} | {
        'a bare pickle': evil,
        'a bare array': saved(np.save, np.zeros(3)),
        'a member that is no array': zipped(w=evil),
    }
    return {
        f'{what.replace("/", " ")}{suffix}': content
        for suffix, files in {'.pkl': pickles(marker), '.bin': checkpoints, '.npz': archives}.items()
        for what, content in files.items()
    }


# Source of a process that reads good files, so that all modules are imported, then the files of a folder. It prints the
# error and the audit events of each file, then the names of changed objects.
READ_ALL = """
import builtins, collections, copyreg, json, os, sys, types
from pathlib import Path
import numpy as np, torch
import lib.data.pickles, lib.errors, lib.files, lib.pytorch.checkpoint
from tests.test_hostile import READERS

copyreg.add_extension('os', 'system', 1)
copyreg.add_extension('posix', 'system', 2)
copyreg._extension_cache[2] = os.system
MODULES = [
    builtins, collections, copyreg, np, np._core.multiarray, np._core.numeric, torch, torch._utils, torch._tensor,
    torch.serialization, lib.data.pickles, lib.errors, lib.files, lib.pytorch.checkpoint,
]

def parts(value):
    if isinstance(value, types.FunctionType):
        return [id(value.__code__), repr(value.__defaults__), repr(value.__kwdefaults__), repr(value.__dict__)]
    if isinstance(value, type):
        return {name: id(part) for name, part in vars(value).items()}
    return repr(value) if isinstance(value, (int, str, bytes, tuple)) else None

def snapshot():
    found = {f'{m.__name__}.{name}': parts(value) for m in MODULES for name, value in list(vars(m).items())}
    found |= {str(key): [id(f), parts(f)] for key, f in lib.data.pickles._CALLED.items()}
    for code in '?bBhHiIlLqQefdgFDGSUVOMm':
        d = np.dtype(code)
        found[f'dtype {code}'] = repr([d, d.str, d.itemsize, d.flags, d.fields, d.metadata, d.hasobject])
    found['bytes'] = [bytes([i])[0] for i in range(256)]
    found['registry'] = repr(copyreg._extension_registry)
    found['safe globals'] = set(torch.serialization.get_safe_globals())
    return found | {f'module {name}': True for name in sys.modules} | dict(os.environ)

reading, events = None, []
QUIET = {'object.__getattr__', 'builtins.id', 'sys._getframe'}
OURS = '<function _Unpickler.find_class.<locals>'

def note(event, arguments):
    own = event == 'open' and arguments[0] == str(reading) and arguments[1] in ('r', 'rb')
    parse = event == 'compile' and arguments[1] == '<unknown>'  # ast.literal_eval of an array header
    ours = event == 'object.__setattr__' and str(arguments[0]).startswith(OURS)  # created for this file
    if reading and event not in QUIET and not own and not parse and not ours:
        events.append(f'{event} {arguments}'[:200])

sys.addaudithook(note)
good, hostile = map(Path, sys.argv[1:])
for path in good.iterdir():
    READERS[path.suffix](path)
before = snapshot()
for path in sorted(hostile.iterdir()):
    error, events, reading = None, [], path
    try:
        READERS[path.suffix](path)
    except Exception as found:
        error = found
    reading = None
    print(json.dumps([path.name, type(error).__name__, str(error), events]), flush=True)
after = snapshot()
print(json.dumps(sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))))
"""


GOOD = {
    '.pkl': pickle.dumps(make_annotations([3, 2], persons=[1, 2]), 2),
    '.bin': saved(torch.save, {'model': {'w': torch.rand(30, 30)}, 'min_loss': np.float64(1)}),
    '.npz': saved(np.savez, w=np.random.default_rng(0).random((30, 30)), text=np.array(['a', 'bc'])),
}


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """[[file, error, message, events], ...], and the names of changed objects."""
    folder = tmp_path_factory.mktemp('files')
    files = {'good': {f'good{suffix}': content for suffix, content in GOOD.items()}}
    files['hostile'] = corpus(folder / 'marker')
    for part in files:
        (folder / part).mkdir()
        for file, content in files[part].items():
            (folder / part / file).write_bytes(content)
    command = [sys.executable, '-c', READ_ALL, folder / 'good', folder / 'hostile']
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[1])
    assert run.returncode == 0, f'{run.stdout.splitlines()[-1:]}: {run.stderr[-500:]}'
    *found, changed = map(json.loads, run.stdout.splitlines())
    assert len(found) == len(files['hostile']) > 40
    assert not (folder / 'marker').exists()
    return found, changed


def test_hostile_files_are_refused_in_one_line_that_names_them(results):
    found, _ = results
    assert not [result for result in found if result[1] != 'UserError']
    assert not [result for result in found if result[0] not in result[2] or not result[2].isprintable()]


# These leave unused replacement objects of the reader, which are not data.
HARMLESS = """
    the defaults of a function|the defaults of scalar|the dict of a function|the class dtype|the class OrderedDict|
    the one f8|items of shared bytes
"""


def test_pickles_are_refused_for_their_actions(results):
    """Not just for their form, with a few exceptions."""
    found = {file for file, _, message, _ in results[0] if 'a PYSKL pickle is' in message}
    assert found == {f'{what.strip()}.pkl' for what in HARMLESS.split('|')}


def test_hostile_files_run_no_code_and_do_not_change_the_process(results):
    found, changed = results
    assert not [(file, events) for file, _, _, events in found if events]
    assert not changed


TRUSTING = {
    '.pkl': pickle.load,
    '.bin': lambda file: torch.load(file, weights_only=False),
    '.npz': lambda file: dict(np.load(file, allow_pickle=True)),
}


RUN_CODE = """
    os.system.pkl|eval.pkl|partial.pkl|memmap.pkl|tofile.pkl|a nested pickle.pkl|metadata.pkl|a name.pkl|getattr.pkl|
    a name of Python 2.pkl|a dotted name.pkl|a dotted name of our module.pkl|INST.pkl|OBJ.pkl|os.system.bin|
    the old format.bin|INST.bin|objects.npz|fields of objects.npz
"""


@pytest.mark.parametrize('file', [file.strip() for file in RUN_CODE.split('|')])
def test_trusting_readers_run_their_code(tmp_path, file):
    marker, path = tmp_path / 'marker', tmp_path / file
    path.write_bytes(corpus(marker)[file])
    with contextlib.suppress(Exception), path.open('rb') as opened:
        TRUSTING[path.suffix](opened)
    assert marker.exists()


# --- Damaged files -------------------------------------------------------------------------------------------------


def refusal(path, content):
    """The error message for a file with this content; its name if it is read."""
    path.write_bytes(content)
    try:
        READERS[path.suffix](path)
    except UserError as error:
        return str(error)
    return str(path)


@pytest.mark.parametrize('suffix', GOOD)
def test_truncated_empty_and_other_files_are_reported(tmp_path, suffix):
    path, good = tmp_path / f'file{suffix}', GOOD[suffix]
    assert refusal(path, good) == str(path)
    for content in (*(good[: len(good) * i // 9] for i in range(9)), good[:-1], b'<html>Not found</html>', b'version'):
        assert re.match(rf'{path}\b.* cannot be read .*(truncated|damaged)', refusal(path, content)), content[:20]


@pytest.mark.parametrize('suffix', ['.bin', '.npz'])
def test_flipped_bits_in_arrays_are_detected(tmp_path, suffix):
    good = GOOD[suffix]
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        member = max(archive.infolist(), key=lambda member: member.file_size)
        archive.open(member)
        start = archive.fp.tell()  # start of its content
    for place in (*range(start, start + 128), *range(start + 128, start + member.file_size, 50)):
        content = bytearray(good)
        content[place] ^= 2  # also turns a '3' in the shape into a '1'
        assert 'damaged' in refusal(tmp_path / f'file{suffix}', bytes(content))


@pytest.fixture(scope='module')
def little_memory():
    """Limits the memory to 2 GB more than now, since a damaged pickle may request much."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**31, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


places = st.tuples(
    st.floats(0, 1), st.integers(0, 3), st.binary(max_size=3)
)  # place, number of removed bytes, inserted bytes


@given(suffix=st.sampled_from(sorted(GOOD)), changes=st.lists(places, min_size=1, max_size=3))
def test_changed_files_are_read_or_refused_by_name(tmp_path, little_memory, suffix, changes):
    content = bytearray(GOOD[suffix])
    for share, cut, new in changes:
        place = int(share * len(content))
        content[place : place + cut] = new
    path = tmp_path / f'file{suffix}'
    assert str(path) in refusal(path, bytes(content))


NAMES = DTYPE, NDARRAY, RECONSTRUCT, SCALAR, FROM_BUFFER, name('_codecs', 'encode'), name('collections', 'defaultdict')
OPCODES = [
    value for key, value in vars(pickle).items() if re.fullmatch('[A-Z][A-Z0-9_]+', key) and type(value) is bytes
]
pieces = [*NAMES, *OPCODES, dtype(), array(), data(bytes(8)), text('f8'), text('latin1'), number(1), b'q\0', b'h\0']


@given(parts=st.lists(st.sampled_from(pieces) | st.binary(max_size=2), max_size=30))
def test_random_programs_are_read_or_refused_by_name(tmp_path, little_memory, parts):
    for path, content in (
        (tmp_path / 'file.pkl', program(b''.join(parts))),
        (tmp_path / 'file.bin', checkpoint(program(b''.join(parts)))),
    ):
        assert str(path) in refusal(path, content)


# --- Harmless files ------------------------------------------------------------------------------------------------


def test_compressed_arrays_and_checkpoints_without_checksums_are_read(tmp_path):
    np.savez_compressed(tmp_path / 'file.npz', w=np.arange(6).reshape(2, 3))
    assert read_arrays(tmp_path / 'file.npz')['w'].tolist() == [[0, 1, 2], [3, 4, 5]]
    torch.serialization.set_crc32_options(False)
    torch.save({'w': torch.ones(3)}, tmp_path / 'file.bin')
    torch.serialization.set_crc32_options(True)
    assert read_weights(tmp_path / 'file.bin')['w'].tolist() == [1, 1, 1]
