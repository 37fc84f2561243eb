"""ViViT: a transformer over tubelets of heatmap volumes, in its four forms.

After Arnab et al., ViViT: A Video Vision Transformer, ICCV 2021 (https://arxiv.org/abs/2103.15691), section 3, and the
initial weights of its code (https://github.com/google-research/scenic, projects/vivit).

N clips, V maps per frame. A volume (N,frames,height,width,V) is cut into T time steps of S places each, that is T * S
tubelets, which become tokens (N,T,S,D) of width D. H heads of d channels.
"""

from typing import Literal, get_args

import keras
from keras import ops

from lib.errors import UserError, check_values

Kind = Literal['joint', 'factorised_encoder', 'factorised_attention', 'factorised_dot']
Reach = Literal['all', 'time', 'space', 'split']

SIZES = (
    'clip_len', 'size', 'num_joints', 'dim_feat', 'depth', 'temporal_depth', 'num_heads', 'head_dim', 'mlp_ratio',
    'num_classes',
)  # fmt: skip
RATES = ('attn_drop_rate', 'drop_path_rate')
# What a block's attentions reach, one after the other. The factorised encoder has a stack for space and one for time.
REACHES: dict[Kind, tuple[Reach, ...]] = {
    'joint': ('all',),
    'factorised_attention': ('time', 'space'),
    'factorised_dot': ('split',),
}
# The axes of (N,T,S,H,d) in the order in which the last but one is attended along, and the way back. Products of
# matrices take a tenth less memory than einsum, which lays its scores out in another order than it needs them in.
AXES = {'time': ((0, 2, 3, 1, 4), (0, 3, 1, 2, 4)), 'space': ((0, 1, 3, 2, 4), (0, 1, 3, 2, 4))}


class TubeletEmbedding(keras.layers.Layer):
    """One token per tubelet, frames x height x width pixels of all maps: (N,frames,height,width,V) -> (N,T,S,D).

    The places of a step go row by row, so that the tokens are in the order t, h, w.
    """

    def __init__(self, dim: int, tubelet_size: tuple[int, int, int], **kwargs) -> None:
        super().__init__(**kwargs)
        self.dim = dim
        self.tubelet_size = tuple(tubelet_size)

    def build(self, input_shape: tuple) -> None:
        self.projection = keras.layers.Conv3D(
            self.dim,
            kernel_size=self.tubelet_size,
            strides=self.tubelet_size,
            padding='valid',
            data_format='channels_last',
            kernel_initializer='lecun_normal',
            name='projection',
        )
        self.projection.build(input_shape)

    def call(self, volume):
        tokens = self.projection(volume)
        _, num_steps, num_rows, num_columns, dim = tokens.shape
        return ops.reshape(tokens, (-1, num_steps, num_rows * num_columns, dim))


class PositionEmbedding(keras.layers.Layer):
    """Adds a learned vector to each token, one for every step and place: (N,T,S,D) -> (N,T,S,D)."""

    def build(self, input_shape: tuple) -> None:
        self.embedding = self.add_weight(
            shape=input_shape[1:], initializer=keras.initializers.RandomNormal(stddev=0.02), name='embedding'
        )

    def call(self, tokens):
        return tokens + self.embedding


class Attention(keras.layers.Layer):
    """Multi-head self-attention: (N,T,S,D) -> (N,T,S,D).

    reach: the tokens that a token attends to, 'all' of the clip, those of its place in all steps ('time') or those of
    its step ('space'); with 'split' the first half of the heads reaches along time and the second along space.
    drop_rate: of the attention weights, in training.
    """

    def __init__(self, reach: Reach, num_heads: int, head_dim: int, drop_rate: float, **kwargs) -> None:
        super().__init__(**kwargs)
        self.reach = reach
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.drop_rate = drop_rate

    def build(self, input_shape: tuple) -> None:
        inner_shape = (*input_shape[:-1], self.num_heads * self.head_dim)
        # Three layers, not one of triple width: Xavier's bound depends on the width.
        self.query = _dense(inner_shape[-1], input_shape, 'query')
        self.key = _dense(inner_shape[-1], input_shape, 'key')
        self.value = _dense(inner_shape[-1], input_shape, 'value')
        self.dropout = keras.layers.Dropout(self.drop_rate, name='dropout')
        self.projection = _dense(input_shape[-1], inner_shape, 'projection')

    def call(self, tokens):
        _, num_steps, num_places, _ = tokens.shape
        # What reaches all reaches all places of one long step.
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
        """Mixes the values (N,T,S,H,d) of each head, weighted by the softmax of its scores."""
        order, back = AXES[along]
        query, key, value = (ops.transpose(part, order) for part in (query * self.head_dim**-0.5, key, value))
        weights = self.dropout(ops.softmax(ops.matmul(query, ops.swapaxes(key, -1, -2))))
        return ops.transpose(ops.matmul(weights, value), back)


class Mlp(keras.layers.Layer):
    """Two dense layers with one exact GELU between them: (N,T,S,D) -> (N,T,S,D)."""

    def __init__(self, hidden_dim: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim

    def build(self, input_shape: tuple) -> None:
        self.expand = _dense(self.hidden_dim, input_shape, 'expand')
        self.contract = _dense(input_shape[-1], (*input_shape[:-1], self.hidden_dim), 'contract')

    def call(self, tokens):
        return self.contract(ops.gelu(self.expand(tokens), approximate=False))


class Block(keras.layers.Layer):
    """One attention for each of `reaches`, then an MLP, all of them pre-norm residuals: (N,T,S,D) -> (N,T,S,D).

    In training `drop_path_rate` is the rate at which a residual is left out, drawn per clip; the kept ones are scaled
    by 1 / (1 - drop_path_rate).
    """

    def __init__(
        self,
        reaches: tuple[Reach, ...],
        num_heads: int,
        head_dim: int,
        hidden_dim: int,
        attn_drop_rate: float,
        drop_path_rate: float,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.reaches = tuple(reaches)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.hidden_dim = hidden_dim
        self.attn_drop_rate = attn_drop_rate
        self.drop_path_rate = drop_path_rate

    def build(self, input_shape: tuple) -> None:
        self.attention_norms = [_norm(input_shape, f'{reach}_norm') for reach in self.reaches]
        self.attentions = [
            Attention(reach, self.num_heads, self.head_dim, self.attn_drop_rate, name=f'{reach}_attention')
            for reach in self.reaches
        ]
        self.mlp_norm = _norm(input_shape, 'mlp_norm')
        self.mlp = Mlp(self.hidden_dim, name='mlp')
        for layer in (*self.attentions, self.mlp):
            layer.build(input_shape)
        self.drop_path = keras.layers.Dropout(self.drop_path_rate, noise_shape=(None, 1, 1, 1), name='drop_path')

    def call(self, tokens):
        for norm, attention in zip(self.attention_norms, self.attentions, strict=True):
            tokens = tokens + self.drop_path(attention(norm(tokens)))
        return tokens + self.drop_path(self.mlp(self.mlp_norm(tokens)))


class Encoder(keras.layers.Layer):
    """A stack of blocks with a norm at its end: (N,T,S,D) -> (N,T,S,D)."""

    def __init__(self, blocks: list[Block], **kwargs) -> None:
        super().__init__(**kwargs)
        self.blocks = blocks

    def build(self, input_shape: tuple) -> None:
        for block in self.blocks:
            block.build(input_shape)
        self.norm = _norm(input_shape, 'norm')

    def call(self, tokens):
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class ViViT(keras.Model):
    """Class scores of heatmap volumes; its arguments are the keys of a config's section `model`.

    kind: what the tokens attend to. With 'joint' (Model 1 of the paper) all to all. 'factorised_encoder' (Model 2):
    `depth` blocks within each time step, the mean of a step as its code, `temporal_depth` blocks among the codes.
    'factorised_attention' (Model 3): in each block first along time, then along space. 'factorised_dot' (Model 4):
    half of the heads along time, half along space.
    clip_len, size, num_joints: frames of a clip, height and width of a map in pixels, maps per frame.
    tubelet_size: frames, height and width of what becomes a token.
    head_dim: channels of a head, dim_feat / num_heads where it is None.
    attn_drop_rate: dropout of the attention weights. drop_path_rate: of the last block (see Block); it rises from 0 at
    the first in equal steps, in a factorised encoder over both stacks.

    The weights are there from the beginning, drawn by keras.utils.set_random_seed; the head's are zero, so that the
    first loss is ln(num_classes). The defaults are the row that was published at 81.3 top-1. Raises UserError, naming
    the key, for a value out of range.
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
        drop_path_rate: float = 0.0,
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
        self.drop_path_rate = drop_path_rate
        self.num_classes = num_classes
        self._check_arguments()
        self.build((None, clip_len, size, size, num_joints))

    def build(self, input_shape: tuple) -> None:
        num_steps, num_rows, num_columns = (
            pixels // tubelet for pixels, tubelet in zip(input_shape[1:4], self.tubelet_size, strict=True)
        )
        tokens_shape = (None, num_steps, num_rows * num_columns, self.dim_feat)
        self.embedding = TubeletEmbedding(self.dim_feat, self.tubelet_size, name='embedding')
        self.embedding.build(input_shape)
        self.positions = PositionEmbedding(name='positions')
        self.positions.build(tokens_shape)
        num_blocks = self.depth + (self.temporal_depth if self.kind == 'factorised_encoder' else 0)
        rates = [self.drop_path_rate * i / max(num_blocks - 1, 1) for i in range(num_blocks)]
        if self.kind == 'factorised_encoder':
            codes_shape = (None, num_steps, 1, self.dim_feat)  # of a step remains one place
            self.spatial_encoder = self._encoder(('space',), rates[: self.depth], tokens_shape, 'spatial_encoder')
            self.code_positions = PositionEmbedding(name='code_positions')
            self.code_positions.build(codes_shape)
            self.temporal_encoder = self._encoder(('time',), rates[self.depth :], codes_shape, 'temporal_encoder')
        else:
            self.encoder = self._encoder(REACHES[self.kind], rates, tokens_shape, 'encoder')
        self.head = keras.layers.Dense(self.num_classes, kernel_initializer='zeros', name='head')
        self.head.build((None, self.dim_feat))

    def call(self, volume, training: bool | None = None):
        """(N,clip_len,size,size,num_joints) -> (N,num_classes). Keras hands `training` on to the dropouts.

        Raises UserError for a volume of another shape.
        """
        if self.kind == 'factorised_encoder':
            codes = self.spatial_codes(volume)
            tokens = self.temporal_encoder(self.code_positions(codes[:, :, None]))
        else:
            tokens = self.encoder(self.embed(volume))
        return self.head(ops.mean(tokens, axis=(1, 2)))

    def embed(self, volume):
        """The tokens that enter the first block, positions added: (N,clip_len,size,size,num_joints) -> (N,T,S,D)."""
        expected = (self.clip_len, self.size, self.size, self.num_joints)
        if tuple(volume.shape[1:]) != expected:
            raise UserError(
                f'a volume of shape {tuple(volume.shape)} was given to a model of clip_len, size, size, num_joints '
                f'{expected}: it takes (N, {", ".join(map(str, expected))})'
            )
        return self.positions(self.embedding(volume))

    def spatial_codes(self, volume):
        """What a factorised encoder knows of each time step by itself: (N,clip_len,size,size,num_joints) -> (N,T,D)."""
        return ops.mean(self.spatial_encoder(self.embed(volume)), axis=2)

    def check_input(self, *, clip_len: int, num_joints: int, size: int) -> None:
        """Raise ValueError, naming the keys, where the volumes of this config do not fit the model.

        num_joints: maps per frame. size: height and width of a map.
        """
        if clip_len != self.clip_len:
            raise UserError(f'data.clip_len is {clip_len}, but model.clip_len is {self.clip_len}: set both to the same')
        if size != self.size:
            raise UserError(f'heatmap.size is {size}, but model.size is {self.size}: set both to the same')
        if num_joints != self.num_joints:
            raise UserError(
                f'model.num_joints is {self.num_joints}, but the input has {num_joints} maps per frame '
                f'(data.ann_file and heatmap.kind decide): set model.num_joints to {num_joints}'
            )

    def _check_arguments(self) -> None:
        values = vars(self) | {'tubelet_size': self.tubelet_size}
        rules = {
            'kind': (self.kind in get_args(Kind), f'one of {", ".join(get_args(Kind))}'),
            'tubelet_size': (
                len(self.tubelet_size) == 3 and min(self.tubelet_size) >= 1,
                '3 positive numbers: frames, height and width',
            ),
            **{key: ((size := getattr(self, key)) is None or size > 0, 'above 0') for key in SIZES},
            **{key: (0 <= getattr(self, key) < 1, 'at least 0 and below 1') for key in RATES},
        }
        check_values('model', values, rules)
        frames, height, width = self.tubelet_size
        has_width = self.head_dim is not None or self.dim_feat % self.num_heads == 0
        rules = {
            'clip_len': (self.clip_len % frames == 0, f'a multiple of the {frames} frames of model.tubelet_size'),
            'size': (
                self.size % height == self.size % width == 0,
                f'a multiple of the {height} x {width} px of model.tubelet_size',
            ),
            'num_heads': (has_width, f'a divisor of model.dim_feat {self.dim_feat}, or model.head_dim set'),
        }
        if self.kind == 'factorised_dot':  # half of the heads attend along time, half along space
            rules['num_heads'] = (self.num_heads % 2 == 0, 'even with model.kind factorised_dot')
        check_values('model', values, rules)

    def _encoder(self, reaches: tuple[Reach, ...], drop_path_rates: list[float], shape: tuple, name: str) -> Encoder:
        head_dim = self.head_dim or self.dim_feat // self.num_heads
        hidden_dim = int(self.dim_feat * self.mlp_ratio)
        blocks = [
            Block(reaches, self.num_heads, head_dim, hidden_dim, self.attn_drop_rate, rate, name=f'block_{i}')
            for i, rate in enumerate(drop_path_rates)
        ]
        encoder = Encoder(blocks, name=name)
        encoder.build(shape)
        return encoder


def _dense(units: int, input_shape: tuple, name: str) -> keras.layers.Dense:
    layer = keras.layers.Dense(units, kernel_initializer='glorot_uniform', name=name)  # Glorot is Xavier
    layer.build(input_shape)
    return layer


def _norm(input_shape: tuple, name: str) -> keras.layers.LayerNormalization:
    layer = keras.layers.LayerNormalization(epsilon=1e-6, name=name)
    layer.build(input_shape)
    return layer
