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
def pickles(write_pickle):
    files = [
        write_pickle(make([20, 30] * 9, persons=[1, 2] * 9), f'a_{name}.pkl')
        for name, make in (('hrnet', make_annotations), ('3danno', make_3d_annotations))
    ]
    return ['--ann_2d', str(files[0]), '--ann_3d', str(files[1]), '--num_classes', '4']


@pytest.mark.parametrize('row', compare.ROWS)
def test_every_row_is_small_and_keeps_its_input(row, pickles, tmp_path):
    args = compare.parse_args([*pickles, '--out', str(tmp_path / 'out')])
    changes = {key: 'null' if value is None else value for key, value in compare.overrides(row, 3, args).items()}
    sections = SECTIONS[compare.kind_of(row)]
    config = load_config(compare.config_of(row), sections, [f'{key}={value}' for key, value in changes.items()])
    assert config.data.input == load_config(compare.config_of(row), sections).data.input
    assert (config.data.seed, config.train.seed) == (3, 3)
    clips = make_clips(config, 'val')
    _, model = engine.make_model(sections['model'], config, clips.num_joints, torch.device('cpu'))
    assert sum(p.numel() for p in model.parameters()) < 3_000_000


@pytest.mark.slow
def test_rows_are_trained_and_printed_as_a_table(pickles, tmp_path, capsys):
    command = ['--rows', 'vanilla_2d', 'MB_train', '--epochs', '3', '--out', str(tmp_path / 'out'), '--jobs', '2']
    assert compare.main([*pickles, *command]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('| vanilla_2d | '))
    assert 0 <= float(row.split('|')[2]) <= 100
