"""Atomic writes and locks; tests/test_kills.py kills processes at every file operation."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lib import files
from lib.files import check_writable, hold_lock, replacing, write_text

ROOT = Path(files.__file__).parents[1]


def names(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_replaced_files_are_renamed_to_older_versions(tmp_path):
    path, older = tmp_path / 'a', [tmp_path / 'a.1', tmp_path / 'a.2']
    for text in 'vwxyz':
        with replacing(path, older) as file:
            file.write(text.encode())
    assert names(tmp_path) == {'a': 'z', 'a.1': 'y', 'a.2': 'x'}


def test_temporary_files_of_a_killed_process_are_not_reused(tmp_path):
    """If it is killed after linking the best checkpoint, the temporary file and the best one are the same file."""
    path, best = tmp_path / 'a', tmp_path / 'best'
    best.write_text('best')
    os.link(best, tmp_path / 'a.tmp')
    with replacing(path) as file:
        file.write(b'next')
    assert names(tmp_path) == {'a': 'next', 'best': 'best'}
    os.link(best, tmp_path / 'best.tmp')
    with replacing(path, second_name=best) as file:
        file.write(b'better')
    assert names(tmp_path) == {'a': 'better', 'best': 'better'}


def test_a_failed_write_keeps_the_old_files(tmp_path):
    path = tmp_path / 'a'
    write_text(path, 'old')
    with pytest.raises(ZeroDivisionError), replacing(path, [tmp_path / 'a.1']) as file:
        file.write(bytes(file.write(b'new') // 0))
    with (
        pytest.raises(ValueError, match=r'a cannot be written \(No space left.*intact'),
        replacing(path),
    ):
        raise OSError(28, 'No space left on device')
    assert names(tmp_path) == {'a': 'old'}


def test_content_is_synced_before_the_rename_and_the_folder_afterwards(tmp_path, monkeypatch):
    done = []
    for name in ('fsync', 'replace'):
        call = getattr(os, name)
        monkeypatch.setattr(files.os, name, lambda *a, name=name, call=call: (done.append(name), call(*a))[1])
    monkeypatch.setattr(files, 'sync_folder', lambda folder: done.append(folder))
    write_text(tmp_path / 'a', 'text')
    assert done == ['fsync', 'replace', tmp_path]


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path):
    code = (
        f'from lib.files import *\nlock = hold_lock(Path({str(tmp_path / "lock")!r}), "it")\nprint(flush=True)\ninput()'
    )
    command, pipes = [sys.executable, '-c', code], {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'cwd': ROOT}
    with subprocess.Popen(command, **pipes) as process:
        process.stdout.readline()
        with pytest.raises(ValueError, match=f'it is in use by process {process.pid} on .*remove {tmp_path / "lock"}'):
            hold_lock(tmp_path / 'lock', 'it')
        process.send_signal(signal.SIGKILL)
    with hold_lock(tmp_path / 'lock', 'it'), pytest.raises(ValueError, match=f'process {os.getpid()} on'):
        hold_lock(tmp_path / 'lock', 'it')


def test_a_file_system_without_locks_causes_a_warning(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(37, 'No locks available')

    monkeypatch.setattr(files.fcntl, 'flock', refuse)
    with pytest.warns(UserWarning, match='file system without locks'):
        hold_lock(tmp_path / 'lock', 'it').close()


def test_folders_that_cannot_be_written_are_named(tmp_path):
    check_writable(tmp_path / 'new' / 'folder', '')
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match=r'x cannot be written: .*file is a file. Name another.'):
        check_writable(tmp_path / 'file' / 'x', 'Name another.')
    assert not (tmp_path / 'new').exists()
