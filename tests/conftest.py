"""Fixtures for recorded references and real motion: skipped where the folder is not given, failing if it is broken."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision  # noqa: F401 before TensorFlow: loading PyTorch's Triton after it ends the process


def pytest_collection_modifyitems(items):
    if any('gpu' in item.keywords for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if 'gpu' in item.keywords:
                    item.add_marker(pytest.mark.skip(reason='no CUDA device'))


def folder_from_environment(variable: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f'{variable} is not set')
    return Path(os.environ[variable])


@pytest.fixture(scope='session')
def golden():
    """golden(name) -> dict of the arrays in GOLDENS_DIR/name.npz."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(folder_from_environment('GOLDENS_DIR') / f'{name}.npz', allow_pickle=False) as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope='session')
def motion():
    """motion(file name) -> path in MOTION_DIR, which must exist."""

    def path(name: str) -> Path:
        file = folder_from_environment('MOTION_DIR') / name
        assert file.is_file(), f'{file} is missing'
        return file

    return path


@pytest.fixture
def write_pickle(tmp_path):
    """write_pickle(data, name='set.pkl', protocol=4) -> its path."""

    def write(data: object, name: str = 'set.pkl', protocol: int = 4) -> Path:
        path = tmp_path / name
        path.write_bytes(pickle.dumps(data, protocol))
        return path

    return write
