import json

import pytest

from lib.tools import results

EVALUATION = {'kind': 'mbert', 'parameters': 1_234_567, 'top1': 0.5, 'top5': 0.975, 'mean_class': 0.25}


def evaluated(folder, classes=4, **more):
    folder.mkdir()
    report = EVALUATION | {'per_class': {str(c): 0.5 for c in range(classes)}} | more
    (folder / 'evaluation.json').write_text(json.dumps(report))
    return folder


def history(epochs):
    val = {'loss': 1.0, 'top1': 0.5, 'top5': 0.9, 'mean_class': 0.5}
    return [{'epoch': epoch, 'lr': 0.1, 'train': {'loss': 2.0, 'top1': 0.25}, 'val': val} for epoch in epochs]


def test_a_line_for_each_run_with_its_own_numbers(tmp_path, capsys):
    one, another = evaluated(tmp_path / 'one'), evaluated(tmp_path / 'another', classes=10, epoch=None)
    speeds = [{'train_seconds': 1.0, 'clips_per_second': speed} for speed in (10.0, 30.0, 20.0)]
    (one / 'timing.jsonl').write_text('\n'.join(map(json.dumps, speeds)))
    assert results.main([str(one), str(another)]) == 0
    heading, rule, one, another = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in (heading, rule, one, another)}) == 1
    cells = [cell.strip() for cell in one.strip('|').split('|')]
    assert cells == ['one', 'mbert', '1,234,567', '50.00%', '97.50%', '25.00%', '25.00%', '20.0']
    assert [cell.strip() for cell in another.strip('|').split('|')][-2:] == ['10.00%', '']


def test_a_run_that_was_not_evaluated_is_named(tmp_path, capsys):
    (tmp_path / 'config.yaml').write_text('{}')
    assert results.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: {tmp_path} has no evaluation.json: evaluate it first')


def test_runs_of_the_same_name_are_told_apart_by_their_folders(tmp_path):
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
    runs = results.read_runs([evaluated(tmp_path / 'a' / 'run'), evaluated(tmp_path / 'b' / 'run')])
    assert [run.name for run in runs] == ['a/run', 'b/run']


@pytest.mark.parametrize(
    ('make', 'told'),
    [
        (lambda folder: [folder / 'absent'], r'absent: there is no such folder'),
        (lambda folder: [folder], r'holds no run: none of config\.yaml'),
        (lambda folder: [evaluated(folder / 'run'), folder / 'run' / '..' / 'run'], r'is given twice'),
    ],
)
def test_what_is_no_run_is_an_error(tmp_path, make, told):
    with pytest.raises(ValueError, match=told):
        results.read_runs(make(tmp_path))


def test_lines_that_are_not_sound_are_left_out_and_counted(tmp_path):
    sound = list(map(json.dumps, history([1, 2])))
    bad = [sound[0][:-9], sound[0].replace('0.1', 'NaN'), '7', sound[0].replace('0.25', '3'), '[' * 100_000]
    bad.append(sound[0].replace('0.1', '9' * 400))
    (tmp_path / 'metrics.jsonl').write_text('\n'.join([*bad, *reversed(sound), sound[0]]))
    [run] = results.read_runs([tmp_path])
    assert run.history == history([1, 2])
    assert '6 of 9 lines are not sound' in run.faults['metrics.jsonl']


@pytest.mark.parametrize(
    'content',
    [
        '',
        '[' * 100_000,
        '[]',
        json.dumps(EVALUATION),
        json.dumps(EVALUATION | {'per_class': {}}),
        json.dumps(EVALUATION | {'per_class': {'0': 1.0}, 'top1': '<script>'}),
        json.dumps(EVALUATION | {'per_class': {'0': 1.0}, 'top5': float('nan')}),
        json.dumps(EVALUATION | {'per_class': {'0': 1.0}, 'class_names': [1]}),
        json.dumps(EVALUATION | {'per_class': {'0': 1.0}, 'interval': {'top1': [0.5]}}),
        json.dumps(EVALUATION | {'per_class': {'0': 1.0}}).replace('1234567', '9' * 5000),
    ],
)
def test_an_evaluation_that_is_not_sound_is_none(tmp_path, content):
    (tmp_path / 'evaluation.json').write_text(content)
    [run] = results.read_runs([tmp_path])
    assert run.evaluation is None
    assert 'evaluation.json' in run.faults['evaluation.json']


def test_a_file_that_is_too_large_is_not_read_to_its_end(tmp_path):
    with (tmp_path / 'metrics.jsonl').open('wb') as file:
        file.truncate(10 * results.MOST_BYTES)
    [run] = results.read_runs([tmp_path])
    assert 'more than any run writes' in run.faults['metrics.jsonl']
