"""Checkpoints made to do harm, of both frameworks, read as tests/data/test_hostile.py reads pickles."""

import functools
import importlib
import io
import os
import pickle
import runpy
import struct
import subprocess
import sys
import webbrowser
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.npz import read_arrays
from lib.pytorch.reading import read_file
from tests.data.test_hostile import (
    Call,
    assert_modest,
    bombs,
    call,
    code_that_runs,
    doubled,
    false_arrays,
    long_bytes,
    name,
    number,
    program,
    read_all,
    stack_name,
    tuple_of,
)

CASES = int(os.environ.get('HYPOTHESIS_CASES', 300))  # of each property
many = settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
READERS = {'.bin': 'lib.pytorch.reading:read_file', '.npz': 'lib.npz:read_arrays'}
MILLION = 10**6
pytestmark = pytest.mark.filterwarnings('ignore:Duplicate name')


def zipped(members, method=zipfile.ZIP_STORED):
    """A zip file of (name, content), the content of a type of its own if it has one."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', method, allowZip64=True) as archive:
        for member, content in members:
            archive.writestr(member, content)
    return file.getvalue()


def checkpoint(data, numbers=bytes(16), more=(), folder='archive'):
    """A file as torch.save writes it, of a program and the numbers of one storage."""
    return zipped([(f'{folder}/data.pkl', data), (f'{folder}/data/0', numbers), (f'{folder}/version', b'3\n'), *more])


def text(value):
    """As torch.save writes it, and its own reader knows."""
    return pickle.BINUNICODE + struct.pack('<I', len(value.encode())) + value.encode()


def storage(count=4, key='0', kind='storage', type_name='FloatStorage'):
    parts = text(kind), name('torch', type_name), text(key), text('cpu'), number(count)
    return pickle.MARK + b''.join(parts) + pickle.TUPLE + pickle.BINPERSID


NO_HOOKS = call(name('collections', 'OrderedDict'))
REBUILD = name('torch._utils', '_rebuild_tensor_v2')


def tensor(size=(4,), stride=(1,), offset=0, stored=None, grad=pickle.NEWFALSE, more=(), rebuild=REBUILD):
    shape = [part if isinstance(part, bytes) else tuple_of(*part) for part in (size, stride)]
    return call(rebuild, stored or storage(), number(offset), *shape, grad, NO_HOOKS, *more)


def weights(*items):
    """{'w': item}, as the program of a checkpoint."""
    return program(pickle.EMPTY_DICT, *(text('w') + item + pickle.SETITEM for item in items), protocol=2)


GOOD = weights(tensor())


def with_value(value, protocol):
    return pickle.dumps({'model': {}, 'epoch': 3, 'min_loss': value}, protocol)


def more_calls(marker):
    """{what: what a pickle may be led to call}, beside what tests/data/test_hostile.py knows."""
    source = f'open({str(marker)!r}, "w")'
    return {
        'reduce': Call(functools.reduce, getattr, ['system'], Call(importlib.import_module, 'os')),
        'runpy': Call(runpy.run_path, str(marker)),
        'webbrowser': Call(webbrowser.open, f'file://{marker}'),
        'torch.load': Call(torch.load, str(marker)),
        'torch.save': Call(torch.save, 3, str(marker)),
        'torch.hub': Call(torch.hub.load, '/tmp', 'x', 'local'),
        'from_file': Call(torch.from_file, str(marker), True, 3),
        'UntypedStorage.from_file': Call(torch.UntypedStorage.from_file, str(marker), True, 3),
        '_load_from_bytes': Call(torch.storage._load_from_bytes, pickle.dumps(Call(os.system, f'touch {marker}'))),
        'a Module': torch.nn.Linear(2, 2),
        'a device': torch.device('cuda'),
        'an array': np.zeros(3),
        'an array of a call': np.array([Call(eval, source)], object),
        'a set': {1, 2},
    }


def torch_gadgets():
    """Programs that use what torch.load(weights_only=True) allows, and more of torch."""
    allowed = {
        'bytearray': call(name('__builtin__', 'bytearray'), pickle.LONG1 + b'\x05' + (10**10).to_bytes(5, 'little')),
        'set': call(name('__builtin__', 'set'), pickle.EMPTY_LIST),
        'complex': call(name('__builtin__', 'complex'), number(1), number(2)),
        'Counter': call(name('collections', 'Counter'), text('x' * 200)),
        'OrderedDict of items': call(name('collections', 'OrderedDict'), pickle.EMPTY_LIST),
        'encode': call(name('_codecs', 'encode'), text('x'), text('zip_codec')),
        'Size': call(name('torch', 'Size'), tuple_of(3)),
        'Tensor': call(name('torch', 'Tensor'), number(2**31 - 1)),
        'FloatTensor': call(name('torch', 'FloatTensor'), number(2**31 - 1), number(2**31 - 1)),
        'new Tensor': name('torch', 'Tensor') + number(2**31 - 1) + pickle.TUPLE1 + pickle.NEWOBJ,
        'device': call(name('torch', 'device'), text('cuda')),
        'UntypedStorage': call(name('torch.storage', 'UntypedStorage'), number(2**31 - 1)),
        'Parameter': call(name('torch.nn.parameter', 'Parameter'), tensor()),
        'new Parameter': name('torch.nn.parameter', 'Parameter') + tensor() + pickle.TUPLE1 + pickle.NEWOBJ,
        'layout': call(name('torch.serialization', '_get_layout'), text('torch.sparse_coo')),
        'float32': name('torch', 'float32'),
        'a storage type': name('torch', 'FloatStorage'),
        'a call of a storage type': call(name('torch', 'FloatStorage'), number(2**31 - 1)),
        'a new storage': name('torch', 'FloatStorage') + number(10**9) + pickle.TUPLE1 + pickle.NEWOBJ,
        'a function as data': REBUILD,
        'quantised numbers': tensor(stored=storage(16, type_name='QInt8Storage')),
        'type of a tensor': call(
            name('torch._tensor', '_rebuild_from_type_v2'), REBUILD, name('torch', 'Tensor'), pickle.EMPTY_TUPLE,
            pickle.EMPTY_DICT),
    }  # fmt: skip
    for function in (
        'qtensor', 'sparse_tensor', 'meta_tensor_no_storage', 'nested_tensor', 'wrapper_subclass', 'tensor_v3',
        'parameter_with_state', 'device_tensor_from_numpy', 'device_tensor_from_cpu_tensor', 'xla_tensor',
    ):  # fmt: skip
        allowed[f'rebuild {function}'] = tensor(rebuild=name('torch._utils', f'_rebuild_{function}'))
    for module, attribute in (
        ('torch', 'load'),
        ('torch', 'torch.os.system'),
        ('types', 'FunctionType'),
        ('operator', 'methodcaller'),
        ('torch._utils', '_rebuild_tensor_v2.__globals__'),
        ('torch._utils', 'torch'),
        ('torch.hub', 'load_state_dict_from_url'),
        ('torch.utils.cpp_extension', 'load_inline'),
        ('torch.jit', 'load'),
        ('torch._dynamo.utils', 'eval'),
        ('torch.distributed.rpc', 'rpc_sync'),
        ('collections', 'OrderedDict.fromkeys'),
        ('collections', 'namedtuple'),
        ('_codecs', 'lookup'),
        ('numpy', 'dtype.type'),
        ('lib.pytorch.pretrained', 'read_file'),
        ('lib.data.pickles', '_Name'),
        ('keras', 'models.load_model'),
    ):
        allowed[f'{module}.{attribute}'] = call(stack_name(module, attribute), text('x'))
    module, attribute = (text(part) + pickle.MEMOIZE for part in ('os', 'system'))
    allowed |= {
        'names from the memo': module + attribute + pickle.TUPLE2 + b'h\x00h\x01' + pickle.STACK_GLOBAL,
        'a name of bytes': long_bytes(b'os') + long_bytes(b'system') + pickle.STACK_GLOBAL,
        'a name of 2**100 tuples': doubled(100, pickle.TUPLE2) + text('x') + pickle.STACK_GLOBAL,
    }
    return {what: weights(gadget) for what, gadget in allowed.items()}


def false_tensors():
    """Programs with tensors that are none, or that stand for more than is there."""
    huge = 2**31 - 1
    false = {
        'a stride of zero': tensor((huge,), (0,)),
        'strides of zero': tensor((huge, huge, huge), (0, 0, 0)),
        'one number twice': tensor((5,), (0,)),
        'a stride beyond': tensor((2, 2), (3, 1)),
        'more than is stored': tensor((5,)),
        'a huge shape': tensor((huge, huge), (huge, 1)),
        'an offset beyond': tensor(offset=1),
        'an empty tensor beyond': tensor((0,), offset=5),
        'an offset below zero': tensor((2,), offset=-1),
        'a size below zero': tensor((-4,)),
        'two sizes below zero': tensor((-2, -2), (1, 1)),
        'a stride below zero': tensor((4,), (-1,), offset=3),
        'a size of text': tensor(text('4') + pickle.TUPLE1),
        'a size that is true': tensor(pickle.NEWTRUE + pickle.TUPLE1),
        'a size that is no tuple': tensor(number(4)),
        'no stride': tensor((4,), ()),
        'a size of many axes': tensor((1,) * 10**5, (1,) * 10**5),
        'a size of axes without end': tensor((huge,) * 10**5, (0,) * 10**5),
        'a huge offset': tensor(stored=storage() + pickle.LONG1 + b'\x08' + b'\x7f' * 8 + tuple_of(1)),
        'more numbers than stored': tensor(stored=storage(10**9)),
        'fewer numbers than stored': tensor((1,), stored=storage(1)),
        'numbers of another width': tensor(stored=storage(4, type_name='DoubleStorage')),
        'less than no numbers': tensor(stored=storage(-1)),
        'numbers that are not there': tensor(stored=storage(key='7')),
        'numbers of another member': tensor(stored=storage(key='../data.pkl')),
        'numbers of a file': tensor(stored=storage(key='/etc/passwd')),
        'a storage alone': storage(),
        'a module': tensor(stored=storage(kind='module')),
        'an id of text': tensor(stored=text('os.system') + pickle.BINPERSID),
        'an id that is a number': tensor(stored=number(3) + pickle.BINPERSID),
        'an id of nothing': tensor(stored=pickle.EMPTY_TUPLE + pickle.BINPERSID),
        'an id of a tensor': tensor(stored=tensor() + pickle.TUPLE1 + pickle.BINPERSID),
        'an id with a list for a key': tensor(
            stored=pickle.MARK + text('storage') + name('torch', 'FloatStorage') + pickle.EMPTY_LIST + text('cpu')
            + number(4) + pickle.TUPLE + pickle.BINPERSID),
        'text for a storage': tensor(stored=text('x')),
        'a tensor for a storage': tensor(stored=tensor()),
        'metadata': tensor(more=[pickle.EMPTY_DICT + text('conj') + pickle.NEWTRUE + pickle.SETITEM]),
        'gradients of whole numbers': tensor((2,), stored=storage(2, type_name='LongStorage'), grad=pickle.NEWTRUE),
        'a parameter of text': call(name('torch._utils', '_rebuild_parameter'), text('x'), pickle.NEWTRUE, NO_HOOKS),
        'the inside of a tensor': tensor() + pickle.EMPTY_DICT + pickle.BUILD,
        'the inside of a function': REBUILD + pickle.EMPTY_DICT + pickle.BUILD,
        'the inside of a dict': pickle.EMPTY_DICT + pickle.EMPTY_DICT + pickle.BUILD,
        'appending to a tensor': tensor() + pickle.NONE + pickle.APPEND,
        'items of a tensor': tensor() + number(0) + number(1) + pickle.SETITEM,
        'a key that is a tensor': pickle.EMPTY_DICT + tensor() + pickle.NONE + pickle.SETITEM,
        'a key that is a tuple': pickle.EMPTY_DICT + tuple_of(1) + pickle.NONE + pickle.SETITEM,
        'a key of two lines': pickle.EMPTY_DICT + text('a\nb') + pickle.NONE + pickle.SETITEM,
        'a tensor named very often': pickle.MARK + tensor() + b'q\0' + b'h\0' * 10**4 + pickle.LIST,
        'a list of lists of one list': pickle.MARK + doubled(14, pickle.TUPLE2) + pickle.LIST,
        'lists of a list a thousand times': pickle.MARK + pickle.EMPTY_LIST + (
            pickle.BINPUT + b'\x01' + pickle.MARK + b'h\x01' * 1000 + pickle.LIST) * 5 + pickle.LIST,
        'lists, 21 deep': pickle.EMPTY_LIST * 21 + pickle.APPEND * 20,
        'a list that holds itself': pickle.EMPTY_LIST + pickle.BINPUT + b'\x01h\x01' + pickle.APPEND,
    }  # fmt: skip
    false = {what: weights(bytes_) for what, bytes_ in false.items()}
    arguments = b'h\x01h\x02\x52'  # a call from the memo
    false |= {
        'a hundred thousand tensors of one': weights(
            pickle.MARK + REBUILD + b'q\x01' + pickle.MARK + storage() + number(0) + tuple_of(4) + tuple_of(1)
            + pickle.NEWFALSE + NO_HOOKS + pickle.TUPLE + b'q\x02' + arguments * 10**5 + pickle.LIST),
        'a million ordered dicts': weights(
            pickle.MARK + name('collections', 'OrderedDict') + b'q\x01)q\x02' + arguments * MILLION + pickle.LIST),
        'a million lists': weights(pickle.MARK + pickle.EMPTY_LIST * (4 * MILLION) + pickle.LIST),
        'something after the end': GOOD + b'cos\nsystem\n.',
        'two programs': GOOD + GOOD,
        'a second protocol that is none': GOOD[:-1] + b'\x80\xc8.',
    }  # fmt: skip
    return false


def directory(content, change):
    """A zip file, the entries of whose directory of members are changed: (index, entry) -> entry, of the same size."""
    end = content.rindex(b'PK\5\6')
    start = int.from_bytes(content[end + 16 : end + 20], 'little')
    entries = [b'PK\1\2' + part for part in content[start:end].split(b'PK\1\2')[1:]]
    return content[:start] + b''.join(change(i, bytearray(entry)) for i, entry in enumerate(entries)) + content[end:]


def set_number(position, count, value, index=0):
    """A change of one entry of a directory."""

    def change(i, entry):
        if i == index:
            entry[position : position + count] = value.to_bytes(count, 'little')
        return bytes(entry)

    return change


def hostile_zips(good, program_name, member, value):
    """Zip files that lie or swell. good: a sound one, [(name, content)]. member: a name for another with `value`."""
    sound = zipped(good)
    end = sound.rindex(b'PK\5\6')
    start = int.from_bytes(sound[end + 16 : end + 20], 'little')

    def many_members(count):
        entry = sound[start : sound.index(b'PK\1\2', start + 1)]
        size = (count * len(entry)).to_bytes(4, 'little')
        return sound[:start] + entry * count + sound[end : end + 12] + size + sound[end + 16 :]

    huge = sound[: end + 12] + b'\xff' * 4 + sound[end + 16 :]
    overlapping = directory(
        zipped([*good, *[(f'{member}{i}', value * 1000) for i in range(20)]]), lambda i, e: bytes(e)
    )
    shared = int.from_bytes(overlapping[overlapping.rindex(b'PK\1\2') :][42:46], 'little')

    def all_at_one_place(i, entry):
        if i >= len(good):
            entry[42:46], entry[20:28] = shared.to_bytes(4, 'little'), (len(value) * 20_000).to_bytes(4, 'little') * 2
        return bytes(entry)

    old = zipfile.ZipInfo(f'{member}x')
    old.compress_type = zipfile.ZIP_BZIP2
    locals_first = sound.replace(program_name.encode(), program_name[:-1].encode() + b'X', 1)
    return {
        'a bomb, deflated': zipped([*good, (member, bytes(200 * MILLION))], zipfile.ZIP_DEFLATED),
        'all deflated': zipped(good, zipfile.ZIP_DEFLATED),
        'bzip2': zipped([*good, (old, value)]),
        'members that overlap': directory(overlapping, all_at_one_place),
        'encrypted': directory(sound, set_number(8, 2, 1)),
        'an unknown method': directory(sound, set_number(10, 2, 77)),
        'a version of the far future': directory(sound, set_number(6, 2, 200)),
        'another checksum': directory(sound, set_number(16, 4, 12345)),
        'a size of 4 GB': directory(sound, set_number(24, 4, 2**32 - 2)),
        'both sizes of 4 GB': directory(sound, set_number(20, 8, (2**32 - 2) * (2**32 + 1))),
        'a size too small': directory(sound, set_number(20, 8, 5 * (2**32 + 1))),
        'a place beyond the file': directory(sound, set_number(42, 4, 2**32 - 2)),
        'the place of another member': directory(sound, set_number(42, 4, len(sound) // 2)),
        'a name that differs at the member': locals_first,
        'a directory of 4 GB': huge,
        'members before the beginning': sound[: end + 16] + (start + 10).to_bytes(4, 'little') + sound[end + 20 :],
        'many members': many_members(60_000),
        'more members than any model has': many_members(10**5),
        'a name twice': zipped([*good, good[0]]),
        'a name above': zipped([*good, (f'../{member}', value)]),
        'a name above, within': zipped([*good, (f'{member}/../../../{program_name}', value)]),
        'an absolute name': zipped([*good, (f'/etc/{member}', value)]),
        'a name of another system': zipped([*good, (f'..\\{member}', value)]),
        'a name of two lines': zipped([*good, (f'a\n{member}', value)]),
        'a name with a zero': sound.replace(program_name.encode(), program_name[:-1].encode() + b'\0'),
        'a directory that is no directory': sound[:end].replace(b'PK\1\2', b'PK\1\3') + sound[end:],
        'a zip in a zip': zipped([(f'{member}.zip', sound)]),
    }


def npy(header, content=b'', version=b'\x01\x00'):
    header = (header if isinstance(header, str) else repr(header)).encode('latin1')
    return (
        b'\x93NUMPY'
        + version
        + struct.pack('<H' if version[0] == 1 else '<I', len(header) + 1)
        + header
        + b'\n'
        + content
    )


def npy_of(descr="'<f4'", shape='(2,)', content=bytes(8), order=False):
    return npy(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}", content)


def saved(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def false_npys(marker):
    """Members of an .npz that are no plain array."""
    source = f'__import__("os").system("touch {marker}")'
    calls, raw = code_that_runs(marker)
    made, _ = false_arrays()
    false = {
        'an object of os.system': saved(np.array([Call(os.system, f'touch {marker}')], object)),
        'an object of eval': saved(np.array([calls['eval']], object)),
        'an object of no axis': saved(np.array(calls['eval'], object)),
        'a pickle': pickle.dumps(calls['os.system']),
        'a pickle of protocol 0': raw['protocol 0'],
        'numbers that are objects': npy_of("'|O'", content=pickle.dumps(calls['os.system'])),
        'objects by size': npy_of("'<O8'", content=bytes(16)),
        'a header of code': npy(source),
        'a type of code': npy_of(source),
        'a shape of code': npy_of(shape=f'({source},)'),
        'a header of brackets': npy('(' * 5000),
        'a header of signs': npy('-' * 9000 + '1'),
        'a header of many numbers': npy_of(shape='(' + '1, ' * 15000 + ')'),
        'a header that is too long': b'\x93NUMPY\x01\x00\xff\xff' + b'{' * 100,
        'a header of 4 GB': b'\x93NUMPY\x02\x00\xff\xff\xff\xff{' + b' ' * 100,
        'version 3': npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", bytes(8), b'\x03\x00'),
        'version 9': npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", bytes(8), b'\x09\x00'),
        '10 GB': npy_of(shape='(2684354560,)'),
        'a shape of many zeros': npy_of(shape='(1' + '0' * 17 + ', 1' + '0' * 17 + ')'),
        'a shape of digits': npy_of(shape='(' + '9' * 9000 + ',)'),
        'a shape below zero': npy_of(shape='(-1, -2)'),
        'a shape of floats': npy_of(shape='(2.0,)'),
        'a shape that is true': npy_of(shape='(True, 2)'),
        'a number for a shape': npy_of(shape='2'),
        'too few numbers': npy_of(shape='(3,)'),
        'too many numbers': npy_of(shape='(1,)'),
        'one byte more': npy_of(content=bytes(9)),
        'text of no size': npy_of("'<U0'", '(1000000000000000000,)', b''),
        'numbers of no size': npy_of("'|V0'", '(1000000000000000000,)', b''),
        'text of no characters': npy_of("'<U1'", '(2,)', b'\xff' * 8),
        'an unknown type': npy_of("'<f3'", '(2,)', bytes(6)),
        'a type by its name': npy_of("'float32'"),
        'several types': npy_of("'f4,f4'", '(1,)'),
        'a type with a shape': npy_of("('<f4', (2,))", '(1,)'),
        'fields': npy_of("[('a', '<f4')]"),
        'nothing': b'',
        'the beginning': b'\x93NUMPY',
        'a web page': b'<html>',
    }
    for what in ('fields of objects', 'void', 'dates', 'recarray'):
        false[what] = saved(made[what])
    return false


def cut(content, places=12):
    return {f'cut at {i} of {places}': content[: len(content) * i // places] for i in range(places)}


def no_zips():
    random = np.random.default_rng(0)
    return {
        'nothing': b'',
        'random bytes': random.bytes(10_000),
        'random bytes after a beginning': b'PK\3\4' + random.bytes(10_000),
        'an end alone': b'PK\5\6' + bytes(17),
        'many ends': b'PK\5\6' * 10**5,
        'a web page': b'<html>Not found</html>',
        'gzip': b'\x1f\x8b\x08\0' + random.bytes(1000),
        'an empty zip64': b'PK\6\6' + b'\xff' * 52 + b'PK\6\7' + b'\xff' * 16 + b'PK\5\6' + b'\xff' * 16 + bytes(2),
    }


# For pickles of data these are refused. Here NumPy's numbers are passed over, whatever they are, and a number is data.
HARMLESS = 'scalar of objects', 'scalar beyond its bytes', 'state of a type with fields', 'FLOAT of a million digits'


def torch_files(marker):
    """{what: content} of hostile checkpoints of PyTorch."""
    calls, raw = code_that_runs(marker)
    _, raw_arrays = false_arrays()
    calls |= more_calls(marker)
    programs = {f'{what}, protocol {p}': with_value(value, p) for what, value in calls.items() for p in (0, 2, 4)}
    programs |= raw | raw_arrays | bombs() | torch_gadgets() | false_tensors()
    for harmless in HARMLESS:
        del programs[harmless]
    files = {what: checkpoint(data) for what, data in programs.items()}
    old, old_code = io.BytesIO(), io.BytesIO()
    torch.save({'w': torch.zeros(3)}, old, _use_new_zipfile_serialization=False)
    torch.save({'w': calls['os.system']}, old_code, _use_new_zipfile_serialization=False)
    good = [('archive/data.pkl', GOOD), ('archive/data/0', bytes(16))]
    evil = weights(call(name('posix', 'system'), text(f'touch {marker}')))
    sound = checkpoint(weights(tensor((1000,), stored=storage(1000))), bytes(4000))
    return files | hostile_zips(good, 'archive/data.pkl', 'archive/x', b'x' * 100) | no_zips() | cut(sound) | {
        'the old format': old.getvalue(),
        'the old format with code': old_code.getvalue(),
        'a pickle': pickle.dumps(calls['os.system']),
        'two folders': checkpoint(GOOD, more=[('other/data.pkl', evil)]),
        'two folders, the other way': zipped([('other/data.pkl', evil), *good]),
        'a member beside the folder': checkpoint(GOOD, more=[('data.pkl', evil)]),
        'no folder': zipped([('data.pkl', GOOD), ('data/0', bytes(16))]),
        'no program': zipped(good[1:]),
        'an empty program': checkpoint(b''),
        'TorchScript': checkpoint(GOOD, more=[('archive/constants.pkl', evil), ('archive/code/x.py', b'')]),
        'the other order of bytes': checkpoint(GOOD, more=[('archive/byteorder', b'big')]),
        'no order of bytes': checkpoint(GOOD, more=[('archive/byteorder', b'x' * MILLION)]),
        'a program of 20 MB': checkpoint(weights(pickle.NONE * (20 * MILLION))),
        'a long program': checkpoint(weights(pickle.MARK + pickle.NONE * (8 * MILLION) + pickle.LIST + pickle.REDUCE)),
        'an array of NumPy': saved(np.zeros(3)),
    }  # fmt: skip


def npz_files(marker):
    """{what: content} of hostile checkpoints of Keras."""
    files = {what: zipped([('model/w.npy', content)]) for what, content in false_npys(marker).items()}
    good = [('about.npy', saved(np.array('{}'))), ('model/w.npy', saved(np.ones(3)))]
    compressed = io.BytesIO()
    np.savez_compressed(compressed, w=np.zeros(25 * MILLION))
    damaged = bytearray(zipped([('w.npy', saved(np.zeros(1000)))]))
    damaged[1000] ^= 1
    zips = hostile_zips(good, 'about.npy', 'x.npy', saved(np.ones(3)))
    return files | zips | no_zips() | cut(zipped([*good, ('x.npy', saved(np.zeros(1000)))])) | {
        'compressed by NumPy': compressed.getvalue(),
        'one bit changed': bytes(damaged),
        'a member that is no array': zipped([*good, ('about.json', b'{}')]),
        'a checkpoint of PyTorch': checkpoint(GOOD),
        'a bare array': saved(np.zeros(3)),
        'a pickle': pickle.dumps(Call(os.system, f'touch {marker}')),
    }  # fmt: skip


@pytest.fixture(scope='module', params=READERS)
def results(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp('corpus')
    marker = folder / 'marker'  # has no suffix, and is not read
    files = (torch_files if request.param == '.bin' else npz_files)(marker)
    paths = []
    for i, (what, content) in enumerate(files.items()):
        paths.append(folder / f'{i:03d} {what.replace("/", " ")}{request.param}')
        paths[-1].write_bytes(content)
    found = read_all(paths, READERS[request.param])
    assert len(found) >= 60
    assert not marker.exists()
    return found


def test_all_are_refused_with_one_short_line_that_names_the_file(results):
    assert not [r for r in results if r.kind != 'ValueError']
    assert not [r for r in results if r.name not in r.message or len(r.message) > 900 or not r.message.isprintable()]


# What is said of some: there they meet the check that is meant for them, and not a later one or a chance.
REASONS = {
    'os.system, protocol 2': 'holds more than weights: it asks for posix.system, which was not run. Take',
    'a stride of zero': 'shape (2147483647,) with only 4 numbers',
    'a stride beyond': 'shape (2, 2) with only 4 numbers',
    'more numbers than stored': 'announces 1000000000 numbers, where it holds 4',
    'an id of text': 'refers to what are no numbers',
    'an id with a list for a key': 'refers to what are no numbers',
    'a hundred thousand tensors of one': 'holds more tensors than its size has room for',
    'a million ordered dicts': 'holds more lists, tuples and dicts than its size has room for',
    'a tensor named very often': 'stands for much more than it holds',
    'a list of lists of one list': 'stands for much more than it holds',
    'a key of 2**100 tuples': 'holds a key that is neither',
    'something after the end': 'goes on after its end',
    'lists, 21 deep': 'nests more than 20 deep',
    'a program of 20 MB': 'more than any model needs',
    'TorchScript': 'is an archive of TorchScript',
    'the old format': 'is in the format of PyTorch before 1.6',
    'the other order of bytes': 'orders bytes in another way',
    'two folders': 'does not hold one folder',
    'all deflated': 'compressed',
    'encrypted': 'encrypted',
    'members that overlap': 'announces members of more bytes than it has',
    'more members than any model has': 'announces a list of members larger than any model needs',
    'a name twice': 'holds two members of the same name',
    'a name above': 'holds a member of the name ../',
    'an absolute name': 'holds a member of the name /etc/',
    'a size of 4 GB': 'announces two sizes',
    'an object of eval': 'holds model/w, which is no array of plain numbers or text',
    'text of no size': 'holds model/w, which is no array of plain numbers or text',
    '10 GB': 'shape (2684354560,), which announces more or less than it has',
    'text of no characters': 'text of what are no characters',
    'one bit changed': 'cut short, damaged or of another kind. Copy',
    'cut at 6 of 12': 'cut short, damaged or of another kind. Copy',
}


def test_they_are_refused_for_what_they_are(results):
    found = {r.name[4:-4]: r.message for r in results if r.name[4:-4] in REASONS}
    assert len(found) > 10
    assert not {what: message for what, message in found.items() if REASONS[what] not in message}


def test_none_of_them_runs_anything_or_opens_another_file(results):
    assert not [r for r in results if r.events]


def test_none_of_them_takes_long_or_much_memory(results):
    assert_modest(results)


# Run as a process: what the readers of both frameworks, told to trust all, make of a file.
TRUST = """
import contextlib, pickle, sys
import numpy as np, torch
with contextlib.suppress(Exception):
    torch.load(sys.argv[1], weights_only=False)
with contextlib.suppress(Exception):
    arrays = np.load(sys.argv[2], allow_pickle=True)
    [arrays[name] for name in arrays]
"""


@pytest.mark.parametrize('what', ['os.system', 'eval'])
def test_the_corpus_is_loaded(tmp_path, what):
    """The readers of the frameworks, told to trust a file, do run these: the tests above would fail with them."""
    paths = tmp_path / 'x.bin', tmp_path / 'x.npz'
    paths[0].write_bytes(checkpoint(with_value(code_that_runs(tmp_path / 'torch')[0][what], 2)))
    paths[1].write_bytes(zipped([('w.npy', false_npys(tmp_path / 'numpy')[f'an object of {what}'])]))
    assert subprocess.run([sys.executable, '-c', TRUST, *paths], timeout=60).returncode == 0
    assert (tmp_path / 'torch').exists()
    assert (tmp_path / 'numpy').exists()


def test_torch_allows_some_of_these(tmp_path):
    """With weights_only=True: a tensor of 2**31 numbers from four, and one that is not in the file at all."""
    path = tmp_path / 'weights.bin'
    path.write_bytes(checkpoint(false_tensors()['a stride of zero']))
    assert torch.load(path, weights_only=True)['w'].numel() == 2**31 - 1
    path.write_bytes(checkpoint(torch_gadgets()['new Tensor']))
    assert torch.load(path, weights_only=True)['w'].numel() == 2**31 - 1


def test_what_is_no_file_is_refused_at_once(tmp_path):
    """Opening a FIFO would wait for a writer; so this is a process that can be ended."""
    os.mkfifo(tmp_path / 'fifo')
    (tmp_path / 'folder').mkdir()
    source = f"""
from pathlib import Path
from {READERS['.bin'].replace(':', ' import ')}
from {READERS['.npz'].replace(':', ' import ')}
for name in 'fifo', 'folder', 'missing':
    for read in read_file, read_arrays:
        try:
            read(Path({str(tmp_path)!r}) / name)
        except FileNotFoundError as error:
            print(name, 'is named:', name in str(error))
"""
    run = subprocess.run([sys.executable, '-c', source], capture_output=True, text=True, timeout=60)
    assert run.stdout.splitlines() == [f'{name} is named: True' for name in ('fifo', 'folder', 'missing') for _ in '12']


DTYPES = [
    'float64',
    'float32',
    'float16',
    'bfloat16',
    'int64',
    'int32',
    'int16',
    'int8',
    'uint8',
    'bool',
    'complex128',
    'complex64',
]


def sound_checkpoint():
    base = torch.arange(24.0).reshape(2, 3, 4)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return {
        'model': model.state_dict(),
        'optimizer': optimizer.state_dict(),
        'dtypes': {name: torch.ones(2, 3).to(getattr(torch, name)) for name in DTYPES},
        'views': [base, base[1], base[:, 1], base.permute(2, 0, 1), base[::2, 1:, ::3], base[:0], base[0, 0, 0]],
        'empty': torch.empty(0, 5),
        'parameter': torch.nn.Parameter(base),
        'plain': [None, True, -3, 2**62, 0.5, 'ä', b'', b'bytes', (1, (2, 3))],
        'numbers': [np.float64(1), np.float32(1), np.int64(1), np.True_, np.longdouble(1)],
    }


@pytest.mark.parametrize('checksums', [True, False])
@pytest.mark.parametrize('protocol', [2, 4])
def test_sound_checkpoints_are_read_as_torch_reads_them(tmp_path, protocol, checksums):
    content, path = sound_checkpoint(), tmp_path / 'weights.bin'
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(checksums)
    torch.save(content, path, pickle_protocol=protocol)
    torch.serialization.set_crc32_options(before)
    theirs, ours = torch.load(path, weights_only=False), read_file(path)
    assert ours.keys() == theirs.keys()
    for part in ('model', 'optimizer', 'dtypes', 'views', 'empty', 'parameter', 'plain'):
        assert_same(ours[part], theirs[part])
    views = ours['views']
    assert {view.untyped_storage().data_ptr() for view in views} == {views[0].untyped_storage().data_ptr()}
    assert len(ours['numbers']) == 5


def assert_same(ours, theirs):
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        assert_same(list(ours.values()), list(theirs.values()))
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert (ours.stride(), ours.requires_grad) == (theirs.stride(), theirs.requires_grad)
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs


ARRAYS = {
    'about': np.array('{"epoch": 3}'),
    'empty text': np.array(''),
    'texts': np.array(['ä', 'bc']),
    'model/block 1/kernel': np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    'fortran': np.asfortranarray(np.arange(6).reshape(2, 3)),
    'big-endian': np.arange(3, dtype='>f8'),
    'other texts': np.array(['ä', 'bc'], '>U3'),
    'none': np.zeros((0, 3)),
    'number': np.float16(2),
    'truth': np.array([True, False]),
    'complex': np.ones(2, np.complex64),
    'bytes': np.arange(200_000, dtype=np.uint8),
}


def test_sound_arrays_are_read_as_numpy_reads_them(tmp_path):
    np.savez(tmp_path / 'a.npz', **ARRAYS)
    ours, theirs = read_arrays(tmp_path / 'a.npz'), np.load(tmp_path / 'a.npz')
    assert list(ours) == theirs.files == list(ARRAYS)
    for name_, array in ours.items():
        assert array.dtype == theirs[name_].dtype
        np.testing.assert_array_equal(array, theirs[name_], strict=True)
        assert array.flags.f_contiguous == theirs[name_].flags.f_contiguous


# Bytes changed, taken out or put in: (how, where as a share of the file, byte or bytes).
changes = st.lists(
    st.tuples(st.sampled_from(['flip', 'set', 'cut', 'insert', 'end']), st.floats(0, 1), st.integers(1, 255)),
    min_size=1,
    max_size=4,
)


def changed(content, how):
    content = bytearray(content)
    for kind, share, value in how:
        place = min(int(share * len(content)), len(content) - 1)
        if kind == 'end':
            del content[place:]
        elif kind == 'cut':
            del content[place : place + value]
        elif kind == 'insert':
            content[place:place] = bytes([value]) * (value % 9)
        elif content:
            content[place] = content[place] ^ value if kind == 'flip' else value
    return bytes(content)


def refusal(read, path):
    """The message with which a file is refused; its name where it is read."""
    try:
        read(path)
    except ValueError as error:
        return str(error)
    return str(path)


@many
@given(changes)
def test_damaged_checkpoints_of_pytorch_are_refused_or_read(small_checkpoint, how):
    path = small_checkpoint.with_name('damaged.bin')
    path.write_bytes(changed(small_checkpoint.read_bytes(), how))
    assert str(path) in refusal(read_file, path)


@many
@given(changes)
def test_damaged_programs_of_pytorch_are_refused_or_read(small_checkpoint, how):
    """The same of what lies within the zip file, whose checksum is right."""
    path = small_checkpoint.with_name('damaged.bin')
    with zipfile.ZipFile(small_checkpoint) as archive:
        members = [(member, archive.read(member)) for member in archive.namelist()]
    path.write_bytes(zipped([(m, changed(c, how) if m.endswith('data.pkl') else c) for m, c in members]))
    assert str(path) in refusal(read_file, path)


@many
@given(changes)
def test_damaged_npz_files_are_refused_or_read(tmp_path, how):
    file = io.BytesIO()
    np.savez(file, **{name_: array[..., :50] if array.ndim else array for name_, array in ARRAYS.items()})
    path = tmp_path / 'damaged.npz'
    path.write_bytes(changed(file.getvalue(), how))
    assert str(path) in refusal(read_arrays, path)


@many
@given(changes)
def test_damaged_arrays_are_refused_or_read(tmp_path, how):
    """The same of an array within the zip file, whose checksum is right."""
    path = tmp_path / 'damaged.npz'
    path.write_bytes(zipped([('a.npy', changed(saved(np.arange(6).reshape(2, 3)), how))]))
    assert str(path) in refusal(read_arrays, path)


@pytest.fixture(scope='module')
def small_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp('small') / 'weights.bin'
    torch.save({'model': torch.nn.Linear(2, 2).state_dict(), 'epoch': 3, 'min_loss': np.float64(1)}, path)
    return path
