"""Shared fixtures: recorded references, real motion, pickles, and one trained run per model."""

import functools
import os

if 'PYTEST_XDIST_WORKER' in os.environ:  # parallel workers share the cores: one thread each, set before any import
    for variable in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'TF_NUM_INTRAOP_THREADS', 'TF_NUM_INTEROP_THREADS'):
        os.environ.setdefault(variable, '1')

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torchvision  # noqa: F401 before TensorFlow: loading Triton after TensorFlow crashes
from hypothesis import HealthCheck, settings

GOLDENS = Path(__file__).parent / 'goldens'
# Longest files first, to balance the load of parallel workers.
LONG = (
    'test_kills.py', 'test_resume.py', 'test_train_action.py', 'test_cluster.py', 'test_readme.py', 'test_training.py',
    'test_compile.py', 'test_vivit.py', 'test_export.py', 'test_distributed.py', 'test_heatmap.py',
)  # fmt: skip

COMMON = {'deadline': None, 'derandomize': True, 'suppress_health_check': [HealthCheck.function_scoped_fixture]}
settings.register_profile('quick', max_examples=30, **COMMON)
settings.register_profile('thorough', max_examples=500, **COMMON)
settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'quick'))


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
    for item in items:
        if 'golden' in getattr(item, 'fixturenames', ()):
            item.add_marker('golden')
    if any('gpu' in item.keywords for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if 'gpu' in item.keywords:
                    item.add_marker(pytest.mark.skip(reason='no CUDA device'))


@pytest.fixture(scope='session')
def golden():
    """golden(name) -> arrays in tests/goldens/name.npz, or in GOLDENS_DIR if set, by name."""
    folder = Path(os.environ.get('GOLDENS_DIR', GOLDENS))

    @functools.cache
    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(folder / f'{name}.npz', allow_pickle=False) as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope='session')
def motion():
    """motion(file name) -> path in MOTION_DIR. Skips the test if MOTION_DIR is not set."""

    def path(name: str) -> Path:
        if 'MOTION_DIR' not in os.environ:
            pytest.skip('MOTION_DIR is not set')
        file = Path(os.environ['MOTION_DIR']) / name
        assert file.is_file(), f'{file} is missing'
        return file

    return path


@pytest.fixture
def write_pickle(tmp_path):
    """write_pickle(data, name='set.pkl', protocol=4) -> path of the file."""

    def write(data: object, name: str = 'set.pkl', protocol: int = 4) -> Path:
        path = tmp_path / name
        path.write_bytes(pickle.dumps(data, protocol))
        return path

    return write


@pytest.fixture
def refused(capsys):
    """refused(main, *arguments) -> the error of a tool, a single line, with exit code 2."""

    def run(main: Callable[[list[str]], int], *arguments: object) -> str:
        capsys.readouterr()
        assert main([*map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith('error: ')
        return line

    return run


@pytest.fixture(scope='session')
def trained_once(tmp_path_factory) -> Callable[[str], Path]:
    """trained_once(kind) -> folder with generated.pkl, tiny.yaml and run/: a tiny model, trained for one epoch.

    Read-only, shared by all tests of a worker. Tests that write use the fixture `trained`.
    """
    from tests import tiny

    folders = {}

    def train(kind: str) -> Path:
        if kind not in folders:
            folder = tmp_path_factory.mktemp(kind)
            call, config = tiny.caller(tiny.SCRIPTS[kind]), tiny.write_config(kind, folder)
            assert call('--config', config, '-c', folder / 'run', '--set', 'train.epochs=1') == 0
            assert call('--evaluate', next((folder / 'run').glob('best_epoch.*'))) == 0
            folders[kind] = folder
        return folders[kind]

    return train


@pytest.fixture
def trained(trained_once, tmp_path) -> Callable[[str], Path]:
    """trained(kind) -> copy of the folder of `trained_once`; its config refers to the original pickle."""

    def copy(kind: str) -> Path:
        return shutil.copytree(trained_once(kind), tmp_path / kind)

    return copy
