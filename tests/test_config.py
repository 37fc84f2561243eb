from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from lib.config import differences, load_config, plain


class Model:
    def __init__(
        self,
        outside: int = 3,
        *,
        width: int,
        rate: float = 0.1,
        kind: Literal['joint', 'limb'] = 'joint',
        area: tuple[float, float] = (0.5, 1.0),
        benchmark: str | list[str] = 'xsub',
        folder: str | None = None,
    ) -> None:
        pass


@dataclass(kw_only=True)
class Options:
    epochs: int
    compile: bool = False


SECTIONS = {'model': Model, 'train': Options}
GOOD = 'model: {width: 3}\ntrain: {epochs: 2}\n'


class Data:
    def __init__(self, *, input: str = 'heatmap', crop: float = 1.0, move: bool = True) -> None:
        pass

    @staticmethod
    def unread(*, input: str = 'heatmap', **_: object) -> dict[str, str]:
        return {'move' if input == 'heatmap' else 'crop': f'{input} does not read it'}


def load(tmp_path: Path, text: str, *overrides: str):
    path = tmp_path / 'c.yaml'
    path.write_text(text)
    return load_config(path, SECTIONS, overrides)


def test_fills_in_defaults_and_overrides(tmp_path):
    config = load(tmp_path, GOOD, 'model.benchmark=[a, b]', 'train.compile=true', 'model.rate=1')
    assert config.model == {
        'width': 3,
        'rate': 1,
        'kind': 'joint',
        'area': [0.5, 1.0],
        'benchmark': ['a', 'b'],
        'folder': None,
    }
    assert config.train == {'epochs': 2, 'compile': True}
    assert plain(config) == config
    assert type(plain(config)['model']) is dict


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('model: {widht: 3}\ntrain: {epochs: 2}', r'c\.yaml: model\.widht is not a known key\. Did you mean width'),
        ('model: {outside: 3}\ntrain: {epochs: 2}', r'model\.outside is not a known key'),
        ('model: {width: 3}', r'train\.epochs is missing; it must be a whole number'),
        ('modle: {width: 3}\ntrain: {epochs: 2}', r"unknown section 'modle'.*model"),
        ('model: {width: 3.5}\ntrain: {epochs: 2}', r'model\.width must be a whole number, found 3\.5'),
        ('model: {width: true}\ntrain: {epochs: 2}', r'model\.width must be a whole number, found True'),
        ('model: {width: 3, rate: 1e-4}\ntrain: {epochs: 2}', r"found '1e-4'. YAML reads 1e-4 as text; write 1\.0e-04"),
        ('model: {width: 3, rate: .nan}\ntrain: {epochs: 2}', r'model\.rate must be a number'),
        ('model: {width: 3, kind: bone}\ntrain: {epochs: 2}', r'model\.kind must be one of joint, limb'),
        ('model: {width: 3, area: [1]}\ntrain: {epochs: 2}', r'model\.area must be \[a number, a number\]'),
        ('model: {width: 3, benchmark: [1]}\ntrain: {epochs: 2}', r'model\.benchmark must be text or \[text, \.\.\.\]'),
        ('model: {width: 3}\ntrain: {epochs: 2, compile: 1}', r'train\.compile must be true or false'),
        ('model: {width: 3, width: 4}\ntrain: {epochs: 2}', r"'width' stands here twice"),
        ('model: 3', r'each `section:'),
        ('- a', r'each `section:'),
        ('', r'each `section:'),
        ('model: {', r'not sound YAML'),
        ('model: !!python/object/apply:os.getcwd []', r'not sound YAML'),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('width=3', 'write --set section.key=value'),
        ('model.width', 'write --set section.key=value'),
        ('model.wdth=3', 'Did you mean width'),
        ('optimiser.lr=3', "unknown section 'optimiser'"),
        ('model.width={', 'not sound YAML'),
    ],
)
def test_overrides_are_checked_alike(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, GOOD, override)


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no such config'):
        load_config(tmp_path / 'no.yaml', SECTIONS)


def test_differences():
    one, other = {'a': {'x': 1, 'y': 2}, 'b': {'z': 3}}, {'a': {'x': 1, 'y': 5}}
    assert differences(one, other) == {'a.y': (2, 5), 'b.z': (3, None)}


def test_keys_without_effect_are_refused_and_left_out(tmp_path):
    path = tmp_path / 'c.yaml'
    path.write_text('data: {crop: 0.5}')
    sections = {'data': Data, 'heatmap': Options}
    assert load_config(path, {'data': Data}).data == {'input': 'heatmap', 'crop': 0.5}
    with pytest.raises(ValueError, match=r'data\.move has no effect: heatmap does not read it'):
        load_config(path, {'data': Data}, ['data.move=false'])
    with pytest.raises(ValueError, match=r'data\.crop has no effect: keypoint_2d does not read it'):
        load_config(path, sections, ['data.input=keypoint_2d'])
    config = load_config(path, sections, ['data.input=keypoint_2d', 'data.crop=null'])
    assert config == {'data': {'input': 'keypoint_2d', 'move': True}}


def test_the_section_heatmap_stands_only_with_heatmaps(tmp_path):
    path = tmp_path / 'c.yaml'
    path.write_text('data: {input: keypoint_3d}\nheatmap: {epochs: 3}')
    with pytest.raises(ValueError, match='keypoint_3d draws nothing, so that the section heatmap must go'):
        load_config(path, {'data': Data, 'heatmap': Options})


def test_null_on_the_command_line_brings_the_default_back_and_hides_no_typo(tmp_path):
    assert load(tmp_path, 'model: {width: 3, rate: 0.5}\ntrain: {epochs: 2}', 'model.rate=null').model.rate == 0.1
    with pytest.raises(ValueError, match=r'model\.width is missing'):
        load(tmp_path, GOOD, 'model.width=null')
    with pytest.raises(ValueError, match=r'model\.raet is not a known key'):
        load(tmp_path, GOOD, 'model.raet=null')
