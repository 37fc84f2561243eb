"""ViViT on heatmap volumes: Models 1 to 4.

After Arnab et al., ViViT: A Video Vision Transformer, ICCV 2021 (https://arxiv.org/abs/2103.15691), section 3.
Initialisers as in its code (https://github.com/google-research/scenic, projects/vivit).

N clips, V maps per frame. A volume (N,frames,height,width,V) is split into tubelets, T time steps times S spatial
positions, which are embedded as tokens (N,T,S,D) of width D. H heads of d channels.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import keras
from keras import ops

from lib.errors import UserError, check_values

Kind = Literal['joint', 'factorised_encoder', 'factorised_attention', 'factorised_dot']
Reach = Literal['all', 'time', 'space', 'split']
Activation = Literal['gelu', 'relu']
Init = Literal['paper', 'keras']

SIZES = (
    'clip_len', 'size', 'num_joints', 'dim_feat', 'depth', 'temporal_depth', 'num_heads', 'head_dim', 'mlp_ratio',
    'num_classes',
)  # fmt: skip
RATES = ('attn_drop_rate', 'mlp_drop_rate', 'drop_path_rate')
# Attention layers of a block, by kind. The factorised encoder is built from two stacks, 'space' and 'time'.
REACHES: dict[Kind, tuple[Reach, ...]] = {
    'joint': ('all',),
    'factorised_attention': ('time', 'space'),
    'factorised_dot': ('split',),
}
# Permutations of (N,T,S,H,d) that move the attended axis to the second last place, and their inverses. matmul takes a
# tenth less memory than einsum, which transposes the scores.
AXES = {'time': ((0, 2, 3, 1, 4), (0, 3, 1, 2, 4)), 'space': ((0, 1, 3, 2, 4), (0, 1, 3, 2, 4))}


@dataclass(frozen=True)
class BlockOptions:
    """Options shared by all blocks of a model.

    activation: between the two dense layers of the MLP; with activate_output, also after the second.
    attn_drop_rate, mlp_drop_rate: dropout of the attention weights, and after each dense layer of the MLP.
    """

    num_heads: int
    head_dim: int
    hidden_dim: int
    attn_drop_rate: float = 0.0
    mlp_drop_rate: float = 0.0
    activation: Activation = 'gelu'
    activate_output: bool = False


class TubeletEmbedding(keras.layers.Layer):
    """Embeds each tubelet as a token: (N,frames,height,width,V) -> (N,T,S,D).

    tubelet_size: frames, height and width. Tokens are ordered t, h, w.
    """

    def __init__(self, dim: int, tubelet_size: tuple[int, int, int], init: Init = 'paper', **kwargs) -> None:
        super().__init__(**kwargs)
        self.dim = dim
        self.init = init
        self.tubelet_size = tuple(tubelet_size)

    def build(self, input_shape: tuple) -> None:
        self.projection = keras.layers.Conv3D(
            self.dim,
            kernel_size=self.tubelet_size,
            strides=self.tubelet_size,
            padding='valid',
            data_format='channels_last',
            kernel_initializer='lecun_normal' if self.init == 'paper' else 'glorot_uniform',
            name='projection',
        )
        self.projection.build(input_shape)

    def call(self, volume):
        tokens = self.projection(volume)
        _, num_steps, num_rows, num_columns, dim = tokens.shape
        return ops.reshape(tokens, (-1, num_steps, num_rows * num_columns, dim))


class PositionEmbedding(keras.layers.Layer):
    """Adds learned position embeddings: (N,T,S,D) -> (N,T,S,D)."""

    def __init__(self, init: Init = 'paper', **kwargs) -> None:
        super().__init__(**kwargs)
        self.init = init

    def build(self, input_shape: tuple) -> None:
        normal, uniform = keras.initializers.RandomNormal(stddev=0.02), keras.initializers.RandomUniform(-0.05, 0.05)
        initializer = normal if self.init == 'paper' else uniform
        self.embedding = self.add_weight(shape=input_shape[1:], initializer=initializer, name='embedding')

    def call(self, tokens):
        return tokens + self.embedding


class Attention(keras.layers.Layer):
    """Multi-head self-attention: (N,T,S,D) -> (N,T,S,D).

    reach: 'all' attends to all tokens, 'time' to the same position in all steps, 'space' to all positions of the same
    step; with 'split' the first half of the heads attends along time, the second half along space.
    """

    def __init__(self, reach: Reach, options: BlockOptions, **kwargs) -> None:
        super().__init__(**kwargs)
        self.reach = reach
        self.num_heads, self.head_dim = options.num_heads, options.head_dim
        self.options = options

    def build(self, input_shape: tuple) -> None:
        inner_shape = (*input_shape[:-1], self.num_heads * self.head_dim)
        # Three layers instead of one of triple width: Glorot's bound depends on the width.
        self.query = _dense(inner_shape[-1], input_shape, 'query')
        self.key = _dense(inner_shape[-1], input_shape, 'key')
        self.value = _dense(inner_shape[-1], input_shape, 'value')
        self.dropout = keras.layers.Dropout(self.options.attn_drop_rate, name='dropout')
        self.projection = _dense(input_shape[-1], inner_shape, 'projection')

    def call(self, tokens):
        _, num_steps, num_places, _ = tokens.shape
        # 'all' is 'space' over one long step.
        grid = (1, num_steps * num_places) if self.reach == 'all' else (num_steps, num_places)
        query, key, value = (
            ops.reshape(layer(tokens), (-1, *grid, self.num_heads, self.head_dim))
            for layer in (self.query, self.key, self.value)
        )
        if self.reach == 'split':
            half = self.num_heads // 2
            along_time = self.attend('time', query[..., :half, :], key[..., :half, :], value[..., :half, :])
            along_space = self.attend('space', query[..., half:, :], key[..., half:, :], value[..., half:, :])
            heads = ops.concatenate([along_time, along_space], axis=-2)
        else:
            heads = self.attend('time' if self.reach == 'time' else 'space', query, key, value)
        return self.projection(ops.reshape(heads, (-1, num_steps, num_places, self.num_heads * self.head_dim)))

    def attend(self, along: Literal['time', 'space'], query, key, value):
        """Dot-product attention along one axis, per head; query, key and value are (N,T,S,H,d)."""
        order, back = AXES[along]
        query, key, value = (ops.transpose(part, order) for part in (query * self.head_dim**-0.5, key, value))
        weights = self.dropout(ops.softmax(ops.matmul(query, ops.swapaxes(key, -1, -2))))
        return ops.transpose(ops.matmul(weights, value), back)


class Mlp(keras.layers.Layer):
    """Two dense layers with an activation in between, the exact GELU by default: (N,T,S,D) -> (N,T,S,D)."""

    def __init__(self, options: BlockOptions, **kwargs) -> None:
        super().__init__(**kwargs)
        self.options = options

    def build(self, input_shape: tuple) -> None:
        hidden_dim = self.options.hidden_dim
        self.expand = _dense(hidden_dim, input_shape, 'expand')
        self.contract = _dense(input_shape[-1], (*input_shape[:-1], hidden_dim), 'contract')
        self.dropout = keras.layers.Dropout(self.options.mlp_drop_rate, name='dropout')

    def call(self, tokens):
        tokens = self.contract(self.dropout(self.activate(self.expand(tokens))))
        return self.dropout(self.activate(tokens) if self.options.activate_output else tokens)

    def activate(self, tokens):
        return ops.relu(tokens) if self.options.activation == 'relu' else ops.gelu(tokens, approximate=False)


class Block(keras.layers.Layer):
    """Attention layers, one per entry of `reaches`, and an MLP, all pre-norm residuals: (N,T,S,D) -> (N,T,S,D).

    drop_path_rate: stochastic depth, drawn per clip.
    """

    def __init__(
        self,
        reaches: tuple[Reach, ...],
        options: BlockOptions,
        drop_path_rate: float = 0.0,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.reaches = tuple(reaches)
        self.options = options
        self.drop_path_rate = drop_path_rate

    def build(self, input_shape: tuple) -> None:
        self.attention_norms = [_norm(input_shape, f'{reach}_norm') for reach in self.reaches]
        self.attentions = [Attention(reach, self.options, name=f'{reach}_attention') for reach in self.reaches]
        self.mlp_norm = _norm(input_shape, 'mlp_norm')
        self.mlp = Mlp(self.options, name='mlp')
        for layer in (*self.attentions, self.mlp):
            layer.build(input_shape)
        self.drop_path = keras.layers.Dropout(self.drop_path_rate, noise_shape=(None, 1, 1, 1), name='drop_path')

    def call(self, tokens):
        for norm, attention in zip(self.attention_norms, self.attentions, strict=True):
            tokens = tokens + self.drop_path(attention(norm(tokens)))
        return tokens + self.drop_path(self.mlp(self.mlp_norm(tokens)))


class Encoder(keras.layers.Layer):
    """Stack of blocks with a final layer norm: (N,T,S,D) -> (N,T,S,D)."""

    def __init__(self, blocks: list[Block], final_norm: bool = True, **kwargs) -> None:
        super().__init__(**kwargs)
        self.blocks = blocks
        self.final_norm = final_norm

    def build(self, input_shape: tuple) -> None:
        for block in self.blocks:
            block.build(input_shape)
        self.norm = _norm(input_shape, 'norm') if self.final_norm else None

    def call(self, tokens):
        for block in self.blocks:
            tokens = block(tokens)
        return tokens if self.norm is None else self.norm(tokens)


class ViViT(keras.Model):
    """ViViT classifier of heatmap volumes; its arguments are the keys of config section `model`.

    kind: 'joint' (Model 1 of the paper): all tokens attend to all. 'factorised_encoder' (Model 2): `depth` blocks in
    each time step, average pooling, then `temporal_depth` blocks across time steps. 'factorised_attention' (Model 3):
    each block attends along time, then along space. 'factorised_dot' (Model 4): half of the heads attend along time,
    half along space.
    clip_len, size, num_joints: frames per clip, height and width of a map in pixels, maps per frame.
    tubelet_size: frames, height and width of a tubelet.
    head_dim: channels per head; None: dim_feat / num_heads.
    attn_drop_rate, mlp_drop_rate: dropout of the attention weights, and after each dense layer of an MLP.
    drop_path_rate: stochastic depth of the last block, increasing linearly from 0 (in a factorised encoder over both
    stacks).
    activation, activate_output: of the MLPs, see BlockOptions. final_norm: whether a stack of blocks ends with a norm.
    init: of embeddings and head; 'paper', or 'keras' for the defaults of Keras's layers, as in the original project.

    The model is built on construction. With init 'paper' the head starts at zero, so that the initial loss is
    ln(num_classes). The defaults are those of vivit.yaml. Raises UserError, naming the key, for a value out of range.
    """

    def __init__(
        self,
        *,
        kind: Kind = 'joint',
        clip_len: int = 56,
        size: int = 56,
        num_joints: int = 17,
        tubelet_size: tuple[int, int, int] = (8, 8, 8),
        dim_feat: int = 256,
        depth: int = 8,
        temporal_depth: int = 8,
        num_heads: int = 8,
        head_dim: int | None = None,
        mlp_ratio: float = 4,
        attn_drop_rate: float = 0.1,
        mlp_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        activation: Activation = 'gelu',
        activate_output: bool = False,
        final_norm: bool = True,
        init: Init = 'paper',
        num_classes: int = 60,
    ) -> None:
        super().__init__(name='vivit')
        self.kind = kind
        self.clip_len = clip_len
        self.size = size
        self.num_joints = num_joints
        self.tubelet_size = tuple(tubelet_size)
        self.dim_feat = dim_feat
        self.depth = depth
        self.temporal_depth = temporal_depth
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.mlp_ratio = mlp_ratio
        self.attn_drop_rate = attn_drop_rate
        self.mlp_drop_rate = mlp_drop_rate
        self.drop_path_rate = drop_path_rate
        self.activation = activation
        self.activate_output = activate_output
        self.final_norm = final_norm
        self.init = init
        self.num_classes = num_classes
        self._check_arguments()
        self.build((None, clip_len, size, size, num_joints))

    def build(self, input_shape: tuple) -> None:
        num_steps, num_rows, num_columns = (
            pixels // tubelet for pixels, tubelet in zip(input_shape[1:4], self.tubelet_size, strict=True)
        )
        tokens_shape = (None, num_steps, num_rows * num_columns, self.dim_feat)
        self.embedding = TubeletEmbedding(self.dim_feat, self.tubelet_size, self.init, name='embedding')
        self.embedding.build(input_shape)
        self.positions = PositionEmbedding(self.init, name='positions')
        self.positions.build(tokens_shape)
        num_blocks = self.depth + (self.temporal_depth if self.kind == 'factorised_encoder' else 0)
        rates = [self.drop_path_rate * i / max(num_blocks - 1, 1) for i in range(num_blocks)]
        if self.kind == 'factorised_encoder':
            codes_shape = (None, num_steps, 1, self.dim_feat)  # one token per time step
            self.spatial_encoder = self._encoder(('space',), rates[: self.depth], tokens_shape, 'spatial_encoder')
            self.code_positions = PositionEmbedding(self.init, name='code_positions')
            self.code_positions.build(codes_shape)
            self.temporal_encoder = self._encoder(('time',), rates[self.depth :], codes_shape, 'temporal_encoder')
        else:
            self.encoder = self._encoder(REACHES[self.kind], rates, tokens_shape, 'encoder')
        initializer = 'zeros' if self.init == 'paper' else 'glorot_uniform'
        self.head = keras.layers.Dense(self.num_classes, kernel_initializer=initializer, name='head')
        self.head.build((None, self.dim_feat))

    def call(self, volume, training: bool | None = None):
        """(N,clip_len,size,size,num_joints) -> logits (N,num_classes). Raises UserError for any other shape.

        training: passed on to the dropout layers by Keras.
        """
        if self.kind == 'factorised_encoder':
            codes = self.spatial_codes(volume)
            tokens = self.temporal_encoder(self.code_positions(codes[:, :, None]))
        else:
            tokens = self.encoder(self.embed(volume))
        return self.head(ops.mean(tokens, axis=(1, 2)))

    def embed(self, volume):
        """Embeds tubelets and positions: (N,clip_len,size,size,num_joints) -> (N,T,S,D)."""
        expected = (self.clip_len, self.size, self.size, self.num_joints)
        if tuple(volume.shape[1:]) != expected:
            raise UserError(
                f'the volume is {tuple(volume.shape)}, but the model (clip_len, size, size, num_joints = {expected}) '
                f'expects (N, {", ".join(map(str, expected))})'
            )
        return self.positions(self.embedding(volume))

    def spatial_codes(self, volume):
        """Spatial encoder of Model 2, averaged per time step: (N,clip_len,size,size,num_joints) -> (N,T,D)."""
        return ops.mean(self.spatial_encoder(self.embed(volume)), axis=2)

    def check_input(self, *, clip_len: int, num_joints: int, size: int) -> None:
        """Raises UserError, naming the keys, if the volumes of a config do not fit the model.

        num_joints: maps per frame. size: height and width of a map.
        """
        if clip_len != self.clip_len:
            raise UserError(
                f'data.clip_len is {clip_len}, but model.clip_len is {self.clip_len}: set both to one value.'
            )
        if size != self.size:
            raise UserError(f'heatmap.size is {size}, but model.size is {self.size}: set both to one value.')
        if num_joints != self.num_joints:
            raise UserError(
                f'model.num_joints is {self.num_joints}, but the input has {num_joints} maps per frame '
                f'(see data.ann_file and heatmap.kind): set model.num_joints to {num_joints}.'
            )

    def _check_arguments(self) -> None:
        rules = {
            'kind': (self.kind in get_args(Kind), f'one of {", ".join(get_args(Kind))}'),
            'activation': (self.activation in get_args(Activation), 'gelu or relu'),
            'init': (self.init in get_args(Init), 'paper or keras'),
            'tubelet_size': (
                len(self.tubelet_size) == 3 and min(self.tubelet_size) >= 1,
                '3 positive numbers: frames, height and width',
            ),
            **{key: ((size := getattr(self, key)) is None or size > 0, 'above 0') for key in SIZES},
            **{key: (0 <= getattr(self, key) < 1, 'at least 0 and below 1') for key in RATES},
        }
        check_values('model', vars(self), rules)
        frames, height, width = self.tubelet_size
        has_width = self.head_dim is not None or self.dim_feat % self.num_heads == 0
        is_even = self.kind != 'factorised_dot' or self.num_heads % 2 == 0  # half of the heads per axis
        rules = {
            'clip_len': (self.clip_len % frames == 0, f'a multiple of the {frames} frames of model.tubelet_size'),
            'size': (
                self.size % height == self.size % width == 0,
                f'a multiple of the {height} x {width} px of model.tubelet_size',
            ),
            'num_heads': (has_width, f'a divisor of model.dim_feat {self.dim_feat}, or model.head_dim set'),
        }
        check_values('model', vars(self), rules)
        hidden_dim = int(self.dim_feat * self.mlp_ratio)
        rules = {
            'num_heads': (is_even, 'even with model.kind factorised_dot'),
            'mlp_ratio': (hidden_dim >= 1, f'at least 1 / model.dim_feat ({self.dim_feat})'),
        }
        check_values('model', vars(self), rules)

    def _encoder(self, reaches: tuple[Reach, ...], drop_path_rates: list[float], shape: tuple, name: str) -> Encoder:
        options = BlockOptions(
            num_heads=self.num_heads,
            head_dim=self.head_dim or self.dim_feat // self.num_heads,
            hidden_dim=int(self.dim_feat * self.mlp_ratio),
            attn_drop_rate=self.attn_drop_rate,
            mlp_drop_rate=self.mlp_drop_rate,
            activation=self.activation,
            activate_output=self.activate_output,
        )
        blocks = [Block(reaches, options, rate, name=f'block_{i}') for i, rate in enumerate(drop_path_rates)]
        encoder = Encoder(blocks, self.final_norm, name=name)
        encoder.build(shape)
        return encoder


def _dense(units: int, input_shape: tuple, name: str) -> keras.layers.Dense:
    layer = keras.layers.Dense(units, kernel_initializer='glorot_uniform', name=name)
    layer.build(input_shape)
    return layer


def _norm(input_shape: tuple, name: str) -> keras.layers.LayerNormalization:
    layer = keras.layers.LayerNormalization(epsilon=1e-6, name=name)
    layer.build(input_shape)
    return layer
