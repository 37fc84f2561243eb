import re
from pathlib import Path

import pytest

from lib.models import load_config
from lib.tools import summary
from tests import tiny

CONFIGS = Path(__file__).parents[2] / 'configs' / 'action'


def encoder(depth: int, rows: int, length: int, width: int, hidden: int) -> int:
    """Multiply-adds of blocks with attention among `length` tokens and an MLP, for `rows` sequences."""
    attention = 4 * width * width + 2 * length * width  # q, k, v, projection; scores and weighted mean
    return depth * rows * length * (attention + 2 * width * hidden)


def motionbert(persons: int, frames: int, joints: int, dim_in: int) -> int:
    tokens = persons * frames * joints
    spatial = encoder(5, persons * frames, joints, 512, 1024)
    temporal = encoder(5, persons * joints, frames, 512, 1024)
    head = joints * 512 * 2048 + 2048 * 60
    return tokens * (dim_in * 512 + 5 * 1024 * 2 + 512 * 512) + 2 * (spatial + temporal) + head


def vanilla(persons: int, joints: int, dim_in: int, depth: int = 8, width: int = 256) -> int:
    tokens = 12 * joints  # per person
    embedding = persons * tokens * 4 * dim_in * width
    return embedding + encoder(depth, persons, tokens, width, 4 * width) + width * 60


EXPECTED = {  # multiply-adds
    'MB_train': motionbert(1, 48, 17, 3136),  # persons share a map
    'MB_train_2d': motionbert(2, 243, 17, 3),
    'MB_train_3d': motionbert(2, 48, 25, 3),
    'vanilla': vanilla(1, 17, 3136),
    'vanilla_big': vanilla(1, 17, 3136, depth=12, width=768),
    'vanilla_3d': vanilla(2, 25, 3),
    'vivit': 343 * (8 * 8 * 8 * 17) * 256 + encoder(8, 1, 343, 256, 1024) + 256 * 60,
}


@pytest.mark.parametrize('name', [*list(EXPECTED)[:-1], pytest.param('vivit', marks=pytest.mark.slow)])
def test_trained_parameters_and_multiply_adds_of_published_configs(name):
    config = load_config(CONFIGS / f'{name}.yaml')
    total, trained, operations = summary.COSTS['tensorflow' if name == 'vivit' else 'pytorch'](config)
    frozen = 512 * config.model.dim_in + config.model.dim_in if name.startswith('MB') else 0  # MotionBERT's pose head
    assert total - trained == frozen
    assert operations == pytest.approx(EXPECTED[name], rel=0.02 if name == 'vivit' else 0)


@pytest.mark.parametrize('kind', tiny.SCRIPTS)
def test_a_config_is_summarised(kind, tmp_path, capsys):
    assert summary.main([str(tiny.write_config(kind, tmp_path)), '--measure']) == 0
    output = capsys.readouterr().out
    assert re.search(r'per step of 8 clips \(.* clips/s\), peak memory [1-9.]+.* GB, on cpu', output)
    assert re.search(r'published      \w+\.yaml: ', output)
    assert 'model.num_classes: 60 published, 4 here' in output
    kinect = ['heatmap.kind=both', 'model.num_joints=49', 'data.max_persons=1', 'data.batch_size=4']
    overrides = tiny.overrides(*kinect)
    assert summary.main([str(tmp_path / 'tiny.yaml'), *overrides, '--measure']) == 0
    assert 'per step of 4 clips' in capsys.readouterr().out
    assert summary.main([str(tmp_path / 'tiny.yaml'), '--set', 'model.dim_feet=8']) == 2
    assert 'dim_feat' in capsys.readouterr().err


def test_only_the_changed_settings_of_a_published_config_are_listed(capsys):
    command = [str(CONFIGS / 'MB_train_aug.yaml'), '--set', 'data.batch_size=64', '--set', 'data.ann_file=x/gym.pkl']
    assert summary.main(command) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('differs')]
    assert [line.split(maxsplit=1)[1] for line in lines] == [
        'data.ann_file: ntu60_hrnet.pkl published, gym.pkl here',
        'data.batch_size: 32 published, 64 here',
    ]
