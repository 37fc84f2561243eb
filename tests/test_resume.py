"""Interrupted runs resume bit-exactly; damaged, locked and full folders. test_kills.py kills runs at any point."""

import importlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lib import files
from lib.log import Log
from lib.stop import SIGNALS
from tests import tiny
from tests.processes import interrupt

EPOCHS = 3
# TensorFlow traces its graphs for seconds in each training.
ONE = ['vanilla', pytest.param('mbert', marks=pytest.mark.slow), pytest.param('vivit', marks=pytest.mark.slow)]
of_one = pytest.mark.parametrize('kind', ONE)


@pytest.fixture
def call(kind):
    return tiny.caller(tiny.SCRIPTS[kind])


@pytest.fixture(scope='session')
def whole(tmp_path_factory):
    """whole(kind) -> folder of an uninterrupted run, beside its config file."""
    made = {}

    def run(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            config = tiny.write_config(kind, folder)
            assert tiny.caller(tiny.SCRIPTS[kind])('--config', config, '-c', folder / 'whole', *epochs(EPOCHS)) == 0
            made[kind] = folder / 'whole'
        return made[kind]

    return run


@pytest.fixture
def command(whole, kind, tmp_path):
    """Arguments for the same run in another folder."""
    return ['--config', whole(kind).parent / 'tiny.yaml', '-c', tmp_path / 'run', '-freq', 1, *epochs(EPOCHS)]


@pytest.fixture
def finished(whole, kind, tmp_path):
    """A copy of the uninterrupted run in the folder of `command`."""
    return Path(shutil.copytree(whole(kind), tmp_path / 'run'))


def epochs(count: int, *changes: str) -> list[str]:
    return tiny.overrides(*(f'train.{change}' for change in (f'epochs={count}', *changes)))


def latest_name(kind: str, older: int = 0) -> str:
    return f'latest_epoch{f".{older}" if older else ""}.{"npz" if kind == "vivit" else "bin"}'


def best_name(kind: str) -> str:
    return latest_name(kind).replace('latest', 'best')


def wait_until(is_so: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ('kind', 'number'),
    [*(('vanilla', number) for number in SIGNALS), ('mbert', signal.SIGTERM), ('vivit', signal.SIGTERM)],
)
def test_a_signal_saves_and_exits_with_75(kind, call, command, whole, tmp_path, monkeypatch, capsys, number):
    handlers = [signal.getsignal(each) for each in SIGNALS]  # a shell's background job ignores SIGINT
    with monkeypatch.context() as patch:
        report, lines = Log.report, []

        def report_and_signal(self: Log) -> None:
            report(self)
            lines.append(1)
            if len(lines) == 4:  # the first step of epoch 2
                os.kill(os.getpid(), number)
                wait_until(lambda: 'a second signal ends' in capsys.readouterr().out)

        patch.setattr(Log, 'report', report_and_signal)
        assert call(*command) == 75
    assert f'The same command resumes from {tmp_path / "run" / latest_name(kind)}' in capsys.readouterr().err
    assert tiny.latest(tmp_path / 'run')['step'] == len(lines) - 3 <= 2
    # The rest of the epoch with other numbers of steps between reports and saves and of loader threads.
    assert call(*command, '-freq', 100, *epochs(EPOCHS, 'save_every=2', 'num_workers=3')) == 0
    assert tiny.SCRIPTS[kind].checkpoint.read(tmp_path / 'run' / latest_name(kind, 1))['step'] == 2
    tiny.assert_same_run(whole(kind), tmp_path / 'run')
    assert [signal.getsignal(each) for each in SIGNALS] == handlers


@pytest.mark.parametrize('kind', ['vanilla', pytest.param('vivit', marks=pytest.mark.slow)])
def test_ctrl_c_in_a_terminal(kind, command, whole, tmp_path):
    again = [sys.executable, tiny.SCRIPTS[kind].__file__, *map(str, command)]
    code, errors = interrupt(again, 'epoch 2/3  ')
    assert code == 75, errors
    assert 'Traceback' not in errors
    subprocess.run(again, capture_output=True, text=True, check=True)
    tiny.assert_same_run(whole(kind), tmp_path / 'run')


@of_one
def test_a_signal_during_validation_saves_the_epoch_so_far(kind, call, command, whole, tmp_path, monkeypatch, capsys):
    training = importlib.import_module(f'lib.{"tensorflow" if kind == "vivit" else "pytorch"}.training')
    with monkeypatch.context() as patch:
        predict = training.predict

        def predict_and_signal(*args: object) -> object:
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: 'a second signal ends' in capsys.readouterr().out)
            return predict(*args)

        patch.setattr(training, 'predict', predict_and_signal)
        assert call(*command) == 75
    saved = tiny.latest(tmp_path / 'run')
    assert (saved['epoch'], saved['step'], saved['history']) == (0, 3, [])
    assert call(*command) == 0
    assert 'epoch 1/3  1' not in capsys.readouterr().out  # no step is repeated
    tiny.assert_same_run(whole(kind), tmp_path / 'run')


@pytest.mark.parametrize('is_read', [True, False])
def test_a_second_signal_exits_at_once(is_read):
    """Even during a long call in the main thread, such as a backward pass, and when nobody reads the output any more.

    Ctrl-C also ends the reader in `train_action_vanilla.py | tee log`.
    """
    code = 'with StopSignal():\n    print("ready", flush=True)\n    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)'
    code = f'import hashlib\nfrom lib.stop import StopSignal\n{code}'
    pipes = {'stdout': subprocess.PIPE, 'text': True, 'cwd': Path(files.__file__).parents[1]}
    process = subprocess.Popen([sys.executable, '-c', code], **pipes)
    try:
        assert process.stdout.readline() == 'ready\n'
        if not is_read:
            process.stdout.close()
        process.send_signal(signal.SIGTERM)
        if is_read:
            assert 'a second signal' in process.stdout.readline() + process.stdout.readline()
        else:
            time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 75
    finally:
        process.kill()


@of_one
def test_a_signal_before_training_exits_at_once(kind, call, command, tmp_path, monkeypatch, capsys):
    script = tiny.SCRIPTS[kind]
    monkeypatch.setattr(script, 'make_clips', lambda *_: os.kill(os.getpid(), signal.SIGUSR1) or time.sleep(10))
    assert call(*command) == 75
    assert 'Nothing was saved yet' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


@of_one
def test_training_continues_while_a_checkpoint_is_written(kind, call, command, whole, tmp_path, monkeypatch):
    script, trained, written_at = tiny.SCRIPTS[kind], [], []
    write, report = script.checkpoint.Run.write, Log.report

    def slow_write(*args: object) -> None:
        before = len(trained)
        wait_until(lambda: len(trained) > before or len(trained) == 9)
        written_at.append((before, len(trained)))
        write(*args)

    monkeypatch.setattr(script.checkpoint.Run, 'write', staticmethod(slow_write))
    monkeypatch.setattr(Log, 'report', lambda self: (trained.append(1), report(self)))
    assert call(*command, *epochs(EPOCHS, 'save_every=2')) == 0
    assert any(after > before for before, after in written_at)
    tiny.assert_same_run(whole(kind), tmp_path / 'run')


@of_one
def test_the_best_checkpoint_is_a_link_or_a_copy(kind, call, command, tmp_path, monkeypatch):
    run = tmp_path / 'run'
    assert call(*command, *epochs(1)) == 0
    assert os.path.samefile(run / latest_name(kind), run / best_name(kind))
    linked = (run / best_name(kind)).read_bytes()
    shutil.rmtree(run)

    def refuse(*_: object) -> None:
        raise OSError(1, 'Operation not permitted')

    monkeypatch.setattr(files.os, 'link', refuse)
    assert call(*command, *epochs(1)) == 0
    assert not os.path.samefile(run / latest_name(kind), run / best_name(kind))
    assert len((run / best_name(kind)).read_bytes()) == len(linked)


@of_one
def test_the_last_checkpoints_are_kept(kind, call, command, tmp_path):
    run = tmp_path / 'run'
    assert call(*command, *epochs(1, 'keep=3', 'save_every=1')) == 0  # saved after each of three steps and at the end
    found = [tiny.SCRIPTS[kind].checkpoint.read(run / latest_name(kind, i)) for i in range(3)]
    assert [(saved['epoch'], saved['step']) for saved in found] == [(1, 0), (0, 3), (0, 2)]
    assert not (run / latest_name(kind, 3)).exists()
    assert call(*command, *epochs(2, 'keep=1')) == 0
    assert [path.name for path in run.glob('latest*')] == [latest_name(kind)]


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == 'cut':
        del content[len(content) // 2 :]
    elif how == 'empty':
        content.clear()
    else:  # a bit of a weight or moment: only the checksum detects it
        content[len(content) // 2] ^= 1
    path.unlink()  # the best checkpoint may be the same file
    if how != 'missing':
        path.write_bytes(content)


@of_one
@pytest.mark.parametrize('how', ['cut', 'empty', 'bit', 'missing'])
def test_a_damaged_checkpoint_is_replaced_by_the_previous_one(kind, call, command, whole, finished, capsys, how):
    damage(finished / latest_name(kind), how)
    capsys.readouterr()
    assert call(*command) == 0
    output = capsys.readouterr().out
    assert f'resuming from {finished / latest_name(kind, 1)}, after epoch 2' in output
    assert (f'warning: {finished / latest_name(kind)}' in output) == (how != 'missing')
    assert (finished / f'{latest_name(kind)}.damaged').exists() == (how != 'missing')
    tiny.assert_same_run(whole(kind), finished)


@of_one
def test_a_run_resumes_from_its_best_checkpoint_if_no_other_is_left(kind, call, command, whole, finished, capsys):
    (finished / latest_name(kind)).unlink()
    (finished / latest_name(kind, 1)).replace(finished / best_name(kind))
    assert call(*command, '--set', 'data.seed=1') == 2
    assert 'data.seed: 0 in the checkpoint, 1 now' in capsys.readouterr().err
    assert call(*command) == 0
    assert f'resuming from {finished / best_name(kind)}, after epoch ' in capsys.readouterr().out
    tiny.assert_same_run(whole(kind), finished)


@of_one
def test_nothing_is_touched_if_every_checkpoint_is_damaged(kind, call, command, finished, capsys):
    for name in (latest_name(kind), latest_name(kind, 1), best_name(kind)):
        damage(finished / name, 'bit')
    lock = {finished / 'run.lock': b''}
    before = tiny.files(finished) | lock
    assert call(*command) == 2
    assert f'none of the checkpoints in {finished} can be read' in capsys.readouterr().err
    assert tiny.files(finished) | lock == before
    assert call('--evaluate', finished / latest_name(kind)) == 2
    assert str(finished / latest_name(kind)) in capsys.readouterr().err


@of_one
def test_a_folder_is_used_by_one_run_at_a_time(kind, call, command, finished, monkeypatch, capsys):
    codes = {}

    def meanwhile(_: Log) -> None:
        if not codes:
            codes['train'] = call(*command)
            codes['error'] = capsys.readouterr().err
            codes['evaluate'] = call('--evaluate', finished / latest_name(kind))

    with monkeypatch.context() as patch:
        patch.setattr(Log, 'end', meanwhile)
        assert call(*command) == 0
    assert codes['train'] == 2
    assert f'{finished} is in use by process {os.getpid()} on ' in codes['error']
    assert codes['evaluate'] == 0
    assert call(*command) == 0  # the lock is released


@of_one
def test_a_run_is_refused_if_another_one_has_just_started(kind, call, command, tmp_path, monkeypatch, capsys):
    """Both found an empty folder; the first one finishes before the second one writes."""
    script = tiny.SCRIPTS[kind]
    with monkeypatch.context() as patch:
        make_clips = script.make_clips

        def let_another_go_first(*args: object) -> object:
            patch.undo()
            assert call(*command, *epochs(1)) == 0
            return make_clips(*args)

        patch.setattr(script, 'make_clips', let_another_go_first)
        assert call(*command) == 2
    assert f'another process has just started a run in {tmp_path / "run"}' in capsys.readouterr().err
    assert tiny.latest(tmp_path / 'run')['epoch'] == 1


@of_one
def test_a_full_disk_ends_the_run_and_loses_nothing(kind, call, command, whole, tmp_path):
    run = tmp_path / 'run'
    assert call(*command, *epochs(1)) == 0
    before = {path: path.read_bytes() for path in run.glob('*_epoch*')}
    limit = (run / latest_name(kind)).stat().st_size * 2 // 3

    def allow_no_larger_file() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    arguments = [sys.executable, tiny.SCRIPTS[kind].__file__, *map(str, command)]
    ended = subprocess.run(arguments, capture_output=True, text=True, preexec_fn=allow_no_larger_file)
    assert ended.returncode == 2, ended.stderr
    assert 'cannot be written (File too large)' in ended.stderr
    assert 'Traceback' not in ended.stderr
    assert {path: path.read_bytes() for path in run.glob('*_epoch*')} == before
    assert call(*command) == 0
    tiny.assert_same_run(whole(kind), run)


@of_one
def test_a_file_in_place_of_the_logs_folder_is_reported(kind, call, command, tmp_path, capsys):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'logs').write_text('notes')
    assert call(*command) == 2
    assert f'error: {tmp_path / "run" / "logs"} cannot be written' in capsys.readouterr().err


@of_one
def test_a_finished_run_is_not_restarted(kind, call, command, whole, tmp_path, capsys):
    finished = whole(kind) / latest_name(kind)
    assert call(*command, '-r', finished) == 2
    assert f'{finished} has completed all' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


@of_one
def test_a_checkpoint_of_more_steps_than_an_epoch_has_is_refused(kind, call, command, whole, tmp_path, capsys):
    bad = tmp_path / latest_name(kind)
    tiny.write_checkpoint(bad, {**tiny.latest(whole(kind)), 'epoch': 2, 'step': 4})
    assert call(*command, '-r', bad) == 2
    assert f'{bad} has completed 4 steps' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()
