import argparse
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from lib.pytorch.mbert import MotionBERT
from lib.pytorch.pretrained import freeze_backbone, load_backbone, read_weights
from lib.pytorch.vanilla import Transformer, VanillaTransformer
from tests.pytorch.test_models import small_model


def other_model(**arguments) -> MotionBERT:
    """A model of the same sizes as small_model, in which every weight differs."""
    model = small_model(**arguments)
    torch.manual_seed(1)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.randint(1, 9, ()) if tensor.ndim == 0 else 0.1 + torch.rand(tensor.shape))
    return model


def bare(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights of the DSTformer alone, as in MotionBERT's pretraining files."""
    return model.backbone.state_dict()


def wrapped(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f'module.{name}': weight for name, weight in weights.items()}


def copy_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def kept(before: dict[str, torch.Tensor], model: nn.Module) -> set[str]:
    """Names of the unchanged tensors."""
    return {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}


@pytest.fixture
def write(tmp_path):
    def write(content: object, name: str = 'weights.bin'):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


FORMS = {
    'pretraining of MotionBERT': lambda weights: {
        'epoch': 90,
        'lr': 1e-4,
        'optimizer': {'state': {0: {'exp_avg': torch.ones(2)}}},
        'model_pos': wrapped(weights),
        'min_loss': np.float64(31.25),
    },
    'action checkpoint of MotionBERT': lambda weights: {
        'epoch': 300,
        'lr': 1e-4,
        'optimizer': {'state': {}},
        'model': wrapped(weights),
        'best_acc': torch.tensor(87.8),
    },
    'checkpoint of MAMP': lambda weights: {
        'model': weights,
        'optimizer': {'state': {}, 'param_groups': [{'lr': 5e-4, 'betas': (0.9, 0.95)}]},
        'epoch': 399,
        'scaler': {'scale': 65536.0, '_growth_tracker': 0},
        'args': argparse.Namespace(lr=1e-3, device='cuda', train_feeder_args={'p_interval': [0.5, 1]}, clip_grad=None),
    },
    'other numbers of NumPy': lambda weights: {
        'model': weights,
        'best_acc': np.float32(1),
        'epoch': np.int64(1),
        'done': np.True_,
    },
    'checkpoint of this project': lambda weights: {
        'kind': 'mbert',
        'config': {'model': {'depth': 2}},
        'epoch': 3,
        'model': weights,
    },
    'state dict': lambda weights: weights,
    'wrapped state dict': wrapped,
}


@pytest.mark.parametrize('form', FORMS)
def test_forms_of_files(form, write):
    weights = other_model().state_dict()
    assert equal(read_weights(write(FORMS[form](weights))), weights)


@pytest.mark.parametrize('module', ['numpy.core.multiarray', 'numpy._core.multiarray'])
def test_numbers_of_numpy_1_and_2(module, write, tmp_path):
    weights = other_model().state_dict()
    path = write({'model_pos': weights, 'min_loss': np.float64(31.25)})
    with zipfile.ZipFile(path) as file, zipfile.ZipFile(tmp_path / 'renamed.bin', 'w') as renamed:
        for name in file.namelist():
            content = file.read(name)
            if name.endswith('data.pkl'):
                content, found = re.subn(rb'numpy\.(_core|core)\.multiarray', module.encode(), content)
                assert found == 1
            renamed.writestr(name, content)
    assert equal(read_weights(tmp_path / 'renamed.bin'), weights)


def test_model_pos_takes_precedence_over_model(write):
    assert read_weights(write({'model': {'a': torch.zeros(1)}, 'model_pos': {'b': torch.ones(1)}})).keys() == {'b'}


def test_a_prefix_of_only_some_names_is_kept(write):
    weights = {'module.a': torch.ones(1), 'b': torch.ones(2)}
    assert equal(read_weights(write(weights)), weights)


def test_numpy_is_allowed_only_for_numbers(write):
    path = write({'model': {'a': torch.ones(1)}, 'min_loss': np.float64(1)})
    read_weights(path)
    with pytest.raises(pickle.UnpicklingError, match='numpy'):
        torch.load(path, weights_only=True)
    with pytest.raises(ValueError, match=r'holds more than weights: it refers to numpy\S+_reconstruct'):
        read_weights(write({'model': {'a': torch.ones(1)}, 'more': np.ones(2)}))


def test_missing_file(write):
    path = write({})
    with pytest.raises(ValueError, match=r'latest\.bin: there is no such file\. .* holds weights\.bin\.'):
        read_weights(path.with_name('latest.bin'))
    with pytest.raises(ValueError, match='there is no such file'):
        read_weights(path.parent)
    with pytest.raises(ValueError, match='holds no files'):
        read_weights(path.parent / 'nowhere' / 'latest.bin')


@pytest.mark.parametrize(
    ('content', 'found'),
    [
        ({'epoch': 3, 'lr': 0.1, 'state_dict': {'a': torch.ones(1)}}, "the keys ['epoch', 'lr', 'state_dict']"),
        ({'model': 'DSTformer', 'epoch': 3}, "the keys ['model', 'epoch']"),
        ({'model': {'a': np.float64(1)}}, "the keys ['model']"),
        ({'model': {}}, "the keys ['model']"),
        ({3: torch.ones(1)}, 'the keys [3]'),
        ([torch.ones(1)], 'a list'),
        (torch.ones(1), 'a Tensor'),
    ],
)
def test_file_without_weights(content, found, write):
    path = write(content)
    with pytest.raises(ValueError, match=re.escape(f'{path} holds no weights: found {found}, but')):
        read_weights(path)


def test_all_weights_of_the_same_model_are_loaded(write):
    source, model = other_model(), small_model()
    assert not kept(copy_of(model), source)
    path = write(wrapped(source.state_dict()))
    number = sum(p.numel() for p in model.parameters())
    count = len(model.state_dict())
    assert load_backbone(model, path) == [
        f'loaded {count} of {count} tensors ({number:,} of {number:,} parameters) from {path}'
    ]
    assert equal(model.state_dict(), source.state_dict())


def test_a_backbone_alone_is_loaded_and_the_head_keeps_its_initial_weights(write):
    source, model = other_model(), small_model()
    before = copy_of(model)
    lines = load_backbone(model, write({'model_pos': wrapped(bare(source))}))
    keypoint = torch.rand(2, 6, 5, 16)
    assert torch.equal(model.backbone.get_representation(keypoint), source.backbone.get_representation(keypoint))
    assert kept(before, model) == {name for name in before if name.startswith('head.')}
    assert (
        'missing in the file, initialised randomly: head.fc1.weight, head.fc1.bias, head.bn.weight, head.bn.bias'
        in lines[1]
    )
    assert len(lines) == 2


def test_shorter_temporal_embeddings_are_interpolated(write):
    source, model = other_model(maxlen=3), small_model(maxlen=7)
    half = source.backbone.temp_embed.half()
    lines = load_backbone(model, write(bare(source) | {'temp_embed': half}))
    there, here = half[0, :, 0].float(), model.backbone.temp_embed[0, :, 0]
    torch.testing.assert_close(here[::3], there)
    torch.testing.assert_close(here[1], there[0] * 2 / 3 + there[1] / 3)
    torch.testing.assert_close(here[5], there[1] / 3 + there[2] * 2 / 3)
    assert lines[1] == 'backbone.temp_embed: interpolated from 3 to 7 steps'
    assert lines[0].startswith(f'loaded {len(bare(model))} of ')


def test_skipped_and_frozen_layers_are_reported(write):
    path, note = write(other_model(dim_in=3).state_dict()), 'but frozen, add them to train.partial_train: '
    freeze_backbone(model := small_model(), ['norm'])
    reported = [line for line in load_backbone(model, path) if note in line]
    assert [line.split(note)[1] for line in reported] == ['backbone.joints_embed.weight, backbone.joints_embed.bias']
    freeze_backbone(model := small_model(), ['joints_embed'])
    assert not any(note in line for line in load_backbone(model, path))


def test_unused_weights_are_reported_with_their_names_in_the_file(write):
    model = small_model(depth=1)
    lines = load_backbone(model, write(bare(other_model())))
    assert re.match('not in this model, ignored: blocks_st.1.norm1_s.weight, .* and 46 more', lines[-1])


def mamp_weights(depth: int = 2, **arguments) -> dict[str, torch.Tensor]:
    """The names of MAMP's pretraining checkpoint: encoder and decoder, no head."""
    sizes = {'dim_feat': 16, 'num_heads': 2, 'num_frames': 8, 'num_joints': 5} | arguments
    encoder, decoder = (Transformer(depth=count, **sizes).state_dict() for count in (depth, 3))
    weights = {name: torch.rand_like(tensor) for name, tensor in encoder.items() if not name.startswith('head.')}
    parts = 'temp_embed', 'pos_embed', 'blocks.', 'norm.'
    weights |= {f'decoder_{name}': tensor for name, tensor in decoder.items() if name.startswith(parts)}
    layers = {'decoder_embed': nn.Linear(16, 16), 'decoder_pred': nn.Linear(16, 12)}
    weights |= {
        f'{name}.{part}': tensor for name, layer in layers.items() for part, tensor in layer.state_dict().items()
    }
    return weights | {'mask_token': torch.zeros(1, 1, 16)}


def mamp_model(**arguments) -> VanillaTransformer:
    sizes = {'num_joints': 5, 'num_frames': 8, 'dim_in': 3, 'dim_feat': 16, 'depth': 2, 'num_heads': 2}
    return VanillaTransformer(**sizes | {'protocol': 'finetune'} | arguments).eval()


@pytest.mark.parametrize('wrap', [dict, wrapped])
def test_mamps_encoder_is_loaded_without_its_decoder(write, wrap):
    weights, model = mamp_weights(), mamp_model()
    lines = load_backbone(model, write(FORMS['checkpoint of MAMP'](wrap(weights)), 'checkpoint-399.pth'))
    own = model.state_dict()
    encoder = {name for name in own if not name.startswith('head.')}
    assert encoder == {name for name in weights if not name.startswith(('decoder_', 'mask_token'))}
    assert all(torch.equal(own[name], weights[name]) for name in encoder)
    assert lines[0].startswith(f'loaded {len(encoder)} of {len(own)} tensors')
    assert re.fullmatch(r'missing in the file, initialised randomly: head\.fc1\.weight, .* and 5 more', lines[1])
    ignored = len(weights) - len(encoder) - 4
    assert re.fullmatch(rf'not in this model, ignored: decoder_.* and {ignored} more', lines[2])
    assert len(lines) == 3


@pytest.mark.parametrize(
    ('weights', 'make', 'unchanged', 'notes'),
    [
        (lambda: other_model(maxlen=9).state_dict(), small_model, [], ['backbone.temp_embed: truncated from 9 to 6']),
        (
            lambda: other_model().state_dict() | {'backbone.temp_embed': torch.ones(1, 9, 1, 8)},
            small_model,
            ['backbone.temp_embed'],
            ['backbone.temp_embed (1, 9, 1, 8) in the file, (1, 6, 1, 16) here'],
        ),
        (
            lambda: other_model(num_classes=60, dim_in=3).state_dict(),
            small_model,
            ['backbone.joints_embed.', 'backbone.head.', 'head.fc2.'],  # layers as a whole
            ['backbone.joints_embed.weight (16, 3) in the file, (16, 16) here', 'backbone.joints_embed.bias'],
        ),
        (
            lambda: other_model(num_joints=4).state_dict(),
            small_model,
            ['backbone.pos_embed', 'head.fc1.'],  # without temp_embed
            ['backbone.pos_embed', 'head.fc1.bias'],
        ),
        (
            lambda: other_model(depth=1).state_dict(),
            small_model,
            ['.blocks_st.1.', '.blocks_ts.1.', '.ts_attn.1.'],
            ['backbone.blocks_st.1.norm1_s.weight'],
        ),
        (
            mamp_weights,
            lambda: mamp_model(num_frames=4, num_joints=6, depth=3),
            ['pos_embed', 'blocks.2.', 'head.'],
            ['temp_embed: truncated from 2 to 1', 'blocks.2.norm1.weight', 'pos_embed (1, 1, 5, 16)', 'decoder_'],
        ),
    ],
)
def test_the_layers_that_fit_are_loaded(weights, make, unchanged, notes, write):
    weights, model = weights(), make()
    before = copy_of(model)
    lines = load_backbone(model, write(weights))
    same, own = kept(before, model), model.state_dict()
    assert same == {name for name in own if any(part in name for part in unchanged)}
    for name in own.keys() - same:
        assert torch.equal(own[name], weights[name][:, : own[name].shape[1]] if 'temp_embed' in name else weights[name])
    for note, line in zip(notes, lines[1:], strict=True):
        assert note in line


@pytest.mark.parametrize(
    ('load', 'named'),
    [
        (lambda path: load_backbone(mamp_model(dim_feat=32), path), r'pos_embed \(1, 1, 5, 16\) in the file, .* here'),
        (lambda path: load_backbone(small_model(), path), r'backbone\.pos_embed \(1, 1, 5, 16\) in the file'),
    ],
)
def test_mamps_encoder_for_another_model_is_refused(write, load, named):
    path = write(FORMS['checkpoint of MAMP'](mamp_weights()))
    with pytest.raises(ValueError, match=f'{path} holds the weights of another model: .*{named}'):
        load(path)


def half_as_wide() -> dict[str, torch.Tensor]:
    """Weights of which only some biases fit, as in MotionBERT-Lite."""
    weights = other_model(dim_feat=8).state_dict()
    own = small_model().state_dict()
    assert any(weights[name].shape == own[name].shape for name in weights if name.startswith('backbone.'))
    return weights


@pytest.mark.parametrize(
    ('weights', 'reason'),
    [
        (lambda: {'conv1.weight': torch.ones(64, 3, 7, 7)}, r'0 of the .* fit \(conv1.weight is not in the model\)'),
        (lambda: {n: w for n, w in small_model().state_dict().items() if n.startswith('head.')}, '0 of the'),
        (
            half_as_wide,
            r'208 of the 18,816 .* fit \(backbone.pos_embed \(1, 5, 8\) in the file, .* more',
        ),
    ],
)
def test_weights_of_another_model_change_nothing(weights, reason, write):
    model = small_model()
    before = copy_of(model)
    path = write(weights())
    with pytest.raises(ValueError, match=f'{path} holds the weights of another model: {reason}'):
        load_backbone(model, path)
    assert equal(model.state_dict(), before)


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ('partial_train', 'parts'),
    [
        (None, ['']),
        ([], []),
        (['blocks_ts.1', 'attn_s', 'pos_embed'], ['backbone.blocks_ts.1.', '.attn_s.', 'backbone.pos_embed']),
        (['weight'], ['.weight']),  # the pose head stays frozen
    ],
)
def test_only_the_head_and_named_parts_are_trained(partial_train, parts):
    model = small_model()
    before = trained(model)
    freeze_backbone(model, partial_train)
    assert trained(model) == {n for n in before if n.startswith('head.') or any(part in n for part in parts)}


@pytest.mark.parametrize('part', ['blocks_xy', 'head', 'backbone'])
def test_an_unknown_part_is_refused_before_anything_is_frozen(part):
    model = small_model()
    before = trained(model)
    known = 'pos_embed, temp_embed, joints_embed, blocks_st, blocks_ts, ts_attn, norm, pre_logits'
    with pytest.raises(ValueError, match=rf"train\.partial_train: .* '{part}' in its name\. .* begin with {known}\."):
        freeze_backbone(model, ['norm', part])
    assert trained(model) == before
