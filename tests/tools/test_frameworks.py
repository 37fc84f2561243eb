"""The --help of tools is short, and they import a framework only when the model needs it."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import tool_modules

ROOT = Path(__file__).parents[2]
TOOLS = tool_modules()
HELP = """
import importlib, sys
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    try:
        module.main(['--help'])
    except SystemExit as left:
        assert left.code == 0, name
    assert not {'torch', 'tensorflow'} & set(sys.modules), name
"""
USE = """
import sys
other, folder, out = sys.argv[1:]
if other == 'torch':
    sys.modules[other] = None  # tensorboardX imports it where it can
from lib.tools import predict, preview
assert predict.main([f'{folder}/run', f'{folder}/generated.pkl']) == 0
assert preview.main([f'{folder}/generated.pkl', '--config', f'{folder}/run', '--out', f'{out}/clip.png']) == 0
assert sys.modules.get(other) is None
"""


def test_help_needs_no_framework():
    assert len(TOOLS) > 10
    done = subprocess.run([sys.executable, '-c', HELP, *TOOLS.values()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('usage:') == len(TOOLS)


@pytest.mark.parametrize('name', TOOLS)
def test_the_description_is_one_example_and_at_most_ten_lines(name):
    description = importlib.import_module(TOOLS[name]).__doc__.strip()
    assert f'\n    python -m lib.tools.{name} ' in description
    assert len(description.splitlines()) <= 10


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'other'), [('vanilla', 'tensorflow'), ('vivit', 'torch')])
def test_a_model_needs_only_its_own_framework(trained_once, tmp_path, kind, other):
    done = subprocess.run(
        [sys.executable, '-c', USE, other, trained_once(kind), tmp_path], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 0, done.stderr
