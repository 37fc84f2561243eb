import json

import pytest

from lib.tools import results


def test_a_line_for_each_run_with_its_own_numbers(tmp_path, capsys):
    report = {'kind': 'mbert', 'parameters': 1_234_567, 'top1': 0.5, 'top5': 0.975, 'mean_class': 0.25}
    for name, classes in (('one', 4), ('another', 10)):
        (tmp_path / name).mkdir()
        per_class = {str(c): 0.5 for c in range(classes)}
        (tmp_path / name / 'evaluation.json').write_text(json.dumps(report | {'per_class': per_class}))
    speeds = [{'clips_per_second': speed} for speed in (10.0, 30.0, 20.0)]
    (tmp_path / 'one' / 'timing.jsonl').write_text('\n'.join(map(json.dumps, speeds)))
    results.main([str(tmp_path / 'one'), str(tmp_path / 'another')])
    heading, rule, one, another = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in (heading, rule, one, another)}) == 1
    cells = [cell.strip() for cell in one.strip('|').split('|')]
    assert cells == ['one', 'mbert', '1,234,567', '50.00%', '97.50%', '25.00%', '25.00%', '20.0']
    assert [cell.strip() for cell in another.strip('|').split('|')][-2:] == ['10.00%', '']


def test_a_run_that_was_not_evaluated_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'has no evaluation\.json: evaluate a checkpoint'):
        results.main([str(tmp_path)])
