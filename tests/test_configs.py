"""The YAML files in configs/, for both frameworks."""

import inspect
import re
from pathlib import Path

import pytest
import yaml

from lib.config import flat
from lib.data.augmentation import Augmentation
from lib.models import MODELS, load_config, resolve_config

ROOT = Path(__file__).parents[1]
PATHS = sorted(ROOT.glob('configs/*/*.yaml'))
ROWS = [path for path in PATHS if path.parent.name == 'action']
README = (ROOT / 'configs' / 'README.md').read_text()


@pytest.fixture(params=PATHS, ids=lambda path: f'{path.parent.name}/{path.stem}')
def path(request):
    return request.param


def test_loads_and_every_value_is_the_one_in_the_file(path):
    config, written = load_config(path), yaml.safe_load(path.read_text())
    assert written['script'] == config.script
    assert flat(written).items() <= flat(config).items()


def test_the_header_gives_command_and_size(path):
    header = re.match(r'(#.*\n)+', path.read_text())[0]
    relative, program = path.relative_to(ROOT), MODELS[load_config(path).script].program
    kind = 'pretrain' if load_config(path).script == 'pretrain' else 'action'
    assert f'{program} --config {relative} --checkpoint checkpoint/{kind}/' in header
    if path in ROWS:
        assert re.search(r'[\d,]+ parameters', header)


@pytest.mark.parametrize('path', ROWS, ids=lambda path: path.stem)
def test_the_model_has_the_parameters_in_the_header(path):
    count = int(re.search(r'([\d,]+) parameters', path.read_text())[1].replace(',', ''))
    config = load_config(path)
    model = MODELS[config.script]
    if model.framework == 'pytorch':
        import torch

        with torch.device('meta'):
            built = model.load_classifier()(**config.model)
    else:
        built = model.load_classifier()(**config.model)
    assert model.training.count_parameters(built)[0] == count


def test_the_default_configs_exist():
    assert all((ROOT / model.default_config) in PATHS for model in MODELS.values())


@pytest.mark.parametrize(
    ('config', 'message'),
    [({}, 'script is missing'), ({'script': 'bert'}, "script is 'bert'"), ({'script': ['mbert']}, 'one of mbert')],
)
def test_a_config_without_a_model_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        resolve_config(config, (), 'mine.yaml')


def test_a_config_for_another_script_is_refused():
    with pytest.raises(ValueError, match=r'Use train_action_mbert\.py'):
        load_config(ROOT / 'configs/action/MB_train.yaml', script='vanilla')


def test_an_augmentation_without_effect_is_refused():
    Augmentation(rotation=0.3).check_input('heatmap')
    Augmentation(random_move=False).check_input('keypoint_3d')
    with pytest.raises(ValueError, match=r'augmentation\.rotation has no effect with data\.input keypoint_2d'):
        Augmentation(rotation=0.3).check_input('keypoint_2d')
    with pytest.raises(ValueError, match=r'augmentation\.scale_range'):
        Augmentation(scale_range=(1.0, 2.0)).check_input('keypoint_3d')


@pytest.mark.parametrize('script', MODELS)
def test_the_readme_lists_every_key_and_default(script):
    """In rows `key`, ... | default, ... | meaning."""
    for section, call in MODELS[script].sections.items():
        table = re.search(rf'^### `{section}`.*?(?=^##|\Z)', README, re.MULTILINE | re.DOTALL)[0]
        listed = {}
        for keys, defaults in re.findall(r'^\| (`.*?) \| (.*?) ?\|', table, re.MULTILINE):
            keys = re.findall(r'`(\w+)`', keys)
            defaults = [defaults] if len(keys) == 1 else re.split(r', (?![^\[]*\])', defaults)
            listed |= dict(zip(keys, defaults if len(defaults) == len(keys) else [None] * len(keys), strict=True))
        for key, parameter in inspect.signature(call).parameters.items():
            if (
                parameter.kind is parameter.KEYWORD_ONLY
                and key not in ('dropout_ratio', 'attn_drop_rate')  # their defaults depend on the model
                and (key in listed or section != 'model')
            ):
                default = '' if parameter.default is parameter.empty else parameter.default
                default = list(default) if isinstance(default, tuple) else default
                assert key in listed, f'{section}.{key}'
                assert listed[key] is None or (yaml.safe_load(listed[key]) or '') == (default or ''), f'{section}.{key}'
