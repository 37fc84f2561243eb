import json
import subprocess
import sys

import pytest
import yaml

from lib.tools import compare

METRICS = {'top1': 0.5, 'top5': 0.975, 'mean_class': 0.25}


def make_run(folder, top1=(), cut='', **changes):
    """A run folder after len(top1) epochs. cut: whether the last line of timing.jsonl is incomplete."""
    folder.mkdir(parents=True)
    config = {'script': 'mbert', 'data': {'clip_len': 48}, 'model': {'maxlen': 48, 'depth': 2}, 'train': {'epochs': 9}}
    config['model'].update(changes)
    (folder / 'config.yaml').write_text(yaml.safe_dump(config))
    lines = [json.dumps({'epoch': n, 'val': METRICS | {'top1': value}}) for n, value in enumerate(top1, 1)]
    (folder / 'metrics.jsonl').write_text(''.join(line + '\n' for line in lines))
    speeds = ''.join(json.dumps({'epoch': n, 'clips_per_second': 10 * n}) + '\n' for n in range(1, len(top1) + 1))
    (folder / 'timing.jsonl').write_text(speeds + cut)
    return folder


def evaluate(folder, **changes):
    report = {'parameters': 1_234_567, 'epoch': 2, 'split': 'xsub_val', 'views': 1, **METRICS, **changes}
    (folder / 'evaluation.json').write_text(json.dumps(report))


def tables(text):
    """The cells of each Markdown table, whose lines must have equal length."""
    found = []
    for block in text.strip().split('\n\n'):
        lines = block.splitlines()
        assert len({len(line) for line in lines}) == 1
        found.append([[cell.strip() for cell in line.strip('|').split('|')] for line in lines])
    return found


def test_metrics_and_differing_settings(tmp_path, capsys):
    one = make_run(tmp_path / 'a' / 'run', [0.2, 0.5, 0.4])
    two = make_run(tmp_path / 'b' / 'run', [0.2, 0.6, 0.3], cut='{"epoch": 4, "clips_per', depth=4, num_heads=None)
    evaluate(one, views=20)
    assert compare.main([str(one), str(two)]) == 0
    metrics, settings = tables(capsys.readouterr().out)
    first = ['mbert', '1,234,567', 'epoch 2, xsub_val, 20 views', '50.00%', '97.50%', '25.00%', '3/9', '40.00%', '20.0']
    second = ['mbert', '', 'epoch 2, validation', '60.00%', '97.50%', '25.00%', '3/9', '30.00%', '20.0']
    assert metrics[2:] == [['a/run', *first], ['b/run', *second]]
    assert settings[0] == ['setting', 'a/run', 'b/run']
    assert settings[2:] == [['model.depth', '2', '4']]


def test_keys_of_only_one_run(tmp_path, capsys):
    runs = [make_run(tmp_path / name, [0.5], **changes) for name, changes in (('a', {}), ('b', {}), ('c', {'V': 17}))]
    assert compare.main([*map(str, runs)]) == 0
    _, settings = tables(capsys.readouterr().out)
    assert settings[2:] == [['model.V', '', '', '17']]


def test_a_run_in_its_first_epoch(tmp_path, capsys):
    runs = [make_run(tmp_path / 'done', [0.5]), make_run(tmp_path / 'new')]
    (runs[1] / 'timing.jsonl').unlink()
    assert compare.main([*map(str, runs)]) == 0
    [metrics] = tables(capsys.readouterr().out)
    assert metrics[3] == ['new', 'mbert', *[''] * 8]


def test_one_run(trained_once, capsys):
    run = trained_once('vanilla') / 'run'
    report = json.loads((run / 'evaluation.json').read_text())
    capsys.readouterr()  # output of the training
    assert compare.main([str(run)]) == 0
    [metrics] = tables(capsys.readouterr().out)
    assert metrics[2][:5] == [
        'run',
        'vanilla',
        f'{report["parameters"]:,}',
        'epoch 1, xsub_val',
        f'{report["top1"]:.2%}',
    ]


@pytest.mark.parametrize('folder', ['empty', 'absent', 'done'])
def test_mistakes_are_reported(tmp_path, refused, folder):
    (tmp_path / 'empty').mkdir()
    make_run(tmp_path / 'done', [0.5])
    assert f'{tmp_path / folder} ' in refused(compare.main, tmp_path / 'done', tmp_path / folder)


def test_output_that_nobody_reads(tmp_path):
    """As in `compare RUN RUN | head -1`: two tables are two messages."""
    command = [sys.executable, '-m', 'lib.tools.compare', make_run(tmp_path / 'a'), make_run(tmp_path / 'b', depth=4)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ''
    assert process.wait() == 0
