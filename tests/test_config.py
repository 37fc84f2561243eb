from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml
from easydict import EasyDict
from hypothesis import given
from hypothesis import strategies as st

from lib import models
from lib.config import bind, differences, override, plain, read_config

ROOT = Path(__file__).parents[1]


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
        folder: str | None = 'here',
    ) -> None:
        pass


@dataclass(kw_only=True)
class Options:
    epochs: int
    compile: bool = False


SECTIONS = {'model': Model, 'train': Options}
GOOD = 'model: {width: 3}\ntrain: {epochs: 2}\n'


def load_config(path: Path, *overrides: str) -> EasyDict:
    return EasyDict(bind(override(read_config(path), overrides), SECTIONS, str(path)))


def load(tmp_path: Path, text: str, *overrides: str) -> EasyDict:
    path = tmp_path / 'c.yaml'
    path.write_text(text)
    return load_config(path, *overrides)


def test_fills_in_defaults_and_overrides(tmp_path):
    config = load(tmp_path, GOOD, 'model.benchmark=[a, b]', 'train.compile=true', 'model.rate=1')
    assert config.model == {
        'width': 3,
        'rate': 1,
        'kind': 'joint',
        'area': [0.5, 1.0],
        'benchmark': ['a', 'b'],
        'folder': 'here',
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
        ('model: {width: 3, width: 4}\ntrain: {epochs: 2}', r"duplicate key 'width'"),
        ('model: 3', r'each `section:'),
        ('- a', r'each `section:'),
        ('', r'each `section:'),
        ('model: {width: 3}\nmodel: {width: 3}\ntrain: {epochs: 2}', r"duplicate key 'model'"),
        ('model: {width: 3, rate: 1' + '0' * 400 + '}\ntrain: {epochs: 2}', r'model\.rate must be a number'),
        ('model: {', r'not valid YAML'),
        ('model: ' + '[' * 20_000, r'not valid YAML'),
        ('model: {width: 2001-13-01}', r'not valid YAML'),
        ('model: {width: !!bool 3}', r'not valid YAML'),
        ('model: {width: 3}\n---\ntrain: {epochs: 2}', r'not valid YAML'),
        ('model: {width: "\x1b[2J"}', r'not valid YAML'),
        ('model: !!python/object/apply:os.getcwd []', r'not valid YAML'),
        ('model: !!python/name:os.system', r'not valid YAML'),
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
        ('model.width={', 'not valid YAML'),
    ],
)
def test_overrides_are_checked_alike(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, GOOD, override)


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(ValueError, match='cannot be read'):
        load_config(tmp_path / 'no.yaml')


def test_differences():
    one, other = {'a': {'x': 1, 'y': 2}, 'b': {'z': 3}, 'c': 1}, {'a': {'x': 1, 'y': 5}, 'c': 2}
    assert differences(one, other) == {'a.y': (2, 5), 'b.z': (3, None), 'c': (1, 2)}


@pytest.mark.parametrize('given', ['', ', folder: there'])
def test_null_on_the_command_line_means_null(tmp_path, given):
    """With and without the key in the file, for any default."""
    text = f'model: {{width: 3, rate: 0.5{given}}}\ntrain: {{epochs: 2}}'
    assert load(tmp_path, text, 'model.folder=null').model.folder is None
    with pytest.raises(ValueError, match=r'model\.rate must be a number, found null'):
        load(tmp_path, text, 'model.rate=null')
    with pytest.raises(ValueError, match=r'model\.raet is not a known key'):
        load(tmp_path, text, 'model.raet=null')


def test_an_alias_may_be_used(tmp_path):
    config = load(tmp_path, 'model: {width: &w 3, area: &a [0.1, 0.2]}\ntrain: {epochs: *w}')
    assert config.train.epochs == 3


keys = st.text('abcdefgh_', min_size=1, max_size=8)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@given(
    config=st.dictionaries(keys, st.dictionaries(keys, values, max_size=5), min_size=1, max_size=4), flow=st.booleans()
)
def test_what_yaml_writes_is_read_back(tmp_path, config, flow):
    path = tmp_path / 'c.yaml'
    path.write_text(yaml.safe_dump(config, default_flow_style=flow))
    assert read_config(path) == config


@given(data=st.data())
def test_a_config_with_any_change_is_read_or_refused_by_name(tmp_path, data):
    """Changed, deleted or repeated bytes, or inserted YAML syntax: the result is a config or a ValueError."""
    content = bytearray((ROOT / 'configs/sample/vanilla.yaml').read_bytes())
    signs = st.sampled_from(
        [b'&a ', b'*a ', b'!!', b'- ', b'? ', b': ', b'[', b'{', b'"', b'|\n', b'\n', b'\t', b'<<: ', b'%']
    )
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        end = min(len(content), start + data.draw(st.integers(0, 12)))
        new = data.draw(signs | st.binary(max_size=6) | st.text(max_size=4).map(str.encode))
        content[start:end] = new * data.draw(st.sampled_from([1, 1, 1, 50]))
    path = tmp_path / 'c.yaml'
    path.write_bytes(content)
    try:
        config, refusal = models.load_config(path), None
    except ValueError as error:
        config, refusal = None, str(error)
    assert config.keys() >= {'script', *SECTIONS} if refusal is None else refusal.startswith(str(path))


@given(value=values)
def test_a_value_of_any_other_type_is_refused(tmp_path, value):
    path = tmp_path / 'c.yaml'
    path.write_text(yaml.safe_dump({'model': {'width': 3, 'rate': value}, 'train': {'epochs': 2}}))
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) != float('inf'):
        assert load_config(path).model.rate == value
    else:
        with pytest.raises(ValueError, match=r'model\.rate must be a number'):
            load_config(path)


@given(
    override=st.text(max_size=30)
    | st.tuples(st.sampled_from(['model.width', 'train.epochs']), st.text(max_size=20)).map('='.join)
)
def test_any_override_is_accepted_or_refused(tmp_path, override):
    try:
        config = load(tmp_path, GOOD, override)
    except ValueError:
        return
    assert isinstance(config.model.width, int)
