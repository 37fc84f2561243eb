"""Commands given files from strangers: they do their work or say in one line why not, whatever the files hold.

What the readers of these files refuse is tested with each of them.
"""

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.tools import check_data, export
from tests import tiny
from tests.annotations import make_annotations

CASES = int(os.environ.get('HYPOTHESIS_CASES', 40))
few = settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# No model of a size that is sound but huge is asked for: that is everybody's right.
values = st.none() | st.booleans() | st.integers(-3, 99) | st.floats(-3, 99) | st.text(max_size=3)
values |= st.just(float('nan')) | st.just([]) | st.just({}) | st.lists(values, max_size=3)
SOUND = pickle.dumps(make_annotations([9, 12] * 4, persons=[1, 2] * 4))


@st.composite
def edited(draw: st.DrawFn, content: Any) -> Any:
    """Nested dicts and lists of which one item is another, is left out or has another name."""
    path, parts = [], [content]
    while isinstance(parts[-1], dict | list) and parts[-1] and (not path or draw(st.integers(0, 5))):
        keys = list(parts[-1]) if isinstance(parts[-1], dict) else range(len(parts[-1]))
        path.append(draw(st.sampled_from(keys)))
        parts.append(parts[-1][path[-1]])
    target = content = copy.deepcopy(content)
    for key in path[:-1]:
        target = target[key]
    how = draw(st.sampled_from(['value', 'value', 'value', 'missing', 'name']))
    if how == 'value':
        target[path[-1]] = draw(values)
    else:
        item = target.pop(path[-1])
        if how == 'name' and isinstance(target, dict):
            target[draw(st.text(max_size=3))] = item
    return content


def is_told(code: int, told: str) -> bool:
    """Whether a command has ended as it should: with its work done, or with one line that says why not."""
    lines = [line for line in told.splitlines() if line.startswith('error: ')]
    return (code, len(lines)) in {(0, 0), (1, 0), (2, 1)} and 'Traceback' not in told


@pytest.fixture(scope='module', params=tiny.SCRIPTS)
def trained(request, tmp_path_factory):
    """(kind, its config, its latest checkpoint, what that holds)."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    config = tiny.write_config(kind, folder)
    assert tiny.caller(tiny.SCRIPTS[kind])('--config', config, '-c', folder / 'run', '--set', 'train.epochs=1') == 0
    (path,) = (folder / 'run').glob('latest_epoch.*')
    return kind, config, path, tiny.latest(folder / 'run')


@settings(parent=few, max_examples=CASES)
@given(data=st.data())
def test_any_change_of_a_checkpoint_under_a_right_checksum(trained, tmp_path, monkeypatch, capsys, data):
    kind, config, latest, good = trained
    content = data.draw(edited(good))
    monkeypatch.chdir(tmp_path)  # a relative path in it leads here
    path = tmp_path / latest.name
    try:
        tiny.SCRIPTS[kind].checkpoint.write(path, content)
    except (AttributeError, TypeError, ValueError):  # weights that are none: our own writer takes no such thing
        return
    call = tiny.caller(tiny.SCRIPTS[kind])
    out = path.with_stem('exported')
    for command in (
        lambda: call('--evaluate', path, '--checkpoint', tmp_path / 'evaluated'),
        lambda: call('--config', config, '-c', tmp_path / 'run', '-r', path, '--set', 'train.epochs=1'),
        lambda: export.main([str(path), str(out)]),
    ):
        capsys.readouterr()
        code = command()
        told = capsys.readouterr().err
        assert is_told(code, told), told
    out.unlink(missing_ok=True)
    for left in (tmp_path / 'run').rglob('*'):
        if left.is_file():
            left.unlink()


@settings(parent=few, max_examples=5 * CASES)
@given(data=st.data())
def test_any_change_of_a_pickle_that_is_checked(tmp_path, capsys, data):
    content = bytearray(SOUND)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    check(tmp_path / 'set.pkl', bytes(content), capsys)


@settings(parent=few, max_examples=5 * CASES)
@given(content=edited(pickle.loads(SOUND)))
def test_any_set_that_is_checked(tmp_path, capsys, content):
    check(tmp_path / 'set.pkl', pickle.dumps(content), capsys)


def check(path: Path, content: bytes, capsys: pytest.CaptureFixture) -> None:
    path.write_bytes(content)
    config = path.with_name('tiny.yaml')
    if not config.exists():
        tiny.write_config('mbert', path.parent)
    for arguments in ([path], [path, '--config', config]):
        capsys.readouterr()
        code = check_data.main(list(map(str, arguments)))
        told = capsys.readouterr().err
        assert is_told(code, told), told
