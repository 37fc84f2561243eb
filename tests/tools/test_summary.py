from pathlib import Path

import pytest

from lib.tools import summary
from lib.tools.checkpoints import load_config_file, script_of
from tests.tiny import SCRIPTS, write_config

ROWS = Path(__file__).parents[2] / 'configs' / 'action'


def encoder(depth: int, rows: int, length: int, width: int, hidden: int) -> int:
    """Multiply-adds of blocks of attention among `length` tokens and an MLP, each on `rows` such sequences."""
    attention = 4 * width * width + 2 * length * width  # q, k, v, projection; scores and their weighted mean
    return depth * rows * length * (attention + 2 * width * hidden)


def motionbert(persons: int, frames: int, joints: int, dim_in: int) -> int:
    tokens = persons * frames * joints
    spatial = encoder(5, persons * frames, joints, 512, 1024)
    temporal = encoder(5, persons * joints, frames, 512, 1024)
    head = joints * 512 * 2048 + 2048 * 60
    return tokens * (dim_in * 512 + 5 * 1024 * 2 + 512 * 512) + 2 * (spatial + temporal) + head


def vanilla(persons: int, joints: int, dim_in: int, depth: int = 8, width: int = 256) -> int:
    tokens = 12 * joints  # of a person
    embedding = persons * tokens * 4 * dim_in * width
    return embedding + encoder(depth, persons, tokens, width, 4 * width) + width * 60


EXPECTED = {  # row: (parameters, multiply-adds)
    'MB_train': (63_532_678, motionbert(1, 48, 17, 3136)),  # maps hold all persons
    'MB_train_2d': (60_421_193, motionbert(2, 243, 17, 3)),
    'MB_train_3d': (68_714_057, motionbert(2, 48, 25, 3)),
    'vanilla': (9_552_956, vanilla(1, 17, 3136)),
    'vanilla_big': (94_758_972, vanilla(1, 17, 3136, depth=12, width=768)),
    'vanilla_3d': (6_346_812, vanilla(2, 25, 3)),
    'vivit': (8_650_300, 343 * (8 * 8 * 8 * 17) * 256 + encoder(8, 1, 343, 256, 1024) + 256 * 60),
}


def cost_of(path: Path, *overrides: str) -> summary.Cost:
    kind, config = load_config_file(path, overrides)
    measure = summary.cost_in_tensorflow if kind == 'vivit' else summary.cost_in_pytorch
    return measure(script_of(kind), config, 25 if config.data.input == 'keypoint_3d' else 17)


@pytest.mark.parametrize('row', [*list(EXPECTED)[:-1], pytest.param('vivit', marks=pytest.mark.slow)])
def test_parameters_and_multiply_adds_of_the_published_rows(row, monkeypatch):
    monkeypatch.setattr(summary, 'pytorch_memory', lambda *_: (0, 0, 0))  # takes longest
    parts = cost_of(ROWS / f'{row}.yaml').parts
    assert (sum(part.parameters for part in parts), sum(part.multiply_adds for part in parts)) == EXPECTED[row]
    frozen = [part.name for part in parts if not part.is_trained]
    assert frozen == (['backbone.head'] if row.startswith('MB') else [])


@pytest.mark.parametrize('kind', SCRIPTS)
def test_a_config_is_summed_up(kind, tmp_path, capsys):
    picture = tmp_path / 'curve.png'
    assert summary.main([str(write_config(kind, tmp_path)), '--out', str(picture)]) == 0
    assert '20 clips' in capsys.readouterr().out
    assert picture.read_bytes().startswith(b'\x89PNG')
    assert summary.main([str(tmp_path / 'tiny.yaml'), '--set', 'model.dim_feet=8']) == 2
    assert 'dim_feat' in capsys.readouterr().err
