"""Imports in lib: frameworks only in their own folders, tools only in tools."""

import ast
from pathlib import Path

LIBRARY = Path(__file__).parents[1] / 'lib'
FRAMEWORKS = {'torch', 'torchvision', 'tensorflow', 'keras'}
ALLOWED = {'pytorch': {'torch', 'torchvision'}, 'tensorflow': {'tensorflow', 'keras'}}


def imported(nodes) -> set[str]:
    """Names of the modules that these statements import."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module}
    return names


def test_imports_respect_the_folders():
    files = list(LIBRARY.rglob('*.py'))
    assert len(files) > 30
    for path in files:
        tree, folder = ast.parse(path.read_text()), path.relative_to(LIBRARY).parts[0]
        # Tools import a framework inside functions, depending on the checkpoint: --help stays fast.
        names = imported(tree.body if folder == 'tools' else ast.walk(tree))
        assert {name.split('.')[0] for name in names} & FRAMEWORKS <= ALLOWED.get(folder, set()), path
        assert folder == 'tools' or not [name for name in names if name.startswith('lib.tools')], path
