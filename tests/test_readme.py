"""The commands of README.md that can run here are run, in their order, on a small version of what `make demo` makes."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from lib.data.sample import write_files, write_sample
from tests.tiny import SCRIPTS, caller

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()

# What a command holds that is not run, and why.
ELSEWHERE = {
    'make ': 'runs these tests, or what the fixture does at a smaller size',
    'pip install': 'fetches packages',
    'source ': 'is for an interactive shell',
    'lib.data.sample': 'makes the whole of what the fixture makes',
    'torchrun': 'wants a GPU for each process',
    'sbatch': 'wants SLURM',
    'TF_CONFIG': 'wants two hosts',
    'pytest': 'runs these tests',
    'lib.tools.benchmark': 'takes a quarter of an hour',
    'lib.tools.compare': 'takes half an hour',
    'lib.tools.extract_keypoints': 'wants a video, and weights that are fetched',
}
SHORT = ('--set', 'train.epochs=1', '--set', 'train.warmup_epochs=0')  # for trainings on the sample


def commands(text: str) -> list[str]:
    """Those of the blocks marked as shell, without comments and in one line each."""
    blocks = ''.join(re.findall(r'^```sh\n(.*?)^```', text, re.MULTILINE | re.DOTALL))
    lines = re.sub(r'\\\n\s*', ' ', blocks).splitlines()
    return [line for line in (re.sub(r'(^|\s)#.*', '', line).strip() for line in lines) if line]


COMMANDS = commands(README)
RUN = [command for command in COMMANDS if not any(part in command for part in ELSEWHERE)]


def needs_ntu60(command: str) -> bool:
    """Whether it trains on NTU60, or evaluates what was trained on it."""
    return 'sample' not in command and bool(re.search(r'train_action|ntu60|checkpoint/action/', command))


def run(command: str) -> int:
    """The exit code of `python SCRIPT ...` or `python -m MODULE ...`, in this process: a new one takes seconds."""
    python, *words = shlex.split(command)
    assert python == 'python', command
    if words[0] == '-m':
        return importlib.import_module(words[1]).main(words[2:])
    script = re.fullmatch(r'train_action_(\w+)\.py', words[0])[1]
    return caller(SCRIPTS[script])(*words[1:])


@pytest.fixture(scope='module')
def workplace(tmp_path_factory):
    """A folder as the tree is after `make demo`, of fewer clips and epochs."""
    folder = tmp_path_factory.mktemp('readme')
    (folder / 'checkpoint' / 'action').mkdir(parents=True)
    (folder / 'configs').symlink_to(ROOT / 'configs')
    data = folder / 'data' / 'action'
    written = write_sample(data, persons=(1, 8, 21, 30))
    write_files(data / 'sample_files', written[data / 'sample_hrnet.pkl'])
    recipe = re.search(r'^demo:.*\n((?:\t.*\n)+)', (ROOT / 'Makefile').read_text(), re.MULTILINE)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in recipe.replace('$(RUN)', 'python').replace('$(SAMPLE)', 'checkpoint/action/sample').splitlines():
            assert run(shlex.join([*shlex.split(line), *(SHORT if '--config' in line else ())])) in (0, None), line
    return folder


@pytest.mark.parametrize('command', RUN)
def test_command(workplace, monkeypatch, capfd, command):
    """On the sample it works; what needs NTU60 is told in one line that it is missing, once all else is checked."""
    monkeypatch.chdir(workplace)
    if 'train_action' in command and 'sample' in command and '--evaluate' not in command:
        command = shlex.join([*shlex.split(command), *SHORT])
    code, told = run(command), capfd.readouterr()
    if needs_ntu60(command):
        assert code == 2, told.err
        assert re.search(r'error: .*(Download the PYSKL pickles|there is no such f|holds no)', told.err)
    else:
        assert code == 0, told.err
        assert 'error' not in told.err


def test_most_commands_are_run():
    assert len(RUN) >= 18
    assert [part for part in ELSEWHERE if not any(part in command for command in COMMANDS)] == []


def test_every_tool_is_told_of():
    files = (ROOT / 'lib' / 'tools').glob('*.py')
    tools = {path.stem for path in files if 'def main(' in path.read_text()}
    assert {tool for tool in tools if f'lib.tools.{tool}' not in README} == set()


def test_the_table_says_what_the_configs_say():
    """Each published row: its command names the script of its config, and parameters and accuracy are the config's."""
    rows = re.findall(
        r'^\| .*?`python (train_action_\w+\.py) --config (configs/action/\w+\.yaml) .*$', README, re.MULTILINE
    )
    lines = [line for line in README.splitlines() if line.startswith('| ') and '`python train_action' in line]
    configs = {path.relative_to(ROOT).as_posix() for path in (ROOT / 'configs' / 'action').glob('*.yaml')}
    assert {config for _, config in rows} == configs
    for (script, config), line in zip(rows, lines, strict=True):
        text = (ROOT / config).read_text()
        assert script in text
        assert re.search(r'([\d,]{7,}) parameters', text)[1] in line
        published = re.search(r'Published: ([\d.]+) %', text)
        assert not published or f'| {published[1]}' in line
        assert yaml.safe_load(text)['model']['num_classes'] == 60


def test_pictures_and_links_lead_somewhere():
    links = re.findall(r'\]\((?!https?://|#)([^)#]+)', README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
    headings = {re.sub(r'[^\w -]', '', line.lstrip('# ').lower()).replace(' ', '-')
                for line in README.splitlines() if line.startswith('#')}  # fmt: skip
    assert [name for name in re.findall(r'\]\(#([^)]+)', README) if name not in headings] == []
