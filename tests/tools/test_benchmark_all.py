"""The parts that run other parts: whole rows by their scripts, and everything."""

import json

import pytest

from lib.tools.benchmark import everything
from lib.tools.benchmark.__main__ import main, parse_args


def test_rows_report_what_their_scripts_have_measured(capsys):
    main(['rows', '--rows', 'vanilla', 'vanilla_3d', '--batch', '2', '--steps', '1', '--epochs', '1', '--json'])
    report = json.loads(capsys.readouterr().out)
    assert set(report['rates']) == {'vanilla', 'vanilla_3d'}
    for row, rate in report['rates'].items():
        assert 0 < rate['median'] < 1e4
        assert 0 <= report['ratios'][f'{row}: wait for data']['median'] < 1


def test_a_row_that_fails_is_told(capsys):
    with pytest.raises(RuntimeError, match='vanilla failed'):
        main(['rows', '--rows', 'vanilla', '--batch', '2', '--steps', '1', '--epochs', '1', '--set', 'model.depth=0'])


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_everything_is_run_by_commands_that_there_are_and_drawn(tmp_path, device, monkeypatch):
    commands = everything.commands(device, tmp_path)
    for command in commands:
        parse_args([*command, '--json'])
    assert {command[0] for command in commands} == {'render', 'steps', 'vivit', 'data', 'scale', 'rows'}
    numbers = {'lower': 0.7, 'median': 0.8, 'upper': 0.9}
    reports = {' '.join(command): {'ratios': {}} for command in commands}
    for panel in everything.bars(device).values():
        for _, command, line, _ in panel:
            reports[' '.join(command)]['ratios'][line] = numbers
    monkeypatch.setattr(everything, 'machine', lambda device: 'a machine')
    everything.draw(reports, device, tmp_path / 'benchmark.png')
    assert (tmp_path / 'benchmark.png').read_bytes().startswith(b'\x89PNG')
