"""Pickles made to do harm, each read in a process of its own kind: no code is run, nothing hangs, nothing swells."""

import contextlib
import copyreg
import functools
import importlib
import json
import operator
import os
import pickle
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.annotations import make_annotations

SECONDS, MEGABYTES = 2, 500
GIB = 2**30


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args, state)

    def __reduce__(self):
        return self.reduced


class Subclass(np.ndarray):
    pass


def text(value):
    return pickle.SHORT_BINUNICODE + bytes([len(value)]) + value.encode()


def name(module, attribute):
    return pickle.GLOBAL + f'{module}\n{attribute}\n'.encode()


def stack_name(module, attribute):
    return text(module) + text(attribute) + pickle.STACK_GLOBAL


def program(*parts, protocol=4):
    return pickle.PROTO + bytes([protocol]) + b''.join(parts) + pickle.STOP


def call(function, *arguments):
    return function + pickle.MARK + b''.join(arguments) + pickle.TUPLE + pickle.REDUCE


def number(value):
    return pickle.BININT + struct.pack('<i', value)


def long_bytes(value):
    return pickle.BINBYTES + struct.pack('<I', len(value)) + value


def array(shape, content, code='f2'):
    """An array as NumPy writes it, of a shape (encoded) that may lie."""
    empty = call(
        name('numpy.core.multiarray', '_reconstruct'),
        name('numpy', 'ndarray'),
        number(0) + pickle.TUPLE1,
        long_bytes(b'b'),
    )
    dtype = call(name('numpy', 'dtype'), text(code), pickle.NEWFALSE, pickle.NEWTRUE)
    state = pickle.MARK + number(1) + shape + dtype + pickle.NEWFALSE + content + pickle.TUPLE
    return empty + state + pickle.BUILD


def tuple_of(*numbers):
    return pickle.MARK + b''.join(map(number, numbers)) + pickle.TUPLE


def doubled(levels, pair, start=pickle.EMPTY_TUPLE):
    """A thing of two things, each of two things..., which the memo holds once: 2**levels of them."""
    return start + pickle.MEMOIZE + b''.join(
        pickle.BINGET + bytes([i]) + pickle.BINGET + bytes([i]) + pair + pickle.MEMOIZE for i in range(levels)
    )  # fmt: skip


def annotated(value, key='keypoint'):
    """A good set, one value of which is the hostile one."""
    data = make_annotations([20, 30, 40])
    data['annotations'][1][key] = value
    return data


def code_that_runs(marker):
    """{what: what an unpickler may be led to call}; all of it would touch `marker`."""
    shell, source = f'touch {marker}', f'open({str(marker)!r}, "w")'
    open_marker = [text(str(marker)), text('w')]
    builtins = {  # a way to reach what builtins hold: bytes that leave the function on the stack
        'by name': name('builtins', 'open'),
        'by Python 2 name': name('__builtin__', 'open'),
        'on the stack': stack_name('builtins', 'open'),
        'by a dotted name': stack_name('builtins', 'open.__call__'),
        'by io': stack_name('io', 'open'),
        'by getattr': call(name('builtins', 'getattr'), call(name('builtins', '__import__'), text('io')), text('open')),
        'by attrgetter': call(
            call(name('operator', 'attrgetter'), text('open')), call(name('importlib', 'import_module'), text('io'))
        ),
        'by pkgutil': call(name('pkgutil', 'resolve_name'), text('builtins:open')),
        'by the module of an allowed name': stack_name('numpy', 'dtype.__base__.__subclasses__'),
        'by a name of another allowed module': stack_name('numpy.core.multiarray', 'np.f2py.os.system'),
        'by our own module': stack_name('lib.data.pickles', 'os.system'),
        'by a newline in the name': stack_name('numpy', 'dtype\nos'),
    }
    calls = {
        'os.system': Call(os.system, shell),
        'subprocess.Popen': Call(subprocess.Popen, shell, -1, None, None, None, None, None, True, True),
        'eval': Call(eval, source),
        'exec': Call(exec, source),
        'compile': Call(compile, source, 'x', 'exec'),
        'partial': Call(functools.partial(os.system, shell)),
        'partial, rebuilt': functools.partial(os.system, shell),
        'methodcaller': Call(operator.methodcaller('write_text', 'x'), Path(marker)),
        'attrgetter': Call(operator.attrgetter('system'), Call(importlib.import_module, 'os')),
        'map': map(os.system, [shell]),
        'chain of calls': Call(exec, Call(str, source)),
        'state': Call(dict, state={'a': Call(os.system, shell)}),
        'nested pickle': Call(pickle.loads, pickle.dumps(Call(os.system, shell))),
        'Path': Path(marker),
        'copyreg': Call(copyreg._reconstructor, Call, object, None),
        'numpy.load': Call(np.load, str(marker)),
        'numpy.save': Call(np.save, str(marker), 3),
        'numpy.memmap': Call(np.memmap, str(marker), 'u1', 'w+', 0, (3,)),
        'ndarray.tofile': Call(np.ndarray.tofile, np.zeros(3), str(marker)),
    }
    raw = {f'open {way}': program(call(function, *open_marker)) for way, function in builtins.items()}
    for module, attribute in (
        ('numpy.testing._private.utils', 'runstring'),
        ('numpy.testing', 'measure'),
        ('numpy.f2py.diagnose', 'run_command'),
        ('numpy.f2py', 'compile'),
        ('numpy.f2py.crackfortran', 'myeval'),
        ('numpy.distutils.exec_command', 'exec_command'),
        ('numpy.core._multiarray_umath', '_load_from_filelike'),
        ('numpy._core._multiarray_umath', '_reconstruct'),
        ('numpy.core.multiarray', 'fromfile'),
        ('numpy.core.records', 'fromfile'),
        ('numpy.lib.npyio', 'load'),
        ('numpy', 'memmap'),
        ('numpy.core.numerictypes', 'eval'),
        ('posix', 'system'),
        ('nt', 'system'),
        ('commands', 'getoutput'),
        ('torch', 'load'),
        ('torch._utils', '_rebuild_tensor_v2'),
        ('tensorflow', 'io.write_file'),
        ('yaml', 'unsafe_load'),
        ('pip._internal.cli.main', 'main'),
        ('webbrowser', 'open'),
        ('timeit', 'timeit'),
        ('code', 'interact'),
        ('types', 'CodeType'),
    ):
        raw[f'{module}.{attribute}'] = program(call(stack_name(module, attribute), text(source), pickle.EMPTY_DICT))
    raw |= {
        'INST': b'(S' + repr(shell).encode() + b'\nios\nsystem\n.',
        'INST of text': pickle.MARK + b'V' + shell.encode() + b'\nios\nsystem\n.',
        'OBJ': program(pickle.MARK, name('os', 'system'), text(shell), pickle.OBJ, protocol=1),
        'OBJ of an allowed name': program(pickle.MARK, name('numpy', 'dtype'), text('f2'), pickle.OBJ),
        'NEWOBJ': program(name('numpy', 'dtype'), text('f2'), pickle.TUPLE1, pickle.NEWOBJ),
        'NEWOBJ_EX': program(name('numpy', 'ndarray'), tuple_of(3), pickle.EMPTY_DICT, pickle.NEWOBJ_EX),
        'EXT1': program(pickle.EXT1, b'\x01', text(shell), pickle.TUPLE1, pickle.REDUCE),
        'EXT2': program(pickle.EXT2, b'\x01\x00', text(shell), pickle.TUPLE1, pickle.REDUCE),
        'EXT4': program(pickle.EXT4, b'\x01\x00\x00\x00', text(shell), pickle.TUPLE1, pickle.REDUCE),
        'PERSID': b'Pos.system\n.',
        'BINPERSID': program(text('os.system'), pickle.BINPERSID),
        'protocol 0': b"cposix\nsystem\n(V" + shell.encode() + b'\ntR.',
        'after a good set': pickle.dumps(make_annotations([20, 30]))[:-1] + pickle.POP + call(
            name('posix', 'system'), text(shell)) + pickle.STOP,
        'attributes of an allowed function': program(
            name('numpy.core.multiarray', '_reconstruct'), pickle.NONE, pickle.EMPTY_DICT, text('__defaults__'),
            pickle.EMPTY_TUPLE, pickle.SETITEM, pickle.TUPLE2, pickle.BUILD),
        'attributes of an allowed class': program(
            name('numpy', 'dtype'), pickle.EMPTY_DICT, text('__setstate__'), name('numpy', 'ndarray'), pickle.SETITEM,
            pickle.BUILD),
        'a type among the data': program(pickle.EMPTY_DICT, text('split'), name('numpy', 'ndarray'), pickle.SETITEM),
        'calling data': program(call(text('os.system'), text(shell))),
    }  # fmt: skip
    return calls, raw


def false_arrays():
    objects = np.empty(2, object)
    objects[:] = [{}, os.system]
    fields = np.zeros(3, [('a', 'f4'), ('b', 'O')])
    made = {
        'objects': np.array([{}, []], object),
        'objects and a call': np.array([Call(os.getcwd), 1], object),
        'fields': np.zeros(3, [('a', 'f4')]),
        'fields of objects': fields,
        'subclass': np.zeros(3).view(Subclass),
        'void': np.zeros(3, 'V8'),
        'dates': np.zeros(3, 'M8[s]'),
        'recarray': np.zeros(3, [('a', 'f4')]).view(np.recarray),
        'masked': np.ma.zeros(3),
        'type with metadata': np.zeros(3, np.dtype('f2', metadata={'a': Call(os.getcwd)})),
        'long double': np.zeros(3, np.longdouble),
        'random generator': np.random.default_rng(0),
    }
    eight = long_bytes(b'12345678')
    raw = {
        'object code': program(array(tuple_of(1), eight, 'O8')),
        'object code without size': program(array(tuple_of(1), eight, 'O')),
        'list of types': program(array(tuple_of(1), eight, 'f4,O')),
        'objects in a list': program(array(tuple_of(1), pickle.EMPTY_LIST, 'f8')),
        'huge shape': program(array(tuple_of(2**31 - 1, 2**31 - 1, 2), eight)),
        'huge shape of no item': program(array(tuple_of(2**31 - 1, 0), eight)),
        'negative shape': program(array(tuple_of(-2, -2), eight)),
        'shape of text': program(array(text('4') + pickle.TUPLE1, eight)),
        'shape of many axes': program(array(pickle.MARK + number(1) * 10**5 + pickle.TUPLE, long_bytes(b'12'))),
        'shape that multiplies to a huge number': program(
            array(pickle.MARK + (pickle.LONG1 + b'\x08' + b'\x7f' * 8) * 10**5 + pickle.TUPLE, eight)
        ),
        'true as an axis': program(array(pickle.NEWTRUE + number(4) + pickle.TUPLE2, eight)),
        'filled in twice': program(
            array(tuple_of(4), eight), pickle.MARK, number(1), tuple_of(1), call(name('numpy', 'dtype'), text('f8')),
            pickle.NEWFALSE, eight, pickle.TUPLE, pickle.BUILD),
        'frombuffer beyond its buffer': program(call(
            name('numpy.core.numeric', '_frombuffer'), eight, call(name('numpy', 'dtype'), text('f8')), tuple_of(10**9),
            text('C'))),
        'scalar of objects': program(call(
            name('numpy.core.multiarray', 'scalar'), call(name('numpy', 'dtype'), text('O')), eight)),
        'scalar beyond its bytes': program(call(
            name('numpy.core.multiarray', 'scalar'), call(name('numpy', 'dtype'), text('U9999')), eight)),
        'state of a type with fields': program(
            call(name('numpy', 'dtype'), text('f8')), pickle.MARK, number(3), text('<'), pickle.NONE, text('a'),
            pickle.TUPLE1, pickle.EMPTY_DICT, number(8), number(1), number(27), pickle.TUPLE, pickle.BUILD),
        'another codec': program(call(name('_codecs', 'encode'), text('x'), text('rot13'))),
        'another array class': program(call(
            name('numpy.core.multiarray', '_reconstruct'), name('numpy', 'dtype'), tuple_of(0), long_bytes(b'b'))),
    }  # fmt: skip
    return made, raw


def bombs():
    """Small files that would take all memory, all time or all of the stack."""
    million, deep_list = 10**6, pickle.EMPTY_LIST
    ten_gb = struct.pack('<Q', 10 * GIB)
    some = 10**5
    return {
        'BINBYTES8 of 10 GB': program(pickle.BINBYTES8, ten_gb, b'x' * 1000),
        'BYTEARRAY8 of 10 GB': program(pickle.BYTEARRAY8, ten_gb, b'x' * 1000, protocol=5),
        'BINUNICODE8 of 10 GB': program(pickle.BINUNICODE8, ten_gb, b'x' * 1000),
        'BINBYTES8 of 2**64 bytes': program(pickle.BINBYTES8, b'\xff' * 8, b'x' * 1000),
        'BINBYTES of 4 GB': program(pickle.BINBYTES, b'\xff' * 4, b'x' * 1000),
        'negative BINSTRING': program(pickle.BINSTRING, struct.pack('<i', -1), b'x' * 1000),
        'LONG4 of 2 GB': program(pickle.LONG4, struct.pack('<i', 2**31 - 1), b'x' * 1000),
        'LONG4, negative': program(pickle.LONG4, struct.pack('<i', -1), b'x' * 1000),
        'LONG4 of 1 MB': program(pickle.LONG4, struct.pack('<i', million), b'x' * million),
        'LONG of a million digits': b'L' + b'9' * million + b'L\n.',
        'INT of a million digits': b'I' + b'9' * million + b'\n.',
        'FLOAT of a million digits': b'F' + b'9' * million + b'\n.',
        'memo place 2**32': program(pickle.NONE, pickle.LONG_BINPUT, b'\xff' * 4),
        'memo place 2**31': program(pickle.NONE, pickle.LONG_BINPUT, struct.pack('<I', 2**31)),
        'memo place 2**27': program(pickle.NONE, pickle.LONG_BINPUT, struct.pack('<I', 2**27)),
        'memo place as text': b'Np99999999999999999\n.',
        'memo place below zero': b'Np-1\n.',
        'memo place that is not there': program(pickle.LONG_BINGET, b'\xff' * 4),
        'memo of a million': program(pickle.NONE, pickle.MEMOIZE * (10 * million)),
        'marks, a million deep': program(pickle.MARK * million),
        'marks, closed again': program(pickle.MARK * million, pickle.TUPLE * million),
        'lists, a million deep': program(deep_list * million, pickle.APPEND * (million - 1)),
        'lists, closed one by one': program((pickle.MARK + pickle.EMPTY_LIST) * million, pickle.APPENDS * million),
        'lists, 30 deep': program(deep_list * 30, pickle.APPEND * 29),
        'tuples, a million deep': program(pickle.EMPTY_TUPLE, pickle.TUPLE1 * million),
        'dicts, a million deep': program(
            (pickle.EMPTY_DICT + text('a')) * million, pickle.NONE, pickle.SETITEM * million
        ),
        'a key a million tuples deep': program(
            pickle.EMPTY_DICT, pickle.EMPTY_TUPLE, pickle.TUPLE1 * million, pickle.NONE, pickle.SETITEM
        ),
        'a key of 100,000 tuples in a larger file': program(
            long_bytes(b'x' * million), pickle.EMPTY_DICT, pickle.EMPTY_TUPLE, pickle.TUPLE1 * some, pickle.NONE,
            pickle.SETITEM, pickle.TUPLE2),
        'a key of 2**100 tuples': program(
            doubled(100, pickle.TUPLE2), pickle.EMPTY_DICT, pickle.BINGET, b'd', pickle.NONE, pickle.SETITEM),
        'a set of 2**100 tuples': program(
            pickle.EMPTY_SET, pickle.MARK, doubled(100, pickle.TUPLE2), pickle.ADDITEMS),
        'a frozenset': program(pickle.MARK, doubled(100, pickle.TUPLE2), pickle.FROZENSET),
        'keys that are numbers of one hash': program(
            pickle.EMPTY_DICT, pickle.MARK,
            b''.join(pickle.LONG1 + b'\x09' + ((2**61 - 1) * i).to_bytes(9, 'little') + b'N' for i in range(1000)),
            pickle.SETITEMS),
        'duplicates, 2**100': program(pickle.EMPTY_TUPLE, (pickle.DUP + pickle.TUPLE2) * 100),
        'empty lists': program(pickle.MARK, pickle.EMPTY_LIST * (10 * million), pickle.LIST),
        'empty dicts': program(pickle.MARK, pickle.EMPTY_DICT * (10 * million), pickle.LIST),
        'small tuples': program(pickle.MARK, (pickle.NONE + pickle.TUPLE1) * (10 * million), pickle.LIST),
        'bytes from one text, often': program(
            text('latin1'), pickle.MEMOIZE, pickle.BINUNICODE, struct.pack('<I', million), b'x' * million,
            pickle.MEMOIZE, name('_codecs', 'encode'), pickle.MEMOIZE, pickle.MARK,
            b'h\x02h\x01h\x00\x86R' * (5 * some), pickle.LIST),
        'text from one number, often': program(
            call(name('numpy', 'dtype'), text('U9999')), pickle.MEMOIZE, long_bytes(b'x\0\0\0' * 9999), pickle.MEMOIZE,
            name('numpy.core.multiarray', 'scalar'), pickle.MEMOIZE, pickle.MARK,
            b'h\x02h\x00h\x01\x86R' * (5 * some), pickle.LIST),
        'a frame beyond the file': program(pickle.FRAME, struct.pack('<Q', 2**40), pickle.EMPTY_LIST),
        'a frame of 2**64': program(pickle.FRAME, b'\xff' * 8, pickle.EMPTY_LIST),
        'a frame in a frame': program(
            pickle.FRAME, struct.pack('<Q', 30), pickle.FRAME, struct.pack('<Q', 11), pickle.NONE, pickle.NONE * 25),
        'a frame that goes on after the end': program(pickle.FRAME, struct.pack('<Q', 2), pickle.NONE) + b'xx',
        'a buffer out of band': program(pickle.NEXT_BUFFER, protocol=5),
        'a buffer made read-only': program(long_bytes(b'x'), pickle.READONLY_BUFFER, protocol=5),
        'protocol 200': program(pickle.EMPTY_LIST, protocol=200),
        'nothing on the stack': program(pickle.TUPLE3),
        'two things on the stack': program(pickle.NONE, pickle.NONE),
        'a list without an end': program(pickle.EMPTY_LIST)[:-1],
        'an opcode that is none': program(b'\xff'),
        'a line without an end': b'V' + b'x' * (20 * million),
        'half a character': b"V\\ud800\n.",
        'appending to a tuple': program(pickle.EMPTY_TUPLE, pickle.NONE, pickle.APPEND),
        'appending to an array': program(array(tuple_of(0), long_bytes(b'')), pickle.NONE, pickle.APPEND),
        'items of a list': program(pickle.EMPTY_LIST, text('a'), pickle.NONE, pickle.SETITEM),
        'an odd number of items': program(pickle.EMPTY_DICT, pickle.MARK, text('a'), pickle.SETITEMS),
        'text that is no UTF-8': program(pickle.SHORT_BINUNICODE, b'\x02\xff\xfe'),
    }  # fmt: skip


def repeated():
    """Sound sets but for what they say many times."""
    data = make_annotations([200, 200])
    one = data['annotations'][0]
    arrays = [{**one, 'frame_dir': f'x{i}'} for i in range(2000)]
    ids = ['x'] * 10_000
    wide = ['x'] * 1000
    for _ in range(2):
        wide = [wide] * 1000
    return {
        'a label of 10**9 texts': annotated(wide, 'label'),
        'a shape of 10**9 texts': annotated([wide, wide], 'img_shape'),
        'a name of 10**9 texts': annotated(wide, 'frame_dir'),
        'one annotation many times': {'split': data['split'], 'annotations': [one] * 100_000},
        'one array many times': {'split': data['split'], 'annotations': arrays},
        'one list many times': {'split': {f's{i}': ids for i in range(10_000)}, 'annotations': [one]},
        'a number for an annotation': {'split': {}, 'annotations': [1]},
        'a key that is a tuple': {('split',): 1},
        'an image of the form ()': annotated(np.array(5), 'img_shape'),
        'a name of 10 MB': annotated('x' * 10**7, 'label'),
        'a split of arrays': {'split': {'a': np.zeros(3)}, 'annotations': [one]},
        'keypoints of another file': annotated('/etc/passwd', 'raw_file'),
        'none': None,
    }


def corpus(folder: Path, marker: Path) -> list[Path]:
    """Writes all hostile files; those that Python can pickle, in every protocol."""
    files = {}
    calls, raw = code_that_runs(marker)
    arrays, more = false_arrays()
    for what, value in (calls | arrays).items():
        for protocol in range(6):
            files[f'{what}, protocol {protocol}'] = pickle.dumps(annotated(value), protocol)
    files |= {what: pickle.dumps(data, 4) for what, data in repeated().items()}
    files |= raw | more | bombs()
    paths = []
    for i, (what, content) in enumerate(files.items()):
        paths.append(folder / f'{i:03d} {what.replace("/", " ")}.pkl')
        paths[-1].write_bytes(content)
    return paths


# Run as a process: reads every file of a folder; tells what came of each, and what of it was more than reading.
READ_ALL = """
import json, pkgutil, re, sys, time
from pathlib import Path

read = pkgutil.resolve_name(sys.argv[2])
reading, events = None, []
QUIET = {'object.__getattr__', 'builtins.id', 'sys._getframe'}

def note(event, arguments):
    own = event == 'open' and str(arguments[0]) == str(reading)
    if reading and event not in QUIET and not own:
        events.append(f'{event} {arguments}'[:200])

sys.addaudithook(note)
for turn in 'warm up', 'measure':
    for reading in sorted(Path(sys.argv[1]).glob('*.*'))[:3 if turn == 'warm up' else None]:
        target, reading = reading, None
        Path('/proc/self/clear_refs').write_text('5')  # the peak of memory begins anew
        before = re.search('VmRSS:.* ([0-9]+) kB', Path('/proc/self/status').read_text())
        start, events, reading = time.process_time(), [], target
        try:
            read(reading)
            error = kind = None
        except BaseException as found:
            error, kind = str(found), type(found).__name__
        seconds = time.process_time() - start
        name, reading = reading.name, None
        if turn == 'measure':
            peak = re.search('VmHWM:.* ([0-9]+) kB', Path('/proc/self/status').read_text())
            megabytes = (int(peak[1]) - int(before[1])) // 1024
            print(json.dumps([name, kind, error, seconds, megabytes, events]), flush=True)
"""


@dataclass
class Result:
    name: str
    kind: str | None
    message: str
    seconds: float
    megabytes: int  # more than before
    events: list[str]


def read_all(paths, reader):
    """Reads files of one folder, all that it has, by the function that `reader` names."""
    command = [sys.executable, '-c', READ_ALL, paths[0].parent, reader]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = [Result(*json.loads(line)) for line in run.stdout.splitlines()]
    assert run.returncode == 0, f'{paths[len(found)].name} ended the process ({run.returncode}): {run.stderr[-500:]}'
    assert len(found) == len(paths)
    return found


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp('corpus')
    paths = corpus(folder, folder / 'marker')
    found = read_all(paths, 'lib.data.pickles:load_annotations')
    assert len(paths) >= 40
    assert not (folder / 'marker').exists()
    return found


def test_all_are_refused_with_one_short_line_that_names_the_file(results):
    assert not [r for r in results if r.kind != 'ValueError']
    assert not [r for r in results if r.name not in r.message or len(r.message) > 900 or not r.message.isprintable()]


def assert_modest(results):
    """All within the bounds; -s shows by how much."""
    print(f'{len(results)} files, at most {max(r.seconds for r in results):.2f} s', end=' ')
    print(f'and {max(r.megabytes for r in results)} MB')
    assert not [r for r in results if r.seconds > SECONDS or r.megabytes > MEGABYTES]


def test_none_of_them_runs_anything_or_opens_another_file(results):
    assert not [r for r in results if r.events]


def test_none_of_them_takes_long_or_much_memory(results):
    assert_modest(results)


@pytest.mark.parametrize('what', ['os.system', 'eval', 'exec', 'partial', 'numpy.memmap', 'ndarray.tofile'])
def test_the_corpus_is_loaded(tmp_path, what):
    """Python's own unpickler does run these: the tests above would fail with it."""
    calls, _ = code_that_runs(tmp_path / 'marker')
    with contextlib.suppress(Exception):
        pickle.loads(pickle.dumps(annotated(calls[what])))
    assert (tmp_path / 'marker').exists()


@pytest.mark.parametrize('way', ['by name', 'on the stack', 'by a dotted name', 'by io', 'by getattr', 'by attrgetter'])
def test_the_programs_are_loaded_too(tmp_path, way):
    _, raw = code_that_runs(tmp_path / 'marker')
    pickle.loads(raw[f'open {way}'])
    assert (tmp_path / 'marker').exists()
