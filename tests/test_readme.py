"""Runs the commands of all READMEs, in order, on a small version of what `make demo` creates."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from lib.tools.sample.dataset import write_files, write_sample
from tests.tiny import SCRIPTS, caller, tool_modules

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
FILES = ['README.md', *(f'{folder}/README.md' for folder in ('configs', 'data', 'checkpoint', 'lib/tools'))]
TEXTS = {name: (ROOT / name).read_text() for name in FILES}

# Parts of commands that are not run, and why.
ELSEWHERE = {
    'make ': 'runs these tests, or what the fixture does with less data',
    'source ': 'is for an interactive shell',
    'torchrun': 'needs a GPU for each process',
    'sbatch': 'needs SLURM',
    'TF_CONFIG': 'needs two hosts',
}
SHORT = ('--set', 'train.epochs=1', '--set', 'train.warmup_epochs=0')  # when training on the sample


def commands(text: str) -> list[str]:
    """Lines of the shell blocks, without comments and with continued lines joined."""
    blocks = ''.join(re.findall(r'^```sh\n(.*?)^```', text, re.MULTILINE | re.DOTALL))
    lines = re.sub(r'\\\n\s*', ' ', blocks).splitlines()
    return [line for line in (re.sub(r'(^|\s)#.*', '', line).strip() for line in lines) if line]


COMMANDS = list(dict.fromkeys(command for text in TEXTS.values() for command in commands(text)))
RUN = [command for command in COMMANDS if not any(part in command for part in ELSEWHERE)]


def needs_ntu60(command: str) -> bool:
    """Whether the command trains on NTU60 or uses a model trained on it."""
    return 'sample' not in command and bool(re.search(r'train_action|ntu60|checkpoint/action/', command))


def run(command: str) -> int:
    """Exit code of `python SCRIPT ...` or `python -m MODULE ...`, run in this process: a new one takes seconds."""
    python, *words = shlex.split(command)
    assert python == 'python', command
    if words[0] == '-m':
        return importlib.import_module(tool_modules()[words[1].removeprefix('lib.tools.')]).main(words[2:])
    script = re.fullmatch(r'train_action_(\w+)\.py', words[0])[1]
    return caller(SCRIPTS[script])(*words[1:])


@pytest.fixture(scope='module')
def workplace(tmp_path_factory):
    """A folder as after `make demo`, with fewer clips and epochs."""
    folder = tmp_path_factory.mktemp('readme')
    (folder / 'checkpoint' / 'action').mkdir(parents=True)
    (folder / 'configs').symlink_to(ROOT / 'configs')
    data = folder / 'data' / 'action'
    written = write_sample(data, persons=(1, 21))
    write_files(data / 'sample_files', written[data / 'sample_hrnet.pkl'])
    recipe = re.search(r'^demo:.*\n((?:\t.*\n)+)', (ROOT / 'Makefile').read_text(), re.MULTILINE)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in recipe.replace('$(RUN)', 'python').replace('$(SAMPLE)', 'checkpoint/action/sample').splitlines():
            assert run(shlex.join([*shlex.split(line), *(SHORT if '--config' in line else ())])) in (0, None), line
    return folder


@pytest.mark.parametrize('command', RUN)
def test_command(workplace, monkeypatch, capfd, command):
    """Commands for the sample succeed; those for NTU60 end with one line that reports it missing."""
    monkeypatch.chdir(workplace)
    if re.search('train_action|pretrain ', command) and 'sample' in command and '--evaluate' not in command:
        command = shlex.join([*shlex.split(command), *SHORT])
    code, printed = run(command), capfd.readouterr()
    if needs_ntu60(command):
        assert code == 2, printed.err
        assert re.search(r'error: .*(Download the PYSKL pickles|there is no such f|holds no)', printed.err)
    else:
        assert code == 0, printed.err
        assert 'error' not in printed.err


def test_no_exception_is_outdated():
    assert len(RUN) >= 18
    assert [part for part in ELSEWHERE if not any(part in command for command in COMMANDS)] == []


def test_every_tool_is_mentioned():
    assert {tool for tool in tool_modules() if f'lib.tools.{tool}`' not in TEXTS['lib/tools/README.md']} == set()


def test_the_table_agrees_with_the_configs():
    """Every published config has a row with its parameters and accuracy."""
    rows = dict(re.findall(r'^\| .*?\((configs/action/\w+\.yaml)\) \| (.*) \|', README, re.MULTILINE))
    configs = {path.relative_to(ROOT).as_posix(): path.read_text() for path in ROOT.glob('configs/action/*.yaml')}
    assert {config for config, text in configs.items() if 'Published:' in text} <= rows.keys() <= configs.keys()
    for config, cells in rows.items():
        text = (ROOT / config).read_text()
        parameters, accuracy, *_ = cells.split(' | ')
        assert f'{parameters} parameters' in text
        published = re.search(r'Published: ([\d.]+) %', text)
        assert accuracy.startswith(published[1] if published else 'none')


@pytest.mark.parametrize('name', FILES)
def test_links_are_valid(name):
    links = re.findall(r'\]\((?!https?://|#)([^)#]+)', TEXTS[name])
    assert [link for link in links if not (ROOT / name).parent.joinpath(link).exists()] == []


def test_the_readme_stays_short():
    assert len(README.splitlines()) <= 220
    assert len(README.split()) <= 1900
