"""DSTformer, the backbone of MotionBERT (Zhu et al., MotionBERT: A Unified Perspective on Learning Human Motion
Representations, ICCV 2023). Keeps the constructor arguments and state-dict names of
https://github.com/Walter0807/MotionBERT (Apache-2.0).

N clips (persons folded in), T frames, V joints, C input channels, D embedding width.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from lib.errors import UserError
from lib.pytorch.layers import Attention, Linear, Mlp

LayerNorm = partial(nn.LayerNorm, eps=1e-6)  # torch's default is 1e-5


class Block(nn.Module):
    """Attention over the joints of each frame and over the frames of each joint: (N,T,V,D) -> (N,T,V,D).

    Each is followed by its own MLP; all four are pre-norm residuals. spatial_first: the order of the two halves.
    drop_path: stochastic depth, drawn per clip.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        *,
        spatial_first: bool,
        qkv_bias: bool,
        qk_scale: float | None,
        drop: float,
        attn_drop: float,
        drop_path: float,
        norm_layer: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.spatial_first = spatial_first
        hidden_dim = int(dim * mlp_ratio)
        self.norm1_s = norm_layer(dim)
        self.attn_s = Attention(dim, num_heads, qkv_bias, qk_scale, attn_drop, drop)
        self.norm2_s = norm_layer(dim)
        self.mlp_s = Mlp(dim, hidden_dim, drop)
        self.norm1_t = norm_layer(dim)
        self.attn_t = Attention(dim, num_heads, qkv_bias, qk_scale, attn_drop, drop)
        self.norm2_t = norm_layer(dim)
        self.mlp_t = Mlp(dim, hidden_dim, drop)
        self.drop_path = StochasticDepth(drop_path, mode='row')

    def forward(self, x: Tensor) -> Tensor:
        return self.temporal(self.spatial(x)) if self.spatial_first else self.spatial(self.temporal(x))

    def spatial(self, x: Tensor) -> Tensor:
        frames = rearrange(self.norm1_s(x), 'n t v d -> (n t) v d')
        x = x + self.drop_path(rearrange(self.attn_s(frames), '(n t) v d -> n t v d', n=len(x)))
        return x + self.drop_path(self.mlp_s(self.norm2_s(x)))

    def temporal(self, x: Tensor) -> Tensor:
        # Transposed before the qkv layer, which triples the channels.
        tracks = rearrange(self.norm1_t(x), 'n t v d -> (n v) t d')
        x = x + self.drop_path(rearrange(self.attn_t(tracks), '(n v) t d -> n t v d', n=len(x)))
        return x + self.drop_path(self.mlp_t(self.norm2_t(x)))


class DSTformer(nn.Module):
    """Dual-stream spatio-temporal transformer: (N,T,V,dim_in) -> (N,T,V,dim_out), with T up to maxlen.

    At each depth two blocks process the same input, one spatial then temporal (st), one temporal then spatial (ts).
    Their outputs are averaged, or fused with weights predicted per token (att_fuse). With dim_rep 0 or None the
    representation is the normalised output of the last depth, of width dim_feat.
    """

    def __init__(
        self,
        dim_in: int = 3,
        dim_out: int = 3,
        dim_feat: int = 256,
        dim_rep: int | None = 512,
        depth: int = 5,
        num_heads: int = 8,
        mlp_ratio: float = 4,
        num_joints: int = 17,
        maxlen: int = 243,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = LayerNorm,
        att_fuse: bool = True,
    ) -> None:
        super().__init__()
        self.joints_embed = Linear(dim_in, dim_feat)
        self.pos_embed = nn.Parameter(torch.zeros(1, num_joints, dim_feat))
        self.temp_embed = nn.Parameter(torch.zeros(1, maxlen, 1, dim_feat))
        self.pos_drop = nn.Dropout(drop_rate)

        def blocks(spatial_first: bool) -> nn.ModuleList:
            return nn.ModuleList(
                Block(
                    dim_feat,
                    num_heads,
                    mlp_ratio,
                    spatial_first=spatial_first,
                    qkv_bias=qkv_bias,
                    qk_scale=qk_scale,
                    drop=drop_rate,
                    attn_drop=attn_drop_rate,
                    drop_path=drop_path_rate * i / max(depth - 1, 1),  # 0 at the first depth, the full rate at the last
                    norm_layer=norm_layer,
                )
                for i in range(depth)
            )

        self.blocks_st = blocks(spatial_first=True)
        self.blocks_ts = blocks(spatial_first=False)
        self.ts_attn = nn.ModuleList(nn.Linear(2 * dim_feat, 2) for _ in range(depth)) if att_fuse else None
        self.norm = norm_layer(dim_feat)
        if dim_rep:
            self.pre_logits = nn.Sequential(OrderedDict(fc=Linear(dim_feat, dim_rep), act=nn.Tanh()))
        else:
            self.pre_logits = nn.Identity()
        self.head = Linear(dim_rep or dim_feat, dim_out)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws MotionBERT's initial weights; both streams start with equal weight."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.temp_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for fuse in self.ts_attn or []:
            nn.init.zeros_(fuse.weight)
            nn.init.constant_(fuse.bias, 0.5)

    def embed(self, x: Tensor) -> Tensor:
        """Tokens that enter the blocks: (N,T,V,C) -> (N,T,V,D).

        Raises UserError if T exceeds maxlen, or V or C differ from num_joints or dim_in.
        """
        _, num_frames, num_joints, dim_in = x.shape
        maxlen = self.temp_embed.shape[1]
        built_for = (self.pos_embed.shape[1], self.joints_embed.in_features)
        if num_frames > maxlen:
            raise UserError(f'a clip of {num_frames} frames exceeds maxlen {maxlen}: shorten it, or increase maxlen')
        # Without this check a single joint would be broadcast to all of them.
        if (num_joints, dim_in) != built_for:
            raise UserError(
                f'the input has {num_joints} joints of {dim_in} channels, but the model has '
                f'num_joints {built_for[0]} and dim_in {built_for[1]}'
            )
        return self.pos_drop(self.joints_embed(x) + self.pos_embed + self.temp_embed[:, :num_frames])

    def get_representation(self, x: Tensor) -> Tensor:
        """(N,T,V,C) -> (N,T,V,dim_rep), each number in (-1, 1). Raises UserError, see `embed`."""
        x = self.embed(x)
        for i, (block_st, block_ts) in enumerate(zip(self.blocks_st, self.blocks_ts, strict=True)):
            x_st = block_st(x)
            x_ts = block_ts(x)
            if self.ts_attn is None:
                x = (x_st + x_ts) / 2
            else:
                weights = self.ts_attn[i](torch.cat([x_st, x_ts], dim=-1)).softmax(dim=-1)
                x = weights[..., :1] * x_st + weights[..., 1:] * x_ts
        return self.pre_logits(self.norm(x))

    def forward(self, x: Tensor, return_rep: bool = False) -> Tensor:
        """(N,T,V,C) -> (N,T,V,dim_out), or the representation. Raises UserError, see `embed`."""
        representation = self.get_representation(x)
        return representation if return_rep else self.head(representation)
