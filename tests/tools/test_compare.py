import pickle

import pytest
import torch

import train_action_mbert
import train_action_vanilla
from lib.config import load_config
from lib.pytorch import engine
from lib.run import make_clips
from lib.tools import compare
from tests.annotations import make_3d_annotations, make_annotations

SECTIONS = {'mbert': train_action_mbert.SECTIONS, 'vanilla': train_action_vanilla.SECTIONS}


@pytest.fixture
def pickles(tmp_path):
    for name, make in (('a_hrnet', make_annotations), ('a_3danno', make_3d_annotations)):
        (tmp_path / f'{name}.pkl').write_bytes(pickle.dumps(make([20, 30] * 9, persons=[1, 2] * 9)))
    return ['--ann_2d', str(tmp_path / 'a_hrnet.pkl'), '--ann_3d', str(tmp_path / 'a_3danno.pkl'), '--num_classes', '4']


@pytest.mark.parametrize('row', compare.ROWS)
def test_every_row_is_made_small_and_keeps_its_input(row, pickles, tmp_path):
    args = compare.parse_args([*pickles, '--out', str(tmp_path / 'out')])
    changes = {key: 'null' if value is None else value for key, value in compare.overrides(row, 3, args).items()}
    sections = SECTIONS[compare.kind_of(row)]
    config = load_config(compare.config_of(row), sections, [f'{key}={value}' for key, value in changes.items()])
    published = load_config(compare.config_of(row), sections)
    assert config.data.input == published.data.input
    assert config.data.get('rotation') == published.data.get('rotation')
    assert (config.data.seed, config.train.seed) == (3, 3)
    clips = make_clips(config, 'val')
    _, model = engine.make_model(sections['model'], config, clips.num_joints, torch.device('cpu'))
    assert sum(p.numel() for p in model.parameters()) < 3_000_000


def test_trains_the_rows_and_prints_their_table(pickles, tmp_path, capsys):
    command = [
        *pickles,
        '--rows',
        'vanilla_2d',
        'MB_train',
        '--epochs',
        '3',
        '--out',
        str(tmp_path / 'out'),
        '--jobs',
        '2',
    ]
    assert compare.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'a xsub, last of 3 epochs, %' in lines
    assert '| row | top-1, seed 0 | mean class, seed 0 |' in lines
    row = next(line for line in lines if line.startswith('| vanilla_2d | '))
    assert 0 <= float(row.split('|')[2]) <= 100
    assert 'a_hrnet.pkl, COCO-17, 16 frames of 32x32 px' in (tmp_path / 'out' / 'MB_train_0' / 'log.txt').read_text()


def test_mistakes_are_named_and_failures_told(pickles, tmp_path, capsys):
    with pytest.raises(SystemExit):
        compare.main([*pickles, '--rows', 'nothing', '--out', str(tmp_path)])
    assert 'nothing.yaml' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        compare.main([*pickles[:2], *pickles[4:], '--rows', 'vanilla_3d', '--out', str(tmp_path)])
    assert 'name the pickle by --ann_3d' in capsys.readouterr().err
    assert compare.main([*pickles[:4], '--num_classes', '2', '--rows', 'vanilla', '--out', str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert 'vanilla, seed 0: failed (2)' in told.out
    assert 'model.num_classes is 2' in (tmp_path / 'vanilla_0' / 'log.txt').read_text()
