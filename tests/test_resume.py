"""Runs that are stopped, killed, damaged or crowded go on where they were, to the bit; all three scripts alike.

Kills at every moment are in test_kills.py.
"""

import contextlib
import importlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lib import files
from lib.run import Run
from lib.runlog import RunLog
from lib.stop import SIGNALS
from tests import tiny
from tests.processes import interrupt

EPOCHS = 3


@pytest.fixture(params=tiny.SCRIPTS)
def kind(request):
    return request.param


@pytest.fixture
def call(kind):
    return tiny.caller(tiny.SCRIPTS[kind])


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """whole(kind) -> the folder of an uninterrupted run, its config file beside it."""
    made = {}

    def run(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            config = tiny.write_config(kind, folder)
            assert tiny.caller(tiny.SCRIPTS[kind])('--config', config, '-c', folder / 'whole', *epochs(EPOCHS)) == 0
            made[kind] = folder / 'whole'
        return made[kind]

    return run


def epochs(count: int, *changes: str) -> list[str]:
    return [part for change in (f'epochs={count}', *changes) for part in ('--set', f'train.{change}')]


@pytest.fixture
def command(whole, kind, tmp_path):
    """The arguments by which the run is done in another folder."""
    return ['--config', whole(kind).parent / 'tiny.yaml', '-c', tmp_path / 'run', '-freq', 1, *epochs(EPOCHS)]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def latest_name(kind: str) -> str:
    return f'latest_epoch.{"npz" if kind == "vivit" else "bin"}'


class Crash(BaseException):
    """Ends a training as a kill does: nothing of ours catches it."""


@contextlib.contextmanager
def crash_after(step: int) -> Iterator[None]:
    """Lets the training crash after the progress line of a step, counted over all epochs."""
    reports = []

    def report(*_: object, **means: float) -> None:
        reports.append(means)
        if len(reports) == step:
            raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, 'report', report)
        yield


# Steps whose lines are the last of two processes: of epoch 2 the first saves two steps in all, or the second does.
@pytest.mark.parametrize(('save_every', 'crashes'), [(1, (5, 2)), (2, (6, 1))])
def test_a_crash_in_an_epoch_costs_the_steps_since_the_last_save(
    kind, call, command, whole, tmp_path, capsys, save_every, crashes
):
    """Twice in one epoch, with other numbers of loaders and of steps between saves."""
    for step, workers in zip(crashes, (1, 3), strict=True):
        with crash_after(step), pytest.raises(Crash):
            call(*command, *epochs(EPOCHS, f'save_every={save_every}', f'num_workers={workers}'))
    capsys.readouterr()
    assert call(*command, *epochs(EPOCHS, 'save_every=null', 'num_workers=2')) == 0
    told = capsys.readouterr().out
    assert f'goes on from {tmp_path / "run" / latest_name(kind)}, after epoch 1 and 2 steps' in told
    assert f'train.save_every was {save_every}, is None' in told
    # The line of a step tells the means of all steps of its epoch.
    line = next(line for line in told.splitlines() if line.startswith('epoch 2/3  100 %  20/20 clips'))
    means = tiny.lines(whole(kind))[1]['train']
    assert f'loss {means["loss"]:.4f}, top1 {means["top1"]:.2%}' in line
    assert 'epoch 2/3   40 %' not in told
    tiny.assert_same_run(whole(kind), tmp_path / 'run')


@pytest.mark.parametrize('number', SIGNALS, ids=lambda number: number.name)
def test_a_signal_in_an_epoch_saves_and_leaves(kind, call, command, whole, tmp_path, monkeypatch, capsys, number):
    handlers = [signal.getsignal(each) for each in SIGNALS]  # a shell's background job ignores SIGINT
    with monkeypatch.context() as patch:
        report = RunLog.report
        lines = []

        def report_and_signal(self: RunLog, *args: object, **means: float) -> None:
            report(self, *args, **means)
            lines.append(means)
            if len(lines) == 4:  # the first step of epoch 2
                os.kill(os.getpid(), number)
                wait_until(lambda: 'stopping after this step' in capsys.readouterr().out)

        patch.setattr(RunLog, 'report', report_and_signal)
        assert call(*command) == 75
    assert len(lines) <= 5
    assert f'The same command goes on from {tmp_path / "run" / latest_name(kind)}' in capsys.readouterr().err
    assert tiny.latest(tmp_path / 'run')['step'] == len(lines) - 3
    assert call(*command) == 0
    assert f'after epoch 1 and {len(lines) - 3} steps' in capsys.readouterr().out
    tiny.assert_same_run(whole(kind), tmp_path / 'run')
    assert [signal.getsignal(each) for each in SIGNALS] == handlers


def test_ctrl_c_as_a_user_gives_it(kind, command, whole, tmp_path):
    again = [sys.executable, tiny.SCRIPTS[kind].__file__, *map(str, command)]
    code, told = interrupt(again, 'epoch 2/3  ')
    assert code == 75, told
    assert f'The same command goes on from {tmp_path / "run" / latest_name(kind)}' in told
    assert 'Traceback' not in told
    subprocess.run(again, capture_output=True, text=True, check=True)
    tiny.assert_same_run(whole(kind), tmp_path / 'run')


def wait_until(is_so: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, 'it did not come to be'
        time.sleep(0.01)


def test_a_signal_in_validation_saves_the_epoch_so_far(kind, call, command, whole, tmp_path, monkeypatch, capsys):
    engine = importlib.import_module(f'lib.{"tensorflow" if kind == "vivit" else "pytorch"}.engine')
    with monkeypatch.context() as patch:
        predict = engine.predict

        def predict_and_signal(*args: object) -> object:
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: 'stopping after this step' in capsys.readouterr().out)
            return predict(*args)

        patch.setattr(engine, 'predict', predict_and_signal)
        assert call(*command) == 75
    saved = tiny.latest(tmp_path / 'run')
    assert (saved['epoch'], saved['step'], saved['history']) == (0, 3, [])
    assert call(*command) == 0
    told = capsys.readouterr().out
    assert 'after epoch 0 and 3 steps' in told
    assert 'epoch 1/3  1' not in told  # no step of it is done again
    tiny.assert_same_run(whole(kind), tmp_path / 'run')


def test_a_signal_in_a_save_lets_it_finish(kind, call, command, whole, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        replace, replaced = os.replace, []

        def replace_and_signal(source: Path, target: Path) -> None:
            replaced.append(Path(target).name)
            if replaced.count(latest_name(kind)) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                wait_until(lambda: 'stopping after this step' in capsys.readouterr().out)
                patch.setattr(files.os, 'replace', replace)
            replace(source, target)

        patch.setattr(files.os, 'replace', replace_and_signal)
        assert call(*command) == 75
    assert tiny.latest(tmp_path / 'run')['epoch'] == 1
    assert not [name for name in names(tmp_path / 'run') if name.endswith('.tmp')]
    assert call(*command) == 0
    tiny.assert_same_run(whole(kind), tmp_path / 'run')


def test_a_second_signal_leaves_at_once():
    """Even while the main thread is in a call of many seconds, as a backward pass may be one."""
    code = 'with Stop():\n    print("ready", flush=True)\n    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)'
    code = f'import hashlib\nfrom lib.stop import Stop\n{code}'
    pipes = {'stdout': subprocess.PIPE, 'text': True, 'cwd': Path(files.__file__).parents[1]}
    with subprocess.Popen([sys.executable, '-c', code], **pipes) as process:
        assert process.stdout.readline() == 'ready\n'
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert 'a second signal leaves at once' in process.stdout.readline() + process.stdout.readline()
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 75
        assert time.monotonic() - begin < 10


def test_before_training_a_signal_leaves_at_once(kind, call, command, tmp_path, monkeypatch, capsys):
    script = tiny.SCRIPTS[kind]
    monkeypatch.setattr(script, 'make_clips', lambda *_: os.kill(os.getpid(), signal.SIGUSR1) or time.sleep(10))
    assert call(*command) == 75
    assert 'Nothing was saved yet' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_signal_that_python_loses_is_heard_at_the_first_step(
    kind, call, command, whole, tmp_path, monkeypatch, capsys
):
    """Nothing leaves a destructor, not even KeyboardInterrupt."""

    class Destroyed:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)  # where the handler is called

    script = tiny.SCRIPTS[kind]
    make_clips, received = script.make_clips, []

    def make_clips_and_destroy(*args: object) -> object:
        if not received:
            received.append(Destroyed())
            received[0] = None
        return make_clips(*args)

    with monkeypatch.context() as patch:
        patch.setattr(script, 'make_clips', make_clips_and_destroy)
        assert call(*command) == 75
    assert tiny.latest(tmp_path / 'run')['step'] == 1
    assert call(*command) == 0
    tiny.assert_same_run(whole(kind), tmp_path / 'run')


def test_the_last_checkpoints_stay(kind, call, command, whole, tmp_path):
    stem, suffix = latest_name(kind).split('.')
    assert call(*command, *epochs(1, 'keep=3', 'save_every=1')) == 0  # after each of three steps, and at the end
    checkpoint = tiny.SCRIPTS[kind].checkpoint
    found = [checkpoint.read(tmp_path / 'run' / name) for name in (f'{stem}.{suffix}', *older(kind, 2))]
    assert [(saved['epoch'], saved['step']) for saved in found] == [(1, 0), (0, 3), (0, 2)]
    assert len([name for name in names(tmp_path / 'run') if name.startswith('latest')]) == 3
    assert call(*command, *epochs(2, 'keep=1')) == 0
    assert [name for name in names(tmp_path / 'run') if name.startswith('latest')] == [latest_name(kind)]


def older(kind: str, count: int) -> list[str]:
    stem, suffix = latest_name(kind).split('.')
    return [f'{stem}.{i + 1}.{suffix}' for i in range(count)]


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == 'cut':
        del content[len(content) // 2 :]
    elif how == 'empty':
        content.clear()
    else:  # a bit of a weight or moment; nothing but the checksum tells
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize('how', ['cut', 'empty', 'bit', 'missing'])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(kind, call, command, whole, tmp_path, capsys, how):
    run = tmp_path / 'run'
    assert call(*command, *epochs(2)) == 0
    latest = run / latest_name(kind)
    latest.unlink() if how == 'missing' else damage(latest, how)
    capsys.readouterr()
    assert call(*command) == 0
    told = capsys.readouterr().out
    assert f'goes on from {run / older(kind, 1)[0]}, after epoch 1' in told
    assert (f'warning: {latest}' in told) == (how != 'missing')
    assert (f'{latest.name}.damaged' in names(run)) == (how != 'missing')  # for whom it may be worth something
    tiny.assert_same_run(whole(kind), run)


def test_a_run_of_which_only_the_best_is_left_goes_on_from_it(kind, call, command, whole, tmp_path, capsys):
    run, best = tmp_path / 'run', latest_name(kind).replace('latest', 'best')
    assert call(*command, *epochs(2)) == 0
    for name in (latest_name(kind), *older(kind, 1)):
        (run / name).unlink()
    assert call(*command, '--set', 'data.seed=1') == 2
    assert 'data.seed: 0 there, 1 in this command' in capsys.readouterr().err
    assert call(*command) == 0
    assert f'goes on from {run / best}, after epoch ' in capsys.readouterr().out
    tiny.assert_same_run(whole(kind), run)


def test_where_all_are_damaged_the_run_ends_and_nothing_is_touched(kind, call, command, tmp_path, capsys):
    run = tmp_path / 'run'
    assert call(*command, *epochs(2)) == 0
    for name in (latest_name(kind), *older(kind, 1), latest_name(kind).replace('latest', 'best')):
        damage(run / name, 'bit')
    before = {path: path.read_bytes() for path in run.rglob('*') if path.is_file()}
    capsys.readouterr()
    assert call(*command) == 2
    told = capsys.readouterr().err
    assert f'none of the checkpoints of {run} can be read' in told
    assert 'name another folder' in told
    assert {path: path.read_bytes() for path in run.rglob('*') if path.is_file()} == before
    assert call('--evaluate', run / latest_name(kind)) == 2
    assert 'damaged' in capsys.readouterr().err


def test_a_folder_takes_one_run_at_a_time(kind, call, command, tmp_path, monkeypatch, capsys):
    assert call(*command, *epochs(1)) == 0
    capsys.readouterr()
    codes = {}

    def in_the_meantime(self: Run, *args: object) -> None:
        codes['train'] = call(*command)
        codes['told'] = capsys.readouterr().err
        codes['evaluate'] = call('--evaluate', tmp_path / 'run' / latest_name(kind))

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, 'epoch', lambda self, *args, **_: codes or in_the_meantime(self))
        assert call(*command, *epochs(2)) == 0
    assert codes['train'] == 2
    assert f'{tmp_path / "run"} is in use by process {os.getpid()} on ' in codes['told']
    assert codes['evaluate'] == 0
    assert call(*command) == 0  # it is free again


def test_a_run_that_begins_beside_another_is_refused(kind, call, command, tmp_path, monkeypatch, capsys):
    """Both have found an empty place; the second comes to write when the first is done already."""
    script = tiny.SCRIPTS[kind]
    with monkeypatch.context() as patch:
        make_clips = script.make_clips

        def let_another_go_first(*args: object) -> object:
            patch.undo()
            assert call(*command, *epochs(1)) == 0
            return make_clips(*args)

        patch.setattr(script, 'make_clips', let_another_go_first)
        assert call(*command) == 2
    assert f'another process has just begun a run in {tmp_path / "run"}' in capsys.readouterr().err
    assert tiny.latest(tmp_path / 'run')['epoch'] == 1


def test_a_full_disk_ends_the_run_and_leaves_what_was_there(kind, call, command, whole, tmp_path):
    run = tmp_path / 'run'
    assert call(*command, *epochs(1)) == 0
    before = {name: (run / name).read_bytes() for name in names(run) if 'epoch' in name}
    limit = (run / latest_name(kind)).stat().st_size * 2 // 3

    def allow_no_larger_file() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    arguments = [sys.executable, tiny.SCRIPTS[kind].__file__, *map(str, command)]
    ended = subprocess.run(arguments, capture_output=True, text=True, preexec_fn=allow_no_larger_file)
    assert ended.returncode == 2, ended.stderr
    assert 'cannot be written (File too large). What was there before is still there.' in ended.stderr
    assert 'Traceback' not in ended.stderr
    assert {name: (run / name).read_bytes() for name in names(run) if 'epoch' in name} == before
    assert call(*command) == 0
    tiny.assert_same_run(whole(kind), run)


FORGED = {
    'kind': 3,
    'config': [],
    'epoch': -1,
    'step': 1.5,
    'loss_sum': float('nan'),
    'hits': None,
    'best': {'top1': 10**400, 'epoch': 1},
    'history': [{'epoch': 1}],
    'model': {'weight': 'heavy'},
    'optimizer': {'state': {0: {'step': 1}}},
}


@pytest.mark.parametrize('key', FORGED)
def test_wrong_content_under_a_right_checksum_is_refused(kind, call, command, whole, tmp_path, capsys, key):
    checkpoint, bad = tiny.SCRIPTS[kind].checkpoint, tmp_path / latest_name(kind)
    good = checkpoint.read(whole(kind) / latest_name(kind))
    for content in ({**good, key: FORGED[key]}, {name: value for name, value in good.items() if name != key}):
        if kind == 'vivit' and key in ('model', 'optimizer'):  # arrays by their names in any case
            content = {**good, key: {'weight': np.zeros((2, 3))}}
        checkpoint.write(bad, content)
        assert call(*command, '-r', bad) == 2
        told = capsys.readouterr().err
        assert told.startswith(f'error: {bad} ')
        assert len(told.splitlines()) == 1
    assert not (tmp_path / 'run').exists()


def test_a_checkpoint_of_more_steps_than_there_are_is_refused(kind, call, command, whole, tmp_path, capsys):
    checkpoint, bad = tiny.SCRIPTS[kind].checkpoint, tmp_path / latest_name(kind)
    checkpoint.write(bad, {**checkpoint.read(whole(kind) / latest_name(kind)), 'step': 4})
    assert call(*command, '-r', bad) == 2
    assert f'{bad} has done 4 steps of an epoch of 3' in capsys.readouterr().err
