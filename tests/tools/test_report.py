import base64
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from PIL import Image

from lib.data.clips import Clips
from lib.data.store import store_folder
from lib.evaluation import write_predictions
from lib.metrics import classification_metrics
from lib.tools import report
from tests import tiny

EPOCHS = 6
HOSTILE = '<img src=x onerror=alert(1)>"\'&\u202e'


class Page(HTMLParser):
    """A page's elements, its text by section, and whether every element that is opened is closed."""

    VOID = ('meta', 'br', 'wbr', 'img')

    def __init__(self, path):
        super().__init__()
        self.elements, self.sections, self.titles, self.open = [], {}, [], []
        self.feed(path.read_text())
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == 'section':
            self.section = dict(attributes)['id']
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if 'section' in self.open:
            self.sections[self.section] = self.sections.get(self.section, '') + text
        if self.open and self.open[-1] == 'title':
            self.titles.append(text)


def make_run(folder, *, epochs=EPOCHS, seed=0, names=('sit', 'stand', 'walk'), evaluate=True, config=True):
    """A run's folder as training and an evaluation leave it, without its checkpoints."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    with (folder / 'metrics.jsonl').open('w') as metrics, (folder / 'timing.jsonl').open('w') as timing:
        for epoch in range(1, epochs + 1):
            top1 = random.uniform(0.2, 0.9)
            train, val = {'loss': 3 / epoch, 'top1': top1}, {'loss': 2.0, 'top1': top1, 'top5': 1.0, 'mean_class': top1}
            metrics.write(json.dumps({'epoch': epoch, 'lr': 1e-4, 'train': train, 'val': val}) + '\n')
            timing.write(json.dumps({'epoch': epoch, 'train_seconds': 2.0, 'clips_per_second': 100.0 + epoch}) + '\n')
    if config:
        data = {'ann_file': 'absent.pkl', 'benchmark': 'xsub', 'clip_len': 8, 'batch_size': 4, 'seed': seed}
        model = {'num_frames': 8, 'num_classes': len(names)}
        content = {'data': data, 'heatmap': {'size': 16}, 'model': model, 'train': {'epochs': EPOCHS}}
        (folder / 'config.yaml').write_text(yaml.safe_dump(content))
    if evaluate:
        labels = np.arange(30) % len(names)
        logits = random.normal(0, 1, (30, len(names)))
        logits[0] = np.eye(len(names))[1]  # so that there is a mistake
        found = {'kind': 'vanilla', 'parameters': 1_234_567, 'epoch': 5, 'list': 'xsub_val', 'num_clips': 30}
        found |= classification_metrics(logits, labels) | {'interval': {'top1': [0.25, 0.75]}}
        (folder / 'evaluation.json').write_text(json.dumps(found | {'class_names': list(names)}))
        write_predictions(folder / 'predictions.npz', [str(i) for i in range(30)], labels, logits)
    return folder


def page_of(*folders):
    out = folders[0].parent / 'report.html'
    assert report.main([*map(str, folders), '--out', str(out)]) == 0
    return Page(out)


def test_a_page_tells_what_the_files_of_the_runs_tell(tmp_path):
    page = page_of(make_run(tmp_path / 'one'), make_run(tmp_path / 'other', seed=1, epochs=3))
    told = page.sections['results']
    for name in ('one', 'other'):
        history = [json.loads(line) for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()]
        best, last = max(history, key=lambda line: line['val']['top1']), history[-1]
        assert f'{100 * best["val"]["top1"]:.2f}epoch {best["epoch"]}{100 * last["val"]["top1"]:.2f}' in told
    assert best != last
    for cell in (
        '25.00 to 75.00',
        'xsub_val, 30 clipsepoch 5; 3 classes, chance 33.33',
        '6 of 612 s',
        '3 of 66 s',
        '103.5',
        'vanilla1,234,567',
    ):
        assert cell in told
    assert 'data.seed01' in page.sections['settings']
    assert 'train.epochs66' not in page.sections['settings']


def test_settings_that_differ_stand_alone_and_no_setting_is_lost(tmp_path):
    folders = [make_run(tmp_path / name) for name in ('a', 'b', 'c')]
    for folder, more in zip(folders, ({'depth': 3}, {'depth': 3}, {}), strict=True):
        config = yaml.safe_load((folder / 'config.yaml').read_text())
        config['model'] |= more
        config['data']['clip_len'] += len(more)
        (folder / 'config.yaml').write_text(yaml.safe_dump(config))
    told = page_of(*folders).sections['settings']
    differing, partly, same = re.split(r'1 setting that only some.*?|\d+ settings the same in all runs', told)
    assert 'data.clip_len998' in differing.replace('\n', '')
    assert 'model.depth33–' in partly.replace('\n', '')  # noqa: RUF001
    assert 'data.ann_fileabsent.pkl' in same.replace('\n', '')
    assert 'model.num_classes3' in same


def test_the_curves_have_a_line_of_its_own_look_for_each_run_and_its_values(tmp_path):
    runs = [make_run(tmp_path / str(i), seed=i, epochs=6 - i % 3) for i in range(20)]
    page = page_of(*runs)
    lines = [each for tag, each in page.elements if tag == 'polyline']
    assert len(lines) == 20 * len(report.CURVES)
    assert len({line['style'] for line in lines}) == 20
    assert [len(line['points'].split()) for line in lines[:3]] == [6, 5, 4]
    places = [float(point.split(',')[0]) for point in lines[0]['points'].split()]
    assert np.diff(places) == pytest.approx((346 - 46) / 5, abs=0.2)
    assert places[0] == 46
    assert sum(each.get('class') == 'hover' for _, each in page.elements) == 6 * len(report.CURVES)
    history = json.loads((runs[0] / 'metrics.jsonl').read_text().splitlines()[1])
    assert any(f'epoch 2\nA  {history["val"]["top1"]:.2%}\nB' in title for title in page.titles)
    heights = [float(line['points'].split()[-1].split(',')[1]) for line in lines[:20]]
    values = [json.loads((run / 'metrics.jsonl').read_text().splitlines()[-1])['val']['top1'] for run in runs]
    assert np.corrcoef(heights, values)[0, 1] < -0.999


def test_labels_at_the_lines_ends_keep_apart_and_in_order():
    places = dict(enumerate(np.random.default_rng(0).uniform(90, 100, 18)))
    put = report.spread(places, 10, 250)
    order = sorted(places, key=places.get)
    heights = [put[i] for i in order]
    assert np.diff(heights).min() > 11
    assert 10 <= heights[0] < heights[-1] <= 250


@pytest.mark.parametrize(
    'edges', [(0, 1), (0.5, 0.5), (0, 0), (0.81, 0.834), (0, 1e-7), (-3, 12345), (0, 1e99), (1, 2)]
)
def test_ticks_are_few_round_numbers_around_the_values(edges):
    low, high, ticks = report.axis(*edges)
    assert low <= edges[0] <= edges[1] <= high or np.allclose((low, high), edges)
    assert 2 <= len(ticks) <= 7
    assert all(float(f'{tick:.3g}') == pytest.approx(tick) for tick in ticks)


def test_the_matrix_has_the_shares_of_the_predictions(tmp_path):
    matrix = np.array([[8, 2, 0, 0], [0, 5, 0, 0], [0, 0, 0, 0], [1, 0, 0, 3]])
    drawn = report.drawn_matrix(matrix, ['sit', 'a<b', 'never', 'walk'])
    (tmp_path / 'matrix.html').write_text(f'<section id="matrix">{drawn}</section>')
    page = Page(tmp_path / 'matrix.html')
    assert 'sit taken for a<b: 2 of 10 clips, 20.0%' in page.titles
    assert 'walk recognised: 3 of 4 clips, 75.0%' in page.titles
    assert 'never' not in page.sections['matrix']
    cells = [float(each['fill-opacity']) ** 2 for tag, each in page.elements if each.get('class') == 'cell']
    assert cells[:5] == pytest.approx([0.8, 0.2, 1, 0.25, 0.75], abs=0.01)


def test_all_sixty_classes_are_named_beside_rows_and_columns(tmp_path):
    names = [f'action {i}' for i in range(60)]
    (tmp_path / 'matrix.html').write_text(report.drawn_matrix(np.eye(60, dtype=int), names))
    page = (tmp_path / 'matrix.html').read_text()
    assert all(page.count(f'>{name}</text>') == 2 for name in names)


def test_text_of_strangers_stays_text(tmp_path):
    folder = make_run(tmp_path / HOSTILE, names=(HOSTILE, '</script><script>', 'walk'))
    config = yaml.safe_load((folder / 'config.yaml').read_text())
    config['data'] |= {'ann_file': HOSTILE, HOSTILE: [HOSTILE]}
    (folder / 'config.yaml').write_text(yaml.safe_dump(config))
    found = json.loads((folder / 'evaluation.json').read_text())
    (folder / 'evaluation.json').write_text(json.dumps(found | {'kind': HOSTILE, 'list': HOSTILE + '\ud800'}))
    page = page_of(folder, make_run(tmp_path / 'other', names=(HOSTILE, 'b', 'c')))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {'script', 'iframe', 'link', 'object', 'form'}
    attributes = {(name, value) for _, each in page.elements for name, value in each.items()}
    assert not [name for name, _ in attributes if name.startswith('on')]
    assert not [value for name, value in attributes if name in ('src', 'href') and not value.startswith(('#', 'data:'))]
    assert HOSTILE in page.sections['results']
    assert HOSTILE in page.sections['confusions']


@pytest.mark.parametrize(
    ('file', 'content', 'told'),
    [
        ('config.yaml', b'data: [', 'is not sound YAML'),
        ('config.yaml', b'data: {date: 2020-01-01, set: !!set {a}, other: !!binary aGk=}', None),
        ('metrics.jsonl', b'{"epoch": 1}\n', '1 of 1 lines are not sound'),
        ('metrics.jsonl', b'', None),
        ('timing.jsonl', b'\xff\xfe', 'is no text'),
        ('evaluation.json', b'{}', 'is not what --evaluate writes'),
        ('predictions.npz', b'PK\x03\x04', 'cannot be read as an .npz file'),
        ('predictions.npz', None, 'has no predictions.npz: evaluate it first'),
        ('evaluation.json', None, 'has no evaluation.json: evaluate it first'),
        ('metrics.jsonl', None, 'its epochs are not known'),
        ('config.yaml', None, 'its settings are not known'),
    ],
)
def test_files_that_are_broken_or_missing_are_told_and_the_others_shown(tmp_path, file, content, told):
    broken, sound = make_run(tmp_path / 'broken'), make_run(tmp_path / 'sound')
    if content is None:
        (broken / file).unlink()
    else:
        (broken / file).write_bytes(content)
    page = page_of(broken, sound)
    assert told is None or told in ''.join(page.sections.values())
    assert 'sound' in page.sections['results']
    assert any(tag == 'polyline' for tag, _ in page.elements)


def test_predictions_of_other_clips_than_the_evaluation_are_not_drawn(tmp_path):
    folder = make_run(tmp_path / 'run')
    write_predictions(folder / 'predictions.npz', ['a'], np.array([0]), np.eye(3)[:1])
    page = page_of(folder)
    assert 'has 1 clips, evaluation.json beside it 30: evaluate again' in page.sections['confusions']


def test_a_run_that_has_only_begun_is_a_page_too(tmp_path):
    folder = make_run(tmp_path / 'run', epochs=0, evaluate=False)
    page = page_of(folder)
    assert '0 of 6' in page.sections['results']
    assert 'No epoch of a run is known' in page.sections['curves']


@pytest.mark.parametrize(
    ('out', 'told'),
    [
        ('report.txt', 'must end in .html'),
        ('mine.html/report.html', 'mine.html is a file'),
        ('mine.html', 'is there already and is no report'),
        ('folder.html', 'is no file'),
    ],
)
def test_a_page_takes_no_other_files_place(tmp_path, capsys, out, told):
    run = make_run(tmp_path / 'run')
    (tmp_path / 'mine.html').write_text('my own')
    (tmp_path / 'folder.html').mkdir()
    assert report.main([str(run), '--out', str(tmp_path / out)]) == 2
    assert told in capsys.readouterr().err
    assert (tmp_path / 'mine.html').read_text() == 'my own'


def test_a_report_is_written_anew_and_what_is_no_run_writes_nothing(tmp_path, capsys):
    run, out = make_run(tmp_path / 'run'), tmp_path / 'out' / 'report.html'
    assert report.main([str(run), '--out', str(out)]) == 0
    (run / 'evaluation.json').unlink()
    assert report.main([str(run), '--out', str(out)]) == 0
    before = out.read_bytes()
    assert b'evaluate it first' in before
    assert report.main([str(tmp_path / 'absent'), '--out', str(out)]) == 2
    assert 'there is no such folder' in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.parametrize('kind', ['joint', 'limb', 'both'])
def test_the_heatmap_is_what_the_renderer_of_the_model_draws(tmp_path, kind):
    import torch

    from lib.pictures import draw_clip
    from lib.pytorch.heatmap import HeatmapRenderer

    config = tiny.content('vanilla', tmp_path)
    config['heatmap']['kind'] = kind
    clips = Clips('val', 12, **config['data'])  # packs the set, as training would
    for name in ('one', 'other'):
        make_run(tmp_path / name)
        (tmp_path / name / 'config.yaml').write_text(yaml.safe_dump(config))
    page = page_of(tmp_path / 'one', tmp_path / 'other')
    [image] = [each for tag, each in page.elements if tag == 'img']  # both see the same
    png = base64.b64decode(image['src'].removeprefix('data:image/png;base64,'))
    found = np.asarray(Image.open(io.BytesIO(png))).transpose(2, 0, 1).astype(int)
    render = HeatmapRenderer(size=12, kind=kind)
    _, expected = draw_clip(clips, kind, lambda *given: render(*map(torch.from_numpy, given)).numpy())
    assert np.abs(found - expected).max() <= 1
    assert found.max() > 100
    assert clips.store.name(clips.clips[0]) in page.sections['heatmaps']
    assert 'A one, B other' in page.sections['heatmaps']


@pytest.mark.parametrize('kind', tiny.MODELS)
def test_runs_of_all_models_are_known_by_their_configs(tmp_path, kind):
    config = tiny.content(kind, tmp_path)
    Clips('val', 12, **config['data'])
    run = make_run(tmp_path / 'run', evaluate=False)
    (run / 'config.yaml').write_text(yaml.safe_dump(config))
    page = page_of(run)
    assert kind in page.sections['results']
    assert any(tag == 'img' for tag, _ in page.elements)


def test_a_set_that_is_not_packed_stays_so(tmp_path):
    config = tiny.content('vanilla', tmp_path)
    run = make_run(tmp_path / 'run')
    (run / 'config.yaml').write_text(yaml.safe_dump(config))
    page = page_of(run)
    assert 'is not packed in' in page.sections['heatmaps']
    assert not store_folder(tmp_path / 'made_up.pkl').exists()


@pytest.mark.parametrize(
    ('section', 'key', 'value', 'told'),
    [
        ('data', 'input', 'keypoint_2d', 'is given keypoints (keypoint_2d), and no heatmap'),
        ('data', 'clip_len', 10**12, 'are too many to be drawn here'),
        ('data', 'max_persons', 10**12, 'are too many to be drawn here'),
        ('heatmap', 'size', 10**9, 'are too many to be drawn here'),
        ('heatmap', 'size', 'large', 'must be a whole number'),
        ('heatmap', 'sigma', 0.0, 'must be above 0'),
        ('data', 'batch_size', 10**12, None),
        ('data', 'test_clips', 10**12, None),
    ],
)
def test_configs_of_strangers_ask_for_no_endless_picture(tmp_path, section, key, value, told):
    config = tiny.content('vanilla', tmp_path)
    Clips('val', 12, **config['data'])
    config[section][key] = value
    run = make_run(tmp_path / 'run')
    (run / 'config.yaml').write_text(yaml.safe_dump(config))
    page = page_of(run)
    if told is None:
        assert any(tag == 'img' for tag, _ in page.elements)
    else:
        assert told in page.sections['heatmaps']


def test_a_trained_run_is_reported_without_any_framework(tmp_path):
    call, folder = tiny.caller(tiny.SCRIPTS['vanilla']), tmp_path / 'run'
    assert call('--config', tiny.write_config('vanilla', tmp_path), '--checkpoint', folder) == 0
    assert call('--evaluate', folder / 'best_epoch.bin') == 0
    code = (
        'import sys; sys.modules["torch"] = sys.modules["tensorflow"] = None; from lib.tools import report; '
        'sys.exit(report.main(sys.argv[1:]))'
    )
    out = tmp_path / 'report.html'
    done = subprocess.run(
        [sys.executable, '-c', code, folder, '--out', out], env=os.environ | {'OMP_NUM_THREADS': '1'}, cwd='.'
    )
    assert done.returncode == 0
    page, found = Page(out), json.loads((folder / 'evaluation.json').read_text())
    assert f'{found["parameters"]:,}' in page.sections['results']
    assert f'{100 * found["top1"]:.2f}' in page.sections['results']
    assert 'evaluate it first' not in ''.join(page.sections.values())
    assert {'img', 'polyline'} <= {tag for tag, _ in page.elements}
