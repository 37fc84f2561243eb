import json

import pytest

from lib.tools import results

EVALUATION = {'kind': 'mbert', 'parameters': 1_234_567, 'top1': 0.5, 'top5': 0.975, 'mean_class': 0.25}


def evaluated(folder, classes=4, **more):
    folder.mkdir(parents=True)
    report = EVALUATION | {'per_class': {str(c): 0.5 for c in range(classes)}} | more
    (folder / 'evaluation.json').write_text(json.dumps(report))
    return folder


def test_a_row_for_each_run(trained_once, tmp_path, capsys):
    folders = [evaluated(tmp_path / name / 'run') for name in 'ab'] + [trained_once('vanilla') / 'run']
    assert results.main([*map(str, folders)]) == 0
    heading, rule, *rows = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in (heading, rule, *rows)}) == 1
    cells = [[cell.strip() for cell in row.strip('|').split('|')] for row in rows]
    assert cells[0][:7] == ['a/run', 'mbert', '1,234,567', '50.00%', '97.50%', '25.00%', '25.00%']
    assert cells[1][0] == 'b/run'
    assert cells[2][1] == 'vanilla'


def test_folders_without_an_evaluated_run_are_refused(tmp_path, capsys):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'config.yaml').write_text('{}')
    for folder in (tmp_path / 'run', tmp_path / 'absent', tmp_path):
        assert results.main([str(folder)]) == 2
        assert capsys.readouterr().err.startswith(f'error: {folder}')


@pytest.mark.parametrize('content', ['', '[]', json.dumps(EVALUATION), json.dumps(EVALUATION | {'per_class': {}})])
def test_a_damaged_evaluation_is_reported(tmp_path, content):
    (tmp_path / 'evaluation.json').write_text(content)
    [run] = results.read_runs([tmp_path])
    assert run.evaluation is None
    assert 'evaluation.json' in run.faults
